"""The benchmark series, by name and seed.

S1 to S5 and S8 to S10 hold specimens that move; S1w to S5w are S1 to S5 with the local motion these had first, control
points in the images as inr-align's own model has them, of about the same size.

Constants may be set on seeds 0 to 4. Headline tables are of seeds 5 to 9, run once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inrtomo.simulate import Simulation, SimulationSettings, simulate

# the tilt axis an aligner is given is nominal_axis_deg, or else the true one
_COMMON = SimulationSettings(pixel_size_A=10.0, tilt_range_deg=60.0, scheme="linear", wide=True, warp_max_px=0.0)

_IMAGES = {
    "S1": replace(
        _COMMON,
        size=(256, 256),
        thickness_px=90,
        tilt_step_deg=2,
        snr_db=10,
        axis_deg=0,
        rotation_jitter_deg=0.01,
        shift_px=12,
        beads=6,
        wide=False,
    ),
    "S2": replace(
        _COMMON,
        size=(256, 256),
        thickness_px=90,
        tilt_step_deg=2,
        snr_db=-5,
        axis_deg=0,
        rotation_jitter_deg=0.5,
        shift_px=12,
        beads=8,
    ),
    "S3": replace(
        _COMMON,
        size=(256, 256),
        thickness_px=90,
        tilt_step_deg=3,
        snr_db=-10,
        axis_deg=0,
        rotation_jitter_deg=0.5,
        shift_px=12,
        beads=0,
    ),
    "S4": replace(
        _COMMON,
        size=(256, 256),
        thickness_px=60,
        tilt_step_deg=3,
        snr_db=0,
        axis_deg=86.3,
        nominal_axis_deg=85,
        rotation_jitter_deg=0.3,
        shift_px=30,
        beads=8,
    ),
    "S5": replace(
        _COMMON,
        size=(320, 320),
        thickness_px=100,
        tilt_step_deg=3,
        snr_db=-7,
        axis_deg=84.1,
        nominal_axis_deg=85,
        rotation_jitter_deg=0.2,
        shift_px=4,
        drift_px=4,
        beads=16,
        scheme="dose-symmetric",
        defocus_um=2.5,
        counts=True,
        blanks=2,
    ),
}


def _moving(settings: SimulationSettings, size: float = 1.0, **changes: object) -> SimulationSettings:
    """The series with a specimen that moves: shares of random motion, doming and thinning, and images that stretch."""
    motion = {
        "motion_px": 0.8 * size,
        "motion_length_px": 200.0,
        "doming_px": size,
        "thinning_px": size,
        "sliding_px": 0.5 * size,
        "creep_px": 2.0 * size,
        "distortion_percent": 0.1,
    }
    return replace(settings, **(motion | changes))  # type: ignore[arg-type]


_OLD_WARP_PX = {"S1": 2, "S2": 2, "S3": 2, "S4": 1, "S5": 1.5}

SERIES: dict[str, SimulationSettings] = {
    "S1": _moving(_IMAGES["S1"]),
    "S2": _moving(_IMAGES["S2"]),
    "S3": _moving(_IMAGES["S3"]),
    "S4": _moving(_IMAGES["S4"], 0.5),
    "S5": _moving(_IMAGES["S5"], 0.75),
    # conditions of the paper of 2023 (91 tilts for its 90: both ends and zero)
    "S6": _moving(
        _IMAGES["S2"],
        snr_db=0,
        tilt_range_deg=70,
        tilt_step_deg=70 / 45,
        rotation_jitter_deg=10,
        shift_px=25.6,
    ),
    # the .rawtlt says the nominal angles; S7t is told the true ones
    "S7": _moving(_IMAGES["S2"], tilt_noise_deg=1.0, tilt_scale=1.02),
    "S7t": _moving(_IMAGES["S2"], tilt_noise_deg=0.0),
    "S8": _moving(_IMAGES["S2"], thickness_px=120, thinning_px=2.0, sliding_px=2.0),
    "S9": _moving(_IMAGES["S4"], specimen="cell", thickness_px=90, beads=12),
    "S10": _moving(_IMAGES["S2"], tilt_step_deg=6),
    # global shifts alone, 34 Å RMS as in MissAlignment's records of SHREC 2021
    "S11": replace(_IMAGES["S2"], rotation_jitter_deg=0, shift_px=4.2, snr_db=-5, beads=0),
    **{f"{name}w": replace(_IMAGES[name], warp_max_px=warp) for name, warp in _OLD_WARP_PX.items()},
}


def benchmark_settings(name: str, seed: int, densities: Path | None = None) -> SimulationSettings:
    """Settings of a benchmark series, with molecules from a folder of densities or procedural ones."""
    return replace(SERIES[name], seed=seed, densities=densities)


def make_series(name: str, seed: int, densities: Path | None = None) -> Simulation:
    """Simulate a benchmark series."""
    return simulate(benchmark_settings(name, seed, densities))
