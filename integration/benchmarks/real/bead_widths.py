"""How wide the mean gold bead is in the back-projection along an alignment, and how sharp its rim.

A bead is a ball of many voxels, so errors of an alignment hardly change its width at half height (and may lessen it: a
smeared ball is more pointed); the rim tells more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import centre_index
from inrtomo.reconstruct.fbp import FbpSettings, filtered_lines

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

REACH_PX = 14


def bead_width(images: F32, alignment: Alignment, points_px: Array, thickness_px: int) -> Array:
    """Widths (x, y, z) and rims, ``(2, 3)`` raw px, of the mean of the beads at points ``(n, 3)`` in the volume.

    Beads too near to a face or side of the volume are left out; NaN if all are.

    Args:
        images: ``(n_tilts, ny, nx)``, gold bright, background 0.
    """
    settings = FbpSettings(thickness_px)
    shape = np.array(settings.shape(alignment.image_size))
    boxes = []
    with filtered_lines(lambda m: images[m], alignment, settings) as lines:
        for point in points_px:
            at = np.round(point[::-1] + [centre_index(n) for n in shape]).astype(int)
            if (at < REACH_PX).any() or (at >= shape - REACH_PX).any():
                continue
            z, y, x = (range(i - REACH_PX, i + REACH_PX + 1) for i in at)
            boxes.append(lines.back_project(z, y)[:, x.start : x.stop].transpose(0, 2, 1))
    return widths(np.mean(boxes, axis=0)) if boxes else np.full((2, 3), np.nan)


def widths(box: F32) -> Array:
    """Widths (x, y, z) and rims through the middle of ``[z, y, x]``, odd sides; ``(2, 3)`` voxels.

    Width: full, at half the height of the middle. Rim: from three quarters of that height to one, mean of both sides.
    """
    z, y, x = (n // 2 for n in box.shape)
    lines = box[z, y], box[z, :, x], box[:, y, x]
    quarter, half, most = (np.array([_full_width(line, level) for line in lines]) for level in (0.25, 0.5, 0.75))
    return np.stack([half, (quarter - most) / 2])


def _full_width(line: F32, level: float) -> float:
    """Width at a part of the middle's height, between samples; the reach where the line never falls so low."""
    middle = len(line) // 2
    low, width = level * line[middle], 0.0
    for side in (line[middle:], line[middle::-1]):
        below = np.flatnonzero(side < low)
        if len(below) == 0:
            width += len(side) - 1
        else:
            k = int(below[0])
            width += k - 1 + float((side[k - 1] - low) / (side[k - 1] - side[k]))
    return width
