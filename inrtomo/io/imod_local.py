"""IMOD's local alignments (``BASElocal.xf``, ``LOCALFILE`` of ``tilt``): a few areas with a linear patch each.

An area has, per view, increments of the tilt angles and a transform *ideal -> observed* in the aligned stack, about its
centre. A specimen point is projected with the angles of the four areas around it, each result is transformed, and the
four are averaged bilinearly by where the point lies in x and y; beyond the outer areas the weights stay. So an area's
transforms belong to columns of the specimen, and linear terms follow the motion through depth. Area centres are pixel
numbers of the aligned stack, from 1. Behaviour as in ``tilt`` (IMOD, GPL-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp, interpolation_matrix
from inrtomo.errors import InputError
from inrtomo.geometry import centre_index, specimen_to_aligned
from inrtomo.io import numbers
from inrtomo.io.files import read_text, write_text
from inrtomo.io.imod import half_view

Array = NDArray[np.float64]

MAX_AREAS = 400
"""An axis."""
MAX_INCREMENT_DEG = 45.0
"""Of the angles of an area beside those of the whole."""
AREAS = (2, 3, 4, 6, 8, 10)
TOLERANCE_PX = 0.02
SAMPLES = 2.5
"""Samples per area and axis that a transform is fitted to."""
RIDGE = 1e-7
"""Keeps terms calm that the samples do not tell apart, relative to the others."""
WARP_NODES = 65
STEEPEST = 0.05
"""Cosine of the tilt below which the specimen's middle plane is not resolved in the image."""


@dataclass(frozen=True)
class LocalAlignments:
    """Areas on a regular grid, x fastest in the file.

    Attributes:
        x, y: centres, aligned px from the centre, ``(nx,)`` and ``(ny,)``, at the sampling of the series.
        tilt_deg, x_tilt_deg: increments ``(ny, nx, n)``; x-tilts in the sense of `Alignment.x_tilt_deg`.
        z_factors: aligned px per px of z, ``(ny, nx, n, 2)``.
        linear, shift_px: ideal -> observed, ``(ny, nx, n, 2, 2)`` and ``(ny, nx, n, 2)``.
    """

    x: Array
    y: Array
    tilt_deg: Array
    x_tilt_deg: Array
    z_factors: Array
    linear: Array
    shift_px: Array

    def observed(self, alignment: Alignment, tilt: int, points: Array, axis_px: float = 0.0) -> Array:
        """Positions in the aligned stack ``(..., 2)`` of specimen points ``(..., 3)``.

        Args:
            axis_px: where the tilt axis, from which the points are counted, cuts the aligned images; from their centre.
        """
        flat = points.reshape(-1, 3)
        weights_x = interpolation_matrix(self.x, flat[:, 0] + axis_px, "bilinear")
        weights_y = interpolation_matrix(self.y, flat[:, 1], "bilinear")
        out = np.zeros((len(flat), 2))
        for j, i in np.ndindex(len(self.y), len(self.x)):
            weight = weights_y[:, j] * weights_x[:, i]
            near = np.flatnonzero(weight)
            u = specimen_to_aligned(
                flat[near],
                float(alignment.tilt_deg[tilt] + self.tilt_deg[j, i, tilt]),
                float(alignment.x_tilt_deg[tilt] + self.x_tilt_deg[j, i, tilt]),
            )
            u = u + flat[near, 2:] * self.z_factors[j, i, tilt] + [axis_px, 0.0]
            out[near] += weight[near, None] * (u @ self.linear[j, i, tilt].T + self.shift_px[j, i, tilt])
        return out.reshape(*points.shape[:-1], 2)


# --- reading -------------------------------------------------------------------------------------------------------


