"""Joseph's projector for iterations: the matrix of `inrtomo.projection`, walked so that memory is read once.

Ray i of a tilt and voxel (z, x) share ``max(0, 1 - |u_i - (x cos t + z sin t)| / m) / m`` with ``m = max(|cos t|,
|sin t|)``, which is Joseph's linear interpolation across the ray whichever way the ray runs. Said like this the
projection can be made from a few planes at a time for all tilts, and the back-projection gathers at most two rays of
every tilt for each voxel, so the voxel is corrected, clipped and written once. Rows y are the vectors.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from inrtomo.projection import Lattice

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

PLANES_AT_A_TIME = 8  # of z: what all tilts read of them stays in cache
ROWS_AT_A_TIME = 256
NO_BOUND = float(np.finfo(np.float32).min)  # not -inf: fast arithmetic does not know it


@nb.njit(parallel=True, fastmath=True, cache=True)
def _project(rho, cosines, sines, z0, x0, u0, rows_at_a_time, planes_at_a_time, n_parts, out):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    n_tilts, nu, _ = out.shape
    per_part = (nu + n_parts - 1) // n_parts
    for task in nb.prange(((ny + rows_at_a_time - 1) // rows_at_a_time) * n_parts):
        block, part = task // n_parts, task % n_parts
        low, high = block * rows_at_a_time, min(ny, (block + 1) * rows_at_a_time)
        left, right = part * per_part, min(nu, (part + 1) * per_part)
        for m in range(n_tilts):
            for i in range(left, right):
                out[m, i, low:high] = 0.0
        for plane in range(0, nz, planes_at_a_time):
            for m in range(n_tilts):
                c, s = cosines[m], sines[m]
                wide = max(abs(c), abs(s))
                scale = 1.0 / wide
                slope = max(abs(c), 1e-9)
                for i in range(left, right):
                    ray = out[m, i, low:high]
                    for k in range(plane, min(nz, plane + planes_at_a_time)):
                        away = u0 + i - (z0 + k) * s - x0 * c  # of the ray from voxel 0; from voxel j: away - j c
                        first, last = (away - wide) / slope, (away + wide) / slope
                        if c < 0:
                            first, last = -last, -first
                        j, last_j = int(np.ceil(max(first, 0.0))), int(np.floor(min(last, nx - 1.0)))
                        while j < last_j:
                            w0 = np.float32((1.0 - abs(away - j * c) * scale) * scale)
                            w1 = np.float32((1.0 - abs(away - (j + 1) * c) * scale) * scale)
                            a, b = rho[k, j, low:high], rho[k, j + 1, low:high]
                            for y in range(high - low):
                                ray[y] += w0 * a[y] + w1 * b[y]
                            j += 2
                        if j == last_j:
                            w0 = np.float32((1.0 - abs(away - j * c) * scale) * scale)
                            a = rho[k, j, low:high]
                            for y in range(high - low):
                                ray[y] += w0 * a[y]


@nb.njit(fastmath=True, cache=True)
def _rays_beside(at, scale, nu):  # type: ignore[no-untyped-def]
    """The two of nu rays beside a voxel, and their shares in it; beyond the ends a ray with a share of zero."""
    i = int(np.floor(at))
    w0 = np.float32(max(0.0, 1.0 - (at - i) * scale) * scale) if i >= 0 else np.float32(0.0)
    w1 = np.float32(max(0.0, 1.0 - (i + 1 - at) * scale) * scale) if i + 1 < nu else np.float32(0.0)
    return max(i, 0), min(i + 1, nu - 1), w0, w1


@nb.njit(parallel=True, fastmath=True, cache=True)
def _correct(rho, projections, cosines, sines, z0, x0, u0, rows_at_a_time, planes_at_a_time, step, scaled, lowest):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    n_tilts, nu, _ = projections.shape
    n_chunks = (nz + planes_at_a_time - 1) // planes_at_a_time
    for task in nb.prange(((ny + rows_at_a_time - 1) // rows_at_a_time) * n_chunks):
        block, chunk = task // n_chunks, task % n_chunks
        low, high = block * rows_at_a_time, min(ny, (block + 1) * rows_at_a_time)
        total = np.empty(high - low, np.float32)
        for j in range(nx):
            for k in range(chunk * planes_at_a_time, min(nz, (chunk + 1) * planes_at_a_time)):
                total[:] = 0.0
                seen = False
                for m in range(n_tilts):
                    c, s = cosines[m], sines[m]
                    at = (x0 + j) * c + (z0 + k) * s - u0
                    if at <= -1.0 or at >= nu:
                        continue
                    seen = True
                    i0, i1, w0, w1 = _rays_beside(at, 1.0 / max(abs(c), abs(s)), nu)
                    a, b = projections[m, i0, low:high], projections[m, i1, low:high]
                    for y in range(high - low):
                        total[y] += w0 * a[y] + w1 * b[y]
                if seen:
                    here = rho[k, j, low:high]
                    if scaled:
                        factor = step[k, j, low:high]
                        for y in range(high - low):
                            here[y] = max(lowest, here[y] + factor[y] * total[y])
                    else:
                        for y in range(high - low):
                            here[y] = max(lowest, here[y] + total[y])


@nb.njit(parallel=True, fastmath=True, cache=True)
def _correct_by_means(
    rho, projections, received, cosines, sines, z0, x0, u0, rows_at_a_time, planes_at_a_time, least, lowest
):  # type: ignore[no-untyped-def]  # noqa: E501
    nz, nx, ny = rho.shape
    n_tilts, nu, _ = projections.shape
    n_chunks = (nz + planes_at_a_time - 1) // planes_at_a_time
    for task in nb.prange(((ny + rows_at_a_time - 1) // rows_at_a_time) * n_chunks):
        block, chunk = task // n_chunks, task % n_chunks
        low, high = block * rows_at_a_time, min(ny, (block + 1) * rows_at_a_time)
        total, weight = np.empty(high - low, np.float32), np.empty(high - low, np.float32)
        for j in range(nx):
            for k in range(chunk * planes_at_a_time, min(nz, (chunk + 1) * planes_at_a_time)):
                total[:] = 0.0
                weight[:] = 0.0
                seen = False
                for m in range(n_tilts):
                    c, s = cosines[m], sines[m]
                    at = (x0 + j) * c + (z0 + k) * s - u0
                    if at <= -1.0 or at >= nu:
                        continue
                    seen = True
                    i0, i1, w0, w1 = _rays_beside(at, 1.0 / max(abs(c), abs(s)), nu)
                    a, b = projections[m, i0, low:high], projections[m, i1, low:high]
                    p, q = received[m, i0, low:high], received[m, i1, low:high]
                    for y in range(high - low):
                        total[y] += w0 * a[y] + w1 * b[y]
                        weight[y] += w0 * p[y] + w1 * q[y]
                if seen:
                    here = rho[k, j, low:high]
                    for y in range(high - low):
                        here[y] = max(lowest, here[y] + total[y] / max(weight[y], least))


def project(rho: F32, lattice: Lattice, tilt_deg: Array, n_u: int) -> F32:
    """As `inrtomo.projection.project`: ``(n_tilts, n_u, ny)`` in density x lattice spacing."""
    cosines, sines, z0, x0, u0 = _geometry(lattice, tilt_deg, n_u)
    out = np.empty((len(cosines), n_u, lattice.shape[2]), dtype=np.float32)
    parts = 4 * nb.get_num_threads()
    _project(rho, cosines, sines, z0, x0, u0, ROWS_AT_A_TIME, PLANES_AT_A_TIME, parts, out)
    return out


def correct(
    rho: F32,
    projections: F32,
    lattice: Lattice,
    tilt_deg: Array,
    step: F32 | None = None,
    lowest: float = NO_BOUND,
) -> None:
    """``rho = max(lowest, rho + step * back-projection)``, in place; the back-projection is `project`'s adjoint.

    Args:
        rho: ``[z, x, y]``; voxels that no ray of these tilts passes are left as they are.
        projections: ``(n_tilts, n_u, ny)``.
        step: factor of every voxel, the same shape as ``rho``; 1 if None.
    """
    cosines, sines, z0, x0, u0 = _geometry(lattice, tilt_deg, projections.shape[1])
    _correct(
        rho, projections, cosines, sines, z0, x0, u0, ROWS_AT_A_TIME, PLANES_AT_A_TIME,
        rho if step is None else step, step is not None, np.float32(lowest),
    )  # fmt: skip


def correct_by_means(
    rho: F32,
    projections: F32,
    received: F32,
    lattice: Lattice,
    tilt_deg: Array,
    least: float,
    lowest: float = NO_BOUND,
) -> None:
    """As `correct`, the step being ``1 / max(least, back-projection of received)`` for these tilts alone."""
    cosines, sines, z0, x0, u0 = _geometry(lattice, tilt_deg, projections.shape[1])
    _correct_by_means(
        rho, projections, received, cosines, sines, z0, x0, u0, ROWS_AT_A_TIME, PLANES_AT_A_TIME,
        np.float32(least), np.float32(lowest),
    )  # fmt: skip


def _geometry(lattice: Lattice, tilt_deg: Array, n_u: int) -> tuple[Array, Array, float, float, float]:
    """Cosines and sines of the tilts; first plane, first column and first ray in lattice steps."""
    tilt = np.deg2rad(np.asarray(tilt_deg, dtype=np.float64))
    z0, x0 = lattice.origin[0] / lattice.spacing, lattice.origin[1] / lattice.spacing
    return np.cos(tilt), np.sin(tilt), z0, x0, -(n_u - 1) / 2
