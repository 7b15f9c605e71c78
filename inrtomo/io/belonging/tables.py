"""Tables with a row an image: which rows are there, and whether the rest may be filled in.

A row belongs to the image of its number. A table that is shorter is one of the images in use, where it has as many rows
as those, or of another series. Between rows values may be interpolated, and that is said; beyond the first and last row
nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.belonging.order import compare, order_of, shown

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SHOWN = 6
LEAST_RANGES = 3
"""Of fewer, angles say nothing once their offset is taken off."""


def images_of_rows(
    numbers: Sequence[int], n_tilts: int, path: str | Path, kept: Sequence[int] | None, notes: list[str]
) -> Ints:
    """The image (from 0) of every row of a table that numbers images from 1, gaps between rows allowed and said.

    Args:
        numbers: of the rows, from 1.
        kept: images in use, where some are not: the table may number these alone.

    Raises:
        InputError: a number comes twice, or rows are missing at either end.
    """
    given = sorted(numbers)
    twice = sorted({number for number, following in zip(given, given[1:], strict=False) if number == following})
    if twice:
        raise InputError(f"{path}: has image {twice[0]} more than once; give the file of this series")
    if given[0] < 1 or given[-1] > n_tilts:
        wrong = given[0] if given[0] < 1 else given[-1]
        raise InputError(f"{path}: mentions image {wrong} of {n_tilts}; give the file of this series")
    if kept is not None and len(kept) < n_tilts and given == list(range(1, len(kept) + 1)):
        notes.append(
            f"{path}: has {len(given)} rows for {n_tilts} images and is taken to number the {len(kept)} images that "
            "the alignment uses, in their order"
        )
        return np.array(kept, dtype=np.int64)[np.array(numbers) - 1]
    missing = sorted(set(range(1, n_tilts + 1)) - set(given))
    if missing and (given[0] > 1 or given[-1] < n_tilts):
        raise InputError(
            f"{path}: has {len(given)} rows, numbered {given[0]} to {given[-1]}, for {n_tilts} images; give the file "
            "of this series, with a row for each"
        )
    if missing:
        filled = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        notes.append(
            f"{path}: has {len(given)} rows for {n_tilts} images; images {filled} (from 1) are interpolated from their "
            "neighbours"
        )
    return np.array(numbers, dtype=np.int64) - 1


def images_by_angle(angles: Array, tilt_deg: Array | None, path: str | Path, notes: list[str]) -> Ints | None:
    """The image of every row of a table that has its tilt angle; None where that does not say, or is not known.

    Raises:
        InputError: the angles are those of other images.
    """
    if tilt_deg is None or not np.isfinite(angles).all() or len(np.unique(angles)) < max(2, len(angles) // 2):
        return None
    found = order_of(angles, tilt_deg, same_zero=True)
    if found.at is None:
        if len(angles) < len(tilt_deg):
            return None
        raise InputError(
            f"{path}: its rows are in the order {shown(angles)} degrees, the images in the order {shown(tilt_deg)}, "
            f"and {found.why_not}; give the file of this series"
        )
    if not found.is_same or len(angles) < len(tilt_deg):
        notes.append(f"{path}: its rows were given to images by their tilt angles")
    return found.at


def check_angles_of_ranges(
    ranges: Sequence[tuple[int, int, float, float, float, float]],
    angles: Array,
    tilt_deg: Array | None,
    path: str | Path,
    notes: list[str],
) -> None:
    """A sentence where ranges of views (from 0) have tilt angles ``(k, 2)`` that are not those of the images."""
    if tilt_deg is None or len(ranges) < LEAST_RANGES or not np.isfinite(angles).all() or np.ptp(angles) == 0:
        return
    if not all(0 <= first <= last < len(tilt_deg) for first, last, *_ in ranges):
        return
    of_images = np.array([tilt_deg[first : last + 1].mean() for first, last, *_ in ranges])
    if not compare(angles.mean(axis=1), of_images, (1,)).is_plausible:
        notes.append(
            f"{path}: the angles of its views ({shown(angles.mean(axis=1))}) are not those of the images "
            f"({shown(of_images)}); check that it is of this stack, in this order"
        )


def checked_views(views: Iterable[int], n_tilts: int, path: str | Path) -> list[int]:
    """Views to leave out, from 0; InputError where there are none of these numbers."""
    views = sorted(views)
    outside = [view for view in views if not 0 <= view < n_tilts]
    if outside:
        raise InputError(
            f"{path}: leaves out view {outside[0] + 1} of {n_tilts}; give the file of this series, or correct its list"
        )
    return views
