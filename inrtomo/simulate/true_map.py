"""Where every point of a simulated specimen is seen, exactly, and the alignment that comes nearest to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import rotation_about_x, specimen_to_aligned
from inrtomo.simulate.specimen_motion import SpecimenMotion

Array = NDArray[np.float64]

WARP_SPACING_PX = 16.0  # of the nodes of the nearest alignment's warp
WARP_BORDER_PX = 8.0
DEPTHS = (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)  # over which its warp is a mean, in thicknesses
SOFT_EDGE_PX = 8.0
OUTSIDE = 1e-3  # weight in that mean of what lies outside the field of view
SMOOTH_DEGREE = 4


@dataclass(frozen=True)
class TrueMap:
    """From specimen points to raw pixels: the specimen moves, is projected, and the image is moved and distorted.

    Attributes:
        recorded: angles, linear maps, shifts and (if asked for) warp of the images.
        motion: of the specimen, or None.
        radial_px: radial distortion of the recorded images at their corners, outwards; 0 for none.
    """

    recorded: Alignment
    motion: SpecimenMotion | None = None
    radial_px: float = 0.0

    @property
    def is_alignment(self) -> bool:
        """Whether `recorded` is the whole map."""
        return self.motion is None and not self.radial_px

    def specimen_to_raw(self, tilt: int, points: Array) -> Array:
        """Raw pixels ``(..., 2)`` where specimen points ``(..., 3)`` are seen in image ``tilt``."""
        points = np.asarray(points, dtype=np.float64)
        if self.motion is not None:
            points = np.asarray(self.motion.moved(tilt, points), dtype=np.float64)
        return distorted(self.recorded.specimen_to_raw(tilt, points), self.radial_px, self.recorded.image_size)

    def nearest_alignment(self, points: Array, normal: Array, thickness_px: float) -> Alignment:
        """The alignment with a dense warp that comes nearest to this map.

        An alignment's warp does not depend on depth. Motion in proportion to depth goes into the angles (about y and x)
        of the tilt; of what else differs along a ray, the warp has the mean over the part in the field of view. What is
        left is in no alignment.

        Args:
            points: specimen points ``(n, 3)`` that fill the specimen; normal: of its plane (x, y, z).
            thickness_px: of the specimen, along the normal.
        """
        if self.is_alignment:
            return self.recorded
        from inrtomo.metrics.alignment import folded_over_specimen  # scipy, which --help can do without

        recorded = self.recorded.without_warp()
        turns = np.array([self._turn_of_tilt(m, points) for m in range(recorded.n_tilts)])
        turned = replace(
            recorded, tilt_deg=recorded.tilt_deg + turns[:, 0], x_tilt_deg=recorded.x_tilt_deg + turns[:, 1]
        )
        nx, ny = recorded.image_size
        corners = np.array([[x, y] for x in (-nx / 2, nx / 2) for y in (-ny / 2, ny / 2)])
        reach = np.abs([recorded.raw_to_aligned(m, corners) for m in range(recorded.n_tilts)]).max(axis=(0, 1))
        x, y = (_nodes(float(r) + WARP_BORDER_PX) for r in reach)
        u = np.stack(np.meshgrid(x, y), axis=-1)
        half_view = np.abs(points[:, 0]).max()
        vectors = []
        for m in range(turned.n_tilts):
            total, weights = np.zeros_like(u), np.zeros(u.shape[:-1])
            for depth in DEPTHS:
                on_ray = _points_on_rays(turned, m, u, normal, depth * thickness_px)
                beyond = (np.abs(on_ray[..., 0]) - half_view) / SOFT_EDGE_PX
                weight = 1 / (1 + np.exp(np.minimum(beyond, 50))) + OUTSIDE
                raw = self.specimen_to_raw(m, on_ray)
                total += weight[..., None] * (raw @ turned.linear[m].T + turned.shift_px[m] - u)
                weights += weight
            vectors.append(total / weights[..., None])
        full = replace(turned, warp=LocalWarp(x, y, np.stack(vectors), "bicubic"))
        return folded_over_specimen(full, thickness_px)

    def _turn_of_tilt(self, tilt: int, points: Array) -> tuple[float, float]:
        """Turn (about y, about x; degrees) of a tilt whose part in proportion to depth is that of the motion."""
        recorded = self.recorded.without_warp()
        angle = np.deg2rad(recorded.tilt_deg[tilt])
        u = specimen_to_aligned(points, float(recorded.tilt_deg[tilt]))
        away = self.specimen_to_raw(tilt, points) @ recorded.linear[tilt].T + recorded.shift_px[tilt] - u
        scaled = u / np.maximum(np.abs(u).max(axis=0), 1e-9)
        smooth = np.polynomial.legendre.legvander2d(scaled[:, 0], scaled[:, 1], [SMOOTH_DEGREE] * 2)
        low = np.add.outer(np.arange(SMOOTH_DEGREE + 1), np.arange(SMOOTH_DEGREE + 1)).ravel() <= SMOOTH_DEGREE
        slope = np.linalg.lstsq(np.column_stack([smooth[:, low], points[:, 2]]), away, rcond=None)[0][-1]
        # at one place u of the image, a turn about y moves what is higher by z by z / cos t, along the image
        return float(np.rad2deg(slope[0] * np.cos(angle))), float(np.rad2deg(slope[1]))


def _points_on_rays(alignment: Alignment, tilt: int, u: Array, normal: Array, height_px: float) -> Array:
    """Points ``(..., 3)`` that project to ``u`` ``(..., 2)``, ``height_px`` above the plane with a normal."""
    angle = np.deg2rad(alignment.tilt_deg[tilt])
    c, s = np.cos(angle), np.sin(angle)
    level = rotation_about_x(float(alignment.x_tilt_deg[tilt]))
    on_ray = np.stack([u[..., 0] * c, u[..., 1], u[..., 0] * s], axis=-1) @ level
    along = np.array([-s, 0.0, c]) @ level
    distance = (height_px - on_ray @ normal) / (along @ normal)
    return np.asarray(on_ray + distance[..., None] * along)


def distorted(raw: Array, radial_px: float, size: tuple[int, int]) -> Array:
    """Radially distorted positions of raw points ``(..., 2)``: the corners of the image move out by ``radial_px``."""
    return raw * (1 + _strength(radial_px, size) * (raw**2).sum(axis=-1, keepdims=True))


def undistorted(raw: Array, radial_px: float, size: tuple[int, int]) -> Array:
    """Inverse of `distorted`, by Newton's method."""
    strength = _strength(radial_px, size)
    if not strength:
        return raw
    distance = np.linalg.norm(raw, axis=-1, keepdims=True)
    r = distance.copy()
    for _ in range(10):
        r -= (r + strength * r**3 - distance) / (1 + 3 * strength * r**2)
    return np.asarray(raw * np.divide(r, distance, out=np.ones_like(r), where=distance > 0))


def _strength(radial_px: float, size: tuple[int, int]) -> float:
    return radial_px / float(np.hypot(*size) / 2) ** 3


def _nodes(half: float) -> Array:
    return np.linspace(-half, half, int(np.ceil(2 * half / WARP_SPACING_PX)) + 1)
