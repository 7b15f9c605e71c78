"""Data terms: how much a residual costs, and the slope of that.

Residuals are divided by the noise before they are judged, so that thresholds and the weights of priors mean the
same for every series, and weighted by validity (0..1) after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

F32 = NDArray[np.float32]

KINDS = ("l1", "l2", "huber")
COUNT_KINDS = ("poisson", "heteroscedastic")
FEWEST = 0.05  # counts relative to the background below which the laws are not followed
HUBER_DELTA = 1.345  # noise standard deviations: 95 % efficient on Gaussian noise


@dataclass(frozen=True)
class Loss:
    """``sum w f(r / s) / sum w`` with f = ``|t|`` (l1), ``t^2 / 2`` (l2) or Huber's, quadratic up to ``delta``."""

    kind: str = "huber"
    delta: float = HUBER_DELTA

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown loss {self.kind!r}; use one of {', '.join(KINDS)}")
        if self.delta <= 0:
            raise ValueError("the Huber threshold must be positive")

    def __call__(
        self, residual: F32, weight: F32 | None = None, noise_sd: float | NDArray[Any] = 1.0
    ) -> tuple[float, F32]:
        """Value, and its derivative with respect to ``residual`` (same shape).

        Args:
            residual: ``(n_tilts, ...)``, model minus data.
            weight: same shape, validity of each pixel; None: all 1. Non-finite residuals of weight 0 are allowed.
            noise_sd: of all residuals, or one per tilt ``(n_tilts,)``.
        """
        rows = np.ascontiguousarray(residual, dtype=np.float32).reshape(len(residual), -1)
        weights = np.ones((1, 1), np.float32) if weight is None else weight.reshape(rows.shape)
        inverse = np.broadcast_to(1.0 / np.asarray(noise_sd, dtype=np.float64), (len(rows),)).astype(np.float32)
        total = float(rows.size) if weight is None else float(weights.sum(dtype=np.float64))
        slope = np.zeros_like(rows)
        if total <= 0:
            return 0.0, slope.reshape(residual.shape)
        sums = np.zeros(len(rows))
        kind = KINDS.index(self.kind)
        factor, delta = np.float32(1 / total), np.float32(self.delta)
        _evaluate(rows, weights, weight is not None, inverse, kind, delta, factor, slope, sums)
        return float(sums.sum() / total), slope.reshape(residual.shape)


# no fastmath: residuals may be NaN where the weight is 0
@nb.njit(parallel=True, cache=True, error_model="numpy")
def _evaluate(rows, weights, weighted, inverse, kind, delta, factor, slope, sums):  # type: ignore[no-untyped-def]
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    for m in nb.prange(rows.shape[0]):
        s = inverse[m]
        total = 0.0
        for i in range(rows.shape[1]):
            w = weights[m, i] if weighted else one
            if w == zero:
                continue
            t = rows[m, i] * s
            a = abs(t)
            if kind == 0:
                value, d = a, np.sign(t)
            elif kind == 1 or a <= delta:
                value, d = half * t * t, t
            else:
                value, d = delta * (a - half * delta), delta * np.sign(t)
            total += w * value
            slope[m, i] = factor * w * s * d
        sums[m] = total


