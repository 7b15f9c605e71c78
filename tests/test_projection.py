"""The lattice projector: closed forms, exact adjoints, slopes."""

import numpy as np
import pytest

from inrtomo.projection import Lattice, back_project, project, read_at, spread_at, values_at

TILTS = np.array([-60.0, -46.0, -44.0, -30.0, 0.0, 30.0, 44.0, 46.0, 60.0])


def blob(lattice, centre_xyz, sd):
    z, x, y = np.meshgrid(
        *(o + lattice.spacing * np.arange(n) for o, n in zip(lattice.origin, lattice.shape, strict=True)), indexing="ij"
    )
    cx, cy, cz = centre_xyz
    return np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * sd**2)).astype(np.float32)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_a_blob_projects_to_its_closed_form(spacing):
    """Integral of a Gaussian along any ray: sqrt(2 pi) sd times the Gaussian of the distance from its centre."""
    lattice = Lattice.covering(60, 24, 24, spacing)
    centre, sd = (7.3, -4.6, 5.9), 4.0
    n_u = 2 * round(48 / spacing) + 1
    made = project(blob(lattice, centre, sd), lattice, TILTS, n_u) * spacing
    u = (np.arange(n_u) - (n_u - 1) / 2) * spacing
    v = lattice.origin[2] + spacing * np.arange(lattice.shape[2])
    for image, tilt in zip(made, np.deg2rad(TILTS), strict=True):
        at = centre[0] * np.cos(tilt) + centre[2] * np.sin(tilt)
        exact = np.sqrt(2 * np.pi) * sd * np.exp(
            -((u[:, None] - at) ** 2 + (v[None] - centre[1]) ** 2) / (2 * sd**2)
        )  # fmt: skip
        np.testing.assert_allclose(image, exact, atol=0.02 * spacing**2 * exact.max())
        mass = image.sum()
        assert (image * u[:, None]).sum() / mass == pytest.approx(at, abs=0.02)
        assert (image * v[None]).sum() / mass == pytest.approx(centre[1], abs=0.02)


def test_a_uniform_slab_has_its_path_length():
    lattice = Lattice.covering(200, 4, 20, 1.0)
    made = project(np.ones(lattice.shape, np.float32), lattice, TILTS, 41)
    np.testing.assert_allclose(made[:, 20, 4], lattice.shape[0] / np.cos(np.deg2rad(TILTS)), rtol=0.03)


@pytest.mark.parametrize("n_rows", [5, 33, 70])
def test_back_projection_is_the_adjoint(n_rows):
    rng = np.random.default_rng(n_rows)
    lattice = Lattice(2.0, (9, 31, n_rows), (-8.0, -30.0, -10.0))
    density = rng.normal(size=lattice.shape).astype(np.float32)
    given = rng.normal(size=(len(TILTS), 25, n_rows)).astype(np.float32)
    left = np.vdot(project(density, lattice, TILTS, 25).astype(np.float64), given)
    right = np.vdot(density.astype(np.float64), back_project(given, lattice, TILTS))
    assert left == pytest.approx(right, rel=1e-5)


def test_spreading_is_the_adjoint_of_reading():
    rng = np.random.default_rng(0)
    projections = rng.normal(size=(3, 20, 17)).astype(np.float32)
    u = rng.uniform(1, 16.9, size=(3, 11, 13)).astype(np.float32)
    v = rng.uniform(1, 13.9, size=u.shape).astype(np.float32)
    given = rng.normal(size=u.shape).astype(np.float32)
    value, _, _ = read_at(projections, u, v)
    left = np.vdot(value.astype(np.float64), given)
    right = np.vdot(projections.astype(np.float64), spread_at(given, u, v, projections.shape))
    assert left == pytest.approx(right, rel=1e-5)


def test_slopes_are_those_of_the_values():
    rng = np.random.default_rng(1)
    projections = rng.normal(size=(1, 20, 20)).astype(np.float32)
    u = rng.uniform(3, 15, size=(1, 9, 9)).astype(np.float32)
    v = rng.uniform(3, 15, size=u.shape).astype(np.float32)
    h = np.float32(1e-2)
    _, slope_u, slope_v = read_at(projections, u, v)
    by_u = (read_at(projections, u + h, v)[0] - read_at(projections, u - h, v)[0]) / (2 * h)
    by_v = (read_at(projections, u, v + h)[0] - read_at(projections, u, v - h)[0]) / (2 * h)
    np.testing.assert_allclose(slope_u, by_u, atol=2e-2)
    np.testing.assert_allclose(slope_v, by_v, atol=2e-2)


def test_outside_is_marked_and_takes_nothing():
    projections = np.ones((1, 10, 10), np.float32)
    u = np.array([[[0.5, 5.0, 8.5]]], np.float32)
    value, slope, _ = read_at(projections, u, np.full_like(u, 5.0))
    assert np.isnan(value[0, 0, [0, 2]]).all() and value[0, 0, 1] == pytest.approx(1)
    assert slope[0, 0, 0] == 0
    np.testing.assert_array_equal(values_at(projections, u, np.full_like(u, 5.0)), np.nan_to_num(value))
    assert spread_at(np.ones_like(u), u, np.full_like(u, 5.0), (1, 10, 10)).sum() == pytest.approx(1, abs=1e-5)
