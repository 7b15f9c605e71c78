"""One specimen of molecules, its alignment known: from -20 to 30 dB, and as a fit goes on (ICE-TIDE's figures 8, 9)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.projection import Lattice
from inrtomo.reconstruct.field import FieldFit
from inrtomo.simulate import simulate
from integration.benchmarks.alignment.series import benchmark_settings
from integration.benchmarks.alignment.volumes import protein_positive
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record
from integration.benchmarks.reconstruction.methods import FIELDS, BenchmarkFit, Imaged, fbp, fitted_volume
from integration.benchmarks.reconstruction.scores import volume_scores

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

SIZE = 128
LEVELS_DB = (-20, -10, 0, 10, 20, 30)
STEPS_DB = 10
LOOKS = 10  # at the volume, in each scale of a fit

NOISE_COLUMNS: tuple[Column, ...] = (
    ("hash: CC", "hash.cc", "{:.3f}"),
    ("FBP: CC", "fbp.cc", "{:.3f}"),
    ("FBP, best filter: CC", "fbp.best_filter_cc", "{:.3f}"),
    ("lead", "lead", "{:+.3f}"),
    ("hash: mean FSC", "hash.fsc_mean", "{:.3f}"),
    ("FBP: mean FSC", "fbp.fsc_mean", "{:.3f}"),
    ("above the bar", "hash.shells_above", "{:.0%}"),
    ("hash: in the wedge", "hash.fsc_wedge", "{:.3f}"),
    ("processor time (s)", "job_cpu_s", "{:.0f}"),
)
STEP_COLUMNS: tuple[Column, ...] = (
    ("CC", "cc", "{:.3f}"),
    ("mean FSC", "fsc_mean", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("held-out loss", "held_out_loss", "{:.4f}"),
    ("time (s)", "seconds", "{:.1f}"),
)


def noise_jobs(options: Options) -> Iterator[Job]:
    """A job per level: the hash field against back-projection."""
    size = options.size or SIZE
    for seed in options.seeds:
        for level in LEVELS_DB:
            yield Job(f"{size} px, {level} dB", seed, _of_level(size, seed, level, options.densities))


def step_jobs(options: Options) -> Iterator[Job]:
    """A job per field."""
    size = options.size or SIZE
    for seed in options.seeds:
        for name in options.methods or ("hash", "tensor"):
            yield Job(f"{size} px, {name}", seed, _of_steps(name, size, seed, options.densities))


def _of_level(size: int, seed: int, level: int, densities: Path | None) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, series, pixel_A = specimen(size, seed, level, densities)
        tilts = series.alignment.tilt_deg
        flat = volume_scores(fbp(series), truth, pixel_A, tilts)
        bar = np.array(flat["fsc"])
        fitted = volume_scores(fitted_volume(series, FIELDS["hash"], seed), truth, pixel_A, tilts, bar)
        lead = fitted["cc"] - flat["best_filter_cc"]
        return [{"table": _title(truth), "row": f"{level} dB", "hash": fitted, "fbp": flat, "lead": lead}]

    return run


def _of_steps(name: str, size: int, seed: int, densities: Path | None) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, series, pixel_A = specimen(size, seed, STEPS_DB, densities)
        records: list[Record] = []
        start, away, step = time.monotonic(), 0.0, 0

        def look(fit: FieldFit) -> None:
            nonlocal away, step
            now, step = time.monotonic(), step + 1
            bin_, of_scale, loss, held = fit.losses[-1]
            every = max(1, round(fit.stage_now.scale.steps / LOOKS))
            if (of_scale + 1) % every == 0:
                scores = volume_scores(current(fit), truth, pixel_A, series.alignment.tilt_deg)
                head = {"table": f"{name}, {STEPS_DB} dB, {_title(truth)}", "row": f"step {step}, bin {bin_}"}
                seen = {"loss": loss, "held_out_loss": held, "seconds": now - start - away}
                records.append({**head, **scores, **seen})
            away += time.monotonic() - now

        BenchmarkFit(series, FIELDS[name], seed).optimise(look)
        return records

    return run


def current(fit: FieldFit) -> F32:
    """Density ``[z, y, x]`` of a fit at work, on the voxels of its output."""
    nz, ny, nx = fit.shape
    lattice = Lattice(1.0, (nz, nx, ny), (-(nz - 1) / 2, -(nx - 1) / 2, -(ny - 1) / 2))
    return np.ascontiguousarray(fit.field.lattice(lattice, fit.stage_now.active).transpose(0, 2, 1))


@lru_cache(maxsize=1)
def specimen(size: int, seed: int, level_db: int, densities: Path | None) -> tuple[F32, Imaged, float]:
    """Truth ``[z, y, x]``, images and Å per voxel: series S1w at another size and noise."""
    s1 = benchmark_settings("S1w", seed, densities)
    height = round(s1.thickness_px * size / s1.size[0])
    made = simulate(replace(s1, size=(size, size), thickness_px=height, snr_db=float(level_db)))
    images = protein_positive(made.images, counts=False)
    return made.volume, Imaged(images, made.alignment, made.volume.shape[0]), s1.pixel_size_A


def _title(truth: F32) -> str:
    return "molecules, " + " x ".join(str(n) for n in truth.shape[::-1])
