"""All alignments in one frame: level between the two faces that the beads show, so that volumes can be compared.

An alignment knows neither where the specimen lies nor how it is turned. The beads' points tell: those of the first
alignment are laid level, those of every other over them by a rigid motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from inrtomo.alignment import Alignment
from inrtomo.metrics.alignment import RigidMotion, in_frame_of
from integration.benchmarks.real.bead_fits import bead_planes, fit_points
from integration.benchmarks.real.bead_tracks import BeadTracks

Array = NDArray[np.float64]

ROUNDS = 4
"""An x-tilt is taken to be small where a frame is changed: once more from there."""


@dataclass(frozen=True)
class Placed:
    """An alignment in the common frame.

    Attributes:
        alignment: in that frame.
        points_px: the beads' points in it, ``(n_beads, 3)``.
        motion: from the common frame to what is left to go to this alignment's: a turn about z, which no alignment
            can take up, and next to nothing else.
        apart_px: RMS distance of its beads from the common ones after that motion.
    """

    alignment: Alignment
    points_px: Array
    motion: RigidMotion
    apart_px: float


def levelled_by_beads(alignment: Alignment, tracks: BeadTracks) -> Alignment:
    """The alignment with the two faces that its beads show level and their middle at z = 0.

    As it is where the beads are too few to show faces.
    """
    for _ in range(ROUNDS):
        planes = bead_planes(fit_points(alignment, tracks).points_px)
        if planes is None:
            return alignment
        slope_x, slope_y = planes.planes[:, 1:].mean(axis=0)
        normal = np.array([-slope_x, -slope_y, 1.0]) / np.sqrt(1 + slope_x**2 + slope_y**2)
        axis = np.cross([0.0, 0.0, 1.0], normal)
        sine = float(np.linalg.norm(axis))
        turn = Rotation.from_rotvec(axis / max(sine, 1e-12) * np.arcsin(sine)).as_matrix()
        alignment = in_frame_of(alignment, RigidMotion(turn, np.array([0.0, 0.0, planes.height_px])))
    return alignment


def placed_like(reference: Array, alignment: Alignment, tracks: BeadTracks) -> Placed:
    """An alignment with its beads laid over the reference's points ``(n_beads, 3)``."""
    for _ in range(ROUNDS):
        motion = rigid_motion(reference, fit_points(alignment, tracks).points_px)
        alignment = in_frame_of(alignment, motion)
    points = fit_points(alignment, tracks).points_px
    motion = rigid_motion(reference, points)
    apart = float(np.sqrt(((motion(reference) - points) ** 2).sum(axis=1).mean()))
    return Placed(alignment, points, motion, apart)


def rigid_motion(reference: Array, points: Array) -> RigidMotion:
    """The motion that takes reference points ``(n, 3)`` nearest to points ``(n, 3)``, by least squares."""
    middle, own = reference.mean(axis=0), points.mean(axis=0)
    turn, _ = Rotation.align_vectors(points - own, reference - middle)
    rotation = turn.as_matrix()
    return RigidMotion(rotation, own - rotation @ middle)
