"""What is known of a simulated specimen beyond an alignment: where points of it are seen in every tilt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TruePoints:
    """Points of the specimen and their true images.

    Attributes:
        points: ``(n, 3)`` specimen px (x, y, z) from the centre.
        raw: ``(n_tilts, n, 2)`` raw px (x, y) from the centre, also where they are outside the image.
        normal: unit vector ``(3,)`` across the specimen, z positive.
        thickness_px: of the specimen, across its plane.
    """

    points: Array
    raw: Array
    normal: Array
    thickness_px: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the truth file."""
        return {
            "normal": np.asarray(self.normal).tolist(),
            "thickness_px": float(self.thickness_px),
            "test_points": np.round(self.points, 6).tolist(),
            "test_points_raw_px": np.round(self.raw, 6).tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TruePoints | None:
        """Inverse of `to_dict`; None for files that hold no points (other formats, older ones)."""
        if "test_points" not in values or "test_points_raw_px" not in values:
            return None
        return cls(
            np.array(values["test_points"], dtype=np.float64).reshape(-1, 3),
            np.array(values["test_points_raw_px"], dtype=np.float64),
            np.array(values["normal"], dtype=np.float64),
            float(values["thickness_px"]),
        )
