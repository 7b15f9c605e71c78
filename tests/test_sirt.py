"""Iterative reconstructions: points land, equations are met, bounds hold, slabs leave no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.reconstruct.rays import Rays, level_volume
from inrtomo.reconstruct.sart_tv import SartTvSettings, sart_tv_slabs, sart_tv_volume
from inrtomo.reconstruct.sirt import SirtSettings, sirt_slabs, sirt_volume
from inrtomo.reconstruct.slabs import sections
from inrtomo.reconstruct.sweeps import Sweeps, image_levels, interleaved
from tests.test_fbp import POINTS, blob_images, position_and_height, series

WEDGE, FULL = np.arange(-60, 61, 4.0), np.arange(-90, 90, 4.0)


def small(x_tilt: float = 0.0, axis_deg: float = 3.0, noise: float = 0.0, n: int = 21):
    """Images, weights and alignment of a few blobs in a 32 x 40 view."""
    alignment = series(np.linspace(-60, 60, n), (32, 40), axis_deg, x_tilt)
    images = blob_images(alignment, 0.6 * POINTS)
    images += noise * np.random.default_rng(3).normal(size=images.shape).astype(np.float32)
    return images, np.ones_like(images), alignment


@pytest.mark.parametrize(
    "tilts, x_tilt, axis_deg, settings",
    [
        (FULL, 0.0, 3.0, SirtSettings(25, free_level=False)),
        (FULL, 4.0, 86.3, SirtSettings(25, free_level=False)),
        (FULL, 0.0, 3.0, SirtSettings(6, subsets=5, free_level=False)),
        (WEDGE, 0.0, 3.0, SirtSettings(25, nonnegative=True)),
        (WEDGE, 4.0, 3.0, SirtSettings(6, subsets=5, nonnegative=True)),
    ],
)
def test_points_land_within_two_hundredths_of_a_pixel(tilts, x_tilt, axis_deg, settings):
    alignment = series(tilts, axis_deg=axis_deg, x_tilt=x_tilt)
    images = blob_images(alignment)
    volume = sirt_volume(images, np.ones_like(images), alignment, 30, settings)
    assert volume.shape == ((30, 60, 64) if axis_deg < 45 else (30, 64, 60))
    for point in POINTS:
        found, height = position_and_height(volume, point)
        np.testing.assert_allclose(found, point, atol=0.02)
        assert 0.6 < height < 1.05


def test_binned_points_land_and_keep_their_density():
    alignment = series(FULL, (65, 61))
    points = 0.8 * POINTS[:2]
    images = blob_images(alignment, points, sigma=4.0)
    settings = SirtSettings(30, subsets=9, free_level=False, bin=2)
    volume = sirt_volume(images, np.ones_like(images), alignment, 30, settings)
    assert volume.shape == (15, 30, 32)
    for point in points:
        found, height = position_and_height(volume, point, voxel=2.0)
        np.testing.assert_allclose(found, point, atol=0.02)
        assert height == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("n_subsets", [1, 3, 21])
def test_sweeps_meet_the_equations(n_subsets):
    """The weighted error falls at every sweep of SIRT; of a density's own images little is left by any subsets."""
    images, weight, alignment = small()
    rays = Rays(alignment, alignment.image_size, 1, 20)
    every = np.arange(len(images))
    rng = np.random.default_rng(0)
    truth = rng.random(rays.lattice.shape, dtype=np.float32)
    weight = rng.random(images.shape, dtype=np.float32) * (rng.random(images.shape) > 0.1)
    sweeps = Sweeps(rays, rays.forward(truth, every), weight, np.zeros(len(images)), n_subsets)

    def error() -> float:
        left = (sweeps.images - rays.forward(sweeps.density, every)).astype(np.float64)
        return float((sweeps.pixel * left**2).sum())

    errors = [error()]
    for _ in range(12):
        sweeps.sweep()
        errors.append(error())
    assert errors[-1] < 2e-3 * errors[0]
    if n_subsets == 1:
        assert (np.diff(errors) < 0).all()


