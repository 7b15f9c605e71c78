"""The measured region of Fourier space: against closed forms, plane waves, and a reconstruction that must lie in it."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.geometry import rotation_about_x
from inrtomo.reconstruct import wedge
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.reconstruct.wedge import crowther_frequency, energy_in_wedge, measured_only, measured_region
from tests.alignment_phantom import blob_series

TILTS = np.arange(-60.0, 61.0, 3.0)
DENSE = np.linspace(-60.0, 60.0, 601)  # no gaps: the double wedge
SHAPE = (48, 20, 64)


def noise(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def wave(shape: tuple[int, int, int], cycles: tuple[int, int, int]) -> np.ndarray:
    """Plane wave with whole numbers of cycles (z, y, x) in a box."""
    phase = sum(
        2 * np.pi * c * np.arange(n).reshape([-1 if k == axis else 1 for k in range(3)]) / n
        for axis, (n, c) in enumerate(zip(shape, cycles, strict=True))
    )
    return np.cos(phase).astype(np.float32)


def test_crowther_frequency_of_two_tilts():
    assert crowther_frequency(np.array([0.0, 2.0]), 50) == pytest.approx(
        np.cos(np.deg2rad(2)) / (50 * np.deg2rad(2)), rel=1e-6
    )
    with pytest.raises(ValueError, match="two different tilt angles"):
        crowther_frequency(np.array([5.0, 5.0]), 50)


@pytest.mark.parametrize("x_tilt", [0.0, 20.0])
def test_white_noise_has_the_wedge_s_share_of_energy(x_tilt):
    volume = noise((48, 48, 48))
    share = energy_in_wedge(volume, DENSE, thickness_px=240, x_tilt_deg=x_tilt)
    # thin slices: the wedge of +-30 deg about kz cuts two triangles out of the square of frequencies
    assert x_tilt or share == pytest.approx(np.tan(np.deg2rad(30)) / 2, abs=0.015)
    region = measured_region(volume.shape, DENSE, thickness_px=240, x_tilt_deg=x_tilt)
    count = np.r_[1, np.full(23, 2), 1]  # of conjugates
    assert share == pytest.approx(1 - np.average(region.mean(axis=(0, 1)), weights=count), abs=0.005)
    thick = energy_in_wedge(volume, DENSE, x_tilt_deg=x_tilt)
    assert 0.9 * share < thick < share  # what the blur of a thin specimen adds to the slices is no longer missing


def test_gaps_open_beyond_the_crowther_frequency():
    nz, nx = 96, 256
    region = measured_region((nz, 1, nx), np.arange(-60.0, 61.0, 6.0))[:, 0]
    kz, kx = np.meshgrid(np.fft.fftfreq(nz), np.fft.rfftfreq(nx), indexing="ij")
    radius, angle = np.hypot(kz, kx), np.rad2deg(np.abs(np.arctan2(kz, kx)))
    limit = crowther_frequency(np.arange(-60.0, 61.0, 6.0), nz)
    within = region[(radius > 0) & (radius < 0.95 * limit) & (angle < 60)]
    assert within.min() == 1.0
    near_zero = (radius > 3 / (nz * np.deg2rad(6))) & (angle < 10)
    assert region[near_zero].min() == 0.0 and region[near_zero].max() == 1.0
    # a slab's Fourier slices stay as thick: far out the measured part of a ring falls as 1 / k
    assert region[near_zero & (radius > 0.45)].mean() < 0.8 * region[near_zero & (radius < 0.4)].mean()


@pytest.mark.parametrize(
    ("cycles", "seen"),
    # the tilt of +45 deg is the slice kz = kx tan 45: it holds (kz, kx) = (12, 12) cycles in a cube, not (12, -12)
    [((12, 0, 12), True), ((12, 5, 12), True), ((12, 0, -12), False), ((12, 0, 0), False), ((0, 7, 0), True)],
)
def test_a_wave_is_kept_if_its_slice_was_measured(cycles, seen):
    volume = wave((48, 48, 48), cycles)
    tilts = np.array([0.0, 45.0])
    assert energy_in_wedge(volume, tilts) == pytest.approx(0.0 if seen else 1.0, abs=1e-5)
    np.testing.assert_allclose(measured_only(volume, tilts), volume if seen else 0 * volume, atol=1e-5)


def test_x_tilt_turns_the_region_with_the_specimen():
    """A wave along the slice normal's turned direction: unmeasured with the right sign of the x-tilt only."""
    a = np.rad2deg(np.arctan(0.5))
    along_z = rotation_about_x(a).T @ [0, 0, 1]  # the microscope's z in the levelled specimen
    cycles = np.round(along_z / np.abs(along_z).max() * 16).astype(int)
    volume = wave((64, 64, 64), (cycles[2], cycles[1], cycles[0]))
    assert energy_in_wedge(volume, TILTS, x_tilt_deg=a) > 0.99
    single = np.array([0.0])
    turned = rotation_about_x(a).T @ [0, 1, 0]
    cycles = np.round(turned / np.abs(turned).max() * 16).astype(int)
    inside = wave((64, 64, 64), (cycles[2], cycles[1], cycles[0]))
    assert energy_in_wedge(inside, single, x_tilt_deg=a) < 0.01
    assert energy_in_wedge(inside, single, x_tilt_deg=-a) > 0.99


