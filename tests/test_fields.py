"""Fields: compiled kernels against float64 torch, on lattices and at points, and what fits rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.fields import Adam, lattice_axes, load_field, make_field
from inrtomo.fields.network import SirenField

BOX = (-11.0, 14.0, -9.0, 21.0, -6.0, 5.0)


@dataclass(frozen=True)
class Lattice:
    spacing: float
    shape: tuple[int, int, int]
    origin: tuple[float, float, float]


LATTICES = [
    Lattice(1.0, (12, 26, 31), (-6.0, -11.0, -9.0)),  # the vertices of the finest level
    Lattice(1.0, (5, 7, 40), (-7.3, -13.2, -12.6)),  # reaches out of the box
    Lattice(2.7, (4, 6, 9), (-4.0, -9.0, -8.0)),
    Lattice(0.31, (3, 5, 150), (-1.0, 2.0, -15.0)),  # several points a cell, more than one block, past the box
]
FIELDS: dict[str, dict[str, Any]] = {
    "hash": {"kind": "hash", "levels": 4, "features": 2},
    "collisions": {"kind": "hash", "levels": 4, "features": 2, "log2_table": 8},
    "odd sizes": {"kind": "hash", "levels": 3, "features": 3, "width": 7, "hidden": 2, "growth": 1.6},
    "linear": {"kind": "hash", "levels": 3, "features": 1, "decoder": "linear"},
    "voxel": {"kind": "voxel", "levels": 4},
}


def pair(name, scale=0.3):
    """The same field on both backends, with parameters that matter everywhere."""
    made = [
        make_field(box=BOX, finest_px=1.0, seed=3, scale=scale, backend=b, **FIELDS[name]) for b in ("cpu", "reference")
    ]
    values = np.random.default_rng(0).normal(scale=0.6, size=made[0].parameters().size).astype(np.float32)
    for field in made:
        field.parameters()[:] = values
    return made


def assert_close(fast, exact, tolerance=2e-5):
    assert np.abs(fast - exact).max() <= tolerance * np.abs(exact).max()


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("lattice", LATTICES, ids=lambda s: f"spacing {s.spacing}")
def test_lattice_density_and_gradients_equal_the_reference(name, lattice):
    fast, exact = pair(name)
    rng = np.random.default_rng(1)
    cap = rng.integers(0, 6, size=lattice.shape[:2])
    grad = rng.normal(size=lattice.shape).astype(np.float32)
    for active, level_cap in ((None, None), (2.4, None), (3, cap)):
        densities = []
        for field in (fast, exact):
            field.zero_grad()
            densities.append(field.lattice(lattice, active, offset=(0.2, -0.1, 0.3), level_cap=level_cap))
            field.backward_lattice(grad)
        assert_close(*densities)
        for group in fast.groups.values():
            if np.any(exact.grad[group]):
                assert_close(fast.grad[group], exact.grad[group])
            else:
                assert not np.any(fast.grad[group])


@pytest.mark.parametrize("name", FIELDS)
def test_point_density_and_gradients_equal_the_reference(name):
    fast, exact = pair(name)
    rng = np.random.default_rng(2)
    xyz = rng.uniform((-15, -12, -8), (18, 25, 8), size=(333, 3)).astype(np.float32)
    grad = rng.normal(size=len(xyz)).astype(np.float32)
    for active in (None, 1.5):
        results = []
        for field in (fast, exact):
            field.zero_grad()
            results.append((field.points(xyz, active), field.backward_points(grad), field.grad.copy()))
        for a, b in zip(*results, strict=True):
            assert_close(a, b, 1e-4)


@pytest.mark.parametrize("kind", ["hash", "mlp"])
def test_gradients_by_finite_differences(kind):
    field = make_field(kind, BOX, 2.0, levels=3, features=4, seed=1, width=8, backend="reference")
    rng = np.random.default_rng(5)
    field.parameters()[:] += rng.normal(scale=0.3, size=field.parameters().size).astype(np.float32)
    xyz = rng.uniform(-5, 5, size=(20, 3)).astype(np.float32)
    grad = rng.normal(size=20).astype(np.float32)
    field.points(xyz)
    slope = field.backward_points(grad)
    step = 1e-2
    for axis in range(3):
        move = np.eye(3, dtype=np.float32)[axis] * step
        numeric = (field.points(xyz + move) - field.points(xyz - move)) * grad / (2 * step)
        close = np.abs(numeric - slope[:, axis]) < 0.03 * np.abs(slope).max()
        assert close.mean() > 0.85  # a few points cross a kink (cell face or ReLU)
    direction = rng.normal(size=field.parameters().size).astype(np.float32)
    start = field.parameters().copy()
    values = []
    for sign in (1, -1):
        field.parameters()[:] = start + sign * 1e-3 * direction
        values.append(float((field.points(xyz).astype(np.float64) * grad).sum()))
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(field.grad @ direction), rel=0.02)


def test_sinusoidal_network_starts_with_phases_of_unit_spread_and_has_its_gradients():
    box = (-32.0, 32.0, -32.0, 32.0, -8.0, 8.0)
    field = make_field("siren", box, 1.0, seed=0, width=64)
    assert isinstance(field, SirenField)
    rng = np.random.default_rng(5)
    xyz = rng.uniform(-7, 7, size=(400, 3)).astype(np.float32)
    value = xyz / 32
    for k, (matrix, offsets) in enumerate(field.decoder.layers(field.parameters())[:-1]):
        phase = 30 * value @ matrix.T
        if k > 0:
            assert phase.std() == pytest.approx(1.0, abs=0.15)
        value = np.sin(phase + 30 * offsets)
    grad = rng.normal(size=len(xyz)).astype(np.float32)
    field.points(xyz)
    slope = field.backward_points(grad)
    for axis in range(3):
        move = np.eye(3, dtype=np.float32)[axis] * 0.05
        numeric = (field.points(xyz + move) - field.points(xyz - move)) * grad / 0.1
        np.testing.assert_allclose(numeric, slope[:, axis], atol=0.03 * np.abs(slope).max())


@pytest.mark.parametrize("kind", ["hash", "voxel", "mlp", "siren"])
def test_lattice_and_points_agree(kind):
    field = make_field(kind, BOX, 1.0, levels=3, features=2, seed=4, initial=0.2)
    field.parameters()[:] *= 3
    spec = LATTICES[2]
    grid = np.meshgrid(*lattice_axes(spec), indexing="ij")
    xyz = np.stack([grid[1].ravel(), grid[2].ravel(), grid[0].ravel()], axis=1)
    np.testing.assert_allclose(field.lattice(spec).ravel(), field.points(xyz), rtol=2e-4)


@pytest.mark.parametrize("kind", ["hash", "voxel", "mlp", "siren"])
def test_starts_at_the_initial_density_and_is_repeatable(kind):
    first, second, other = (make_field(kind, BOX, 1.0, levels=4, seed=s, initial=0.05, scale=0.5) for s in (7, 7, 8))
    rho = first.lattice(LATTICES[0])
    assert np.all(rho >= 0)
    assert rho.mean() == pytest.approx(0.05, rel=0.3)
    np.testing.assert_array_equal(rho, second.lattice(LATTICES[0]))
    assert np.any(first.parameters() != other.parameters())


def test_gradients_do_not_depend_on_the_number_of_threads():
    import numba

    threads = numba.get_num_threads()
    field = pair("collisions")[0]
    grad = np.random.default_rng(0).normal(size=LATTICES[0].shape).astype(np.float32)
    sums = []
    for count in {1, threads}:
        numba.set_num_threads(count)
        field.zero_grad()
        field.lattice(LATTICES[0])
        field.backward_lattice(grad)
        sums.append(field.grad.copy())
    numba.set_num_threads(threads)
    np.testing.assert_array_equal(sums[0], sums[-1])


def test_levels_that_are_off_neither_act_nor_learn():
    field = pair("hash")[0]
    before = field.lattice(LATTICES[0], 2)
    field.parameters()[field.groups["level3"]] += 1.0
    np.testing.assert_array_equal(before, field.lattice(LATTICES[0], 2))
    field.backward_lattice(np.ones_like(before))
    assert not np.any(field.grad[field.groups["level2"]])
    assert np.any(field.grad[field.groups["level1"]])
    assert field.active_groups(2) == ["level0", "level1", "decoder"]


@pytest.mark.parametrize(("kind", "rate"), [("hash", 0.03), ("voxel", 0.1), ("mlp", 2e-3), ("siren", 1e-3)])
def test_fits_a_blob(kind, rate):
    lattice = Lattice(1.0, (12, 16, 16), (-6.0, -8.0, -8.0))
    z, x, y = np.meshgrid(*lattice_axes(lattice), indexing="ij")
    target = np.exp(-((z - 1) ** 2 + (x + 2) ** 2 + (y - 3) ** 2) / 8).astype(np.float32)
    field = make_field(kind, (-8, 7, -8, 7, -6, 5), 1.0, levels=3, seed=0, initial=0.05)
    adam = Adam(field.groups, field.rates(rate))
    for _ in range(200):
        field.zero_grad()
        residual = field.lattice(lattice) - target
        field.backward_lattice(residual)
        adam.step(field.parameters(), field.grad)
    assert np.corrcoef(field.lattice(lattice).ravel(), target.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("kind", ["hash", "voxel", "mlp", "siren"])
def test_saves_and_loads_without_pickles(kind, tmp_path):
    field = make_field(kind, BOX, 2.0, levels=3, seed=2)
    field.save(tmp_path / "field.npz")
    again = load_field(tmp_path / "field.npz")
    np.testing.assert_array_equal(field.parameters(), again.parameters())
    with np.load(tmp_path / "field.npz", allow_pickle=False) as archive:
        assert set(archive) == {"parameters", "config"}
    other = make_field(kind, BOX, 1.0, levels=3, seed=2)
    with pytest.raises(ValueError, match="another configuration"):
        other.load_state_dict(field.state_dict())
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="bad.npz"):
        load_field(tmp_path / "bad.npz")


def test_adam_equals_torch_and_counts_each_group():
    import torch

    rng = np.random.default_rng(0)
    start = rng.normal(size=50).astype(np.float32)
    gradients = rng.normal(size=(6, 50)).astype(np.float32)
    groups = {"a": slice(0, 20), "b": slice(20, 50)}
    adam = Adam(groups, {"a": 0.1, "b": 0.03}, beta2=0.99, epsilon=1e-8)
    mine = start.copy()
    theirs = [torch.tensor(start[groups[g]], requires_grad=True) for g in groups]
    reference = torch.optim.Adam(
        [{"params": [theirs[0]], "lr": 0.1}, {"params": [theirs[1]], "lr": 0.03}], betas=(0.9, 0.99), eps=1e-8
    )
    for k, gradient in enumerate(gradients):
        late = k < 3  # group b joins later and must behave as if it had just started
        adam.step(mine, gradient, ["a"] if late else None)
        theirs[0].grad = torch.tensor(gradient[groups["a"]])
        theirs[1].grad = None if late else torch.tensor(gradient[groups["b"]])
        reference.step()
    expected = np.concatenate([t.detach().numpy() for t in theirs])
    np.testing.assert_allclose(mine, expected, atol=2e-6)


def test_coarse_levels_step_further_but_not_too_far():
    rates = make_field("voxel", BOX, 1.0, levels=6).rates(0.1, active_levels=5)
    assert rates["level4"] == rates["level5"] == pytest.approx(0.1)
    assert rates["level3"] == pytest.approx(0.2)
    assert rates["level0"] == rates["level1"] == pytest.approx(0.4)


def test_levels_behind_a_decoder_share_one_rate():
    rates = make_field("hash", BOX, 1.0, levels=6).rates(0.03)
    assert {rates[f"level{k}"] for k in range(6)} == {0.03}


def test_a_new_hash_field_adds_its_features_up():
    field = make_field("hash", BOX, 1.0, levels=3, features=2, scale=1.0, initial=0.5)
    level = field.groups["level1"]
    step = 1e-2
    before = field.lattice(LATTICES[0])
    field.parameters()[level] += step
    argument = np.log(np.expm1(field.lattice(LATTICES[0]))) - np.log(np.expm1(before))
    np.testing.assert_allclose(argument, step, rtol=0.5)