def read_local(
    path: str | Path, n_tilts: int, size: tuple[int, int], pixel_size_A: float | None, with_z_factors: bool = True
) -> LocalAlignments:
    """Read a file of local alignments for ``n_tilts`` views of aligned images (nx, ny), in their pixels.

    Args:
        with_z_factors: whether the reconstruction uses Z factors; without, they are left alone as ``tilt`` does.
    """
    lines = read_text(path).splitlines()
    head = np.array(numbers.read_text_of_numbers(lines[0] if lines else "", path))
    if not 6 <= len(head) <= 9 or not (head[:6] == np.rint(head[:6])).all():
        raise InputError(f"{path}: does not start like a file of local alignments; give another")
    nx, ny = (int(min(max(k, 0), MAX_AREAS + 1)) for k in head[:2])
    if not (2 <= nx <= MAX_AREAS and 2 <= ny <= MAX_AREAS) or min(head[4:6]) <= 0:
        raise InputError(f"{path}: needs at least 2 x 2 areas at a positive distance; give another file")
    with_x_tilts, pixel, with_z = np.append(head[6:], np.zeros(9 - len(head))).tolist()
    parts = [1] + [1] * int(with_x_tilts > 0) + [2] * int(with_z > 0) + [6]
    body = np.array(numbers.read_text_of_numbers("\n".join(lines[1:]), path, 2))
    if len(body) != nx * ny * n_tilts * sum(parts):
        raise InputError(
            f"{path}: holds {len(body)} numbers, {nx} x {ny} areas of {n_tilts} views need "
            f"{nx * ny * n_tilts * sum(parts)}; give the file of this series"
        )
    scale = pixel / pixel_size_A if pixel > 0 and pixel_size_A else 1.0
    areas = body.reshape(ny, nx, -1)
    at, pieces = 0, []
    for part in parts:
        pieces.append(areas[..., at : at + part * n_tilts].reshape(ny, nx, n_tilts, part))
        at += part * n_tilts
    if max(np.abs(piece).max() for piece in pieces[: 1 + int(with_x_tilts > 0)]) > MAX_INCREMENT_DEG:
        raise InputError(
            f"{path}: changes an angle by more than {MAX_INCREMENT_DEG:g} degrees; give the file of this series"
        )
    none = np.zeros((ny, nx, n_tilts))
    z_factors = pieces[1 + int(with_x_tilts > 0)] if with_z > 0 and with_z_factors else np.zeros((ny, nx, n_tilts, 2))
    x, y = (
        (first + step * np.arange(count)) * scale - 1 - centre_index(n)
        for first, step, count, n in zip(head[2:4], head[4:6], (nx, ny), size, strict=True)
    )
    return LocalAlignments(
        x=x,
        y=y,
        tilt_deg=pieces[0][..., 0],
        # tilt adds these to the angles of XTILTFILE, which are minus ours
        x_tilt_deg=-pieces[1][..., 0] if with_x_tilts > 0 else none,
        z_factors=z_factors,
        linear=pieces[-1][..., :4].reshape(ny, nx, n_tilts, 2, 2),
        shift_px=pieces[-1][..., 4:] * scale,
    )


def warp_from_local(
    local: LocalAlignments,
    alignment: Alignment,
    thickness_px: float,
    origin_px: tuple[float, float, float] = (0.0, 0.0, 0.0),
    axis_px: float = 0.0,
) -> tuple[LocalWarp, float]:
    """The motion of the specimen's middle plane, and what is lost by it: px at most, at half the thickness off it.

    Images so steep that the plane is seen edge-on are left without local motion.

    Args:
        origin_px: the plane is that of a tomogram whose points are the alignment's plus this (x, y, z), and the warp
            that of ``alignment.translated(origin_px)``, whose shifts have ``axis_px`` less in x.
        axis_px: see `LocalAlignments.observed`.
    """
    origin = np.array(origin_px)
    nx, ny = alignment.aligned_size
    half_x, half_y = half_view(alignment)
    x, y = np.linspace(-half_x, half_x, WARP_NODES), np.linspace(-half_y, half_y, WARP_NODES)
    u = np.stack(np.meshgrid(x, y), axis=-1)
    vectors, lost = np.zeros((alignment.n_tilts, WARP_NODES, WARP_NODES, 2)), 0.0
    for m in range(alignment.n_tilts):
        axes = np.stack(
            [
                specimen_to_aligned(axis, float(alignment.tilt_deg[m]), float(alignment.x_tilt_deg[m]))
                for axis in np.eye(3)
            ],
            axis=-1,
        )
        if abs(np.linalg.det(axes[:, :2])) < STEEPEST:
            continue
        xy = u @ np.linalg.inv(axes[:, :2]).T
        middle = np.concatenate([xy, np.zeros((*xy.shape[:-1], 1))], axis=-1) - origin
        back = axes @ origin - [axis_px, 0.0]  # from the aligned stack to the images of the moved tomogram
        vectors[m] = local.observed(alignment, m, middle, axis_px) + back - u
        few = middle[::8, ::8]
        inside = (np.abs(few[..., 0] + axis_px) <= nx / 2) & (np.abs(few[..., 1]) <= ny / 2)
        for z in (-thickness_px / 2, thickness_px / 2):
            moved = local.observed(alignment, m, few + [0, 0, z], axis_px) + back - u[::8, ::8] - z * axes[:, 2]
            seen_at = u[::8, ::8] + z * axes[:, 2]
            error = moved - LocalWarp(x, y, vectors[m][None], "bilinear")(0, seen_at)
            lost = max(lost, float(np.linalg.norm(error[inside], axis=-1).max(initial=0.0)))
    return LocalWarp(x, y, vectors, "bilinear"), lost


# --- writing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalFit:
    """Number of areas an axis, and how well they hold the motion over the slab, px."""

    areas: int
    rms_px: float
    largest_px: float


