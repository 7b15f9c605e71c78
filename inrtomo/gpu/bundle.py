"""The bundle adjustment's Gauss-Newton step in torch: `inrtomo.align.bundle.solve` on a device.

Conjugate gradients as SciPy's: a step is made as long as the residual is above the tolerance. Whether it still is
decides on the device, and is read back only every `STEPS_BETWEEN_READS` steps; steps beyond it change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.bundle import AXIS_SD_RAD, CG_STEPS, CG_TOLERANCE, Motion, MotionModel, limited_step

Array = NDArray[Any]
Tensor = torch.Tensor

STEPS_BETWEEN_READS = 10


def solve(
    gradient: Array,
    information: Array,
    u: Array,
    tilt_deg: Array,
    motion: Motion,
    model: MotionModel,
    height_sd: Array,
    largest_px: float,
    device: str,
) -> Motion:
    """One Gauss-Newton step; arguments as of `inrtomo.align.bundle.solve`."""

    def tensor(values: Any) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), device=device)

    n_tilts = u.shape[1]
    n_motion = n_tilts * 2 * model.n_basis
    # tilts first, so that products over tracks are matrix products
    values = tensor(model.basis(u).transpose(1, 0, 2))
    turned, sine = tensor(np.stack([-u[..., 1], u[..., 0]], axis=-1)), tensor(np.sin(np.deg2rad(tilt_deg)))
    curvature, slopes = tensor(information), tensor(gradient)
    precision, height_precision = tensor(model.precision()), tensor(height_sd) ** -2

    def split(vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return vector[:n_motion].reshape(n_tilts, 2, model.n_basis), vector[n_motion], vector[n_motion + 1 :]

    def views(vector: Tensor) -> Tensor:
        coefficients, axis, height = split(vector)
        out = (values @ coefficients.mT).transpose(0, 1) + axis * turned
        out[..., 0] += height[:, None] * sine
        return out

    def parameters(per_view: Tensor) -> Tensor:
        coefficients = (values.mT @ per_view.transpose(0, 1)).mT
        return torch.cat([coefficients.flatten(), (turned * per_view).sum()[None], per_view[..., 0] @ sine])

    def prior(vector: Tensor) -> Tensor:
        coefficients, axis, height = split(vector)
        pulled = coefficients.reshape(n_tilts, -1) @ precision
        return torch.cat([pulled.flatten(), axis[None] / AXIS_SD_RAD**2, height * height_precision])

    def normal(vector: Tensor) -> Tensor:
        weighted = (curvature @ views(vector).permute(0, 2, 1)[..., None])[..., 0].permute(0, 2, 1)
        return parameters(weighted) + prior(vector)

    diagonal = curvature.diagonal(dim1=2, dim2=3).permute(0, 2, 1)
    blocks = torch.zeros((n_tilts, 2, model.n_basis, 2, model.n_basis), dtype=torch.float64, device=device)
    for c in range(2):
        blocks[:, c, :, c] = values.mT @ (values * diagonal[..., c].T[:, :, None])
    inverse, _ = torch.linalg.inv_ex(blocks.reshape(n_tilts, 2 * model.n_basis, -1) + precision)
    axis_scale = 1 / ((turned**2 * diagonal).sum() + 1 / AXIS_SD_RAD**2)
    height_scale = 1 / (diagonal[..., 0] @ sine**2 + height_precision)

    def precondition(vector: Tensor) -> Tensor:
        coefficients, axis, height = split(vector)
        first = (inverse @ coefficients.reshape(n_tilts, -1, 1))[..., 0]
        return torch.cat([first.flatten(), (axis * axis_scale)[None], height * height_scale])

    current = torch.cat([
        tensor(motion.coefficients).flatten(), tensor([motion.axis_rad]), tensor(motion.height),
    ])  # fmt: skip
    step = conjugate_gradients(normal, parameters(slopes) - prior(current), precondition)
    moved = views(step).cpu().numpy()
    return limited_step(current.cpu().numpy(), step.cpu().numpy(), moved, largest_px, n_tilts, model)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """``x`` with ``product(x) = right`` to `CG_TOLERANCE` of the right side's norm, from 0, in `CG_STEPS` at most."""
    x, residual = torch.zeros_like(right), right.clone()
    limit = CG_TOLERANCE * right.norm()
    direction, before = torch.zeros_like(right), torch.ones_like(limit)
    for number in range(CG_STEPS):
        going = residual.norm() > limit
        if number % STEPS_BETWEEN_READS == 0 and not bool(going):
            break
        towards = precondition(residual)
        now = residual @ towards
        direction = towards + now / before * direction
        image = product(direction)
        length = torch.where(going, now / (direction @ image), 0.0)
        x, residual, before = x + length * direction, residual - length * image, now
    return x
