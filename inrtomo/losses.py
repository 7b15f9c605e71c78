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

F32 = NDArray[np.float32]

KINDS = ("l1", "l2", "huber")
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
