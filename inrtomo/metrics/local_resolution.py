"""Local resolution: where in a volume the Fourier shell correlation of a small window crosses a threshold.

The windowed FSC of Cardone, Heymann & Steven (2013): a soft window steps through both volumes, and what a global FSC
says of the whole it says of the window. A window of w voxels has w / 2 shells, and cannot tell resolutions beyond its
own side. Near the threshold its few components make it noisy: read the map for its contrasts, not to the last Å.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as sfft

from inrtomo.metrics.masks import soft_box
from inrtomo.metrics.registration import same_shape
from inrtomo.metrics.shells import FourierShells

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ints = NDArray[np.int64]
Volume = NDArray[Any]

WINDOW_PX = (16, 48)
WINDOW_PER_RESOLUTION = 5.0
"""Side of the window over the global resolution, within `WINDOW_PX`."""
STEPS_PER_WINDOW = 4
WINDOW_EDGE = 0.4
"""Soft edge of a window, as part of its side: hardly any of it is flat, so that no face is seen."""
WINDOWS_AT_ONCE = 64


class WindowWork:
    """Sums over the shells of small windows of two volumes, on the CPU; `inrtomo.gpu.fsc` does the same on a device.

    Args:
        a, b: volumes of one shape ``[z, y, x]``.
        window_px: side of the windows.
    """

    def __init__(self, a: Volume, b: Volume, window_px: int) -> None:
        self.mask = soft_box((window_px,) * 3, WINDOW_EDGE)
        self.shells = FourierShells(self.mask.shape)
        self._summing = self.shells.summing_matrix()
        self._windows = [
            np.lib.stride_tricks.sliding_window_view(np.asarray(v, dtype=np.float32), self.mask.shape) for v in (a, b)
        ]

    def sums(self, corners: Ints) -> tuple[F64, F64, F64]:
        """What a correlation is made of (see `FourierShells.products`) for windows, each ``(windows, shells)``.

        Args:
            corners: first voxels ``(windows, 3)``.
        """
        x, y = (_window_transforms(v[tuple(corners.T)], self.mask) for v in self._windows)
        cross, power_x, power_y = (
            (self._summing @ np.ascontiguousarray(v.T)).T for v in self.shells.products(x, y)
        )  # fmt: skip
        return cross, power_x, power_y


def window_work_on(device: str) -> Callable[[Volume, Volume, int], WindowWork]:
    """What sums over windows on ``"cpu"`` or a GPU as torch calls it."""
    if device == "cpu":
        return WindowWork
    from inrtomo.gpu.fsc import DeviceWindowWork

    return partial(DeviceWindowWork, device=device)


def window_for(resolution_A: float, pixel_size_A: float, shape: Sequence[int]) -> int:
    """Side of a window (even, voxels) that suits a global resolution and fits into the volume."""
    smallest, largest = WINDOW_PX
    wanted = WINDOW_PER_RESOLUTION * resolution_A / pixel_size_A if np.isfinite(resolution_A) else largest
    return int(min(max(wanted, smallest), largest, min(shape))) // 2 * 2


def local_resolution(
    a: Volume,
    b: Volume,
    pixel_size_A: float,
    window_px: int,
    threshold: float,
    make_work: Callable[[Volume, Volume, int], WindowWork] = WindowWork,
) -> F32:
    """Resolution in Å at every voxel of two volumes ``[z, y, x]``, of the same shape as they.

    Nyquist where a window's FSC never falls below the threshold, the side of the window where it starts below.
    Windows are a quarter of their side apart; between their centres frequency is interpolated linearly.

    Raises:
        ValueError: different shapes, or a window larger than the volume.
    """
    same_shape(a, b)
    shape = np.shape(a)
    if not 4 <= window_px <= min(shape):
        raise ValueError(f"a window of {window_px} voxels in a volume of {shape}")
    starts = [_starts(size, window_px) for size in shape]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3)
    work = make_work(a, b, window_px)
    frequency = np.empty(len(corners))
    for first in range(0, len(corners), WINDOWS_AT_ONCE):
        some = corners[first : first + WINDOWS_AT_ONCE]
        cross, power_x, power_y = work.sums(some)
        size = np.sqrt(power_x * power_y)
        correlation = np.divide(cross, size, out=np.zeros_like(cross), where=size > 0)
        frequency[first : first + len(some)] = _crossing(correlation, work.shells.frequency, threshold, 1 / window_px)
    values = frequency.reshape([len(s) for s in starts])
    for axis, (start, size) in enumerate(zip(starts, shape, strict=True)):
        linear = _interpolation(start + (window_px - 1) / 2, size)
        values = np.moveaxis(np.tensordot(linear, values, (1, axis)), 0, axis)
    return np.asarray(pixel_size_A / values, dtype=np.float32)


def _starts(size: int, window_px: int) -> Ints:
    """First voxels of windows a quarter of their side apart at most, evenly spread from face to face."""
    number = -(-(size - window_px) * STEPS_PER_WINDOW // window_px) + 1
    return np.linspace(0, size - window_px, number).round().astype(np.int64)


def _window_transforms(windows: F32, mask: F32) -> NDArray[Any]:
    """Transforms ``(windows, components)`` of windows less their mean under the mask."""
    mean = (windows * mask).sum(axis=(1, 2, 3), keepdims=True) / mask.sum()
    transforms = sfft.rfftn((windows - mean) * mask, axes=(1, 2, 3))
    return np.asarray(transforms.reshape(len(windows), -1))


def _crossing(correlation: F64, frequency: F64, threshold: float, lowest: float) -> F64:
    """Frequency (cycles per voxel) at which each curve ``(curves, shells)`` first falls below the threshold."""
    below = correlation < threshold
    k = np.where(below.any(axis=1), below.argmax(axis=1), len(frequency) - 1)
    before = np.maximum(k - 1, 0)
    rows = np.arange(len(k))
    high, low = correlation[rows, before], correlation[rows, k]
    part = np.clip((high - threshold) / np.where(high > low, high - low, 1.0), 0, 1)
    found = frequency[before] + part * (frequency[k] - frequency[before])
    found = np.where(below.any(axis=1), found, frequency[-1])
    return np.where(below[:, 0], lowest, found)


def _interpolation(nodes: NDArray[Any], size: int) -> F64:
    """Matrix (size, nodes) that interpolates linearly from nodes to every voxel, constant beyond the outermost."""
    return np.stack([np.interp(np.arange(size), nodes, unit) for unit in np.eye(len(nodes))], axis=1)
