"""Tensor field: quadtree program, vector-matrix kernels against float64 torch, refinement that keeps the density."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from inrtomo.fields import Adam, lattice_axes, load_field, make_field
from inrtomo.fields.quadtree import DensitySpread, QuadTree
from inrtomo.fields.tensor import TensorField, adapted, boundary_points
from inrtomo.gpu import factors

BOX = (-16.0, 15.0, -9.0, 6.0, -5.0, 4.0)  # two square roots along x
MIXED = [(0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (2, 2, 0), (2, 2, 1), (2, 3, 0), (2, 3, 1)]


@dataclass(frozen=True)
class Lattice:
    spacing: float
    shape: tuple[int, int, int]
    origin: tuple[float, float, float]


LATTICES = [
    Lattice(1.0, (10, 32, 16), (-5.0, -16.0, -9.0)),
    Lattice(1.3, (5, 30, 17), (-6.2, -19.0, -12.0)),  # reaches out of the box
    Lattice(0.21, (3, 75, 80), (-1.0, -8.0, -9.1)),  # nodes of several tiles
]


def tensor(backend="cpu", features=5, tree=MIXED, seed=3, **options) -> TensorField:
    return tensor_field(BOX, levels=3, features=features, plane=5, tree=tree, seed=seed, backend=backend, **options)


def tensor_field(box, finest_px=1.0, **options: Any) -> TensorField:
    field = make_field("tensor", box, finest_px, **options)
    assert isinstance(field, TensorField)
    return field


def pair(features=5, backend="cpu"):
    """The same field on a backend and on the reference, with parameters that matter everywhere."""
    made = [tensor(name, features, scale=0.3) for name in (backend, "reference")]
    values = np.random.default_rng(0).normal(scale=0.6, size=made[0].parameters().size).astype(np.float32)
    for field in made:
        field.parameters()[:] = values
    return made


def assert_close(fast, exact, tolerance=2e-5):
    assert np.abs(fast - exact).max() <= tolerance * np.abs(exact).max()


@pytest.fixture(params=["cpu", "plain", "plain, some nodes at a time"])
def backend(request, monkeypatch):
    name, _, few = request.param.partition(",")
    if few:
        monkeypatch.setattr(factors, "VOXELS_AT_ONCE", 400)
    return name


@pytest.mark.parametrize("features", [5, 8])
@pytest.mark.parametrize("lattice", LATTICES, ids=lambda s: f"spacing {s.spacing}")
def test_lattice_density_and_gradients_equal_the_reference(features, lattice, backend):
    fast, exact = pair(features, backend)
    rng = np.random.default_rng(1)
    cap = rng.integers(0, 5, size=lattice.shape[:2])
    grad = rng.normal(size=lattice.shape).astype(np.float32)
    for level_cap in (None, cap):
        densities = []
        for field in (fast, exact):
            field.zero_grad()
            densities.append(field.lattice(lattice, offset=(0.2, -0.1, 0.3), level_cap=level_cap))
            field.backward_lattice(grad)
        assert_close(*densities)
        for group in fast.groups.values():
            assert_close(fast.grad[group], exact.grad[group], 5e-5)
    assert np.all(densities[0][cap == 0] == 0) and np.all(densities[0][cap > 0] > 0)


def test_point_density_and_gradients_equal_the_reference(backend):
    rng = np.random.default_rng(2)
    xyz = rng.uniform((-18, -11, -7), (17, 8, 6), size=(333, 3))
    grad = rng.normal(size=len(xyz)).astype(np.float32)
    results = []
    for field in pair(backend=backend):
        results.append((field.points(xyz), field.backward_points(grad), field.grad.copy()))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-4)
    outside = np.any((xyz < BOX[::2]) | (xyz > BOX[1::2]), axis=1)
    assert np.any(outside) and np.all(results[0][1][outside].min(axis=1) <= 0)


def test_gradients_by_finite_differences():
    field = pair()[0]
    rng = np.random.default_rng(5)
    xyz = rng.uniform((-15, -8, -4), (14, 5, 3), size=(60, 3))
    grad = rng.normal(size=len(xyz)).astype(np.float32)
    field.points(xyz)
    slope = field.backward_points(grad)
    step = 5e-3
    for axis in range(3):
        move = np.eye(3)[axis] * step
        numeric = (field.points(xyz + move) - field.points(xyz - move)) * grad / (2 * step)
        close = np.abs(numeric - slope[:, axis]) < 0.01 * np.abs(slope).max()
        assert close.mean() > 0.9  # a few points cross a cell's face
    spec = LATTICES[1]
    weight = rng.normal(size=spec.shape).astype(np.float32)
    cap = np.where(np.arange(spec.shape[1]) < 8, 1, 3) * np.ones((spec.shape[0], 1), int)
    field.zero_grad()
    field.lattice(spec, level_cap=cap)
    field.backward_lattice(weight)
    direction = rng.normal(size=field.parameters().size).astype(np.float32)
    start, values = field.parameters().copy(), []
    for sign in (1, -1):
        field.parameters()[:] = start + sign * 1e-3 * direction
        values.append(float((field.lattice(spec, level_cap=cap).astype(np.float64) * weight).sum()))
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(field.grad @ direction), rel=5e-3)


def test_lattice_and_points_agree(backend):
    field = pair(backend=backend)[0]
    z, x, y = np.meshgrid(*lattice_axes(LATTICES[1]), indexing="ij")
    xyz = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    assert_close(field.lattice(LATTICES[1]).ravel(), field.points(xyz))


def test_gradients_do_not_depend_on_the_number_of_threads():
    import numba

    threads, field, spec = numba.get_num_threads(), pair()[0], LATTICES[2]
    grad = np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
    sums = []
    for count in {1, threads}:
        numba.set_num_threads(count)
        field.zero_grad()
        field.lattice(spec)
        field.backward_lattice(grad)
        sums.append(field.grad.copy())
    numba.set_num_threads(threads)
    np.testing.assert_array_equal(sums[0], sums[-1])


def test_starts_at_the_initial_density_and_is_repeatable():
    first, second, other = (tensor(seed=s, initial=0.05, scale=0.5) for s in (7, 7, 8))
    rho = first.lattice(LATTICES[0])
    assert rho.mean() == pytest.approx(0.05, rel=0.1)
    assert np.all(rho > 0)
    np.testing.assert_array_equal(rho, second.lattice(LATTICES[0]))
    assert np.any(first.parameters() != other.parameters())


def test_saves_and_loads_with_its_tree(tmp_path):
    field = pair()[0]
    field.save(tmp_path / "field.npz")
    again = load_field(tmp_path / "field.npz")
    np.testing.assert_array_equal(field.lattice(LATTICES[0]), again.lattice(LATTICES[0]))
    assert json.loads(json.dumps(again.config)) == again.config
    with pytest.raises(ValueError, match="another configuration"):
        tensor(tree=None).load_state_dict(field.state_dict())


def test_region_outside_uses_nodes_of_its_own():
    field = pair()[0]
    inside, outside = (field.lattice(LATTICES[0], level_cap=np.full((10, 32), cap)) for cap in (3, 2))
    field.parameters()[field.groups["tree"]] = 0.0
    np.testing.assert_array_equal(field.lattice(LATTICES[0], level_cap=np.full((10, 32), 1)), outside)
    assert not np.allclose(inside, outside)


# the quadtree and its program


def test_tree_refuses_gaps_and_overlaps():
    tree = QuadTree.uniform((0, 8, 0, 8), 2, 1)
    assert tree.leaves == ((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
    with pytest.raises(ValueError, match="cover"):
        replace(tree, leaves=tree.leaves[1:])
    with pytest.raises(ValueError, match="overlaps"):
        replace(tree, leaves=(*tree.leaves, (2, 0, 0)))


def checkered(corner):
    """A density on 64 x 64 columns, flat but for a fine pattern in one sixteenth, whose corner is given."""
    density = np.ones((6, 64, 64), np.float32)
    i, j = corner
    density[:, i : i + 16, j : j + 16] += np.random.default_rng(0).random((6, 16, 16), dtype=np.float32)
    return Lattice(1.0, density.shape, (-2.5, 0.5, 0.5)), density


def test_the_busy_node_is_split_and_flat_ones_pay_for_it():
    tree = QuadTree.uniform((0, 64, 0, 64), 3, 1)
    spec, density = checkered((48, 0))
    spread = DensitySpread(tree, spec, density)
    assert spread.spread(np.array(tree.leaves)) == pytest.approx(
        [density[:, a : a + 32, b : b + 32].std() for a in (0, 32) for b in (0, 32)], abs=1e-6
    )
    once = tree.updated(spread, 7)
    assert once.leaves == ((1, 0, 0), (1, 0, 1), (1, 1, 1), (2, 2, 0), (2, 2, 1), (2, 3, 0), (2, 3, 1))
    twice = once.updated(DensitySpread(once, spec, density), 10)
    assert {leaf for leaf in twice.leaves if leaf[0] == 3} == {(3, 6, 0), (3, 6, 1), (3, 7, 0), (3, 7, 1)}
    # now the detail is elsewhere and there is no room: what was fine is merged
    spec, density = checkered((0, 48))
    moved = once.updated(DensitySpread(once, spec, density), 7)
    assert moved.leaves == ((1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 2), (2, 0, 3), (2, 1, 2), (2, 1, 3))


@pytest.mark.parametrize("budget", [16, 22, 30, 64])
def test_the_program_finds_the_best_tree_within_the_budget(budget):
    tree = QuadTree.uniform((0, 64, 0, 64), 3, 2)
    rng = np.random.default_rng(budget)
    errors: dict[tuple[int, ...], float] = {}

    def error(nodes):
        return np.array([errors.setdefault(tuple(n), rng.random() * 8.0 ** -n[0]) for n in nodes])

    new = tree.updated(error, budget)
    assert len(new.leaves) <= budget
    # one gain per choice and equal prices: the greedy choice over pairs of a split and a merge is the best
    splits, merges = [], []
    for leaf in np.array(tree.leaves):
        children = [(3, 2 * leaf[1] + a, 2 * leaf[2] + b) for a in (0, 1) for b in (0, 1)]
        splits.append(errors[tuple(leaf)] - sum(errors[c] for c in children))
    family = [[(2, 2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)] for i in (0, 1) for j in (0, 1)]
    best = np.inf
    for chosen in range(16):
        merged = {leaf for k in range(4) if chosen >> k & 1 for leaf in family[k]}
        merges = [errors[1, k // 2, k % 2] - sum(errors[c] for c in family[k]) for k in range(4) if chosen >> k & 1]
        gains = sorted(
            (s for s, leaf in zip(splits, tree.leaves, strict=True) if leaf not in merged and s > 0), reverse=True
        )
        room = (budget - 16 + 3 * len(merges)) // 3
        best = min(best, sum(merges) - sum(gains[:room]))
    change = error(np.array(new.leaves)).sum() - error(np.array(tree.leaves)).sum()
    assert change == pytest.approx(best, abs=1e-4 * max(errors.values()))


def test_a_budget_out_of_reach_is_refused():
    tree = QuadTree.uniform((0, 64, 0, 64), 2, 2)
    with pytest.raises(ValueError, match="merged"):
        tree.updated(lambda nodes: np.ones(len(nodes)), 3)


# refinement


def fitted(target, spec, box, steps=150, **options):
    field = tensor_field(box, spec.spacing, seed=0, initial=0.05, **options)
    return improved(field, target, spec, steps)


def improved(field, target, spec, steps):
    adam = Adam(field.groups, field.rates(0.05))
    for _ in range(steps):
        field.zero_grad()
        field.backward_lattice(field.lattice(spec) - target)
        adam.step(field.parameters(), field.grad)
    return field


def correlation(field, target, spec):
    return np.corrcoef(field.lattice(spec).ravel(), target.ravel())[0, 1]


SPHERE_BOX = (-24.0, 23.0, -24.0, 23.0, -8.0, 7.0)
SPHERE_LATTICE = Lattice(1.0, (16, 48, 48), (-8.0, -24.0, -24.0))


def sphere():
    z, x, y = np.meshgrid(*lattice_axes(SPHERE_LATTICE), indexing="ij")
    radius = np.sqrt((z + 0.5) ** 2 + (x - 9) ** 2 + (y + 10) ** 2)
    return np.clip(6.5 - radius, 0, 1).astype(np.float32)


def test_fits_a_sphere_better_on_a_refined_tree_that_splits_only_around_it():
    target = sphere()
    field = fitted(target, SPHERE_LATTICE, SPHERE_BOX, plane=7, features=8)
    coarse = correlation(field, target, SPHERE_LATTICE)
    fine = adapted(field, SPHERE_LATTICE, field.lattice(SPHERE_LATTICE), 7)
    kept = correlation(fine, target, SPHERE_LATTICE)
    assert kept == pytest.approx(coarse, abs=1e-5)
    assert [leaf for leaf in fine.grid.tree.leaves if leaf[0] == 2] == [(2, 2, 0), (2, 2, 1), (2, 3, 0), (2, 3, 1)]
    improved(fine, target, SPHERE_LATTICE, 150)
    assert correlation(fine, target, SPHERE_LATTICE) > max(0.98, coarse + 0.005)


def test_a_split_tree_shows_the_same_density():
    field = tensor(tree=[(0, 0, 0), (0, 1, 0)], features=4)
    field.parameters()[:] = np.random.default_rng(0).normal(scale=0.4, size=field.parameters().size)
    rho = field.lattice(LATTICES[0])
    split = adapted(field, LATTICES[0], rho, 8)
    assert len(split.grid.tree.leaves) == 8
    assert_close(split.lattice(LATTICES[0]), rho, 1e-5)
    caps = np.full((10, 32), 1)
    np.testing.assert_array_equal(
        split.lattice(LATTICES[0], level_cap=caps), field.lattice(LATTICES[0], level_cap=caps)
    )


def test_a_merged_node_shows_nearly_the_same_density():
    """A density that the parent can represent comes back from its children, but for features it has not enough of."""
    field = tensor(tree=[(0, 0, 0), (0, 1, 0)], features=4)
    field.parameters()[:] = np.random.default_rng(0).normal(scale=0.4, size=field.parameters().size)
    rho = field.lattice(LATTICES[0])
    split = adapted(field, LATTICES[0], rho, 8)
    merged = adapted(split, LATTICES[0], np.zeros_like(rho), 2)
    assert merged.grid.tree.leaves == ((0, 0, 0), (0, 1, 0))
    again = merged.lattice(LATTICES[0])
    assert np.corrcoef(again.ravel(), rho.ravel())[0, 1] > 0.999


def test_rows_outside_the_region_of_interest_ask_for_no_nodes():
    field = tensor(tree=[(0, 0, 0), (0, 1, 0)])
    rng = np.random.default_rng(0)
    density = rng.random(LATTICES[0].shape, dtype=np.float32)
    cap = np.where(np.arange(32) < 16, 1, 3) * np.ones((10, 1), int)
    split = adapted(field, LATTICES[0], density, 8, level_cap=cap)
    assert split.grid.tree.leaves == ((0, 0, 0), (1, 2, 0), (1, 2, 1), (1, 3, 0), (1, 3, 1))


# samples


def test_boundary_points_are_on_both_sides_of_every_edge_in_proportion_to_its_length():
    field = tensor()
    a, b = boundary_points(field, 4000, np.random.default_rng(0))
    one, other = (field.grid.node_of(p[:, 0], p[:, 1]) for p in (a, b))
    assert np.all(one != other)
    assert np.abs(a - b).max() < 0.05 * min(field.grid.tree.cell_size)
    pairs, counts = np.unique(np.sort(np.column_stack([one, other]), axis=1), axis=0, return_counts=True)
    share = {tuple(p): c / 4000 for p, c in zip(pairs.tolist(), counts, strict=True)}
    leaves = field.grid.tree.leaves
    # the edge to a node of the deepest level is half as long
    long, short = leaves.index((1, 1, 1)), leaves.index((2, 2, 1))
    assert share[tuple(sorted((leaves.index((1, 0, 1)), long)))] == pytest.approx(
        2 * share[tuple(sorted((leaves.index((1, 0, 0)), short)))], rel=0.25
    )
    single = tensor_field((0, 4, 0, 4, 0, 4))
    assert len(boundary_points(single, 5, np.random.default_rng(0))[0]) == 0
