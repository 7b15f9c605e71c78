"""What iterative reconstructions share: the weighted equations of a slab of rows, and the slabs of a volume.

With A the deformed rays, b the images and w the weights of their pixels, a sweep over a subset of tilts is

    density += C A^T R w (b - level - A density),   R = 1 / row sums of A,   C = 1 / column sums of w A

so each ray spreads its error evenly over its length and each voxel takes the weighted mean of what its rays say
(J. Gregor and T. Benson, IEEE Trans. Med. Imaging 27 (2008) 918; with one tilt a subset it is SART, A. Andersen and
A. Kak, Ultrason. Imaging 6 (1984) 81). C is that of the subset: with Joseph's weights a voxel's column sum differs by
half from tilt to tilt, and one C for all of them shifted points by 0.1 px in z. It is kept for one subset and made in
passing for several.

**Level.** An image says nothing about the density's mean: its zero is unknown, and a slab goes on beyond the view. So
every image has a constant of its own, found once for all slabs: its mean, which makes a signed density one about
zero; or, where the density may not be negative, what such a density leaves over when it is fitted to small versions
of the images, its zero the solvent's.

**Slabs.** A row of pixels sees one row of the density but for the cubic interpolation of the reading, whose
influence fades within a few rows. So rows are solved in slabs that overlap and keep the rows in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import axis_angle, centred_coordinates
from inrtomo.reconstruct.joseph import NO_BOUND
from inrtomo.reconstruct.rays import ROW_MARGIN, Rays, bin_images, level_volume
from inrtomo.reconstruct.slabs import Slab, ranges

if TYPE_CHECKING:
    from inrtomo.gpu.sweeps import DeviceSweeps

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Ints = NDArray[np.integer[Any]]
Report = Callable[[float], None]
Solve = Callable[[Rays, F32, F32, Report], F32]
"""The density ``[z, x, y]`` on the lattice of some rays, from binned images and weights."""

DEFAULT_MEMORY = 2 * 2**30
LEAST_COLUMN_SUM = 0.05  # of that of a voxel seen by all: voxels that few rays graze would follow each one's noise
LEAST_PATH = 0.5  # voxels: a shorter way through the slab says nothing
LEVEL_SIZE = 64  # px of the images from which levels are found
LEVEL_SWEEPS = 40
SOLVENT = 0.6  # quantile of a non-negative density that is its zero: molecules fill less than the rest even in a cell
TINY = float(np.finfo(np.float32).tiny)
SPLINE_MARGIN = 6  # rows: the cubic B-spline that lays an x-tilted slab level forgets an edge by 0.27 a row
PIXEL_ARRAYS = 10  # of the size of a slab's images: where they read, weights, residuals and their copies
IDEAL_ARRAYS = 4


class Sweeps:
    """A density and the weighted equations that it is to meet.

    Args:
        rays: of the slab.
        images, weight: binned, whole, ``(n, rows, cols)``; weights 0..1.
        level: constant of every image, ``(n,)``.
        n_subsets: of tilts, interleaved in angle.
        allowed: where density may be, the shape of the lattice (everywhere if None).

    Attributes:
        density: ``[z, x, y]`` on the rays' lattice, zero at first; density per raw px.
        step: C where there is one subset.
    """

    def __init__(
        self, rays: Rays, images: F32, weight: F32, level: Array, n_subsets: int, allowed: Mask | None = None
    ) -> None:
        self.rays = rays
        rows, cols = rays.window
        every = np.arange(len(images))
        self.images = images[:, rows, cols] - level[:, None, None].astype(np.float32)
        self.subsets = interleaved(rays.tilt_deg, n_subsets)
        spacing = rays.lattice.spacing
        self.density = np.ones(rays.lattice.shape, dtype=np.float32)
        paths = rays.forward(self.density, every)
        # a share of what a voxel receives that every ray meets; of the whole images, so that slabs agree
        self.least = [
            max(TINY, LEAST_COLUMN_SUM * spacing * float(weight[subset].max(axis=(1, 2)).sum()))
            for subset in self.subsets
        ]
        weight = weight[:, rows, cols] * (rays.seen(every) & (paths > LEAST_PATH * spacing))
        self.pixel = weight / np.maximum(paths, LEAST_PATH * spacing)
        self.density[:] = 0
        self.allowed = allowed
        self.step: F32 | None = None
        self.received: F32 | None = None
        if len(self.subsets) > 1:
            self.received = rays.spread(weight, every)
        else:
            self.step = rays.adjoint(weight, every)
            np.maximum(self.step, self.least[0], out=self.step)
            np.reciprocal(self.step, out=self.step)

    def sweep(self, relaxation: float = 1.0, lowest: float = NO_BOUND) -> None:
        """One iteration: every subset once, in turn; the density ends at ``lowest`` or above."""
        for subset, least in zip(self.subsets, self.least, strict=True):
            errors = self._errors(subset)
            if relaxation != 1.0:
                errors *= np.float32(relaxation)
            self._correct(errors, subset, least, lowest)

    def sweep_levels(self, lowest: float) -> Array:
        """As `sweep`, but each image's constant is freed again first; gives the constants that were taken out."""
        out = np.zeros(len(self.images))
        for subset, least in zip(self.subsets, self.least, strict=True):
            errors, pixel = self._errors(subset), self.pixel[subset]
            out[subset] = errors.sum(axis=(1, 2)) / np.maximum(pixel.sum(axis=(1, 2)), TINY)
            constant = out[subset].astype(np.float32)[:, None, None]
            self.images[subset] -= constant
            errors -= constant * pixel
            self._correct(errors, subset, least, lowest)
        return out

    def _errors(self, subset: Ints) -> F32:
        """Images minus the density's, over the rays' lengths, in their weights."""
        errors = self.rays.forward(self.density, subset)
        np.subtract(self.images[subset], errors, out=errors)
        errors *= self.pixel[subset]
        return errors

    def _correct(self, errors: F32, subset: Ints, least: float, lowest: float) -> None:
        if self.received is None:
            self.rays.correct(self.density, errors, subset, self.step, lowest)
        else:
            self.rays.correct_by_means(self.density, errors, subset, self.received[subset], least, lowest)
        if self.allowed is not None:
            self.density *= self.allowed


