"""The frame of aligned images and tomograms: sides turned where the tilt axis lies nearer to x, nothing cut off.

Beads at known places of the specimen are drawn into raw images by the rule of ``.xf`` files alone and looked for where
IMOD's conventions put them: in the middle of the output plus their place, whatever the sides.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import sides_turned, turned_size
from inrtomo.io.alignment_files import read_alignment, write_alignment
from inrtomo.io.aretomo_folder import write_aretomo_folder
from inrtomo.io.imod_local import write_local
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.star import read_star
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.specimen import make_specimen, view_of
from tests.running import Inr

F32 = NDArray[np.float32]

TILTS = np.arange(-60.0, 61.0, 10.0)
AXES = (85.0, -95.0, 90.0, 10.0)
SIZES = ((96, 48), (97, 50), (95, 49))
SHIFT = (2.0, -3.0)
PLACES = np.array([[-15.0, -36.0], [12.0, 34.0], [9.0, -20.0], [-10.0, 16.0]])
"""(across, along) the tilt axis of images of 96 x 48 that lie along it, px from the middle."""


def rows_of_xf(axis_deg: float) -> str:
    """The transform of every image, as an ``.xf`` has it: a turn by the axis, then a shift."""
    a = np.deg2rad(axis_deg)
    numbers = (np.cos(a), np.sin(a), -np.sin(a), np.cos(a))
    return ("".join(f"{v:12.7f}" for v in numbers) + "".join(f"{v:12.3f}" for v in SHIFT) + "\n") * len(TILTS)


def beads(size: tuple[int, int], axis_deg: float, places: NDArray[np.float64]) -> F32:
    """Raw images ``(n, ny, nx)`` of beads at z = 0 that those transforms align."""
    nx, ny = size
    a = np.deg2rad(axis_deg)
    y, x = np.mgrid[:ny, :nx]
    out = np.zeros((len(TILTS), ny, nx), dtype=np.float32)
    for image, tilt in zip(out, np.deg2rad(TILTS), strict=True):
        for across, along in places:
            u, v = across * np.cos(tilt) - SHIFT[0], along - SHIFT[1]
            px, py = u * np.cos(a) - v * np.sin(a), u * np.sin(a) + v * np.cos(a)
            image += np.exp(-((x - (nx - 1) / 2 - px) ** 2 + (y - (ny - 1) / 2 - py) ** 2) / 8)
    return out


def series(folder: Path, size: tuple[int, int], axis_deg: float) -> NDArray[np.float64]:
    """A stack and its alignment (``al/ts.xf``) in a folder; the beads' places (x, y)."""
    places = PLACES if sides_turned(axis_deg) else PLACES[:, ::-1]
    noise = 0.01 * np.random.default_rng(0).normal(size=(len(TILTS), size[1], size[0]))
    write_stack(folder / "ts.mrc", beads(size, axis_deg, places) + noise, 10.0)
    angles = "".join(f"{tilt:.2f}\n" for tilt in TILTS)
    (folder / "ts.rawtlt").write_text(angles)
    (folder / "al").mkdir()
    (folder / "al" / "ts.xf").write_text(rows_of_xf(axis_deg))
    (folder / "al" / "ts.tlt").write_text(angles)
    return places


