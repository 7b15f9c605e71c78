"""Laying volumes over each other in torch on the CPU against SciPy: shifts to 0.02 voxel, values to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from inrtomo.commands.fsc import main
from inrtomo.gpu import registration as gpu
from inrtomo.io.mrc import write_volume
from inrtomo.metrics import registration
from inrtomo.metrics.alignment import RigidMotion
from inrtomo.metrics.registration import RegistrationWork, registration_work_on, rigid_between, translation_between

SHAPE = (32, 44, 37)
MOTION = RigidMotion(Rotation.from_euler("xyz", (1.5, -1.0, 3.0), degrees=True).as_matrix(), np.array([1.3, -0.7, 0.4]))
CPU, TORCH = RegistrationWork(), gpu.DeviceRegistrationWork("cpu")


@pytest.fixture(scope="module")
def fixed() -> np.ndarray:
    """Smooth random density in the middle of a box, off zero."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5) * 30
    inside = np.zeros(SHAPE)
    inside[6:-6, 8:-8, 7:-7] = 1
    return (50 + noise * gaussian_filter(inside, 2)).astype(np.float32)


def noisy(volume: np.ndarray) -> np.ndarray:
    return (volume + np.random.default_rng(1).normal(scale=0.3, size=SHAPE)).astype(np.float32)


def test_volumes_are_moved_alike(fixed, monkeypatch):
    monkeypatch.setattr(gpu, "VOXELS_AT_ONCE", 5000)
    for move in (lambda w: w.translated(fixed, np.array([1.3, -2.4, 0.2])), lambda w: w.rigidly_moved(fixed, MOTION)):
        ours, other = (work.fetched(move(work)) for work in (CPU, TORCH))
        assert np.abs(ours - fixed).max() > 1
        np.testing.assert_allclose(other, ours, atol=1e-6 * ours.max())


def test_equations_are_the_same(fixed, monkeypatch):
    monkeypatch.setattr(gpu, "VOXELS_AT_ONCE", 5000)  # three planes
    moving = noisy(fixed)
    for size in (1, 2):
        (normal, wanted), (normal_too, wanted_too) = (
            work.equations(work.binned(moving, size), work.binned(fixed, size))(MOTION) for work in (CPU, TORCH)
        )
        scale = np.sqrt(np.diag(normal))
        np.testing.assert_allclose((normal_too - normal) / np.outer(scale, scale), 0, atol=1e-5)
        np.testing.assert_allclose((wanted_too - wanted) / (scale * scale[0]), 0, atol=1e-5)
        assert scale.min() > 0


def test_the_same_shift_is_found(fixed):
    shift = np.array([2.3, -1.6, 3.2])
    moving = noisy(CPU.translated(fixed, -shift))
    ours, other = (translation_between(moving, fixed, work=work) for work in (CPU, TORCH))
    np.testing.assert_allclose(ours, shift, atol=0.05)
    np.testing.assert_allclose(other, ours, atol=0.02)


def test_the_same_motion_is_found(fixed):
    moving = noisy(CPU.rigidly_moved(fixed, MOTION))
    ours, other = (rigid_between(moving, fixed, work=work) for work in (CPU, TORCH))
    assert np.abs(ours.rotation_deg).max() > 1 and np.abs(ours.translation_px).max() > 0.5
    np.testing.assert_allclose(other.translation_px, ours.translation_px, atol=2e-3)
    np.testing.assert_allclose(other.rotation_deg, ours.rotation_deg, atol=5e-3)
    empty = [rigid_between(np.full(SHAPE, 3.0), fixed, work=work) for work in (CPU, TORCH)]
    np.testing.assert_array_equal(empty[1].rotation, empty[0].rotation)


@pytest.mark.parametrize("kind", ["translation", "rigid"])
def test_the_command_registers_on_its_device(tmp_path: Path, fixed, kind, monkeypatch):
    assert registration_work_on("cpu") is registration.ON_CPU
    for name, volume in (("a", noisy(CPU.rigidly_moved(fixed, MOTION))), ("b", fixed)):
        write_volume(tmp_path / f"{name}.mrc", volume, 10.0)
    made = []
    for work in (CPU, TORCH):
        monkeypatch.setattr(registration, "registration_work_on", lambda device, work=work: work)
        given = [str(tmp_path / "a.mrc"), str(tmp_path / "b.mrc"), "-o", str(tmp_path / "out"), "--register", kind]
        result = CliRunner().invoke(main, [*given, "--overwrite"])
        assert result.exit_code == 0, result.output
        made.append(json.loads((tmp_path / "out.json").read_text()))
    for name in ("shift_px_xyz", "rotation_deg_xyz"):
        np.testing.assert_allclose(made[1]["registration"][name], made[0]["registration"][name], atol=0.02)
    assert made[1]["resolution_A"] == pytest.approx(made[0]["resolution_A"], rel=0.01)
