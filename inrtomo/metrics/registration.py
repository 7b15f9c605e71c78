"""Laying one volume over another before they are compared: by a translation, or by a rigid motion.

Volumes are ``[z, y, x]`` of one shape; shifts are voxels. Every candidate of a comparison should be registered in the
same way to the same reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
SMOOTHED_PX = 1.0  # sd of the Gaussian under which rigid motions are sought
SMALLEST_SIDE_PX = 16
"""No volume is binned below this side."""


Equations = Callable[[RigidMotion], tuple[F64, F64]]
"""Normal matrix and right side of the least squares, linear about a motion: factor, step (x, y, z), turn."""


class RegistrationWork:
    """What is done to whole volumes, on the CPU; `inrtomo.gpu.registration` does the same on a device.

    Volumes that it returns are arrays wherever the work is done, and so are transforms; it takes those and NumPy's.
    """

    def translated(self, volume: Any, shift: F64) -> Any:
        """The volume moved by ``shift`` (z, y, x) voxels, see `translated`."""
        return translated(volume, shift)

    def rigidly_moved(self, volume: Any, motion: RigidMotion) -> Any:
        """The volume read where a motion takes its points, see `rigidly_moved`."""
        return rigidly_moved(volume, motion)

    def transform(self, volume: Any, window: F32) -> Any:
        """Of the volume less its mean, under a window."""
        return sfft.rfftn(centred(volume) * window)

    def phase_peak(self, moving: Any, fixed: Any, shape: Sequence[int], max_px: float) -> F64:
        """Offset (z, y, x) of the highest phase correlation of two transforms within ``max_px`` along each axis."""
        return _phase_peak(moving, fixed, shape, max_px)

    def binned(self, volume: Any, size: int) -> Any:
        """Means over blocks of ``size`` voxels; what is left over at the far faces is dropped."""
        return _binned(volume, size)

    def equations(self, moving: Any, fixed: Any) -> Equations:
        """Of the motion that minimises ``|fixed - factor * moving(motion(X))|`` under a soft edge."""
        return _equations(moving, fixed)

    def fetched(self, volume: Any) -> F32:
        """The volume as a NumPy array."""
        return np.asarray(volume)


ON_CPU = RegistrationWork()


def registration_work_on(device: str) -> RegistrationWork:
    """The work on ``"cpu"`` or a GPU as torch calls it."""
    if device == "cpu":
        return ON_CPU
    from inrtomo.gpu.registration import DeviceRegistrationWork

    return DeviceRegistrationWork(device)


def translation_between(moving: Volume, fixed: Volume, max_px: float = 20.0, work: RegistrationWork = ON_CPU) -> F64:
    """Shift (z, y, x) in voxels that lays ``moving`` over ``fixed``, by phase correlation to about 0.02 voxel.

    Phases are weighted by the square root of the spectra, so that empty frequencies do not vote. The peak is searched
    within ``max_px``, refined between voxels, and sought again with the volume moved there: the soft edge, the same
    for both, draws a single estimate towards no shift. Raises ValueError for different shapes.
    """
    same_shape(moving, fixed)
    window = soft_box(np.shape(fixed), EDGE)
    target = work.transform(fixed, window)
    shift = np.zeros(3)
    for _ in range(ROUNDS):
        moved = work.transform(work.translated(moving, shift), window)
        step = work.phase_peak(moved, target, np.shape(fixed), max_px)
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


def rigid_between(moving: Volume, fixed: Volume, max_px: float = 20.0, work: RegistrationWork = ON_CPU) -> RigidMotion:
    """Rigid motion that lays ``moving`` over ``fixed``, to about 0.05 voxel and 0.05 degrees on a clean volume.

    `rigidly_moved` applies it. From the best translation, Gauss-Newton steps to the least squares difference under a
    free factor (Lucas & Kanade 1981), coarse to fine; turns of up to about ten degrees are found. Volumes that are not
    alike lead further away, which is no registration: then the translation is returned. Raises ValueError for
    different shapes.
    """
    shift = translation_between(moving, fixed, max_px, work)
    # lattice points are read in the moving volume: the other way round from its own shift
    motion = start = RigidMotion(np.eye(3), -shift[::-1])
    for size in RIGID_BINS:
        if size == 1 or min(np.shape(fixed)) // size >= SMALLEST_SIDE_PX:
            coarse = RigidMotion(motion.rotation, motion.translation_px / size)
            equations = work.equations(work.binned(moving, size), work.binned(fixed, size))
            found = _least_squares_motion(equations, max(np.shape(fixed)) // size / 2, coarse)
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
    matrix, offset = index_map(np.shape(volume), voxel_px, shape, rotation, translation_px)
    values = np.asarray(volume, dtype=np.float32)
    return np.asarray(affine_transform(values, matrix, offset, tuple(shape), order=3), dtype=np.float32)


def index_map(
    size: Sequence[int], voxel_px: float, shape: Sequence[int], rotation: F64, translation_px: F64
) -> tuple[F64, F64]:
    """Matrix and offset from indices (z, y, x) of the lattice of `resampled` to those of its volume, ``size``."""
    matrix = np.asarray(rotation, dtype=np.float64)[::-1, ::-1] / voxel_px
    centre, own_centre = (np.array(shape) - 1) / 2, (np.array(size) - 1) / 2
    return matrix, np.asarray(translation_px, dtype=np.float64)[::-1] / voxel_px + own_centre - matrix @ centre


def centred(volume: Volume) -> F32:
    """The volume less its mean, float32."""
    values = np.asarray(volume, dtype=np.float32)
    return values - np.float32(values.mean(dtype=np.float64))


def same_shape(a: Volume, b: Volume) -> None:
    """ValueError for arrays of different shape."""
    if np.shape(a) != np.shape(b):
        raise ValueError(f"volumes of different shape: {np.shape(a)} and {np.shape(b)}")


def _least_squares_motion(equations: Equations, radius: float, start: RigidMotion) -> RigidMotion:
    """The motion near the start that solves the equations about itself; ``radius`` of the volumes, voxels."""
    motion = start
    for _ in range(RIGID_STEPS):
        factor, *rest = np.linalg.lstsq(*equations(motion), rcond=1e-12)[0]
        if factor <= 0:
            break  # they do not resemble each other: no direction to go
        step, turn = np.array(rest[:3]) / factor, np.array(rest[3:]) / factor
        motion = RigidMotion(
            motion.rotation @ Rotation.from_rotvec(turn).as_matrix(), motion.rotation @ step + motion.translation_px
        )
        if max(np.abs(step).max(), radius * np.abs(turn).max()) < TOLERANCE_PX:
            break
    return motion


def _equations(moving: Volume, fixed: Volume) -> Equations:
    shape = np.shape(fixed)
    target, source = (gaussian_filter(centred(v), SMOOTHED_PX) for v in (fixed, moving))
    window = soft_box(shape)
    z, y, x = np.meshgrid(*(centred_coordinates(n).astype(np.float32) for n in shape), indexing="ij", sparse=True)

    def about(motion: RigidMotion) -> tuple[F64, F64]:
        now = resampled(source, 1.0, shape, motion.rotation, motion.translation_px)
        gz, gy, gx = np.gradient(now)
        # read at X + turn x X + step: the value changes by step . gradient + turn . (X x gradient)
        slopes = now, gx, gy, gz, y * gz - z * gy, z * gx - x * gz, x * gy - y * gx
        design = np.stack([(slope * window).ravel() for slope in slopes])
        normal = (design @ design.T).astype(np.float64)
        return normal, (design @ (target * window).ravel()).astype(np.float64)

    return about


def _binned(volume: Volume, size: int) -> F32:
    values = np.asarray(volume, dtype=np.float32)
    nz, ny, nx = (n // size for n in values.shape)
    blocks = values[: nz * size, : ny * size, : nx * size].reshape(nz, size, ny, size, nx, size)
    return np.asarray(blocks.mean(axis=(1, 3, 5)))


def _phase_peak(moving: NDArray[Any], fixed: NDArray[Any], shape: Sequence[int], max_px: float) -> F64:
    product = fixed * np.conj(moving)
    product /= np.sqrt(np.abs(product)) + 1e-12 * float(np.sqrt(np.abs(product).max()) or 1.0)
    surface = sfft.irfftn(product, s=shape)
    offsets, near = near_offsets(shape, max_px)
    whole = highest(surface[np.ix_(*near)], offsets, near)
    twice = np.full(shape[2] // 2 + 1, 2.0)
    twice[0] = 1.0
    weighted = product * twice

    def interpolant(z: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
        values = np.tensordot(z, np.tensordot(weighted, x, (2, 1)), (1, 0))  # (steps, ny, steps)
        return np.asarray(np.einsum("jy,iyk->ijk", y, values).real)

    return refined_peak(interpolant, shape, whole)


def near_offsets(shape: Sequence[int], max_px: float) -> tuple[list[F64], list[NDArray[np.bool_]]]:
    """Offsets (voxels) along each axis of a correlation, and which of them lie within ``max_px``."""
    offsets = [np.rint(np.fft.fftfreq(n) * n) for n in shape]
    return offsets, [np.abs(o) <= min(max_px, n // 2) for o, n in zip(offsets, shape, strict=True)]


def highest(allowed: NDArray[Any], offsets: list[F64], near: list[NDArray[np.bool_]]) -> F64:
    """The offset (z, y, x) of the highest of those that are near."""
    peak = np.unravel_index(int(np.argmax(allowed)), allowed.shape)
    return np.array([o[keep][k] for o, keep, k in zip(offsets, near, peak, strict=True)])


def refined_peak(interpolant: Callable[..., NDArray[Any]], shape: Sequence[int], shift: F64) -> F64:
    """Offset of the interpolant's maximum within half a voxel of ``shift``: two rounds of a fine lattice.

    Args:
        interpolant: gives values ``(steps, steps, steps)`` from the waves ``(steps, frequencies)`` along z, y and x.
    """
    axes = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    best = np.zeros(3)
    for half, steps in ((0.6, 13), (0.1, 11)):
        lattice = np.linspace(-half, half, steps)
        waves = (np.exp(2j * np.pi * np.outer(s + c + lattice, f)) for s, c, f in zip(shift, best, axes, strict=True))
        fine = interpolant(*waves)
        best = best + lattice[np.array(np.unravel_index(int(np.argmax(fine)), fine.shape))]
    return shift + best
