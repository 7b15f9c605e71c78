"""Contrast transfer function of a weak phase and amplitude object.

Sign: positive at low frequency in underfocus, so that ``ctf * spectrum of the projected protein density`` is an
image in which protein is bright; a camera records one minus it (protein dark).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def electron_wavelength_A(voltage_kV: float) -> float:
    """Relativistic electron wavelength in Å (0.0197 at 300 kV)."""
    volts = voltage_kV * 1e3
    return float(12.2642596 / np.sqrt(volts * (1 + 0.978475598e-6 * volts)))


@dataclass(frozen=True)
class Defoci:
    """Defocus of every image of a series, in the middle of the raw image, stack order.

    Attributes:
        defocus_A: ``(n_tilts,)`` Å, underfocus positive, mean of the two principal ones.
        astigmatism_A: ``(n_tilts,)`` difference of the two principal defoci, Å.
        astigmatism_deg: ``(n_tilts,)`` direction of the larger one in the raw image, from +x, counter-clockwise, y up.
        phase_shift_deg: ``(n_tilts,)`` of a phase plate.
        hand: 1 where the tomogram's z points to the electron source, so that at positive tilt the right side of an
            aligned image is more underfocused (IMOD, and AreTomo's ``dfHand`` 1); -1 for the opposite
            (IMOD's ``InvertTiltAngles``).
        hand_known: whether a file said so; else `hand` is IMOD's usual one.
    """

    defocus_A: Array
    astigmatism_A: Array
    astigmatism_deg: Array
    phase_shift_deg: Array
    hand: int = 1
    hand_known: bool = False

    @classmethod
    def of(cls, defocus_A: ArrayLike, n_tilts: int, hand: int = 1) -> Defoci:
        """One underfocus (Å) for all images, or one for each; no astigmatism, no phase plate."""
        values = np.array(np.broadcast_to(np.asarray(defocus_A, dtype=np.float64), (n_tilts,)))
        zero = np.zeros(n_tilts)
        return cls(values, zero, zero, zero, hand)


def ctf_phase(
    frequency_per_A: ArrayLike,
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    phase_shift_deg: float = 0.0,
) -> tuple[Array, Array]:
    """The two terms of the CTF ``sin(offset + slope * defocus_A)`` at spatial frequencies (1/Å)."""
    k2 = np.asarray(frequency_per_A, dtype=np.float64) ** 2
    wavelength = electron_wavelength_A(voltage_kV)
    constant = np.deg2rad(phase_shift_deg) + np.arcsin(amplitude_contrast)
    return constant - 0.5 * np.pi * cs_mm * 1e7 * wavelength**3 * k2**2, np.pi * wavelength * k2


def ctf_1d(
    frequency_per_A: ArrayLike,
    defocus_A: ArrayLike,
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    phase_shift_deg: float = 0.0,
) -> Array:
    """CTF at spatial frequencies (1/Å) for a defocus in Å (underfocus positive); the two broadcast."""
    offset, slope = ctf_phase(frequency_per_A, voltage_kV, cs_mm, amplitude_contrast, phase_shift_deg)
    return np.asarray(np.sin(offset + slope * np.asarray(defocus_A, dtype=np.float64)))


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
