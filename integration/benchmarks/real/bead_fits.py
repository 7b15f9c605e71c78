"""What beads followed through the raw images say of an alignment: how well each fits one point of the specimen.

Distances are in raw px between where a bead was seen and where the alignment projects the bead's best point, so that an
alignment gains nothing from shrinking its images. What is left can be explained on trial by more freedom per tilt, a
shift, an affine map, one with a shift in proportion to depth, fitted to the beads themselves: what an alignment of that
form could reach at best. Such fits are corrected for their degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation, rotation_about_x
from integration.benchmarks.real.bead_tracks import BeadTracks

Array = NDArray[np.float64]

STEPS = 6  # of Gauss and Newton towards a bead's point: the warp is all that is not linear
FREEDOMS = ("none", "shift", "affine", "affine + depth", "quadratic + depth")
"""Of a tilt, to be fitted to the beads themselves."""
TERMS = (0, 1, 3, 4, 7)
LEAST_ON_PLANE = 4
LEAST_FOR_SLOPES = 6  # beads on a plane, for slopes of its own
STARTS = np.linspace(-0.2, 0.2, 9)  # slopes of the planes, px per px


@dataclass(frozen=True)
class BeadFit:
    """Beads' best points under an alignment and what is left.

    Attributes:
        points_px: specimen points, ``(n_beads, 3)``.
        rest_px: seen minus projected, ``(n_beads, n_tilts, 2)`` raw px turned so that y runs along the tilt axis; NaN
            where a bead was not seen.
        freedom: parameters that were fitted, gauge not counted.
    """

    points_px: Array
    rest_px: Array
    freedom: int

    @property
    def rms_px(self) -> float:
        """RMS distance over all that was seen."""
        return float(np.sqrt(np.nanmean((self.rest_px**2).sum(axis=-1))))

    @property
    def corrected_rms_px(self) -> float:
        """As `rms_px`, as it would be for beads that had no part in any fit."""
        seen = np.isfinite(self.rest_px).sum()
        return float(np.sqrt(2 * np.nansum(self.rest_px**2) / max(seen - self.freedom, 1)))

    @property
    def per_tilt_px(self) -> Array:
        """RMS distance over the beads of every tilt, ``(n_tilts,)``."""
        return np.asarray(np.sqrt(np.nanmean((self.rest_px**2).sum(axis=-1), axis=0)))

    @property
    def per_bead_px(self) -> Array:
        """RMS distance over the tilts of every bead, ``(n_beads,)``."""
        return np.asarray(np.sqrt(np.nanmean((self.rest_px**2).sum(axis=-1), axis=1)))


def fit_points(alignment: Alignment, tracks: BeadTracks) -> BeadFit:
    """Every bead's best point under an alignment."""
    n_tilts = alignment.n_tilts
    slopes = np.stack([raw_slopes(alignment, m) for m in range(n_tilts)])
    points = np.zeros((len(tracks.raw_px), 3))
    for _ in range(STEPS):
        rest = tracks.raw_px - projected(alignment, points)
        for k, here in enumerate(np.isfinite(tracks.raw_px[..., 0])):
            step = np.linalg.lstsq(slopes[here].reshape(-1, 3), rest[k, here].ravel(), rcond=None)[0]
            points[k] += step
    rest = tracks.raw_px - projected(alignment, points)
    turn = np.stack([axis_rotation(angle) for angle in alignment.rotation_deg])
    return BeadFit(points, np.einsum("mij,kmj->kmi", turn, rest), points.size)


def projected(alignment: Alignment, points: Array) -> Array:
    """Raw positions ``(n_points, n_tilts, 2)`` of specimen points ``(n_points, 3)``."""
    return np.stack([alignment.specimen_to_raw(m, points) for m in range(alignment.n_tilts)], axis=1)


def raw_slopes(alignment: Alignment, tilt: int) -> Array:
    """2 x 3 matrix from specimen to raw px of a tilt, local motion left out."""
    return np.asarray(np.linalg.inv(alignment.linear[tilt]) @ _frame(alignment, tilt)[:2])


