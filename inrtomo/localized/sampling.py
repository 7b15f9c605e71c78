"""Features of points: every tilt's maps read where the tilt sees the point, and summed over the tilts.

One loop for any point of any geometry, x-tilt included, compiled; `by_torch` has it for a GPU. Positions are float32,
relative to the first sample of a map.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inrtomo.localized.by_torch import sample_by_torch
from inrtomo.localized.tilts import FilteredTilts, Maps

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

BLOCK = 1024  # points that stay in cache while the tilts go by


def sampled(tilts: FilteredTilts, maps: Maps, points: F32 | Tensor) -> F32 | Tensor:
    """Features ``(n, n_features)`` of the maps' scale at specimen points ``(n, 3)`` (x, y, z), px, where the maps are.

    A point outside a map takes the nearest of its samples.
    """
    scale = maps.scale
    factors = (scale.angular(tilts.tilt) * tilts.weight[:, None]).astype(np.float32)
    if not scale.ramp:
        factors /= tilts.weight.sum().astype(np.float32)
    rays = _rays(tilts)
    where = np.array([maps.u0, maps.v0, scale.step], dtype=np.float32)
    if isinstance(maps.values, Tensor):
        return sample_by_torch(maps.values, points, rays, where, factors, scale.channel_of)
    points = np.ascontiguousarray(points, dtype=np.float32)
    out = np.zeros((len(points), len(scale.features)), dtype=np.float32)
    _sample(maps.values, points, rays, where, factors, scale.channel_of, out)
    return out


def _rays(tilts: FilteredTilts) -> F32:
    """``(n_tilts, 5)``: u = x r0 + y r1 + z r2, v = y r3 + z r4 (`geometry.specimen_to_aligned`)."""
    c, s = np.cos(tilts.tilt), np.sin(tilts.tilt)
    ca, sa = np.cos(tilts.x_tilt), np.sin(tilts.x_tilt)
    return np.stack([c, -sa * s, ca * s, ca, sa], axis=1).astype(np.float32)


@nb.njit(parallel=True, fastmath=True, cache=True)
def _sample(maps, points, rays, where, factors, channel_of, out):  # type: ignore[no-untyped-def]
    n_tilts, n_v, n_u, n_c = maps.shape
    n_f = factors.shape[1]
    for block in nb.prange((len(points) + BLOCK - 1) // BLOCK):
        value = np.empty(n_c, dtype=np.float32)
        for m in range(n_tilts):
            r0, r1, r2, r3, r4 = rays[m, 0], rays[m, 1], rays[m, 2], rays[m, 3], rays[m, 4]
            for i in range(block * BLOCK, min(len(points), (block + 1) * BLOCK)):
                x, y, z = points[i, 0], points[i, 1], points[i, 2]
                u = (x * r0 + y * r1 + z * r2 - where[0]) / where[2]
                v = (y * r3 + z * r4 - where[1]) / where[2]
                u = min(max(u, np.float32(0.0)), np.float32(n_u - 1.001))
                v = min(max(v, np.float32(0.0)), np.float32(n_v - 1.001))
                j, k = int(u), int(v)
                fu, fv = u - np.float32(j), v - np.float32(k)
                gu, gv = np.float32(1.0) - fu, np.float32(1.0) - fv
                w00, w01, w10, w11 = gv * gu, gv * fu, fv * gu, fv * fu
                a, b, c, d = maps[m, k, j], maps[m, k, j + 1], maps[m, k + 1, j], maps[m, k + 1, j + 1]
                for q in range(n_c):
                    value[q] = w00 * a[q] + w01 * b[q] + w10 * c[q] + w11 * d[q]
                for f in range(n_f):
                    out[i, f] += factors[m, f] * value[channel_of[f]]
