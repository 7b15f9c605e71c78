"""Line integrals of a density along the deformed rays of a tilt series, straight to raw pixels, and their adjoint.

`inrtomo.projection` projects a lattice to ideal aligned images; here every raw pixel reads them where the alignment's
full map, local motion included, puts it. So noise is never interpolated and every pixel keeps its own weight.

The lattice is wider in x than the view: a ray at high tilt crosses material outside it on its way through the slab,
and that material must have a place. It is cut off at the end by `level_volume`.

A specimen tilted about x by an angle a is held sheared: what is seen in row v = y cos a + z sin a lies at height
z / cos a above the plane z' = -v tan a, so the ray through (u, v) is that of an untilted slab through
u + v tan a sin t. The slab stays as thin as the specimen, rows stay apart, and only the rows are mixed once, by one
cubic interpolation, when `level_volume` lays the volume level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from inrtomo.align.motion import lattice_indices
from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import centred_coordinates
from inrtomo.projection import Lattice, spread_at, values_at
from inrtomo.reconstruct import joseph
from inrtomo.reconstruct.slabs import volume_shape
from inrtomo.resample import binned_stack

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

ROW_MARGIN = 4  # lattice rows beyond the outermost voxels: the cubic reading's neighbours
STEEPEST_DEG = 75.0  # the lattice reaches where rays up to this tilt leave the slab; a slab has no end at 90 degrees
SAME_X_TILT_DEG = 0.01
INVERSE_STEPS = 8  # of the warp: done once, so that even one with slopes of 20 % ends below 1e-3 px
COARSE_STEP = 8  # binned pixels between those that are asked where a view lies


class Rays:
    """Line integrals of a slab lattice ``[z, x, y]`` along the deformed rays of a tilt series, and their adjoint.

    Args:
        alignment: of the tilts to reconstruct from (those excluded taken out), with one x-axis tilt.
        image_size: ``(nx, ny)`` of the raw images.
        bin: raw px per binned pixel and per voxel.
        thickness_px: height of the slab, raw px.
        y_range: aligned positions (raw px from the centre) that the lattice's rows reach over; all rows if None.
        device: where it is worked out what the pixels see.

    Attributes:
        lattice: where the density is sampled, ``spacing = bin``. The voxels of the level volume are a part of it
            (without x-tilt).
        shape: voxels ``(nz, ny, nx)`` of the level volume.
        x_tilt_deg: the common x-axis tilt.
        window: rows and columns of the binned images that see the lattice; `forward` and `adjoint` are about these
            (all of them when ``y_range`` is None).
        n_u: columns of the ideal projections.
    """

    def __init__(
        self,
        alignment: Alignment,
        image_size: tuple[int, int],
        bin: int,
        thickness_px: float,
        y_range: tuple[float, float] | None = None,
        device: str = "cpu",
    ) -> None:
        self.tilt_deg = np.asarray(alignment.tilt_deg, dtype=np.float64)
        self.x_tilt_deg = common_x_tilt(alignment)
        nx, ny = image_size
        self.shape = volume_shape(alignment.aligned_size, thickness_px, bin)
        x, y = (centred_coordinates(n // bin) * bin + (n // bin * bin - n) / 2 for n in (nx, ny))
        at_x, at_y = (np.unique(np.append(np.arange(0, len(p), COARSE_STEP), len(p) - 1)) for p in (x, y))
        u, v = self._aligned(alignment, x[at_x], y[at_y], "cpu")
        reach = np.abs(u).max(axis=(1, 2)) + 2 * bin  # the map is smooth: what lies between is no further out
        self.n_u = 2 * (int(np.ceil(reach.max() / bin)) + 2) + 1
        self.lattice = self._lattice(bin, reach, y_range)
        low = self.lattice.origin[2]
        high = low + (self.lattice.shape[2] - 1) * bin
        _, row, col = np.nonzero((v >= low) & (v <= high))
        self.window = (_span(at_y[row], len(y)), _span(at_x[col], len(x)))
        self._u, self._v = self._aligned(alignment, x[self.window[1]], y[self.window[0]], device)
        self._u /= np.float32(bin)
        self._u += np.float32((self.n_u - 1) / 2)
        self._v -= np.float32(low)
        self._v /= np.float32(bin)

    def forward(self, rho: F32, tilts: Ints) -> F32:
        """Binned raw images ``(len(tilts), rows, cols)`` of a density ``[z, x, y]``: density x raw px.

        Zero where the lattice is not `seen`.
        """
        values = values_at(joseph.project(rho, self.lattice, self.tilt_deg[tilts], self.n_u), *self._indices(tilts))
        values *= np.float32(self.lattice.spacing)
        return values

    def adjoint(self, images: F32, tilts: Ints) -> F32:
        """``[z, x, y]``: every pixel of ``images`` ``(len(tilts), rows, cols)`` spread along its ray."""
        out = np.zeros(self.lattice.shape, dtype=np.float32)
        self.correct(out, images, tilts)
        return out

    def correct(
        self, rho: F32, images: F32, tilts: Ints, step: F32 | None = None, lowest: float = joseph.NO_BOUND
    ) -> None:
        """``rho = max(lowest, rho + step * adjoint(images, tilts))`` in one pass, in place."""
        joseph.correct(rho, self.spread(images, tilts), self.lattice, self.tilt_deg[tilts], step, lowest)

    def correct_by_means(
        self, rho: F32, images: F32, tilts: Ints, received: F32, least: float, lowest: float = joseph.NO_BOUND
    ) -> None:
        """As `correct`, the step being ``1 / max(least, adjoint(weight, tilts))``, ``received = spread(weight)``."""
        ideal = self.spread(images, tilts)
        joseph.correct_by_means(rho, ideal, received, self.lattice, self.tilt_deg[tilts], least, lowest)

    def spread(self, images: F32, tilts: Ints) -> F32:
        """The adjoint's first half: pixels added into ideal projections ``(len(tilts), n_u, rows of the lattice)``."""
        out = spread_at(images, *self._indices(tilts), (len(tilts), self.n_u, self.lattice.shape[2]))
        out *= np.float32(self.lattice.spacing)
        return out

    @property
    def indices(self) -> tuple[F32, F32]:
        """Where in the ideal projections the pixels read: fractional (column, row) ``(n_tilts, rows, cols)``."""
        return self._u, self._v

    def seen(self, tilts: Ints) -> NDArray[np.bool_]:
        """Which pixels ``(len(tilts), rows, cols)`` look at rows of the lattice."""
        u, v = self._indices(tilts)
        return (u >= 1) & (u < self.n_u - 2) & (v >= 1) & (v < self.lattice.shape[2] - 2)

    def _indices(self, tilts: Ints) -> tuple[F32, F32]:
        if np.array_equal(tilts, np.arange(len(self._u))):
            return self.indices  # not a copy
        return self._u[tilts], self._v[tilts]

    def _aligned(self, alignment: Alignment, x: Array, y: Array, device: str) -> tuple[F32, F32]:
        """Aligned positions (u, v), raw px, of raw pixels; u as in the frame in which the slab is not x-tilted."""
        given = alignment.linear, alignment.shift_px, *_warp_nodes(alignment), x, y
        if device == "cpu":
            u, v = lattice_indices(*given, 1.0, 1, 1, INVERSE_STEPS)
        else:
            u, v = _indices_on(device, given)
        if self.x_tilt_deg:
            shear = np.tan(np.deg2rad(self.x_tilt_deg)) * np.sin(np.deg2rad(self.tilt_deg))
            u += shear[:, None, None].astype(np.float32) * v
        return u, v

    def _lattice(self, bin: int, reach: Array, y_range: tuple[float, float] | None) -> Lattice:
        nz, ny, nx = self.shape
        x_tilt, tilt = np.deg2rad(self.x_tilt_deg), np.deg2rad(self.tilt_deg)
        if self.x_tilt_deg:
            ny += 2 * int(np.ceil(nz / 2 * abs(np.sin(x_tilt))))
            nz += 2 * int(np.ceil(nz / 2 * (1 / np.cos(x_tilt) - 1)))
        steepest = np.cos(np.deg2rad(STEEPEST_DEG))
        half_x = (reach + nz * bin / 2 * np.abs(np.sin(tilt))) / np.maximum(np.abs(np.cos(tilt)), steepest)
        nx += 2 * max(0, int(np.ceil(half_x.max() / bin - nx / 2)))
        rows = centred_coordinates(ny + 2 * ROW_MARGIN) * bin
        if y_range is not None:
            rows = rows[(rows >= y_range[0]) & (rows <= y_range[1])]
        origin = (-(nz - 1) / 2 * bin, -(nx - 1) / 2 * bin, float(rows[0]))
        return Lattice(float(bin), (nz, nx, len(rows)), origin)


