"""Where the specimen lies: its height, slope and thickness in a density, and the alignment that makes it level.

Nothing here moves a raw pixel: the specimen's frame is turned and moved, and tilt angles, x-tilt, shifts and warp
are rewritten so that every specimen point keeps its place in every raw image (tested to 1e-3 px).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.projection import Lattice

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

CLIP_PERCENTILE = 99.0  # of the density: gold beads count no more than dense protein
FLOOR_OF_CLIP = 0.15  # density below this fraction of the clip is haze of the missing wedge, not specimen
HAZE_OF_PROFILE = 0.35  # of the profile's plateau: what lies lower is not specimen (real series have a broad foot)
CENTRAL_MASS = 0.98
TAPER = 1.15
STEEPEST = np.tan(np.deg2rad(20.0))
INNER = 1.0  # of the view's half-width: what nearly all tilts see
ENDS = 0.08  # of a column, at its top and bottom
ROUNDS = 4
FAR_OF_THICKNESS = 0.7  # mass farther than this from the middle plane is left out
CELLS = 8  # local mass centres along x and along y
WARP_REFINEMENT = 4
DENSE_NODES = 16  # a grid of so many nodes is not refined further
ROUGHNESS_PX = 0.01  # move in node spacings times second difference of the nodes: from here on a warp is refined first


@dataclass(frozen=True)
class Level:
    """Pose of the specimen in the frame it was reconstructed in (raw px).

    The middle plane is ``z = height_px + slope_x x + slope_y y``.

    Attributes:
        height_px: z of the middle plane at the centre.
        slope_x, slope_y: slopes of the middle plane.
        thickness_px: along the normal of the plane: extent of the central 98 % of the mass profile above 35 % of
            its plateau, and 15 % for the surfaces, where the profile tapers off (simulated slabs of 90 px: 80 to 85).
        is_found: whether the density told a specimen from what surrounds it; if not, this is the level lattice.
    """

    height_px: float
    slope_x: float
    slope_y: float
    thickness_px: float
    is_found: bool = True

    @property
    def tilt_offset_deg(self) -> float:
        """To be added to the tilt angles to level the specimen: its rotation about y."""
        return float(np.rad2deg(np.arctan(-self.slope_x)))

    @property
    def x_tilt_deg(self) -> float:
        """Rotation about x that levels the specimen after the tilt offset (IMOD's sense)."""
        return float(np.rad2deg(np.arcsin(-self.slope_y / np.sqrt(1 + self.slope_x**2 + self.slope_y**2))))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the angles they mean."""
        return {**asdict(self), "tilt_offset_deg": self.tilt_offset_deg, "x_tilt_deg": self.x_tilt_deg}


def find_level(density: F32, lattice: Lattice, half_view: tuple[float, float]) -> Level:
    """The specimen's middle plane and thickness.

    A plane goes through local mass centres, outliers weighed down; what lies far from it, haze above or below the
    specimen, is then left out and the plane fitted again. On simulated specimens whose slab is level the slopes come
    out within 0.5 degrees: molecules do not fill a slab more evenly than that.

    Args:
        density: ``[z, x, y]``, non-negative.
        lattice: of the density.
        half_view: half-widths (x, y; raw px) of the area that the untilted image shows.
    """
    z, x, y = (
        o + lattice.spacing * np.arange(n, dtype=np.float64) for o, n in zip(lattice.origin, lattice.shape, strict=True)
    )
    keep_x, keep_y = np.abs(x) <= INNER * half_view[0], np.abs(y) <= INNER * half_view[1]
    x, y = x[keep_x], y[keep_y]
    mass = specimen_mass(density[:, keep_x][:, :, keep_y])
    columns, cx, cy = _cells(mass, x, y, -(-len(x) // CELLS), -(-len(y) // CELLS))
    fine, fine_x, fine_y = _cells(mass, x, y, max(1, len(x) // 24), max(1, len(y) // 24))
    if min(columns.sum(), fine.sum()) <= 0:  # blank, or all of it fills the lattice from end to end
        return Level(0.0, 0.0, 0.0, float(lattice.spacing * lattice.shape[0]), is_found=False)
    plane, far = np.zeros(3), np.inf
    for _ in range(ROUNDS):
        height = z[:, None, None] - _on(plane, cx, cy)
        close = np.where(np.abs(height) <= far, columns, 0.0)
        if not close.any():
            break
        plane = _plane(close, z, cx, cy)
        low, high = _extent(*_profile(fine, z[:, None, None] - _on(plane, fine_x, fine_y), lattice.spacing))
        plane[0] += (low + high) / 2
        far = FAR_OF_THICKNESS * (high - low)
    near = np.where(np.abs(z[:, None, None] - _on(plane, fine_x, fine_y)) <= far, fine, 0.0)

    def spread(p: Array) -> float:
        return float((near * (z[:, None, None] - _on(p, fine_x, fine_y)) ** 4).sum())

    plane = optimize.minimize(
        spread, plane, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6 * spread(plane)}
    ).x
    # a steeper one is not a specimen's but that of a density that tells none, and takes tilt angles past 90 degrees
    plane[1:] = np.clip(plane[1:], -STEEPEST, STEEPEST)
    low, high = _extent(*_profile(fine, z[:, None, None] - _on(plane, fine_x, fine_y), lattice.spacing))
    thickness = TAPER * (high - low) / np.sqrt(1 + plane[1] ** 2 + plane[2] ** 2)
    return Level(float(plane[0]), float(plane[1]), float(plane[2]), float(thickness))


def _on(plane: Array, x: Array, y: Array) -> Array:
    """Height ``(len(x), len(y))`` of a plane (height, slope_x, slope_y)."""
    return np.asarray(plane[0] + plane[1] * x[:, None] + plane[2] * y[None, :])


def specimen_mass(density: F32) -> F32:
    """Density without haze and without the excess of gold: what says where the specimen is."""
    top = float(np.percentile(density, CLIP_PERCENTILE))
    return np.maximum(np.minimum(density, np.float32(top)) - np.float32(FLOOR_OF_CLIP * top), 0)


def _plane(columns: Array, z: Array, cx: Array, cy: Array) -> Array:
    """(height, slope_x, slope_y) of the plane through the mass centres of columns, Huber's weights on top of mass."""
    total = columns.sum(axis=0)
    centre = np.einsum("kij,k->ij", columns, z) / np.maximum(total, 1e-30)
    gx, gy = np.meshgrid(cx, cy, indexing="ij")
    design = np.stack([np.ones(gx.size), gx.ravel(), gy.ravel()], axis=1)
    weight = total.ravel() / total.sum()
    fit = np.zeros(3)
    robust = np.ones_like(weight)
    for _ in range(10):
        w = weight * robust
        normal = design.T @ (design * w[:, None]) + 1e-12 * np.eye(3)
        fit = np.linalg.solve(normal, design.T @ (w * centre.ravel()))
        rest = np.abs(centre.ravel() - design @ fit)
        scale = 1.5 * float(np.median(rest[weight > 0])) + 1e-9
        robust = np.minimum(1.0, scale / np.maximum(rest, 1e-12))
    fit[1:] = np.clip(fit[1:], -STEEPEST, STEEPEST)
    return fit


def _cells(mass: F32, x: Array, y: Array, step_x: int, step_y: int) -> tuple[Array, Array, Array]:
    """Mass summed over cells ``(nz, cells_x, cells_y)``, less what fills their whole height; the cells' centres."""
    at_x, at_y = np.arange(0, len(x), step_x), np.arange(0, len(y), step_y)
    summed = np.add.reduceat(np.add.reduceat(mass.astype(np.float64), at_x, axis=1), at_y, axis=2)
    # haze, as under a hole, fills a column from end to end; a specimen leaves at least one end free
    ends = max(1, round(ENDS * len(summed)))
    haze = np.minimum(summed[:ends].mean(axis=0), summed[-ends:].mean(axis=0))
    summed = np.maximum(summed - haze, 0)
    centre_x = np.array([x[i : i + step_x].mean() for i in at_x])
    centre_y = np.array([y[i : i + step_y].mean() for i in at_y])
    return summed, centre_x, centre_y


def _profile(columns: Array, height: Array, spacing: float) -> tuple[Array, Array]:
    """Mass against height, linearly shared between neighbouring bins of one lattice spacing, slightly smoothed."""
    first = float(height.min()) - 2 * spacing
    position = (height - first) / spacing
    cell = np.floor(position).astype(np.intp)
    fraction = position - cell
    size = int(cell.max()) + 4
    mass = np.broadcast_to(columns, height.shape)
    profile = np.bincount(cell.ravel(), (mass * (1 - fraction)).ravel(), size)
    profile += np.bincount(cell.ravel() + 1, (mass * fraction).ravel(), size)
    return first + spacing * np.arange(size, dtype=np.float64), ndimage.gaussian_filter1d(profile, 0.7)


def _extent(height: Array, profile: Array) -> tuple[float, float]:
    """Heights between which the specimen lies: `CENTRAL_MASS` of what is left of the profile without its foot."""
    plateau = float(np.percentile(profile[profile > 0.1 * profile.max()], 75))
    above = np.maximum(profile - HAZE_OF_PROFILE * plateau, 0)
    step = height[1] - height[0]
    running = np.concatenate([[0.0], np.cumsum(above)]) / above.sum()
    edges = np.concatenate([height - step / 2, [height[-1] + step / 2]])
    tail = (1 - CENTRAL_MASS) / 2
    low, high = np.interp([tail, 1 - tail], running, edges)
    return float(low), float(high)


def levelled(alignment: Alignment, level: Level, *, with_x_tilt: bool = True) -> Alignment:
    """The same alignment seen from the specimen's own frame: level, with its middle plane at z = 0.

    ``alignment`` must have no x-tilt: ``density`` was reconstructed in the frame of the tilt axis. A point X of the
    old frame becomes ``(Ry(offset) Rx(x_tilt))^-1 (X - (0, 0, height))``; without ``with_x_tilt`` only the
    height and the slope along x are taken out.
    """
    if np.any(alignment.x_tilt_deg):
        raise ValueError("the alignment has an x-tilt already: level it in the frame of its tilt axis")
    moved = translated(alignment, (0.0, 0.0, -level.height_px))
    x_tilt = np.full(alignment.n_tilts, level.x_tilt_deg if with_x_tilt else 0.0)
    return replace(moved, tilt_deg=alignment.tilt_deg + level.tilt_offset_deg, x_tilt_deg=x_tilt)


def centred_on_views(alignment: Alignment) -> tuple[Alignment, tuple[float, float]]:
    """Move the specimen's origin in x and y to where the included images look, on average; returns the move too.

    Medians over the images, so that a few far-off ones do not count; along the specimen's own axes, so that its
    height stays what it is.
    """
    use = alignment.included
    cosine = np.maximum(np.cos(np.deg2rad(alignment.tilt_deg[use])), 0.1)
    dx, dy = alignment.shift_px[use].T
    offset = (-float(np.median(dx / cosine)), -float(np.median(dy)))
    return translated(alignment, (offset[0], offset[1], 0.0)), offset


def translated(alignment: Alignment, offset: tuple[float, float, float]) -> Alignment:
    """`Alignment.translated` with the warp put on denser nodes first where moving it would cost accuracy."""
    warp = alignment.warp
    if warp is not None and 1 < len(warp.x) < DENSE_NODES:
        curvature = np.abs(np.diff(warp.vectors, 2, axis=2)).max(initial=0)
        if curvature * np.linalg.norm(offset) / (warp.x[1] - warp.x[0]) > ROUGHNESS_PX:
            alignment = replace(alignment, warp=refined(warp))
    return alignment.translated(offset)


def refined(warp: LocalWarp, factor: int = WARP_REFINEMENT) -> LocalWarp:
    """The warp on nodes ``factor`` times denser that also cover its linear continuation of one node."""

    def denser(nodes: Array) -> Array:
        step = (nodes[-1] - nodes[0]) / (len(nodes) - 1)
        return np.linspace(nodes[0] - step, nodes[-1] + step, (len(nodes) + 1) * factor + 1)

    if warp.interpolation != "bicubic" or min(len(warp.x), len(warp.y)) < 3:
        return warp
    x, y = denser(warp.x), denser(warp.y)
    return LocalWarp(x, y, np.stack([warp.on_lattice(m, x, y) for m in range(len(warp.vectors))]), "bicubic")
