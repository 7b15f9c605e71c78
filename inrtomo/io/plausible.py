"""Whether the numbers of an alignment, from whatever file, can be those of a tilt series."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.numbers import Quantity
from inrtomo.tiltseries import check_tilt_angles

Array = NDArray[np.float64]

SHIFT_WIDTHS = 5.0
"""An image shifted by more than this many times its width belongs to no tilt series."""
SMALLEST_PX = 16
"""Stacks of fewer px stand for the real ones, which are elsewhere."""
MAGNIFICATION = (0.1, 10.0)


def check_plausible(alignment: Alignment, path: str | Path) -> None:
    """InputError, naming file and image, where an alignment has numbers that cannot be.

    Looked at are tilt angles, tilts about x, magnification, mirrored images among others, shifts against the width of
    the images, the pixel size and the indices of excluded images.
    """
    a = alignment
    check_tilt_angles(a.tilt_deg, a.n_tilts, path)
    _check_each(a.x_tilt_deg, numbers.X_TILT, path)
    if min(a.image_size) >= SMALLEST_PX:
        furthest = Quantity("a shift", "px", 0.0, SHIFT_WIDTHS * max(a.image_size))
        _check_each(np.abs(a.shift_px).max(axis=1), furthest, path)
    area = np.linalg.det(a.linear)
    mirrored = np.flatnonzero(area < 0)
    if 0 < len(mirrored) < a.n_tilts:
        raise InputError(
            f"{path}: the transform of image {mirrored[0]} (from 0) mirrors it, those of others do not; correct it"
        )
    scale = np.sqrt(np.abs(area))
    _check_each(scale, Quantity("a magnification", "", *MAGNIFICATION), path)
    pixel = a.pixel_size_A
    if pixel is not None and not (isinstance(pixel, float | int) and math.isfinite(pixel) and pixel > 0):
        raise InputError(f"{path}: {pixel!r} is not a pixel size in Å; correct it")
    outside = [index for index in a.excluded if not 0 <= index < a.n_tilts]
    if outside:
        raise InputError(f"{path}: excludes image {outside[0]} of {a.n_tilts} (from 0); give the file of this series")


def _check_each(values: Array, quantity: Quantity, path: str | Path) -> None:
    bad = np.flatnonzero(~((values >= quantity.low) & (values <= quantity.high)))
    if len(bad):
        raise InputError(
            f"{path}: image {bad[0]} (from 0) has {values[bad[0]]:.6g}, which is not {quantity}; correct it, or give "
            "another file"
        )
