"""Deformed rays: they end where the alignment says, adjoint and integral are exact, slabs are parts of the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo import projection
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.geometry import axis_rotation, centred_coordinates, specimen_to_aligned
from inrtomo.projection import Lattice
from inrtomo.reconstruct import joseph
from inrtomo.reconstruct.rays import Rays, bin_images, level_volume

TILTS = np.arange(-60.0, 61, 12)
SIZE = (40, 34)
THICK = 18
EVERY = np.arange(len(TILTS))


def deformed(size: tuple[int, int] = SIZE, axis_deg: float = 4.0, x_tilt: float = 0.0, nodes: int = 4) -> Alignment:
    """Shifts, a rotation for every image, local motion of about a pixel."""
    rng = np.random.default_rng(2)
    linear = np.stack([axis_rotation(axis_deg + jitter) for jitter in rng.uniform(-1, 1, len(TILTS))])
    x, y = (np.linspace(-n / 2 - 8, n / 2 + 8, nodes) for n in size)
    warp = LocalWarp(x, y, rng.uniform(-1, 1, (len(TILTS), nodes, nodes, 2)))
    shift = rng.uniform(-4, 4, (len(TILTS), 2))
    return Alignment(TILTS, linear, shift, size, 10.0, warp, np.full(len(TILTS), x_tilt))


def blob_on(rays: Rays, point: np.ndarray, sigma: float) -> np.ndarray:
    """A unit Gaussian at a level specimen point (x, y, z) on the sheared lattice of the rays."""
    a = np.deg2rad(rays.x_tilt_deg)
    grid = [
        o + rays.lattice.spacing * np.arange(n) for o, n in zip(rays.lattice.origin, rays.lattice.shape, strict=True)
    ]
    z, x, v = np.meshgrid(*grid, indexing="ij")
    level_z = z * np.cos(a)
    level_y = (v - level_z * np.sin(a)) / np.cos(a)
    away = (x - point[0]) ** 2 + (level_y - point[1]) ** 2 + (level_z - point[2]) ** 2
    return np.exp(-away / (2 * sigma**2)).astype(np.float32)


@pytest.mark.parametrize("bin", [1, 2])
@pytest.mark.parametrize("axis_deg, x_tilt, y_range", [(4, 0, None), (86, 3, None), (4, 3, (-9, 6)), (45, 0, (-3, 12))])
def test_adjoint(axis_deg, x_tilt, y_range, bin):
    rng = np.random.default_rng(0)
    rays = Rays(deformed(axis_deg=axis_deg, x_tilt=x_tilt), SIZE, bin, THICK, y_range)
    density = rng.normal(size=rays.lattice.shape).astype(np.float32)
    tilts = np.array([0, 3, 9])
    made = rays.forward(density, tilts)
    images = rng.normal(size=made.shape).astype(np.float32)
    left = np.vdot(made.astype(np.float64), images)
    right = np.vdot(density.astype(np.float64), rays.adjoint(images, tilts))
    assert left == pytest.approx(right, rel=1e-5)
    assert (made[~rays.seen(tilts)] == 0).all()


@pytest.mark.parametrize("nodes", [1, 2, 4, 6])
@pytest.mark.parametrize("x_tilt", [0.0, 4.0])
@pytest.mark.parametrize("bin", [1, 2])
def test_a_blob_is_seen_where_the_alignment_says_with_its_integral(bin, x_tilt, nodes):
    size = (41, 35) if bin == 2 else SIZE
    alignment, sigma = deformed(size, x_tilt=x_tilt, nodes=nodes), 3.0 * bin
    point = np.array([5.3, -4.4, 2.6])
    rays = Rays(alignment, size, bin, 40 * bin)
    made = rays.forward(blob_on(rays, point, sigma), EVERY)
    rows, cols = made.shape[1:]
    x = centred_coordinates(cols) * bin + (cols * bin - size[0]) / 2
    y = centred_coordinates(rows) * bin + (rows * bin - size[1]) / 2
    p = np.stack(np.meshgrid(x, y), axis=-1)
    for m, tilt in enumerate(TILTS):
        at = specimen_to_aligned(point, tilt, x_tilt)
        away = ((alignment.raw_to_aligned(m, p) - at) ** 2).sum(axis=-1)
        exact = np.sqrt(2 * np.pi) * sigma * np.exp(-away / (2 * sigma**2))
        inside = rays.seen(np.array([m]))[0]
        assert inside.mean() > 0.7
        np.testing.assert_allclose(made[m][inside], exact[inside], atol=0.025 * exact.max())
        mass, true = made[m][inside], exact[inside]
        for along in (0, 1):
            shift = (mass * p[inside][:, along]).sum() / mass.sum() - (true * p[inside][:, along]).sum() / true.sum()
            assert abs(shift) < 0.02 * bin


@pytest.mark.parametrize("n_rows", [5, 300])
def test_the_projector_is_the_one_of_the_joint_fit(n_rows):
    rng = np.random.default_rng(0)
    tilts = np.array([-180.0, -120, -90, -60, -45.1, -44.9, 0, 30, 45, 60, 89.9])
    lattice = Lattice(2.0, (9, 31, n_rows), (-8.0, -30.0, 0.0))
    density = rng.normal(size=lattice.shape).astype(np.float32)
    images = rng.normal(size=(len(tilts), 25, n_rows)).astype(np.float32)
    made, expected = (p.project(density, lattice, tilts, 25) for p in (joseph, projection))
    np.testing.assert_allclose(made, expected, atol=1e-4)
    spread = projection.back_project(images, lattice, tilts)
    once = np.zeros_like(density)
    joseph.correct(once, images, lattice, tilts)
    np.testing.assert_allclose(once, spread, atol=1e-4)
    corrected, step = density.copy(), rng.random(density.shape, dtype=np.float32)
    joseph.correct(corrected, images, lattice, tilts, step, lowest=-0.5)
    np.testing.assert_allclose(corrected, np.maximum(density + step * spread, -0.5), atol=1e-4)
    received = rng.random(images.shape, dtype=np.float32)
    corrected = density.copy()
    step = (1 / np.maximum(projection.back_project(received, lattice, tilts), 2.0)).astype(np.float32)
    joseph.correct_by_means(corrected, images, received, lattice, tilts, 2.0, lowest=-0.5)
    np.testing.assert_allclose(corrected, np.maximum(density + step * spread, -0.5), atol=1e-4)


def test_rays_at_every_tilt_stay_in_the_lattice_until_they_leave_the_slab():
    rays = Rays(replace(deformed(), warp=None), SIZE, 1, THICK)
    paths = rays.forward(np.ones(rays.lattice.shape, np.float32), EVERY)
    expected = np.broadcast_to((THICK / np.cos(np.deg2rad(TILTS)))[:, None, None], paths.shape)
    seen = rays.seen(EVERY)
    np.testing.assert_allclose(paths[seen], expected[seen], rtol=0.06)


@pytest.mark.parametrize("axis_deg, x_tilt", [(4, 0), (86, 0), (30, 4)])
def test_slabs_are_parts_of_the_whole(axis_deg, x_tilt):
    alignment = deformed(axis_deg=axis_deg, x_tilt=x_tilt)
    whole, part = (Rays(alignment, SIZE, 1, THICK, y_range) for y_range in (None, (-10.0, 4.0)))
    density = np.random.default_rng(0).normal(size=whole.lattice.shape).astype(np.float32)
    first = round(part.lattice.origin[2] - whole.lattice.origin[2])
    cut = density[:, :, first : first + part.lattice.shape[2]]
    assert part.lattice.shape[:2] == whole.lattice.shape[:2] and part.lattice.shape[2] < 20
    assert whole.window == (slice(0, SIZE[1]), slice(0, SIZE[0]))
    assert x_tilt or part.window != whole.window
    made = whole.forward(density, EVERY)[:, part.window[0], part.window[1]]
    seen = part.seen(EVERY)
    np.testing.assert_allclose(part.forward(np.ascontiguousarray(cut), EVERY)[seen], made[seen], atol=2e-4)
    # the window holds every pixel that sees the slab
    p = np.stack(np.meshgrid(*(centred_coordinates(n) for n in SIZE)), axis=-1)
    v = np.stack([alignment.raw_to_aligned(m, p)[..., 1] for m in range(len(TILTS))])
    inside = (v > part.lattice.origin[2] + 1) & (v < part.lattice.origin[2] + part.lattice.shape[2] - 2)
    assert int(seen.sum()) == pytest.approx(int(inside.sum()), abs=2)


@pytest.mark.parametrize("x_tilt", [0.0, 4.0, -7.0])
@pytest.mark.parametrize("bin", [1, 2])
def test_levelled_blobs_are_where_they_were(bin, x_tilt):
    rays = Rays(deformed(x_tilt=x_tilt), SIZE, bin, 24)
    point, sigma = np.array([6.2, -7.1, 4.3]), 2.0 * bin
    volume = level_volume(blob_on(rays, point, sigma), rays.lattice, rays.x_tilt_deg, rays.shape, bin)
    assert volume.shape == rays.shape == (24 // bin, SIZE[1] // bin, SIZE[0] // bin)
    z, y, x = np.meshgrid(*(centred_coordinates(n) * bin for n in volume.shape), indexing="ij")
    exact = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(volume, exact, atol=0.01)
    rows = range(5, 9)
    part = level_volume(blob_on(rays, point, sigma), rays.lattice, rays.x_tilt_deg, rays.shape, bin, rows)
    np.testing.assert_allclose(part, volume[:, 5:9], atol=1e-5)


def test_binned_pixels_with_a_bad_one_do_not_count():
    images = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)
    images[1, 2, 3] = np.nan
    weight = np.ones_like(images)
    weight[0, 5, 7] = 0.25
    binned, least = bin_images(images, weight, 2)
    assert binned.shape == least.shape == (2, 3, 4) and np.isfinite(binned).all()
    assert least[1, 1, 1] == 0 and least[0, 2, 3] == 0.25 and least.sum() == 24 - 1 - 0.75


def test_x_tilts_that_differ_are_refused():
    alignment = replace(deformed(), x_tilt_deg=np.linspace(0, 1, len(TILTS)))
    with pytest.raises(InputError, match="x-axis tilt varies"):
        Rays(alignment, SIZE, 1, THICK)