def test_column_and_row_sums_are_those_of_the_weighted_rays():
    """A constant density with weights of any size is met in one step wherever enough is seen of it."""
    images, _, alignment = small()
    rays = Rays(alignment, alignment.image_size, 1, 20)
    every = np.arange(len(images))
    paths = rays.forward(np.ones(rays.lattice.shape, np.float32), every)
    weight = np.full_like(images, 0.3)
    weight[:, 10:14, 8:12] = 0
    well_seen = rays.adjoint(weight, every) > 0.1 * 0.3 * len(images)
    assert well_seen.mean() > 0.3
    sweeps = Sweeps(rays, 2 * paths, weight, np.zeros(len(images)), 1)
    sweeps.sweep()
    np.testing.assert_allclose(sweeps.density[well_seen], 2, atol=0.03)


def test_pixels_without_weight_change_nothing():
    images, weight, alignment = small()
    weight[:, 15:20, 10:14] = 0
    weight[4] = 0
    spoilt = images.copy()
    spoilt[weight == 0] = 1e4
    spoilt[4, :5] = np.nan
    for nonnegative in (False, True):
        settings = SirtSettings(3, nonnegative=nonnegative)
        expected = sirt_volume(images, weight, alignment, 16, settings)
        np.testing.assert_allclose(sirt_volume(spoilt, weight, alignment, 16, settings), expected, atol=2e-5)


def test_bounds_hold():
    images, weight, alignment = small(noise=2.0)
    support = np.zeros((16, 40, 32), dtype=bool)
    support[4:12, 5:35] = True
    volume = sirt_volume(images, weight, alignment, 16, SirtSettings(4, nonnegative=True, support=support))
    assert volume.min() == 0 and volume.max() > 0
    assert (volume[~support] == 0).all() and (volume[support] > 0).any()
    with pytest.raises(ValueError, match="support is"):
        sirt_volume(images, weight, alignment, 20, SirtSettings(1, support=support))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_constant_of_an_image_does_not_matter(nonnegative):
    """Images as they come after their means were taken out, or with any other zero, give the same volume."""
    images, weight, alignment = small()
    moved = images + np.random.default_rng(0).normal(scale=5, size=(len(images), 1, 1)).astype(np.float32)
    settings = SirtSettings(5, nonnegative=nonnegative)
    expected = sirt_volume(images, weight, alignment, 16, settings)
    np.testing.assert_allclose(
        sirt_volume(moved, weight, alignment, 16, settings), expected, atol=1e-3 * expected.max()
    )


def test_a_nonnegative_density_finds_the_level_that_was_lost():
    images, weight, alignment = small()
    means = images.mean(axis=(1, 2))
    level = image_levels(images - means[:, None, None], weight, alignment, 20, 1, nonnegative=True)
    assert np.abs(level + means).mean() < 0.25 * means.mean()


@pytest.mark.parametrize("x_tilt, axis_deg, nonnegative", [(0.0, 3.0, True), (4.0, 86.0, False), (-4.0, 3.0, True)])
def test_slabs_leave_no_trace(x_tilt, axis_deg, nonnegative):
    """Of noisy images, which no smoothness hides: within 1e-4 of the sd everywhere, seams and interior alike."""
    alignment = series(np.linspace(-60, 60, 11), (70, 90) if axis_deg < 45 else (90, 70), axis_deg, x_tilt)
    images = blob_images(alignment)
    images += np.random.default_rng(3).normal(scale=3, size=images.shape).astype(np.float32)
    weight = (np.random.default_rng(4).random(images.shape) > 0.05).astype(np.float32)
    settings = SirtSettings(5, nonnegative=nonnegative)
    whole = sirt_volume(images, weight, alignment, 12, settings)
    little = replace(settings, memory_bytes=3.2e6 if axis_deg < 45 else 4.5e6)
    fractions: list[float] = []
    slabs = list(sirt_slabs(images, weight, alignment, 12, little, fractions.append))
    assert len(slabs) > 1
    for rows, slab in slabs:
        np.testing.assert_allclose(slab, whole[:, rows.start : rows.stop], atol=1e-4 * whole.std())
    assert fractions[-1] == 1 and (np.diff(fractions) > 0).all()
    with pytest.raises(InputError, match="--memory"):
        sirt_volume(images, weight, alignment, 12, replace(settings, memory_bytes=1e5))


