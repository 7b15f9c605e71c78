"""CPU backend of vector-matrix factors: tiles prepared once per lattice, then the compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.fields.factors import FactorGrid
from inrtomo.fields.kernels import factor_loops

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TILE = 64  # most lattice points along x and y that are evaluated together


class Kernels:
    """Density of vector-matrix factors with a one-layer decoder, and its gradients."""

    def __init__(self, grid: FactorGrid, scale: float) -> None:
        self.grid, self.scale = grid, np.float32(scale)
        self._plans: dict[bytes, tuple[Any, ...]] = {}
        self._saved: Any = None

    def lattice(self, parameters: F32, weights: F32, axes: tuple[F64, F64, F64], which: NDArray[np.uint8]) -> F32:
        """Density ``(nz, nx, ny)`` at the positions ``axes`` = (z, x, y), raw px.

        ``weights`` ``(features + 1,)``: of the decoder, its offset last. ``which`` ``(nz, nx)``: 2 for rows of the
        tree, 1 for rows of the coarse nodes, 0 for rows of zeros.
        """
        tiles, n_partial, positions = self._plan(axes)
        rho = np.zeros([len(a) for a in axes], dtype=np.float32)
        grid = self.grid
        head = (grid.features, grid.nodes, grid.layers, tiles, grid.n_tree, *positions)
        shared = (parameters, weights, *head, np.ascontiguousarray(which, dtype=np.uint8), self.scale)
        factor_loops.lattice(*shared, rho)
        self._saved = ("lattice", shared, len(tiles), tiles, n_partial)
        return rho

    def lattice_backward(self, grad_rho: F32, grad: F32, grad_weights: F32) -> None:
        """Add the gradients of ``sum(grad_rho * rho)`` of the last `lattice`."""
        if self._saved is None or self._saved[0] != "lattice":
            raise RuntimeError("lattice_backward without a lattice evaluation before it")
        _, shared, count, tiles, n_partial = self._saved
        partial = np.zeros(n_partial, dtype=np.float32)
        per_tile = np.zeros((count, self.grid.features + 1), dtype=np.float32)
        grad_rho = np.ascontiguousarray(grad_rho, dtype=np.float32)
        factor_loops.lattice_backward(*shared, grad_rho, grad, partial, per_tile)
        for node, *_, place in tiles[tiles[:, 5] >= 0]:
            layer, _, _, start = self.grid.nodes[node]
            size = sum(self.grid.parts(layer))
            grad[start : start + size] += partial[place : place + size]
        grad_weights += per_tile.sum(axis=0, dtype=np.float64).astype(np.float32)

    def points(self, parameters: F32, weights: F32, xyz: F64) -> F32:
        """Density ``(N,)`` of the tree at points ``(N, 3)`` (x, y, z)."""
        grid = self.grid
        node = grid.node_of(xyz[:, 0], xyz[:, 1])
        order = np.argsort(node, kind="stable")
        firsts = np.searchsorted(node[order], np.arange(grid.n_tree + 1))
        layer = grid.nodes[node, 0]
        u = np.stack([grid.positions(axis, xyz[:, axis])[layer, np.arange(len(xyz))] for axis in range(3)], axis=1)
        shared = (parameters, weights, grid.features, grid.nodes, grid.layers, order, firsts, u, self.scale)
        out = np.empty(len(xyz), dtype=np.float32)
        factor_loops.points(*shared, out)
        low, high = np.array(grid.box[::2]), np.array(grid.box[1::2])
        self._saved = ("points", shared, (xyz >= low) & (xyz <= high))
        return out

    def points_backward(self, given: F32, grad: F32, grad_weights: F32) -> F32:
        """Add the gradients of ``sum(given * density)`` and return that of the points ``(N, 3)`` (x, y, z)."""
        if self._saved is None or self._saved[0] != "points":
            raise RuntimeError("points_backward without an evaluation of points before it")
        _, shared, free = self._saved
        per_node = np.zeros((self.grid.n_tree, self.grid.features + 1), dtype=np.float32)
        moved = np.zeros((len(free), 3), dtype=np.float32)
        factor_loops.points_backward(*shared, np.ascontiguousarray(given, np.float32), grad, per_node, moved)
        grad_weights += per_node.sum(axis=0, dtype=np.float64).astype(np.float32)
        return np.asarray(moved * free, dtype=np.float32)

    def _plan(self, axes: tuple[F64, F64, F64]) -> tuple[I64, int, tuple[F64, F64, F64]]:
        """Tiles of a lattice, the room that their gradients need, and positions along x, y and z."""
        key = b"|".join(np.asarray(a, dtype=np.float64).tobytes() for a in axes)
        if key not in self._plans:
            z, x, y = axes
            grid = self.grid
            positions = grid.positions(0, x), grid.positions(1, y), grid.positions(2, z)
            self._plans = {key: (*self._tiles(grid.spans(0, x), grid.spans(1, y)), positions)}
        tiles, n_partial, positions = self._plans[key]
        return tiles, n_partial, positions

    def _tiles(self, x_spans: I64, y_spans: I64) -> tuple[I64, int]:
        """Rows (node, first and past-the-last x and y, place of the gradient or -1), shuffled to share the work."""
        rows, place = [], 0
        for node, ((x0, x1), (y0, y1)) in enumerate(zip(x_spans, y_spans, strict=True)):
            size = sum(self.grid.parts(int(self.grid.nodes[node, 0])))
            parts = [(a, b) for a in range(x0, x1, TILE) for b in range(y0, y1, TILE)]
            for a, b in parts:
                rows.append((node, a, min(a + TILE, x1), b, min(b + TILE, y1), place if len(parts) > 1 else -1))
                place += size if len(parts) > 1 else 0
        tiles = np.array(rows, dtype=np.int64).reshape(-1, 6)
        return tiles[np.random.default_rng(0).permutation(len(tiles))], place
