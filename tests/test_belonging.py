"""What comes from elsewhere is fitted to the images it belongs to: the order of entries, the scale of lengths."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.commands._aligned_stack import thickness_beside
from inrtomo.errors import InputError
from inrtomo.io import imod
from inrtomo.io.alignment_files import read_alignment, read_record
from inrtomo.io.belonging.order import compare, order_of
from inrtomo.io.convert import write_record
from inrtomo.io.mrc import write_stack
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.star import read_star
from inrtomo.tiltseries import TiltSeries, open_tilt_series
from tests.running import Inr, assert_refused

Array = NDArray[np.float64]

SIZE, N, PIXEL, STEP = (48, 40), 13, 8.0, 8.0
SORTED: Array = np.array(range(N), dtype=np.float64) * STEP - 48
DOSE_SYMMETRIC = np.argsort(np.abs(SORTED) * 2 + (SORTED < 0), kind="stable")
OUT = {"imod": "al", "aretomo": "ts.aln", "relion5": "tomograms.star", "warp": "ts.xml", "json": "ts.json"}
OUT |= {"outimod1": "ts_Imod"}


def a_stack(path: Path, angles: Array, size: tuple[int, int] = SIZE, pixel: float = PIXEL) -> TiltSeries:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).normal(size=(len(angles), size[1], size[0]))
    write_stack(path, images, pixel, overwrite=True)
    imod.write_angles(path.with_suffix(".rawtlt"), angles, overwrite=True)
    return open_tilt_series(path)


def aligned(angles: Array, recorded: Array = SORTED, size: tuple[int, int] = SIZE) -> SeriesRecord:
    """Shifts that name the image: its recorded angle, and a third of it."""
    plain = Alignment.identity(angles, size, -84.0, PIXEL)
    shifts = np.stack([recorded, recorded / 3], axis=1)
    return SeriesRecord(replace(plain, shift_px=shifts), "ts")


def written(folder: Path, record: SeriesRecord, form: str) -> Path:
    write_record(folder / OUT[form], record, form)
    if form == "outimod1":
        return folder / "ts_Imod"
    return folder / OUT[form]


@pytest.mark.parametrize("form", list(OUT))
@pytest.mark.parametrize("offset_deg", [0.0, 10.8])
def test_sorted_entries_go_to_the_images_of_a_dose_symmetric_stack(
    tmp_path: Path, form: str, offset_deg: float
) -> None:
    """By their angles, whatever offset a levelled series has; and it is said."""
    recorded = SORTED[DOSE_SYMMETRIC]
    series = a_stack(tmp_path / "raw" / "ts.mrc", recorded)
    source = written(tmp_path, aligned(SORTED + offset_deg), form)
    notes: list[str] = []
    record = read_record(source, series, notes)
    np.testing.assert_allclose(record.alignment.tilt_deg, recorded + offset_deg, atol=1e-3)
    np.testing.assert_allclose(record.alignment.shift_px, np.stack([recorded, recorded / 3], axis=1), atol=0.01)
    assert record.nominal_tilt_deg is not None
    np.testing.assert_allclose(record.nominal_tilt_deg, recorded, atol=1e-3)
    assert any("order of" in note and "ts.mrc" in note for note in notes)


@pytest.mark.parametrize("form", list(OUT))
@pytest.mark.parametrize("kind", ["wander", "offset", "scale", "sign", "one off"])
def test_refined_angles_keep_the_order_they_are_in(tmp_path: Path, form: str, kind: str) -> None:
    """Angles that wander by degrees, are 12 off, 1.05 times as large or of the other sign are still those images'."""
    series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED + 1)
    refined = {
        "wander": SORTED + np.random.default_rng(3).normal(size=N) * 2,
        "offset": SORTED + 12.0,
        "scale": SORTED * 1.05 - 3,
        "sign": -SORTED - 1,
        "one off": SORTED + 25.0 * (np.arange(N) == 4),
    }[kind]
    notes: list[str] = []
    alignment = read_alignment(written(tmp_path, aligned(refined), form), series, notes)
    np.testing.assert_allclose(alignment.tilt_deg, refined, atol=1e-3)
    np.testing.assert_allclose(alignment.shift_px[:, 0], SORTED, atol=0.01)
    said = {"scale": "times the recorded", "sign": "other sign", "one off": "images 4 by 2"}.get(kind)
    odd = [n for n in notes if re.search("recorded", n) and "AlphaOffset" not in n]
    assert any(said in note for note in odd) if said else not odd, notes


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("step", [1.0, 2.0, 3.0])
def test_noise_never_changes_an_order(seed: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    recorded = np.arange(-60, 60.1, step)
    if seed % 2:
        recorded = recorded[np.argsort(np.abs(recorded), kind="stable")]
    for sd in (0.2, 1.0, 2.0):
        refined = (1 + 0.05 * rng.uniform(-1, 1)) * recorded + rng.normal() * 10 + rng.normal(size=len(recorded)) * sd
        assert order_of(refined, recorded).is_same


def test_swapped_neighbours_are_put_right() -> None:
    recorded = np.arange(-60, 61, 3.0)
    refined = recorded + 4 + np.random.default_rng(0).normal(size=41) * 0.1
    refined[[10, 11]] = refined[[11, 10]]
    found = order_of(refined, recorded)
    assert found.at is not None and found.at[[9, 10, 11, 12]].tolist() == [9, 11, 10, 12]


def test_offset_sign_and_scale_are_taken_off() -> None:
    recorded = np.linspace(-50, 60, 23)
    found = compare(-0.97 * recorded + 7, recorded)
    assert (found.sign, found.worst < 1e-9) == (-1, True)
    assert (found.scale, found.offset_deg) == (pytest.approx(0.97), pytest.approx(7))


@pytest.mark.parametrize("form", list(OUT))
def test_angles_of_another_series_are_refused_with_both_orders(tmp_path: Path, form: str) -> None:
    series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED[DOSE_SYMMETRIC])
    other = np.random.default_rng(1).permutation(np.linspace(-20, 70, N) ** 2 / 70)
    with pytest.raises(InputError, match=r"-?\d+, .*order .*0, 8, -8"):
        read_alignment(written(tmp_path, aligned(other), form), series)


