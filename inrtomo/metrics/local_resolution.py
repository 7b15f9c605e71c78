"""Local resolution: where in a volume the Fourier shell correlation of a small window crosses a threshold.

The windowed FSC of Cardone, Heymann & Steven (2013): a soft window steps through both volumes, and what a global FSC
says of the whole it says of the window. A window of w voxels has w / 2 shells, and cannot tell resolutions beyond its
own side. Near the threshold its few components make it noisy: read the map for its contrasts, not to the last Å.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def window_for(resolution_A: float, pixel_size_A: float, shape: Sequence[int]) -> int:
    """Side of a window (even, voxels) that suits a global resolution and fits into the volume."""
    smallest, largest = WINDOW_PX
    wanted = WINDOW_PER_RESOLUTION * resolution_A / pixel_size_A if np.isfinite(resolution_A) else largest
    return int(min(max(wanted, smallest), largest, min(shape))) // 2 * 2


def local_resolution(a: Volume, b: Volume, pixel_size_A: float, window_px: int, threshold: float) -> F32:
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
    mask = soft_box((window_px,) * 3, WINDOW_EDGE)
    shells = FourierShells(mask.shape)
    summing = shells.summing_matrix()
    volumes = [np.lib.stride_tricks.sliding_window_view(np.asarray(v, dtype=np.float32), mask.shape) for v in (a, b)]
    frequency = np.empty(len(corners))
    for first in range(0, len(corners), WINDOWS_AT_ONCE):
        some = corners[first : first + WINDOWS_AT_ONCE]
        x, y = (_window_transforms(v[tuple(some.T)], mask) for v in volumes)
        cross, power_x, power_y = (
            (summing @ np.ascontiguousarray(v.T)).T for v in ((x * np.conj(y)).real, np.abs(x) ** 2, np.abs(y) ** 2)
        )
        size = np.sqrt(power_x * power_y)
        correlation = np.divide(cross, size, out=np.zeros_like(cross), where=size > 0)
        frequency[first : first + len(some)] = _crossing(correlation, shells.frequency, threshold, 1 / window_px)
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
