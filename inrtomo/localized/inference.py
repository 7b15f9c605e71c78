"""From a prepared tilt series to density, slab by slab of rows, by a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from inrtomo.geometry import centre_index
from inrtomo.localized.bank import SCALES, n_features
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.network import LocalizedMlp, densities
from inrtomo.localized.scaling import CONDITIONS, REFERENCE_PIXEL_A, Scaling, features_from, rows_seen
from inrtomo.localized.tilts import FilteredTilts
from inrtomo.reconstruct.slabs import Slab, ranges

F32 = NDArray[np.float32]
Report = Callable[[float], None]

MAPS_SHARE = 0.5  # of the memory, for the maps of a slab
FEATURES_SHARE = 0.1
OUTSIDE = 0.1  # of a condition's span in training, beyond its ends: what ends a random draw of pairs happens to have
LEAST_OUTSIDE = {"snr": 3 * np.log(10) / 20, "tilt range": 10 / 120, "tilt step": np.log(1.2)}
"""At least this far, however few pairs there were: series recorded alike differ by 3 dB, by some tilts left out."""
ROUNDING = 0.02  # of a pixel size or a thickness, whose ends in training are known: 13.48 Å is what is written as 13.5


def inferred_slabs(
    tilts: FilteredTilts,
    shape: tuple[int, int, int],
    scaling: Scaling,
    model: LocalizedMlp,
    memory_bytes: float,
    device: str = "cpu",
    report: Report = lambda fraction: None,
) -> Iterator[Slab]:
    """The volume of voxels (nz, ny, nx), rows y in order, in units of the images' density per px.

    The mean over two ways to cut it into blocks, one voxel apart along every axis: a wavelet's known remedy for the
    edges of its blocks.
    """
    blocks = model.architecture.blocks
    model = model.to(device).eval()
    nz, ny, nx = shape
    size = slab_rows(tilts, nz, blocks, memory_bytes) * blocks.edge
    for rows in ranges(0, ny, size):
        ends = np.array([rows.start, rows.stop - 1]) - centre_index(ny) + np.array([-blocks.edge, blocks.edge])
        corners = np.array([[0, y, z] for y in ends for z in (-centre_index(nz), centre_index(nz))])
        maps = tilts.maps(SCALES, rows_seen(tilts, corners), device)

        def density(centres: F32) -> F32:
            features = scaling.scaled(features_from(tilts, maps, centres, blocks), blocks.size)  # noqa: B023
            return densities(model, features, scaling.condition, device)

        at_once = int(memory_bytes * FEATURES_SHARE / (8 * n_features(blocks.size)))
        slab = np.mean([_cut(shape, rows, blocks, first, density, at_once) for first in range(blocks.edge)], axis=0)
        yield rows, slab * np.float32(scaling.unit)
        report(rows.stop / ny)


def _cut(
    shape: tuple[int, int, int],
    rows: range,
    blocks: Blocks,
    before: int,
    density: Callable[[F32], F32],
    at_once: int,
) -> F32:
    """Rows of a volume cut into blocks the first of which start so many voxels before it.

    Args:
        density: coefficients of blocks with centres ``(n, 3)``, of about ``at_once`` blocks at a time.
    """
    nz, ny, nx = shape
    starts = [np.arange(low - before, high, blocks.edge) for low, high in ((0, nz), (rows.start, rows.stop), (0, nx))]
    z, y, x = (start + (blocks.edge - 1) / 2 - centre_index(size) for start, size in zip(starts, shape, strict=True))
    slab = np.empty([len(start) * blocks.edge for start in starts], dtype=np.float32)
    for layer in ranges(0, len(z), max(1, at_once // (len(y) * len(x)))):
        grid = np.meshgrid(z[layer.start : layer.stop], y, x, indexing="ij")
        centres = np.stack([grid[2].ravel(), grid[1].ravel(), grid[0].ravel()], axis=1).astype(np.float32)
        at = slice(layer.start * blocks.edge, layer.stop * blocks.edge)
        slab[at] = blocks.joined(density(centres), (len(layer), len(y), len(x)))
    return slab[before : before + nz, before : before + len(rows), before : before + nx]


def slab_rows(tilts: FilteredTilts, height: int, blocks: Blocks, memory_bytes: float) -> int:
    """Rows of blocks in a slab whose maps stay within their share of the memory."""
    length = tilts.images.shape[2]
    row_bytes = 4 * tilts.n_tilts * length * sum(len(s.channels) / s.step**2 for s in SCALES)
    rise = 2 * height * float(np.abs(np.sin(tilts.x_tilt)).max())
    rows = memory_bytes * MAPS_SHARE / row_bytes - rise - 2 * max(s.step for s in SCALES)
    return max(1, int(rows / blocks.edge))


def outside_range(scaling: Scaling, thickness_px: float, known: dict[str, list[float]]) -> list[str]:
    """What of a series lies outside what training saw (``known``: name -> lowest, highest), a sentence each."""
    found = dict(zip(CONDITIONS, map(float, scaling.condition), strict=True)) | {"thickness": thickness_px}
    out = []
    for name, value in found.items():
        low, high = known.get(name, (value, value))
        least, most = _allowed(name, low, high)
        if not least <= value <= most:
            ends = list(dict.fromkeys(_said(name, end) for end in (low, high)))
            out.append(f"{_said(name, value)} (trained on {' to '.join(ends)})")
    return out


def _allowed(name: str, low: float, high: float) -> tuple[float, float]:
    """Between which values a series passes for one like those of training."""
    if name == "thickness":
        return low * (1 - ROUNDING), high * (1 + ROUNDING)
    if name == "pixel size":  # a logarithm
        return low - ROUNDING, high + ROUNDING
    margin = max(OUTSIDE * (high - low), LEAST_OUTSIDE["snr" if name.startswith("snr") else name])
    return low - margin, high + margin


def _said(name: str, value: float) -> str:
    """A condition as a user would say it."""
    if name == "thickness":
        return f"{value:.0f} voxels thick"
    if name == "tilt range":
        return f"{120 * value:.0f}° from the first tilt to the last"
    if name == "tilt step":
        return f"{3 * np.exp(value):.2g}° between tilts"
    if name == "pixel size":
        return f"{REFERENCE_PIXEL_A * np.exp(value):.3g} Å/voxel"
    return f"{20 / np.log(10) * value:.0f} dB over the noise at {name.removeprefix('snr ')}"
