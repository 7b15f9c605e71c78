"""Vector-matrix factors on the nodes of a quadtree (TensoRF's, one set a node, as in Adaptive TensorDF).

A node holds, for each of its features r, three vectors and three matrices whose products add up to the feature:
``X_r(x) YZ_r(y, z) + Y_r(y) XZ_r(x, z) + Z_r(z) XY_r(x, y)``, each interpolated linearly between vertices.
A node is a full-height column of the slab; its vertices lie as densely along z as along x and y. All nodes have
equally many vertices along x and y, so a smaller node shows finer detail.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inrtomo.fields.density import F32, F64, Box
from inrtomo.fields.quadtree import QuadTree, root_counts

I64 = NDArray[np.int64]

INITIAL_MATRIX = 1e-2  # spread of the matrices at the start: nearly no signal; the vectors' is 1


@dataclass(frozen=True)
class FactorGrid:
    """Geometry of the factors of a tree and, for material outside the region of interest, of coarse root nodes.

    Attributes:
        box: ``(x0, x1, y0, y1, z0, z1)`` raw px; positions outside are moved to its surface.
        tree: the nodes of the region of interest.
        intervals: between vertices of a node along x, y and (of a root node) z.
        features: products of each kind in a node.
        layers: rows of a layer, a level of the tree or (the last one) the coarse nodes: size of a node along x and
            y, height (raw px), then its intervals along x, y and z.
        nodes: rows ``(layer, i, j, first parameter)``, those of the tree first.
    """

    box: Box
    tree: QuadTree
    intervals: tuple[int, int, int]
    features: int
    layers: F64 = field(init=False)
    nodes: I64 = field(init=False)

    def __post_init__(self) -> None:
        x0, x1, y0, y1, z0, z1 = self.box
        nx, ny = root_counts(self.tree.bounds)
        kx, ky, kz = self.intervals
        sizes = [(nx << k, ny << k, kx, ky, kz << k) for k in range(self.tree.depth + 1)]
        sizes.append((nx, ny, max(1, kx // 2), max(1, ky // 2), max(1, kz // 2)))
        layers = [((x1 - x0) / across, (y1 - y0) / along, z1 - z0, *k) for across, along, *k in sizes]
        object.__setattr__(self, "layers", np.array(layers))
        coarse = [(self.tree.depth + 1, i, j) for i in range(nx) for j in range(ny)]
        nodes = np.array([*self.tree.leaves, *coarse], dtype=np.int64)
        counts = np.array([sum(self.parts(layer)) for layer in range(len(layers))])[nodes[:, 0]]
        starts = np.concatenate([[0], np.cumsum(counts)])
        object.__setattr__(self, "nodes", np.column_stack([nodes, starts[:-1]]))

    @classmethod
    def over(cls, box: Box, finest_px: float, plane: int, features: int, level: int | None = None) -> FactorGrid:
        """The grid whose deepest nodes have vertices about ``finest_px`` apart.

        ``plane``: vertices of a node along x and y (fewer if the box is smaller than that), ``level``: of all nodes;
        default the one whose vertices are four times as far apart, to be refined where there is something to see.
        """
        x0, x1, y0, y1, z0, z1 = box
        if min(x1 - x0, y1 - y0, z1 - z0) <= 0 or finest_px <= 0 or plane < 2 or features < 1:
            raise ValueError(f"empty box {box}, spacing not positive, plane below 2 or features below 1")
        bounds = (x0, x1, y0, y1)
        sizes = (x1 - x0) / root_counts(bounds)[0], (y1 - y0) / root_counts(bounds)[1]
        kx, ky = (min(plane - 1, int(np.ceil(size / finest_px - 1e-6))) for size in sizes)
        spacing = max(sizes[0] / kx, sizes[1] / ky)
        depth = max(0, round(float(np.log2(spacing / finest_px))))
        kz = int(np.ceil((z1 - z0) / max(spacing, finest_px) - 1e-6))
        tree = QuadTree.uniform(bounds, depth, max(depth - 2, 0) if level is None else level)
        return cls(box, tree, (kx, ky, max(kz, 1)), features)

    def with_tree(self, tree: QuadTree) -> FactorGrid:
        """The same grid on another tree of the same depth."""
        return FactorGrid(self.box, tree, self.intervals, self.features)

    @property
    def n_tree(self) -> int:
        """Nodes of the tree; the rest are the coarse ones."""
        return len(self.tree.leaves)

    @property
    def n_parameters(self) -> int:
        return int(self.nodes[-1, 3]) + sum(self.parts(int(self.nodes[-1, 0])))

    def vertices(self, layer: int) -> tuple[int, int, int]:
        """Vertices of a node along x, y and z."""
        x, y, z = (int(n) + 1 for n in self.layers[layer, 3:])
        return x, y, z

    def parts(self, layer: int) -> tuple[int, int, int, int, int, int]:
        """Numbers of parameters of X (x, r), Y (r, y), Z (z, r), XY (x, r, y), XZ (x, z, r), YZ (z, r, y), in order."""
        r, (x, y, z) = self.features, self.vertices(layer)
        return x * r, r * y, z * r, x * r * y, x * z * r, z * r * y

    @property
    def largest_node(self) -> int:
        """Parameters of a node of the deepest level."""
        return sum(self.parts(self.tree.depth))

    def factors(self, node: int, parameters: F32) -> tuple[F32, F32, F32, F32, F32, F32]:
        """Views of a node's X, Y, Z, XY, XZ and YZ with the axes that `parts` names."""
        layer, _, _, start = self.nodes[node]
        r, (x, y, z) = self.features, self.vertices(layer)
        shapes = ((x, r), (r, y), (z, r), (x, r, y), (x, z, r), (z, r, y))
        views = []
        for size, shape in zip(self.parts(layer), shapes, strict=True):
            views.append(parameters[start : start + size].reshape(shape))
            start += size
        a, b, c, d, e, f = views
        return a, b, c, d, e, f

    def initial(self, seed: int) -> F32:
        """Initial parameters: random vectors, nearly vanishing matrices."""
        rng = np.random.default_rng(seed)
        values = rng.standard_normal(self.n_parameters, dtype=np.float32)
        for node in range(len(self.nodes)):
            for matrix in self.factors(node, values)[3:]:
                matrix *= INITIAL_MATRIX
        return values

    def positions(self, axis: int, coordinates: NDArray[np.floating]) -> F64:
        """Positions ``(layers, N)`` along x (0), y (1) or z (2), in vertices of each layer from the box's side."""
        low, high = self.box[2 * axis], self.box[2 * axis + 1]
        inside = np.clip(np.asarray(coordinates, dtype=np.float64), low, high) - low
        return np.asarray(inside * (self.layers[:, 3 + axis] / self.layers[:, axis])[:, None])

    def node_of(self, x: NDArray[np.floating], y: NDArray[np.floating]) -> I64:
        """Index of the tree's node at points, raw px."""
        return np.asarray(self.tree.owner[self.tree.cell(0, x), self.tree.cell(1, y)])

    def spans(self, axis: int, coordinates: F64) -> I64:
        """First and past-the-last ``(nodes, 2)`` of ascending coordinates along x (0) or y (1) in every node."""
        cell = self.tree.cell(axis, coordinates)
        level = np.where(np.arange(len(self.nodes)) < self.n_tree, self.nodes[:, 0], 0)
        width = 1 << (self.tree.depth - level)
        first = self.nodes[:, 1 + axis] * width
        return np.column_stack([np.searchsorted(cell, first), np.searchsorted(cell, first + width)])


def interpolation(positions: NDArray[np.floating], intervals: int) -> F64:
    """Matrix ``(..., vertices)`` of linear interpolation at positions counted in vertices; beyond the ends theirs."""
    inside = np.clip(positions, 0, intervals)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(inside[..., None] - np.arange(intervals + 1))))
