"""What makes features free of units: their size in the series itself, and what is known of its noise.

Of every scale the size of its first feature is measured at points in the middle of the slab; features are divided by
it, and density is told in units of the one at `bank.MIDDLE`. How far these sizes lie above the noise, tilt range,
tilt step and pixel size make up the condition that the network is given with every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inrtomo.localized.bank import COVERAGE, MIDDLE, PYRAMID, SCALES, Scale, n_features
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.by_torch import fetched
from inrtomo.localized.sampling import sampled
from inrtomo.localized.tilts import FilteredTilts, Maps

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

POINTS = 3000
BAND_PX = 128  # rows of the volume for each band of rows that the points lie in
BAND_ROWS = 32
MIDDLE_PART = 0.6  # of the slab's height and of the view's width
CLIP = 99.5  # percentile: gold fills less of a specimen than this leaves, and must not rule the size
CONDITIONS = ("snr 1 px", "snr 2 px", "snr 4 px", "snr 8 px", "tilt range", "tilt step", "pixel size")
REFERENCE_PIXEL_A = 10.0


@dataclass(frozen=True)
class Scaling:
    """Of one series.

    Attributes:
        size: of the first feature of every scale of `PYRAMID`, in units of the images, ``(4,)``.
        condition: see `CONDITIONS`, natural logarithms but for the tilt range, all around 0 or 1, ``(7,)``.
    """

    size: Array
    condition: F32

    @property
    def unit(self) -> float:
        """Density of the images that is 1 for the network."""
        return float(self.size[MIDDLE])

    def scaled(self, features: F32 | Tensor, fine: int) -> F32 | Tensor:
        """Features ``(n, n_features)`` of blocks with so many fine voxels, in units of their scale's size."""
        if isinstance(features, Tensor):
            return features / torch.tensor(self.divisors(fine), device=features.device)
        return np.asarray(features / self.divisors(fine), dtype=np.float32)

    def divisors(self, fine: int) -> F32:
        """The size of every feature's scale, ``(n_features,)``."""
        parts = [np.full(fine, self.size[0])]
        parts += [np.full(len(s.features), size) for s, size in zip(PYRAMID, self.size, strict=True)]
        return np.concatenate([*parts, np.ones(len(COVERAGE.features))]).astype(np.float32)


def measured_scaling(
    tilts: FilteredTilts, shape: tuple[int, int, int], pixel_size_A: float, device: str = "cpu"
) -> Scaling:
    """Scaling of a series for a volume of voxels (nz, ny, nx)."""
    random = np.random.default_rng(0)
    nz, ny, nx = shape
    half = np.array([nx, ny, nz]) / 2 * MIDDLE_PART
    bands = max(1, round(ny / BAND_PX))
    found: list[list[F32]] = [[] for _ in PYRAMID]
    first = [Scale(scale.sigma, 0, scale.step) for scale in PYRAMID]
    for k in range(bands):
        points = random.uniform(-1, 1, (POINTS // bands, 3)) * [half[0], min(half[1], BAND_ROWS / 2), half[2]]
        points[:, 1] += ((k + 0.5) / bands * 2 - 1) * half[1]
        for values, maps in zip(found, tilts.maps(first, rows_seen(tilts, points), device), strict=True):
            values.append(fetched(sampled(tilts, maps, points)[:, 0]))
    size = np.array([_clipped_rms(np.concatenate(values)) for values in found])
    noise = np.array([tilts.noise_of(scale) for scale in PYRAMID])
    angles = np.sort(np.rad2deg(tilts.tilt))
    above = np.log(size / noise)
    span = (angles[-1] - angles[0]) / 120
    step = np.log((angles[-1] - angles[0]) / max(len(angles) - 1, 1) / 3)
    pixel = np.log(pixel_size_A / REFERENCE_PIXEL_A)
    return Scaling(size, np.array([*above, span, step, pixel], dtype=np.float32))


def block_features(tilts: FilteredTilts, centres: F32, blocks: Blocks, device: str = "cpu") -> F32:
    """Features ``(n, n_features)`` of blocks with centres ``(n, 3)`` (x, y, z), px, in units of the images.

    The fine ones are those of every voxel, transformed as the block's densities are.
    """
    low, high = rows_seen(tilts, centres)
    return fetched(features_from(tilts, tilts.maps(SCALES, (low - 1, high + 1), device), centres, blocks))


def features_from(tilts: FilteredTilts, maps: Sequence[Maps], centres: F32, blocks: Blocks) -> F32 | Tensor:
    """As `block_features`, from the maps of `bank.SCALES` that are there already, and where they are."""
    shape, offsets = (len(centres), n_features(blocks.size)), blocks.offsets.astype(np.float32)
    if isinstance(maps[0].values, Tensor):
        device = maps[0].values.device
        at, around, turn = (torch.tensor(a, device=device) for a in (centres, offsets, blocks.transform))
        return _features(tilts, maps, at, around, turn, torch.empty(shape, device=device))
    return _features(tilts, maps, centres, offsets, blocks.transform, np.empty(shape, dtype=np.float32))


def _features(tilts: FilteredTilts, maps: Sequence[Maps], centres: Any, offsets: Any, transform: Any, out: Any) -> Any:
    """Set and return ``out``; all arrays or all tensors."""
    n, fine = len(centres), len(offsets)
    voxels = (centres[:, None, :] + offsets).reshape(-1, 3)
    out[:, :fine] = sampled(tilts, maps[0], voxels).reshape(n, fine) @ transform.T
    at = fine
    for of_scale in maps[1:]:
        count = len(of_scale.scale.features)
        out[:, at : at + count] = sampled(tilts, of_scale, centres)
        at += count
    return out


def rows_seen(tilts: FilteredTilts, points: NDArray[np.floating]) -> tuple[float, float]:
    """Between which rows v (px from the centre) the tilts see the points."""
    a = np.unique(np.round(tilts.x_tilt, 6))
    v = np.multiply.outer(points[:, 1], np.cos(a)) + np.multiply.outer(points[:, 2], np.sin(a))
    return float(v.min()), float(v.max())


def _clipped_rms(values: F32) -> float:
    """Rms of values no further out than a high percentile; tiny but positive where all are zero."""
    bound = np.percentile(np.abs(values), CLIP)
    return max(float(np.sqrt((np.clip(values, -bound, bound).astype(np.float64) ** 2).mean())), 1e-12)
