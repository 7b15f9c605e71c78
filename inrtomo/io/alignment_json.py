"""An alignment as JSON: shared by ``BASE_truth.json`` (simulation) and ``BASE_align.json``."""

from __future__ import annotations

from typing import Any

import numpy as np

from inrtomo.alignment import Alignment, LocalWarp


def alignment_to_dict(alignment: Alignment) -> dict[str, Any]:
    """Plain values: angles in degrees, lengths in raw px, matrices raw -> aligned, warp vectors [tilt][y][x][2]."""
    warp = alignment.warp
    return {
        "tilt_deg": np.asarray(alignment.tilt_deg).tolist(),
        "linear": np.asarray(alignment.linear).tolist(),
        "shift_px": np.asarray(alignment.shift_px).tolist(),
        "image_size": [int(n) for n in alignment.image_size],
        "pixel_size_A": alignment.pixel_size_A,
        "x_tilt_deg": np.asarray(alignment.x_tilt_deg).tolist(),
        "excluded": {str(index): reason for index, reason in alignment.excluded.items()},
        "warp": None
        if warp is None
        else {
            "x": np.asarray(warp.x).tolist(),
            "y": np.asarray(warp.y).tolist(),
            "vectors": np.asarray(warp.vectors).tolist(),
            "interpolation": warp.interpolation,
        },
    }


def alignment_from_dict(values: dict[str, Any]) -> Alignment:
    """Inverse of `alignment_to_dict`; a missing key raises KeyError."""
    warp = values.get("warp")
    return Alignment(
        tilt_deg=np.array(values["tilt_deg"], dtype=np.float64),
        linear=np.array(values["linear"], dtype=np.float64),
        shift_px=np.array(values["shift_px"], dtype=np.float64),
        image_size=(int(values["image_size"][0]), int(values["image_size"][1])),
        pixel_size_A=values.get("pixel_size_A"),
        warp=None
        if not warp
        else LocalWarp(
            np.array(warp["x"], dtype=np.float64),
            np.array(warp["y"], dtype=np.float64),
            np.array(warp["vectors"], dtype=np.float64),
            warp["interpolation"],
        ),
        x_tilt_deg=np.array(values.get("x_tilt_deg", []), dtype=np.float64),
        excluded={int(index): str(reason) for index, reason in values.get("excluded", {}).items()},
    )