def sweeps_on(
    device: str, rays: Rays, images: F32, weight: F32, level: Array, n_subsets: int, allowed: Mask | None = None
) -> Sweeps | DeviceSweeps:
    """`Sweeps` on the CPU, or the same on a GPU."""
    if device == "cpu":
        return Sweeps(rays, images, weight, level, n_subsets, allowed)
    from inrtomo.gpu.sweeps import DeviceSweeps

    return DeviceSweeps(rays, images, weight, level, n_subsets, device, allowed)


def interleaved(tilt_deg: Array, n_subsets: int) -> list[Ints]:
    """Tilts in subsets spread evenly over the angles, in an order in which neighbours are far apart."""
    by_angle = np.argsort(tilt_deg, kind="stable")
    n = min(n_subsets, len(by_angle))
    order = np.argsort(np.arange(n) * (np.sqrt(5) - 1) / 2 % 1)
    return [np.sort(by_angle[first::n]) for first in order]


def image_levels(
    images: F32, weight: F32, alignment: Alignment, thickness_px: float, bin: int, nonnegative: bool
) -> Array:
    """The constant of every binned image ``(n,)``, see this module's text."""
    total = np.einsum("mij,mij->m", images, weight, dtype=np.float64)
    level = total / np.maximum(weight.sum(axis=(1, 2), dtype=np.float64), TINY)
    if nonnegative:
        factor = max(1, -(-max(images.shape[1:]) // LEVEL_SIZE))
        images, weight = bin_images(images, weight, factor)
        rays = Rays(alignment, alignment.image_size, bin * factor, thickness_px)
        sweeps = Sweeps(rays, images, weight, level, 1)
        beyond = (rays.lattice.shape[1] - rays.shape[2]) // 2
        view = sweeps.density[:, beyond : beyond + rays.shape[2]]
        for _ in range(LEVEL_SWEEPS):
            level = level + sweeps.sweep_levels(lowest=0.0)
            # a uniform slab is as good as other constants: without this it would stay where it began
            sweeps.density -= np.quantile(view, SOLVENT)
            np.maximum(sweeps.density, 0, out=sweeps.density)
    return level


def solved_in_slabs(
    solve: Solve,
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    bin: int,
    memory_bytes: float,
    n_volumes: int,
    overlap: int,
    report: Report,
    device: str,
) -> Iterator[Slab]:
    """The level volume in slabs of rows, one after the other in bounded memory.

    Args:
        solve: makes the density of a slab.
        images, weight: binned.
        alignment: of these images, one x-tilt for all.
        n_volumes: arrays of the lattice's size that ``solve`` holds at once.
        overlap: rows on either side of a slab that are solved with it and dropped.
        report: called with the fraction of the work done.
        device: where rays are worked out and slabs laid level.

    Raises:
        InputError: not even the thinnest slab fits into ``memory_bytes``.
    """
    thin = Rays(alignment, alignment.image_size, bin, thickness_px, (0.0, float(bin)))
    nz, ny, nx = thin.shape
    a = np.deg2rad(thin.x_tilt_deg)
    more = overlap + ROW_MARGIN
    if thin.x_tilt_deg:
        more += int(np.ceil(nz / 2 * abs(np.sin(a)))) + SPLINE_MARGIN

    def needed(n_rows: int) -> float:
        lattice = (n_rows + 2 * more) * (n_volumes * thin.lattice.shape[0] * thin.lattice.shape[1])
        ideal = (n_rows + 2 * more) * IDEAL_ARRAYS * len(images) * thin.n_u
        level = nz * n_rows * nx  # cut out of the lattice while that is there
        return 4.0 * (lattice + ideal + level + PIXEL_ARRAYS * _window_pixels(images, alignment, n_rows + 2 * more))

    n_slabs = next((n for n in range(1, ny + 1) if needed(-(-ny // n)) <= memory_bytes), None)
    if n_slabs is None:
        raise InputError(
            f"--memory {memory_bytes / 2**30:.2g}G is too little for one row of the volume; "
            f"it takes {needed(1) / 2**30:.2g}G, or bin the images"
        )
    y = centred_coordinates(ny) * bin * np.cos(a)

    def slab(rows: range) -> F32:  # a function, so that nothing of a slab is held while the next one is made
        y_range = None if n_slabs == 1 else (y[rows.start] - more * bin, y[rows.stop - 1] + more * bin)
        rays = Rays(alignment, alignment.image_size, bin, thickness_px, y_range, device)
        density = solve(rays, images, weight, lambda part: report((rows.start + part * len(rows)) / ny))
        return level_volume(density, rays.lattice, rays.x_tilt_deg, rays.shape, bin, rows, device)

    for rows in ranges(0, ny, -(-ny // n_slabs)):
        yield rows, slab(rows)


def _window_pixels(images: F32, alignment: Alignment, n_rows: int) -> int:
    """Pixels of all images in the upright boxes around a strip of aligned rows."""
    n, ny, nx = images.shape
    turn = np.deg2rad(axis_angle(alignment.linear))
    across, along = np.abs(np.cos(turn)).max(), np.abs(np.sin(turn)).max()
    return n * int(min(ny, across * n_rows + along * nx) * min(nx, along * n_rows + across * nx))
