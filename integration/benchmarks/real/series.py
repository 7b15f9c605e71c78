"""The real series as the witnesses look at it: gold bright for the beads, and without gold for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.prepare import PrepareSettings, prepare, restore
from inrtomo.geometry import centred_coordinates
from inrtomo.resample import fill_invalid
from inrtomo.tiltseries import open_tilt_series
from integration.benchmarks.real.bead_tracks import BeadTracks

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

HALO_PX = 5.0  # around a bead's disc, where its fringes are


@dataclass(frozen=True)
class RealSeries:
    """A recorded series.

    Attributes:
        stack: its file; images: ``(n, ny, nx)``, protein and gold bright, background 0, nothing undone.
        gold: ``(n, ny, nx)``, pixels of gold.
        tilt_deg: nominal angles; pixel_A: Å per px.
    """

    stack: Path
    images: F32
    gold: NDArray[np.bool_]
    tilt_deg: Array
    pixel_A: float

    def without_gold(self, tracks: BeadTracks, defocus_A: float | None) -> F32:
        """Images ``(n, ny, nx)`` with beads painted over, and then low frequencies restored for a defocus."""
        out = np.empty_like(self.images)
        y, x = (centred_coordinates(n) for n in self.images.shape[1:])
        for m, image in enumerate(self.images):
            gold = self.gold[m].copy()
            for (bead_x, bead_y), radius in zip(tracks.raw_px[:, m], tracks.radius_px, strict=True):
                gold |= np.hypot(x[None, :] - bead_x, y[:, None] - bead_y) < radius + HALO_PX
            out[m] = fill_invalid(image, ~gold)
            if defocus_A is not None:
                out[m] = restore(out[m], self.pixel_A, defocus_A, PrepareSettings())
        return out - np.float32(np.median(out[:, ::4, ::4]))


def read_series(stack: Path) -> RealSeries:
    """Read and prepare a stack with its tilt angles and pixel size beside or in it."""
    series = open_tilt_series(stack)
    tilt_deg, pixel_A = np.asarray(series.tilt_deg, np.float64), series.pixel_size_A
    if pixel_A is None:
        raise ValueError(f"{stack}: no pixel size in its header")
    prepared = prepare(np.asarray(series.read(), np.float32), tilt_deg, pixel_A, PrepareSettings(restore=False))
    return RealSeries(stack, prepared.images, prepared.gold, tilt_deg, float(pixel_A))
