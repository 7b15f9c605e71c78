"""From line integrals to recorded images: contrast transfer, noise at a stated level, counts, halves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.ctf import ctf_2d
from inrtomo.simulate.settings import SimulationSettings

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

BLOCKED_BEAM = 0.02  # of the counts that still arrive in a blank tilt (stray electrons, dark current)
CTF_MARGIN_PX = 16  # more than the transfer function spreads a point at the pixel sizes of tomography


@dataclass(frozen=True)
class Exposure:
    """Recorded images and their halves ``(n_tilts, ny, nx)``, and the noise-free signal in the same units."""

    images: F32
    odd: F32
    even: F32
    signal: F32
    noise_variance: Array


def transfer(projections: F32, settings: SimulationSettings, margin: int) -> F32:
    """Apply the contrast transfer function to padded projections and cut the margin off."""
    if settings.defocus_um is not None:
        shape = projections.shape[1:]
        ctf = ctf_2d(
            (shape[0], shape[1]),
            settings.pixel_size_A,
            settings.defocus_um * 1e4,
            settings.voltage_kV,
            settings.cs_mm,
            settings.amplitude_contrast,
        )
        projections = np.stack([np.fft.irfft2(np.fft.rfft2(image) * ctf, s=shape) for image in projections])
    inside = slice(margin, -margin) if margin else slice(None)
    return np.ascontiguousarray(projections[:, inside, inside], dtype=np.float32)


def expose(
    signal: F32, tilt_deg: Array, blank: list[int], settings: SimulationSettings, rng: np.random.Generator
) -> Exposure:
    """Record the signal ``(n_tilts, ny, nx)``; blank tilts hold no signal and do not count for the SNR."""
    good = [m for m in range(len(signal)) if m not in blank]
    variance = np.mean([signal[m].var(dtype=np.float64) for m in good])
    snr = None if settings.snr_db is None else 10 ** (settings.snr_db / 10)
    if settings.counts:
        return _count(signal, tilt_deg, blank, good, snr, settings, rng)
    signal = signal.copy()
    signal[blank] = 0
    sd = 0.0 if snr is None else float(np.sqrt(variance / snr))
    odd = signal + np.float32(sd * np.sqrt(2)) * rng.standard_normal(signal.shape, dtype=np.float32)
    even = signal + np.float32(sd * np.sqrt(2)) * rng.standard_normal(signal.shape, dtype=np.float32)
    return Exposure(np.asarray((odd + even) / 2, dtype=np.float32), odd, even, signal, np.full(len(signal), sd**2))


def _count(
    signal: F32,
    tilt_deg: Array,
    blank: list[int],
    good: list[int],
    snr: float | None,
    settings: SimulationSettings,
    rng: np.random.Generator,
) -> Exposure:
    """Poisson counts, protein dark; the contrast is scaled so that the SNR is met on average over the tilts."""
    path = settings.thickness_px * settings.pixel_size_A / 10 / np.cos(np.deg2rad(tilt_deg))
    dose = settings.dose_per_tilt * settings.pixel_size_A**2
    mean = dose * np.exp(-path / settings.mean_free_path_nm)
    unscaled = np.mean([(mean[m] ** 2) * signal[m].var(dtype=np.float64) for m in good])
    wanted = (1.0 if snr is None else snr) * mean[good].mean()
    contrast = np.sqrt(wanted / unscaled)
    rate = mean[:, None, None] * np.maximum(1 - contrast * signal, 0)
    rate[blank] = BLOCKED_BEAM * dose
    if snr is None:
        halves = rate / 2, rate / 2
    else:
        halves = rng.poisson(rate / 2), rng.poisson(rate / 2)
    odd, even = (half.astype(np.float32) for half in halves)
    mean[blank] = BLOCKED_BEAM * dose
    return Exposure(odd + even, odd, even, rate.astype(np.float32), mean)
