"""Fourier shell correlations in torch on the CPU, against numpy and scipy: curves to 1e-5, components exactly."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from inrtomo.commands.fsc import main
from inrtomo.gpu import fsc as gpu
from inrtomo.io.mrc import write_volume
from inrtomo.metrics.fsc import FourierWork, fourier_work_on, frc, volume_fsc
from inrtomo.metrics.local_resolution import WindowWork, local_resolution, window_work_on
from inrtomo.metrics.masks import soft_box

SHAPE = (20, 37, 34)
WORK = partial(gpu.DeviceFourierWork, device="cpu")


@pytest.fixture(scope="module")
def halves() -> list[np.ndarray]:
    """Two noisy volumes that share their low frequencies, off zero."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in SHAPE), indexing="ij")
    spectrum = np.fft.fftn(rng.normal(size=SHAPE)) * np.exp(-40 * (x**2 + y**2 + z**2))
    signal = 4 * np.fft.ifftn(spectrum).real
    return [(100 + signal + 0.3 * rng.normal(size=SHAPE)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize(("tilts", "every_tilt"), [(np.arange(-60, 61, 3.0), True), (np.array([-50.0, 60.0]), False)])
def test_every_curve_is_the_same(halves, tilts, every_tilt, monkeypatch):
    monkeypatch.setattr(gpu, "COMPONENTS_AT_ONCE", 2000)
    given = {"tilt_deg": tilts, "every_tilt": every_tilt, "seed": 3}
    ours, other = (
        volume_fsc(halves[0], halves[1], 10.0, soft_box(SHAPE), **given, make_work=work) for work in (FourierWork, WORK)
    )
    assert other.randomised_from_A == ours.randomised_from_A is not None
    assert other.curves().keys() == ours.curves().keys() >= {"x", "y", "z", "measured", "wedge", "corrected"}
    for name, curve in ours.curves().items():
        found = other.curves()[name]
        np.testing.assert_array_equal(found.count, curve.count, err_msg=name)
        np.testing.assert_array_equal(found.frequency_per_A, curve.frequency_per_A)
        np.testing.assert_allclose(found.correlation, curve.correlation, atol=1e-5, err_msg=name)
    assert ours.masked.correlation[0] > 0.9 > 0.2 > abs(ours.masked.correlation[-1])


def test_rings_are_the_same(halves):
    ours, other = (frc(halves[0], halves[1], 10.0, work) for work in (FourierWork, WORK))
    np.testing.assert_allclose(other[0].correlation, ours[0].correlation, atol=1e-5)
    for found, curve in zip(other[1], ours[1], strict=True):
        np.testing.assert_allclose(found.correlation, curve.correlation, atol=1e-5)
        np.testing.assert_array_equal(found.count, curve.count)


def test_local_resolution_is_the_same(halves):
    works = WindowWork, partial(gpu.DeviceWindowWork, device="cpu")
    ours, other = (local_resolution(halves[0], halves[1], 10.0, 16, 0.5, work) for work in works)
    np.testing.assert_allclose(other, ours, rtol=1e-3)
    assert np.ptp(ours) > 1


def test_an_empty_mask_is_refused(halves):
    with pytest.raises(ValueError, match="0 everywhere"):
        volume_fsc(halves[0], halves[1], 10.0, np.zeros(SHAPE), make_work=WORK)


def test_the_device_is_checked_and_told(tmp_path: Path, halves):
    paths = [tmp_path / name for name in ("a.mrc", "b.mrc")]
    for path, half in zip(paths, halves, strict=True):
        write_volume(path, half, 10.0)
    given = [*map(str, paths), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*given, "--device", "gpu"])
    assert result.exit_code == 2 and "not a device" in result.output
    result = CliRunner().invoke(main, [*given, "--device", "auto", "--local"])
    assert result.exit_code == 0, result.output
    if not torch.cuda.is_available():
        assert json.loads((tmp_path / "out.json").read_text())["device"] == "cpu"
    assert fourier_work_on("cpu") is FourierWork and window_work_on("cpu") is WindowWork


def test_a_full_gpu_is_one_sentence(tmp_path: Path, halves, monkeypatch):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("inrtomo.metrics.fsc.volume_fsc", full)
    write_volume(tmp_path / "a.mrc", halves[0], 10.0)
    result = CliRunner().invoke(main, [str(tmp_path / "a.mrc")] * 2 + ["-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "inr-fsc: not enough memory on the GPU" in result.output
