"""Where a lattice's points lie in every level of a hash grid: worked out once per lattice, kept on the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.encodings import RUN, HashGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """Vertices of one level along one axis that a lattice touches.

    Attributes:
        low, count: first vertex, and how many.
        index, frac: of the lattice's points ``(n,)``: their cell and the fraction in it.
        starts, stops: of every vertex ``(count,)``: the points that it has a part in.
        longest: the most points of a vertex.
    """

    low: int
    count: int
    index: torch.Tensor
    frac: torch.Tensor
    starts: torch.Tensor
    stops: torch.Tensor
    longest: int


@dataclass(frozen=True)
class Runs:
    """Runs of vertices of a hashed level, sorted by the slot they share: see `hash_kernels.hashed_runs`."""

    order: torch.Tensor
    starts: torch.Tensor
    n_blocks: int
    first_block: int
    longest: int


class LatticePlan:
    """A lattice with its level weights and caps, in the terms of the kernels.

    Args:
        grid: of the field.
        axes: positions (z, x, y), raw px.
        level_weights: ``(levels,)``; levels of weight zero at the end cost nothing.
        caps: ``(nz, nx)``: how many levels to use in each row.
        device: of the tensors.
    """

    def __init__(
        self, grid: HashGrid, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8], device: str
    ) -> None:
        self.grid, self.device = grid, device
        self.shape: tuple[int, int, int] = (len(axes[0]), len(axes[1]), len(axes[2]))
        self.active = int(np.max(np.nonzero(level_weights)[0], initial=-1)) + 1
        self._cells = [[grid.cells(level, axis, axes[axis]) for level in range(grid.levels)] for axis in range(3)]
        (self.z_index, self.z_frac), (self.x_index, self.x_frac), (self.y_index, self.y_frac) = (
            (self._tensor(np.stack([c for c, _ in cells]), torch.int32), self._tensor(np.stack([f for _, f in cells])))
            for cells in self._cells
        )
        self.level_weights = self._tensor(level_weights)
        self.caps = self._tensor(np.minimum(np.asarray(caps, dtype=np.int64), self.active), torch.int32)
        planes = [int(cell.max()) + 2 - int(cell.min()) for cell, _ in self._cells[0]]
        first_rows = np.concatenate([[0], np.cumsum(planes)]) * grid.features
        self.n_rows = int(first_rows[self.active])
        self.rows = self._tensor(first_rows, torch.int32)
        self.z_low = self._tensor(np.array([cell.min() for cell, _ in self._cells[0]]), torch.int32)
        # every plane is met by a walk along z that skips none
        self.skips = any(bool(np.any(np.diff(cell) > 1)) for cell, _ in self._cells[0][: self.active])

    def _tensor(self, values: NDArray[np.generic], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=dtype, device=self.device)

    @cached_property
    def spans(self) -> list[tuple[Span, Span, Span]]:
        """Of every level along z, x and y."""
        return [(self._span(0, level), self._span(1, level), self._span(2, level)) for level in range(self.grid.levels)]

    def _span(self, axis: int, level: int) -> Span:
        cell, frac = self._cells[axis][level]
        low, count = int(cell.min()), int(cell.max()) + 2 - int(cell.min())
        vertices = low + np.arange(count)
        starts = np.searchsorted(cell, vertices - 1, side="left")
        stops = np.searchsorted(cell, vertices, side="right")
        index, first, last = (self._tensor(v, torch.int32) for v in (cell, starts, stops))
        return Span(low, count, index, self._tensor(frac), first, last, int((stops - starts).max()))

    @property
    def backward_bytes(self) -> int:
        """What `HashField.lattice_backward` takes for a while, decoder apart: columns, and lines of one level."""
        _, nx, ny = self.shape
        level_floats = [
            z.count * self.grid.features * x.count * (ny + (y.count if self.grid.masks[level] else 0))
            for level, (z, x, y) in enumerate(self.spans[: self.active])
        ]
        return 4 * (self.n_rows * nx * ny + max(level_floats, default=0))

    @cached_property
    def runs(self) -> dict[int, Runs]:
        """Of every hashed level."""
        found = {}
        for level in range(self.grid.levels):
            mask = int(self.grid.masks[level])
            if mask:
                z, x, y = self.spans[level]
                blocks = np.arange(y.low // RUN, (y.low + y.count - 1) // RUN + 1)
                slot = slots(
                    (z.low + np.arange(z.count))[:, None, None], (x.low + np.arange(x.count))[:, None], blocks, mask
                ).ravel()
                order = np.argsort(slot, kind="stable")
                starts = np.searchsorted(slot[order], np.arange(mask + 2))
                longest = int(np.diff(starts).max())
                found[level] = Runs(
                    self._tensor(order, torch.int32), self._tensor(starts, torch.int32), len(blocks), int(blocks[0]),
                    longest,
                )  # fmt: skip
        return found


def slots(z: NDArray[np.int64], x: NDArray[np.int64], block: NDArray[np.int64], mask: int) -> NDArray[np.int64]:
    """Slot of a run of vertices in a hashed level (see `inrtomo.fields.encodings`)."""
    hashed = x.astype(np.uint64) ^ (z.astype(np.uint64) * np.uint64(2654435761))
    return ((hashed ^ (block.astype(np.uint64) * np.uint64(805459861))) & np.uint64(mask)).astype(np.int64)
