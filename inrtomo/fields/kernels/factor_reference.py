"""Reference backend of vector-matrix factors: plain torch, float64, gradients by automatic differentiation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.factors import FactorGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Kernels:
    """Density of vector-matrix factors; see `inrtomo.fields.kernels.factor_cpu.Kernels` for the arguments."""

    def __init__(self, grid: FactorGrid, scale: float) -> None:
        self.grid, self.scale = grid, scale
        self._saved: Any = None

    def lattice(self, parameters: F32, weights: F32, axes: tuple[F64, F64, F64], which: NDArray[np.uint8]) -> F32:
        z, x, y = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
        kind = np.broadcast_to(which[:, :, None], [len(a) for a in axes])
        coarse = np.array([[row[1], row[2]] for row in self.grid.nodes[self.grid.n_tree :]])
        roots = coarse.max(axis=0) + 1
        at = [
            np.clip((v - self.grid.box[2 * a]) // self.grid.layers[-1, a], 0, roots[a] - 1).astype(int)
            for a, v in enumerate((x, y))
        ]
        outside = self.grid.n_tree + at[0] * roots[1] + at[1]
        node = np.where(kind.ravel() == 2, self.grid.node_of(x, y), outside)
        return self._evaluate(parameters, weights, np.stack([x, y, z], axis=1), node, kind.ravel() > 0).reshape(
            kind.shape
        )

    def lattice_backward(self, grad_rho: F32, grad: F32, grad_weights: F32) -> None:
        self.points_backward(grad_rho.ravel(), grad, grad_weights)

    def points(self, parameters: F32, weights: F32, xyz: F64) -> F32:
        node = self.grid.node_of(xyz[:, 0], xyz[:, 1])
        return self._evaluate(parameters, weights, xyz, node, np.ones(len(xyz), bool))

    def points_backward(self, given: F32, grad: F32, grad_weights: F32) -> F32:
        parameters, weights, points, density = self._saved
        density.backward(torch.as_tensor(given, dtype=torch.float64))
        grad += parameters.grad.numpy().astype(np.float32)
        grad_weights += weights.grad.numpy().astype(np.float32)
        return np.asarray(points.grad.numpy(), dtype=np.float32)

    def _evaluate(self, parameters: F32, weights: F32, xyz: F64, node: Any, keep: Any) -> F32:
        p, w, points = (
            torch.tensor(np.asarray(a), dtype=torch.float64, requires_grad=True) for a in (parameters, weights, xyz)
        )
        low, high = (torch.tensor(self.grid.box[k::2], dtype=torch.float64) for k in (0, 1))
        inside = torch.minimum(torch.maximum(points, low), high)
        # every node for itself: only few are met in a test
        argument = torch.zeros(len(xyz), dtype=torch.float64)
        for n in np.unique(node):
            chosen = torch.as_tensor(np.nonzero(node == n)[0])
            features = self._features(p, int(n), inside[chosen] - low)
            argument = argument.index_add(0, chosen, features @ w[:-1] + w[-1])
        density = self.scale * torch.nn.functional.softplus(argument, threshold=1e9) * torch.as_tensor(keep)
        self._saved = (p, w, points, density)
        return density.detach().numpy().astype(np.float32)

    def _features(self, parameters: torch.Tensor, node: int, xyz: torch.Tensor) -> torch.Tensor:
        """Features ``(N, features)`` at points of a node, counted from the box's corner."""
        layer, i, j, start = (int(v) for v in self.grid.nodes[node])
        sizes, intervals = self.grid.layers[layer, :3], self.grid.layers[layer, 3:]
        corner = torch.tensor([i * sizes[0], j * sizes[1], 0.0], dtype=torch.float64)
        u = (xyz - corner) / torch.tensor(sizes / intervals)
        # hat functions of all vertices, (N, vertices) along each axis
        hats = []
        for axis in range(3):
            count = int(intervals[axis]) + 1
            cell = torch.clamp(torch.floor(u[:, axis].detach()).long(), 0, count - 2)
            frac = u[:, axis] - cell
            lower = torch.nn.functional.one_hot(cell, count).double()
            upper = torch.nn.functional.one_hot(cell + 1, count).double()
            hats.append(lower * (1 - frac)[:, None] + upper * frac[:, None])
        x, y, z = hats
        r, (nx, ny, nz) = self.grid.features, self.grid.vertices(layer)
        shapes = ((nx, r), (r, ny), (nz, r), (nx, r, ny), (nx, nz, r), (nz, r, ny))
        blocks = []
        for size, shape in zip(self.grid.parts(layer), shapes, strict=True):
            blocks.append(parameters[start : start + size].reshape(shape))
            start += size
        x_of, y_of, z_of = x @ blocks[0], y @ blocks[1].T, z @ blocks[2]
        xy = torch.einsum("nx,ny,xry->nr", x, y, blocks[3])
        xz = torch.einsum("nx,nz,xzr->nr", x, z, blocks[4])
        yz = torch.einsum("nz,ny,zry->nr", z, y, blocks[5])
        return x_of * yz + y_of * xz + z_of * xy
