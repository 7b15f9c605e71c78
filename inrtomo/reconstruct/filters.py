"""What weighted back-projection multiplies an image line's Fourier transform with.

The weight of tilt m at frequency f (cycles/px) is ``ramp(f) * angle_m * window(f) * fall_off(f)``, the ramp |f| that
of the band-limited kernel (so that the mean comes out right on a finite line), ``angle_m`` the part of the half circle
that the tilt stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FILTERS = ("ramp", "exact", "cosine", "hamming", "sirt-like")
LANDWEBER_STEP = 1 / 512  # cycles/px: the frequency that a sirt-like filter passes whole from the first iteration


@dataclass(frozen=True)
class RadialFilter:
    """Choice of weighting.

    Attributes:
        name: ``ramp``; ``cosine`` and ``hamming`` (ramp under a window reaching to the Nyquist frequency);
            ``sirt-like`` (the ramp that ``iterations`` of a simultaneous iterative reconstruction have reached,
            G. L. Zeng, Phys. Med. Biol. 57 (2012) 309); ``exact`` (for a slab and any set of angles, G. Harauz and
            M. van Heel, Optik 73 (1986) 146: where the tilts' Fourier slices overlap, they share the weight).
        cutoff, falloff: IMOD's ``RADIAL``: beyond ``cutoff`` (cycles/px) the weight there times
            ``exp(-((f - cutoff) / falloff)^2)``, what ``tilt`` computes; its manual calls ``falloff`` the Gaussian's
            standard deviation, which is sqrt(2) less. None for no cutoff.
        iterations: of the ``sirt-like`` filter.
    """

    name: str = "exact"
    cutoff: float | None = None
    falloff: float = 0.05
    iterations: int = 20

    def __post_init__(self) -> None:
        if self.name not in FILTERS:
            raise ValueError(f"unknown filter {self.name!r}; use one of {', '.join(FILTERS)}")

    def weights(self, tilt_deg: Array, length: int, thickness: float) -> Array:
        """Factors ``(n_tilts, length // 2 + 1)`` for ``rfft`` of lines of ``length`` px.

        Args:
            tilt_deg: angles of the tilts used, any order, ``(n_tilts,)``.
            thickness: of the reconstructed slab, px (used by ``exact``).
        """
        f = np.fft.rfftfreq(length).astype(np.float64)
        at: Array = f if self.cutoff is None else np.minimum(f, self.cutoff)
        if self.name == "exact":
            weights = _exact_weights(tilt_deg, at, thickness)
        else:
            ramp = np.interp(at, f, ramp_of_line(length))
            weights = angular_weights(tilt_deg)[:, None] * ramp * self._window(at)
        if self.cutoff is not None:
            weights = weights * np.exp(-((np.maximum(f - self.cutoff, 0) / self.falloff) ** 2))
        return weights

    def _window(self, f: Array) -> Array:
        if self.name == "cosine":
            return np.cos(np.pi * f)
        if self.name == "hamming":
            return 0.54 + 0.46 * np.cos(2 * np.pi * f)
        if self.name == "sirt-like":
            left = 1 - LANDWEBER_STEP / np.maximum(f, LANDWEBER_STEP)
            return 1 - left**self.iterations
        return np.ones_like(f)


def angular_weights(tilt_deg: Array) -> Array:
    """Part of the half circle (radians) that each tilt stands for: half the gap to its neighbour on either side.

    The outermost tilts stand for as much outside as inside, but no more than is left of the half circle. Tilts at
    the same angle share. Raises ValueError for fewer than two different angles.
    """
    angles, place, count = np.unique(
        np.round(np.asarray(tilt_deg, dtype=np.float64), 4), return_inverse=True, return_counts=True
    )
    if len(angles) < 2:
        raise ValueError("a reconstruction needs images at two or more different tilt angles")
    angles = np.deg2rad(angles)
    half_gaps = np.diff(angles) / 2
    missing = max(np.pi - (angles[-1] - angles[0]), 0) / 2
    inner = np.concatenate([[min(half_gaps[0], missing)], half_gaps, [min(half_gaps[-1], missing)]])
    return ((inner[:-1] + inner[1:]) / count)[place]


def ramp_of_line(length: int) -> Array:
    """|f| of the band-limited ramp kernel on ``length`` px, at the frequencies of ``rfft``."""
    n = np.minimum(np.arange(length), length - np.arange(length)).astype(np.float64)
    kernel = np.where(n % 2 == 1, -1 / (np.pi * np.maximum(n, 1)) ** 2, 0.0)
    kernel[0] = 0.25
    return np.maximum(np.fft.rfft(kernel).real, 0.0)


def _exact_weights(tilt_deg: Array, f: Array, thickness: float) -> Array:
    """1 / (thickness * number of slices that overlap at f), each slice as thick as 1 / thickness in Fourier space."""
    separation = np.abs(np.sin(np.deg2rad(np.subtract.outer(tilt_deg, tilt_deg))))
    overlap = np.zeros((len(tilt_deg), len(f)))
    for other in separation.T:  # one tilt at a time keeps this (n_tilts, n_frequencies)
        overlap += np.maximum(1 - thickness * np.outer(other, f), 0)
    return 1 / (thickness * overlap)
