"""The operations of `compiled` in plain torch: what stands in for them where Triton is not, and checks them."""

from __future__ import annotations

import torch

from inrtomo.gpu.geometry import TiltGeometry

Tensor = torch.Tensor


def _shares(geometry: TiltGeometry, tilt: int, nx: int) -> Tensor:
    """Share of every ray and voxel of a tilt, ``(n_u, nz * nx)``."""
    cosine, scale = geometry.angles[tilt, 0], geometry.angles[tilt, 1]
    x = geometry.x0 + torch.arange(nx, device=geometry.device)
    u = geometry.u0 + torch.arange(geometry.n_u, device=geometry.device)
    centre = (x * cosine + geometry.places[tilt][:, None]).flatten()
    return (1 - (u[:, None] - centre).abs() * scale).clamp_min(0) * scale


def project(rho: Tensor, geometry: TiltGeometry) -> Tensor:
    nz, nx, ny = rho.shape
    flat = rho.reshape(nz * nx, ny)
    return torch.stack([_shares(geometry, tilt, nx) @ flat for tilt in range(geometry.n_tilts)])


def add_back_projection(rho: Tensor, projections: Tensor, geometry: TiltGeometry) -> None:
    rho += _adjoint(projections, geometry, range(geometry.n_tilts), rho.shape)


def correct(
    rho: Tensor, projections: Tensor, geometry: TiltGeometry, tilts: Tensor, step: Tensor | None, lowest: float
) -> None:
    total = _adjoint(projections, geometry, tilts.tolist(), rho.shape)
    _move(rho, total if step is None else step * total, geometry, tilts, lowest)


def correct_by_means(
    rho: Tensor, projections: Tensor, received: Tensor, geometry: TiltGeometry, tilts: Tensor, least: float,
    lowest: float,
) -> None:  # fmt: skip
    weight = _adjoint(received, geometry, tilts.tolist(), rho.shape).clamp_min(least)
    _move(rho, _adjoint(projections, geometry, tilts.tolist(), rho.shape) / weight, geometry, tilts, lowest)


def _adjoint(projections: Tensor, geometry: TiltGeometry, tilts: list[int] | range, shape: torch.Size) -> Tensor:
    parts = [_shares(geometry, tilt, shape[1]).T @ projections[k] for k, tilt in enumerate(tilts)]
    return torch.stack(parts).sum(dim=0).reshape(shape)


def _move(rho: Tensor, change: Tensor, geometry: TiltGeometry, tilts: Tensor, lowest: float) -> None:
    """Where a ray passes."""
    rows = tilts.long()
    x = geometry.x0 + torch.arange(rho.shape[1], device=rho.device)
    at = x * geometry.angles[rows, 0][:, None, None] + geometry.places[rows][:, :, None] - geometry.u0
    passed = ((at > -1) & (at < geometry.n_u)).any(dim=0)
    rho.copy_(torch.where(passed[:, :, None], (rho + change).clamp_min(lowest), rho))


def _cubic(f: Tensor) -> Tensor:
    """Catmull-Rom weights of the four neighbours, in front."""
    f2, f3 = f * f, f * f * f
    return 0.5 * torch.stack([-f + 2 * f2 - f3, 2 - 5 * f2 + 3 * f3, f + 4 * f2 - 3 * f3, f3 - f2])


def _cubic_slope(f: Tensor) -> Tensor:
    f2 = f * f
    return 0.5 * torch.stack([-1 + 4 * f - 3 * f2, -10 * f + 9 * f2, 1 + 8 * f - 9 * f2, 3 * f2 - 2 * f])


def _neighbours(u: Tensor, v: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flat indices ``(4, 4, ...)`` of what a reading uses, whether it is all there, and the fractions."""
    n, n_u, n_v = shape
    iu, iv = u.floor().long(), v.floor().long()
    inside = (iu >= 1) & (iv >= 1) & (iu <= n_u - 3) & (iv <= n_v - 3)
    tilt = torch.arange(n, device=u.device)[:, None, None]
    first = torch.where(inside, (tilt * n_u + iu - 1) * n_v + iv - 1, 0)
    taps = torch.arange(4, device=u.device)
    at = first + (taps[:, None] * n_v + taps)[:, :, None, None, None]
    return at, inside, u - iu, v - iv


def read_at(projections: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at, inside, fu, fv = _neighbours(u, v, projections.shape)
    samples = projections.flatten()[at]
    wu, wv = _cubic(fu), _cubic(fv)
    value = torch.where(inside, torch.einsum("abnij,anij,bnij->nij", samples, wu, wv), torch.nan)
    slope_u = torch.einsum("abnij,anij,bnij->nij", samples, _cubic_slope(fu), wv) * inside
    slope_v = torch.einsum("abnij,anij,bnij->nij", samples, wu, _cubic_slope(fv)) * inside
    return value, slope_u, slope_v


def values_at(projections: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return read_at(projections, u, v)[0].nan_to_num(0.0)


def spread_at(values: Tensor, u: Tensor, v: Tensor, shape: tuple[int, int, int]) -> Tensor:
    at, inside, fu, fv = _neighbours(u, v, torch.Size(shape))
    given = torch.where(inside, values, 0)
    parts = torch.einsum("nij,anij,bnij->abnij", given, _cubic(fu), _cubic(fv))
    out = torch.zeros(shape, device=values.device)
    out.view(-1).index_add_(0, at.flatten(), parts.flatten())
    return out


def add_variation(grad: Tensor, rho: Tensor, weight: float, rounding: float) -> None:
    steps = []
    for axis in range(3):
        last = rho.narrow(axis, rho.shape[axis] - 1, 1)
        steps.append(torch.diff(rho, dim=axis, append=last))
    length = torch.sqrt(sum((d * d for d in steps), torch.zeros_like(rho)) + rounding**2)
    for axis, d in enumerate(steps):
        part = weight * d / length
        grad -= part
        size = rho.shape[axis]
        grad.narrow(axis, 1, size - 1).add_(part.narrow(axis, 0, size - 1))


def adam(
    parameters: Tensor, gradient: Tensor, first: Tensor, second: Tensor, steps: Tensor, beta1: float, beta2: float,
    epsilon: float,
) -> None:  # fmt: skip
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameters.sub_(steps[0] * first / (second.sqrt() * steps[1] + epsilon))


def back_project_lines(
    lines: Tensor, cosines: Tensor, sines: Tensor, z: Tensor, x: Tensor, u0: float, samples: int, out: Tensor
) -> None:
    for line, cosine, sine in zip(lines, cosines, sines, strict=True):
        at = (x * cosine + z[:, None] * sine - u0) * samples
        j = at.floor().long()
        inside = (j >= 0) & (j + 1 < len(line))
        j, f = j.clamp(0, len(line) - 2), (at - j)[:, :, None]
        out += ((1 - f) * line[j] + f * line[j + 1]) * inside[:, :, None]
