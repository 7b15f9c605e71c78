"""Local motion as one small network per tilt (2023 paper), in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.deformation import F32, F64, Deformation, Interpolation


class Network(Deformation):
    """One perceptron ``2 -> width -> width -> 2`` per tilt, all tilts as one batch of matrix products.

    Inputs are aligned positions over the half-widths of the node grid, outputs are in units of ``amplitude_px``.
    The last layer starts at zero, so there is no motion at first.
    """

    def __init__(
        self,
        n_tilts: int,
        x: F64,
        y: F64,
        interpolation: Interpolation = "bicubic",
        *,
        width: int = 32,
        amplitude_px: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._shapes = [(width, 2), (width,), (width, width), (width,), (2, width), (2,)]
        self._amplitude = amplitude_px
        rng = np.random.default_rng(seed)
        layers = [rng.normal(scale=np.sqrt(2 / s[-1]), size=(n_tilts, *s)) for s in self._shapes]
        for k in (1, 3, 4, 5):
            layers[k][:] = 0.0
        layers[1][:] = rng.uniform(-1, 1, size=layers[1].shape)  # bends all over the image, not at its centre only
        flat = np.concatenate([layer.reshape(n_tilts, -1) for layer in layers], axis=1)
        super().__init__(n_tilts, x, y, interpolation, flat.astype(np.float32).ravel())
        half = max(np.abs(self.x).max(), np.abs(self.y).max(), 1.0)
        node_x, node_y = np.meshgrid(self.x / half, self.y / half)
        self.positions = torch.tensor(np.stack([node_x.ravel(), node_y.ravel()], axis=1), dtype=torch.float32)

    def vectors(self, tilts: NDArray[np.integer[Any]] | None = None) -> F32:
        with torch.no_grad():
            return np.asarray(self._run(torch.from_numpy(self._parameters), tilts).numpy(), dtype=np.float32)

    def backward_vectors(self, grad: F32, tilts: NDArray[np.integer[Any]] | None = None) -> None:
        flat = torch.from_numpy(self._parameters).requires_grad_()
        (slope,) = torch.autograd.grad(self._run(flat, tilts), flat, torch.as_tensor(np.asarray(grad, np.float32)))
        self.grad += slope.numpy()

    def _run(self, flat: torch.Tensor, tilts: NDArray[np.integer[Any]] | None) -> torch.Tensor:
        rows = flat.reshape(self.n_tilts, -1)
        if tilts is not None:
            rows = rows[torch.as_tensor(np.asarray(tilts), dtype=torch.long)]
        return self.run(rows, self.positions)

    def run(self, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Node vectors ``(tilts, ny, nx, 2)`` of perceptrons ``(tilts, parameters)`` at `positions`, on any device."""
        sizes = [int(np.prod(s)) for s in self._shapes]
        w1, b1, w2, b2, w3, b3 = (
            part.reshape(len(rows), *shape)
            for part, shape in zip(torch.split(rows, sizes, dim=1), self._shapes, strict=True)
        )
        value = torch.nn.functional.silu(positions @ w1.mT + b1[:, None])
        value = torch.nn.functional.silu(value @ w2.mT + b2[:, None])
        value = (value @ w3.mT + b3[:, None]) * self._amplitude
        out: torch.Tensor = value.reshape(len(rows), len(self.y), len(self.x), 2)
        return out