def _indices_on(device: str, given: tuple[Array, Array, Array, Array, Array, str, Array, Array]) -> tuple[F32, F32]:
    from inrtomo.gpu.motion import lattice_indices

    return lattice_indices(*given, INVERSE_STEPS, device)


def common_x_tilt(alignment: Alignment) -> float:
    """The one x-axis tilt (degrees) of a series.

    Raises:
        InputError: it differs from tilt to tilt, so that rows of the specimen do not stay apart.
    """
    angles = np.asarray(alignment.x_tilt_deg, dtype=np.float64)
    if np.ptp(angles) > SAME_X_TILT_DEG:
        raise InputError(
            f"the x-axis tilt varies from {angles.min():.2f} to {angles.max():.2f} degrees; "
            "only --method fbp takes one for every image, the others need a common one"
        )
    return float(np.median(angles))


def bin_images(images: F32, weight: F32, bin: int) -> tuple[F32, F32]:
    """Raw images and weights ``(n, ny, nx)`` binned: images by cutting the Fourier transform, weights by their least.

    Pixels that are not finite count as zero with weight zero.
    """
    finite = np.isfinite(images)
    if not finite.all():
        images, weight = np.where(finite, images, 0).astype(np.float32), np.where(finite, weight, 0)
    n, ny, nx = weight.shape
    rows, cols = ny // bin, nx // bin
    blocks = weight[:, : rows * bin, : cols * bin].reshape(n, rows, bin, cols, bin)
    least = weight if bin == 1 else blocks.min(axis=(2, 4))
    return binned_stack(images, bin), np.ascontiguousarray(least, dtype=np.float32)


