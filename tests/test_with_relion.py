"""RELION's own programs on our files, where RELION 5 is installed: do they take them, and mean by them what we do?

Its tomograms have the middle of the specimen at the index int(n / 2), ours at (n - 1) / 2. They are made with the rigid
part of an alignment; deformations move the squares that are cut out around particles, here around gold beads.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.ctf import ctf_2d
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.ctf import read_ctf
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.io.relion import write_relion
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.star import Table, read_star, write_star
from tests.running import run_command
from tests.test_pipelines import relion_project, run
from tests.test_with_imod import apart_px, correlation

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

PATH = os.pathsep.join([str(Path(os.environ.get("RELION_HOME", "")) / "bin"), os.environ["PATH"]])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("relion_tomo_subtomo", path=PATH) is None,
        reason="RELION's programs are neither on the PATH nor in RELION_HOME: they are not run",
    ),
]

SIZE = 127, 112
SERIES = "--size 127 112 --thickness 40 --tilt-step 4 --snr 15 --shifts 6 --warp 3 --tilt-axis -5 --slab-tilt 3 -2"
N_TILTS, PIXEL_A, BEAD_PX = 31, 10.0, 10.0
HEIGHT_PX, BOX_PX = 80, 32
SEARCH_PX = 6  # farther off may be another bead


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with local motion of 3 px; its true alignment in ``bent``, and in ``rigid`` without deformations."""
    folder = tmp_path_factory.mktemp("relion")
    words = ["--base", "ts", "--seed", "3", "--beads", "8", *SERIES.split()]
    assert run_command("simulate", "-o", folder, *words).exit_code == 0
    (folder / "ctf.txt").write_text("".join(f"{k + 1} 30000 30000 0 0 0.1 20\n" for k in range(N_TILTS)))
    _convert(folder, "ts", folder / "bent")
    shutil.copytree(folder / "bent", folder / "rigid")
    rigid = folder / "rigid" / "tilt_series" / "ts.star"
    overview = _without_deformations(read_star(folder / "bent" / "tomograms.star")["global"])
    write_star(rigid, {"ts": _without_deformations(read_star(rigid)["ts"])}, overwrite=True)
    overview["rlnTomoTiltSeriesStarFile"] = [str(rigid)]
    write_star(folder / "rigid" / "tomograms.star", {"global": overview}, overwrite=True)
    return folder


def _convert(folder: Path, name: str, target: Path, *words: str) -> None:
    stack, ctf = folder / f"{name}.mrc", folder / "ctf.txt"
    source = folder / f"{name}_truth.json"
    done = run_command("convert", source, target, "--to", "relion5", "--stack", stack, "--ctf", ctf, *words)
    assert done.exit_code == 0 and "without which RELION" not in done.stdout, done.output


def _without_deformations(table: Table) -> Table:
    return {column: words for column, words in table.items() if "Deformation" not in column}


