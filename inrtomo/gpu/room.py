"""What a scale of an alignment's fit takes on a device, and whether ``--memory`` has room for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inrtomo.align.joint import JointFit, motion_block
from inrtomo.errors import InputError

PARAMETER_COPIES = 5  # gradient, two moments, and one while the field is evaluated by itself
PIXEL_FLOATS = 28  # that a pixel of a batch of tilts takes: its place under the warp, mostly


@dataclass(frozen=True)
class Room:
    """Bytes of one scale.

    Attributes:
        bin: raw px per pixel of its images.
        held: all the time; per_tilt: by each of a batch of tilts; backward: by the field's gradient, with no batch.
    """

    bin: int
    held: int
    per_tilt: int
    backward: int

    @classmethod
    def of(cls, fit: JointFit, bin: int, form: Any, plan: Any) -> Room:
        """That of images binned so, with the field's form there and its plan of the lattice."""
        n, (rows, cols) = len(fit.tilts), (length // bin for length in fit.images.shape[1:])
        lattice, image, order = fit.lattice(bin), rows * cols, fit.settings.background_order
        floats = 3 * n * image + (order + 1) * (order + 2) // 2 * image + 2 * int(np.prod(lattice.shape))
        block = motion_block(bin)
        sums = 8 * n * 5 * -(-rows // block) * -(-cols // block)
        held = 4 * (floats + PARAMETER_COPIES * fit.field.parameters().size) + sums
        per_tilt = 4 * (PIXEL_FLOATS * image + 2 * fit.n_u(bin) * lattice.shape[2])
        return cls(bin, held, per_tilt, form.backward_bytes(plan))

    @property
    def needed(self) -> int:
        """The most at a time, with one tilt in a batch."""
        return self.held + max(self.per_tilt, self.backward)

    def tilts_within(self, bound: float) -> int:
        """How many tilts there is room for at once.

        Raises:
            InputError: for none.
        """
        if self.needed > bound:
            raise InputError(
                f"--memory {bound / 2**30:.2g}G: too little for images binned by {self.bin}, which need "
                f"{self.needed / 2**30 + 0.05:.1f}G on the GPU; give that, or bin more (--working-size in inr-align)"
            )
        return int((bound - self.held) // self.per_tilt)


def refuse_too_little(fit: JointFit) -> None:
    """Say before the first step of a fit what the largest of its scales needs, if there is no room for that.

    Raises:
        InputError: there is not.
    """
    settings = fit.settings
    rooms = []
    for scale in settings.schedule[fit.done_scales :]:
        form = fit.field.on_device(settings.device, fit.active_levels(scale.bin))
        lattice = fit.lattice(scale.bin)
        plan = form.plan(lattice, np.full(lattice.shape[:2], settings.levels))
        rooms.append(Room.of(fit, scale.bin, form, plan))
    max(rooms, key=lambda room: room.needed).tilts_within(settings.memory_bytes)