def level_volume(
    volume: F32,
    lattice: Lattice,
    x_tilt_deg: float,
    shape: tuple[int, int, int],
    spacing: float,
    rows: range | None = None,
    device: str = "cpu",
) -> F32:
    """The level volume ``[z, y, x]`` that a density ``[z, x, y]`` on the lattice of `Rays` shows.

    Cut out as it is without x-tilt; with one, planes across x are interpolated once by cubic B-splines.

    Args:
        shape: voxels ``(nz, ny, nx)`` of the whole level volume.
        spacing: raw px per voxel, the lattice's.
        rows: which of its rows y to make (all if None); the lattice must hold them.
        device: where it is interpolated.
    """
    nz, ny, nx = shape
    rows = range(ny) if rows is None else rows
    first = round((-(nx - 1) / 2 * spacing - lattice.origin[1]) / lattice.spacing)
    a = np.deg2rad(x_tilt_deg)
    z = centred_coordinates(nz)[:, None] * spacing
    y = centred_coordinates(ny)[rows.start : rows.stop] * spacing
    at_z = (z / np.cos(a) - lattice.origin[0]) / lattice.spacing + np.zeros_like(y)
    at_y = (y * np.cos(a) + z * np.sin(a) - lattice.origin[2]) / lattice.spacing
    out = np.empty((nz, len(rows), nx), dtype=np.float32)
    if not x_tilt_deg:
        z0, y0 = round(at_z[0, 0]), round(at_y[0, 0])
        out[:] = volume[z0 : z0 + nz, first : first + nx, y0 : y0 + len(rows)].transpose(0, 2, 1)
        return out
    if device != "cpu":
        return _laid_level_on(device, volume[:, first : first + nx], at_z, at_y)
    for i in range(nx):
        out[:, :, i] = map_coordinates(volume[:, first + i], [at_z, at_y], order=3, mode="nearest", output=np.float32)
    return out


def _laid_level_on(device: str, planes: F32, at_z: Array, at_y: Array) -> F32:
    from inrtomo.gpu.resample import laid_level

    return laid_level(planes, at_z, at_y, device)


def _warp_nodes(alignment: Alignment) -> tuple[Array, Array, Array, str]:
    """The warp's grid with two nodes or more an axis; a grid of two is linear between them."""
    warp = alignment.warp
    if warp is None:
        ends = np.array([-1.0, 1.0])
        return ends, ends, np.zeros((alignment.n_tilts, 2, 2, 2)), "bilinear"
    x, y, nodes = warp.x, warp.y, warp.vectors
    if len(x) == 1:
        x, nodes = x[0] + np.arange(2.0), nodes.repeat(2, axis=2)
    if len(y) == 1:
        y, nodes = y[0] + np.arange(2.0), nodes.repeat(2, axis=1)
    return x, y, nodes, warp.interpolation if min(len(x), len(y)) > 2 else "bilinear"


def _span(found: Ints, size: int) -> slice:
    """From the first to the last of the indices found, and one coarse step further."""
    if len(found) == 0:
        return slice(0, 0)
    return slice(max(0, int(found.min()) - COARSE_STEP), min(size, int(found.max()) + COARSE_STEP + 1))
