"""The operations of projection, reading, priors and updates on tensors, by Triton; `plain` has the same ones."""

from __future__ import annotations

import torch
import triton

from inrtomo.gpu import projector_kernels as kernels
from inrtomo.gpu.geometry import TiltGeometry

Tensor = torch.Tensor

RAYS, ROWS = 8, 64  # of a tile
PIXELS, ELEMENTS = 256, 1024


def project(rho: Tensor, geometry: TiltGeometry) -> Tensor:
    """Line integrals ``(n_tilts, n_u, ny)`` of a density ``(nz, nx, ny)``; see `inrtomo.projection.project`."""
    nz, nx, ny = rho.shape
    out = torch.empty((geometry.n_tilts, geometry.n_u, ny), device=rho.device)
    grid = triton.cdiv(ny, ROWS), triton.cdiv(geometry.n_u, RAYS), geometry.n_tilts
    kernels.project[grid](
        rho, geometry.places, geometry.angles, out, nz, nx, ny, geometry.n_u, float(geometry.x0), float(geometry.u0),
        RAYS=RAYS, ROWS=ROWS,
    )  # fmt: skip
    return out


def add_back_projection(rho: Tensor, projections: Tensor, geometry: TiltGeometry) -> None:
    """Add the adjoint of `project` to ``rho``."""
    _back_project(kernels.ADD, rho, projections, geometry)


def correct(
    rho: Tensor, projections: Tensor, geometry: TiltGeometry, tilts: Tensor, step: Tensor | None, lowest: float
) -> None:
    """``rho = max(lowest, rho + step * adjoint)`` for some tilts; as `inrtomo.reconstruct.joseph.correct`."""
    mode = kernels.CORRECT if step is None else kernels.CORRECT_BY_STEP
    _back_project(mode, rho, projections, geometry, tilts, step=step, lowest=lowest)


def correct_by_means(
    rho: Tensor, projections: Tensor, received: Tensor, geometry: TiltGeometry, tilts: Tensor, least: float,
    lowest: float,
) -> None:  # fmt: skip
    """As `correct`, the step being ``1 / max(least, adjoint of received)``."""
    _back_project(
        kernels.CORRECT_BY_MEANS, rho, projections, geometry, tilts, received=received, least=least, lowest=lowest
    )


def _back_project(
    mode: triton.language.constexpr, rho: Tensor, projections: Tensor, geometry: TiltGeometry,
    tilts: Tensor | None = None, received: Tensor | None = None, step: Tensor | None = None, least: float = 0.0,
    lowest: float = 0.0,
) -> None:  # fmt: skip
    nz, nx, ny = rho.shape
    tilts = geometry.every if tilts is None else tilts
    grid = triton.cdiv(ny, ROWS), triton.cdiv(nx, RAYS), nz
    kernels.back_project[grid](
        rho, projections, projections if received is None else received, rho if step is None else step, tilts,
        geometry.places, geometry.angles, nz, nx, ny, len(tilts), geometry.n_u, float(geometry.x0), float(geometry.u0),
        float(least), float(lowest), MODE=mode.value, VOXELS=RAYS, ROWS=ROWS,
    )  # fmt: skip


def read_at(projections: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projections at fractional indices and their derivatives; NaN outside. See `inrtomo.projection.read_at`."""
    value, slope_u, slope_v = torch.empty_like(u), torch.empty_like(u), torch.empty_like(u)
    _read(projections, u, v, value, slope_u, slope_v, slopes=True)
    return value, slope_u, slope_v


def values_at(projections: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`read_at`'s value alone, zero outside."""
    value = torch.empty_like(u)
    _read(projections, u, v, value, value, value, slopes=False)
    return value


def _read(
    projections: Tensor, u: Tensor, v: Tensor, value: Tensor, slope_u: Tensor, slope_v: Tensor, slopes: bool
) -> None:
    _, n_u, n_v = projections.shape
    kernels.read[triton.cdiv(u.numel(), PIXELS),](
        projections, u, v, value, slope_u, slope_v, u.numel(), u[0].numel(), n_u, n_v, SLOPES=slopes, BLOCK=PIXELS
    )


def spread_at(values: Tensor, u: Tensor, v: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Adjoint of `values_at`."""
    out = torch.zeros(shape, device=values.device)
    kernels.spread[triton.cdiv(u.numel(), PIXELS),](
        values, u, v, out, u.numel(), u[0].numel(), shape[1], shape[2], BLOCK=PIXELS
    )
    return out


def add_variation(grad: Tensor, rho: Tensor, weight: float, rounding: float) -> None:
    """Add ``weight`` times the gradient of `inrtomo.priors.total_variation` to ``grad``."""
    kernels.add_variation[triton.cdiv(rho.numel(), ELEMENTS),](
        rho, grad, *rho.shape, rho.numel(), float(weight), float(rounding), BLOCK=ELEMENTS
    )


def adam(
    parameters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, beta1: float, beta2: float,
    epsilon: float,
) -> None:  # fmt: skip
    """One update in place; ``steps``: step size and second moment's correction, on the device."""
    n = parameters.numel()
    kernels.adam[triton.cdiv(n, ELEMENTS),](
        parameters, gradient, first, second, steps, n, beta1, beta2, epsilon, BLOCK=ELEMENTS
    )


def back_project_lines(
    lines: Tensor, cosines: Tensor, sines: Tensor, z: Tensor, x: Tensor, u0: float, samples: int, out: Tensor
) -> None:
    """Add lines ``(n_tilts, n_u, rows)`` along their rays to ``out (nz, nx, rows)``."""
    n_tilts, n_u, rows = lines.shape
    nz, nx, _ = out.shape
    grid = triton.cdiv(rows, 32), triton.cdiv(nx, 16), nz
    kernels.back_project_lines[grid](
        lines, cosines, sines, z, x, out, n_tilts, n_u, nz, nx, rows, float(u0), float(samples), VOXELS=16, ROWS=32
    )
