"""Soft masks for Fourier comparisons: a box, the slab that holds the specimen, or a given mask made soft.

Volumes and masks are ``[z, y, x]`` (boxes of any number of dimensions for `soft_box`), masks from 0 to 1. A hard edge
spreads every Fourier component over the others, the same way in both volumes, and so makes noise agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter, gaussian_filter1d

F32 = NDArray[np.float32]
Volume = NDArray[Any]

EDGE = 0.08
"""Width of the soft edge at the faces of a box, as part of each side."""
MASK_EDGE_PX = 6
"""Width of the soft edge laid around a mask that has none."""
SLAB_LEVEL = 0.2
"""What two volumes share at the faces of the slab, as part of the most they share at any height."""


def soft_box(shape: Sequence[int], edge: float = EDGE) -> F32:
    """A mask that is 1 inside and falls to 0 at the faces by half a cosine, over ``edge`` of each side."""
    mask = np.ones([1] * len(shape), dtype=np.float32)
    for axis, size in enumerate(shape):
        profile = _falling(np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5), max(size * edge, 1.0))
        mask = mask * profile.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return mask


def soft_slab(a: Volume, b: Volume) -> F32:
    """Soft box around the heights z at which two volumes share something: the specimen without the empty ice.

    At every height the covariance of the two, smoothed by 2 voxels, is noise only where there is no specimen. The soft
    edge lies outside the slab as far as there is room.
    """
    smooth = [gaussian_filter(np.asarray(v, dtype=np.float32), 2.0) for v in (a, b)]
    planes = [v - v.mean(axis=(1, 2), keepdims=True) for v in smooth]
    shared = gaussian_filter1d((planes[0] * planes[1]).mean(axis=(1, 2), dtype=np.float64), 2.0)
    inside = np.flatnonzero(shared >= SLAB_LEVEL * shared.max()) if shared.max() > 0 else np.arange(len(shared))
    depth = np.shape(a)[0]
    width = max(depth * EDGE, 1.0)
    height = np.arange(depth)
    outward = np.maximum(np.maximum(inside[0] - height, height - inside[-1]), 0)
    return np.asarray(soft_box(np.shape(a)) * _falling(width - outward, width).reshape(-1, 1, 1))


def softened(mask: Volume) -> F32:
    """A mask of 0 and 1 with a soft edge of `MASK_EDGE_PX` voxels around it; one that is soft already as it is."""
    values = np.asarray(mask, dtype=np.float32)
    if not np.isin(values, (0, 1)).all():
        return values
    return _falling(MASK_EDGE_PX - distance_transform_edt(values == 0), MASK_EDGE_PX)


def _falling(inward: NDArray[Any], width: float) -> F32:
    """1 from ``width`` inwards, 0 at and beyond 0, half a cosine between."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(inward / width, 0, 1)), dtype=np.float32)
