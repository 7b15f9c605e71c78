"""In what order the axes of a volume lie in its file, as the programs that wrote it say in the labels of its header.

MRC has no field for it: ``tilt`` of IMOD and everything that follows it writes sections that are y (``imod``), most
other programs sections that are z (``xyz``).
"""

from __future__ import annotations

from collections.abc import Sequence

OURS = ("inr-recon:", "inr-infer:", "inr-align:", "inr-fsc:")
"""Programs of this package whose label ends with the order."""
OUR_TRUTH = "simulated by inr-simulate"
TILT = "tilt: tomographic reconstruction"
TURNED = ("clip: rotx", "clip: flipyz")
"""What IMOD's ``trimvol -rx`` and ``-yz`` leave: rows and sections have changed places."""


def order_in(labels: Sequence[str]) -> str | None:
    """``imod``, ``xyz``, or None where the labels (oldest first) do not tell."""
    order: str | None = None
    for label in (label.lower().strip() for label in labels):
        if label.startswith(OURS):
            last = label.rpartition(", ")[2]
            order = last if last in ("imod", "xyz") else None
        elif label.startswith(OUR_TRUTH):
            order = "xyz"
        elif label.startswith(TILT):
            order = "imod"
        elif label.startswith(TURNED):
            order = "xyz" if order == "imod" else None
    return order
