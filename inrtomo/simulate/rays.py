"""Line integrals of a specimen at the deformed coordinates of every raw pixel."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates
from inrtomo.simulate.specimen_motion import SpecimenMotion
from inrtomo.simulate.true_map import TrueMap, undistorted

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

DISPLACEMENT_SPACING_PX = 6.0
"""Nodes of the table of a tilt's displacements. Linear interpolation between them is wrong by an eighth of its square
times the curvature of the motion: 0.004 px for a motion of 1 px that has a correlation length of 40 px."""


def project_specimen(density: F32, alignment: Alignment, tilt: int, margin: int = 0) -> F32:
    """Image ``(ny + 2 margin, nx + 2 margin)`` of a specimen ``[z, y, x]`` (density x px) in raw pixels.

    Every pixel's own ray, through the aligned point that the full map (linear and warp) sends to it, is marched
    through the density with trilinear interpolation in steps of at most one voxel, weighted by their length.
    The specimen's centre index is the origin of specimen space; outside it the density is zero.
    """
    return _march_image(np.ascontiguousarray(density.transpose(1, 0, 2)), alignment, tilt, margin)


def project_series(density: F32, alignment: Alignment, margin: int = 0) -> F32:
    """All images ``(n_tilts, ny + 2 margin, nx + 2 margin)``; see `project_specimen`."""
    by_row = np.ascontiguousarray(density.transpose(1, 0, 2))
    return np.stack([_march_image(by_row, alignment, m, margin) for m in range(alignment.n_tilts)])


def project_true_map(density: F32, true_map: TrueMap, margin: int = 0) -> F32:
    """All images ``(n_tilts, ny + 2 margin, nx + 2 margin)`` of a specimen ``[z, y, x]`` that moves, is recorded and
    distorted as the map says; see `project_specimen` for the line integrals.

    A ray is marched through the moved specimen: each of its samples looks up which point of the specimen of reference
    is there. Density is carried along, not diluted where the specimen stretches.
    """
    if true_map.is_alignment:
        return project_series(density, true_map.recorded, margin)
    by_row = np.ascontiguousarray(density.transpose(1, 0, 2))
    recorded = true_map.recorded
    nx, ny = recorded.image_size
    raw = np.stack(np.meshgrid(centred_coordinates(nx + 2 * margin), centred_coordinates(ny + 2 * margin)), axis=-1)
    raw = undistorted(raw, true_map.radial_px, recorded.image_size)
    images = []
    for m in range(recorded.n_tilts):
        along_y = _columns_are_rows(recorded, m)
        u = _aligned(recorded, m, np.ascontiguousarray(raw.transpose(1, 0, 2)) if along_y else raw)
        image = np.zeros(u.shape[:2], dtype=np.float32)
        angle = np.deg2rad(recorded.tilt_deg[m])
        if true_map.motion is None:
            _march(by_row, u, np.cos(angle), np.sin(angle), image)
        else:
            back, first, reach = _backward_table(true_map.motion, m, density.shape)
            _march_moved(by_row, u, np.cos(angle), np.sin(angle), back, first, reach, image)
        images.append(image.T if along_y else image)
    return np.ascontiguousarray(np.stack(images))


def _backward_table(motion: SpecimenMotion, tilt: int, shape: tuple[int, ...]) -> tuple[F32, Array, float]:
    """What to add to a place to get the specimen point that is there: ``(nz, ny, nx, 3)`` (x, y, z) px.

    Returns the table, which covers all places that the specimen reaches, the coordinates (x, y, z) of its first node,
    and the largest displacement along any axis.
    """
    half = np.array(shape[::-1]) / 2 + 1.0
    corners = np.stack(np.meshgrid(*(np.linspace(-h, h, 9) for h in half)), axis=-1)
    reach = 1.1 * float(np.abs(motion.displacement(tilt, corners)).max()) + 1.0
    counts = np.ceil(2 * (half + reach) / DISPLACEMENT_SPACING_PX).astype(int) + 1
    first = -(counts - 1) * DISPLACEMENT_SPACING_PX / 2
    x, y, z = (start + DISPLACEMENT_SPACING_PX * np.arange(n) for start, n in zip(first, counts, strict=True))
    places = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1).astype(np.float32)
    back = motion.unmoved(tilt, places, half) - places
    return np.ascontiguousarray(back, dtype=np.float32), first, reach


def _columns_are_rows(alignment: Alignment, tilt: int) -> bool:
    """Whether raw columns are specimen rows: to walk them lets neighbouring rays share memory."""
    return bool(abs(alignment.linear[tilt, 0, 1]) > abs(alignment.linear[tilt, 0, 0]))


def _march_image(by_row: F32, alignment: Alignment, tilt: int, margin: int) -> F32:
    if alignment.x_tilt_deg[tilt]:
        raise ValueError("rays of an x-tilted specimen leave its rows; tilt the slab instead")
    nx, ny = alignment.image_size
    x, y = centred_coordinates(nx + 2 * margin), centred_coordinates(ny + 2 * margin)
    u = aligned_positions(alignment, tilt, x, y)
    along_y = _columns_are_rows(alignment, tilt)
    if along_y:
        u = np.ascontiguousarray(u.transpose(1, 0, 2))
    angle = np.deg2rad(alignment.tilt_deg[tilt])
    image = np.zeros(u.shape[:2], dtype=np.float32)
    _march(by_row, u, np.cos(angle), np.sin(angle), image)
    return np.ascontiguousarray(image.T) if along_y else image


def aligned_positions(alignment: Alignment, tilt: int, x: Array, y: Array) -> Array:
    """Aligned points ``(len(y), len(x), 2)`` of the raw pixels at ``x``, ``y`` (px from the centre).

    The same as `Alignment.raw_to_aligned` on a lattice, compiled for bicubic warps.
    """
    return _aligned(alignment, tilt, np.stack(np.meshgrid(x, y), axis=-1))


def _aligned(alignment: Alignment, tilt: int, raw: Array) -> Array:
    """Aligned points of raw points ``(rows, columns, 2)``."""
    warp = alignment.warp
    if warp is not None and (warp.interpolation != "bicubic" or min(len(warp.x), len(warp.y)) < 3):
        return alignment.raw_to_aligned(tilt, raw)
    linear, shift = alignment.linear[tilt], alignment.shift_px[tilt]
    u = raw @ linear.T + shift
    if warp is not None:
        padded = _continued(_continued(warp.vectors[tilt]).transpose(1, 0, 2)).transpose(1, 0, 2)
        _undo_warp(u, padded, warp.x[0], warp.x[1] - warp.x[0], warp.y[0], warp.y[1] - warp.y[0])
    return np.ascontiguousarray(u)


def _continued(nodes: Array) -> Array:
    """Two more nodes before and after the first axis, on the straight lines of the last two."""
    before = [nodes[0] + k * (nodes[0] - nodes[1]) for k in (2, 1)]
    after = [nodes[-1] + k * (nodes[-1] - nodes[-2]) for k in (1, 2)]
    return np.concatenate([before, nodes, after])


@nb.njit(fastmath=True, cache=True)
def _weights(f):  # type: ignore[no-untyped-def]
    f2, f3 = f * f, f * f * f
    return (
        0.5 * (-f + 2.0 * f2 - f3),
        0.5 * (2.0 - 5.0 * f2 + 3.0 * f3),
        0.5 * (f + 4.0 * f2 - 3.0 * f3),
        0.5 * (f3 - f2),
    )


@nb.njit(parallel=True, cache=True)
def _undo_warp(u, nodes, x0, dx, y0, dy):  # type: ignore[no-untyped-def]
    """Solve ``u + w(u) = u_linear`` in place; ``nodes`` are control vectors continued by two on every side."""
    ny, nx = nodes.shape[0] - 4, nodes.shape[1] - 4
    for row in nb.prange(u.shape[0]):
        for col in range(u.shape[1]):
            lx, ly = u[row, col, 0], u[row, col, 1]
            ux, uy = lx, ly
            for _ in range(50):
                tx = min(max((ux - x0) / dx, -1.0), float(nx))
                ty = min(max((uy - y0) / dy, -1.0), float(ny))
                i = min(max(int(np.floor(tx)), -1), nx - 1)
                j = min(max(int(np.floor(ty)), -1), ny - 1)
                a, b = _weights(tx - i), _weights(ty - j)
                wx, wy = 0.0, 0.0
                for q in range(4):
                    sx, sy = 0.0, 0.0
                    for p in range(4):
                        sx += a[p] * nodes[j + q + 1, i + p + 1, 0]
                        sy += a[p] * nodes[j + q + 1, i + p + 1, 1]
                    wx += b[q] * sx
                    wy += b[q] * sy
                nx_, ny_ = lx - wx, ly - wy
                done = abs(nx_ - ux) + abs(ny_ - uy) < 1e-6
                ux, uy = nx_, ny_
                if done:
                    break
            u[row, col, 0], u[row, col, 1] = ux, uy


@nb.njit(parallel=True, fastmath=True, cache=True)
def _march(by_row, u, cosine, sine, image):  # type: ignore[no-untyped-def]
    """``by_row`` is ``[y, z, x]``, so that a ray, which keeps its y, stays in two neighbouring planes."""
    n_y, n_z, n_x = by_row.shape
    cy, cz, cx = (n_y - 1) / 2, (n_z - 1) / 2, (n_x - 1) / 2
    for row in nb.prange(u.shape[0]):
        for col in range(u.shape[1]):
            y = u[row, col, 1] + cy
            if y <= -1.0 or y >= n_y:
                continue
            j = int(np.floor(y))
            fy = np.float32(y - j)
            low = by_row[max(j, 0)]
            high = by_row[min(j + 1, n_y - 1)]
            w_low = np.float32(1) - fy if j >= 0 else np.float32(0)
            w_high = fy if j + 1 < n_y else np.float32(0)
            # the part of the ray inside the box that trilinear interpolation reaches
            ux = u[row, col, 0]
            start, stop = (-cz - 1 - ux * sine) / cosine, (cz + 1 - ux * sine) / cosine
            if abs(sine) > 1e-9:
                a, b = (ux * cosine - cx - 1) / sine, (ux * cosine + cx + 1) / sine
                start, stop = max(start, min(a, b)), min(stop, max(a, b))
            elif abs(ux) > cx + 1:
                continue
            if stop <= start:
                continue
            steps = int(np.ceil(stop - start))
            length = (stop - start) / steps
            total = np.float32(0)
            for k in range(steps):
                t = start + (k + 0.5) * length
                x = ux * cosine - t * sine + cx
                z = ux * sine + t * cosine + cz
                i, m = int(np.floor(x)), int(np.floor(z))
                fx, fz = np.float32(x - i), np.float32(z - m)
                if i >= 0 and m >= 0 and i < n_x - 1 and m < n_z - 1:
                    gx, gz = np.float32(1) - fx, np.float32(1) - fz
                    v_low = gz * (gx * low[m, i] + fx * low[m, i + 1]) + fz * (
                        gx * low[m + 1, i] + fx * low[m + 1, i + 1]
                    )
                    v_high = gz * (gx * high[m, i] + fx * high[m, i + 1]) + fz * (
                        gx * high[m + 1, i] + fx * high[m + 1, i + 1]
                    )
                    total += w_low * v_low + w_high * v_high
                else:
                    for dz in range(2):
                        for dx in range(2):
                            if 0 <= i + dx < n_x and 0 <= m + dz < n_z:
                                wx = fx if dx else np.float32(1) - fx
                                wz = fz if dz else np.float32(1) - fz
                                total += wx * wz * (w_low * low[m + dz, i + dx] + w_high * high[m + dz, i + dx])
            image[row, col] = total * np.float32(length)


@nb.njit(parallel=True, fastmath=True, cache=True)
def _march_moved(by_row, u, cosine, sine, back, first, reach, image):  # type: ignore[no-untyped-def]
    """`_march` through a specimen that moved; ``back``, ``first`` and ``reach`` are those of `_backward_table`.

    The displacement is looked up at every fourth sample of a ray and is linear between.
    """
    n_y, n_z, n_x = by_row.shape
    m_z, m_y, m_x = back.shape[:3]
    cy, cz, cx = (n_y - 1) / 2, (n_z - 1) / 2, (n_x - 1) / 2
    scale = 1.0 / DISPLACEMENT_SPACING_PX
    knot = 4
    for row in nb.prange(u.shape[0]):
        now, then = np.zeros(3), np.zeros(3)
        for col in range(u.shape[1]):
            ux, uy = u[row, col, 0], u[row, col, 1]
            if abs(uy) > cy + 1 + reach:
                continue
            half_z, half_x = cz + 1 + reach, cx + 1 + reach
            start, stop = (-half_z - ux * sine) / cosine, (half_z - ux * sine) / cosine
            if abs(sine) > 1e-9:
                a, b = (ux * cosine - half_x) / sine, (ux * cosine + half_x) / sine
                start, stop = max(start, min(a, b)), min(stop, max(a, b))
            elif abs(ux) > half_x:
                continue
            if stop <= start:
                continue
            steps = int(np.ceil(stop - start))
            length = (stop - start) / steps
            total = 0.0
            for k in range(steps):
                phase = k % knot
                if phase == 0:
                    for c in range(3):
                        now[c] = then[c]
                    for end in range(1 if k else 0, 2):
                        t = start + (k + 0.5 + end * knot) * length
                        px = min(max((ux * cosine - t * sine - first[0]) * scale, 0.0), m_x - 1.001)
                        py = min(max((uy - first[1]) * scale, 0.0), m_y - 1.001)
                        pz = min(max((ux * sine + t * cosine - first[2]) * scale, 0.0), m_z - 1.001)
                        i, j, m = int(px), int(py), int(pz)
                        fx, fy, fz = px - i, py - j, pz - m
                        for c in range(3):
                            near = (1 - fy) * ((1 - fx) * back[m, j, i, c] + fx * back[m, j, i + 1, c]) + fy * (
                                (1 - fx) * back[m, j + 1, i, c] + fx * back[m, j + 1, i + 1, c]
                            )
                            far = (1 - fy) * ((1 - fx) * back[m + 1, j, i, c] + fx * back[m + 1, j, i + 1, c]) + fy * (
                                (1 - fx) * back[m + 1, j + 1, i, c] + fx * back[m + 1, j + 1, i + 1, c]
                            )
                            value = (1 - fz) * near + fz * far
                            if end:
                                then[c] = value
                            else:
                                now[c] = value
                f = phase / knot
                t = start + (k + 0.5) * length
                x = ux * cosine - t * sine + (1 - f) * now[0] + f * then[0] + cx
                y = uy + (1 - f) * now[1] + f * then[1] + cy
                z = ux * sine + t * cosine + (1 - f) * now[2] + f * then[2] + cz
                if x <= -1.0 or y <= -1.0 or z <= -1.0 or x >= n_x or y >= n_y or z >= n_z:
                    continue
                i, j, m = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
                fx, fy, fz = x - i, y - j, z - m
                if i >= 0 and j >= 0 and m >= 0 and i < n_x - 1 and j < n_y - 1 and m < n_z - 1:
                    low, high = by_row[j], by_row[j + 1]
                    v_low = (1 - fz) * ((1 - fx) * low[m, i] + fx * low[m, i + 1]) + fz * (
                        (1 - fx) * low[m + 1, i] + fx * low[m + 1, i + 1]
                    )
                    v_high = (1 - fz) * ((1 - fx) * high[m, i] + fx * high[m, i + 1]) + fz * (
                        (1 - fx) * high[m + 1, i] + fx * high[m + 1, i + 1]
                    )
                    total += (1 - fy) * v_low + fy * v_high
                else:
                    for dy in range(2):
                        for dz in range(2):
                            for dx in range(2):
                                if 0 <= i + dx < n_x and 0 <= j + dy < n_y and 0 <= m + dz < n_z:
                                    wx, wy, wz = fx if dx else 1 - fx, fy if dy else 1 - fy, fz if dz else 1 - fz
                                    total += wx * wy * wz * by_row[j + dy, m + dz, i + dx]
            image[row, col] = total * length
