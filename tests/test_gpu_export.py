"""Aligned stacks in torch on the CPU, against numba and scipy: the same pixels to float32's rounding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.commands.export import main
from inrtomo.export import Sections, export_images, sections_on
from inrtomo.geometry import axis_rotation
from inrtomo.gpu import resample as gpu
from inrtomo.gpu.aligned_tilts import DeviceTiltAligner
from inrtomo.io.alignment_files import write_alignment
from inrtomo.io.mrc import write_stack
from inrtomo.localized.tilts import TiltAligner
from inrtomo.resample import fill_invalid, fourier_bin

SIZE = (101, 86)  # x, y


def alignment(interpolation: str | None, turn_deg: float) -> Alignment:
    rng = np.random.default_rng(2)
    linear = axis_rotation(turn_deg)[None] @ np.array([[1.01, 0.004], [0.0, 0.99]])
    warp = None
    if interpolation is not None:
        x, y = np.linspace(-45, 45, 5), np.linspace(-33, 33, 4)
        warp = LocalWarp(x, y, rng.uniform(-1.5, 1.5, (1, 4, 5, 2)), interpolation)
    return Alignment(np.array([20.0]), linear, np.array([[3.3, -2.6]]), SIZE, 10.0, warp)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    out = np.random.default_rng(0).normal(5, 2, SIZE[::-1])
    out[40:50, 60:70] += 30
    return out.astype(np.float32)


@pytest.mark.parametrize("interpolation", [None, "bilinear", "bicubic"])
@pytest.mark.parametrize(("bin", "exposure"), [(1, None), (3, None), (1, 40.0), (2, 40.0)])
def test_sections_are_the_same(raw, interpolation, bin, exposure, monkeypatch):
    monkeypatch.setattr(gpu, "PIXELS_AT_ONCE", 1000)
    given = alignment(interpolation, 4.0), bin, None if exposure is None else np.array([exposure]), 300
    ours, other = Sections(*given).section(raw, 0), gpu.DeviceSections(*given, "cpu").section(raw, 0)
    assert other.values.dtype == np.float32 and other.values.shape == (86 // bin, 101 // bin)
    np.testing.assert_array_equal(other.valid, ours.valid)
    assert 0.5 < ours.valid.mean() < 1
    np.testing.assert_allclose(other.values, ours.values, atol=1e-4)
    assert ours.values.std() > 0.5


def test_tilts_of_inference_are_the_same(raw):
    """Aligned with borders, edges filled and settled, and the noise of the raw image."""
    given = alignment("bicubic", 4.0), np.arange(-70.0, 70), np.arange(-50.0, 51), 25
    ours, other = TiltAligner(*given), DeviceTiltAligner(*given, "cpu")
    (values, seen), (found, found_seen) = ours.aligned(raw, 0), other.aligned(raw, 0)
    np.testing.assert_array_equal(found_seen, seen)
    np.testing.assert_allclose(found, values, atol=1e-4)
    assert other.noise_sd(raw) == pytest.approx(ours.noise_sd(raw), rel=1e-4)
    assert 0.3 < seen.mean() < 0.8 and values.std() > 0.5


def test_an_identity_loses_no_pixel(raw):
    plain = replace(alignment(None, 0.0), linear=np.eye(2)[None], shift_px=np.zeros((1, 2)))
    found = gpu.DeviceSections(plain, 1, None, 300, "cpu").section(raw, 0)
    assert found.valid.all()
    np.testing.assert_allclose(found.values, raw, atol=1e-4)


@pytest.mark.parametrize("seen", [0.0, 0.02, 0.7])
def test_filling_is_the_same(raw, seen):
    valid = np.random.default_rng(1).random(raw.shape) < seen
    found = gpu.fill_invalid(torch.tensor(raw), torch.tensor(valid)).numpy()
    np.testing.assert_allclose(found, fill_invalid(raw, valid), atol=1e-5)


@pytest.mark.parametrize("bin", [2, 3])
def test_binning_is_the_same(raw, bin):
    image = raw[:84, :96]
    found = gpu.fourier_bin(torch.tensor(image), bin, None).numpy()
    np.testing.assert_allclose(found, fourier_bin(image, bin), atol=1e-5)


def test_the_device_is_checked_and_told(tmp_path: Path, raw):
    write_stack(tmp_path / "ts.mrc", np.stack([raw] * 3), 10.0)
    tilts = np.array([-20.0, 0.0, 20.0])
    write_alignment(tmp_path, "ts", Alignment.identity(tilts, SIZE, 3.0, 10.0), thickness_px=20, stack="ts.mrc")
    given = [str(tmp_path / "ts.mrc"), str(tmp_path / "ts.xf"), "-o", str(tmp_path / "out.mrc")]
    for device in ("auto", "cpu"):
        result = CliRunner().invoke(main, [*given, "--device", device, "--overwrite"])
        assert result.exit_code == 0, result.output
        assert "device" in result.output
        if not torch.cuda.is_available():
            assert json.loads((tmp_path / "out.json").read_text())["device"] == "cpu"
    result = CliRunner().invoke(main, [*given, "--device", "gpu", "--overwrite"])
    assert result.exit_code == 2 and "not a device" in result.output
    assert type(sections_on("cpu", alignment(None, 0.0), 1, None, 300)) is Sections
    assert next(export_images(lambda tilt: raw, alignment(None, 0.0))).values.shape == raw.shape
