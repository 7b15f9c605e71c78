"""Cells, lamellae and films: where there is matter, and where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.simulate import SimulationSettings
from inrtomo.simulate.specimen import Specimen, make_specimen, points_within

VIEW = (128, 96)
BARE = SimulationSettings(
    size=VIEW, thickness_px=40, beads=0, vesicles=0, crowding=0.05, warp_max_px=0, bead_diameter_A=60, seed=1
)


def made(seed: int = 0, **settings: object) -> Specimen:
    return make_specimen(replace(BARE, **settings), np.random.default_rng(seed))  # type: ignore[arg-type]


def over_view(field: np.ndarray) -> np.ndarray:
    """The part ``(ny, nx)`` of a specimen's map that the images show at zero tilt."""
    y, x = ((n - v) // 2 for n, v in zip(field.shape[-2:], VIEW[::-1], strict=True))
    return np.asarray(field[..., y : y + VIEW[1], x : x + VIEW[0]])


@pytest.mark.parametrize("seed", range(4))
def test_a_cells_thickness_goes_from_nothing_to_full_within_the_view(seed: int) -> None:
    cell = made(seed, specimen="cell")
    thickness = over_view(cell.shape.thickness)
    assert thickness.min() == 0 and thickness.max() == pytest.approx(40, rel=0.03)
    assert 0.05 < (thickness == 0).mean() < 0.5
    column = over_view(cell.density.sum(axis=0))
    assert np.abs(column[thickness == 0]).max() == 0 and column[thickness > 4].min() > 0
    # flat on its support: all matter above z = -T/2, wherever it is
    z = np.nonzero(cell.density.max(axis=(1, 2)) > 0.1)[0] - (len(cell.density) - 1) / 2
    assert z.min() >= -21 and z.max() <= 21


def test_a_cells_surroundings_are_empty_on_one_side_and_dense_on_the_other() -> None:
    cell = made(specimen="cell")
    column = cell.density.sum(axis=0)
    ends = sorted([column[:, :20].mean(), column[:, -20:].mean()])
    assert ends[0] == 0 and ends[1] > 3.5  # 40 px of 0.1


def test_a_cells_gold_lies_on_both_faces() -> None:
    cell = made(specimen="cell", beads=8)
    radius = 3.0
    for k, (x, y, z) in enumerate(cell.beads):
        ny, nx = cell.shape.thickness.shape
        row, column = round(y + (ny - 1) / 2), round(x + (nx - 1) / 2)
        middle, half = cell.shape.middle[row, column], cell.shape.thickness[row, column] / 2
        assert z == pytest.approx(middle + (half + radius) * (1 if k % 2 == 0 else -1), abs=0.01)
        assert cell.density[round(z + (len(cell.density) - 1) / 2), row, column] == pytest.approx(5.0, abs=0.6)
        assert abs(x) < 64 and abs(y) < 48


def test_a_lamella_is_tilted_by_ten_degrees_to_either_side_and_furrowed_along_the_beam() -> None:
    signs = set()
    for seed in range(6):
        lamella = made(seed, specimen="lamella", thickness_px=60, crowding=0)
        x, y, z = lamella.shape.normal
        assert y == 0 and np.rad2deg(np.arcsin(abs(x))) == pytest.approx(10)
        signs.add(np.sign(x))
    assert signs == {-1, 1}
    thickness = lamella.shape.thickness
    assert 0.02 < thickness.std() / 60 < 0.08 and thickness.mean() == pytest.approx(60, rel=0.03)
    # the ridges run across the tilt axis: the thickness hardly changes along x
    assert np.abs(np.diff(thickness, axis=1)).mean() < 0.2 * np.abs(np.diff(thickness, axis=0)).mean()
    level, z_of = np.nonzero(lamella.density > 0.02), np.array(lamella.density.shape)
    height = level[0] - (z_of[0] - 1) / 2
    slope = np.polyfit(level[2] - (z_of[2] - 1) / 2, height, 1)[0]
    assert np.rad2deg(np.arctan(-slope)) == pytest.approx(10 * np.sign(x), abs=1)


def test_a_films_hole_shows_its_edge_and_its_ice_thins_towards_the_middle() -> None:
    film = made(specimen="film", crowding=0)
    column, thickness = over_view(film.density.sum(axis=0)), over_view(film.shape.thickness)
    carbon = column > 1
    assert 0.05 < carbon.mean() < 0.5 and np.all(thickness[carbon] == 40)
    # 15 nm of carbon, grainy
    assert column[carbon].mean() == pytest.approx(15 * 0.35, rel=0.15) and column[carbon].std() > 0.2
    ice = thickness[~carbon]
    assert 24 <= ice.min() < 28 and ice.max() > 36


def test_test_points_fill_what_there_is_and_nothing_else() -> None:
    cell = made(specimen="cell")
    points = points_within(cell.shape, VIEW, 40)
    ny, nx = cell.shape.thickness.shape
    row, column = (np.round(points[:, k] + (n - 1) / 2).astype(int) for k, n in ((1, ny), (0, nx)))
    half, middle = cell.shape.thickness[row, column] / 2, cell.shape.middle[row, column]
    assert 100 < len(points) < 605 and (np.abs(points[:, 2] - middle) <= 0.8 * half + 1e-9).all()
    assert half.min() > 2
    tilted = made(slab_tilt_deg=(8.0, 0.0))
    inside = points_within(tilted.shape, VIEW, 40)
    assert len(inside) == 605 and np.abs(inside @ tilted.shape.normal).max() == pytest.approx(16)
