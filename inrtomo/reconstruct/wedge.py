"""What a tilt series measures of Fourier space, how much of a volume lies outside, and the volume without that.

The image at tilt t is the central slice through the axis ky at kz = kx tan t. A specimen of thickness T is blurred by
1 / T along kz, so a slice tells what lies within 1 / (2 T) of it: between two tilts nothing is missing up to the
Crowther frequency cos t / (T dt), beyond it gaps open, and outside the outermost tilts is the missing wedge. What a
reconstruction holds out there is prior or artefact, not data.

Without x-tilt all of this happens in planes of constant y: any range of y rows may be treated on its own, to the same
result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Array = NDArray[np.floating[Any]]

Given = tuple[tuple[int, int, int], Array, float, float | None, float]
"""What `measured_region` is asked."""

PART_BYTES = 2**28


def crowther_frequency(tilt_deg: Array, thickness: float) -> float:
    """Up to here a slab shows no gap between neighbouring tilts: ``cos t / (thickness dt)``, cycles per unit length.

    t is the steepest tilt, where the path through the slab is longest, dt the mean step between different tilts
    (R. A. Crowther, D. J. DeRosier and A. Klug, Proc. R. Soc. A 317 (1970) 319, with the slab's path as diameter).
    Raises ValueError for fewer than two different tilts.
    """
    angles = np.unique(np.deg2rad(np.asarray(tilt_deg, dtype=np.float64)))
    if len(angles) < 2:
        raise ValueError("the Crowther frequency needs at least two different tilt angles")
    step = (angles[-1] - angles[0]) / (len(angles) - 1)
    return float(np.cos(np.abs(angles).max()) / (thickness * step))


def beyond_tilt_range(kx: Array, kz: Array, tilt_deg: Array) -> Array:
    """Distance along kz from the region between the outermost tilts, 0 inside it; units of kx and kz (broadcast)."""
    first, last = (kx * np.tan(np.deg2rad(t)) for t in (np.min(tilt_deg), np.max(tilt_deg)))
    return np.asarray(np.maximum(np.maximum(kz - np.maximum(first, last), np.minimum(first, last) - kz), 0))


def beyond_slices(kx: Array, kz: Array, tilt_deg: Array) -> Array:
    """Distance along kz from the nearest tilt's central slice; units of kx and kz (broadcast)."""
    distance = np.full(np.broadcast_shapes(kx.shape, kz.shape), np.inf)
    for slope in np.tan(np.deg2rad(np.unique(tilt_deg))):  # one tilt at a time keeps this as small as the spectrum
        np.minimum(distance, np.abs(kz - kx * slope), out=distance)
    return distance


def soft_limit(distance: Array, thickness: float) -> Array:
    """1 up to a distance of ``1 / (2 thickness)``, 0 from ``3 / (2 thickness)`` on, half a cosine in between.

    The edge is as wide as the blur of the slab: a sharper one would ring through its whole height.
    """
    beyond = np.clip(distance * thickness - 0.5, 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * beyond))


