"""Tilts aligned for `inrtomo.localized`, in torch on a device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.gpu.resample import AlignedReader, fill_invalid, settle_border
from inrtomo.localized.tilts import TiltAligner

F32 = NDArray[np.float32]
Array = NDArray[np.float64]


class DeviceTiltAligner(TiltAligner):
    """As `TiltAligner`; ``device`` as torch calls it."""

    def __init__(self, alignment: Alignment, x: Array, y: Array, settled_px: int, device: str) -> None:
        super().__init__(alignment, x, y, settled_px)
        self.reader = AlignedReader(alignment, x, y, device)

    def aligned(self, image: F32, tilt: int) -> tuple[F32, NDArray[np.bool_]]:
        values, seen = self.reader.read(image, tilt)
        settled = settle_border(fill_invalid(values, seen), (self.settled_px, 0))
        return self.reader.pixels.fetched(settled), np.asarray(seen.cpu().numpy())

    def noise_sd(self, image: F32) -> float:
        return self.reader.pixels.noise_sd(image)
