"""Encodings: what turns a position into the features that a decoder reads.

* `HashGrid`: vertices of nested grids carry features (Müller et al. 2022, used by ICE-TIDE). Grids that fit the
  table are stored densely; finer ones share table entries by a hash. Here a hash places *runs* of vertices
  along y, one cache line each, so that rows are read by vectors; a collision then mixes short rows, not points.
* `FourierFeatures`: sines and cosines of random frequencies (Tancik et al. 2020, used by the 2023 paper).

Internal axis order is (z, x, y), that of lattices; lengths are raw px.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

RUN = 16  # vertices along y that a hash keeps together: 64 bytes of one feature
INITIAL_FEATURE = 1e-4  # half-width of the tables' initial values: nearly no signal, no exact ties


@dataclass(frozen=True)
class HashGrid:
    """Geometry of nested grids over a box, coarsest level first.

    Attributes:
        box: ``(x0, x1, y0, y1, z0, z1)`` raw px; positions outside are moved to its surface.
        finest_px: vertex spacing of the last level; the others are ``growth`` times coarser one by one.
        levels, features: number of grids, and of features at each vertex.
        log2_table: a level with more vertices than ``2**log2_table`` is hashed into as many entries.
    """

    box: tuple[float, float, float, float, float, float]
    finest_px: float
    levels: int
    features: int
    growth: float = 2.0
    log2_table: int = 22
    origin: F32 = field(init=False)
    upper: F32 = field(init=False)
    spacing: F32 = field(init=False)
    shapes: I64 = field(init=False)
    runs: I64 = field(init=False)
    masks: I64 = field(init=False)
    planes: I64 = field(init=False)
    starts: I64 = field(init=False)

    def __post_init__(self) -> None:
        x0, x1, y0, y1, z0, z1 = self.box
        if min(x1 - x0, y1 - y0, z1 - z0) <= 0 or self.finest_px <= 0 or self.levels < 1 or self.features < 1:
            raise ValueError(f"empty box {self.box}, or spacing, levels or features not positive")
        origin, upper = np.array([z0, x0, y0]), np.array([z1, x1, y1])
        spacing = self.finest_px * self.growth ** np.arange(self.levels - 1, -1, -1.0)
        shapes = np.maximum(np.ceil((upper - origin) / spacing[:, None] - 1e-6).astype(np.int64) + 1, 2)
        vertices = shapes.prod(axis=1)
        entries = 1 << max(self.log2_table, 4)
        hashed = vertices > entries
        runs = np.where(hashed, RUN, shapes[:, 2])
        masks = np.where(hashed, entries // RUN - 1, 0)
        planes = np.where(hashed, entries, vertices)
        values = {
            "origin": origin.astype(np.float32),
            "upper": upper.astype(np.float32),
            "spacing": spacing.astype(np.float32),
            "shapes": shapes,
            "runs": runs.astype(np.int64),
            "masks": masks.astype(np.int64),
            "planes": planes.astype(np.int64),
            "starts": np.concatenate([[0], np.cumsum(planes * self.features)]).astype(np.int64),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def n_parameters(self) -> int:
        return int(self.starts[-1])

    @property
    def n_features(self) -> int:
        return self.levels * self.features

    def level(self, index: int) -> slice:
        """Where a level's entries are among the parameters: ``(features, entries)``, entries fastest."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def initial(self, seed: int) -> F32:
        """Initial tables, flat float32."""
        rng = np.random.default_rng(seed)
        values = rng.random(self.n_parameters, dtype=np.float32)
        return (np.float32(2 * INITIAL_FEATURE) * (values - np.float32(0.5))).astype(np.float32)

    def cells(self, level: int, axis: int, coordinates: F64) -> tuple[I64, F32]:
        """Lower vertex and fraction of positions along one axis (0 = z, 1 = x, 2 = y)."""
        low, high = float(self.origin[axis]), float(self.upper[axis])
        position = (np.clip(coordinates, low, high) - low) / float(self.spacing[level])
        nearest = np.rint(position)
        position = np.where(np.abs(position - nearest) < 1e-5, nearest, position)  # whole vertices stay whole
        index = np.minimum(np.floor(position).astype(np.int64), self.shapes[level, axis] - 2)
        return index, (position - index).astype(np.float32)

    def level_weights(self, active: float | None) -> F32:
        """Weights of the levels when ``active`` of them (a fraction fades the next one in) are on."""
        count = float(self.levels) if active is None else float(active)
        return np.asarray(np.clip(count - np.arange(self.levels), 0.0, 1.0), dtype=np.float32)


@dataclass(frozen=True)
class FourierFeatures:
    """Random frequencies over a box, sorted from slow to fast and enabled in ``levels`` equal groups.

    Attributes:
        box: ``(x0, x1, y0, y1, z0, z1)`` raw px.
        finest_px: half the shortest period that is likely drawn (two standard deviations).
        levels, features: number of groups, and of frequencies in each; every one gives a sine and a cosine.
        seed: of the draw.
    """

    box: tuple[float, float, float, float, float, float]
    finest_px: float
    levels: int
    features: int
    seed: int = 0
    frequencies: F32 = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        drawn = rng.normal(scale=0.25 / self.finest_px, size=(self.levels * self.features, 3))
        order = np.argsort(np.linalg.norm(drawn, axis=1), kind="stable")
        object.__setattr__(self, "frequencies", drawn[order].astype(np.float32))

    @property
    def n_features(self) -> int:
        return 2 * self.levels * self.features

    def level_weights(self, active: float | None) -> F32:
        """Weights ``(levels * features,)`` of the frequencies when ``active`` groups are on."""
        count = float(self.levels) if active is None else float(active)
        return np.repeat(np.clip(count - np.arange(self.levels), 0.0, 1.0), self.features).astype(np.float32)
