"""Gold beads as witnesses: how well each bead's images in all tilts fit one point of the specimen.

inr-align gives beads no weight where it has undone a transfer function, so they tell of its joint fit independently.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates, specimen_to_aligned

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
BeadTrack = dict[int, Array]
"""Raw position (x, y) of one bead in every tilt it was found in."""

SMALL_PX, LARGE_PX = 2.0, 6.0  # sd of the two Gaussians whose difference a bead answers to
BRIGHTEST = 40  # candidates of a tilt
BORDER_PX = 8
NEAR_TILTS = 10  # from whose positions the next one is foretold
REACH_PX = 4.0  # from where it is foretold
FIRST_REACH_PX = 2.5
HEIGHTS_PX = np.arange(-250.0, 251.0, 10.0)  # tried while a bead's height is not known
LEAST_SHARE = 0.8  # of the tilts


def bead_tracks(images: F32, alignment: Alignment) -> list[BeadTrack]:
    """Beads followed from the least tilted image outwards with the help of an alignment good to a few px.

    Args:
        images: ``(n, ny, nx)`` protein (and gold) bright.
    """
    found = [_candidates(image) for image in images]
    order = np.argsort(np.abs(alignment.tilt_deg))
    first = int(order[0])
    tracks: list[BeadTrack] = []
    for start in found[first]:
        track: BeadTrack = {first: start}
        for side in (1, -1):
            for tilt in order[1:]:
                if side * (tilt - first) > 0:
                    _follow(track, int(tilt), found[int(tilt)], alignment, first)
        known = any(np.allclose(track[t], other[t]) for other in tracks for t in set(track) & set(other))
        if len(track) >= LEAST_SHARE * len(images) and not known:
            tracks.append(track)
    return tracks


def residual_px(alignment: Alignment, tracks: Iterable[BeadTrack]) -> Array:
    """RMS distance (aligned px, local map included) between every bead and the projections of its best point."""
    out = []
    for track in tracks:
        tilts = sorted(track)
        seen = np.array([alignment.raw_to_aligned(t, track[t][None])[0] for t in tilts])
        slopes = np.array([_slopes(alignment, t) for t in tilts])
        point = np.linalg.lstsq(slopes.reshape(-1, 3), seen.ravel(), rcond=None)[0]
        out.append(np.sqrt(((seen - slopes @ point) ** 2).sum(1).mean()))
    return np.array(out)


def _candidates(image: F32) -> Array:
    """Positions (x, y; raw px from the centre) of the most bead-like spots."""
    answer = ndimage.gaussian_filter(image, SMALL_PX) - ndimage.gaussian_filter(image, LARGE_PX)
    answer[:BORDER_PX], answer[-BORDER_PX:], answer[:, :BORDER_PX], answer[:, -BORDER_PX:] = 0, 0, 0, 0
    rows, columns = np.nonzero((answer == ndimage.maximum_filter(answer, 11)) & (answer > 0))
    best = np.argsort(-answer[rows, columns])[:BRIGHTEST]
    x, y = (centred_coordinates(n) for n in image.shape[::-1])
    positions = []
    for row, column in zip(rows[best], columns[best], strict=True):
        near = slice(row - 4, row + 5), slice(column - 4, column + 5)
        weight = np.maximum(answer[near] - np.median(answer[near]), 0)
        weight /= weight.sum()
        positions.append([(weight * x[near[1]]).sum(), (weight * y[near[0]][:, None]).sum()])
    return np.array(positions)


def _slopes(alignment: Alignment, tilt: int) -> Array:
    """2 x 3 matrix from specimen to aligned px."""
    return specimen_to_aligned(np.eye(3), float(alignment.tilt_deg[tilt]), float(alignment.x_tilt_deg[tilt])).T


def _follow(track: BeadTrack, tilt: int, found: Array, alignment: Alignment, first: int) -> None:
    """Add the candidate of a tilt that lies where the track leads, if there is one."""
    near = sorted(track, key=lambda t: abs(t - tilt))[:NEAR_TILTS]
    if len(near) < 4:
        here = alignment.raw_to_aligned(first, track[first][None])[0]
        slopes = _slopes(alignment, first)
        points = [np.linalg.solve(slopes[:, :2], here - slopes[:, 2] * z).tolist() + [z] for z in HEIGHTS_PX]
        reach = FIRST_REACH_PX
    else:
        seen = np.concatenate([alignment.raw_to_aligned(t, track[t][None])[0] for t in near])
        points = [np.linalg.lstsq(np.concatenate([_slopes(alignment, t) for t in near]), seen, rcond=None)[0].tolist()]
        reach = REACH_PX
    foretold = alignment.specimen_to_raw(tilt, np.array(points))
    distance = np.linalg.norm(found[None] - foretold[:, None], axis=-1).min(axis=0)
    if distance.min() < reach:
        track[tilt] = found[int(distance.argmin())]
