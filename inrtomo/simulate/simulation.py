"""What a simulation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.simulate.true_map import TrueMap
from inrtomo.truth import TruePoints

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Simulation:
    """A tilt series and everything about it.

    Attributes:
        images, odd, even: ``(n_tilts, ny, nx)``, ordered by tilt angle. The full image is the mean of its halves,
            with camera counts their sum.
        signal: the same without noise.
        alignment: the true one, or where the specimen moves the nearest there is (`TrueMap.nearest_alignment`); its
            ``excluded`` names the blank tilts.
        true_map: where any point of the specimen is seen, exactly.
        points: points that fill the specimen over the view and where they are seen, for scoring.
        volume: true density ``[z, ny, nx]`` over the view, solvent 0, centre index = origin.
        tilt_deg: nominal angles; order: acquisition index of every image.
        meta: seed, settings, SNR, blanks, bead positions and the like, fit for JSON.
    """

    images: F32
    odd: F32
    even: F32
    signal: F32
    alignment: Alignment
    true_map: TrueMap
    points: TruePoints
    volume: F32
    tilt_deg: NDArray[np.float64]
    order: NDArray[np.int64]
    settings: SimulationSettings
    meta: dict[str, Any]
