"""Contrast transfer function of a weak phase and amplitude object.

Sign: positive at low frequency in underfocus, so that ``ctf * spectrum of the projected protein density`` is an
image in which protein is bright; a camera records one minus it (protein dark).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def electron_wavelength_A(voltage_kV: float) -> float:
    """Relativistic electron wavelength in Å (0.0197 at 300 kV)."""
    volts = voltage_kV * 1e3
    return float(12.2642596 / np.sqrt(volts * (1 + 0.978475598e-6 * volts)))


def ctf_1d(
    frequency_per_A: ArrayLike,
    defocus_A: ArrayLike,
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    phase_shift_deg: float = 0.0,
) -> Array:
    """CTF at spatial frequencies (1/Å) for a defocus in Å (underfocus positive); the two broadcast."""
    k2 = np.asarray(frequency_per_A, dtype=np.float64) ** 2
    wavelength = electron_wavelength_A(voltage_kV)
    phase = np.pi * wavelength * np.asarray(defocus_A, dtype=np.float64) * k2
    phase = phase - 0.5 * np.pi * cs_mm * 1e7 * wavelength**3 * k2**2 + np.deg2rad(phase_shift_deg)
    return np.asarray(np.sin(phase + np.arcsin(amplitude_contrast)))


def ctf_2d(
    shape: tuple[int, int],
    pixel_size_A: float,
    defocus_A: float,
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    astigmatism_A: float = 0.0,
    astigmatism_deg: float = 0.0,
    phase_shift_deg: float = 0.0,
) -> Array:
    """CTF for ``numpy.fft.rfft2`` of an image of ``shape`` (ny, nx): array ``(ny, nx // 2 + 1)``.

    ``astigmatism_A`` is the difference of the two principal defoci, ``astigmatism_deg`` the direction of the larger
    one from +x, counter-clockwise with y up.
    """
    fy = np.fft.fftfreq(shape[0], pixel_size_A)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_size_A)[None, :]
    defocus: ArrayLike = defocus_A
    if astigmatism_A:
        defocus = defocus_A + 0.5 * astigmatism_A * np.cos(2 * (np.arctan2(fy, fx) - np.deg2rad(astigmatism_deg)))
    return ctf_1d(np.hypot(fx, fy), defocus, voltage_kV, cs_mm, amplitude_contrast, phase_shift_deg)
