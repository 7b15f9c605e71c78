"""Reference backend: the same densities and gradients in plain torch, float64, by automatic differentiation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import RUN, HashGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Kernels:
    """Density of a hash grid with a decoder; see `inrtomo.fields.kernels.cpu.Kernels` for the arguments."""

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float) -> None:
        self.grid, self.decoder, self.scale = grid, decoder, scale
        self._saved: Any = None

    def lattice(
        self, tables: F32, weights: F32, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8]
    ) -> F32:
        z, x, y = np.meshgrid(*axes, indexing="ij")
        cap = np.broadcast_to(caps[:, :, None], z.shape).ravel()
        used = level_weights[:, None] * (np.arange(self.grid.levels)[:, None] < cap)
        points = np.stack([z.ravel(), x.ravel(), y.ravel()], axis=1)
        return self._evaluate(tables, weights, points, used, cap > 0).reshape(z.shape)

    def lattice_backward(self, grad_rho: F32, grad_tables: F32, grad_weights: F32) -> None:
        self.points_backward(grad_rho.ravel(), grad_tables, grad_weights)

    def points(self, tables: F32, weights: F32, zxy: F32, level_weights: F32) -> F32:
        used = np.repeat(level_weights[:, None], len(zxy), axis=1)
        return self._evaluate(tables, weights, zxy, used, np.ones(len(zxy), bool))

    def points_backward(self, grad: F32, grad_tables: F32, grad_weights: F32) -> F32:
        tables, weights, points, density = self._saved
        density.backward(torch.as_tensor(grad, dtype=torch.float64))
        grad_tables += tables.grad.numpy().astype(np.float32)
        if self.decoder.trainable:
            grad_weights += weights.grad.numpy().astype(np.float32)
        return np.asarray(points.grad.numpy(), dtype=np.float32)

    def _evaluate(self, tables: F32, weights: F32, points: Any, used: Any, keep: Any) -> F32:
        t = torch.tensor(tables, dtype=torch.float64, requires_grad=True)
        w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        p = torch.tensor(points, dtype=torch.float64, requires_grad=True)
        value = self._encode(t, p, torch.as_tensor(used, dtype=torch.float64))
        at = 0
        for k, (i, o) in enumerate(pairwise(self.decoder.sizes)):
            value = value @ w[at : at + i * o].reshape(o, i).T + w[at + i * o : at + (i + 1) * o]
            at += (i + 1) * o
            if k < len(self.decoder.sizes) - 2:
                value = torch.relu(value)
        softplus = torch.nn.functional.softplus(value[:, 0], threshold=1e9)
        density = self.scale * softplus * torch.as_tensor(keep, dtype=torch.float64)
        self._saved = (t, w, p, density)
        return density.detach().numpy().astype(np.float32)

    def _encode(self, tables: torch.Tensor, points: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        grid = self.grid
        low = torch.as_tensor(grid.origin, dtype=torch.float64)
        high = torch.as_tensor(grid.upper, dtype=torch.float64)
        inside = torch.minimum(torch.maximum(points, low), high)
        features = []
        for level in range(grid.levels):
            position = (inside - low) / float(grid.spacing[level])
            shape = torch.as_tensor(grid.shapes[level])
            cell = torch.minimum(torch.floor(position.detach()).long(), shape - 2)
            f = position - cell
            total = torch.zeros((len(points), grid.features), dtype=torch.float64)
            for corner in np.ndindex(2, 2, 2):
                offset = torch.tensor(corner)
                weight = torch.where(offset == 1, f, 1 - f).prod(dim=1)
                entries = torch.as_tensor(self._entries((cell + offset).numpy(), level))
                table = tables[grid.level(level)].reshape(grid.features, -1)
                total = total + weight[:, None] * table[:, entries].T
            features.append(total * used[level][:, None])
        return torch.cat(features, dim=1)

    def _entries(self, vertex: NDArray[np.int64], level: int) -> NDArray[np.int64]:
        grid = self.grid
        z, x, y = vertex.T
        if grid.masks[level] == 0:
            return np.asarray((z * grid.shapes[level, 1] + x) * grid.shapes[level, 2] + y)
        runs = (y // RUN).astype(np.uint64) * np.uint64(805459861)
        slot = (x.astype(np.uint64) ^ (z.astype(np.uint64) * np.uint64(2654435761)) ^ runs) & np.uint64(
            grid.masks[level]
        )
        return np.asarray(slot.astype(np.int64) * RUN + y % RUN)
