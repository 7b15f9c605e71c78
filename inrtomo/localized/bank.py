"""Which numbers describe the patches around a point: Gaussian derivatives of the filtered tilts, summed over the tilts.

A patch of a tilt is described by its inner products with the derivatives of Gaussians of several widths (a basis of
smooth patch embeddings: the network's first layer chooses the embedding as a mixture of them). Of a tilt at angle t,
the derivative of order a across the axis and b along it enters the sums over tilts times ``cos^(a-k) t sin^k t``,
k = 0 ... a, which makes the sum the derivative ``d^(a-k)/dx d^k/dz d^b/dy`` of the back-projection; low orders enter a
second time times ``cos 2t``, which tells what low tilts say from what high ones say.

Sums are weighted by the part of the half circle that a tilt stands for: number, spacing, range and order of the tilts
are free, and neither repeating a tilt nor leaving one out changes what a feature means.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

TWICE = 2  # orders up to this are summed with cos 2t as well
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(160)
BAND, BAND_WEIGHTS = (_NODES + 1) / 4, _WEIGHTS / 4
"""Quadrature over frequencies from 0 to 0.5 cycles/px; exact to rounding for kernels as wide as the widest."""


@dataclass(frozen=True)
class Scale:
    """Gaussian derivatives of one width.

    Attributes:
        sigma: standard deviation, px.
        order: the highest sum of the two orders.
        step: px between the samples of its maps, read by linear interpolation.
        ramp: whether tilts are ramp filtered; the coverage of the view is not.
    """

    sigma: float
    order: int
    step: float
    ramp: bool = True

    @property
    def reach(self) -> int:
        """Half width of its kernels, px."""
        return int(np.ceil(max(4.5 * self.sigma, 8)))

    @cached_property
    def channels(self) -> list[tuple[int, int]]:
        """Orders (across the axis, along it) of every map."""
        return [(a, b) for a in range(self.order + 1) for b in range(self.order + 1 - a)]

    def columns(self, across: int) -> Ints:
        """Channels with that order across the axis, by their order along it."""
        return np.array([c for c, (a, _) in enumerate(self.channels) if a == across])

    @cached_property
    def features(self) -> list[tuple[int, int, bool]]:
        """Of every feature: its channel, the power k of the sine, whether it is summed with ``cos 2t``."""
        plain = [(c, k, False) for c, (a, _) in enumerate(self.channels) for k in range(a + 1)]
        again = [(c, k, True) for c, k, _ in plain if sum(self.channels[c]) <= TWICE]
        return plain + (again if self.order or not self.ramp else [])

    @cached_property
    def channel_of(self) -> Ints:
        """Channel of every feature."""
        return np.array([c for c, _, _ in self.features])

    def angular(self, tilt_rad: Array) -> Array:
        """Factors ``(n_tilts, n_features)`` in the sums over tilts, but for the quadrature weights."""
        columns = []
        for c, k, twice in self.features:
            a = self.channels[c][0]
            factor = np.cos(tilt_rad) ** (a - k) * np.sin(tilt_rad) ** k
            columns.append(factor * np.cos(2 * tilt_rad) if twice else factor)
        return np.stack(columns, axis=1)

    def transfer(self, frequency: Array, order: int, interpolated: bool = True) -> NDArray[np.complex128]:
        """Fourier transform of a derivative at frequencies in cycles/px, in units of 1 / sigma^order.

        Args:
            interpolated: narrowed by what linear interpolation between samples `step` apart widens it (the variance of
                a triangle), so that both together are the Gaussian asked for.
        """
        variance = self.sigma**2 - (self.step**2 / 6 if interpolated else 0.0)
        gauss = np.exp(-2 * np.pi**2 * variance * frequency**2)
        return np.asarray((2j * np.pi * self.sigma * frequency) ** order * gauss)

    def kernel(self, x: Array, order: int, interpolated: bool = True) -> Array:
        """The band-limited derivative at positions ``x`` (px): what `transfer` makes of a sample at 0."""
        half = self.transfer(BAND, order, interpolated) * BAND_WEIGHTS
        phase = np.exp(2j * np.pi * np.multiply.outer(x, BAND))
        return np.asarray(2 * (phase @ half).real)

    def noise_gain(self) -> float:
        """Sd of its plain smoothing (order 0) in a filtered tilt of white noise with sd 1."""
        power = np.abs(self.transfer(BAND, 0, False)) ** 2 * 2 * BAND_WEIGHTS
        across = float((BAND**2 * power if self.ramp else power).sum())
        return float(np.sqrt(across * power.sum()))


FINE = Scale(0.5, 0, 0.5)
"""The back-projection itself, nearly: read at every voxel of a block."""
PYRAMID = (Scale(1.0, 3, 0.5), Scale(2.0, 4, 1.0), Scale(4.0, 4, 2.0), Scale(8.0, 2, 4.0))
"""Read at the centre of a block."""
COVERAGE = Scale(4.0, 0, 2.0, ramp=False)
"""Which part of the tilts sees a point at all."""
MIDDLE = 1
"""The scale of `PYRAMID` whose size is the unit of density."""
SCALES = (FINE, *PYRAMID, COVERAGE)
BANK_VERSION = 1
"""To be raised with any change of a feature's meaning: weights of another bank are refused."""


def n_features(fine: int) -> int:
    """Features of a block that reads `FINE` at so many voxels."""
    return fine + sum(len(s.features) for s in PYRAMID) + len(COVERAGE.features)
