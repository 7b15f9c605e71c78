"""``inr-convert``: between every two formats what both hold comes through, and what one does not hold is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io import imod
from inrtomo.io.alignment_files import read_alignment, read_record
from inrtomo.io.convert import FORMATS, format_of, write_record
from inrtomo.io.etomo import left_out_views
from inrtomo.io.mrc import open_stack, write_stack
from inrtomo.io.series_record import SeriesRecord, series_name
from inrtomo.io.star import read_star
from inrtomo.tiltseries import TiltSeries, open_tilt_series
from tests.running import Inr, assert_refused

Array = NDArray[np.float64]

SIZE, N, PIXEL = (120, 100), 7, 8.0
NOMINAL: Array = np.linspace(-60, 60, N)
OUT = {"imod": "ts.xf", "aretomo": "ts.aln", "relion5": "tomograms.star", "warp": "ts.xml", "json": "ts.json"}
OUT |= {"outimod1": "ts_Imod", "outimod2": "ts_Imod"}
WITH_LOCAL_MOTION = [form for form in FORMATS if not form.startswith("outimod")]


def truth(axis_deg: float = -84.7, offset_deg: float = 2.5) -> SeriesRecord:
    """Shifts, a smooth local motion, an x-tilt, two excluded images and a tilt offset."""
    rng = np.random.default_rng(5)
    x, y = (np.linspace(-90, 90, 9) for _ in SIZE)
    grid_x, grid_y = np.meshgrid(x / 90, y / 90)
    vectors = np.stack([[grid_x * grid_y, grid_y**2 - grid_x], [grid_x**2, grid_y - grid_x * grid_y]]).transpose(
        0, 2, 3, 1
    )
    motion = rng.normal(size=(N, 1, 1, 2)) * vectors[0] + rng.normal(size=(N, 1, 1, 2)) * vectors[1]
    plain = Alignment.identity(NOMINAL + offset_deg, SIZE, axis_deg, PIXEL)
    alignment = replace(
        plain,
        shift_px=rng.normal(size=(N, 2)) * 6,
        warp=LocalWarp(x, y, motion, "bicubic"),
        x_tilt_deg=np.full(N, 1.25),
        excluded={0: "dark", 4: "blank"},
    )
    return SeriesRecord(alignment, "ts", NOMINAL, np.arange(N, dtype=np.float64), None, 44.0)


@pytest.fixture
def series(tmp_path: Path) -> TiltSeries:
    write_stack(tmp_path / "ts.mrc", np.random.default_rng(0).normal(size=(N, SIZE[1], SIZE[0])), PIXEL)
    (tmp_path / "ts.rawtlt").write_text("".join(f"{a}\n" for a in NOMINAL))
    return open_tilt_series(tmp_path / "ts.mrc")


def apart(a: Alignment, b: Alignment) -> float:
    """Largest distance (px) between where two alignments see the same aligned points, within the images in use."""
    p = np.stack(np.meshgrid(*(np.linspace(-s / 2, s / 2, 17) for s in SIZE)), axis=-1)
    worst = 0.0
    for m in a.included:
        u = a.raw_to_aligned(m, p)
        worst = max(worst, float(np.abs(b.aligned_to_raw(m, u) - p).max()))
    return worst


@pytest.mark.parametrize("source", WITH_LOCAL_MOTION)
def test_every_pair_keeps_what_both_hold(tmp_path: Path, series: TiltSeries, source: str) -> None:
    record = truth()
    (tmp_path / source).mkdir()
    write_record(tmp_path / source / OUT[source], record, source, str(series.path))
    first = read_record(tmp_path / source / OUT[source], series)
    # as the command does with --stack
    recorded = series.tilt_deg if first.nominal_tilt_deg is None else first.nominal_tilt_deg
    first = replace(first, name="ts", images=None, nominal_tilt_deg=recorded)
    for target in WITH_LOCAL_MOTION:
        folder = tmp_path / f"{source}-{target}"
        folder.mkdir()
        paths, notes = write_record(folder / OUT[target], first, target, str(series.path))
        assert all(path.is_file() for path in paths)
        second = read_record(folder / OUT[target], series)
        a, b = record.alignment, second.alignment
        assert b.n_tilts == N and sorted(b.excluded) == [0, 4], (source, target)
        assert apart(a, b) < 0.08, (source, target)
        used = a.included
        np.testing.assert_allclose(b.tilt_deg[used], a.tilt_deg[used], atol=1e-4)
        if "aretomo" in (source, target):
            assert not b.x_tilt_deg.any()
            assert source == "aretomo" or any("x-axis tilt" in note for note in notes)
        else:
            np.testing.assert_allclose(b.x_tilt_deg[used], 1.25, atol=1e-4)
        if target != "warp":
            assert second.nominal_tilt_deg is not None
            np.testing.assert_allclose(second.nominal_tilt_deg[used], NOMINAL[used], atol=1e-3)
        else:
            assert any("recorded angles are lost" in note for note in notes)


@pytest.mark.parametrize("target", FORMATS)
def test_what_is_lost_is_said(tmp_path: Path, series: TiltSeries, target: str) -> None:
    """Whatever is not read back from a file alone, a sentence of the writer names."""
    record = truth()
    a = record.alignment
    a = replace(a, tilt_deg=a.tilt_deg + 0.1 * np.arange(N), x_tilt_deg=np.linspace(0.5, 1.5, N))
    record = replace(record, alignment=a, exposure_e_A2=np.array([6.0, 4.0, 2.0, 0.0, 1.0, 3.0, 5.0]))
    _, notes = write_record(tmp_path / target / OUT[target], record, target, str(series.path))
    back = read_record(tmp_path / target / OUT[target])
    b = back.alignment
    rows = np.arange(N) if b.n_tilts == N else a.included
    used = np.array([k for k, m in enumerate(rows) if m not in a.excluded])

    def held(ours: Array | None, theirs: Array | None) -> bool:
        assert ours is not None
        return theirs is not None and np.allclose(theirs[used], ours[a.included], atol=2e-3)

    out = sorted(a.excluded)
    as_rigid = replace(b, warp=None)
    lost = {
        "pixel size": b.pixel_size_A != a.pixel_size_A,
        "doses": not held(record.exposure_e_A2, back.exposure_e_A2),
        "recorded angles": not held(record.nominal_tilt_deg, back.nominal_tilt_deg),
        "x-axis tilt": not held(a.x_tilt_deg, b.x_tilt_deg),
        "reasons": b.excluded != a.excluded,
        "transforms|have the identity": b.n_tilts != N or not np.allclose(b.shift_px[out], a.shift_px[out], atol=1e-2),
        "thickness": back.thickness_px != record.thickness_px,
        "local motion": b.warp is None,
    }
    assert held(a.tilt_deg, b.tilt_deg) and held(a.shift_px, as_rigid.shift_px)
    said = "\n".join(notes)
    for what, gone in lost.items():
        assert not gone or re.search(what, said), (what, said)
    assert any(lost.values()) == (target != "json")


@pytest.mark.parametrize("target", ["imod", "outimod1", "relion5", "warp"])
def test_what_is_made_up_is_said(tmp_path: Path, target: str) -> None:
    unknown = replace(truth(), thickness_px=None)
    _, notes = write_record(tmp_path / OUT[target], unknown, target)
    assert any("no thickness is known" in note for note in notes)
    if target in ("relion5", "warp"):
        assert any("names are not known" in note for note in notes)
    _, notes = write_record(tmp_path / OUT[target], truth(), target, None, overwrite=True)
    assert not any("no thickness is known" in note for note in notes)


def test_a_guess_does_not_replace_what_relion_knows(tmp_path: Path) -> None:
    write_record(tmp_path / OUT["relion5"], replace(truth(), thickness_px=44.0), "relion5")
    write_record(tmp_path / OUT["relion5"], replace(truth(), thickness_px=None), "relion5", None, overwrite=True)
    assert read_star(tmp_path / "tomograms.star")["global"]["rlnTomoSizeZ"] == ["44"]
    write_record(tmp_path / OUT["relion5"], replace(truth(), thickness_px=50.0), "relion5", None, overwrite=True)
    assert read_star(tmp_path / "tomograms.star")["global"]["rlnTomoSizeZ"] == ["50"]


def test_doses_follow_the_order_of_the_stack(tmp_path: Path, series: TiltSeries) -> None:
    """Every row has its dose: they are put in order; rows are missing: that doses go is said."""
    record = truth()
    turned = np.arange(N)[::-1]
    whole = replace(record.alignment, excluded={}, warp=None)
    dose = np.array([6.0, 4.0, 2.0, 0.0, 1.0, 3.0, 5.0])
    reverse = replace(
        whole, tilt_deg=whole.tilt_deg[turned], linear=whole.linear[turned], shift_px=whole.shift_px[turned]
    )
    names = tuple(f"{k + 1}@ts.mrc" for k in turned)
    write_record(
        tmp_path / OUT["relion5"], SeriesRecord(reverse, "ts", NOMINAL[turned], dose[turned], names), "relion5"
    )
    (tmp_path / "tomograms.star").rename(tmp_path / "other.star")
    back = read_record(tmp_path / "other.star", series)
    assert back.exposure_e_A2 is not None and back.exposure_e_A2.tolist() == dose.tolist()
    assert apart(whole, back.alignment) < 1e-3
    write_record(tmp_path / "b" / OUT["relion5"], replace(record, exposure_e_A2=dose), "relion5", str(series.path))
    notes: list[str] = []
    assert read_record(tmp_path / "b", series, notes).exposure_e_A2 is None
    assert any("doses are lost" in note for note in notes)


@pytest.mark.parametrize("target", FORMATS)
def test_a_rigid_alignment_is_exact(tmp_path: Path, series: TiltSeries, target: str) -> None:
    record = truth()
    record = replace(record, alignment=record.alignment.without_warp())
    _, notes = write_record(tmp_path / "out" / OUT[target], record, target, str(series.path))
    back = read_alignment(tmp_path / "out" / OUT[target], series)
    assert back.warp is None and apart(record.alignment, back) < 1e-3
    assert not any("local motion" in note for note in notes)


@pytest.mark.parametrize("target", ["aretomo", "relion5", "warp"])
def test_magnification_goes_to_the_local_shifts(tmp_path: Path, series: TiltSeries, target: str) -> None:
    record = truth()
    a = record.alignment.without_warp()
    a = replace(a, linear=a.linear @ np.array([[1.01, 0.004], [-0.002, 0.99]]))
    _, notes = write_record(tmp_path / "out" / OUT[target], replace(record, alignment=a), target)
    assert apart(a, read_alignment(tmp_path / "out" / OUT[target], series)) < 0.06
    assert any("local motion is held by" in note for note in notes)


def test_recorded_angles_that_are_not_one_offset_away_are_said(tmp_path: Path, series: TiltSeries) -> None:
    record = truth()
    uneven = replace(record.alignment, tilt_deg=record.alignment.tilt_deg + 0.1 * np.arange(N), warp=None)
    _, notes = write_record(tmp_path / "ts.aln", replace(record, alignment=uneven), "aretomo")
    assert any("recorded angles are held as one offset" in note for note in notes)
    assert read_alignment(tmp_path / "ts.aln", series).tilt_deg[1] == pytest.approx(uneven.tilt_deg[1], abs=1e-4)


def test_an_imod_folder_has_both_angles_and_both_kinds_of_local_motion(tmp_path: Path, series: TiltSeries) -> None:
    paths, notes = write_record(tmp_path / "out", truth(), "imod", "ts.mrc")
    names = {path.name for path in paths}
    assert names == {"ts.xf", "ts.tlt", "ts.xtilt", "ts.rawtlt", "ts_warp.xf", "tslocal.xf", "newst.com", "tilt.com"}
    np.testing.assert_allclose(imod.read_angles(tmp_path / "out" / "ts.rawtlt"), NOMINAL, atol=1e-4)
    tilt = imod.read_command_file(tmp_path / "out" / "tilt.com", "tilt")
    assert sorted(left_out_views(tilt, 9)) == [0, 4] and tilt.numbers("THICKNESS") == [44]
    assert tilt.value("LOCALFILE") is None  # the warp file has corrected the aligned stack already
    assert any("tslocal.xf" in note and "RMS" in note for note in notes)


def test_aretomo_folders(tmp_path: Path, series: TiltSeries) -> None:
    """Layout 1: all images in their order; 2: without the dark ones, sorted; 3: an aligned stack."""
    record = truth()
    record = replace(record, alignment=replace(record.alignment.without_warp(), x_tilt_deg=np.zeros(N)))
    one = tmp_path / "ts_Imod"
    write_record(one, record, "imod", "ts.mrc")
    assert (one / "ts_st.xf").is_file() and apart(record.alignment, read_alignment(one, series)) < 2e-3
    used = record.alignment.included
    two = tmp_path / "two" / "ts_Imod"
    two.mkdir(parents=True)
    imod.write_xf(two / "ts_st.xf", record.alignment.linear[used], record.alignment.shift_px[used])
    imod.write_angles(two / "ts_st.tlt", record.alignment.tilt_deg[used])
    (two / "ts_st_order_list.csv").write_text(
        "ImageNumber, TiltAngle\n" + "".join(f"{k + 1},{a:.2f}\n" for k, a in enumerate(NOMINAL[used][::-1]))
    )
    notes: list[str] = []
    back = read_alignment(two, series, notes)
    assert back.n_tilts == N and sorted(back.excluded) == [0, 4] and apart(record.alignment, back) < 2e-3
    assert any("left out" in note for note in notes)
    (two / "ts_st_order_list.csv").unlink()
    with pytest.raises(InputError, match="5 images"):
        read_alignment(two, series)  # refined angles alone may be whole steps off
    three = tmp_path / "three" / "ts_Imod"
    three.mkdir(parents=True)
    imod.write_xf(three / "ts_st.xf", np.tile(np.eye(2), (N, 1, 1)), np.zeros((N, 2)))
    imod.write_angles(three / "ts_st.tlt", NOMINAL)
    (three / "tilt.com").write_text("$tilt\nTILTFILE ts_st.tlt\nLOCALFILE ts_st.xf\nFULLIMAGE 120 100\n")
    notes = []
    read_alignment(three, notes=notes)
    assert any("aligned already" in note for note in notes) and any("LOCALFILE" in note for note in notes)
    with pytest.raises(InputError, match=r"-OutImod 3.*ts\.aln"):
        read_alignment(three, series)  # of the raw images
    write_stack(three / "ts_st.mrc", np.random.default_rng(0).normal(size=(N, SIZE[1], SIZE[0])), PIXEL)
    (three / "ts_st.rawtlt").write_text("".join(f"{a}\n" for a in NOMINAL))
    assert read_alignment(three, open_tilt_series(three / "ts_st.mrc")).n_tilts == N


def test_aretomo_folders_written(tmp_path: Path, series: TiltSeries) -> None:
    """What RELION and Warp count: lines, the identity, the images of the stack, the order of recording."""
    record = replace(truth(), exposure_e_A2=np.array([6.0, 4.0, 2.0, 0.0, 1.0, 3.0, 5.0]))
    a = record.alignment
    _, notes = write_record(tmp_path / "one", record, "outimod1", str(series.path))
    one = tmp_path / "one" / "ts_Imod"
    linear, shift = imod.read_xf(one / "ts_st.xf", N)
    np.testing.assert_allclose(linear[[0, 4]], np.tile(np.eye(2), (2, 1, 1)))
    assert not shift[[0, 4]].any() and shift[a.included].any(axis=1).all()
    assert sorted(left_out_views(imod.read_command_file(one / "tilt.com", "tilt"), 9)) == [0, 4]
    newst = imod.read_command_file(one / "newst.com", "newstack")
    assert newst.value("TransformFile") == "ts_st.xf" and (one / (newst.value("InputFile") or "")).resolve().is_file()
    lines = (one / "ts_st_order_list.csv").read_text().splitlines()
    assert lines[1] == "1,0.00" and lines[-1] == "7,-60.00"
    assert any("no local motion" in note for note in notes)

    backwards = replace(a, tilt_deg=-a.tilt_deg)
    _, notes = write_record(tmp_path / "two", replace(record, alignment=backwards), "outimod2", str(series.path))
    two = tmp_path / "two" / "ts_Imod"
    angles = imod.read_angles(two / "ts_st.tlt", 5)
    assert (np.diff(angles) > 0).all() and any("0, 4" in note for note in notes)
    images, raw = open_stack(two / "ts_st.mrc"), open_stack(series.path)
    assert images.shape[0] == 5
    np.testing.assert_array_equal(images.image(0), raw.image(6))
    assert imod.read_angles(two / "ts_st.xtilt", 5).std() == 0 and len(imod.read_xf(two / "ts_st.xf")[0]) == 5
    with pytest.raises(InputError, match="--stack"):
        write_record(tmp_path / "three", record, "outimod2")


def test_an_mdoc_is_what_was_recorded(inr: Inr, tmp_path: Path, series: TiltSeries) -> None:
    sections = [f"[ZValue = {k}]\nTiltAngle = {t}\nExposureDose = 2\nDateTime = 01-Jan-24  10:0{(k * 3) % 7}:00\n"
                for k, t in enumerate(NOMINAL)]  # fmt: skip
    head = "PixelSpacing = 8\nImageSize = 120 100\n[T = Tilt axis angle = -84.7, binning = 1]\n"
    path = tmp_path / "x.mrc.mdoc"
    path.write_text(head + "PixelSpacing = 8\n".join(["", *sections]))
    notes: list[str] = []
    record = read_record(path, notes=notes)
    assert record.name == "x" and record.alignment.image_size == SIZE and any("all shifts are 0" in n for n in notes)
    np.testing.assert_allclose(record.alignment.rotation_deg, -84.7)
    assert record.exposure_e_A2 is not None and record.exposure_e_A2.tolist() == [2 * ((k * 3) % 7) for k in range(N)]
    result = inr("convert", path, tmp_path / "relion", "--to", "relion5", "--stack", series.path)
    assert result.exit_code == 0, result.output
    table = read_star(tmp_path / "relion" / "tilt_series" / "ts.star")["ts"]
    assert [float(v) for v in table["rlnMicrographPreExposure"]] == record.exposure_e_A2.tolist()
    assert [float(v) for v in table["rlnTomoNominalStageTiltAngle"]] == pytest.approx(NOMINAL)


def test_the_sign_of_the_x_tilt_file(tmp_path: Path) -> None:
    """``tilt`` takes XAXISTILT away from XTILTFILE: the same rotation has opposite signs in the two."""
    record = truth()
    record = replace(record, alignment=record.alignment.without_warp())
    write_record(tmp_path, record, "imod")
    np.testing.assert_allclose(imod.read_angles(tmp_path / "ts.xtilt"), -1.25)
    with (tmp_path / "tilt.com").open("a") as file:
        file.write("XAXISTILT 0.5\n")
    assert read_alignment(tmp_path / "ts.xf").x_tilt_deg == pytest.approx(np.full(N, 1.75))


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.xf", "imod"), ("a.aln", "aretomo"), ("tomograms.star", "relion5"), ("a.xml", "warp"), ("a.json", "json"),
     ("folder", "imod"), ("a.mrc", None)],
)  # fmt: skip
def test_format_by_name(name: str, form: str | None) -> None:
    assert format_of(Path(name)) == form


def test_names_of_series() -> None:
    assert [series_name(Path(n)) for n in ("ts_align.json", "ts_st.xf", "ts.aln", "a_warp.xf")] == [
        "ts",
        "ts",
        "ts",
        "a",
    ]


# --- the command


def test_command(inr: Inr, tmp_path: Path, series: TiltSeries) -> None:
    write_record(tmp_path / "in" / "ts_align.json", truth(), "json")
    result = inr("convert", tmp_path / "in", tmp_path / "ts.aln", "--stack", series.path)
    assert result.exit_code == 0, result.output
    assert "patches to" in result.stdout and "px RMS" in result.stdout and "x-axis tilt" in result.stdout
    before = (tmp_path / "ts.aln").read_text()
    assert_refused(inr("convert", tmp_path / "in", tmp_path / "ts.aln"), "ts.aln", "--overwrite")
    assert (tmp_path / "ts.aln").read_text() == before
    assert inr("convert", tmp_path / "in", tmp_path / "ts.aln", "--overwrite").exit_code == 0
    result = inr("convert", tmp_path / "ts.aln", tmp_path / "relion", "--to", "relion5", "--stack", series.path)
    assert result.exit_code == 0, result.output
    table = read_star(tmp_path / "relion" / "tilt_series" / "ts.star")["ts"]
    assert len(table["rlnTomoYTilt"]) == 5 and table["rlnMicrographName"][0] == f"000002@{series.path}:mrcs"
    assert [float(v) for v in table["rlnTomoNominalStageTiltAngle"]] == pytest.approx(NOMINAL[[1, 2, 3, 5, 6]])
    compared = inr("compare", tmp_path / "ts.aln", tmp_path / "in" / "ts_align.json")
    assert compared.exit_code == 0, compared.output


def test_ctf_and_listed_images_for_relion(inr: Inr, tmp_path: Path, series: TiltSeries) -> None:
    """Images that a list names are those of the files, CTF is counted along them; both leave out excluded images."""
    source = tmp_path / "ts_align.json"
    write_record(source, replace(truth(), exposure_e_A2=None), "json")
    for k in range(N):
        write_stack(tmp_path / f"{k}.mrc", series.image(k)[None], PIXEL)
    (tmp_path / "all.txt").write_text("".join(f"{k}.mrc\n" for k in range(N)))
    (tmp_path / "all.rawtlt").write_text("".join(f"{a}\n" for a in NOMINAL))
    ctf = tmp_path / "ctf.txt"
    ctf.write_text("".join(f"{k + 1} {20000 + k} {19000 + k} 45 0 0.1 8\n" for k in range(N)))
    words = ("--to", "relion5", "--stack", tmp_path / "all.txt")
    result = inr("convert", source, tmp_path / "relion", *words, "--ctf", ctf)
    assert result.exit_code == 0, result.output
    assert "no rlnMicrographPreExposure, without which" in result.output and ".mdoc" in result.output
    table = read_star(tmp_path / "relion" / "tilt_series" / "all.star")["all"]
    rows = [k for k in range(N) if k not in truth().alignment.excluded]
    assert table["rlnMicrographName"] == [str(tmp_path / f"{k}.mrc") for k in rows]
    assert [float(v) for v in table["rlnDefocusU"]] == [20000 + k for k in rows]
    assert_refused(inr("convert", source, tmp_path / "a.aln", "--ctf", ctf), "--ctf", "RELION")
    assert_refused(inr("convert", source, tmp_path / "b", "--to", "relion5", "--ctf", ctf), "--ctf", "--stack")


def test_command_refuses(inr: Inr, tmp_path: Path, series: TiltSeries) -> None:
    write_record(
        tmp_path / "ts_align.json", replace(truth(), alignment=replace(truth().alignment, pixel_size_A=None)), "json"
    )
    source = tmp_path / "ts_align.json"
    assert_refused(inr("convert", tmp_path / "none.xf", tmp_path / "a.aln"), "none.xf")
    assert_refused(inr("convert", source, tmp_path / "a.tif"), "a.tif", "--to")
    assert_refused(inr("convert", series.path, tmp_path / "a.aln"), "ts.mrc", "a stack of images")
    for name in ("a.xml", "tomograms.star"):
        assert_refused(inr("convert", source, tmp_path / name), "pixel size", "--stack")
    assert_refused(inr("convert", source, tmp_path / "other.star", "--stack", series.path), "tomograms.star")
    every = {m: "bad" for m in range(N)}
    write_record(tmp_path / "all.json", replace(truth(), alignment=replace(truth().alignment, excluded=every)), "json")
    assert_refused(inr("convert", tmp_path / "all.json", tmp_path / "b.aln"), "excluded")
    assert not list(tmp_path.glob("*.aln")) and not list(tmp_path.glob("*.xml"))


def test_a_stack_without_angles_still_gives_size_and_pixel(inr: Inr, tmp_path: Path, series: TiltSeries) -> None:
    write_record(tmp_path / "a.aln", truth(), "aretomo")
    (tmp_path / "ts.rawtlt").unlink()
    result = inr("convert", tmp_path / "a.aln", tmp_path / "a.xml", "--stack", series.path)
    assert result.exit_code == 0 and "on trust" in result.stdout
    assert read_alignment(tmp_path / "a.xml").pixel_size_A == PIXEL


def test_an_align_json_keeps_the_recorded_angles(tmp_path: Path) -> None:
    write_record(tmp_path / "ts_align.json", truth(), "json")
    values = json.loads((tmp_path / "ts_align.json").read_text())
    values["input"] = {"nominal_tilt_deg": values.pop("nominal_tilt_deg")}
    (tmp_path / "ts_align.json").write_text(json.dumps(values))
    record = read_record(tmp_path / "ts_align.json")
    assert record.nominal_tilt_deg is not None and record.nominal_tilt_deg.tolist() == NOMINAL.tolist()
    assert record.thickness_px == 44
