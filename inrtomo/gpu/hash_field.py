"""A hash grid with its decoder on the device: densities and gradients on lattices and at points, by Triton."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid
from inrtomo.gpu import hash_kernels as kernels
from inrtomo.gpu.plan import LatticePlan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tensor = torch.Tensor

BLOCK = 64  # points of a tile
LINES = 8
WIDE = 32  # hidden units from which a tile is shared by eight warps: four would spill it to memory
PROGRAMS_PER_PROCESSOR = 4
PRIVATE_ENTRIES = 1 << 15  # of a level: fewer vertices than this are added to by too many points at once
PRIVATE_COPIES = 64
MOST_HIDDEN = 3


class HashField:
    """Density ``scale * softplus(decoder(features))`` of tables and decoder weights that are flat tensors.

    Args:
        grid, decoder, scale: as of `inrtomo.fields.kernels.cpu.Kernels`.
        device: where tensors are.
        half: half-precision operands of the decoder's matrix products, sums in float32; otherwise float32 throughout.
    """

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float, device: str, half: bool = True) -> None:
        widths = decoder.sizes[1:-1]
        if len(set(widths)) > 1 or len(widths) > MOST_HIDDEN or grid.n_parameters >= 2**31:
            raise ValueError(f"at most {MOST_HIDDEN} hidden layers of one width, and 2**31 table entries")
        self.grid, self.decoder, self.scale, self.device = grid, decoder, float(scale), device
        self._half, self._hidden = half, len(widths)
        self._width = widths[0] if widths else 1
        columns = [
            grid.starts[:-1], grid.planes, *grid.shapes.T, grid.runs, grid.masks
        ]  # fmt: skip
        self._geometry = torch.tensor(np.stack(columns, axis=1), dtype=torch.int32, device=device)
        self._origin = torch.tensor(grid.origin, device=device)
        self._upper = torch.tensor(grid.upper, device=device)
        self._spacing = torch.tensor(grid.spacing, device=device)
        private = np.flatnonzero(grid.planes > PRIVATE_ENTRIES)
        self._n_private = int(private[0]) if len(private) else grid.levels

    def plan(self, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8]) -> LatticePlan:
        """What `lattice` needs to know of a lattice."""
        return LatticePlan(self.grid, axes, level_weights, caps, self.device)

    def lattice(self, tables: Tensor, weights: Tensor, plan: LatticePlan) -> Tensor:
        """Density ``(nz, nx, ny)``."""
        nz, nx, ny = plan.shape
        rho = torch.empty(plan.shape, device=self.device)
        kernels.lattice_forward[nz * nx, triton.cdiv(ny, BLOCK)](
            tables, weights, *self._lattice(plan), rho, nz, nx, ny, self.scale, **self._constants(plan.active)
        )
        return rho

    def lattice_backward(
        self, tables: Tensor, weights: Tensor, plan: LatticePlan, grad_rho: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> None:  # fmt: skip
        """Add the gradients of ``sum(grad_rho * rho)``."""
        nz, nx, ny = plan.shape
        blocks, count, features = triton.cdiv(ny, BLOCK), self.decoder.n_weights, self.grid.features
        make = torch.zeros if plan.skips else torch.empty
        columns = make((plan.n_rows, nx, ny), device=self.device)
        partial = torch.zeros((nx * blocks if self.decoder.trainable else 1, count), device=self.device)
        kernels.lattice_backward[nx, blocks](
            tables, weights, *self._lattice(plan), grad_rho, plan.z_low, plan.rows, columns, partial, count,
            nz, nx, ny, self.scale, TRAIN=self.decoder.trainable, **self._constants(plan.active),
        )  # fmt: skip
        if self.decoder.trainable:
            grad_weights += partial.sum(dim=0)
        row = 0
        for level in range(plan.active):
            n_rows = plan.spans[level][0].count * features
            self._collapse(columns[row : row + n_rows], plan, level, grad_tables)
            row += n_rows

    def _collapse(self, columns: Tensor, plan: LatticePlan, level: int, grad: Tensor) -> None:
        """Transpose of interpolation along x and y: a level's columns ``(rows, nx, ny)`` to its table's gradient."""
        (z, x, y), features = plan.spans[level], self.grid.features
        n_rows, nx, ny = columns.shape
        lines = torch.empty((n_rows, x.count, ny), device=self.device)
        kernels.reduce_x[triton.cdiv(ny, BLOCK), x.count, n_rows](
            columns, x.index, x.frac, x.starts, x.stops, lines, nx, ny, x.count, x.low, BLOCK=BLOCK
        )
        start, plane = int(self.grid.starts[level]), int(self.grid.planes[level])
        shape_x, shape_y = (int(n) for n in self.grid.shapes[level, 1:])
        hashed = level in plan.runs
        out, to, strides = (
            grad,
            start + (z.low * shape_x + x.low) * shape_y + y.low,
            (plane, shape_x * shape_y, shape_y),
        )
        if hashed:
            out = torch.empty((z.count, features, x.count, y.count), device=self.device)
            to, strides = 0, (x.count * y.count, features * x.count * y.count, y.count)
        block = min(BLOCK, max(16, triton.next_power_of_2(y.count)))
        n_lines = n_rows * x.count
        # lines in front: CUDA takes 65535 programs at most along the other axes, and there are more of these
        kernels.reduce_y[triton.cdiv(n_lines, LINES), triton.cdiv(y.count, block)](
            lines, y.index, y.frac, y.starts, y.stops, out, n_lines, ny, y.count, y.low, y.longest, x.count, features,
            *strides, to, ADD=not hashed, LINES=LINES, BLOCK=block,
        )  # fmt: skip
        if hashed:
            runs, n_slots = plan.runs[level], int(self.grid.masks[level]) + 1
            kernels.hashed_runs[triton.cdiv(n_slots, LINES), features](
                out, runs.order, runs.starts, grad, n_slots, x.count, runs.n_blocks, y.count,
                y.low - runs.first_block * 16, z.count, features, plane, start, runs.longest, SLOTS=LINES,
            )  # fmt: skip

    def points(self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32) -> Tensor:
        """Density ``(N,)`` at points ``(N, 3)`` in (z, x, y) order; outside the box that of its surface."""
        inside = self._clamped(zxy)
        out = torch.empty(len(zxy), device=self.device)
        on, active = self._levels(level_weights)
        kernels.points_forward[max(1, triton.cdiv(len(zxy), BLOCK)),](
            tables, weights, self._geometry, on, self._origin, self._spacing, inside, out, len(zxy), self.scale,
            **self._constants(active),
        )  # fmt: skip
        return out

    def points_backward(
        self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32, grad: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> Tensor:  # fmt: skip
        """Add the gradients of ``sum(grad * density)`` and return that of the points ``(N, 3)``, (z, x, y)."""
        inside = self._clamped(zxy)
        on, active = self._levels(level_weights)
        count, trainable = self.decoder.n_weights, self.decoder.trainable
        programs = max(1, min(triton.cdiv(len(zxy), BLOCK), self._programs))
        n_private = min(self._n_private, active)
        size = int(self.grid.starts[n_private])
        private = torch.zeros((PRIVATE_COPIES, max(size, 1)), device=self.device)
        partial = torch.zeros((programs if trainable else 1, count), device=self.device)
        grad_points = torch.empty_like(inside)
        kernels.points_backward[programs,](
            tables, weights, self._geometry, on, self._origin, self._spacing, inside, grad.contiguous(), grad_tables,
            private, grad_points, partial, len(zxy), count, size, n_private, PRIVATE_COPIES, self.scale,
            TRAIN=trainable, **self._constants(active),
        )  # fmt: skip
        grad_tables[:size] += private[:, :size].sum(dim=0)
        if trainable:
            grad_weights += partial.sum(dim=0)
        return grad_points * (inside == zxy)

    @property
    def _programs(self) -> int:
        if self.device == "cpu":
            return PROGRAMS_PER_PROCESSOR
        return PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(self.device).multi_processor_count

    def _clamped(self, zxy: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(zxy, self._origin), self._upper).contiguous()

    def _levels(self, level_weights: F32) -> tuple[Tensor, int]:
        active = int(np.max(np.nonzero(level_weights)[0], initial=-1)) + 1
        return torch.as_tensor(np.asarray(level_weights, dtype=np.float32), device=self.device), active

    def _lattice(self, plan: LatticePlan) -> tuple[Tensor, ...]:
        return (
            self._geometry, plan.level_weights, plan.z_index, plan.z_frac, plan.x_index, plan.x_frac, plan.y_index,
            plan.y_frac, plan.caps,
        )  # fmt: skip

    def _constants(self, active: int) -> dict[str, Any]:
        features, hidden = self.grid.features, _padded(self._width)
        return {
            "F": features, "ACTIVE": active, "NIN": self.grid.n_features, "WIDTH": self._width, "HIDDEN": self._hidden,
            "K": _padded(active * features), "H": hidden, "HALF": self._half, "BLOCK": BLOCK,
            "num_warps": 8 if hidden >= WIDE else 4,
        }  # fmt: skip


def _padded(size: int) -> int:
    """The next size that a matrix product takes."""
    return max(16, triton.next_power_of_2(size))
