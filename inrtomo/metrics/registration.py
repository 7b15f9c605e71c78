"""Laying one volume over another before they are compared: by a translation, or by a rigid motion.

Volumes are ``[z, y, x]`` of one shape; shifts are voxels. Every candidate of a comparison should be registered in the
same way to the same reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as sfft
from scipy.ndimage import affine_transform, gaussian_filter
from scipy.spatial.transform import Rotation

from inrtomo.geometry import centred_coordinates
from inrtomo.metrics.alignment import RigidMotion
from inrtomo.metrics.masks import soft_box

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Volume = NDArray[Any]

EDGE = 0.25
"""Soft edge under which translations are sought, as part of each side: with 0.08 errors are two to eight times larger,
as the faces, which do not move, draw the estimate towards no shift."""
ROUNDS = 4
TOLERANCE_PX = 0.02
RIGID_BINS = (4, 2, 1)
RIGID_STEPS = 12
MAX_TURN_DEG = 20.0
SMALLEST_SIDE_PX = 16
"""No volume is binned below this side."""


def translation_between(moving: Volume, fixed: Volume, max_px: float = 20.0) -> F64:
    """Shift (z, y, x) in voxels that lays ``moving`` over ``fixed``, by phase correlation to about 0.02 voxel.

    Phases are weighted by the square root of the spectra, so that empty frequencies do not vote. The peak is searched
    within ``max_px``, refined between voxels, and sought again with the volume moved there: the soft edge, the same
    for both, draws a single estimate towards no shift. Raises ValueError for different shapes.
    """
    same_shape(moving, fixed)
    window = soft_box(np.shape(fixed), EDGE)
    target = sfft.rfftn(centred(fixed) * window)
    shift = np.zeros(3)
    for _ in range(ROUNDS):
        moved = centred(translated(moving, shift)) * window
        step = _phase_peak(sfft.rfftn(moved), target, np.shape(fixed), max_px)
        shift = shift + step
        if np.abs(step).max() <= TOLERANCE_PX:
            break
    return shift


def translated(volume: Volume, shift: Sequence[float] | F64) -> F32:
    """The volume moved by ``shift`` (z, y, x) voxels, by Fourier phases (what leaves one side enters the other)."""
    spectrum = sfft.rfftn(np.asarray(volume, dtype=np.float32))
    for axis, (size, step) in enumerate(zip(np.shape(volume), shift, strict=True)):
        frequency = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
        phase = np.exp(-2j * np.pi * frequency * step).astype(np.complex64)
        spectrum *= phase.reshape([-1 if k == axis else 1 for k in range(3)])
    return np.asarray(sfft.irfftn(spectrum, s=np.shape(volume)), dtype=np.float32)


def rigid_between(moving: Volume, fixed: Volume, max_px: float = 20.0) -> RigidMotion:
    """Rigid motion that lays ``moving`` over ``fixed``, to about 0.05 voxel and 0.05 degrees on a clean volume.

    `rigidly_moved` applies it. From the best translation, Gauss-Newton steps to the least squares difference under a
    free factor (Lucas & Kanade 1981), coarse to fine; turns of up to about ten degrees are found. Volumes that are not
    alike lead further away, which is no registration: then the translation is returned. Raises ValueError for
    different shapes.
    """
    shift = translation_between(moving, fixed, max_px)
    # lattice points are read in the moving volume: the other way round from its own shift
    motion = start = RigidMotion(np.eye(3), -shift[::-1])
    for size in RIGID_BINS:
        if size == 1 or min(np.shape(fixed)) // size >= SMALLEST_SIDE_PX:
            coarse = RigidMotion(motion.rotation, motion.translation_px / size)
            found = _least_squares_motion(_binned(moving, size), _binned(fixed, size), coarse)
            motion = RigidMotion(found.rotation, found.translation_px * size)
    away_px = float(np.abs(motion.translation_px - start.translation_px).max())
    return motion if away_px <= max_px and np.abs(motion.rotation_deg).max() <= MAX_TURN_DEG else start


def rigidly_moved(volume: Volume, motion: RigidMotion) -> F32:
    """The volume read at ``motion(X)`` for its every point X, by cubic splines; its mean where there is nothing."""
    mean = np.float32(np.mean(volume, dtype=np.float64))
    return resampled(centred(volume), 1.0, np.shape(volume), motion.rotation, motion.translation_px) + mean


def resampled(volume: Volume, voxel_px: float, shape: Sequence[int], rotation: F64, translation_px: F64) -> F32:
    """A volume of voxels ``voxel_px`` wide on the lattice ``shape`` (z, y, x) of 1 px voxels, centre on centre.

    The lattice's point X = (x, y, z) px is read at ``rotation @ X + translation_px``, by cubic splines; 0 outside.
    """
    matrix = np.asarray(rotation, dtype=np.float64)[::-1, ::-1] / voxel_px
    centre, own_centre = (np.array(shape) - 1) / 2, (np.array(np.shape(volume)) - 1) / 2
    offset = np.asarray(translation_px, dtype=np.float64)[::-1] / voxel_px + own_centre - matrix @ centre
    values = np.asarray(volume, dtype=np.float32)
    return np.asarray(affine_transform(values, matrix, offset, tuple(shape), order=3), dtype=np.float32)


def centred(volume: Volume) -> F32:
    """The volume less its mean, float32."""
    values = np.asarray(volume, dtype=np.float32)
    return values - np.float32(values.mean(dtype=np.float64))


def same_shape(a: Volume, b: Volume) -> None:
    """ValueError for arrays of different shape."""
    if np.shape(a) != np.shape(b):
        raise ValueError(f"volumes of different shape: {np.shape(a)} and {np.shape(b)}")


def _least_squares_motion(moving: Volume, fixed: Volume, start: RigidMotion) -> RigidMotion:
    """The motion that minimises ``|fixed - factor * moving(motion(X))|`` under a soft edge, near the start."""
    shape = np.shape(fixed)
    target, source = (gaussian_filter(centred(v), 1.0) for v in (fixed, moving))
    window = soft_box(shape)
    z, y, x = np.meshgrid(*(centred_coordinates(n).astype(np.float32) for n in shape), indexing="ij", sparse=True)
    radius = max(shape) / 2
    motion = start
    for _ in range(RIGID_STEPS):
        now = resampled(source, 1.0, shape, motion.rotation, motion.translation_px)
        gz, gy, gx = np.gradient(now)
        # read at X + turn x X + step: the value changes by step . gradient + turn . (X x gradient)
        slopes = now, gx, gy, gz, y * gz - z * gy, z * gx - x * gz, x * gy - y * gx
        design = np.stack([(slope * window).ravel() for slope in slopes])
        normal = (design @ design.T).astype(np.float64)
        wanted = (design @ (target * window).ravel()).astype(np.float64)
        factor, *rest = np.linalg.lstsq(normal, wanted, rcond=1e-12)[0]
        if factor <= 0:
            break  # they do not resemble each other: no direction to go
        step, turn = np.array(rest[:3]) / factor, np.array(rest[3:]) / factor
        motion = RigidMotion(
            motion.rotation @ Rotation.from_rotvec(turn).as_matrix(), motion.rotation @ step + motion.translation_px
        )
        if max(np.abs(step).max(), radius * np.abs(turn).max()) < TOLERANCE_PX:
            break
    return motion


def _binned(volume: Volume, size: int) -> F32:
    """Means over blocks of ``size`` voxels; what is left over at the far faces is dropped."""
    values = np.asarray(volume, dtype=np.float32)
    nz, ny, nx = (n // size for n in values.shape)
    blocks = values[: nz * size, : ny * size, : nx * size].reshape(nz, size, ny, size, nx, size)
    return np.asarray(blocks.mean(axis=(1, 3, 5)))


def _phase_peak(moving: NDArray[Any], fixed: NDArray[Any], shape: Sequence[int], max_px: float) -> F64:
    """Offset (z, y, x) of the highest phase correlation of two transforms within ``max_px`` along each axis."""
    product = fixed * np.conj(moving)
    product /= np.sqrt(np.abs(product)) + 1e-12 * float(np.sqrt(np.abs(product).max()) or 1.0)
    surface = sfft.irfftn(product, s=shape)
    offsets = [np.rint(np.fft.fftfreq(n) * n) for n in shape]
    near = [np.abs(o) <= min(max_px, n // 2) for o, n in zip(offsets, shape, strict=True)]
    allowed = surface[np.ix_(*near)]
    peak = np.unravel_index(int(np.argmax(allowed)), allowed.shape)
    whole = np.array([o[keep][k] for o, keep, k in zip(offsets, near, peak, strict=True)])
    return whole + _peak_refinement(product, shape, whole)


def _peak_refinement(product: NDArray[Any], shape: Sequence[int], shift: F64) -> F64:
    """Offset within half a voxel of the interpolant's maximum: two rounds of a fine lattice by matrix products."""
    axes = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    twice = np.full(len(axes[2]), 2.0)
    twice[0] = 1.0
    weighted = product * twice
    best = np.zeros(3)
    for half, steps in ((0.6, 13), (0.1, 11)):
        lattice = np.linspace(-half, half, steps)
        z, y, x = (np.exp(2j * np.pi * np.outer(s + c + lattice, f)) for s, c, f in zip(shift, best, axes, strict=True))
        values = np.tensordot(z, np.tensordot(weighted, x, (2, 1)), (1, 0))  # (steps, ny, steps)
        fine = np.einsum("jy,iyk->ijk", y, values).real
        best = best + lattice[np.array(np.unravel_index(int(np.argmax(fine)), fine.shape))]
    return best
