"""What an alignment is worth in a tomogram: back-projections and fields against the true specimen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.placed_field import PlacedField
from inrtomo.alignment import Alignment
from inrtomo.metrics.alignment import RigidMotion, in_frame_of
from inrtomo.metrics.volume import (
    best_isotropic_filter_cc,
    cc,
    fsc,
    translated,
    translation_between,
)
from inrtomo.reconstruct.fbp import fbp_volume

F32 = NDArray[np.float32]


def protein_positive(images: F32, counts: bool) -> F32:
    """Images with mean 0 and protein bright; camera counts relative to their mean."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    if not counts:
        return np.asarray(images - mean, dtype=np.float32)
    return np.asarray(1 - images / np.where(mean > 0, mean, 1), dtype=np.float32)


def score_reconstruction(
    images: F32, alignment: Alignment, motion: RigidMotion, truth: F32, pixel_size_A: float
) -> dict[str, Any]:
    """Weighted back-projection along an alignment, laid over the true specimen, against it.

    ``motion`` is that of `compare_alignments` against the true alignment. Same filter (none beyond the ramp) and same
    registration, a translation, for every method.
    """
    volume = fbp_volume(images, in_frame_of(alignment, motion), truth.shape[0])
    return _scores(volume, truth, pixel_size_A)


def score_field(path: Path, motion: RigidMotion, truth: F32, pixel_size_A: float) -> dict[str, Any]:
    """The density of a fit on the truth's lattice, against it."""
    volume = PlacedField.load(path).volume(truth.shape, motion.rotation, motion.translation_px)
    return _scores(volume, truth, pixel_size_A)


def _scores(volume: F32, truth: F32, pixel_size_A: float) -> dict[str, Any]:
    shift = translation_between(volume, truth)
    registered = translated(volume, shift)
    curve = fsc(registered, truth, pixel_size_A)
    return {
        "cc": cc(registered, truth),
        "fsc_mean": float(curve.correlation.mean()),
        "resolution_A": curve.resolution_A(0.5),
        "best_filter_cc": best_isotropic_filter_cc(registered, truth),
        "registered_by_px": shift.tolist(),
        "fsc": curve.correlation.round(4).tolist(),
        "frequency_per_A": curve.frequency_per_A.round(6).tolist(),
    }