@pytest.mark.parametrize("form", ["relion5", "warp"])
def test_an_image_taken_again_is_told_by_its_exposure(tmp_path: Path, form: str) -> None:
    """Two images at 0 degrees, the entries sorted by angle: which is whose only the exposure says."""
    recorded = np.array([0.0, 8, -8, 0.3, 16, -16, 24, -24])
    exposure = 3.0 * np.array(range(8), dtype=np.float64)
    series = a_stack(tmp_path / "raw" / "ts.mrc", recorded)
    entries = np.array([7, 5, 2, 3, 0, 1, 4, 6])
    record = replace(aligned(recorded[entries], recorded[entries]), nominal_tilt_deg=recorded[entries])
    record = replace(record, images=tuple(f"{k}.mrc" for k in range(8)), exposure_e_A2=exposure[entries])
    source = written(tmp_path, record, form)
    with pytest.raises(InputError, match="two images have one angle"):
        read_alignment(source, series)
    series.exposure_e_A2 = exposure
    back = read_record(source, series)
    np.testing.assert_allclose(back.alignment.shift_px[:, 0], recorded, atol=0.01)
    assert back.exposure_e_A2 is not None and back.exposure_e_A2.tolist() == exposure.tolist()


def test_movies_name_the_images(tmp_path: Path) -> None:
    """Warp's XML and the .mdoc name them; with two images of one angle nothing else has to."""
    recorded = np.array([0.0, 8, -8, 0.0, 16, -16])
    series = a_stack(tmp_path / "raw" / "ts.mrc", recorded)
    series.movies = tuple(f"m{k}.tif" for k in range(6))
    entries = np.array([5, 2, 3, 0, 1, 4])
    record = aligned(recorded[entries], entries.astype(np.float64))
    record = replace(record, images=tuple(f"frames/m{k}.eer" for k in entries))
    back = read_alignment(written(tmp_path, record, "warp"), series)
    np.testing.assert_allclose(back.shift_px[:, 0], np.arange(6), atol=0.01)


def test_recorded_and_refined_angles_in_two_orders_are_refused(tmp_path: Path) -> None:
    """A .tlt that somebody sorted beside the .rawtlt of the stack: the .xf may be in either order."""
    recorded = SORTED[DOSE_SYMMETRIC]
    series = a_stack(tmp_path / "raw" / "ts.mrc", recorded)
    source = written(tmp_path, aligned(SORTED), "imod")
    imod.write_angles(source / "ts.rawtlt", recorded)
    with pytest.raises(InputError, match="another order"):
        read_alignment(source, series)


