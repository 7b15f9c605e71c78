"""Tilt series of Gaussian blobs with a known alignment: exact projections, no interpolation."""

from __future__ import annotations

import numpy as np

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation, specimen_to_aligned


def blob_series(
    size: tuple[int, int] = (128, 128),
    tilts: np.ndarray | None = None,
    axis_deg: float = 0.0,
    shift_px: float = 5.0,
    noise_sd: float = 0.3,
    warp_px: float = 0.0,
    slab_px: float = 40.0,
    n_blobs: int = 400,
    seed: int = 0,
    widths_px: tuple[float, float] = (1.8, 3.5),
) -> tuple[np.ndarray, Alignment]:
    """Images ``(n, ny, nx)``, blobs bright, from a slab wider than the view, and their true alignment."""
    rng = np.random.default_rng(seed)
    tilts = np.arange(-60.0, 61.0, 4.0) if tilts is None else tilts
    nx, ny = size
    reach = 1.3 * max(size)
    points = rng.uniform(-0.5, 0.5, (n_blobs, 3)) * [2 * reach, 1.3 * reach, slab_px]
    heights, widths = rng.uniform(0.5, 1.5, n_blobs), rng.uniform(*widths_px, n_blobs)
    n = len(tilts)
    shifts = rng.uniform(-shift_px, shift_px, (n, 2))
    linear = np.tile(axis_rotation(axis_deg), (n, 1, 1))
    nodes = np.linspace(-0.75, 0.75, 5) * max(size)
    warp = None
    if warp_px:
        warp = LocalWarp(nodes, nodes, rng.uniform(-warp_px, warp_px, (n, 5, 5, 2)))
    truth = Alignment(np.asarray(tilts, float), linear, shifts, size, 10.0, warp)
    x, y = np.arange(nx) - (nx - 1) / 2, np.arange(ny) - (ny - 1) / 2
    images = np.empty((n, ny, nx), dtype=np.float32)
    for m in range(n):
        p = truth.specimen_to_raw(m, points)
        seen = (np.abs(p[:, 0]) < nx / 2 + 12) & (np.abs(p[:, 1]) < ny / 2 + 12)
        gx = np.exp(-((x[None] - p[seen, :1]) ** 2) / (2 * widths[seen, None] ** 2))
        gy = np.exp(-((y[None] - p[seen, 1:]) ** 2) / (2 * widths[seen, None] ** 2))
        images[m] = np.einsum("b,by,bx->yx", heights[seen], gy, gx)
    images += noise_sd * rng.standard_normal(images.shape)
    return images, truth


def swaying_blobs(size: int, tilt_deg: np.ndarray) -> np.ndarray:
    """Images ``(n, size, size)`` of a dozen blobs of a thin slab, and noise."""
    rng = np.random.default_rng(0)
    at = np.arange(size) - (size - 1) / 2
    out = rng.normal(scale=0.3, size=(len(tilt_deg), size, size)).astype(np.float32)
    for x, y, z in rng.uniform(-9, 9, size=(12, 3)) * (1, 1, 0.3):
        u = x * np.cos(np.deg2rad(tilt_deg)) + z * np.sin(np.deg2rad(tilt_deg))
        out += np.exp(-((at[None, None] - u[:, None, None]) ** 2 + (at[None, :, None] - y) ** 2) / 6).astype(np.float32)
    return out


def rigid_error(found: Alignment, truth: Alignment, slab_px: float = 40.0) -> float:
    """RMS distance (px) of projected specimen points after the best small rigid motion of the specimen."""
    nx, ny = truth.image_size
    axes = [np.linspace(-0.4, 0.4, 5) * nx, np.linspace(-0.4, 0.4, 5) * ny, np.linspace(-0.5, 0.5, 3) * slab_px]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    # generators: three translations, three rotations
    eye = np.eye(3)
    motions = [np.broadcast_to(e, points.shape) for e in eye] + [np.cross(e, points) for e in eye]
    columns, wanted = [], []
    tilts = [i for i in truth.included if i not in found.excluded]
    for m in tilts:
        wanted.append((truth.specimen_to_raw(m, points) - found.specimen_to_raw(m, points)).ravel())
        inverse = np.linalg.inv(found.linear[m])
        tilt = float(found.tilt_deg[m])
        columns.append(np.stack([(specimen_to_aligned(v, tilt) @ inverse.T).ravel() for v in motions], axis=1))
    design, target = np.concatenate(columns), np.concatenate(wanted)
    fit, *_ = np.linalg.lstsq(design, target, rcond=None)
    return float(np.sqrt(2 * np.mean((target - design @ fit) ** 2)))
