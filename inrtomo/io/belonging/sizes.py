"""Do images of two sizes show the same, one of them binned, and by how much?"""

from __future__ import annotations

import numpy as np

Size = tuple[int, int]

TOLERANCE = 0.01
"""Of a ratio of sizes or pixel sizes."""
LOST_PX = 2
"""A binned image may have lost a pixel or two at the edge."""


def alike(size: Size, other: Size, factor: float) -> bool:
    """Whether images of ``other`` (nx, ny) show what those of ``size`` do, ``factor`` times larger."""
    ratio = np.array(other) / np.array(size)
    return bool(np.abs(ratio / factor - 1).max() <= TOLERANCE + LOST_PX / min(*size, *other))


def growth(size: Size, other: Size) -> float:
    """How many times larger images of ``other`` are: a whole number, or one over it, where lost pixels allow that."""
    factor = float((np.array(other) / np.array(size)).mean())
    whole = round(factor) if factor > 1 else 1 / round(1 / factor)
    near = abs(whole / factor - 1) < max(TOLERANCE, 0.5 / min(*size, *other))
    return float(whole) if near and alike(size, other, whole) else factor


def turned_like(size: Size, like: Size) -> Size:
    """A size with its sides turned, should that make it lie as another does."""
    return size[::-1] if (size[0] - size[1]) * (like[0] - like[1]) < 0 else size