def test_the_own_stack_of_a_result_is_believed(tmp_path: Path) -> None:
    """An alignment of this very file is in its order, whatever the .rawtlt beside it says by now."""
    series = a_stack(tmp_path / "ts.mrc", SORTED[DOSE_SYMMETRIC])
    record = replace(aligned(SORTED), stack=str(tmp_path / "ts.mrc"), nominal_tilt_deg=SORTED)
    source = written(tmp_path, record, "json")
    text = source.read_text().replace('"version"', f'"input": {{"stack": "{tmp_path / "ts.mrc"}"}}, "version"', 1)
    source.write_text(text)
    notes: list[str] = []
    back = read_record(source, series, notes)
    np.testing.assert_allclose(back.alignment.shift_px[:, 0], SORTED)
    assert any("not in one order" in note for note in notes)


# --- scale


def etomo(folder: Path, size: tuple[int, int], fullimage: tuple[int, int] | None, stack: str | None) -> Path:
    """An Etomo folder of images of ``size``: what it says of that size besides."""
    folder.mkdir(parents=True)
    a = aligned(SORTED + 2, size=size).alignment
    imod.write_xf(folder / "ts.xf", a.linear, a.shift_px)
    imod.write_angles(folder / "ts.tlt", a.tilt_deg)
    if fullimage:
        lines = f"IMAGEBINNED 2\nTILTFILE ts.tlt\nTHICKNESS 40\nFULLIMAGE {fullimage[0]} {fullimage[1]}\n"
        (folder / "tilt.com").write_text("$tilt -StandardInput\n" + lines)
    if stack:
        write_stack(folder / stack, np.ones((N, size[1], size[0]), np.float32), None)
    return folder


@pytest.mark.parametrize("how", ["FULLIMAGE", "stack", "both", "newst.com", "preali", "edf"])
def test_shifts_of_an_etomo_folder_of_binned_images(tmp_path: Path, how: str) -> None:
    """Unbinned images have four times the shift; FULLIMAGE is the raw stack's whatever IMAGEBINNED says (man page)."""
    series = a_stack(tmp_path / "ts.mrc", SORTED, (4 * SIZE[0], 4 * SIZE[1] + 1), PIXEL / 4)
    full, stack = (SIZE if how in ("FULLIMAGE", "both") else None), ("ts.mrc" if how in ("stack", "both") else None)
    folder = etomo(tmp_path / "etomo", SIZE, full, {"newst.com": "other.st", "preali": "ts_preali.mrc"}.get(how, stack))
    if how == "newst.com":
        (folder / "newst.com").write_text(
            "$newstack -StandardInput\nInputFile other.st\nOutputFile ts_ali.mrc\nBinByFactor 2\n"
        )
    if how == "preali":
        (folder / "prenewst.com").write_text("$newstack -StandardInput\nInputFile ts.mrc\nBinByFactor 1\n")
    if how == "edf":
        (folder / "ts.edf").write_text(f"Setup.PixelSize={PIXEL / 10}\n")
    notes: list[str] = []
    record = read_record(folder, series, notes)
    np.testing.assert_allclose(record.alignment.shift_px[:, 0], 4 * SORTED, atol=0.01)
    assert record.alignment.image_size == series.size and any("scaled by 4" in note for note in notes)
    if how == "FULLIMAGE":
        assert record.thickness_px == pytest.approx(160)


def test_a_com_file_in_pixels_of_a_binned_aligned_stack(tmp_path: Path) -> None:
    """Without IMAGEBINNED, a tilt.com of a stack that newst.com binned has FULLIMAGE and THICKNESS in its pixels."""
    series = a_stack(tmp_path / "ts.mrc", SORTED, (96, 80))
    folder = etomo(tmp_path / "etomo", (96, 80), SIZE, "ts.mrc")
    command = (folder / "tilt.com").read_text().replace("IMAGEBINNED 2", "IMAGEBINNED 1")
    (folder / "tilt.com").write_text(command)
    (folder / "newst.com").write_text("$newstack -StandardInput\nOutputFile ts_ali.mrc\nBinByFactor 2\n")
    for _ in ("with the stack beside it", "without"):
        record = read_record(folder, series)
        np.testing.assert_allclose(record.alignment.shift_px[:, 0], SORTED, atol=0.01)
        assert record.thickness_px == pytest.approx(80)
        (folder / "ts.mrc").unlink(missing_ok=True)


