"""The same field in plain torch: gathers and automatic differentiation, on whatever device torch has.

Slow and hungry for memory; it stands in for `hash_field.HashField` where Triton is not, and is a line of the GPU
benchmark.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import RUN, HashGrid
from inrtomo.gpu.plan import LatticePlan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tensor = torch.Tensor


class PlainField:
    """As `hash_field.HashField`, float32 throughout."""

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float, device: str) -> None:
        self.grid, self.decoder, self.scale, self.device = grid, decoder, float(scale), device
        self._origin = torch.tensor(grid.origin, device=device)
        self._upper = torch.tensor(grid.upper, device=device)

    def plan(self, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8]) -> LatticePlan:
        return LatticePlan(self.grid, axes, level_weights, caps, self.device)

    def lattice(self, tables: Tensor, weights: Tensor, plan: LatticePlan) -> Tensor:
        with torch.no_grad():
            return self._on_lattice(tables, weights, plan)

    def lattice_backward(
        self, tables: Tensor, weights: Tensor, plan: LatticePlan, grad_rho: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> None:  # fmt: skip
        t, w = tables.detach().requires_grad_(), weights.detach().requires_grad_()
        by_tables, by_weights = torch.autograd.grad(self._on_lattice(t, w, plan), (t, w), grad_rho)
        grad_tables += by_tables
        if self.decoder.trainable:
            grad_weights += by_weights

    def points(self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32) -> Tensor:
        with torch.no_grad():
            return self._at_points(tables, weights, zxy, level_weights)

    def points_backward(
        self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32, grad: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> Tensor:  # fmt: skip
        t, w, p = (v.detach().requires_grad_() for v in (tables, weights, zxy))
        density = self._at_points(t, w, p, level_weights)
        by_tables, by_weights, by_points = torch.autograd.grad(density, (t, w, p), grad)
        grad_tables += by_tables
        if self.decoder.trainable:
            grad_weights += by_weights
        return by_points

    def _on_lattice(self, tables: Tensor, weights: Tensor, plan: LatticePlan) -> Tensor:
        features = []
        for level in range(self.grid.levels):
            used = plan.level_weights[level] * (plan.caps > level)
            cells = (
                plan.z_index[level].long()[:, None, None], plan.x_index[level].long()[:, None],
                plan.y_index[level].long(),
            )  # fmt: skip
            fracs = plan.z_frac[level][:, None, None], plan.x_frac[level][:, None], plan.y_frac[level]
            features.append(self._interpolated(tables, level, cells, fracs) * used[:, :, None])
        density = self._decoded(torch.cat(features).flatten(1).T, weights).reshape(plan.shape)
        return density * (plan.caps > 0)[:, :, None]

    def _at_points(self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32) -> Tensor:
        inside = torch.minimum(torch.maximum(zxy, self._origin), self._upper)
        features = []
        for level in range(self.grid.levels):
            cells, fracs = [], []
            for axis in range(3):
                place = (inside[:, axis] - self._origin[axis]) / float(self.grid.spacing[level])
                cell = place.detach().long().clamp(0, int(self.grid.shapes[level, axis]) - 2)
                cells.append(cell)
                fracs.append(place - cell)
            value = self._interpolated(tables, level, (cells[0], cells[1], cells[2]), (fracs[0], fracs[1], fracs[2]))
            features.append(value * float(level_weights[level]))
        return self._decoded(torch.cat(features).T, weights)

    def _interpolated(
        self, tables: Tensor, level: int, cells: tuple[Tensor, Tensor, Tensor], fracs: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Features ``(F, ...)`` of a level; cells and fractions broadcast."""
        table = tables[self.grid.level(level)].reshape(self.grid.features, -1)
        total = torch.zeros((), device=self.device)
        for corner in np.ndindex(2, 2, 2):
            w = torch.ones((), device=self.device)
            for c, f in zip(corner, fracs, strict=True):
                w = w * (f if c else 1 - f)
            entry = self._entry(level, cells[0] + corner[0], cells[1] + corner[1], cells[2] + corner[2])
            total = total + w * table[:, entry]
        return total

    def _entry(self, level: int, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        mask = int(self.grid.masks[level])
        if mask == 0:
            return (z * int(self.grid.shapes[level, 1]) + x) * int(self.grid.shapes[level, 2]) + y
        slot = (x ^ (z * 2654435761) ^ ((y // RUN) * 805459861)) & mask
        return slot * RUN + y % RUN

    def _decoded(self, features: Tensor, weights: Tensor) -> Tensor:
        value, at, sizes = features, 0, self.decoder.sizes
        for k, (i, o) in enumerate(pairwise(sizes)):
            matrix, offsets = weights[at : at + i * o].reshape(o, i), weights[at + i * o : at + (i + 1) * o]
            value = torch.nn.functional.linear(value, matrix, offsets)
            at += (i + 1) * o
            if k < len(sizes) - 2:
                value = torch.relu(value)
        return self.scale * torch.nn.functional.softplus(value[:, 0], threshold=1e9)
