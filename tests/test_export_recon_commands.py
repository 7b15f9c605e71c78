"""``inr-export`` and ``inr-recon`` on files: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from inrtomo.io.alignment_files import read_alignment, write_alignment
from inrtomo.io.imod import read_angles
from inrtomo.metrics.volume import cc
from tests.running import Inr, assert_refused


def read(path: Path) -> np.ndarray:
    assert mrcfile.validate(path)
    return mrcfile.read(path)


def cc_inside(volume: np.ndarray, truth: np.ndarray) -> float:
    """Correlation over the height they share."""
    height = min(len(volume), len(truth))
    a, b = (v[(len(v) - height) // 2 :][:height] for v in (volume, truth))
    return cc(a, b)


@pytest.fixture
def series(tiny_series: Path, tmp_path: Path) -> Path:
    """A copy of the tiny series that may be written beside."""
    return Path(shutil.copytree(tiny_series, tmp_path / "series"))


def test_tomogram_from_raw_images_in_both_orientations(inr: Inr, series: Path) -> None:
    stack, truth = series / "ts.mrc", series / "ts_truth.json"
    for orientation in ("imod", "xyz"):
        out = series / f"{orientation}.mrc"
        done = inr("recon", stack, truth, "-o", out, "--orientation", orientation, "--thickness", 40)
        assert done.exit_code == 0 and "40 nm" in done.output
    imod, xyz = read(series / "imod.mrc"), read(series / "xyz.mrc")
    assert imod.shape == (96, 40, 96) and xyz.shape == (40, 96, 96)
    np.testing.assert_allclose(imod.transpose(1, 0, 2)[::-1], xyz, atol=1e-5)
    assert cc_inside(xyz, read(series / "ts_truth.mrc")) > 0.5
    with mrcfile.open(series / "imod.mrc", header_only=True) as file:
        assert file.voxel_size.x == file.voxel_size.z == pytest.approx(10)
        assert file.header.ispg == 1
        assert file.header.dmax == pytest.approx(imod.max())


def test_a_stack_without_angles_takes_those_of_its_alignment(inr: Inr, series: Path) -> None:
    stack, aligned = series / "ts.mrc", series / "aligned"
    write_alignment(aligned, "ts", read_alignment(series / "ts_truth.json"))
    assert inr("recon", stack, aligned, "-o", series / "own.mrc", "--thickness", 40).exit_code == 0
    alone = series / "alone" / "other.mrc"
    alone.parent.mkdir()
    shutil.copy(stack, alone)
    for k, path in enumerate((aligned, aligned / "ts.xf")):
        out = series / f"{k}.mrc"
        assert inr("recon", alone, path, "-o", out, "--thickness", 40).exit_code == 0
        np.testing.assert_array_equal(read(out), read(series / "own.mrc"))
    (aligned / "ts.tlt").unlink()
    assert_refused(inr("recon", alone, aligned, "-o", series / "no.mrc"), "other.mrc", "other.rawtlt")


def test_contrast_is_turned_only_when_asked(inr: Inr, series: Path) -> None:
    dark = series / "dark.mrc"
    with mrcfile.new(dark) as file:
        file.set_data(1000 - mrcfile.read(series / "ts.mrc"))
        file.voxel_size = 10
    shutil.copy(series / "ts.rawtlt", series / "dark.rawtlt")
    truth = read(series / "ts_truth.mrc")
    for contrast, sign in (("input", -1), ("positive", 1)):
        out = series / f"{contrast}.mrc"
        options = ("--contrast", contrast, "--orientation", "xyz")
        assert inr("recon", dark, series / "ts_truth.json", "-o", out, *options).exit_code == 0
        assert sign * cc_inside(read(out), truth) > 0.5


def test_aligned_stack_reconstructs_as_the_raw_one(inr: Inr, series: Path) -> None:
    aligned = series / "ts_ali.mrc"
    mask = series / "mask.mrc"
    done = inr("export", series / "ts.mrc", series / "ts_truth.json", "-o", aligned, "--mask", mask)
    assert done.exit_code == 0
    np.testing.assert_allclose(read_angles(aligned.with_suffix(".rawtlt")), read_angles(series / "ts.rawtlt"))
    truth = json.loads((series / "ts_truth.json").read_text())
    np.testing.assert_allclose(read_angles(aligned.with_suffix(".tlt")), truth["tilt_deg"], atol=1e-4)
    record = json.loads(aligned.with_suffix(".json").read_text())
    np.testing.assert_allclose(record["seen_fraction"], read(mask).mean(axis=(1, 2)), atol=1e-3)

    options = ("--thickness", 30, "--orientation", "xyz")
    assert inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "a.mrc", *options).exit_code == 0
    assert inr("recon", aligned, aligned.with_suffix(".tlt"), "-o", series / "b.mrc", *options).exit_code == 0
    inside = (slice(None), slice(8, -8), slice(8, -8))  # where edges are filled they are not the same data
    assert cc(read(series / "a.mrc")[inside], read(series / "b.mrc")[inside]) > 0.99


def test_halves_binning_and_dose_weighting(inr: Inr, series: Path) -> None:
    whole, truth = series / "ts.mrc", series / "ts_truth.json"
    for name in ("odd", "even"):
        assert inr("export", series / f"ts_{name}.mrc", truth, "-o", series / f"{name}.mrc").exit_code == 0
    assert inr("export", whole, truth, "-o", series / "whole.mrc").exit_code == 0
    np.testing.assert_allclose(
        read(series / "odd.mrc") + read(series / "even.mrc"), 2 * read(series / "whole.mrc"), rtol=1e-3, atol=0.02
    )
    assert inr("export", whole, truth, "-o", series / "bin2.mrc", "--bin", 2, "--dose-weight").exit_code == 0
    assert read(series / "bin2.mrc").shape == (21, 48, 48)
    with mrcfile.open(series / "bin2.mrc", header_only=True) as file:
        assert file.voxel_size.x == pytest.approx(20)
    exposure = json.loads((series / "bin2.json").read_text())["weighted_by_exposure_e_A2"]
    np.testing.assert_allclose(exposure, 3 * (np.arange(21) + 0.5))  # 3 e/Å2 a tilt, recorded from -60 on
    options = ("--dose-per-tilt", 3, "--overwrite")
    assert inr("export", whole, truth, "-o", series / "bin2.mrc", *options).exit_code == 0
    assert json.loads((series / "bin2.json").read_text())["weighted_by_exposure_e_A2"] == exposure


def test_refusals(inr: Inr, series: Path) -> None:
    stack, truth, out = series / "ts.mrc", series / "ts_truth.json", series / "out.mrc"
    before = sorted(series.iterdir())
    for bad in (
        ["--thickness", -3], ["--radial", 0, 0.1], ["--radial", 0.3, 0], ["--exclude", 21], ["--exclude", "0-19"],
        ["--pixel-size", 0], ["--bin", 100],
    ):  # fmt: skip
        assert_refused(inr("recon", stack, truth, "-o", out, *bad), str(bad[1]) if bad[1] != "0-19" else "two")
    assert_refused(inr("recon", stack, truth, "-o", stack, "--overwrite"), "ts.mrc", "input")
    assert_refused(inr("export", stack, truth, "-o", out, "--mask", out), "out.mrc")
    assert_refused(inr("export", stack, truth, "-o", out, "--dose-per-tilt", -1), "-1")
    (series / "ts.mrc.mdoc").unlink()
    assert_refused(inr("export", stack, truth, "-o", out, "--dose-weight"), "dose")
    assert_refused(inr("export", stack, truth, "-o", out, "--dose-per-tilt", 3), "order")
    assert sorted(series.iterdir()) == [path for path in before if path.name != "ts.mrc.mdoc"]
