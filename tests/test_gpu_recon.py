"""What `inr-recon` does before and after its methods, in torch on the CPU against numpy, numba and scipy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner

from inrtomo.align.joint import JointFit, standardised
from inrtomo.align.prepare import PrepareSettings
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.commands import _recon_run
from inrtomo.commands._aligned_stack import read_aligned_stack
from inrtomo.commands._tomogram_run import without_unusable
from inrtomo.commands.recon import main
from inrtomo.ctf import Defoci
from inrtomo.device import Device
from inrtomo.geometry import axis_rotation
from inrtomo.gpu import fit, motion, operations, share
from inrtomo.gpu import resample as gpu
from inrtomo.io.alignment_files import write_alignment
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.projection import Lattice
from inrtomo.reconstruct import ctf_correction, rays, wedge
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.fbp import FbpSettings, filtered_lines
from inrtomo.reconstruct.field import FieldFit
from inrtomo.reconstruct.filters import RadialFilter
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.prepared import other_images, prepared_tilts
from inrtomo.reconstruct.rays import Rays

SIZE, TILTS = (61, 48), np.arange(-60.0, 61, 20)  # x, y
DEVICE = "cpu:0"  # torch's other name of the CPU, which goes all the ways of a GPU


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
    for device in ("cpu", DEVICE):
        with filtered_lines(
            raw.__getitem__, alignment(interpolation, x_tilt_deg), replace(settings, device=device)
        ) as lines:
            made.append(lines.lines.copy())
    ours, other = made
    assert ours.shape == other.shape and ours.std() > 0.05
    np.testing.assert_allclose(other, ours, atol=1e-5 * np.abs(ours).max())


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("restore", [False, True])
def test_prepared_tilts_are_the_same(raw, bin, restore):
    other = Source("", raw.__getitem__, alignment(), lambda tilt: raw[tilt][::-1])
    settings, made = PrepareSettings(restore=restore, defocus_A=20000.0), []
    for device in ("cpu", DEVICE):
        tilts = prepared_tilts(other, bin, settings, device=device)
        checks = other_images(other, tilts, settings, device)
        assert checks is not None
        made.append((tilts, checks))
    (ours, checks), (found, other_checks) = made[0], made[1]
    assert ours.images.std() > 0.5 and ours.unit < 0
    for one, two in ((ours.images, found.images), (checks, other_checks)):
        np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max())
    np.testing.assert_array_equal(found.weight, ours.weight)
    assert found.unit == pytest.approx(ours.unit, rel=1e-5) and found.prepared.notes == ours.prepared.notes


@pytest.mark.parametrize("interpolation", [None, "bilinear", "bicubic"])
def test_pixels_see_the_same_rays(interpolation, monkeypatch):
    monkeypatch.setattr(motion, "PIXELS_AT_ONCE", 1000)
    given = alignment(interpolation, 5.0), SIZE, 1, 16.0, (-12.0, 6.0)
    ours, other = (Rays(*given, device=device) for device in ("cpu", DEVICE))
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
def test_the_transfer_function_is_undone_alike(mode, angle):
    size, rng = (120, 96), np.random.default_rng(0)
    image = rng.normal(20, 3, size[::-1]).astype(np.float32)
    given = Alignment.identity(np.array([angle]), size, 30.0, 4.0)
    defoci = Defoci(np.array([3e4]), np.array([800.0]), np.array([20.0]), np.zeros(1))
    ours, other = (
        ctf_corrected(lambda tilt: image, given, defoci, mode, device=device)(0) for device in ("cpu", DEVICE)
    )
    if angle:
        assert len(ctf_correction._Series.of(given, defoci, 1, None, 300.0, 2.7, 0.07).view(0).windows) > 3
    # where the function is zero to rounding its sign may be either
    assert np.linalg.norm(other - ours) < 1e-3 * np.linalg.norm(ours - ours.mean()) and ours.std() > 0.05
    assert np.linalg.norm(ours - image) > 0.3 * np.linalg.norm(image - image.mean())


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


def test_a_volume_is_laid_level_alike(monkeypatch):
    monkeypatch.setattr(gpu, "PIXELS_AT_ONCE", 1000)
    monkeypatch.setattr(gpu, "VOXELS_AT_ONCE", 3000)
    lattice = Lattice(2.0, (12, 30, 26), (-11.0, -29.0, -25.0))
    volume = np.random.default_rng(0).normal(size=lattice.shape).astype(np.float32)
    given = volume, lattice, 6.0, (10, 20, 24), 2.0, range(3, 17)
    ours, other = (rays.level_volume(*given, device) for device in ("cpu", DEVICE))
    assert ours.shape == other.shape == (10, 14, 24) and ours.std() > 0.5
    np.testing.assert_allclose(other, ours, atol=1e-5)
    # beyond the faces the outermost values go on
    thick = rays.level_volume(volume, lattice, 6.0, (16, 24, 24), 2.0)
    np.testing.assert_allclose(
        rays.level_volume(volume, lattice, 6.0, (16, 24, 24), 2.0, device=DEVICE), thick, atol=1e-5
    )


@pytest.mark.parametrize("x_tilt_deg", [0.0, 7.0])
def test_what_no_tilt_has_measured_is_the_same(x_tilt_deg, monkeypatch):
    monkeypatch.setattr(wedge, "PART_BYTES", 2**18)
    monkeypatch.setattr("inrtomo.gpu.wedge.VOXELS_AT_ONCE", 3000)
    volume = np.random.default_rng(0).normal(1, 1, (31, 13, 32)).astype(np.float32).transpose(1, 0, 2)  # as of Tomogram
    given = TILTS, 2.0, 20.0, x_tilt_deg
    ours, other = (wedge.energy_in_wedge(volume, *given, device) for device in ("cpu", DEVICE))
    assert 0.2 < ours < 0.9 and other == pytest.approx(ours, rel=1e-5)
    left, other_left = (wedge.measured_only(volume, *given, device=device) for device in ("cpu", DEVICE))
    np.testing.assert_allclose(other_left, left, atol=1e-5)
    assert wedge.energy_in_wedge(other_left, *given, DEVICE) < 0.3 * wedge.energy_in_wedge(volume, *given)


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "fbp", "--ctf", "2.0"),
        ("--method", "sirt", "--iterations", "3"),
        pytest.param(
            (
                "--method",
                "field",
                "--bin",
                "4",
                "--field",
                "tensor",
                "--ctf",
                "2",
                "--prior",
                "wedge,isotropic,boundary",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_tomogram_made_on_a_device_is_that_of_the_cpu(tmp_path, raw, words, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(operations, "has_triton", lambda device: False)
    monkeypatch.setattr(fit.Replayed, "__call__", lambda self, key, step: step())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (8e9, 8e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, name: None)
    write_stack(tmp_path / "ts.mrc", raw, 10.0)
    write_alignment(tmp_path, "ts", alignment("bicubic", 4.0), thickness_px=20, stack="ts.mrc")
    made, said = [], []
    for name in ("cpu", DEVICE):
        monkeypatch.setattr(_recon_run, "choose_several", lambda *asked, name=name: [Device(name, "")])
        out = tmp_path / f"{name[-1]}.mrc"
        given = [str(tmp_path / "ts.mrc"), str(tmp_path / "ts.xf"), "-o", str(out), "--thickness", "12"]
        result = CliRunner().invoke(main, [*given, "--contrast", "positive", *words])
        assert result.exit_code == 0, result.output
        made.append(read_volume(out)[0])
        said.append(json.loads((tmp_path / f"{name[-1]}.json").read_text())["all"]["wedge_energy"])
    assert made[0].std() > 0 and said[1] == pytest.approx(said[0], rel=1e-3)
    np.testing.assert_allclose(made[1], made[0], atol=2e-4 * np.abs(made[0]).max())


def test_tilts_that_hold_nothing_are_found_on_a_device(tmp_path, raw):
    blank = raw.copy()
    blank[[0, 3]] = np.random.default_rng(0).normal(100, 1e-3, (2, *raw.shape[1:]))
    write_stack(tmp_path / "ts.mrc", blank, 10.0)
    write_alignment(tmp_path, "ts", alignment(), stack="ts.mrc")
    given = read_aligned_stack(tmp_path / "ts.mrc", tmp_path / "ts.xf", None)
    for device in ("cpu", DEVICE):
        found = without_unusable(given, device)
        assert found.alignment.excluded.keys() == {0, 3} and len(found.sources) == len(given.sources) + 2