def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    series = a_stack(tmp_path / "ts.mrc", SORTED, (4 * SIZE[0], 4 * SIZE[1]), PIXEL / 4)
    folder = etomo(tmp_path / "etomo", SIZE, (4 * SIZE[0], 4 * SIZE[1]), "ts.mrc")
    with pytest.raises(InputError, match="48 x 40.*FULLIMAGE.*192 x 160"):
        read_alignment(folder, series)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    series = a_stack(tmp_path / "ts.mrc", SORTED, (96, 96), PIXEL / 2)
    with pytest.raises(InputError, match="(48 x 40|40 x 48).*96 x 96"):  # the axis is nearer to x
        read_alignment(etomo(tmp_path / "etomo", SIZE, SIZE, None), series)


def test_a_com_file_with_the_sides_of_the_aligned_images(tmp_path: Path) -> None:
    """AreTomo's FULLIMAGE is the aligned stack's, with its sides turned where the axis is nearer to x."""
    series = a_stack(tmp_path / "ts.mrc", SORTED)
    folder = etomo(tmp_path / "ts_Imod", SIZE, (SIZE[1], SIZE[0]), None)
    notes: list[str] = []
    np.testing.assert_allclose(read_alignment(folder, series, notes).shift_px[:, 0], SORTED, atol=0.01)
    assert not any("scaled" in note for note in notes)
    assert read_alignment(folder).image_size == SIZE


@pytest.mark.parametrize(("full", "binned", "factor"), [((5760, 4092), (1440, 1023), 4), ((652, 630), (163, 157), 4)])
def test_binned_images_that_lost_a_pixel(
    tmp_path: Path, full: tuple[int, int], binned: tuple[int, int], factor: int
) -> None:
    folder = etomo(tmp_path / "etomo", full, full, None)
    alignment = read_alignment(folder, binned)
    np.testing.assert_allclose(alignment.shift_px[:, 0], SORTED / factor, atol=1e-3)


def test_any_ratio_of_sizes(tmp_path: Path) -> None:
    folder = etomo(tmp_path / "etomo", (5760, 4092), (5760, 4092), None)
    alignment = read_alignment(folder, (1684, 1196))
    np.testing.assert_allclose(alignment.shift_px[:, 0], SORTED / 3.42, rtol=2e-3)


def test_one_transform_for_all_is_said(tmp_path: Path) -> None:
    series = a_stack(tmp_path / "ts.mrc", SORTED)
    folder = etomo(tmp_path / "etomo", SIZE, SIZE, None)
    imod.write_xf(folder / "ts.xf", np.eye(2)[None], np.array([[3.0, 4.0]]), overwrite=True)
    notes: list[str] = []
    assert (read_alignment(folder, series, notes).shift_px == [3, 4]).all()
    assert any("one transform" in note and "13 images" in note for note in notes)


def test_a_list_of_views_that_are_not_there(tmp_path: Path) -> None:
    series = a_stack(tmp_path / "ts.mrc", SORTED)
    folder = etomo(tmp_path / "etomo", SIZE, SIZE, None)
    with open(folder / "tilt.com", "a") as file:
        file.write("EXCLUDELIST 2,40\n")
    with pytest.raises(InputError, match=r"tilt\.com: line 6: EXCLUDELIST: names view 40 of 13"):
        read_alignment(folder, series)


# --- recorded angles


def test_recorded_angles_are_the_stacks(tmp_path: Path) -> None:
    """An .aln without AlphaOffset has refined angles alone; its dark image's is recorded."""
    series = a_stack(tmp_path / "ts.mrc", SORTED)
    head = f"# AreTomo Alignment\n# RawSize = 48 40 {N}\n# DarkFrame = 0 0 -48.00\n"
    rows = "".join(f"{k} 85.3 1 {k} 0 1 1 1 0 {t + 8.35:.2f}\n" for k, t in enumerate(SORTED) if k)
    (tmp_path / "ts.aln").write_text(head + rows)
    record = read_record(tmp_path / "ts.aln", series)
    assert record.nominal_tilt_deg is not None
    np.testing.assert_allclose(record.nominal_tilt_deg, SORTED)
    np.testing.assert_allclose(record.alignment.tilt_deg, SORTED + 8.35, atol=1e-6)
    notes: list[str] = []
    assert read_record(tmp_path / "ts.aln", notes=notes).nominal_tilt_deg is None
    assert any("AlphaOffset" in note for note in notes)


