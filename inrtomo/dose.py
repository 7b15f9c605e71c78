"""Dose weighting: how much of each spatial frequency an exposed specimen still shows.

T. Grant and N. Grigorieff, eLife 4 (2015) e06980: the signal at frequency k decays as exp(-N / (2 Nc(k))) with the
exposure N; the critical exposure Nc was measured on rotavirus at 300 kV, and is a fifth lower at 200 kV.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CURVE = (0.245, -1.665, 2.81)  # a k^b + c, k in 1/Å, e/Å2
RELATIVE_TO_300_KV = {300: 1.0, 200: 0.8}


def critical_exposure(frequency_per_A: ArrayLike, voltage_kV: int = 300) -> Array:
    """Exposure (e/Å2) at which the signal of a spatial frequency (1/Å) has fallen to exp(-1/2); infinite at zero.

    Raises ValueError for a voltage other than 300 or 200 kV, for which the curve was not measured.
    """
    if voltage_kV not in RELATIVE_TO_300_KV:
        raise ValueError(f"critical exposures are known for 300 and 200 kV, not {voltage_kV}")
    a, b, c = CURVE
    k = np.asarray(frequency_per_A, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return RELATIVE_TO_300_KV[voltage_kV] * (a * k**b + c)


def dose_filter(frequency_per_A: ArrayLike, exposure_e_A2: float, voltage_kV: int = 300) -> Array:
    """Factors 0..1 for the Fourier transform of an image taken after ``exposure_e_A2`` (e/Å2)."""
    return np.exp(-exposure_e_A2 / (2 * critical_exposure(frequency_per_A, voltage_kV)))
