"""Levelling: slopes, height and thickness are found, and no raw pixel moves."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.align.level import Level, centred_on_views, find_level, levelled, translated
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation, rotation_about_x
from inrtomo.projection import Lattice


def slab(
    slope_x: float, slope_y: float, height: float, thickness: float, noise: float = 0.0
) -> tuple[np.ndarray, Lattice]:
    """Blobs of density strewn evenly in a tilted slab, ``[z, x, y]`` at 4 px."""
    lattice = Lattice.covering(150, 150, 70, 4.0)
    rng = np.random.default_rng(3)
    z, x, y = (o + lattice.spacing * np.arange(n) for o, n in zip(lattice.origin, lattice.shape, strict=True))
    middle = height + slope_x * x[:, None] + slope_y * y[None, :]
    inside = np.abs(z[:, None, None] - middle) < thickness / 2 * np.sqrt(1 + slope_x**2 + slope_y**2)
    density = inside * (rng.random(lattice.shape) < 0.2) * rng.random(lattice.shape) + noise * rng.random(lattice.shape)
    return density.astype(np.float32), lattice


@pytest.mark.parametrize(("slope_x", "slope_y", "height"), [(0.0, 0.0, 0.0), (0.1, -0.05, 9.0), (-0.15, 0.12, -12.0)])
def test_finds_a_tilted_slab(slope_x: float, slope_y: float, height: float) -> None:
    density, lattice = slab(slope_x, slope_y, height, 60.0, noise=0.03)
    found = find_level(density, lattice, (128, 128))
    assert found.slope_x == pytest.approx(slope_x, abs=0.005)
    assert found.slope_y == pytest.approx(slope_y, abs=0.005)
    assert found.height_px == pytest.approx(height, abs=0.6)
    assert 57.0 < found.thickness_px < 72.0  # room for surfaces that taper off, which this slab has not


def test_one_bead_does_not_tilt_the_specimen() -> None:
    density, lattice = slab(0.05, 0.0, 0.0, 60.0)
    density[3:6, 10:13, 10:13] = 100.0
    found = find_level(density, lattice, (128, 128))
    assert found.slope_x == pytest.approx(0.05, abs=0.01)


def test_nothing_in_the_density() -> None:
    _, lattice = slab(0, 0, 0, 60.0)
    found = find_level(np.zeros(lattice.shape, np.float32), lattice, (128, 128))
    assert (found.height_px, found.slope_x, found.slope_y, found.is_found) == (0, 0, 0, False)
    density, lattice = slab(0, 0, 0, 60.0)
    assert find_level(density, lattice, (128, 128)).is_found


def test_a_density_that_fills_its_lattice_from_end_to_end() -> None:
    """Columns that are the same at every height: haze, of which no height, slope or thickness can be told."""
    _, lattice = slab(0, 0, 0, 60.0)
    columns = np.random.default_rng(0).random(lattice.shape[1:]) > 0.5
    density = np.broadcast_to(columns, lattice.shape).astype(np.float32)
    found = find_level(density, lattice, (128, 128))
    assert not found.is_found and found.thickness_px == pytest.approx(lattice.spacing * lattice.shape[0])


@pytest.fixture
def alignment() -> Alignment:
    rng = np.random.default_rng(1)
    tilt = np.arange(-60.0, 61.0, 10.0)
    n = len(tilt)
    nodes = np.linspace(-128, 128, 5)
    return Alignment(
        tilt,
        np.stack([axis_rotation(85 + a) for a in rng.normal(size=n)]),
        rng.normal(size=(n, 2)) * 10,
        (256, 256),
        warp=LocalWarp(nodes, nodes, 0.5 * rng.normal(size=(n, 5, 5, 2))),
    )


def rotation_about_y(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def test_levelling_moves_no_raw_pixel(alignment: Alignment) -> None:
    level = Level(7.0, 0.08, -0.05, 60.0)
    new = levelled(alignment, level)
    points = np.random.default_rng(2).uniform(-80, 80, (50, 3))
    turn = rotation_about_y(level.tilt_offset_deg) @ rotation_about_x(level.x_tilt_deg)
    old = points @ turn.T + [0, 0, level.height_px]
    for tilt in range(alignment.n_tilts):
        np.testing.assert_allclose(new.specimen_to_raw(tilt, points), alignment.specimen_to_raw(tilt, old), atol=0.03)
        np.testing.assert_allclose(
            new.without_warp().specimen_to_raw(tilt, points),
            alignment.without_warp().specimen_to_raw(tilt, old),
            atol=1e-9,
        )


def test_levelled_specimen_is_level(alignment: Alignment) -> None:
    """Points of the middle plane of the old frame have z = 0 in the new one."""
    level = Level(7.0, 0.08, -0.05, 60.0)
    turn = rotation_about_y(level.tilt_offset_deg) @ rotation_about_x(level.x_tilt_deg)
    x, y = np.random.default_rng(4).uniform(-100, 100, (2, 20))
    plane = np.stack([x, y, level.height_px + level.slope_x * x + level.slope_y * y], axis=1)
    new = (plane - [0, 0, level.height_px]) @ turn  # rows times the matrix: its inverse
    np.testing.assert_allclose(new[:, 2], 0, atol=1e-9)


def test_moving_a_warp_there_and_back(alignment: Alignment) -> None:
    back = translated(translated(alignment, (9.0, -6.0, 4.0)), (-9.0, 6.0, -4.0))
    points = np.random.default_rng(5).uniform(-80, 80, (50, 3))
    for tilt in range(alignment.n_tilts):
        np.testing.assert_allclose(
            back.specimen_to_raw(tilt, points), alignment.specimen_to_raw(tilt, points), atol=0.06
        )


def test_centred_on_what_the_images_show(alignment: Alignment) -> None:
    far = alignment.translated((40.0, -25.0, 0.0))
    centred, _ = centred_on_views(far)
    assert np.abs(np.median(centred.shift_px[:, 1])) < 1e-9
    cosine = np.cos(np.deg2rad(centred.tilt_deg))
    assert np.abs(np.median(centred.shift_px[:, 0] / cosine)) < 1e-9
