"""What training has not seen: noise, thickness, tilt range, pixel size and spacing outside its range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from inrtomo.simulate import SimulationSettings
from integration.benchmarks.localized.methods import OURS, scored
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.localized.specimens import USUAL, specimen
from integration.benchmarks.reconstruction.jobs import Column, Job, Record

SIZE = 128
USUAL_DB = 0.0
CASES: dict[str, SimulationSettings] = {
    "as trained: 0 dB, ±60°, 2°, 56 voxels, 10 Å": replace(USUAL, snr_db=USUAL_DB),
    "-20 dB": replace(USUAL, snr_db=-20.0),
    "20 dB": replace(USUAL, snr_db=20.0),
    "thickness 12 voxels": replace(USUAL, snr_db=USUAL_DB, thickness_px=12),
    "thickness 130 voxels": replace(USUAL, snr_db=USUAL_DB, thickness_px=130),
    "tilts ±30°": replace(USUAL, snr_db=USUAL_DB, tilt_range_deg=30.0),
    "tilts ±80°": replace(USUAL, snr_db=USUAL_DB, tilt_range_deg=80.0),
    "10° between tilts": replace(USUAL, snr_db=USUAL_DB, tilt_step_deg=10.0),
    "3 Å/voxel": replace(USUAL, snr_db=USUAL_DB, pixel_size_A=3.0, densities=None),
    "30 Å/voxel": replace(USUAL, snr_db=USUAL_DB, pixel_size_A=30.0, bead_diameter_A=240.0),
}
"""Molecules keep their size in voxels where the pixel size is wrong: the network is told another one."""

COLUMNS: tuple[Column, ...] = (
    ("FBP: CC", "fbp.cc", "{:.3f}"),
    ("FBP, best filter: CC", "fbp.best_filter_cc", "{:.3f}"),
    ("localized: CC", "ours.cc", "{:.3f}"),
    ("lead", "lead", "{:+.3f}"),
    ("FBP: mean FSC", "fbp.fsc_mean", "{:.3f}"),
    ("localized: mean FSC", "ours.fsc_mean", "{:.3f}"),
)


def jobs(options: LocalizedOptions) -> Iterator[Job]:
    """A job per case."""
    for seed in options.seeds:
        for name, settings in CASES.items():
            yield Job(name, seed, _job(options, replace(settings, seed=seed), name))


def _job(options: LocalizedOptions, settings: SimulationSettings, name: str) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        size = options.size or SIZE
        truth, series, pixel_A = specimen(replace(settings, size=(size, size)), options.densities, options.work)
        fbp = scored("FBP", series, truth, pixel_A, None)
        ours = scored(OURS, series, truth, pixel_A, options.weights, fbp)
        lead = ours["cc"] - fbp["best_filter_cc"]
        return [{"table": f"outside training, {size} px", "row": name, "fbp": fbp, "ours": ours, "lead": lead}]

    return run
