"""How alike two volumes are: correlation, Fourier shells, the best a filter could do, and registration before that.

Volumes are ``[z, y, x]`` of any sides, cubic or not; shells are rings of physical frequency (cycles per Å), so a slab
of 90 x 256 x 256 voxels counts as much along z as along x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as sfft
from scipy.ndimage import affine_transform

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Volume = NDArray[Any]

EDGE = 0.08
"""Width of the soft edge laid over a volume before its Fourier transform, as part of each side."""
REGISTRATION_ROUNDS = 4
REGISTRATION_TOLERANCE_PX = 0.02


@dataclass(frozen=True)
class ShellCorrelation:
    """Fourier shell correlation.

    Attributes:
        frequency_per_A: middle of every shell, cycles per Å, from the first shell outside the origin to Nyquist.
        correlation: FSC of every shell (0 where a shell is empty).
        count: independent Fourier components in every shell.
    """

    frequency_per_A: F64
    correlation: F64
    count: F64

    def resolution_A(self, threshold: float) -> float:
        """Å at which the curve first falls below ``threshold``; Nyquist if it never does, inf if it starts below."""
        below = np.flatnonzero(self.correlation < threshold)
        if len(below) == 0:
            return float(1 / self.frequency_per_A[-1])
        k = int(below[0])
        if k == 0:
            return float("inf")
        high, low = self.correlation[k - 1], self.correlation[k]
        part = (high - threshold) / (high - low)
        frequency = self.frequency_per_A[k - 1] + part * (self.frequency_per_A[k] - self.frequency_per_A[k - 1])
        return float(1 / frequency)


def central_region(shape: Sequence[int], margin: Sequence[float] = (0.0, 0.1, 0.1)) -> tuple[slice, ...]:
    """Slices of the middle of a volume, leaving out ``margin`` (part of each side, z y x) at either end."""
    edges = [round(size * part) for size, part in zip(shape, margin, strict=True)]
    return tuple(slice(edge, size - edge) for edge, size in zip(edges, shape, strict=True))


def cc(a: Volume, b: Volume, region: tuple[slice, ...] | None = None) -> float:
    """Pearson correlation of the voxels of two volumes, in a region (`central_region` by default).

    0 where either is constant. Raises ValueError for different shapes.
    """
    _same_shape(a, b)
    where = central_region(np.shape(a)) if region is None else region
    x, y = (np.asarray(v[where], dtype=np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 0 else 0.0


def fsc(a: Volume, b: Volume, pixel_size_A: float, region: tuple[slice, ...] | None = None) -> ShellCorrelation:
    """Fourier shell correlation of two volumes in a region (`central_region` by default), under a soft edge.

    Shells are as wide as the smallest side allows. Raises ValueError for different shapes.
    """
    shells, cross, power_a, power_b = _shell_sums(a, b, region)
    size = np.sqrt(power_a * power_b)
    correlation = np.divide(cross, size, out=np.zeros_like(cross), where=size > 0)
    return ShellCorrelation(shells.frequency / pixel_size_A, correlation, shells.count)


def best_isotropic_filter_cc(volume: Volume, truth: Volume, region: tuple[slice, ...] | None = None) -> float:
    """Correlation with the truth that the best filter depending on frequency alone could give a volume.

    The filter is the Wiener filter of every shell, made with the truth (never below zero), so this is a bar for a
    denoised volume to pass, not a result. A volume is seen under the same soft edge as in `fsc`.
    """
    _, cross, power, power_truth = _shell_sums(volume, truth, region)
    explained = np.divide(np.maximum(cross, 0) ** 2, power, out=np.zeros_like(cross), where=power > 0)
    total = power_truth.sum()
    return float(np.sqrt(explained.sum() / total)) if total > 0 else 0.0


def translation_between(moving: Volume, fixed: Volume, max_px: float = 20.0) -> F64:
    """Shift (z, y, x) in voxels that lays ``moving`` over ``fixed``, by phase correlation to about 0.02 voxel.

    Phases are weighted by the square root of the spectra, so that empty frequencies do not vote. The peak is searched
    within ``max_px``, refined between voxels, and sought again with the volume moved there: the soft edge, the same
    for both, draws a single estimate towards no shift.
    """
    _same_shape(moving, fixed)
    window = _soft_edge(np.shape(fixed))
    target = sfft.rfftn(_centred(fixed) * window)
    shift = np.zeros(3)
    for _ in range(REGISTRATION_ROUNDS):
        moved = _centred(translated(moving, shift)) * window
        step = _phase_peak(sfft.rfftn(moved), target, np.shape(fixed), max_px)
        shift = shift + step
        if np.abs(step).max() <= REGISTRATION_TOLERANCE_PX:
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


def resampled(volume: Volume, voxel_px: float, shape: Sequence[int], rotation: F64, translation_px: F64) -> F32:
    """A volume of voxels ``voxel_px`` wide on the lattice ``shape`` (z, y, x) of 1 px voxels, centre on centre.

    The lattice's point X = (x, y, z) px is read at ``rotation @ X + translation_px``, by cubic splines; 0 outside.
    """
    matrix = np.asarray(rotation, dtype=np.float64)[::-1, ::-1] / voxel_px
    centre, own_centre = (np.array(shape) - 1) / 2, (np.array(np.shape(volume)) - 1) / 2
    offset = np.asarray(translation_px, dtype=np.float64)[::-1] / voxel_px + own_centre - matrix @ centre
    values = np.asarray(volume, dtype=np.float32)
    return np.asarray(affine_transform(values, matrix, offset, tuple(shape), order=3), dtype=np.float32)


@dataclass(frozen=True)
class _Shells:
    frequency: F64  # cycles per voxel
    count: F64
    index: NDArray[np.int64]  # of every component of a real transform; last + 1 for those left out
    weight: F64  # 2 for components whose conjugate a real transform leaves out


def _shells(shape: Sequence[int]) -> _Shells:
    number = max(min(shape) // 2, 1)
    axes = [np.fft.fftfreq(n) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    radius = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    # shell k is centred on (k + 1) / (2 number): the mean is no part of any
    index = np.rint(radius * 2 * number).astype(np.int64) - 1
    index[(index < 0) | (index >= number)] = number
    twice = np.full(shape[2] // 2 + 1, 2.0)
    twice[0] = 1.0
    if shape[2] % 2 == 0:
        twice[-1] = 1.0
    weight = np.broadcast_to(twice, index.shape)
    count = np.bincount(index.ravel(), weight.ravel(), number + 1)[:number]
    return _Shells((np.arange(number) + 1) / (2 * number), count / 2, index, weight)


def _shell_sums(a: Volume, b: Volume, region: tuple[slice, ...] | None) -> tuple[_Shells, F64, F64, F64]:
    """Shells and the sums over them of Re(A B*), |A|^2 and |B|^2."""
    _same_shape(a, b)
    where = central_region(np.shape(a)) if region is None else region
    one, two = np.asarray(a[where]), np.asarray(b[where])
    window = _soft_edge(one.shape)
    x, y = sfft.rfftn(_centred(one) * window), sfft.rfftn(_centred(two) * window)
    shells = _shells(one.shape)
    number = len(shells.frequency)
    index = shells.index.ravel()

    def total(values: NDArray[Any]) -> F64:
        weighted = (values * shells.weight).ravel()
        return np.asarray(np.bincount(index, weighted, number + 1)[:number], dtype=np.float64)

    cross = total((x * np.conj(y)).real)
    return shells, cross, total(np.abs(x) ** 2), total(np.abs(y) ** 2)


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


def _soft_edge(shape: Sequence[int]) -> F32:
    """Window that is 1 inside and falls to 0 at the faces by half a cosine."""
    window = np.ones((1, 1, 1), dtype=np.float32)
    for axis, size in enumerate(shape):
        width = max(size * EDGE, 1.0)
        inward = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
        profile = 0.5 - 0.5 * np.cos(np.pi * np.clip(inward / width, 0, 1))
        window = window * profile.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
    return window


def _centred(volume: Volume) -> F32:
    values = np.asarray(volume, dtype=np.float32)
    return values - np.float32(values.mean(dtype=np.float64))


def _same_shape(a: Volume, b: Volume) -> None:
    if np.shape(a) != np.shape(b):
        raise ValueError(f"volumes of different shape: {np.shape(a)} and {np.shape(b)}")