# --- files that are written over keep what is of the same images only


def test_what_a_warp_file_held_of_images_in_another_order_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "ts.xml"
    write_record(path, aligned(SORTED), "warp")
    path.write_text(
        path.read_text().replace("</TiltSeries>", "<GridCTF><Node Z='3' Value='2.5'/></GridCTF></TiltSeries>")
    )
    _, notes = write_record(path, aligned(SORTED + 5), "warp", overwrite=True)
    assert "GridCTF" in path.read_text() and any("keeps" in note for note in notes)
    _, notes = write_record(path, aligned(SORTED[DOSE_SYMMETRIC]), "warp", overwrite=True)
    assert "GridCTF" not in path.read_text() and any("another order" in note for note in notes)


def test_columns_of_relion_follow_the_images(tmp_path: Path) -> None:
    record = replace(aligned(SORTED), nominal_tilt_deg=SORTED)
    write_record(tmp_path / "tomograms.star", record, "relion5")
    star = tmp_path / "tilt_series" / "ts.star"
    lines = star.read_text().splitlines()
    last = max(k for k, line in enumerate(lines) if line.startswith("_"))
    rows = [f"{line} m{k}" for k, line in enumerate(line for line in lines[last + 1 :] if "@" in line)]
    star.write_text("\n".join([*lines[: last + 1], "_rlnMicrographMovieName #99", *rows]) + "\n")
    there = replace(aligned(SORTED[DOSE_SYMMETRIC], SORTED[DOSE_SYMMETRIC]), nominal_tilt_deg=SORTED[DOSE_SYMMETRIC])
    write_record(tmp_path / "tomograms.star", there, "relion5", overwrite=True)
    movies = read_star(star)["ts"]["rlnMicrographMovieName"]
    assert movies == [f"m{k}" for k in DOSE_SYMMETRIC]


# --- commands


def test_a_thickness_in_px_of_other_images(tmp_path: Path) -> None:
    """60 px of 8 Å are 48 nm in whatever stack the alignment is used."""
    source = written(tmp_path, replace(aligned(SORTED), thickness_px=60.0), "json")
    assert thickness_beside(source, "ts", 4 * PIXEL) == (pytest.approx(48.0), str(source))


@pytest.mark.parametrize("command", ["recon", "export"])
def test_commands_say_what_was_put_in_order(inr: Inr, tmp_path: Path, command: str) -> None:
    a_stack(tmp_path / "raw" / "ts.mrc", SORTED[DOSE_SYMMETRIC])
    source = written(tmp_path, aligned(SORTED + 2), "imod")
    more = ("--method", "fbp", "--thickness", "20") if command == "recon" else ()
    result = inr(command, tmp_path / "raw" / "ts.mrc", source, "-o", tmp_path / "o.mrc", *more)
    assert result.exit_code == 0 and "put in the order of" in " ".join(result.output.split()), result.output


def test_compare_puts_entries_in_one_order(inr: Inr, tmp_path: Path) -> None:
    record = aligned(SORTED)
    one = written(tmp_path / "one", record, "json")
    a = record.alignment
    other = replace(
        record,
        alignment=replace(
            a,
            tilt_deg=a.tilt_deg[DOSE_SYMMETRIC],
            linear=a.linear[DOSE_SYMMETRIC],
            shift_px=a.shift_px[DOSE_SYMMETRIC],
        ),
    )
    two = written(tmp_path / "two", other, "json")
    result = inr("compare", one, two, "-o", tmp_path / "c")
    assert result.exit_code == 0 and "order of" in result.output, result.output
    assert float(re.findall(r'"rms_px": ([\d.e-]+)', (tmp_path / "c.json").read_text())[0]) < 1e-3


