"""The five benchmark series S1-S5, by name and seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inrtomo.simulate import Simulation, SimulationSettings, simulate

# the tilt axis an aligner is given is nominal_axis_deg, or else the true one
_COMMON = SimulationSettings(pixel_size_A=10.0, tilt_range_deg=60.0, scheme="linear", wide=True)

SERIES: dict[str, SimulationSettings] = {
    "S1": replace(
        _COMMON,
        size=(256, 256),
        thickness_px=90,
        tilt_step_deg=2,
        snr_db=10,
        axis_deg=0,
        rotation_jitter_deg=0.01,
        shift_px=12,
        warp_max_px=2,
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
        warp_max_px=2,
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
        warp_max_px=2,
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
        warp_max_px=1,
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
        warp_max_px=1.5,
        beads=16,
        scheme="dose-symmetric",
        defocus_um=2.5,
        counts=True,
        blanks=2,
    ),
}


def benchmark_settings(name: str, seed: int, densities: Path | None = None) -> SimulationSettings:
    """Settings of a benchmark series, with molecules from a folder of densities or procedural ones."""
    return replace(SERIES[name], seed=seed, densities=densities)


def make_series(name: str, seed: int, densities: Path | None = None) -> Simulation:
    """Simulate a benchmark series."""
    return simulate(benchmark_settings(name, seed, densities))