def test_sections_are_those_of_the_volume():
    images, weight, alignment = small()
    settings = SirtSettings(1, memory_bytes=1.5e6)
    whole = sirt_volume(images, weight, alignment, 12, settings)
    for memory in (1, 10**9):
        slabs = sirt_slabs(images, weight, alignment, 12, settings)
        xyz = np.stack(list(sections(slabs, whole.shape, "xyz", memory)))
        np.testing.assert_array_equal(xyz, whole)
    imod = np.stack(list(sections(sirt_slabs(images, weight, alignment, 12, settings), whole.shape, "imod", 1)))
    np.testing.assert_array_equal(imod.transpose(1, 0, 2)[::-1], whole)


@pytest.mark.parametrize(
    "tilts, x_tilt, settings",
    [
        (FULL, 0.0, SartTvSettings(4, free_level=False)),
        (WEDGE, 4.0, SartTvSettings(4, nonnegative=True)),
    ],
)
def test_points_land_with_total_variation_too(tilts, x_tilt, settings):
    alignment = series(tilts, x_tilt=x_tilt)
    images = blob_images(alignment)
    volume = sart_tv_volume(images, np.ones_like(images), alignment, 30, settings)
    for point in POINTS:
        found, height = position_and_height(volume, point)
        np.testing.assert_allclose(found, point, atol=0.02)
        assert 0.75 < height < 1.05


def test_total_variation_takes_noise_from_flat_densities():
    """Of noisy images of a box: nearer to it than without the prior, its inside smoother, its step still there."""
    tilts = np.arange(-66, 67, 6.0)
    alignment = series(tilts, (48, 40))
    rays = Rays(alignment, alignment.image_size, 1, 20)
    box = np.zeros(rays.lattice.shape, np.float32)
    middle = rays.lattice.shape[1] // 2
    box[5:15, middle - 12 : middle + 12, 14:34] = 1
    truth = level_volume(box, rays.lattice, 0.0, rays.shape, 1)
    images = rays.forward(box, np.arange(len(tilts)))
    images += np.random.default_rng(0).normal(scale=4, size=images.shape).astype(np.float32)
    weight = np.ones_like(images)
    settings = SartTvSettings(8, nonnegative=True, free_level=False)
    noisy, smooth, smoother = (
        sart_tv_volume(images, weight, alignment, 20, replace(settings, variation=v)) for v in (0.0, 1.0, 3.0)
    )
    assert np.mean((smooth - truth) ** 2) < 0.6 * np.mean((noisy - truth) ** 2)
    inside = (slice(8, 12), slice(14, 26), slice(16, 32))
    assert smoother[inside].std() < smooth[inside].std() < 0.5 * noisy[inside].std()
    assert smooth[inside].mean() - smooth[8:12, 14:26, :8].mean() > 0.7


def test_slabs_with_total_variation_leave_no_trace():
    alignment = series(np.linspace(-60, 60, 9), (24, 120), x_tilt=2.0)
    images = blob_images(alignment)
    images += np.random.default_rng(3).normal(scale=3, size=images.shape).astype(np.float32)
    weight = np.ones_like(images)
    settings = SartTvSettings(6)
    whole = sart_tv_volume(images, weight, alignment, 10, settings)
    little = replace(settings, memory_bytes=2.3e6)
    slabs = list(sart_tv_slabs(images, weight, alignment, 10, little))
    assert len(slabs) > 1
    for rows, slab in slabs:
        np.testing.assert_allclose(slab, whole[:, rows.start : rows.stop], atol=1e-3 * whole.std())


def test_subsets_share_the_angles():
    tilts = np.random.default_rng(0).permutation(np.arange(-60, 61, 3.0))
    parts = interleaved(tilts, 5)
    assert sorted(np.concatenate(parts)) == list(range(41))
    for part in parts:
        assert len(part) >= 8 and np.diff(np.sort(tilts[part])).max() <= 15
    single = [tilts[part[0]] for part in interleaved(tilts, 99)]
    assert len(single) == 41 and np.abs(np.diff(single)).min() > 20