def with_freedom(alignment: Alignment, tracks: BeadTracks, fit: BeadFit, freedom: str) -> BeadFit:
    """What is left once every tilt has some freedom more (`FREEDOMS`), fitted to the beads along with their points.

    Linear in small changes: the rests of ``fit``, in the aligned frame, are explained by moves of the points and by
    each tilt's own polynomials of where it sees them.
    """
    n_beads, n_tilts = fit.rest_px.shape[:2]
    frames = np.stack([_frame(alignment, m) for m in range(n_tilts)])
    placed = np.einsum("mij,kj->kmi", frames, fit.points_px) / max(alignment.image_size)
    terms = _terms(placed, freedom)  # (n_beads, n_tilts, n_terms)
    seen = np.isfinite(fit.rest_px[..., 0])
    n_terms = terms.shape[-1]
    design = np.zeros((n_beads, n_tilts, 2, 3 * n_beads + 2 * n_terms * n_tilts))
    for k, m in product(range(n_beads), range(n_tilts)):
        design[k, m, :, 3 * k : 3 * k + 3] = frames[m, :2]
        for axis in (0, 1):
            at = 3 * n_beads + (2 * m + axis) * n_terms
            design[k, m, axis, at : at + n_terms] = terms[k, m]
    solved = np.linalg.lstsq(design[seen].reshape(-1, design.shape[-1]), fit.rest_px[seen].ravel(), rcond=1e-9)
    rest = fit.rest_px - design @ solved[0]
    return BeadFit(fit.points_px + solved[0][: 3 * n_beads].reshape(-1, 3), rest, int(solved[2]))


def _frame(alignment: Alignment, tilt: int) -> Array:
    """3 x 3: specimen to (x, y) of the aligned image and depth along the beam."""
    angle = np.deg2rad(alignment.tilt_deg[tilt])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    return np.asarray(turn @ rotation_about_x(float(alignment.x_tilt_deg[tilt])))


def _terms(placed: Array, freedom: str) -> Array:
    """Values at ``placed`` ``(..., 3)`` of the polynomials that a freedom has, ``(..., n_terms)``."""
    x, y, depth = np.moveaxis(placed, -1, 0)
    every = np.stack([np.ones_like(x), x, y, depth, x * x, x * y, y * y], axis=-1)
    return every[..., : TERMS[FREEDOMS.index(freedom)]]


@dataclass(frozen=True)
class BeadPlanes:
    """Two planes ``z = height + slope_x x + slope_y y`` on which beads lie: the faces of the specimen.

    Attributes:
        planes: (height, slope_x, slope_y) of the lower and of the upper one, ``(2, 3)``; px and px per px.
        upper: which beads lie on the upper plane, ``(n_beads,)``.
        rest_px: RMS distance of the beads from their plane, along z.
    """

    planes: Array
    upper: NDArray[np.bool_]
    rest_px: float

    @property
    def separation_px(self) -> float:
        """Distance of the planes at the middle of the beads, across the planes."""
        low, high = self.planes
        slope = (low[1:] + high[1:]) / 2
        return float((high[0] - low[0]) / np.sqrt(1 + slope @ slope))

    @property
    def slopes_deg(self) -> Array:
        """Mean slope of the two along x and along y, degrees ``(2,)``: turns about y and about x."""
        return np.asarray(np.rad2deg(np.arctan(self.planes[:, 1:].mean(axis=0))))

    @property
    def height_px(self) -> float:
        """z of the middle between the planes, at x = y = 0."""
        return float(self.planes[:, 0].mean())


def bead_planes(points: Array) -> BeadPlanes | None:
    """The two planes that lie nearest to beads ``(n, 3)``, of many starts; None where beads are too few for two."""
    if len(points) < 2 * LEAST_ON_PLANE:
        return None
    best: BeadPlanes | None = None
    x, y, z = points.T
    for slope_x, slope_y in product(STARTS, repeat=2):
        flat = z - slope_x * x - slope_y * y
        upper = flat > (flat.min() + flat.max()) / 2
        for _ in range(20):
            if min(upper.sum(), (~upper).sum()) < LEAST_ON_PLANE:
                break
            fitted = _two_planes(points, upper)
            off = np.abs(np.stack([z - p[0] - p[1] * x - p[2] * y for p in fitted]))
            new = off[1] < off[0]
            if (new == upper).all():
                rest = float(np.sqrt(np.mean(off.min(axis=0) ** 2)))
                if best is None or rest < best.rest_px:
                    best = BeadPlanes(fitted, upper, rest)
                break
            upper = new
    return best


def _two_planes(points: Array, upper: NDArray[np.bool_]) -> Array:
    """Lower and upper plane ``(2, 3)``; their slopes are one where either has few beads."""
    x, y, z = points.T
    if min(upper.sum(), (~upper).sum()) >= LEAST_FOR_SLOPES:
        flat = np.stack([np.ones_like(x), x, y], axis=1)
        return np.stack([np.linalg.lstsq(flat[own], z[own], rcond=None)[0] for own in (~upper, upper)])
    design = np.stack([~upper, upper, x, y], axis=1).astype(np.float64)
    low, high, slope_x, slope_y = np.linalg.lstsq(design, z, rcond=None)[0]
    return np.array([[low, slope_x, slope_y], [high, slope_x, slope_y]])
