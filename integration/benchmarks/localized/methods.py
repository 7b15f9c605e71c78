"""Ours and what it is held against, all in this process on the same images, each timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.localized.inference import inferred_slabs
from inrtomo.localized.network import LocalizedMlp
from inrtomo.localized.scaling import measured_scaling
from inrtomo.localized.tilts import filtered_tilts
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.reconstruct.slabs import joined
from integration.benchmarks.reconstruction.jobs import Record
from integration.benchmarks.reconstruction.methods import Imaged, reconstruct
from integration.benchmarks.reconstruction.scores import volume_scores

F32 = NDArray[np.float32]

OURS = "localized"
NAMES = {"FBP": "FBP", "SIRT": "SIRT", "hash": "field (hash)"}
MEMORY = 2.0 * 2**30


def scored(
    name: str, series: Imaged, truth: F32, pixel_A: float, weights: Path | None, bar: Record | None = None
) -> Record:
    """A method's scores against the truth, and its time.

    Args:
        name: `OURS`, or one of `NAMES`.
        bar: scores of the back-projection, whose FSC is to be surpassed.
    """
    make: Callable[[], F32] = (
        (lambda: localized(series, pixel_A, weights)) if name == OURS else (lambda: reconstruct(name, series, 0))
    )
    wall, spent = time.monotonic(), time.process_time()
    volume = make()
    times = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - spent}
    curve = None if bar is None else np.array(bar["fsc"])
    return {**volume_scores(volume, truth, pixel_A, series.alignment.tilt_deg, curve), **times}


def localized(series: Imaged, pixel_A: float, weights: Path | None) -> F32:
    """Our volume ``[z, y, x]``."""
    model = _model(weights)
    n, ny, nx = series.images.shape
    shape = series.thickness_px, ny, nx
    with filtered_tilts(series.images, series.alignment, series.thickness_px) as tilts:
        scaling = measured_scaling(tilts, shape, pixel_A)
        return joined(inferred_slabs(tilts, shape, scaling, model, MEMORY), shape)


@lru_cache(maxsize=2)
def _model(weights: Path | None) -> LocalizedMlp:
    return load_weights(weights or shipped_weights())[0]
