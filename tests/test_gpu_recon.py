"""What `inr-recon` does before and after its methods, in torch on the CPU against numpy, numba and scipy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch.distributed as dist
from click.testing import CliRunner

from inrtomo.align.joint import JointFit, standardised
from inrtomo.align.prepare import PrepareSettings
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.commands import _recon_run
from inrtomo.commands.recon import main
from inrtomo.ctf import Defoci
from inrtomo.device import Device
from inrtomo.geometry import axis_rotation
from inrtomo.gpu import ctf, motion, operations, share
from inrtomo.gpu import resample as gpu
from inrtomo.gpu.motion import lattice_indices
from inrtomo.gpu.pixels import DevicePixelWork
from inrtomo.io.alignment_files import write_alignment
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.reconstruct import ctf_correction, fbp, prepared, rays, wedge
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.fbp import FbpSettings, LineFilter, filtered_lines
from inrtomo.reconstruct.field import FieldFit
from inrtomo.reconstruct.filters import RadialFilter
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.prepared import other_images, prepared_tilts
from inrtomo.reconstruct.rays import INVERSE_STEPS, Rays

SIZE, TILTS = (61, 48), np.arange(-60.0, 61, 20)  # x, y


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """Dark blobs on a bright background, noise and a hot pixel."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    out = rng.normal(100, 2, (len(TILTS), *SIZE[::-1]))
    for u, v in rng.uniform((5, 5), (SIZE[0] - 5, SIZE[1] - 5), size=(15, 2)):
        out -= 12 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
    out[2, 20, 30] += 500
    return out.astype(np.float32)


def alignment(interpolation: str | None = None, x_tilt_deg: float = 0.0) -> Alignment:
    rng, n = np.random.default_rng(2), len(TILTS)
    linear = np.tile(axis_rotation(4.0) @ np.array([[1.01, 0.004], [0.0, 0.99]]), (n, 1, 1))
    warp = None
    if interpolation is not None:
        x, y = np.linspace(-25, 25, 5), np.linspace(-20, 20, 4)
        warp = LocalWarp(x, y, rng.uniform(-1.5, 1.5, (n, 4, 5, 2)), interpolation)
    found = Alignment(TILTS, linear, rng.normal(size=(n, 2)), SIZE, 10.0, warp)
    return replace(found, x_tilt_deg=np.full(n, x_tilt_deg))


@pytest.mark.parametrize("interpolation", [None, "bilinear", "bicubic"])
@pytest.mark.parametrize(("x_tilt_deg", "bin"), [(0.0, 1), (0.0, 2), (8.0, 1), (-5.0, 2)])
def test_weighted_lines_are_the_same(raw, interpolation, x_tilt_deg, bin, monkeypatch):
    monkeypatch.setattr(gpu, "PIXELS_AT_ONCE", 3000)
    settings, made = FbpSettings(16, RadialFilter("exact"), bin), []
    for kind in (LineFilter, lambda *given: gpu.DeviceLineFilter(*given, "cpu")):
        monkeypatch.setattr(fbp, "line_filter_on", lambda device, *given, kind=kind: kind(*given))
        with filtered_lines(raw.__getitem__, alignment(interpolation, x_tilt_deg), settings) as lines:
            made.append(lines.lines.copy())
    ours, other = made
    assert ours.shape == other.shape and ours.std() > 0.05
    np.testing.assert_allclose(other, ours, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("restore", [False, True])
def test_prepared_tilts_are_the_same(raw, bin, restore, monkeypatch):
    other = Source("", raw.__getitem__, alignment(), lambda tilt: raw[tilt][::-1])
    settings, made = PrepareSettings(restore=restore, defocus_A=20000.0), []
    for work in (prepared.ON_CPU, DevicePixelWork("cpu")):
        monkeypatch.setattr(prepared, "pixel_work_on", lambda device, work=work: work)
        tilts = prepared_tilts(other, bin, settings)
        made.append((tilts, other_images(other, tilts, settings)))
    (ours, checks), (found, other_checks) = made
    assert ours.images.std() > 0.5 and ours.unit < 0
    for one, two in ((ours.images, found.images), (checks, other_checks)):
        np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max())
    np.testing.assert_array_equal(found.weight, ours.weight)
    assert found.unit == pytest.approx(ours.unit, rel=1e-5) and found.prepared.notes == ours.prepared.notes