@dataclass(frozen=True)
class CountLoss:
    """Negative log-likelihood of camera counts, whose noise grows with what is expected.

    Images are in any linear unit: ``counts = background + gain * image`` (`prepare.Prepared` says both). ``v`` is the
    variance of the noise relative to that at the background, so that residuals stay in units of the noise measured
    there, thresholds and priors keep their meaning, and a camera that does not count electrons one by one is no
    obstacle. With ``c`` the counts seen, ``m`` those expected and ``b`` the background:

    * ``poisson``: ``b (m - c + c log(c / m)) / (noise_sd * gain)^2``, half the deviance of Poisson's law, dispersed
      by the ratio of the measured variance to the background (P. McCullagh and J. A. Nelder, Generalized Linear
      Models, 1989, ch. 9);
    * ``heteroscedastic``: ``r^2 / (2 v) + log(v) / 2`` with ``r = residual / noise_sd`` and
      ``v = read + (1 - read) m / b``: Gaussian, with read noise and a part that goes with the expected counts.

    Both are ``r^2 / 2`` for images of little contrast. Expected counts below `FEWEST` of the background are taken as
    that in the variance, and Poisson's law goes on as its tangent parabola there. Not for images whose transfer
    function was undone or that were filtered otherwise: their noise is no longer that of the counts of a pixel.

    Attributes:
        kind: ``"poisson"`` or ``"heteroscedastic"``.
        background, gain: input units, ``(n_tilts,)``; the gain is negative where protein is dark.
        read: part of the variance at the background that is read noise, ``(n_tilts,)`` or one for all (see
            `read_noise`); the Poisson law has none.
    """

    kind: str
    background: NDArray[Any]
    gain: NDArray[Any]
    read: float | NDArray[Any] = 0.0

    def __post_init__(self) -> None:
        if self.kind not in COUNT_KINDS:
            raise ValueError(f"unknown loss {self.kind!r}; use one of {', '.join(COUNT_KINDS)}")
        if np.any(np.asarray(self.background) <= 0):
            raise ValueError("counts need a positive background in every image")

    def __call__(
        self, residual: F32, images: F32, weight: F32 | None = None, noise_sd: float | NDArray[Any] = 1.0
    ) -> tuple[float, F32]:
        """Mean over the weights, and its derivative with respect to ``residual`` (same shape).

        Args:
            residual: ``(n_tilts, ...)``, model minus data.
            images: same shape, the data.
            weight: same shape, validity of each pixel; None: all 1. Anything is allowed where it is 0.
            noise_sd: at the background, in the unit of the images, of all or one per tilt ``(n_tilts,)``.
        """
        n = len(residual)
        rows = np.ascontiguousarray(residual, dtype=np.float32).reshape(n, -1)
        data = np.ascontiguousarray(images, dtype=np.float32).reshape(n, -1)
        weights = np.ones_like(rows) if weight is None else weight.reshape(rows.shape)
        slope, sums = np.zeros_like(rows), np.zeros(n)
        total = float(weights.sum(dtype=np.float64))
        if total <= 0:
            return 0.0, slope.reshape(residual.shape)
        noise, read = (np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for v in (noise_sd, self.read))
        contrast = np.asarray(self.gain, dtype=np.float64) / np.asarray(self.background, dtype=np.float64)
        poisson = self.kind == "poisson"
        _evaluate_counts(rows, data, weights, 1 / noise, contrast, read, poisson, 1 / total, slope, sums)
        return float(sums.sum() / total), slope.reshape(residual.shape)


def read_noise(variance: NDArray[Any], background: NDArray[Any]) -> tuple[float, float]:
    """Camera noise from the noise of every tilt: ``variance = read variance + gain * background``.

    Least squares with neither part negative, on variances relative to their own (they are equally well known). Images
    get darker as the path through the specimen grows, which is what tells the two parts apart.

    Args:
        variance: of the noise at the background, input units squared, ``(n_tilts,)``.
        background: counts, input units, ``(n_tilts,)``, positive.

    Returns:
        Read variance (input units squared), and gain (variance per count).
    """
    variance, background = np.asarray(variance, dtype=np.float64), np.asarray(background, dtype=np.float64)
    design = np.stack([1 / variance, background / variance], axis=1)
    scale = design.max(axis=0)
    found, _ = nnls(design / scale, np.ones(len(variance)))
    read, gain = found / scale
    return float(read), float(gain)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _evaluate_counts(rows, data, weights, inverse, contrast, read, poisson, factor, slope, sums):  # type: ignore[no-untyped-def]
    for m in nb.prange(rows.shape[0]):
        s, g = inverse[m], contrast[m]
        unit = (s / g) ** 2  # of a variance of one, counts relative to the background
        shot = 1 - read[m]
        total = 0.0
        for i in range(rows.shape[1]):
            w = weights[m, i]
            if w == 0:
                continue
            r = float(rows[m, i])
            seen = 1 + g * data[m, i]
            expected = seen + g * r
            if poisson:
                floor = max(expected, FEWEST)
                seen = max(seen, 0.0)
                value = floor - seen
                if seen > 0:
                    value += seen * np.log(seen / floor)
                first, second = 1 - seen / floor, seen / floor**2
                below = expected - floor
                value = unit * (value + first * below + 0.5 * second * below**2)
                d = unit * g * (first + second * below)
            else:
                v = read[m] + shot * max(expected, FEWEST)
                t = r * s
                value = 0.5 * (t * t / v + np.log(v))
                d = s * t / v
                if expected > FEWEST:
                    d += 0.5 * (1 - t * t / v) / v * shot * g
            total += w * value
            slope[m, i] = factor * w * d
        sums[m] = total