def measured_region(
    shape: tuple[int, int, int],
    tilt_deg: Array,
    voxel_px: float = 1.0,
    thickness_px: float | None = None,
    x_tilt_deg: float = 0.0,
) -> F32:
    """How far each Fourier component of a volume is measured, 0..1, for ``rfftn`` of an array of ``shape``.

    Args:
        shape: of the volume ``[z, y, x]``.
        tilt_deg: angles of the tilts used, any order.
        voxel_px: size of a voxel, raw px.
        thickness_px: of the specimen, raw px; the height of the volume if None.
        x_tilt_deg: rotation of the specimen about x that levelled the volume (`geometry.rotation_about_x`).

    Returns:
        ``(nz, ny or 1, nx // 2 + 1)``; the middle axis is 1 without x-tilt, where ky does not matter.
    """
    return _region(shape, tilt_deg, voxel_px, thickness_px, x_tilt_deg, slice(0, shape[2] // 2 + 1))


def energy_in_wedge(
    volume: NDArray[Any],
    tilt_deg: Array,
    voxel_px: float = 1.0,
    thickness_px: float | None = None,
    x_tilt_deg: float = 0.0,
    device: str = "cpu",
) -> float:
    """Part of a volume's variance that no tilt has measured, in the transform of its box.

    Arguments as `measured_region`. Values seen: white noise, the part of Fourier space outside (0.29 for +-60 deg);
    weighted back-projections 0.01 to 0.03, from the box's faces. 0 for a constant volume.
    """
    shape, work = (volume.shape[0], volume.shape[1], volume.shape[2]), wedge_work_on(device)
    level = np.float32(np.mean(volume, dtype=np.float64))
    total = sum(float(np.sum((plane - level) ** 2, dtype=np.float64)) for plane in volume)
    outside = 0.0
    for part in _parts(shape, x_tilt_deg):
        outside += work.energy(volume, level, part, (shape, tilt_deg, voxel_px, thickness_px, x_tilt_deg))
    return outside / total if total > 0 else 0.0


def measured_only(
    volume: NDArray[Any],
    tilt_deg: Array,
    voxel_px: float = 1.0,
    thickness_px: float | None = None,
    x_tilt_deg: float = 0.0,
    overwrite: bool = False,
    device: str = "cpu",
) -> F32:
    """A volume ``[z, y, x]`` without the Fourier components that no tilt has measured.

    Other arguments as `measured_region`. The transform is the box's own, so any program that transforms the box
    finds nothing outside; the top face is therefore a neighbour of the bottom face. Memory: the result and
    `PART_BYTES`, whatever the size.

    Args:
        overwrite: write into ``volume`` (float32) itself.
        device: where transforms are made.
    """
    shape, work = (volume.shape[0], volume.shape[1], volume.shape[2]), wedge_work_on(device)
    out = volume if overwrite else np.array(volume, dtype=np.float32)
    for part in _parts(shape, x_tilt_deg):
        work.remove(out, part, (shape, tilt_deg, voxel_px, thickness_px, x_tilt_deg))
    return out


class WedgeWork:
    """What is done to parts of a volume's transform, on the CPU; `inrtomo.gpu.wedge` does the same on a device."""

    def energy(self, volume: NDArray[Any], level: Any, part: Part, given: Given) -> float:
        """Of the components of ``volume - level`` that no tilt has measured."""
        missing = 1 - _region(*given, part.columns)
        missing *= conjugates(volume.shape[2])[part.columns]
        spectrum = part.transform(volume, level)
        return float(np.sum((spectrum.real**2 + spectrum.imag**2) * missing, dtype=np.float64))

    def remove(self, volume: F32, part: Part, given: Given) -> None:
        """Take these components from the volume."""
        spectrum = part.transform(volume)
        spectrum *= 1 - _region(*given, part.columns)
        part.subtract(spectrum, volume)


def wedge_work_on(device: str) -> WedgeWork:
    """The work on ``"cpu"`` or a GPU as torch calls it."""
    if device == "cpu":
        return WedgeWork()
    from inrtomo.gpu.wedge import DeviceWedgeWork

    return DeviceWedgeWork(device)


def _region(
    shape: tuple[int, int, int],
    tilt_deg: Array,
    voxel_px: float,
    thickness_px: float | None,
    x_tilt_deg: float,
    columns: slice,
) -> F32:
    """`measured_region` at some of the frequencies along x."""
    thickness = thickness_voxels(shape, voxel_px, thickness_px)
    kz, kx = slab_frequencies(shape, x_tilt_deg, columns)
    region = np.empty((*kz.shape[:2], len(kx)), dtype=np.float32)
    for z in range(len(kz)):
        region[z] = soft_limit(beyond_slices(kx, kz[z], tilt_deg), thickness)
    return region


def thickness_voxels(shape: tuple[int, int, int], voxel_px: float, thickness_px: float | None) -> float:
    """Of the specimen; the volume's own height where it is not given."""
    return shape[0] if thickness_px is None else thickness_px / voxel_px


def slab_frequencies(shape: tuple[int, int, int], x_tilt_deg: float, columns: slice) -> tuple[Array, Array]:
    """Frequencies across the slab, ``(nz, ny or 1, 1)``, and some of those along x; cycles per voxel."""
    nz, ny, nx = shape
    kz = np.fft.fftfreq(nz)[:, None, None]
    if x_tilt_deg:
        a = np.deg2rad(x_tilt_deg)
        kz = np.cos(a) * kz - np.sin(a) * np.fft.fftfreq(ny)[:, None]
    return kz, np.fft.rfftfreq(nx)[columns]


@dataclass(frozen=True)
class Part:
    """A part of a volume's unitary transform that can be made, and taken from the volume, without the rest.

    Without x-tilt, rows y, transformed along z and x; with it, columns of frequencies kx, transformed along all axes.
    """

    rows: slice
    columns: slice
    along_y: bool

    def transform(self, volume: NDArray[Any], level: Any = 0) -> NDArray[np.complex64]:
        """Of a volume less ``level``, ``(nz, rows, columns)``."""
        nz, ny, nx = volume.shape
        shape = (nz, len(range(ny)[self.rows]), len(range(nx // 2 + 1)[self.columns]))
        lines = np.empty(shape, dtype=np.complex64)
        for z in range(nz):
            plane = np.asarray(volume[z, self.rows], dtype=np.float32) - np.float32(level)
            lines[z] = scipy.fft.rfft(plane, norm="ortho")[:, self.columns]
        return self._across(scipy.fft.fftn, lines)

    def subtract(self, spectrum: NDArray[np.complex64], volume: NDArray[Any]) -> None:
        """Take components, given as `transform` gives them, from the volume."""
        lines = self._across(scipy.fft.ifftn, spectrum)
        line = np.zeros((lines.shape[1], volume.shape[2] // 2 + 1), dtype=np.complex64)
        for z in range(len(volume)):
            line[:, self.columns] = lines[z]
            volume[z, self.rows] -= scipy.fft.irfft(line, volume.shape[2], norm="ortho")

    def _across(self, transform: Any, lines: NDArray[np.complex64]) -> NDArray[np.complex64]:
        axes, workers = (0, 1) if self.along_y else (0,), nb.get_num_threads()
        out: NDArray[np.complex64] = transform(lines, axes=axes, norm="ortho", overwrite_x=True, workers=workers)
        return out


def _parts(shape: tuple[int, int, int], x_tilt_deg: float) -> Iterator[Part]:
    """The parts of a volume ``[z, y, x]``, each within `PART_BYTES` with what is computed from it."""
    nz, ny, nx = shape
    n_columns = nx // 2 + 1
    count, line = (n_columns, ny) if x_tilt_deg else (ny, n_columns)
    at_a_time = max(1, PART_BYTES // (32 * nz * line))
    for first in range(0, count, at_a_time):
        some = slice(first, min(first + at_a_time, count))
        yield Part(slice(0, ny), some, True) if x_tilt_deg else Part(some, slice(0, n_columns), False)


def conjugates(size: int) -> F32:
    """2 for the components of ``rfft`` of ``size`` samples whose conjugate it leaves out, 1 for the others."""
    count = np.full(size // 2 + 1, 2.0, dtype=np.float32)
    count[0] = 1.0
    if size % 2 == 0:
        count[-1] = 1.0
    return count