@pytest.mark.parametrize("interpolation", [None, "bilinear", "bicubic"])
def test_pixels_see_the_same_rays(interpolation, monkeypatch):
    monkeypatch.setattr(rays, "_indices_on", lambda device, given: lattice_indices(*given, INVERSE_STEPS, "cpu"))
    monkeypatch.setattr(motion, "PIXELS_AT_ONCE", 1000)
    given = alignment(interpolation, 5.0), SIZE, 1, 16.0, (-12.0, 6.0)
    ours, other = (Rays(*given, device=device) for device in ("cpu", "meta"))
    assert ours.window == other.window and ours.lattice == other.lattice
    for one, two in zip(ours.indices, other.indices, strict=True):
        np.testing.assert_allclose(two, one, atol=2e-5)
        assert np.ptp(one) > 10


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_the_images_of_a_scale_are_the_same(raw, factor):
    few = np.zeros(raw.shape[1:], dtype=np.float32)
    few[::9, ::9] = 1  # most differences are zero
    images = np.concatenate([raw, few[None], np.ones_like(few)[None]])
    (ours, noise), (other, other_noise) = standardised(images, factor), gpu.standardised(images, factor, "cpu")
    np.testing.assert_allclose(other_noise, noise, rtol=1e-4, atol=1e-6)
    some = noise > 1e-3
    assert some.sum() >= len(raw) and ours[some].std() > 0.9
    np.testing.assert_allclose(other[some], ours[some], atol=2e-4 * np.abs(ours[some]).max())


@pytest.mark.parametrize("mode", ["flip", "wiener"])
@pytest.mark.parametrize("angle", [0.0, 60.0])
def test_the_transfer_function_is_undone_alike(mode, angle, monkeypatch):
    monkeypatch.setattr(
        ctf_correction, "_gathered_on", lambda device, view, image, noise: ctf.gathered(view, image, noise, "cpu")
    )
    size, rng = (120, 96), np.random.default_rng(0)
    image = rng.normal(20, 3, size[::-1]).astype(np.float32)
    given = Alignment.identity(np.array([angle]), size, 30.0, 4.0)
    defoci = Defoci(np.array([3e4]), np.array([800.0]), np.array([20.0]), np.zeros(1))
    ours, other = (
        ctf_corrected(lambda tilt: image, given, defoci, mode, device=device)(0) for device in ("cpu", "meta")
    )
    if angle:
        assert len(ctf_correction._Series.of(given, defoci, 1, None, 300.0, 2.7, 0.07).view(0).windows) > 3
    # where the function is zero to rounding its sign may be either
    assert np.linalg.norm(other - ours) < 1e-3 * np.linalg.norm(ours - ours.mean()) and ours.std() > 0.05
    assert np.linalg.norm(ours - image) > 0.3 * np.linalg.norm(image - image.mean())


def test_a_device_prepares_on_itself():
    assert prepared.pixel_work_on("cpu") is prepared.ON_CPU
    work = prepared.pixel_work_on("meta")
    assert isinstance(work, DevicePixelWork) and work.device == "meta"
    assert type(fbp.line_filter_on("cpu", alignment(), None, slice(0), False)) is LineFilter


