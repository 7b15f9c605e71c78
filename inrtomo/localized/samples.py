"""What is learnt from: blocks of a pair, their features and their true coefficients."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.geometry import centre_index
from inrtomo.io.files import atomic_path
from inrtomo.localized.bank import n_features
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.inference import slab_rows
from inrtomo.localized.pairs import Pair
from inrtomo.localized.scaling import block_features, measured_scaling
from inrtomo.localized.tilts import FilteredTilts, filtered_tilts
from inrtomo.reconstruct.slabs import ranges

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]

BLOCKS_OF_A_PAIR = 5000
MEMORY_BYTES = 2.0**31  # as for a slab of inference: half of it is for maps, whatever the size of the images
MOST = 6e4  # float16 ends there


@dataclass(frozen=True)
class Samples:
    """Of one pair.

    Attributes:
        features: ``(n, n_features)`` in units of their scale's size.
        target: ``(n, block size)`` in units of the series' density.
        condition: of the series.
        variance: of the target's voxels about their mean: errors are counted in it, so that every pair counts alike.
        thickness_px: of the pair's volume.
    """

    features: F16
    target: F16
    condition: F32
    variance: float
    thickness_px: int

    def save(self, path: Path) -> None:
        """As ``.npz``, complete or not there."""
        with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Samples:
        with np.load(path) as file:
            arrays = file["features"], file["target"], file["condition"]
            return cls(*arrays, float(file["variance"]), int(file["thickness_px"]))


def pair_samples(pair: Pair, blocks: Blocks, random: np.random.Generator, count: int = BLOCKS_OF_A_PAIR) -> Samples:
    """Blocks at random places of a pair's volume."""
    shape = pair.reference.shape
    corners = np.stack([random.integers(0, n - blocks.edge + 1, count) for n in shape], axis=1)
    half = (blocks.edge - 1) / 2
    centres = np.stack([corners[:, k] + half - centre_index(shape[k]) for k in (2, 1, 0)], axis=1).astype(np.float32)
    with filtered_tilts(pair.images, pair.alignment, shape[0], weight=pair.weight) as tilts:
        scaling = measured_scaling(tilts, shape, pair.pixel_size_A)
        features = scaling.scaled(_features(tilts, corners, centres, shape, blocks), blocks.size)
    target = blocks.cut(pair.reference, corners) / np.float32(scaling.unit)
    variance = float(pair.reference.var(dtype=np.float64)) / scaling.unit**2
    half_floats = [np.clip(a, -MOST, MOST).astype(np.float16) for a in (features, target)]
    return Samples(half_floats[0], half_floats[1], scaling.condition, variance, shape[0])


def _features(
    tilts: FilteredTilts, corners: NDArray[np.int64], centres: F32, shape: tuple[int, int, int], blocks: Blocks
) -> F32:
    """As `block_features`, with the maps of one band of rows y after the other."""
    features = np.empty((len(centres), n_features(blocks.size)), dtype=np.float32)
    for rows in ranges(0, shape[1], slab_rows(tilts, shape[0], blocks, MEMORY_BYTES) * blocks.edge):
        here = (corners[:, 1] >= rows.start) & (corners[:, 1] < rows.stop)
        if here.any():
            features[here] = block_features(tilts, centres[here], blocks)
    return features
