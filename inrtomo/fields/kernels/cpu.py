"""CPU backend: geometry prepared once per lattice, then the compiled loops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid
from inrtomo.fields.kernels import loops

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

POINT_TASKS = 16  # decoder gradients at points are summed in this many parts, whatever the threads


class Kernels:
    """Density of a hash grid with a decoder: ``scale * softplus(decoder(features))``, and its gradients."""

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float) -> None:
        self.grid, self.decoder, self.scale = grid, decoder, np.float32(scale)
        self._layout = _Layout(decoder)
        self._axes: dict[str, Any] = {}
        self._columns = np.zeros(0, dtype=np.float32)
        self._saved: Any = None

    def lattice(
        self, tables: F32, weights: F32, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8]
    ) -> F32:
        """Density ``(nz, nx, ny)`` at the positions ``axes`` = (z, x, y), raw px.

        ``level_weights`` ``(levels,)``: levels of weight zero at the end cost nothing. ``caps`` ``(nz, nx)``: how
        many levels to use in each row; 0 leaves the row at zero.
        """
        active = int(np.max(np.nonzero(level_weights)[0], initial=-1)) + 1
        plan = self._plan(axes)
        caps = np.minimum(caps, active).astype(np.uint8)
        need = [np.ascontiguousarray((caps > level).any(axis=0)) for level in range(active)]
        nz, nx, ny = (len(a) for a in axes)
        rows, padded = plan.rows[active], -(-ny // loops.LANES) * loops.LANES
        if self._columns.size < nx * rows * padded:
            self._columns = np.zeros(nx * rows * padded, dtype=np.float32)
        columns = self._columns[: nx * rows * padded].reshape(nx, rows, padded)
        if padded > ny:
            columns[:, :, ny:] = 0.0  # the padding is computed with, so it must be finite
        for level in range(active):
            loops.expand(tables[self.grid.level(level)], *plan.levels[level](need[level]), columns, plan.rows[level])
        packed = self._layout.pack(weights)
        rho = np.empty((nz, nx, ny), dtype=np.float32)
        shared = (self.grid.features, plan.rows, plan.z_index, plan.z_frac, level_weights, caps)
        loops.decode_lattice(columns, *shared, *packed.forward, self.scale, rho)
        self._saved = ("lattice", columns, shared, packed, plan, need)
        return rho

    def lattice_backward(self, grad_rho: F32, grad_tables: F32, grad_weights: F32) -> None:
        """Add the gradients of ``sum(grad_rho * rho)``; to be called once after `lattice`."""
        if self._saved is None or self._saved[0] != "lattice":
            raise RuntimeError("lattice_backward without a lattice evaluation before it")
        _, columns, shared, packed, plan, need = self._saved
        self._saved = None  # the columns are overwritten
        grad_rho = np.ascontiguousarray(grad_rho, dtype=np.float32)
        gw, gb = packed.partial_sums(len(columns))
        trainable = self.decoder.trainable
        loops.decode_lattice_backward(
            columns, *shared, *packed.forward, *packed.transposed, self.scale, trainable, grad_rho, gw, gb
        )
        for level in range(len(need)):
            arguments = plan.levels[level](need[level])
            loops.collapse(grad_tables[self.grid.level(level)], *arguments, columns, plan.rows[level])
        if trainable:
            grad_weights += self._layout.unpack(gw, gb)

    def points(self, tables: F32, weights: F32, zxy: F32, level_weights: F32) -> F32:
        """Density ``(N,)`` at points ``(N, 3)`` in (z, x, y) order."""
        active = int(np.max(np.nonzero(level_weights)[0], initial=-1)) + 1
        inside = np.clip(zxy, self.grid.origin, self.grid.upper).astype(np.float32)
        packed = self._layout.pack(weights)
        grid = self.grid
        geometry = (grid.starts, grid.planes, grid.shapes, grid.runs, grid.masks, grid.origin, grid.spacing)
        shared = (inside, active, grid.features, tables, *geometry, level_weights)
        out = np.empty(len(zxy), dtype=np.float32)
        loops.decode_points(*shared, *packed.forward, self.scale, out)
        free = inside == zxy
        self._saved = ("points", shared, geometry, packed, free)
        return out

    def points_backward(self, grad: F32, grad_tables: F32, grad_weights: F32) -> F32:
        """Add the gradients of ``sum(grad * density)`` and return that of the points ``(N, 3)``, (z, x, y)."""
        if self._saved is None or self._saved[0] != "points":
            raise RuntimeError("points_backward without an evaluation of points before it")
        _, shared, geometry, packed, free = self._saved
        inside, active, features = shared[:3]
        gw, gb = packed.partial_sums(POINT_TASKS)
        grad_features = np.empty((active * features, len(inside)), dtype=np.float32)
        grad_points = np.zeros((len(inside), 3), dtype=np.float32)
        grad = np.ascontiguousarray(grad, dtype=np.float32)
        loops.decode_points_backward(
            *shared, *packed.forward, *packed.transposed, self.scale, self.decoder.trainable,
            grad, POINT_TASKS, gw, gb, grad_features, grad_points,
        )  # fmt: skip
        loops.scatter_points(inside, active, features, *geometry, grad_features, grad_tables)
        if self.decoder.trainable:
            grad_weights += self._layout.unpack(gw, gb)
        return np.asarray(grad_points * free, dtype=np.float32)

    def _plan(self, axes: tuple[F64, F64, F64]) -> _Plan:
        key = b"".join(np.asarray(a, dtype=np.float64).tobytes() + b"|" for a in axes)
        if self._axes.get("key") != key:
            self._axes = {"key": key, "plan": _Plan(self.grid, axes)}
        plan: _Plan = self._axes["plan"]
        return plan


class _Plan:
    """Cells and fractions of a lattice in every level."""

    def __init__(self, grid: HashGrid, axes: tuple[F64, F64, F64]) -> None:
        self.grid = grid
        self.z_index = np.zeros((grid.levels, len(axes[0])), dtype=np.int64)
        self.z_frac = np.zeros((grid.levels, len(axes[0])), dtype=np.float32)
        self.rows = np.zeros(grid.levels + 1, dtype=np.int64)
        self._rest: list[tuple[Any, ...]] = []
        for level in range(grid.levels):
            z, z_frac = grid.cells(level, 0, axes[0])
            x, x_frac = grid.cells(level, 1, axes[1])
            y, y_frac = grid.cells(level, 2, axes[2])
            z_low, y_low = int(z.min()), int(y.min())
            z_count, y_count = int(z.max()) + 2 - z_low, int(y.max()) + 2 - y_low
            self.z_index[level], self.z_frac[level] = z - z_low, z_frac
            self.rows[level + 1] = self.rows[level] + z_count * grid.features
            unit = bool(np.all(y - y_low == np.arange(len(y))))
            stored = (int(v[level]) for v in (grid.planes, grid.shapes[:, 1], grid.runs, grid.masks))
            head = (grid.features, *stored, z_low, z_count, x, x_frac)
            self._rest.append((head, (y_low, y_count, unit, (y - y_low).astype(np.uint32), y_frac)))
        self.levels = [self._arguments(level) for level in range(grid.levels)]

    def _arguments(self, level: int) -> Any:
        head, tail = self._rest[level]
        return lambda need: (*head, need, *tail)


class _Layout:
    """Padding of the decoder's matrices to multiples of four, so that the loops have no remainders."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.padded = [-(-n // 4) * 4 for n in decoder.sizes]
        pairs = list(zip(self.padded[:-1], self.padded[1:], strict=True))
        self.w_at = np.concatenate([[0], np.cumsum([i * o for i, o in pairs])])
        self.b_at = np.concatenate([[0], np.cumsum(self.padded[1:])])
        self.a_at = np.concatenate([[0], np.cumsum(self.padded)])[:-1]

    def pack(self, weights: F32) -> _Packed:
        w, wt = np.zeros(self.w_at[-1], np.float32), np.zeros(self.w_at[-1], np.float32)
        b = np.zeros(self.b_at[-1], np.float32)
        for k, (matrix, offsets) in enumerate(self.decoder.layers(weights)):
            shape = self.padded[k + 1], self.padded[k]
            padded = w[self.w_at[k] : self.w_at[k + 1]].reshape(shape)
            padded[: matrix.shape[0], : matrix.shape[1]] = matrix
            wt[self.w_at[k] : self.w_at[k + 1]] = padded.T.ravel()
            b[self.b_at[k] : self.b_at[k] + len(offsets)] = offsets
        return _Packed(self, w, wt, b)

    def unpack(self, gw: F32, gb: F32) -> F32:
        """Flat weight gradient from padded partial sums."""
        gw_sum, gb_sum = gw.sum(axis=0, dtype=np.float64), gb.sum(axis=0, dtype=np.float64)
        parts = []
        for k, (i, o) in enumerate(pairwise(self.decoder.sizes)):
            matrix = gw_sum[self.w_at[k] : self.w_at[k + 1]].reshape(self.padded[k + 1], self.padded[k])[:o, :i]
            parts += [matrix.ravel(), gb_sum[self.b_at[k] : self.b_at[k] + o]]
        return np.concatenate(parts).astype(np.float32)


class _Packed:
    """Padded weights in the argument order of the loops."""

    def __init__(self, layout: _Layout, w: F32, wt: F32, b: F32) -> None:
        w_at, b_at, a_at = (v.astype(np.uint64) for v in (layout.w_at, layout.b_at, layout.a_at))
        self.forward = (np.array(layout.padded, dtype=np.uint64), w, w_at, b, b_at, a_at)
        self.transposed = (wt, w_at)

    def partial_sums(self, count: int) -> tuple[F32, F32]:
        _, w, _, b, _, _ = self.forward
        return np.zeros((count, len(w)), np.float32), np.zeros((count, len(b)), np.float32)
