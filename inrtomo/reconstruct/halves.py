"""What a tomogram is made from, and its two independent halves: odd and even frames, or odd and even tilts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.io.images import open_images

if TYPE_CHECKING:
    from inrtomo.tiltseries import TiltSeries

ImageReader = Callable[[int], NDArray]
LEAST_TILTS = 3  # in a half


@dataclass(frozen=True)
class Source:
    """Raw images and the alignment of those to use.

    Attributes:
        name: ``""`` for all, ``"odd"`` or ``"even"`` for a half.
        image: raw image ``(ny, nx)`` of a stack index.
        alignment: excluded tilts are not read.
        other: the same views with independent noise, where there are any.
    """

    name: str
    image: ImageReader
    alignment: Alignment
    other: ImageReader | None = None


def halves(series: TiltSeries, alignment: Alignment) -> tuple[Source, Source, str]:
    """Two halves with independent noise, and what they are made of.

    Odd and even frames where a stack of each lies beside the series, else every other tilt in the order of tilt angle.

    Raises:
        InputError: neither is there: too few tilts.
    """
    if series.odd is not None and series.even is not None:
        odd, even = (open_images(path).image for path in (series.odd, series.even))
        frames = f"odd and even frames ({series.odd.name}, {series.even.name})"
        return Source("odd", odd, alignment, even), Source("even", even, alignment, odd), frames
    used = alignment.included[np.argsort(alignment.tilt_deg[alignment.included], kind="stable")]
    if len(used) < 2 * LEAST_TILTS:
        raise InputError(
            f"--halves: {len(used)} tilts are too few for two halves, and no stacks of odd and even frames lie beside "
            f"{series.path}; leave it out"
        )
    first, second = (
        replace(alignment, excluded=alignment.excluded | dict.fromkeys(map(int, used[k::2]), "of the other half"))
        for k in (1, 0)
    )
    return Source("odd", series.image, first), Source("even", series.image, second), "every other tilt"
