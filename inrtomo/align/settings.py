"""What a user may choose of an alignment; apart from the work, so that ``--help`` need not load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_to_dict


@dataclass(frozen=True)
class AlignSettings:
    """What a user may choose.

    Attributes:
        axis_deg: tilt axis in IMOD's sense; None searches for it.
        axis_is_recorded: nobody asked for ``axis_deg``, a file says so: where it does not fit the images, the axis that
            does is taken instead.
        thickness_px: sample thickness in raw px; None estimates it.
        defocus_A: underfocus, one for all or one per tilt; None: restored only if the images look like it.
        start: alignment to refine instead of correlation and tracks (raw px).
        fast: stop after tracks and bundle adjustment.
        level: level and centre the specimen; otherwise the frame of the start is kept.
        error_bars: two half-data fits for the standard error of every shift.
        field, warp, loss: of the joint fit, see `JointSettings`.
        working_size: images are binned until their longer side is at most this many px.
        memory_bytes: bound for the arrays of one batch of tilts in the joint fit; on a GPU, for all that is there.
        seed: of everything random.
        device: of everything that takes time, ``"cpu"`` or a GPU as torch calls it; a run may go on from its checkpoint
            on another one.
        others: more GPUs that take part in the fits.
    """

    axis_deg: float | None = None
    axis_is_recorded: bool = False
    thickness_px: float | None = None
    defocus_A: float | tuple[float, ...] | None = None
    start: Alignment | None = None
    fast: bool = False
    level: bool = True
    error_bars: bool = False
    field: str = "hash"
    warp: str = "bicubic"
    loss: str = "l2"
    working_size: int = 640
    memory_bytes: float = 2.0**30
    seed: int = 0
    device: str = "cpu"
    others: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the start as an alignment dictionary."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("device", "others")}
        return values | {"start": None if self.start is None else alignment_to_dict(self.start)}
