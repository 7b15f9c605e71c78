"""Quadtree over x and y, split and merged by a mixed-integer program on the spread of a density.

Wang, Idoughi & Heidrich 2023, section 3.5: every update splits, keeps or merges each node so that what the nodes
cannot represent is least while their number stays within a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from inrtomo.fields.density import F32, F64, LatticeSpec

I64 = NDArray[np.int64]
Nodes = I64  # (n, 3): level, index along x, index along y
CHILDREN = np.array([(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)])
PRICE = 0.02  # of a node, in units of the largest error: vacuum stays coarse, and all texture of a real cell is split


@dataclass(frozen=True)
class QuadTree:
    """Nodes that tile a rectangle; every split halves a node along x and y.

    Attributes:
        bounds: ``(x0, x1, y0, y1)`` raw px.
        depth: deepest level; nodes of level 0 are about square.
        leaves: ``(level, i, j)`` of every node, sorted; node ``i, j`` of a level counts nodes along x and y.
    """

    bounds: tuple[float, float, float, float]
    depth: int
    leaves: tuple[tuple[int, int, int], ...]
    owner: I64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        owner = np.full(self.cells, -1, dtype=np.int64)
        for k, (level, i, j) in enumerate(self.leaves):
            n = 1 << (self.depth - level)
            part = owner[i * n : (i + 1) * n, j * n : (j + 1) * n]
            if not 0 <= level <= self.depth or part.shape != (n, n) or np.any(part >= 0):
                raise ValueError(f"node {(level, i, j)} is outside the tree or overlaps another")
            part[:] = k
        if np.any(owner < 0):
            raise ValueError("the nodes do not cover the tree")
        object.__setattr__(self, "owner", owner)

    @classmethod
    def uniform(cls, bounds: tuple[float, float, float, float], depth: int, level: int) -> QuadTree:
        """The tree whose nodes are all of one level."""
        nx, ny = (n << level for n in root_counts(bounds))
        return cls(bounds, depth, tuple((level, i, j) for i in range(nx) for j in range(ny)))

    @property
    def cells(self) -> tuple[int, int]:
        """Numbers of cells, nodes of the deepest level, along x and y; ``owner`` has the leaf of each."""
        nx, ny = root_counts(self.bounds)
        return nx << self.depth, ny << self.depth

    @property
    def cell_size(self) -> tuple[float, float]:
        """Of a node of the deepest level along x and y, raw px."""
        (x0, x1, y0, y1), (nx, ny) = self.bounds, self.cells
        return (x1 - x0) / nx, (y1 - y0) / ny

    def cell(self, axis: int, positions: NDArray[np.floating]) -> I64:
        """Cells of positions along x (0) or y (1), raw px; outside the tree the nearest one."""
        index = np.floor((np.asarray(positions, np.float64) - self.bounds[2 * axis]) / self.cell_size[axis])
        return np.clip(index, 0, self.cells[axis] - 1).astype(np.int64)

    def updated(self, error: Callable[[Nodes], F64], budget: int) -> QuadTree:
        """The best tree within one split or merge of every node.

        Args:
            error: what each of some nodes ``(n, 3)`` would leave unexplained, to be added up over the leaves.
            budget: most leaves of the new tree.

        Raises:
            ValueError: no merging of nodes gets down to the budget.
        """
        leaves = np.array(self.leaves, dtype=np.int64)
        splittable = np.nonzero(leaves[:, 0] < self.depth)[0]
        families = self._families()
        children = _children(leaves[splittable])
        parents = leaves[families[:, 0]] // (1, 2, 2) - (1, 0, 0)
        if len(leaves) - 3 * len(families) > budget:
            raise ValueError(f"{len(leaves)} nodes cannot be merged into {budget} at once")
        kept = error(leaves)
        split_change = error(children.reshape(-1, 3)).reshape(-1, 4).sum(1) - kept[splittable]
        merge_change = error(parents) - kept[families].sum(1)
        split, merge = _best(split_change, merge_change, splittable, families, budget - len(leaves), kept.max())
        changed = np.concatenate([splittable[split], families[merge].ravel()])
        nodes = np.concatenate([np.delete(leaves, changed, axis=0), children[split].reshape(-1, 3), parents[merge]])
        return QuadTree(self.bounds, self.depth, _sorted(nodes))

    def _families(self) -> I64:
        """Leaves ``(n, 4)`` that are the four children of one node."""
        parents: dict[tuple[int, int, int], list[int]] = {}
        for k, (level, i, j) in enumerate(self.leaves):
            if level > 0:
                parents.setdefault((level, i // 2, j // 2), []).append(k)
        return np.array([f for f in parents.values() if len(f) == 4], dtype=np.int64).reshape(-1, 4)


class DensitySpread:
    """Error of nodes for `QuadTree.updated`: spread of a density in a node times the node's area and size.

    Linear interpolation between vertices misses about the slope times their spacing; the spread stands for the
    slope. Halving a node of even texture then halves its error, and a flat one gains nothing.

    Args:
        tree: whose nodes are meant.
        spec, density: a lattice and the density ``(nz, nx, ny)`` on it.
        counted: ``(nz, nx)``, rows along y that matter; None: all.
    """

    def __init__(
        self, tree: QuadTree, spec: LatticeSpec, density: F32, counted: NDArray[np.bool_] | None = None
    ) -> None:
        self.tree = tree
        weight = np.ones(density.shape[:2]) if counted is None else np.asarray(counted, dtype=np.float64)
        x, y = (spec.origin[a] + spec.spacing * np.arange(spec.shape[a]) for a in (1, 2))
        cells = tree.cell(0, x)[:, None] * tree.cells[1] + tree.cell(1, y)
        offset = float(density.mean())  # keeps the squares small
        totals = []
        for power in range(3):
            columns = np.einsum("zx,zxy->xy", weight, (density - offset).astype(np.float64) ** power)
            sums = np.bincount(cells.ravel(), columns.ravel(), minlength=tree.owner.size).reshape(tree.cells)
            totals.append(np.pad(sums, ((1, 0), (1, 0))).cumsum(0).cumsum(1))
        self._totals = np.stack(totals)

    def spread(self, nodes: Nodes) -> F64:
        """Standard deviation in each node; 0 where there is no lattice point."""
        n = 1 << (self.tree.depth - nodes[:, 0])
        i, j = nodes[:, 1] * n, nodes[:, 2] * n
        t = self._totals
        count, first, second = t[:, i + n, j + n] - t[:, i, j + n] - t[:, i + n, j] + t[:, i, j]
        count = np.maximum(count, 1.0)
        return np.sqrt(np.maximum(second / count - (first / count) ** 2, 0.0))

    def __call__(self, nodes: Nodes) -> F64:
        return np.asarray(self.spread(nodes) * 8.0 ** -nodes[:, 0])


def root_counts(bounds: tuple[float, float, float, float]) -> tuple[int, int]:
    """Nodes of level 0 along x and y, about square."""
    wide, high = bounds[1] - bounds[0], bounds[3] - bounds[2]
    short = min(wide, high)
    return max(1, round(wide / short)), max(1, round(high / short))


def _best(
    split_change: F64, merge_change: F64, splittable: I64, families: I64, room: int, unit: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which leaves to split and which families to merge; ``room``: how many nodes may be added."""
    n_split, n_merge = len(split_change), len(merge_change)
    if n_split + n_merge == 0:
        return np.zeros(0, bool), np.zeros(0, bool)
    unit = unit or 1.0
    change = np.concatenate([split_change, merge_change]) / unit
    added = np.repeat([3.0, -3.0], [n_split, n_merge])
    # one row for the budget, and one for each leaf of a family, which is split or merged but not both
    variable_of = {int(leaf): k for k, leaf in enumerate(splittable)}
    rows, columns = [0] * len(added), list(range(len(added)))
    values = list(added)
    count = 1
    for family, members in enumerate(families):
        for leaf in members:
            if int(leaf) in variable_of:
                rows += [count, count]
                columns += [variable_of[int(leaf)], n_split + family]
                values += [1.0, 1.0]
                count += 1
    matrix = coo_array((values, (rows, columns)), shape=(count, len(added))).tocsc()
    limits = np.concatenate([[float(room)], np.ones(count - 1)])
    result = milp(
        change + PRICE * added,
        integrality=np.ones(len(added)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, -np.inf, limits),
    )
    if result.x is None:
        raise RuntimeError(f"the node program was not solved: {result.message}")
    chosen = result.x > 0.5
    return chosen[:n_split], chosen[n_split:]


def _children(nodes: Nodes) -> I64:
    """The four children ``(n, 4, 3)`` of nodes."""
    return np.asarray((nodes * (1, 2, 2))[:, None] + CHILDREN, dtype=np.int64)


def _sorted(nodes: Iterable[Iterable[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple(sorted((int(level), int(i), int(j)) for level, i, j in nodes))
