"""Shells of physical frequency in the Fourier transform of a box of any sides, and correlations over them.

A shell is a ring of equal frequency in cycles per voxel, not of equal index: a slab of 90 x 256 x 256 voxels counts as
much along z as along x. Shells are as wide as the smallest side allows, from the first outside the origin to Nyquist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Complex = NDArray[Any]


@dataclass(frozen=True)
class ShellCorrelation:
    """A correlation for every Fourier shell (or ring).

    Attributes:
        frequency_per_A: middle of every shell, cycles per Å, from the first shell outside the origin to Nyquist.
        correlation: of every shell; 0 where a volume has no power, NaN where the shell has no component.
        count: independent Fourier components in every shell.
    """

    frequency_per_A: F64
    correlation: F64
    count: F64

    def resolution_A(self, threshold: float) -> float:
        """Å at which the curve first falls below ``threshold``, linear in frequency between two shells.

        Nyquist if it never does, inf if it starts below; shells without components are passed over.
        """
        filled = np.isfinite(self.correlation)
        frequency, correlation = self.frequency_per_A[filled], self.correlation[filled]
        below = np.flatnonzero(correlation < threshold)
        if len(below) == 0:
            return float(1 / self.frequency_per_A[-1])
        k = int(below[0])
        if k == 0:
            return float("inf")
        high, low = correlation[k - 1], correlation[k]
        part = (high - threshold) / (high - low)
        return float(1 / (frequency[k - 1] + part * (frequency[k] - frequency[k - 1])))

    def mean(self) -> float:
        """Mean over the shells that have components."""
        return float(np.nanmean(self.correlation))


class FourierShells:
    """The shells of real transforms (`scipy.fft.rfftn`) of a box ``shape``: volumes (z, y, x) or images (y, x).

    Attributes:
        frequency: middle of every shell, cycles per voxel; shell k is centred on ``(k + 1) / (2 n)``, the mean is in
            none.
        axes: frequency along every axis, cycles per voxel, each shaped to broadcast over the transform.
        times: how many components each along the last axis stands for.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        number = max(min(shape) // 2, 1)
        plain = [*(np.fft.fftfreq(n) for n in shape[:-1]), np.fft.rfftfreq(shape[-1])]
        self.axes: list[NDArray[Any]] = [
            f.reshape([-1 if k == axis else 1 for k in range(len(shape))]) for axis, f in enumerate(plain)
        ]
        self.frequency = (np.arange(number) + 1) / (2 * number)
        # the conjugate of most components is left out of a real transform
        self.times = np.full(shape[-1] // 2 + 1, 2.0)
        self.times[0] = 1.0
        if shape[-1] % 2 == 0:
            self.times[-1] = 1.0

    @cached_property
    def radius(self) -> F64:
        """Frequency of every component, cycles per voxel."""
        return np.asarray(np.sqrt(sum(f**2 for f in self.axes)))

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        number = len(self.frequency)
        index = np.rint(self.radius * 2 * number).astype(np.int64) - 1
        index[(index < 0) | (index >= number)] = number  # one bin more, for what is in no shell
        return np.asarray(index)

    @property
    def _weight(self) -> F64:
        return np.broadcast_to(self.times, self._index.shape)

    def start(self, shell: int) -> float:
        """Frequency at which a shell starts, cycles per voxel."""
        return (shell + 0.5) / (2 * len(self.frequency))

    def total(self, values: NDArray[Any], part: Bools | None = None) -> F64:
        """Sum of values of every component over each shell, or over the part of it where ``part`` holds."""
        number = len(self.frequency)
        index = self._index if part is None else np.where(part, self._index, number)
        sums = np.bincount(index.ravel(), (values * self._weight).ravel(), number + 1)
        return np.asarray(sums[:number], dtype=np.float64)

    def count(self, part: Bools | None = None) -> F64:
        """Independent components in every shell, or in the part of it where ``part`` holds."""
        return self.total(np.ones(self._index.shape), part) / 2

    def summing_matrix(self) -> csr_matrix:
        """Matrix (shells, components) that sums the components of a raveled transform: `total` for many boxes."""
        index, weight = self._index.ravel(), self._weight.ravel()
        inside = np.flatnonzero(index < len(self.frequency))
        return csr_matrix((weight[inside], (index[inside], inside)), (len(self.frequency), index.size))

    def cone(self, axis: int, half_angle_deg: float) -> Bools:
        """Components whose direction is within ``half_angle_deg`` of an array axis."""
        return np.asarray(np.abs(self.axes[axis]) >= self.radius * np.cos(np.deg2rad(half_angle_deg)))

    def products(self, x: Complex, y: Complex) -> list[NDArray[Any]]:
        """What a correlation of two transforms sums: ``Re(X Y*)``, ``|X|^2`` and ``|Y|^2`` of every component."""
        return [(x * np.conj(y)).real, np.abs(x) ** 2, np.abs(y) ** 2]

    def correlation(
        self, x: Complex, y: Complex, pixel_size_A: float, parts: Sequence[Bools | None] = (None,)
    ) -> list[ShellCorrelation]:
        """Correlation ``Re(sum X Y*) / sqrt(sum |X|^2 sum |Y|^2)`` of two transforms over each part of every shell."""
        values = self.products(x, y)
        return [
            correlation_of_sums([self.total(v, part) for v in values], self.count(part), self.frequency / pixel_size_A)
            for part in parts
        ]


def correlation_of_sums(sums: Sequence[F64], count: F64, frequency_per_A: F64) -> ShellCorrelation:
    """From the sums over each shell of ``Re(X Y*)``, ``|X|^2`` and ``|Y|^2``, and its independent components."""
    cross, power_x, power_y = sums
    size = np.sqrt(power_x * power_y)
    ratio = np.divide(cross, size, out=np.zeros_like(cross), where=size > 0)
    ratio[count == 0] = np.nan
    return ShellCorrelation(frequency_per_A, ratio, count)