def test_a_stack_without_angles_has_to_have_as_many_images(inr: Inr, tmp_path: Path) -> None:
    a_stack(tmp_path / "ts.mrc", SORTED[:-2])
    (tmp_path / "ts.rawtlt").unlink()
    source = written(tmp_path, aligned(SORTED), "warp")
    assert_refused(inr("convert", source, tmp_path / "o.json", "--stack", tmp_path / "ts.mrc"), "13 images")


@pytest.mark.parametrize("form", ["aretomo", "relion5", "warp", "json", "imod"])
@pytest.mark.parametrize("binned", [2, 4])
def test_every_format_is_scaled_to_binned_images(tmp_path: Path, form: str, binned: int) -> None:
    record = aligned(SORTED + 3, size=(96, 80))
    warped = written(tmp_path, replace(record, thickness_px=60.0), form)
    series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED, (96 // binned, 80 // binned), PIXEL * binned)
    notes: list[str] = []
    back = read_record(warped, series, notes)
    # lengths in Warp's files are from the first pixel's corner, which binning by cutting a transform leaves in place
    within = 0.5 if form == "warp" else 0.01
    np.testing.assert_allclose(back.alignment.shift_px[:, 0], SORTED / binned, atol=within)
    assert back.alignment.image_size == series.size
    if back.thickness_px is not None:
        assert back.thickness_px == pytest.approx(60 / binned)
    # the same where the header was never told its pixel size
    if form not in ("relion5", "warp"):
        series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED, (96 // binned, 80 // binned), 1.0)
        np.testing.assert_allclose(read_alignment(warped, series).shift_px[:, 0], SORTED / binned, atol=0.01)


@pytest.mark.parametrize("form", ["relion5", "warp", "json"])
def test_sizes_and_pixel_sizes_that_say_different_scales(tmp_path: Path, form: str) -> None:
    """Half as many pixels, of the same size: a part of the images, or binned by somebody who did not say so."""
    source = written(tmp_path, aligned(SORTED, size=(96, 80)), form)
    series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED, SIZE, PIXEL)
    if form == "relion5":  # its size is not in the file
        write_stack(tmp_path / "ts.mrc", np.ones((N, 80, 96), np.float32), PIXEL)
    with pytest.raises(InputError, match=r"96 x 80.* 48 x 40"):
        read_alignment(source, series)


def test_a_calibration_of_a_few_percent_scales_nothing(tmp_path: Path) -> None:
    for form in ("relion5", "warp", "json"):
        source = written(tmp_path, aligned(SORTED), form)
        series = a_stack(tmp_path / "raw" / "ts.mrc", SORTED, SIZE, 1.03 * PIXEL)
        np.testing.assert_allclose(
            read_alignment(source, series).shift_px[:, 0], SORTED, atol=0.01 if form != "relion5" else 2
        )


@pytest.mark.parametrize("form", ["aretomo", "warp", "json"])
def test_a_stack_without_the_images_that_are_left_out(tmp_path: Path, form: str) -> None:
    """AreTomo's stack without dark images, Warp's of used tilts: each entry in use finds its image, and it is said."""
    out = (3, 7)
    record = aligned(SORTED + 2.5)
    record = replace(
        record, alignment=replace(record.alignment, excluded=dict.fromkeys(out, "dark")), nominal_tilt_deg=SORTED
    )
    path = written(tmp_path, record, form)
    kept = np.delete(SORTED, out)
    notes: list[str] = []
    read = read_alignment(path, a_stack(tmp_path / "cut" / "ts.mrc", kept), notes)
    assert read.tilt_deg == pytest.approx(kept + 2.5, abs=1e-3) and not read.excluded
    assert read.shift_px[:, 0] == pytest.approx(kept, abs=1e-3)
    assert any("3, 7" in note and "ts.mrc" in note for note in notes)
    with pytest.raises(InputError, match="ts.mrc"):
        read_alignment(path, a_stack(tmp_path / "less" / "ts.mrc", kept[:-1]), notes)


@pytest.mark.parametrize("key", ["nominal_tilt_deg", "exposure_e_A2", "images"])
def test_a_list_of_a_result_with_too_few_entries(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, aligned(SORTED), "json")
    values = json.loads(path.read_text())
    values[key] = ["1@ts.mrc"] * (N - 1) if key == "images" else [1.0] * (N - 1)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"ts.json: {key} has {N - 1} entries for {N} images"):
        read_record(path)
