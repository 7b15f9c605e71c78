"""Unseen specimens at four noise levels with the true alignment, and with every second tilt left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from integration.benchmarks.localized.methods import NAMES, OURS, scored
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.localized.specimens import SIZE, USUAL, every_second, specimen
from integration.benchmarks.reconstruction.jobs import Column, Job, Record

LEVELS_DB = (-10.0, -5.0, 0.0, 10.0)

COLUMNS: tuple[Column, ...] = (
    ("CC", "cc", "{:.3f}"),
    ("CC after the best isotropic filter", "best_filter_cc", "{:.3f}"),
    ("mean FSC", "fsc_mean", "{:.3f}"),
    ("above FBP's", "shells_above", "{:.0%}"),
    ("FSC measured", "fsc_measured", "{:.3f}"),
    ("in the wedge", "fsc_wedge", "{:.3f}"),
    ("FSC 0.5 (Å)", "resolution_A", "{:.1f}"),
    ("time (s)", "wall_s", "{:.0f}"),
    ("processor time (s)", "cpu_s", "{:.0f}"),
)


def jobs(options: LocalizedOptions) -> Iterator[Job]:
    """A job per level and method; ours with half the tilts as well."""
    for seed in options.seeds:
        for level in LEVELS_DB:
            for name in options.methods or ("FBP", "SIRT", OURS, "hash"):
                yield Job(f"{level:g} dB, {name}", seed, _job(options, seed, level, name, False))
            for name in ("FBP", OURS):
                yield Job(f"{level:g} dB, {name}, every second tilt", seed, _job(options, seed, level, name, True))


def _job(options: LocalizedOptions, seed: int, level: float, name: str, half: bool) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        size = options.size or SIZE
        settings = replace(USUAL, size=(size, size), seed=seed, snr_db=level)
        truth, series, pixel_A = specimen(settings, options.densities, options.work)
        if half:
            series = every_second(series)
        bar = None if name == "FBP" else scored("FBP", series, truth, pixel_A, None)
        row = f"{NAMES.get(name, name)}{', every second tilt' if half else ''}"
        table = f"{level:g} dB, {size} x {size} x {truth.shape[0]}"
        return [{"table": table, "row": row, **scored(name, series, truth, pixel_A, options.weights, bar)}]

    return run
