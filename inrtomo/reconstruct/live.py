"""What a running fit looks like: a picture of three central slices, replaced now and then."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from inrtomo.projection import Lattice
from inrtomo.reconstruct.field import F32, FieldFit
from inrtomo.report.figures import draw_slices

INTERVAL_S = 20.0
PLANES = 3  # averaged, of the scale being fitted
COST = 0.05  # of the time that has passed: drawing takes no more than this


class LiveView:
    """Draws the density of a fit to a PNG, not more often than every `INTERVAL_S`.

    Args:
        path: of the picture, replaced as a whole each time.
        pixel_size_A: Å per px of the images.
        title: above it.
    """

    def __init__(self, path: Path, pixel_size_A: float, title: str = "") -> None:
        self.path, self.pixel_size_A, self.title = path, pixel_size_A, title
        self._started = time.monotonic()
        self._drawn, self._spent = -np.inf, 0.0

    def __call__(self, fit: FieldFit) -> None:
        """Draw if it is time to."""
        now = time.monotonic()
        if now - self._drawn < INTERVAL_S or self._spent > COST * (now - self._started) + 1.0:
            return
        bin_, step, _, held = fit.losses[-1]
        title = f"{self.title}  bin {bin_}, step {step + 1}, held-out loss {held:.4f}"
        draw_slices(*central_slices(fit), self.path, title, self.pixel_size_A)
        self._drawn = time.monotonic()
        self._spent += self._drawn - now


def central_slices(fit: FieldFit) -> tuple[F32, F32, F32]:
    """Slices ``[y, x]``, ``[z, x]`` and ``[z, y]`` of a fit's density on the voxels of the output.

    The field is asked for these planes alone. Without the x-tilt, which is laid level only in the end.
    """
    stage, (nz, ny, nx) = fit.stage_now, fit.shape
    stage.fetch_field()
    spacing = float(stage.scale.bin)
    slices = []
    for axis in range(3):
        counts = [PLANES if k == axis else n for k, n in enumerate((nz, nx, ny))]
        steps = [spacing if k == axis else 1.0 for k in range(3)]
        planes = []
        for k in range(PLANES):
            one = tuple(1 if j == axis else n for j, n in enumerate(counts))
            shift = (k - (PLANES - 1) / 2) * steps[axis]
            origin = tuple(shift if j == axis else -(n - 1) / 2 for j, n in enumerate(counts))
            planes.append(fit.field.lattice(Lattice(1.0, one, origin), stage.active))  # type: ignore[arg-type]
        slices.append(np.mean(planes, axis=0).squeeze(axis))
    across_z, across_x, across_y = slices  # [x, y], [z, y], [z, x]
    return across_z.T, across_y, across_x
