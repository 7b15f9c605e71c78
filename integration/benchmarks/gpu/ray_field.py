"""Line integrals of a hash field along rays, integrated within the field's kernel; and their float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from inrtomo.fields.grid import GridField
from inrtomo.gpu.hash_field import BLOCK, PRIVATE_COPIES, HashField
from integration.benchmarks.gpu import ray_kernels as kernels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tensor = torch.Tensor


class RayField(HashField):
    """A hash field that is projected without a lattice.

    Rays are given by ``tilt_deg (tilts,)``, ``u`` and ``y (tilts, n_u, n_y)`` in raw px from the centre, neighbours
    along y last; ``u (tilts, n_u, 1)`` where it does not change along y, which saves work. ``step`` is the distance of
    samples in raw px; where they are is told in `ray_kernels`.
    """

    def rays(
        self, tables: Tensor, weights: Tensor, tilt_deg: F64, u: Tensor, y: Tensor, level_weights: F32, step: float
    ) -> Tensor:
        """Line integrals ``(tilts, n_u, n_y)`` in density x raw px."""
        n_tilts, n_u, n_y = y.shape
        out = torch.empty(y.shape, device=self.device)
        on, active = self._levels(level_weights)
        kernels.rays_forward[n_tilts * n_u, triton.cdiv(n_y, BLOCK)](
            tables, weights, self._geometry, on, *self._rays(tilt_deg, u, y), out, n_u, n_y, float(step), self.scale,
            BENT=u.shape == y.shape, **self._constants(active),
        )  # fmt: skip
        return out

    def rays_backward(
        self, tables: Tensor, weights: Tensor, tilt_deg: F64, u: Tensor, y: Tensor, level_weights: F32, step: float,
        grad: Tensor, grad_tables: Tensor, grad_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Add the gradients of ``sum(grad * rays)``; returned are every ray's by u and y, both of the shape of y."""
        n_tilts, n_u, n_y = y.shape
        on, active = self._levels(level_weights)
        count, trainable = self.decoder.n_weights, self.decoder.trainable
        programs = min(n_tilts * n_u * triton.cdiv(n_y, BLOCK), self._programs)
        n_private = min(self._n_private, active)
        size = int(self.grid.starts[n_private])
        private = torch.zeros((PRIVATE_COPIES, max(size, 1)), device=self.device)
        partial = torch.zeros((programs if trainable else 1, count), device=self.device)
        grad_u, grad_y = torch.empty(y.shape, device=self.device), torch.empty(y.shape, device=self.device)
        kernels.rays_backward[programs,](
            tables, weights, self._geometry, on, *self._rays(tilt_deg, u, y), grad.contiguous(), grad_tables, private,
            grad_u, grad_y, partial, n_tilts * n_u, n_u, n_y, count, size, n_private, PRIVATE_COPIES, float(step),
            self.scale, BENT=u.shape == y.shape, TRAIN=trainable, **self._constants(active),
        )  # fmt: skip
        grad_tables[:size] += private[:, :size].sum(dim=0)
        if trainable:
            grad_weights += partial.sum(dim=0)
        return grad_u, grad_y

    def _rays(self, tilt_deg: F64, u: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        tilt = np.deg2rad(tilt_deg)
        angles = torch.tensor(np.stack([np.cos(tilt), np.sin(tilt)], axis=1), dtype=torch.float32, device=self.device)
        return self._origin, self._upper, self._spacing, angles, u.contiguous(), y.contiguous()


def marched(
    field: GridField, tilt_deg: F64, u: Any, y: Any, step: float, grad: Any, active_levels: float | None = None
) -> tuple[F64, F64, F64]:
    """What `RayField` computes, from a field's own densities at the very same samples.

    Returns:
        Line integrals, and the gradients of ``sum(grad * integrals)`` by u and y; those of the parameters are added
        to the field's.
    """
    u, y = np.broadcast_to(np.asarray(u, dtype=np.float64), y.shape), np.asarray(y, dtype=np.float64)
    x0, x1, y0, y1, z0, z1 = field.grid.box
    tilt = np.deg2rad(tilt_deg)[:, None, None, None]
    most = int(np.ceil((np.abs(u).max() + np.abs(field.grid.box).sum()) / step))
    s = np.arange(-most, most + 1) * step
    x, z = u[..., None] * np.cos(tilt) - s * np.sin(tilt), u[..., None] * np.sin(tilt) + s * np.cos(tilt)
    at_y = np.broadcast_to(y[..., None], x.shape)
    inside = (x >= x0) & (x <= x1) & (z >= z0) & (z <= z1) & (at_y >= y0) & (at_y <= y1)
    ray = np.broadcast_to(np.arange(y.size).reshape(y.shape)[..., None], x.shape)[inside]
    xyz = np.stack([x[inside], at_y[inside], z[inside]], axis=1).astype(np.float32)
    cosine, sine = (np.broadcast_to(f(tilt), x.shape)[inside] for f in (np.cos, np.sin))

    def summed(values: Any) -> F64:
        return np.bincount(ray, values, minlength=y.size).reshape(y.shape)

    integrals = step * summed(field.points(xyz, active_levels))
    by_x, by_y, by_z = field.backward_points((step * np.asarray(grad).ravel()[ray]).astype(np.float32)).T
    return integrals, summed(by_x * cosine + by_z * sine), summed(by_y)