def _relion(folder: Path, program: str, *words: object) -> None:
    call = [str(shutil.which(f"relion_tomo_{program}", path=PATH)), *map(str, words)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_our_tomogram_lies_where_that_of_relion_does(folder: Path, tmp_path: Path) -> None:
    """Same axes and handedness, where a side is even half a voxel apart; what RELION writes is read as the same."""
    size = ("--w", SIZE[0] + 1, "--h", SIZE[1], "--d", HEIGHT_PX, "--bin", 1, "--j", 2)  # its volumes are even
    _relion(tmp_path, "reconstruct_tomogram", "--t", folder / "bent" / "tomograms.star", "--o", "job/", *size)
    made = read_volume(tmp_path / "job" / "tomograms" / "rec_ts.mrc")[0][:, :, 1:]
    ours = tmp_path / "ours.mrc"
    words = ("--method", "fbp", "--thickness", HEIGHT_PX * PIXEL_A / 10, "--orientation", "xyz")
    done = run_command("recon", folder / "ts.mrc", folder / "rigid" / "tomograms.star", "-o", ours, *words)
    assert done.exit_code == 0, done.stderr
    found = read_volume(ours)[0]
    np.testing.assert_allclose(apart_px(made, found), [0.5, 0.5, 0.0], atol=0.1)
    assert correlation(made, found) > 0.75

    overview = read_star(tmp_path / "job" / "tomograms.star")["global"]
    overview["rlnTomoTiltSeriesStarFile"] = [str(next((tmp_path / "job").rglob("ts.star")))]
    write_star(tmp_path / "job" / "tomograms.star", {"global": overview}, overwrite=True)
    back = read_alignment(tmp_path / "job" / "tomograms.star", SIZE)
    written = read_alignment(folder / "bent" / "tomograms.star", SIZE)
    points = np.random.default_rng(0).uniform(-50, 50, (20, 3))
    for m in range(N_TILTS):
        np.testing.assert_allclose(back.specimen_to_raw(m, points), written.specimen_to_raw(m, points), atol=1e-3)


def test_beads_are_centred_by_deformations(folder: Path, tmp_path: Path) -> None:
    """Off by the true local motion without them."""
    truth, beads = read_alignment(folder / "ts_truth.json"), _beads(folder)
    moved = np.stack(
        [truth.specimen_to_raw(m, beads) - truth.without_warp().specimen_to_raw(m, beads) for m in range(N_TILTS)], 1
    )
    kinds = ("bent", "rigid")
    bent, rigid = (_bead_offsets(folder / kind / "tomograms.star", beads, tmp_path / kind) for kind in kinds)
    seen = np.isfinite(bent) & np.isfinite(rigid)
    assert np.mean(seen) > 0.8 and np.sqrt(np.mean(moved[seen] ** 2)) > 0.5
    assert _of_most(bent[seen]) < 0.3 < 1 < _of_most(rigid[seen])
    assert _of_most((rigid - moved)[seen]) < 0.3


@pytest.mark.parametrize(("kind", "nx", "ny", "numbers"), [("spline", 4, 3, 96), ("linear", 1, 1, 3)])
def test_deformations_of_others(folder: Path, tmp_path: Path, kind: str, nx: int, ny: int, numbers: int) -> None:
    """RELION cuts out where we read the deformations to lie."""
    size = 1.5 if kind == "spline" else 0.03
    rows = np.random.default_rng(1).normal(size=(N_TILTS, numbers)) * size
    rigid, tomograms = folder / "rigid", tmp_path / "tomograms.star"
    grid = {"rlnTomoDeformationGridSizeX": [str(nx)], "rlnTomoDeformationGridSizeY": [str(ny)]}
    words = ["[" + ",".join(f"{value:.5f}" for value in row) + "]" for row in rows]
    table = read_star(rigid / "tilt_series" / "ts.star")["ts"] | {"rlnTomoDeformationCoefficients": words}
    write_star(tmp_path / "ts.star", {"ts": table})
    overview = read_star(rigid / "tomograms.star")["global"] | grid
    overview |= {"rlnTomoDeformationType": [kind], "rlnTomoTiltSeriesStarFile": [str(tmp_path / "ts.star")]}
    write_star(tomograms, {"global": overview})

    truth, read, beads = read_alignment(folder / "ts_truth.json"), read_alignment(tomograms, SIZE), _beads(folder)
    wrong = np.stack([truth.specimen_to_raw(m, beads) - read.specimen_to_raw(m, beads) for m in range(N_TILTS)], 1)
    found = _bead_offsets(tomograms, beads, tmp_path / "job")
    seen = np.isfinite(found).all(axis=-1) & (np.hypot(*np.moveaxis(wrong, -1, 0)) < SEARCH_PX - 1)
    assert np.mean(seen) > 0.7 and np.sqrt(np.mean(wrong[seen] ** 2)) > 0.7
    assert _of_most((found - wrong)[seen]) < 0.3


def _of_most(errors_px: Array) -> float:
    """Nine in ten are as small as this; over the other beads something else may lie."""
    return float(np.quantile(np.abs(errors_px), 0.9))


def _beads(folder: Path) -> Array:
    """Centres of beads ``(n, 3)``, from the specimen's, px, whose squares are inside the images."""
    beads = np.array(json.loads((folder / "ts_truth.json").read_text())["beads_px"])
    beads = beads[(np.abs(beads[:, :2]) < (np.array(SIZE) - BOX_PX) / 2 - 4).all(axis=1)]
    assert len(beads) >= 3
    return beads


def _bead_offsets(tomograms: Path, beads: Array, out: Path) -> Array:
    """(x, y) of beads from the centres of RELION's squares ``(beads, tilts, 2)``, px; NaN where there is no square."""
    _extract(tomograms, "ts", beads, out)
    table = read_star(out / "particles.star")["particles"]
    offsets = np.full((len(beads), N_TILTS, 2), np.nan)
    for name, seen in zip(table["rlnTomoParticleName"], table["rlnTomoVisibleFrames"], strict=True):
        squares = read_volume(out / "Subtomograms" / f"{name}_stack2d.mrcs")[0]
        tilts = np.flatnonzero(np.array(seen.strip("[]").split(","), dtype=np.int64))
        offsets[int(name.rpartition("/")[2]) - 1, tilts] = [_offset(square) for square in squares]
    return offsets


def _extract(tomograms: Path, name: str, beads: Array, out: Path, ctf: bool = False) -> None:
    """Squares around beads, by RELION: not inverted, nor by default multiplied by the CTF."""
    particles: Table = {"rlnTomoName": [name] * len(beads)}
    for k, axis in enumerate("XYZ"):
        particles[f"rlnCenteredCoordinate{axis}Angst"] = [f"{value:.4f}" for value in beads[:, k] * PIXEL_A]
    out.mkdir(parents=True)
    write_star(out / "beads.star", {"particles": particles})
    words = ["--b", BOX_PX, "--bin", 1, "--stack2d", "--no_ic", "--no_circle_crop", "--j", 2] + ["--no_ctf"] * (not ctf)
    _relion(out, "subtomo", "--p", "beads.star", "--t", tomograms, "--o", f"{out}/", *words)


def _offset(square: F32) -> Array:
    """(x, y) of a bright ball from the index n / 2: the top of the correlation with one, by parabolas."""
    n = len(square)
    y, x = np.mgrid[:n, :n] - n // 2
    ball = np.sqrt(np.clip((BEAD_PX / 2) ** 2 - x**2 - y**2, 0, None))
    cross = np.fft.fftshift(
        np.fft.irfft2(np.fft.rfft2(square - square.mean()) * np.conj(np.fft.rfft2(ball)), square.shape)
    )
    near = np.hypot(x, y) < SEARCH_PX
    row, column = np.unravel_index(int(np.where(near, cross, -np.inf).argmax()), cross.shape)
    found = []
    for before, middle, after in (cross[row, column - 1 : column + 2], cross[row - 1 : row + 2, column]):
        found.append(0.5 * (before - after) / (before - 2 * middle + after))
    return np.array(found) + [column - n // 2, row - n // 2]


@pytest.mark.parametrize("hand", [1, -1])
def test_ctf_is_the_one_that_was_given(tmp_path: Path, hand: int) -> None:
    """Squares around a point, multiplied by RELION's CTF: astigmatism, and the defocus by height on both sides."""
    n, pixel, x_px, tilts = 256, 4.0, 70.0, np.array([-60.0, 0.0, 60.0])
    alignment = Alignment.identity(tilts, (n, n), 0.0, pixel)
    where = [alignment.specimen_to_raw(m, np.array([x_px, 0, 0])) + (n - 1) / 2 for m in range(3)]
    images = [np.outer(np.sinc(np.arange(n) - y), np.sinc(np.arange(n) - x)) for x, y in where]
    write_stack(tmp_path / "point.mrc", np.array(images), pixel)
    (tmp_path / "ctf.txt").write_text("".join(f"{k + 1} 12000 9000 30 0 0.1 5 {hand}\n" for k in range(3)))
    defoci = read_ctf(tmp_path / "ctf.txt", 3)
    names = tuple(f"{k + 1}@{tmp_path / 'point.mrc'}" for k in range(3))
    write_relion(tmp_path / "files", SeriesRecord(alignment, "point", tilts, np.zeros(3), names, 40.0, defoci))
    at = np.array([[x_px, 0.0, 0.0]]) * pixel / PIXEL_A
    _extract(tmp_path / "files" / "tomograms.star", "point", at, tmp_path / "job", ctf=True)
    squares = read_volume(tmp_path / "job" / "Subtomograms" / "point" / "1_stack2d.mrcs")[0]
    spectra = np.fft.rfft2(np.fft.ifftshift(squares, axes=(1, 2))).real
    k_per_A = np.hypot(np.fft.fftfreq(BOX_PX, pixel)[:, None], np.fft.rfftfreq(BOX_PX, pixel)[None])
    sure = (k_per_A > 0.02) & (k_per_A < 0.085)  # below, the box is too small for the CTF; above, the point
    higher_A = hand * x_px * pixel * np.sin(np.deg2rad(tilts))  # underfocus grows to the right at positive tilt
    for spectrum, change in zip(spectra, higher_A, strict=True):
        found = []
        for more, angle in ((change, 30.0), (-change or 500.0, 30.0), (change, -30.0)):
            ctf = ctf_2d((BOX_PX, BOX_PX), pixel, 10500 + more, 300.0, 2.7, 0.1, 3000.0, angle)
            found.append(np.corrcoef(ctf[sure], spectrum[sure])[0, 1])
        assert found[0] > 0.999 and found[0] > max(found[1:]) + 0.002, found


def test_series_without_local_motion_beside_one_with(folder: Path, tmp_path: Path) -> None:
    """RELION crashes where a series of such a list has no coefficients of its own."""
    values = json.loads((folder / "ts_truth.json").read_text())
    (tmp_path / "flat_truth.json").write_text(json.dumps(values | {"warp": None}))
    for ending in (".mrc", ".mrc.mdoc", ".rawtlt"):
        shutil.copy(folder / f"ts{ending}", tmp_path / f"flat{ending}")
    shutil.copy(folder / "ctf.txt", tmp_path)
    for order in (("flat", "ts"), ("ts", "flat")):
        target = tmp_path / order[0]
        for name in order:
            _convert(tmp_path if name == "flat" else folder, name, target, "--overwrite")
        _extract(target / "tomograms.star", "flat", np.zeros((1, 3)), tmp_path / f"{order[0]}_first")
        assert (tmp_path / f"{order[0]}_first" / "Subtomograms" / "flat" / "1_stack2d.mrcs").is_file()


def test_a_project_step_is_followed_by_relions_next(tiny_series: Path, tmp_path: Path) -> None:
    """``integration/pipelines/relion5-align``, then RELION's "Reconstruct tomograms" on what it left."""
    relion_project(tiny_series, tmp_path, ["ts"])
    given = ["--o", "External/job005/", "--in_mics", "CtfFind/job003/tilt_series_ctf.star", "--fast", "--j", "4"]
    run("relion5-align", *given, folder=tmp_path)
    size = ("--w", 96, "--h", 96, "--d", 40, "--binned_angpix", 20, "--j", 2)
    words = ("--t", "External/job005/aligned_tilt_series.star", "--o", "Tomograms/job006/", *size)
    _relion(tmp_path, "reconstruct_tomogram", *words)
    made = read_volume(tmp_path / "Tomograms" / "job006" / "tomograms" / "rec_ts.mrc")[0]
    assert made.shape == (20, 48, 48) and made.std() > 0
