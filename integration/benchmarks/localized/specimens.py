"""Specimens of molecules that no training has seen, and their tilt series in memory."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from shutil import copy

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.pipeline import subset
from inrtomo.localized.pairs import HELD_OUT
from inrtomo.simulate import SimulationSettings, simulate
from integration.benchmarks.alignment.volumes import protein_positive
from integration.benchmarks.reconstruction.methods import Imaged

F32 = NDArray[np.float32]

SIZE = 160
PROCEDURAL_SEED = 777001  # of molecules made up where there is no folder of densities: no stream's seed
USUAL = SimulationSettings(
    thickness_px=56,
    tilt_range_deg=60.0,
    tilt_step_deg=2.0,
    shift_px=8.0,
    warp_max_px=1.0,
    beads=2,
    vesicles=2,
    wide=True,
)


def specimen(settings: SimulationSettings, densities: Path | None) -> tuple[F32, Imaged, float]:
    """Truth ``[z, y, x]``, its series with the true alignment, Å per voxel; unseen molecules alone."""
    truth, images, series, pixel_A = _made(replace(settings, snr_db=None), densities)
    if settings.snr_db is None:
        return truth, series, pixel_A
    variance = float(images.var(axis=(1, 2), dtype=np.float64).mean())
    sd = np.sqrt(variance / 10 ** (settings.snr_db / 10))
    noise = np.random.default_rng([settings.seed, 5]).standard_normal(images.shape, dtype=np.float32)
    noisy = protein_positive(images + np.float32(sd) * noise, counts=False)
    return truth, replace(series, images=noisy), pixel_A


def every_second(series: Imaged) -> Imaged:
    """The series without every second tilt."""
    kept = np.arange(0, len(series.images), 2)
    return replace(series, images=series.images[kept], alignment=subset(series.alignment, kept))


@lru_cache(maxsize=2)
def _made(settings: SimulationSettings, densities: Path | None) -> tuple[F32, F32, Imaged, float]:
    """Noise is put on later, so that levels share a specimen."""
    with tempfile.TemporaryDirectory() as folder:
        if densities is not None:
            for path in sorted(densities.glob("*.mrc")):
                if path.stem in HELD_OUT:
                    copy(path, folder)
            settings = replace(settings, densities=Path(folder))
        else:
            settings = replace(settings, seed=settings.seed + PROCEDURAL_SEED)
        made = simulate(settings)
    series = Imaged(protein_positive(made.images, counts=False), made.alignment, made.volume.shape[0])
    return made.volume, made.images, series, settings.pixel_size_A
