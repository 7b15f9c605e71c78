"""Specimens of molecules that no training has seen, and their tilt series in memory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_from_dict, alignment_to_dict
from inrtomo.io.files import atomic_path
from inrtomo.localized.pairs import HELD_OUT
from inrtomo.simulate import SimulationSettings, simulate
from integration.benchmarks.alignment.volumes import protein_positive
from integration.benchmarks.reconstruction.methods import Imaged

F32 = NDArray[np.float32]

SIZE = 160
SEED = 777001  # added to the seeds: no stream of training has these
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


def specimen(settings: SimulationSettings, densities: Path | None, work: Path) -> tuple[F32, Imaged, float]:
    """Truth ``[z, y, x]``, its series with the true alignment, Å per voxel; unseen molecules alone.

    Without noise it is kept in ``work``, so that levels, methods and runs share a specimen.
    """
    truth, signal, alignment = _made(replace(settings, snr_db=None), densities, work)
    level = 10 ** ((settings.snr_db if settings.snr_db is not None else np.inf) / 10)
    sd = np.sqrt(signal.var(axis=(1, 2), dtype=np.float64).mean() / level)
    noise = np.random.default_rng([settings.seed, 5]).standard_normal(signal.shape, dtype=np.float32)
    images = protein_positive(signal + np.float32(sd) * noise, counts=False)
    return truth, Imaged(images, alignment, truth.shape[0]), settings.pixel_size_A


def every_second(series: Imaged) -> Imaged:
    """The series without every second tilt."""
    kept = np.arange(0, len(series.images), 2)
    return replace(series, images=series.images[kept], alignment=series.alignment.subset(kept))


def _made(settings: SimulationSettings, densities: Path | None, work: Path) -> tuple[F32, F32, Alignment]:
    """Truth, noise-free images and their alignment."""
    name = hashlib.sha256(json.dumps([settings.as_dict(), str(densities)]).encode()).hexdigest()[:16]
    path = work / "specimens" / f"{name}.npz"
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            chosen = replace(settings, seed=settings.seed + SEED)
            if densities is not None:
                for density in densities.glob("*.mrc"):
                    if density.stem in HELD_OUT:
                        copy(density, folder)
                chosen = replace(chosen, densities=Path(folder))
            made = simulate(chosen)
        path.parent.mkdir(parents=True, exist_ok=True)
        alignment = json.dumps(alignment_to_dict(made.alignment))
        with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, truth=made.volume, images=made.images, alignment=alignment)
    with np.load(path) as kept:
        return kept["truth"], kept["images"], alignment_from_dict(json.loads(str(kept["alignment"])))
