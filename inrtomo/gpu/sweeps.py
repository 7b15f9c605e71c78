"""Sweeps of SIRT and SART on a device: `inrtomo.reconstruct.sweeps.Sweeps` on tensors that stay there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.gpu import operations
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.reconstruct.joseph import NO_BOUND
from inrtomo.reconstruct.rays import Rays
from inrtomo.reconstruct.sweeps import LEAST_COLUMN_SUM, LEAST_PATH, TINY, interleaved

Tensor = torch.Tensor
F32 = NDArray[np.float32]


class DeviceSweeps:
    """As `Sweeps`; `density` is copied back when it is asked for."""

    def __init__(
        self, rays: Rays, images: F32, weight: F32, level: NDArray[np.float64], n_subsets: int, device: str,
        allowed: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        self.ops, self.device, self.spacing = operations.of(device), device, rays.lattice.spacing
        rows, cols = rays.window

        def tensor(values: Any) -> Tensor:
            return torch.tensor(np.ascontiguousarray(values, dtype=np.float32), device=device)

        self.images = tensor(images[:, rows, cols] - level[:, None, None])
        self.u, self.v = (tensor(values) for values in rays.indices)
        self.rows = rays.lattice.shape[2]
        self.geometry = TiltGeometry(rays.lattice, rays.tilt_deg, rays.n_u, device)
        subsets = interleaved(rays.tilt_deg, n_subsets)
        self.parts = [TiltGeometry(rays.lattice, rays.tilt_deg[s], rays.n_u, device) for s in subsets]
        self.subsets = [torch.tensor(s, device=device) for s in subsets]
        self.volume = torch.ones(rays.lattice.shape, device=device)
        paths = self._forward(slice(None), self.geometry)
        self.least = [
            max(TINY, LEAST_COLUMN_SUM * self.spacing * float(weight[s].max(axis=(1, 2)).sum())) for s in subsets
        ]
        seen = rays.seen(np.arange(len(images)))
        weights = tensor(weight[:, rows, cols] * seen) * (paths > LEAST_PATH * self.spacing)
        self.pixel = weights / paths.clamp_min(LEAST_PATH * self.spacing)
        self.volume.zero_()
        self.allowed = None if allowed is None else tensor(allowed)
        self.step: Tensor | None = None
        self.received: list[Tensor] = []
        if len(subsets) > 1:
            self.received = [self._spread(weights[s], s) for s in self.subsets]
        else:
            step = torch.zeros_like(self.volume)
            self.ops.add_back_projection(step, self._spread(weights, slice(None)), self.geometry)
            self.step = step.clamp_min_(self.least[0]).reciprocal_()

    @property
    def density(self) -> F32:
        """``[z, x, y]`` on the rays' lattice."""
        return np.asarray(self.volume.cpu().numpy(), dtype=np.float32)

    def sweep(self, relaxation: float = 1.0, lowest: float = NO_BOUND) -> None:
        """One iteration: every subset once, in turn."""
        for k, (subset, part) in enumerate(zip(self.subsets, self.parts, strict=True)):
            errors = relaxation * (self.images[subset] - self._forward(subset, part)) * self.pixel[subset]
            ideal = self._spread(errors, subset)
            if self.received:
                self.ops.correct_by_means(
                    self.volume, ideal, self.received[k], part, part.every, self.least[k], lowest
                )  # fmt: skip
            else:
                self.ops.correct(self.volume, ideal, part, part.every, self.step, lowest)
            if self.allowed is not None:
                self.volume *= self.allowed

    def lower_variation(self, descent: float, rounding: float, steps: int, lowest: float) -> None:
        """As `inrtomo.reconstruct.sart_tv._lower_variation`."""
        for _ in range(steps):
            slope = torch.zeros_like(self.volume)
            self.ops.add_variation(slope, self.volume, descent / steps, rounding)
            self.volume -= slope
        self.volume.clamp_min_(lowest)

    def _forward(self, tilts: Any, geometry: TiltGeometry) -> Tensor:
        ideal = self.ops.project(self.volume, geometry)
        values: Tensor = self.ops.values_at(ideal, self.u[tilts].contiguous(), self.v[tilts].contiguous())
        return values * self.spacing

    def _spread(self, values: Tensor, tilts: Any) -> Tensor:
        u, v = self.u[tilts].contiguous(), self.v[tilts].contiguous()
        shape = len(u), self.geometry.n_u, self.rows
        spread: Tensor = self.ops.spread_at(values.contiguous(), u, v, shape)
        return spread * self.spacing
