"""Cross-correlation alignment, the peer everybody has: STACK.mrc ANGLES.rawtlt AXIS_DEG OUT.json [BLANK...]

Uses `torch-tiltxcorr <https://github.com/teamtomo/teamtomo>`_ (0.6 or later) when it is installed, else the coarse
step of inr-align. A process of its own, so that its time and memory are its own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.coarse import coarse_alignment
from inrtomo.align.prepare import prepare
from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.mrc import open_stack

LOWPASS_PX = 4.0


def torch_tiltxcorr_is_installed() -> bool:
    return importlib.util.find_spec("torch_tiltxcorr") is not None


def correlate(
    images: NDArray[np.float32], tilt_deg: NDArray[np.float64], axis_deg: float, blanks: tuple[int, ...] = ()
) -> Alignment:
    """Shifts by cosine-stretched correlation of neighbours, with whichever of the two is here; 0 for ``blanks``."""
    size = (images.shape[2], images.shape[1])
    if not torch_tiltxcorr_is_installed():
        prepared = prepare(images, tilt_deg, excluded={tilt: "blank" for tilt in blanks})
        return coarse_alignment(prepared, tilt_deg, axis_deg)
    import torch
    from torch_tiltxcorr import tiltxcorr  # type: ignore[import-not-found]

    used = np.setdiff1d(np.arange(len(images)), blanks)
    flat = images[used] - images[used].mean(axis=(1, 2), keepdims=True)
    shifts = tiltxcorr(
        tilt_series=torch.from_numpy(flat / flat.std(axis=(1, 2), keepdims=True)),
        tilt_angles=torch.as_tensor(tilt_deg[used], dtype=torch.float32),
        tilt_axis_angle=axis_deg,
        pixel_spacing_angstroms=1.0,
        lowpass_angstroms=LOWPASS_PX,
    )
    plain = Alignment.identity(tilt_deg, size, axis_deg)
    # (dy, dx) that centre the raw images; an .xf shifts after its rotation
    moves = np.zeros((len(images), 2))
    moves[used] = np.asarray(shifts, dtype=np.float64)[:, ::-1]
    return replace(plain, shift_px=np.einsum("mij,mj->mi", plain.linear, moves))


def main(stack: str, angles: str, axis_deg: str, out: str, *blanks: str) -> None:
    images, tilt_deg = open_stack(stack).read(), np.loadtxt(angles, ndmin=1)
    alignment = correlate(images, tilt_deg, float(axis_deg), tuple(map(int, blanks)))
    Path(out).write_text(json.dumps(alignment_to_dict(alignment)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
