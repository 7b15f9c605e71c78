"""Penalties that say what is likely before any image is seen: value and gradient of each.

The 2023 paper has none besides its data term; ICE-TIDE's is `deformation_size`. The others follow its remark that
motion goes with the dose, and common practice for densities.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


def deformation_size(
    rotation_deg: Floats,
    shift_px: Floats,
    vectors_px: Floats,
    weights: tuple[float, float, float],
) -> tuple[float, Floats, Floats, Floats]:
    """ICE-TIDE's eq. 7, summed over tilts: ``l1 |rotation| + l2 ||shift|| + l3 ||warp||``.

    Args:
        rotation_deg: ``(n_tilts,)`` deviation from the common axis; full turns do not count.
        shift_px: ``(n_tilts, 2)`` raw px.
        vectors_px: ``(n_tilts, ..., 2)`` warp on a uniform mesh of the view, raw px; its norm is the root of the
            sum of squares over the mesh, as in the paper.
        weights: ``(l1, l2, l3)`` per degree, per px and per px.

    Returns:
        Value and gradients with respect to rotation, shift and vectors; zero where a norm is zero.
    """
    wrapped = (np.asarray(rotation_deg) + 180.0) % 360.0 - 180.0
    shift_norm = np.linalg.norm(shift_px, axis=1)
    flat = np.asarray(vectors_px).reshape(len(vectors_px), -1)
    warp_norm = np.linalg.norm(flat, axis=1)
    l1, l2, l3 = weights
    value = float(l1 * np.abs(wrapped).sum() + l2 * shift_norm.sum() + l3 * warp_norm.sum())
    shift_slope = l2 * shift_px / np.where(shift_norm > 0, shift_norm, 1.0)[:, None]
    warp_slope = l3 * flat / np.where(warp_norm > 0, warp_norm, 1.0)[:, None]
    return value, l1 * np.sign(wrapped), shift_slope, warp_slope.reshape(np.shape(vectors_px))


def warp_energy(vectors_px: Floats) -> tuple[float, Floats]:
    """Half the sum of squares of node vectors ``(n_tilts, ny, nx, 2)``: a Gaussian prior on their size."""
    return 0.5 * float(np.square(vectors_px, dtype=np.float64).sum()), vectors_px.copy()


def warp_curvature(vectors_px: Floats) -> tuple[float, Floats]:
    """Bending energy of node vectors ``(n_tilts, ny, nx, 2)``.

    Half the sum of squared second differences along x and y and twice the mixed ones, in px per node interval;
    constant and linear motion is free.
    """
    slope = np.zeros_like(vectors_px)
    value = 0.0
    for axis in (1, 2):
        if vectors_px.shape[axis] > 2:
            v, g = np.moveaxis(vectors_px, axis, 0), np.moveaxis(slope, axis, 0)
            bend = v[2:] - 2 * v[1:-1] + v[:-2]
            value += 0.5 * float(np.square(bend, dtype=np.float64).sum())
            g[2:] += bend
            g[1:-1] -= 2 * bend
            g[:-2] += bend
    v, g = vectors_px, slope
    twist = v[:, 1:, 1:] - v[:, 1:, :-1] - v[:, :-1, 1:] + v[:, :-1, :-1]
    value += float(np.square(twist, dtype=np.float64).sum())
    g[:, 1:, 1:] += 2 * twist
    g[:, 1:, :-1] -= 2 * twist
    g[:, :-1, 1:] -= 2 * twist
    g[:, :-1, :-1] += 2 * twist
    return value, slope


def dose_ordered_change(values: Floats, order: NDArray[Any]) -> tuple[float, Floats]:
    """Half the sum of squared changes of ``values`` ``(n_tilts, ...)`` from one exposure to the next.

    ``order`` ``(n_tilts,)`` is anything that sorts the images by acquisition: index, time or dose received.
    """
    sequence = np.argsort(np.asarray(order), kind="stable")
    change = np.diff(values[sequence], axis=0)
    slope = np.zeros_like(values)
    slope[sequence[1:]] += change
    slope[sequence[:-1]] -= change
    return 0.5 * float(np.square(change, dtype=np.float64).sum()), slope


def total_variation(density: F32, rounding: float) -> tuple[float, F32]:
    """Isotropic total variation of a density on a lattice ``[z, x, y]``: sum of ``sqrt(|grad|^2 + rounding^2)``.

    Differences are forward, per voxel; ``rounding`` (same unit) keeps the gradient smooth where the density is
    flat and is subtracted again, so that a constant density costs nothing.
    """
    density = np.ascontiguousarray(density, dtype=np.float32)
    inverse, slope = np.empty_like(density), np.empty_like(density)
    sums = np.zeros(len(density))
    _inverse_norms(density, np.float32(rounding), inverse, sums)
    _divergence(density, inverse, slope)
    return float(sums.sum()), slope


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _inverse_norms(rho, rounding, inverse, sums):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    for z in nb.prange(nz):
        total = 0.0
        for x in range(nx):
            here, out = rho[z, x], inverse[z, x]
            along_z, along_x = rho[min(z + 1, nz - 1), x], rho[z, min(x + 1, nx - 1)]
            for y in range(ny):
                v = here[y]
                c = here[y + 1] - v if y + 1 < ny else np.float32(0)
                a, b = along_z[y] - v, along_x[y] - v
                norm = np.sqrt(a * a + b * b + c * c + rounding * rounding)
                total += norm - rounding
                out[y] = np.float32(1) / norm if norm > 0 else np.float32(0)
        sums[z] = total


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _divergence(rho, inverse, slope):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    for z in nb.prange(nz):
        for x in range(nx):
            for y in range(ny):
                v, i = rho[z, x, y], inverse[z, x, y]
                total = np.float32(0)
                if z + 1 < nz:
                    total -= (rho[z + 1, x, y] - v) * i
                if x + 1 < nx:
                    total -= (rho[z, x + 1, y] - v) * i
                if y + 1 < ny:
                    total -= (rho[z, x, y + 1] - v) * i
                if z > 0:
                    total += (v - rho[z - 1, x, y]) * inverse[z - 1, x, y]
                if x > 0:
                    total += (v - rho[z, x - 1, y]) * inverse[z, x - 1, y]
                if y > 0:
                    total += (v - rho[z, x, y - 1]) * inverse[z, x, y - 1]
                slope[z, x, y] = total
