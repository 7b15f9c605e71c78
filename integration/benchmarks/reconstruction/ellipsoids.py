"""Specimens made of ellipsoids: their density on voxels, and their projections in closed form.

No projector takes part in the images, so no reconstruction method can know the one that made them. A shell is an
ellipsoid and a smaller one of opposite density within it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from inrtomo.geometry import centred_coordinates

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

SAMPLES = 3  # along each side of a pixel or voxel, whose mean is what counts
TRIES = 200  # at finding room for one more


@dataclass(frozen=True)
class Ellipsoids:
    """Solid ellipsoids; where they overlap their densities add up.

    Attributes:
        centre: ``(n, 3)`` (x, y, z), raw px from the specimen's centre.
        axes: ``(n, 3, 3)``: rows are the principal directions over their semi-axes, so ``|axes (p - centre)| <= 1``
            inside.
        density: ``(n,)``.
    """

    centre: Array
    axes: Array
    density: Array

    @classmethod
    def shells(cls, centre: Array, semi_axes: Array, wall: Array, density: Array, turn: Rotation) -> Ellipsoids:
        """Hollow ones: outer ``semi_axes`` ``(n, 3)``, ``wall`` px thick along every axis, ``density`` in the wall."""
        directions = turn.as_matrix().transpose(0, 2, 1)
        outer, inner = (directions / s[:, :, None] for s in (semi_axes, semi_axes - wall[:, None]))
        return cls(np.tile(centre, (2, 1)), np.concatenate([outer, inner]), np.concatenate([density, -density]))

    def volume(self, shape: tuple[int, int, int]) -> F32:
        """Mean density of every voxel of a volume ``[z, y, x]``."""
        part = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
        at = [(centred_coordinates(n)[:, None] + part).ravel() for n in shape]
        total = np.zeros([n * SAMPLES for n in shape], dtype=np.float32)
        for centre, axes, density in zip(self.centre, self.axes, self.density, strict=True):
            reach = np.linalg.norm(np.linalg.inv(axes), axis=1)
            box = tuple(
                slice(*np.searchsorted(p, (c - r, c + r)))
                for p, c, r in zip(at, centre[::-1], reach[::-1], strict=True)
            )
            z, y, x = (p[b] - c for p, b, c in zip(at, box, centre[::-1], strict=True))
            scaled = (
                axes[:, 0, None, None, None] * x
                + axes[:, 1, None, None, None] * y[:, None]
                + axes[:, 2, None, None, None] * z[:, None, None]
            )
            total[box] += np.float32(density) * ((scaled**2).sum(axis=0) <= 1)
        nz, ny, nx = shape
        mean = total.reshape(nz, SAMPLES, ny, SAMPLES, nx, SAMPLES).mean(axis=(1, 3, 5), dtype=np.float64)
        return mean.astype(np.float32)

    def images(self, tilt_deg: Array, size: tuple[int, int]) -> F32:
        """Projections ``(n_tilts, ny, nx)`` along the untilted axis y: mean over each pixel of density x px of path."""
        nx, ny = size
        part = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
        u, v = ((centred_coordinates(n)[:, None] + part).ravel() for n in (nx, ny))
        out = np.empty((len(tilt_deg), ny, nx), dtype=np.float32)
        for m, tilt in enumerate(np.deg2rad(tilt_deg)):
            dense = np.zeros((len(v), len(u)))
            # the ray through (u, v): (u cos t, v, u sin t) + s (-sin t, 0, cos t)
            along = np.array([-np.sin(tilt), 0.0, np.cos(tilt)])
            across = np.array([np.cos(tilt), 0.0, np.sin(tilt)])
            for centre, axes, density in zip(self.centre, self.axes, self.density, strict=True):
                near = float(np.linalg.norm(np.linalg.inv(axes), 2))  # the longest semi-axis
                cols = slice(*np.searchsorted(u, (centre @ across - near, centre @ across + near)))
                rows = slice(*np.searchsorted(v, (centre[1] - near, centre[1] + near)))
                d, e, f = axes @ along, axes @ across, axes[:, 1]
                start = (
                    e * (u[cols] - centre @ across)[None, :, None]
                    + f * (v[rows] - centre[1])[:, None, None]
                    - d * (centre @ along)
                )
                a, b, c = d @ d, start @ d, (start**2).sum(axis=-1) - 1
                dense[rows, cols] += density * 2 * np.sqrt(np.maximum(b**2 - a * c, 0)) / a
            out[m] = dense.reshape(ny, SAMPLES, nx, SAMPLES).mean(axis=(1, 3))
        return out


def apart(
    random: np.random.Generator, count: int, shape: tuple[int, int, int], radius: tuple[float, float]
) -> tuple[Array, Array]:
    """Up to ``count`` spheres at random in a box ``[z, y, x]`` without touching: centres (x, y, z) and radii.

    Large ones are placed first; those for which there is no room are left out.
    """
    radii = np.sort(random.uniform(*radius, count))[::-1]
    half = np.array(shape[::-1]) / 2
    centres: list[Array] = []
    kept: list[float] = []
    for r in radii:
        for _ in range(TRIES):
            at = random.uniform(-1, 1, 3) * (half - r)
            if all(np.linalg.norm(at - c) > r + q for c, q in zip(centres, kept, strict=True)):
                centres.append(at)
                kept.append(float(r))
                break
    return np.array(centres), np.array(kept)


def hollow_spheres(seed: int, shape: tuple[int, int, int], count: int = 40) -> Ellipsoids:
    """Hollow spheres of density 1: radii from 0.13 to 0.4 of the least side, walls 0.06 of it and 1.5 px or more."""
    random = np.random.default_rng(seed)
    side = min(shape)
    centre, radius = apart(random, count, shape, (0.13 * side, 0.4 * side))
    wall = np.full(len(radius), max(1.5, 0.06 * side))
    return Ellipsoids.shells(
        centre, np.repeat(radius[:, None], 3, axis=1), wall, np.ones(len(radius)), Rotation.identity(len(radius))
    )


def ellipsoid_shells(seed: int, edge: int, count: int = 40) -> Ellipsoids:
    """Shells in a cube: largest semi-axes 0.06 to 0.16 of the edge, the others 0.6 to 1 of that, densities 0.3 to 1.

    Walls are a quarter of the least semi-axis and 1.5 px or more.
    """
    random = np.random.default_rng(seed)
    centre, radius = apart(random, count, (edge, edge, edge), (0.06 * edge, 0.16 * edge))
    n = len(radius)
    semi = radius[:, None] * np.column_stack([np.ones(n), random.uniform(0.6, 1, (n, 2))])
    wall = np.maximum(1.5, 0.25 * semi.min(axis=1))
    return Ellipsoids.shells(centre, semi, wall, random.uniform(0.3, 1, n), Rotation.random(n, rng=random))