def place_of(image: F32, near: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre (x, y), px from the middle of an image, of what is bright within 4 px of a place."""
    ny, nx = image.shape
    y, x = np.mgrid[:ny, :nx] - np.array([(ny - 1) / 2, (nx - 1) / 2])[:, None, None]
    weight = np.where(np.hypot(x - near[0], y - near[1]) < 4.5, np.maximum(image, 0), 0)
    assert weight.max() > 0.3 * image.max(), "nothing there"
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


def frame_of(size: tuple[int, int], axis_deg: float) -> tuple[int, int]:
    return size if axis_deg == 10 else size[::-1]


@pytest.mark.parametrize("axis_deg", AXES)
@pytest.mark.parametrize("size", SIZES)
def test_beads_lie_where_they_are_in_the_tomogram_and_the_aligned_stack(
    inr: Inr, tmp_path: Path, size: tuple[int, int], axis_deg: float
) -> None:
    places, (nx, ny) = series(tmp_path, size, axis_deg), frame_of(size, axis_deg)
    stack, alignment = tmp_path / "ts.mrc", tmp_path / "al"
    done = inr("recon", stack, alignment, "-o", tmp_path / "rec.mrc", "--method", "fbp", "--thickness", 16)
    assert done.exit_code == 0, done.output
    rec = read_volume(tmp_path / "rec.mrc")[0]
    assert rec.shape == (ny, 16, nx)
    assert inr("export", stack, alignment, "-o", tmp_path / "ali.mrc").exit_code == 0
    aligned = read_volume(tmp_path / "ali.mrc")[0]
    assert aligned.shape == (len(TILTS), ny, nx)
    for place in places:
        np.testing.assert_allclose(place_of(rec[:, 7:9].sum(axis=1), place), place, atol=0.15)
        np.testing.assert_allclose(place_of(aligned[len(TILTS) // 2], place), place, atol=0.15)
    said = next(line for line in done.output.splitlines() if line.startswith("frame"))
    assert f"{nx} x {ny} px" in said and ("turned" in said) == (axis_deg != 10)
    for name in ("rec", "ali"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["frame"] == {"aligned_size_px": [nx, ny], "sides_turned": axis_deg != 10}
    # the aligned stack is a stack of its own frame: nothing turns once more
    again = inr("recon", tmp_path / "ali.mrc", tmp_path / "ali.tlt", "-o", tmp_path / "again.mrc", "--thickness", 16)
    assert again.exit_code == 0, again.output
    assert read_volume(tmp_path / "again.mrc")[0].shape == (ny, 16, nx)


@pytest.mark.parametrize("method", ["sirt", "sart-tv"])
@pytest.mark.parametrize("binning", [1, 2])
def test_iterative_methods_have_the_same_frame(inr: Inr, tmp_path: Path, method: str, binning: int) -> None:
    places = series(tmp_path, (97, 50), 85.0)
    words = ("--method", method, "--iterations", 3, "--thickness", 16, "--bin", binning)
    done = inr("recon", tmp_path / "ts.mrc", tmp_path / "al", "-o", tmp_path / "rec.mrc", *words)
    assert done.exit_code == 0, done.output
    rec = read_volume(tmp_path / "rec.mrc")[0]
    assert rec.shape == (97 // binning, 16 // binning, 50 // binning)
    middle = rec.shape[1] // 2
    for place in places:
        found = binning * place_of(rec[:, middle - 1 : middle + 1].sum(axis=1), place / binning)
        np.testing.assert_allclose(found, place, atol=0.4 * binning)


@pytest.mark.parametrize("axis_deg", AXES)
def test_com_files_and_other_formats_have_the_turned_sides(inr: Inr, tmp_path: Path, axis_deg: float) -> None:
    """Etomo: SizeToOutputInXandY and FULLIMAGE are both of the aligned stack; RELION's and Warp's volumes hold it."""
    size = (96, 48)
    series(tmp_path, size, axis_deg)
    nx, ny = frame_of(size, axis_deg)
    for form, out in (("imod", "imod"), ("outimod1", "ts_Imod"), ("relion5", "rel"), ("warp", "ts.xml")):
        words = ("convert", tmp_path / "al", tmp_path / out, "--to", form, "--stack", tmp_path / "ts.mrc")
        done = inr(*words)
        assert done.exit_code == 0, done.output
        assert f"frame            {nx} x {ny} px" in done.output
    for folder in ("imod", "ts_Imod"):
        newst, tilt = ((tmp_path / folder / f"{name}.com").read_text() for name in ("newst", "tilt"))
        assert ("SizeToOutputInXandY\t48,96\n" in newst) == (axis_deg != 10) == ("SizeToOutput" in newst)
        assert f"FULLIMAGE {nx} {ny}\n" in tilt and "SUBSETSTART 0 0\n" in tilt
    general = next(iter(read_star(tmp_path / "rel" / "tomograms.star").values()))
    x, y = (int(general[f"rlnTomoSize{axis}"][0]) for axis in "XY")
    assert x >= nx and y >= ny and (x < y) == (nx < ny)
    text = (tmp_path / "ts.xml").read_text()
    image, volume = (
        [float(v) for v in text.split(f'{name}DimensionsAngstrom="')[1].split('"')[0].split(",")]
        for name in ("Image", "Volume")
    )
    assert (
        image == [960, 480] and volume[0] >= 10 * nx and volume[1] >= 10 * ny and (volume[0] < volume[1]) == (nx < ny)
    )
    # the folder alone, without any stack, gives back the raw size: the warp file holds it
    back = read_alignment(tmp_path / "imod")
    assert back.image_size == size and back.aligned_size == (nx, ny)


def test_the_rule_is_that_of_etomo() -> None:
    """More than 45 degrees and less than 135, of either sign (is90DegreeImageRotation)."""
    for axis in (0.0, 44.9, 45.0, 135.0, 135.1, 180.0, -180.0, -135.0, -45.0, 225.0, 360.0):
        assert not sides_turned(axis) and turned_size((7, 5), axis) == (7, 5), axis
    for axis in (45.1, 90.0, 134.9, -45.1, -90.0, -134.9, 265.0, -275.0):
        assert sides_turned(axis) and turned_size((7, 5), axis) == (5, 7), axis
    assert sides_turned(np.array([84.0, 86.0, -3.0])) and not sides_turned(np.array([179.0, -179.0, 90.0]))


def test_images_left_out_have_no_say(tmp_path: Path) -> None:
    """AreTomo gives images it leaves out the identity."""
    plain = Alignment.identity(TILTS, (96, 48), 85.0)
    left_out = {k: "dark" for k in range(8)}
    linear = plain.linear.copy()
    linear[:8] = np.eye(2)
    a = Alignment(TILTS, linear, np.zeros((len(TILTS), 2)), (96, 48), 10.0, excluded=left_out)
    assert a.aligned_size == (48, 96) and a.sides_turned
    assert not Alignment.identity(TILTS, (96, 96), 85.0).sides_turned
    write_aretomo_folder(tmp_path, SeriesRecord(a, "ts", TILTS), 1, None)
    assert "FULLIMAGE 48 96\n" in (tmp_path / "ts_Imod" / "tilt.com").read_text()


def test_areas_of_local_alignments_lie_in_the_aligned_stack(tmp_path: Path) -> None:
    """Centres are pixel numbers, from 1, of the stack that ``newst.com`` makes: they span its turned sides."""
    x, y = np.linspace(-30, 30, 4), np.linspace(-50, 50, 4)
    bend = np.stack(np.meshgrid(0.02 * x, 0.03 * y), axis=-1)
    a = Alignment.identity(TILTS, (96, 48), 85.0, 10.0)
    a = replace(a, warp=LocalWarp(x, y, np.tile(bend, (len(TILTS), 1, 1, 1)), "bilinear"))
    write_local(tmp_path / "tslocal.xf", a, 20.0)
    head = [float(word) for word in (tmp_path / "tslocal.xf").read_text().splitlines()[0].split()]
    for count, first, step, size in zip(head[:2], head[2:4], head[4:6], (48, 96), strict=True):
        assert 1 <= first <= 3 and size - 3 <= first + (count - 1) * step <= size + 1
        assert first + (count - 1) * step / 2 == pytest.approx((size + 1) / 2, abs=0.5)


def test_square_images_have_the_com_files_that_they_had(tmp_path: Path) -> None:
    write_alignment(tmp_path, "ts", Alignment.identity(TILTS, (64, 64), 85.0, 10.0))
    assert "SizeToOutput" not in (tmp_path / "newst.com").read_text()
    assert "FULLIMAGE 64 64\n" in (tmp_path / "tilt.com").read_text()


@pytest.mark.parametrize(("axis_deg", "shape"), [(85.0, (64, 40)), (5.0, (40, 64))])
def test_a_simulated_truth_has_the_frame_of_its_tomogram(axis_deg: float, shape: tuple[int, int]) -> None:
    settings = SimulationSettings(size=(64, 40), thickness_px=20, axis_deg=axis_deg, wide=False, beads=0, vesicles=0)
    specimen = make_specimen(settings, np.random.default_rng(0))
    assert view_of(specimen, settings).shape[1:] == shape == specimen.density.shape[1:]