def test_back_projection_lies_in_the_measured_region():
    images, truth = blob_series(size=(96, 48), tilts=TILTS, noise_sd=0.3)
    volume = fbp_volume(images, truth, 48)
    assert energy_in_wedge(volume, TILTS) < 0.03
    assert energy_in_wedge(volume, TILTS + 60) > 0.25  # the same, believed to be tilted elsewhere
    kept = measured_only(volume, TILTS)
    assert np.corrcoef(kept.ravel(), volume.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("x_tilt", [0.0, 7.0])
def test_restriction_is_a_projection(x_tilt):
    volume = noise() + 3
    once = measured_only(volume, TILTS, x_tilt_deg=x_tilt)
    twice = measured_only(once, TILTS, x_tilt_deg=x_tilt)
    assert energy_in_wedge(once, TILTS, x_tilt_deg=x_tilt) < 0.04
    assert np.std(twice - once) < 0.08 * np.std(once)  # what lies on the soft edge
    assert once.mean() == pytest.approx(volume.mean(), rel=1e-4)
    region = measured_region(SHAPE, TILTS, x_tilt_deg=x_tilt)
    change = np.abs(np.fft.rfftn(twice - once, axes=(0, 1, 2)))
    sharp = np.broadcast_to((region == 0) | (region == 1), change.shape).copy()
    sharp[..., [0, -1]] = False  # planes of their own conjugates: at Nyquist two frequencies are one component
    assert change[sharp].max() < 1e-4 * change.max()


def test_rows_may_be_treated_on_their_own():
    volume = noise()
    whole = measured_only(volume, TILTS)
    parts = [measured_only(volume[:, rows], TILTS) for rows in (slice(0, 7), slice(7, 20))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    same = volume.copy()
    assert measured_only(same, TILTS, overwrite=True) is same
    np.testing.assert_allclose(same, whole, atol=1e-6)


def test_region_is_physical():
    """The same specimen at half the voxel size: the same region where both have components."""
    coarse = measured_region((24, 1, 32), TILTS, voxel_px=2.0)
    fine = measured_region((48, 1, 64), TILTS, voxel_px=1.0)
    np.testing.assert_allclose(fine[:12, :, :16], coarse[:12, :, :16])
    thin = measured_region((48, 1, 64), TILTS, thickness_px=24.0)
    assert thin.mean() > fine.mean()


def test_constant_volume_has_no_energy():
    assert energy_in_wedge(np.full((8, 8, 8), 3, np.float32), TILTS) == 0.0


@pytest.mark.parametrize("x_tilt", [0.0, 7.0])
def test_parts_make_the_whole(monkeypatch, x_tilt):
    """Bounded memory changes nothing: against one transform of the whole box."""
    volume = noise((20, 24, 27)) + 2
    spectrum = np.fft.rfftn(volume, axes=(0, 1, 2))
    region = measured_region(volume.shape, TILTS, x_tilt_deg=x_tilt)
    whole = np.fft.irfftn(spectrum * region, volume.shape, axes=(0, 1, 2))
    energy = energy_in_wedge(volume, TILTS, x_tilt_deg=x_tilt)
    monkeypatch.setattr(wedge, "PART_BYTES", 32 * 20 * 24 * 5)
    np.testing.assert_allclose(measured_only(volume, TILTS, x_tilt_deg=x_tilt), whole, atol=2e-5)
    assert energy_in_wedge(volume, TILTS, x_tilt_deg=x_tilt) == pytest.approx(energy, rel=1e-5)
