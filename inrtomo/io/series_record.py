"""SeriesRecord: an alignment with what its file says of the series beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci

Array = NDArray[np.float64]

NAME_ENDINGS = ("_align", "_truth", "_warp", "_st", "_Imod")
"""Of files made for a series of the name before them."""


@dataclass(frozen=True)
class SeriesRecord:
    """What formats hold in common, per image in the order of `alignment`.

    Attributes:
        name: of the series.
        nominal_tilt_deg: recorded angles ``(n,)``; exposure_e_A2: received before each image ``(n,)``.
        images: where each image is, ``3@ts.mrc`` (section 3, from 1) or a file of its own.
        thickness_px: of the tomogram, raw px.
        defoci: of every image. Written for RELION; no format's reader gives them.
        stack: the stack that it was made on, image by image.
        Each is None where the file does not say.
    """

    alignment: Alignment
    name: str
    nominal_tilt_deg: Array | None = None
    exposure_e_A2: Array | None = None
    images: tuple[str, ...] | None = None
    thickness_px: float | None = None
    defoci: Defoci | None = None
    stack: str | None = None


def series_name(path: str | Path) -> str:
    """Name of the series that a file or folder was made for: its stem without the endings programs add."""
    name = Path(path).name
    name = name if Path(path).is_dir() else Path(path).stem
    for _ in NAME_ENDINGS:
        for end in NAME_ENDINGS:
            if len(name) > len(end):
                name = name.removesuffix(end)
    return name
