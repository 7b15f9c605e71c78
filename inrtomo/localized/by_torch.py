"""Maps and features by torch, for a GPU: what `tilts` and `sampling` do with numba, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from inrtomo.localized.tilts import Plan

F32 = NDArray[np.float32]


def maps_by_torch(
    images: F32, valid: NDArray[np.bool_], rows: NDArray[np.int64], low: int, plans: Sequence[Plan], device: str
) -> list[Tensor]:
    """Maps ``(n_tilts, rows, columns, channels)`` of every plan, on the device.

    Args:
        images, valid: of all tilts, ``(n_tilts, rows, columns)``.
        rows: those of them that are wanted, the first of which is row ``low`` of the plans.
    """
    out = [torch.empty((len(images), len(p.taps), p.n_u, len(p.scale.channels)), device=device) for p in plans]
    across = [[torch.from_numpy(a).to(device) for a in p.across] for p in plans]
    along = [[torch.from_numpy(k).to(device) for k in _matrices(p)] for p in plans]
    for m in range(len(images)):
        spectra = {}
        for ramp, source in ((True, images), (False, valid)):
            if any(p.scale.ramp == ramp for p in plans):
                lines = torch.from_numpy(np.asarray(source[m, rows], dtype=np.float32)).to(device)
                spectra[ramp] = torch.fft.rfft(lines, dim=1)
        for p, factors, kernels, values in zip(plans, across, along, out, strict=True):
            lines = spectra[p.scale.ramp][p.rows.start - low : p.rows.stop - low, : len(factors[0])]
            for a, factor in enumerate(factors):
                seen = torch.fft.irfft(lines * factor, n=p.n_u, dim=1)
                for b, channel in enumerate(p.scale.columns(a)):
                    values[m, :, :, int(channel)] = kernels[b] @ seen
    return out


def sample_by_torch(
    maps: Tensor, points: F32 | Tensor, rays: F32, where: F32, factors: F32, channel_of: NDArray[np.int64]
) -> Tensor:
    """Features ``(n, n_features)`` of points ``(n, 3)``, which stay on the device; see `sampling.sampled`."""
    device = maps.device
    n_tilts, n_v, n_u, n_c = maps.shape
    p = torch.as_tensor(points, dtype=torch.float32, device=device)
    out = torch.zeros((len(points), factors.shape[1]), device=device)
    channels = torch.from_numpy(channel_of).to(device)
    weights, directions = torch.from_numpy(factors).to(device), torch.from_numpy(rays).to(device)
    for m in range(n_tilts):
        table, ray = maps[m].reshape(n_v * n_u, n_c), directions[m]
        # not a matrix product: on a GPU that may be one of ten bits
        u = p[:, 0] * ray[0] + p[:, 1] * ray[1] + p[:, 2] * ray[2]
        v = p[:, 1] * ray[3] + p[:, 2] * ray[4]
        u = ((u - float(where[0])) / float(where[2])).clamp(0, n_u - 1.001)
        v = ((v - float(where[1])) / float(where[2])).clamp(0, n_v - 1.001)
        j, k = u.long(), v.long()
        fu, fv = (u - j)[:, None], (v - k)[:, None]
        at = k * n_u + j
        here = torch.lerp(table[at], table[at + 1], fu)
        below = torch.lerp(table[at + n_u], table[at + n_u + 1], fu)
        out += torch.lerp(here, below, fv)[:, channels] * weights[m]
    return out


def fetched(values: F32 | Tensor) -> F32:
    """As an array, wherever it was made."""
    return np.asarray(values.cpu().numpy() if isinstance(values, Tensor) else values)


def _matrices(plan: Plan) -> list[F32]:
    """The kernels along the axis as matrices ``(rows of the maps, rows of the images)``, one for each order."""
    out = []
    for kernels in plan.kernels:
        dense = np.zeros((len(plan.taps), len(plan.rows)), dtype=np.float32)
        for r, (start, kernel) in enumerate(zip(plan.taps, kernels, strict=True)):
            dense[r, start : start + len(kernel)] = kernel
        out.append(dense)
    return out
