"""Bundle adjustment: one alignment from the displacements of all tracks.

Solves, by Gauss-Newton on the tracks' joint likelihood, for the shift of every tilt, one tilt axis, small per-tilt
affine motion, local motion on a grid of control points, and the height of every track. Priors hold what the data
do not: their widths say how large each kind of motion may be, and they fix the gauge (translation of the
specimen). The normal equations are never formed: conjugate gradients need only products with the tracks'
information matrices, and blocks per tilt are a good preconditioner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg
from numpy.typing import NDArray

from inrtomo.alignment import interpolation_matrix

Array = NDArray[Any]

AXIS_SD_RAD = np.deg2rad(20.0)
CG_TOLERANCE = 1e-3
CG_STEPS = 300


@dataclass(frozen=True)
class MotionModel:
    """The kinds of motion of an image, as displacements of its content in aligned px.

    Attributes:
        half_size: half of the field of view in aligned x and y, px.
        nodes: control points per side for local motion, over the field of view; 0 for none.
        shift_sd, affine_sd, rotation_sd, local_sd: widths of the priors, px at the border of the image.
    """

    half_size: tuple[float, float]
    nodes: int
    shift_sd: float
    affine_sd: float
    rotation_sd: float
    local_sd: float

    @property
    def n_basis(self) -> int:
        return 3 + self.nodes**2

    def basis(self, u: Array) -> Array:
        """Values ``(..., n_basis)`` at aligned positions: 1, x, y (unit size at the border), control points."""
        x, y = u[..., 0] / self.half_size[0], u[..., 1] / self.half_size[1]
        affine = np.stack([np.ones_like(x), x, y], axis=-1)
        if not self.nodes:
            return affine
        at = np.linspace(-1, 1, self.nodes)
        wx = interpolation_matrix(at, x.ravel(), "bicubic")
        wy = interpolation_matrix(at, y.ravel(), "bicubic")
        local = (wy[:, :, None] * wx[:, None, :]).reshape(*x.shape, self.nodes**2)
        return np.concatenate([affine, local], axis=-1)

    def precision(self) -> Array:
        """Inverse prior covariance of one tilt's coefficients (basis, x | y), ``(2 n_basis, 2 n_basis)``."""
        n = self.n_basis
        variance = np.full(n, self.local_sd**2)
        variance[:3] = self.shift_sd**2, self.affine_sd**2, self.affine_sd**2
        out = np.diag(np.tile(1 / variance, 2))
        # a rotation moves the x-part along y against the y-part along x
        x_along_y, y_along_x = 2, n + 1
        r = self.rotation_sd**2
        pair = np.linalg.inv(np.array([[variance[2] + r, -r], [-r, variance[1] + r]]))
        out[np.ix_([x_along_y, y_along_x], [x_along_y, y_along_x])] = pair
        return out


@dataclass(frozen=True)
class Motion:
    """What the bundle adjustment refines, about a fixed start (aligned px).

    Attributes:
        coefficients: ``(n_tilts, 2, n_basis)`` of the displacement in x and y.
        axis_rad: rotation common to all images.
        height: ``(n_tracks,)`` z of the tracks.
    """

    coefficients: Array
    axis_rad: float
    height: Array

    def displacement(self, model: MotionModel, u: Array) -> Array:
        """Displacement ``(n, n_tilts, 2)`` at the positions ``u`` of the same shape."""
        local = np.einsum("pmb,mcb->pmc", model.basis(u), self.coefficients)
        return np.asarray(local + self.axis_rad * np.stack([-u[..., 1], u[..., 0]], axis=-1))


