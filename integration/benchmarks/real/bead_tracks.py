"""Gold beads followed through the raw images by themselves, so that they can witness about any alignment.

No alignment has a part in it: only the nominal tilt angles and tilt axis. Bead-like spots of every image are found;
going outwards from the least tilted image, the constellation of beads is laid over the spots of the next image by
the shift that explains most of them, and each bead's point in the specimen and each image's shift are fitted anew.
Last, every bead's centre is measured in every image by fitting a blurred disc, with the discs of its neighbours taken
away and pixels that do not look like it weighed down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, special

from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates, specimen_to_aligned

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]

SMALL_PX, LARGE_PX = 2.0, 6.0  # sd of the two Gaussians whose difference a bead answers to
BRIGHTEST = 40  # spots of an image
BORDER_PX = 8
REACH_PX = 4.0  # from where a bead is foretold
FIRST_REACH_PX = 9.0  # along x, while heights are known to no better than HEIGHT_PX
FIRST_TILTS = 3
HEIGHT_PX = 100.0  # sd of the heights of beads before anything is known
LEAST_SHARE = 0.8  # of the images in which a bead must have a spot
SAME_PX = 4.0  # spots nearer than this are one bead
ROUNDS = 5  # of points and shifts in turn
WINDOW_PX = 11  # half side of the window in which a centre is measured
BLUR_PX = 1.2
LEAST_HEIGHT = 0.35  # of the bead's median height over the images
ROBUST_SD = 2.0  # pixels farther from the disc than so many noise sd count less


@dataclass(frozen=True)
class BeadTracks:
    """Where beads were seen.

    Attributes:
        raw_px: positions (x, y), raw px from the centre, ``(n_beads, n_tilts, 2)``; NaN where a bead was not found.
        radius_px: of every bead's disc, ``(n_beads,)``.
    """

    raw_px: Array
    radius_px: Array

    @property
    def complete(self) -> Bools:
        """Beads that were found in every image, ``(n_beads,)``."""
        return np.asarray(np.isfinite(self.raw_px).all(axis=(1, 2)))

    def only(self, beads: Bools) -> BeadTracks:
        """Some of the beads."""
        return BeadTracks(self.raw_px[beads], self.radius_px[beads])


def find_beads(images: F32, tilt_deg: Array, axis_deg: float) -> BeadTracks:
    """Every bead that is seen in the least tilted image and in most others.

    Args:
        images: raw images ``(n_tilts, ny, nx)``, background 0, gold bright.
        tilt_deg: nominal tilt angles, ``(n_tilts,)``.
        axis_deg: nominal tilt axis, IMOD's sense.
    """
    n, ny, nx = images.shape
    nominal = Alignment.identity(np.asarray(tilt_deg, dtype=np.float64), (nx, ny), axis_deg)
    spots = [nominal.raw_to_aligned(m, bead_like_spots(image)) for m, image in enumerate(images)]
    seen, foretold = _followed(spots, nominal.tilt_deg)
    seen = np.where(np.isfinite(seen), seen, foretold)
    start = np.stack([nominal.aligned_to_raw(m, seen[:, m]) for m in range(n)], axis=1)
    return measured_centres(images, start)


def bead_like_spots(image: F32) -> Array:
    """Positions (x, y; raw px from the centre) of the most bead-like spots ``(n, 2)``, whole pixels."""
    answer = ndimage.gaussian_filter(image, SMALL_PX) - ndimage.gaussian_filter(image, LARGE_PX)
    answer[:BORDER_PX], answer[-BORDER_PX:], answer[:, :BORDER_PX], answer[:, -BORDER_PX:] = 0, 0, 0, 0
    rows, columns = np.nonzero((answer == ndimage.maximum_filter(answer, 7)) & (answer > 0))
    best = np.argsort(-answer[rows, columns])[:BRIGHTEST]
    x, y = (centred_coordinates(n) for n in image.shape[::-1])
    return np.stack([x[columns[best]], y[rows[best]]], axis=-1)


def _followed(spots: list[Array], tilt_deg: Array) -> tuple[Array, Array]:
    """Aligned positions (without shifts) of beads ``(n_beads, n_tilts, 2)``: as seen (NaN: not), and as foretold."""
    order = np.argsort(np.abs(tilt_deg), kind="stable")
    first = int(order[0])
    n, n_tilts = len(spots[first]), len(spots)
    seen = np.full((n, n_tilts, 2), np.nan)
    seen[:, first] = spots[first]
    shift = np.zeros((n_tilts, 2))
    points = _points(seen, shift, tilt_deg)
    for rank, m in enumerate(map(int, order[1:])):
        reach = np.array([FIRST_REACH_PX if rank < FIRST_TILTS else REACH_PX, REACH_PX])
        trusted = np.isfinite(seen[..., 0]).sum(axis=1) >= LEAST_SHARE * rank
        at = specimen_to_aligned(points, float(tilt_deg[m]))
        near = min(order[: rank + 1], key=lambda k: abs(tilt_deg[k] - tilt_deg[m]))
        shift[m] = _best_shift(at[trusted], spots[m], reach, shift[near])
        seen[:, m] = _nearest(at + shift[m], spots[m], reach)
        for _ in range(ROUNDS):
            shift[m] += np.nanmedian(seen[trusted, m] - at[trusted] - shift[m], axis=0)
            points = _points(seen, shift, tilt_deg)
            at = specimen_to_aligned(points, float(tilt_deg[m]))
        seen[:, m] = _nearest(at + shift[m], spots[m], reach)
    keep = np.isfinite(seen[..., 0]).sum(axis=1) >= LEAST_SHARE * n_tilts
    seen, points = seen[keep], points[keep]
    for _ in range(10 * ROUNDS):
        at = np.stack([specimen_to_aligned(points, float(t)) for t in tilt_deg], axis=1)
        shift = np.nanmedian(seen - at, axis=0)
        points = _points(seen, shift, tilt_deg)
    at = np.stack([specimen_to_aligned(points, float(t)) for t in tilt_deg], axis=1) + shift
    seen = np.stack([_nearest(at[:, m], spots[m], np.full(2, REACH_PX)) for m in range(n_tilts)], axis=1)
    return seen, at


def _points(seen: Array, shift: Array, tilt_deg: Array) -> Array:
    """Best specimen points ``(n_beads, 3)``; heights are drawn to 0 as far as nothing is known of them."""
    tilt = np.deg2rad(tilt_deg)
    slopes = np.stack([np.cos(tilt), np.sin(tilt)], axis=-1)
    out = np.empty((len(seen), 3))
    for k, bead in enumerate(seen - shift):
        here = np.isfinite(bead[:, 0])
        normal = slopes[here].T @ slopes[here] + np.diag([0.0, 1 / HEIGHT_PX**2])
        x, z = np.linalg.solve(normal, slopes[here].T @ bead[here, 0])
        out[k] = x, np.median(bead[here, 1]), z
    return out


def _best_shift(at: Array, spots: Array, reach: Array, near: Array) -> Array:
    """The shift under which most points have a spot within reach; of equals, the nearest to that of the neighbour."""
    tried = (spots[None] - at[:, None]).reshape(-1, 2)
    off = np.abs(at[None, :, None] + tried[:, None, None] - spots[None, None])  # (tried, points, spots, 2)
    hits = (off < reach).all(axis=-1).any(axis=-1).sum(axis=1)
    best = tried[hits >= hits.max() - 1]
    middle = np.median(best, axis=0)
    best = best[np.abs(best - middle).max(axis=1) < 3 * reach.max()] if len(best) > 2 else best
    return np.asarray(best[np.argmin(np.linalg.norm(best - near, axis=1))])


def _nearest(at: Array, spots: Array, reach: Array) -> Array:
    """For every point the nearest spot within reach, each spot for one point only; NaN where there is none."""
    out = np.full(at.shape, np.nan)
    off = (spots[None] - at[:, None]) / reach
    distance = np.where((np.abs(off) < 1).all(axis=-1), np.linalg.norm(off, axis=-1), np.inf)
    while np.isfinite(distance).any():
        k, s = np.unravel_index(int(np.argmin(distance)), distance.shape)
        out[k] = spots[s]
        distance[k], distance[:, s] = np.inf, np.inf
    return out


def measured_centres(images: F32, start: Array) -> BeadTracks:
    """Sub-pixel centres of beads near the starting positions ``(n_beads, n_tilts, 2)``, raw px from the centre.

    NaN where the disc has less than `LEAST_HEIGHT` of the bead's usual height, has run away from its start, or where
    two beads have become one.
    """
    n_beads, n_tilts = start.shape[:2]
    ny, nx = images.shape[1:]
    inside: Bools = np.asarray((np.abs(start) < np.array([nx, ny]) / 2 - BORDER_PX).all(axis=-1))
    radius = np.full(n_beads, 4.0)
    discs = np.full((n_beads, n_tilts, 4), np.nan)  # x, y, radius, height
    discs[..., :2], discs[..., 2], discs[..., 3] = start, 4.0, 0.0
    for free_radius in (True, True, False):
        new = discs.copy()
        for m in range(n_tilts):
            for k in np.flatnonzero(inside[:, m]):
                others = [discs[j, m] for j in np.flatnonzero(inside[:, m]) if j != k and discs[j, m, 3] > 0]
                new[k, m] = _fitted_disc(images[m], start[k, m], discs[k, m], others, radius[k], free_radius)
        discs = new
        radius = np.array([np.median(d[i, 2]) if i.any() else 0.0 for d, i in zip(discs, inside, strict=True)])
        discs[..., 2] = radius[:, None]
    found = np.asarray(inside & (np.linalg.norm(discs[..., :2] - start, axis=-1) < REACH_PX + 1))
    usual = np.array([np.median(d[i, 3]) if i.any() else 0.0 for d, i in zip(discs, inside, strict=True)])
    found &= discs[..., 3] > LEAST_HEIGHT * usual[:, None]
    apart = np.linalg.norm(discs[:, None, :, :2] - discs[None, :, :, :2], axis=-1)
    apart[np.arange(n_beads), np.arange(n_beads)] = np.inf
    found &= apart.min(axis=1, initial=np.inf) > SAME_PX
    return BeadTracks(np.where(found[..., None], discs[..., :2], np.nan), radius)


def disc(x: Array, y: Array, centre_x: float, centre_y: float, radius: float) -> Array:
    """A disc of height 1 with a blurred rim at positions x, y (broadcast)."""
    distance = np.hypot(x - centre_x, y - centre_y)
    return np.asarray(0.5 * special.erfc((distance - radius) / (np.sqrt(2) * BLUR_PX)))


def _fitted_disc(image: F32, start: Array, now: Array, others: list[Array], radius: float, free_radius: bool) -> Array:
    """Centre (x, y), radius and height of the bead at ``now`` on a sloping ground, without its neighbours' discs."""
    ny, nx = image.shape
    middle = np.round(start + [(nx - 1) / 2, (ny - 1) / 2]).astype(int)
    columns = np.arange(max(0, middle[0] - WINDOW_PX), min(nx, middle[0] + WINDOW_PX + 1))
    rows = np.arange(max(0, middle[1] - WINDOW_PX), min(ny, middle[1] + WINDOW_PX + 1))
    x, y = (columns - (nx - 1) / 2)[None, :], (rows - (ny - 1) / 2)[:, None]
    values = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    for other in others:
        values = values - other[3] * disc(x, y, *other[:3])
    ground = np.median(values)
    noise = 1.4826 * float(np.median(np.abs(values - ground))) + 1e-12
    height = now[3] or float(ndimage.gaussian_filter(values, 1.0).max() - ground)
    # what lies beyond the window's circle belongs to nobody
    weight = (np.hypot(x - start[0], y - start[1]) <= WINDOW_PX) / (ROBUST_SD * noise)
    dx, dy = np.broadcast_arrays(x - start[0], y - start[1])
    ones = np.ones(values.shape)

    def misfit(p: Array) -> Array:
        model = p[3] * disc(x, y, *p[:3]) + p[4] + p[5] * dx + p[6] * dy
        return np.asarray((weight * (model - values)).ravel())

    def slopes(p: Array) -> Array:
        distance = np.maximum(np.hypot(x - p[0], y - p[1]), 1e-6)
        rim = p[3] * np.exp(-(((distance - p[2]) / BLUR_PX) ** 2) / 2) / (np.sqrt(2 * np.pi) * BLUR_PX)
        parts = [rim * (x - p[0]) / distance, rim * (y - p[1]) / distance, rim * free_radius, disc(x, y, *p[:3])]
        return np.stack([(weight * part).ravel() for part in (*parts, ones, dx, dy)], axis=1)

    first = [now[0], now[1], radius, height, ground, 0.0, 0.0]
    fit = optimize.least_squares(misfit, first, slopes, loss="soft_l1", x_scale="jac", ftol=1e-6, xtol=1e-5).x
    return np.asarray(fit[:4])