def write_local(path: str | Path, alignment: Alignment, thickness_px: float, overwrite: bool = False) -> LocalFit:
    """Write the local motion as local alignments for ``BASE.xf``; as few areas as come within `TOLERANCE_PX`.

    Args:
        thickness_px: of the slab through which the areas' linear patches are fitted.
    """
    local, fit = fitted_local(alignment, thickness_px)
    nx, ny = (int(round(v)) for v in (len(local.x), len(local.y)))
    first = [
        round(nodes[0] + centre_index(n) + 1)
        for nodes, n in zip((local.x, local.y), alignment.aligned_size, strict=True)
    ]
    step = [round(nodes[1] - nodes[0]) for nodes in (local.x, local.y)]
    pixel = alignment.pixel_size_A or 0.0
    parts = [f"{nx:6d}{ny:6d}{first[0]:6d}{first[1]:6d}{step[0]:6d}{step[1]:6d}     0{pixel:11.5f}   0\n"]
    for j, i in np.ndindex(ny, nx):
        angles = [f"{0.0:7.2f}"] * alignment.n_tilts
        parts += ["".join(angles[k : k + 10]) + "\n" for k in range(0, len(angles), 10)]
        for matrix, shift in zip(local.linear[j, i] + 0.0, local.shift_px[j, i] + 0.0, strict=True):
            parts.append("".join(f" {v:11.7f}" for v in matrix.ravel()) + f" {shift[0]:11.3f} {shift[1]:11.3f}\n")
    write_text(path, "".join(parts), overwrite)
    return fit


def fitted_local(alignment: Alignment, thickness_px: float) -> tuple[LocalAlignments, LocalFit]:
    """Areas with linear patches that follow the warp through a slab, and their error over the included images."""
    best: tuple[LocalAlignments, LocalFit] | None = None
    points = _slab(alignment.aligned_size, (29, 31), thickness_px)
    truth = [_seen(alignment, int(m), points) for m in alignment.included]
    for areas in AREAS:
        local = _fit(alignment, areas, thickness_px)
        moved = [local.observed(alignment, int(m), points) for m in alignment.included]
        error = np.linalg.norm(np.array(moved) - np.array(truth), axis=-1)
        fit = LocalFit(areas, float(np.sqrt((error**2).mean())), float(error.max(initial=0.0)))
        if best is None or fit.largest_px < best[1].largest_px:
            best = local, fit
        if best[1].largest_px < TOLERANCE_PX:
            break
    assert best is not None
    return best


def _area_centres(size: int, areas: int) -> Array:
    """Centres at whole pixels, a whole number apart, that reach the image's edges within a pixel or two an area."""
    step = max(1, round((size - 1) / (areas - 1)))
    first = round((size + 1 - step * (areas - 1)) / 2)
    return np.asarray(first + step * np.arange(areas) - 1 - centre_index(size), dtype=np.float64)


def _slab(size: tuple[int, int], counts: tuple[int, int], thickness_px: float) -> Array:
    """Points ``(n, 3)`` of a slab as wide as the aligned images."""
    x, y = (np.linspace(-n / 2, n / 2, k) for n, k in zip(size, counts, strict=True))
    z = np.array([-0.5, 0.0, 0.5]) * thickness_px
    return np.stack(np.meshgrid(x, y, z), axis=-1).reshape(-1, 3)


def _fit(alignment: Alignment, areas: int, thickness_px: float) -> LocalAlignments:
    """Least squares over a slab: sums over areas of weight x (matrix u + shift), which is linear in what is sought."""
    size, n = alignment.aligned_size, alignment.n_tilts
    x, y = _area_centres(size[0], areas), _area_centres(size[1], areas)
    count = int(np.ceil(SAMPLES * areas)) + 3
    points = _slab(size, (count, count), thickness_px)
    weights_x = interpolation_matrix(x, points[:, 0], "bilinear")
    weights_y = interpolation_matrix(y, points[:, 1], "bilinear")
    weights = np.einsum("nj,ni->nji", weights_y, weights_x).reshape(len(points), -1)
    reach = max(size) / 2
    linear = np.tile(np.eye(2), (areas * areas, n, 1, 1))
    shift = np.zeros((areas * areas, n, 2))
    for m in alignment.included if alignment.warp is not None else ():
        u = specimen_to_aligned(points, float(alignment.tilt_deg[m]), float(alignment.x_tilt_deg[m]))
        design = np.concatenate([weights, weights * u[:, :1] / reach, weights * u[:, 1:] / reach], axis=1)
        assert alignment.warp is not None
        normal = design.T @ design
        normal[np.diag_indices_from(normal)] += RIDGE * normal.diagonal().mean()
        found = np.linalg.solve(normal, design.T @ alignment.warp(int(m), u))
        constant, along_x, along_y = found.reshape(3, areas * areas, 2)
        shift[:, m] = constant
        linear[:, m, :, 0] += along_x / reach
        linear[:, m, :, 1] += along_y / reach
    shape = (areas, areas, n)
    return LocalAlignments(
        x=x,
        y=y,
        tilt_deg=np.zeros(shape),
        x_tilt_deg=np.zeros(shape),
        z_factors=np.zeros((*shape, 2)),
        linear=np.round(linear, 7).reshape(*shape, 2, 2),
        shift_px=np.round(shift, 3).reshape(*shape, 2),
    )


def _seen(alignment: Alignment, tilt: int, points: Array) -> Array:
    """Positions in the aligned stack ``(n, 2)`` of specimen points, local motion and all."""
    u = specimen_to_aligned(points, float(alignment.tilt_deg[tilt]), float(alignment.x_tilt_deg[tilt]))
    return u if alignment.warp is None else u + alignment.warp(tilt, u)