def solve(
    gradient: Array,
    information: Array,
    u: Array,
    tilt_deg: Array,
    motion: Motion,
    model: MotionModel,
    height_sd: Array,
    largest_px: float = 3.0,
) -> Motion:
    """One Gauss-Newton step.

    Args:
        gradient: ``(n_tracks, n_tilts, 2)`` slope of the log-likelihood against the views' displacements.
        information: ``(n_tracks, 2, n_tilts, n_tilts)`` its curvature, x and y.
        u: aligned positions of the tracks ``(n_tracks, n_tilts, 2)``.
        height_sd: ``(n_tracks,)`` width of the prior on each track's height about 0, px.
        largest_px: the step is shortened when views would move by more.
    """
    n_tracks, n_tilts = u.shape[:2]
    values = model.basis(u)
    sine = np.sin(np.deg2rad(tilt_deg))
    turned = np.stack([-u[..., 1], u[..., 0]], axis=-1)
    n_motion = n_tilts * 2 * model.n_basis
    precision = model.precision()

    def split(vector: Array) -> tuple[Array, float, Array]:
        return vector[:n_motion].reshape(n_tilts, 2, model.n_basis), vector[n_motion], vector[n_motion + 1 :]

    def views(vector: Array) -> Array:
        coefficients, axis, height = split(vector)
        out = np.einsum("pmb,mcb->pmc", values, coefficients, optimize=True) + axis * turned
        out[..., 0] += height[:, None] * sine
        return out

    def parameters(per_view: Array) -> Array:
        coefficients = np.einsum("pmb,pmc->mcb", values, per_view, optimize=True)
        return np.concatenate([coefficients.ravel(), [(turned * per_view).sum()], per_view[..., 0] @ sine])

    def prior(vector: Array) -> Array:
        coefficients, axis, height = split(vector)
        pulled = coefficients.reshape(n_tilts, -1) @ precision
        return np.concatenate([pulled.ravel(), [axis / AXIS_SD_RAD**2], height / height_sd**2])

    def normal(vector: Array) -> Array:
        per_view = views(vector)
        weighted = np.stack([np.matmul(information[:, c], per_view[:, :, c, None])[..., 0] for c in range(2)], axis=-1)
        return parameters(weighted) + prior(vector)

    diagonal = np.einsum("pcmm->pmc", information)
    blocks = np.zeros((n_tilts, 2, model.n_basis, 2, model.n_basis))
    for c in range(2):
        blocks[:, c, :, c] = np.einsum("pma,pm,pmb->mab", values, diagonal[..., c], values, optimize=True)
    inverse = np.linalg.inv(blocks.reshape(n_tilts, 2 * model.n_basis, -1) + precision)
    axis_scale = 1 / ((turned**2 * diagonal).sum() + 1 / AXIS_SD_RAD**2)
    height_scale = 1 / (diagonal[..., 0] @ sine**2 + 1 / height_sd**2)

    def precondition(vector: Array) -> Array:
        coefficients, axis, height = split(vector)
        first = np.einsum("mab,mb->ma", inverse, coefficients.reshape(n_tilts, -1))
        return np.concatenate([first.ravel(), [axis * axis_scale], height * height_scale])

    current = np.concatenate([motion.coefficients.ravel(), [motion.axis_rad], motion.height])
    n = len(current)
    step, _ = scipy.sparse.linalg.cg(
        scipy.sparse.linalg.LinearOperator((n, n), matvec=normal, dtype=np.float64),
        parameters(gradient) - prior(current),
        rtol=CG_TOLERANCE,
        maxiter=CG_STEPS,
        M=scipy.sparse.linalg.LinearOperator((n, n), matvec=precondition, dtype=np.float64),
    )
    return limited_step(current, step, views(step), largest_px, n_tilts, model)


def limited_step(
    current: Array, step: Array, moved_px: Array, largest_px: float, n_tilts: int, model: MotionModel
) -> Motion:
    """The motion after a step, or after the part of it that moves no more than a few views by over ``largest_px``.

    Args:
        current, step: motion's coefficients, axis and heights in a row.
        moved_px: ``(n_tracks, n_tilts, 2)`` by which the whole step would move the views.
    """
    largest = float(np.percentile(np.abs(moved_px), 98))
    after = current + min(1.0, largest_px / max(largest, 1e-9)) * step
    n_motion = n_tilts * 2 * model.n_basis
    coefficients = after[:n_motion].reshape(n_tilts, 2, model.n_basis)
    return Motion(coefficients, float(after[n_motion]), after[n_motion + 1 :])