def on_two_devices(tmp_path, raw, monkeypatch, *words):
    """What `inr-recon` says on two devices, and the volumes that it makes on them and on one."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    write_stack(tmp_path / "ts.mrc", raw, 10.0)
    write_alignment(tmp_path, "ts", alignment(), thickness_px=20, stack="ts.mrc")
    stack, given = tmp_path / "ts.mrc", str(tmp_path / "ts.xf")
    said, made = "", []
    for names in (("cpu",), ("cpu", "cpu")):
        devices = [Device(name, "the CPU") for name in names]
        monkeypatch.setattr(_recon_run, "choose_several", lambda *asked, devices=devices: devices)
        out = tmp_path / "out.mrc"
        result = CliRunner().invoke(
            main, [str(stack), given, "-o", str(out), "--thickness", "12", "--overwrite", *words]
        )
        assert result.exit_code == 0, result.output
        said = result.output
        made.append(read_volume(out)[0])
    return said, made


def test_what_uses_one_device_says_so(tmp_path, raw, monkeypatch):
    said, (one, two) = on_two_devices(tmp_path, raw, monkeypatch, "--method", "sirt", "--iterations", "2")
    assert "idle: --method sirt computes on cpu" in said
    np.testing.assert_array_equal(two, one)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here")
def test_every_fit_of_a_reconstruction_is_announced(tmp_path, raw, monkeypatch):
    announced = []
    monkeypatch.setattr(share, "announce", lambda fit, *rest, **named: announced.append(type(fit)))
    said, (one, two) = on_two_devices(
        tmp_path, raw, monkeypatch, "--method", "field", "--refine", "--average", "2", "--bin", "2"
    )
    assert "share the fits" in said and not dist.is_initialized()
    assert announced.count(FieldFit) == 2 and announced.count(JointFit) >= 2
    np.testing.assert_array_equal(two, one)


@pytest.mark.parametrize("x_tilt_deg", [0.0, 7.0])
def test_what_no_tilt_has_measured_is_the_same(x_tilt_deg, monkeypatch):
    monkeypatch.setattr(wedge, "PART_BYTES", 2**18)
    monkeypatch.setattr("inrtomo.gpu.wedge.VOXELS_AT_ONCE", 3000)
    volume = np.random.default_rng(0).normal(1, 1, (31, 13, 32)).astype(np.float32).transpose(1, 0, 2)  # as of Tomogram
    given = TILTS, 2.0, 20.0, x_tilt_deg
    ours, other = (wedge.energy_in_wedge(volume, *given, device) for device in ("cpu", "cpu:0"))
    assert 0.2 < ours < 0.9 and other == pytest.approx(ours, rel=1e-5)
    ours, other = (wedge.measured_only(volume, *given, device=device) for device in ("cpu", "cpu:0"))
    np.testing.assert_allclose(other, ours, atol=1e-5)
    assert wedge.energy_in_wedge(other, *given, "cpu:0") < 0.3 * wedge.energy_in_wedge(volume, *given)


@pytest.mark.parametrize("words", [("--method", "fbp", "--ctf", "2.0"), ("--method", "sirt", "--iterations", "3")])
def test_a_tomogram_made_on_a_device_is_that_of_the_cpu(tmp_path, raw, words, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(operations, "has_triton", lambda device: False)
    write_stack(tmp_path / "ts.mrc", raw, 10.0)
    write_alignment(tmp_path, "ts", alignment("bicubic", 4.0), thickness_px=20, stack="ts.mrc")
    made, said = [], []
    for name in ("cpu", "cpu:0"):  # the latter goes all the ways of a GPU
        monkeypatch.setattr(_recon_run, "choose_several", lambda *asked, name=name: [Device(name, "")])
        out = tmp_path / f"{name[-1]}.mrc"
        given = [str(tmp_path / "ts.mrc"), str(tmp_path / "ts.xf"), "-o", str(out), "--thickness", "12"]
        result = CliRunner().invoke(main, [*given, "--contrast", "positive", *words])
        assert result.exit_code == 0, result.output
        made.append(read_volume(out)[0])
        said.append(json.loads((tmp_path / f"{name[-1]}.json").read_text())["all"]["wedge_energy"])
    assert made[0].std() > 0 and said[1] == pytest.approx(said[0], rel=1e-3)
    np.testing.assert_allclose(made[1], made[0], atol=2e-4 * np.abs(made[0]).max())
