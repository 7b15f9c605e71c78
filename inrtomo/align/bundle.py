"""Bundle adjustment: one alignment from the displacements of all tracks.

Solves, by Gauss-Newton on the tracks' joint likelihood, for the shift of every tilt, one tilt axis, small per-tilt
affine and local motion (polynomials of the aligned position, held by priors whose widths are estimated from the
data), and the height of every track. The gauge (translation of the specimen) is held by the priors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray[Any]

LOOSE_PX = 30.0
DEGREES = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
POWERS = np.array([[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2], [3, 0], [2, 1], [1, 2], [0, 3]])


def basis(u: Array, half_size: tuple[float, float], degree: int) -> Array:
    """Polynomials ``(..., n)`` of the aligned position, about unit size in the image (Legendre products)."""
    x, y = np.clip(u[..., 0] / half_size[0], -1.6, 1.6), np.clip(u[..., 1] / half_size[1], -1.6, 1.6)
    legendre = [
        lambda t: np.ones_like(t),
        lambda t: t,
        lambda t: 0.5 * (3 * t * t - 1),
        lambda t: 0.5 * (5 * t**3 - 3 * t),
    ]
    return np.stack([legendre[a](x) * legendre[b](y) for a, b in POWERS[DEGREES <= degree]], axis=-1)


@dataclass
class Motion:
    """What the bundle adjustment refines, about a fixed linear start (aligned px).

    Attributes:
        coefficients: ``(n_tilts, n_basis, 2)`` displacement of the images as polynomials of aligned position.
        axis_rad: rotation common to all images.
        height: ``(n_tracks,)`` z of the tracks.
        prior_sd: ``(n_basis,)`` px, widths of the priors on the coefficients; the first is `LOOSE_PX`.
        rotation_sd: px at the image border, width of the per-tilt rotation.
    """

    coefficients: Array
    axis_rad: float
    height: Array
    prior_sd: Array
    rotation_sd: float


def displacement(motion: Motion, u: Array, tilts: Array, half_size: tuple[float, float], degree: int) -> Array:
    """Displacement ``(n_tracks, n_tilts, 2)`` at the positions ``u`` of the same shape."""
    values = basis(u, half_size, degree)
    local = np.einsum("pmb,mbc->pmc", values, motion.coefficients[tilts])
    turned = np.stack([-u[..., 1], u[..., 0]], axis=-1) * motion.axis_rad
    return np.asarray(local + turned)


def solve(
    gradient: Array,
    information: Array,
    u: Array,
    tilt_deg: Array,
    motion: Motion,
    half_size: tuple[float, float],
    degree: int,
    height_sd: Array,
    relax_px: float = 3.0,
    adapt: bool = False,
) -> tuple[Motion, Array]:
    """One Gauss-Newton step; returns the new motion and the displacement it explains ``(n_tracks, n_tilts, 2)``.

    Args:
        gradient, information: of the tracks, see `tracks.Likelihood`.
        u: aligned positions of the tracks ``(n_tracks, n_tilts, 2)``.
        height_sd: width of the prior on each track's height about 0, px.
        adapt: also re-estimate the widths of the priors.
        relax_px: no displacement changes by more than about this in one step.
    """
    n_tracks, n_tilts = u.shape[:2]
    values = basis(u, half_size, degree)
    n_basis = values.shape[-1]
    block = n_tilts * n_basis
    n = 2 * block + 1 + n_tracks
    normal = np.zeros((n, n))
    right = np.zeros(n)
    sine = np.sin(np.deg2rad(tilt_deg))
    turned = (-u[..., 1], u[..., 0])
    for c in range(2):
        f, g = information[:, c], gradient[:, :, c]
        part = slice(c * block, (c + 1) * block)
        for a in range(n_basis):
            left = values[:, :, a]
            for b in range(a, n_basis):
                piece = np.einsum("pi,pij,pj->ij", left, f, values[:, :, b], optimize=True)
                rows, columns = c * block + a * n_tilts, c * block + b * n_tilts
                normal[rows : rows + n_tilts, columns : columns + n_tilts] += piece
                if a != b:
                    normal[columns : columns + n_tilts, rows : rows + n_tilts] += piece.T
        pulled = np.einsum("pij,pj->pi", f, turned[c])
        normal[part, 2 * block] += np.einsum("pia,pi->ai", values, pulled).ravel()
        right[part] += np.einsum("pia,pi->ai", values, g).ravel()
        normal[2 * block, 2 * block] += float((turned[c] * pulled).sum())
        right[2 * block] += float((turned[c] * g).sum())
        if c == 0:
            lifted = np.einsum("pij,j->pi", f, sine)
            heights = slice(2 * block + 1, n)
            normal[part, heights] += np.einsum("pia,pi->aip", values, lifted).reshape(block, n_tracks)
            normal[2 * block, heights] += (turned[0] * lifted).sum(axis=1)
            index = np.arange(2 * block + 1, n)
            normal[index, index] += lifted @ sine
            right[heights] += g @ sine
    # the blocks below the diagonal mirror those above
    normal[2 * block :, : 2 * block] = normal[: 2 * block, 2 * block :].T
    normal[2 * block + 1 :, 2 * block] = normal[2 * block, 2 * block + 1 :]

    precision = _prior_precision(motion, n_tilts, n_basis)
    current = np.concatenate([
        motion.coefficients[:, :, 0].T.ravel(), motion.coefficients[:, :, 1].T.ravel(), [motion.axis_rad], motion.height
    ])  # fmt: skip
    full = normal.copy()
    full[: 2 * block, : 2 * block] += precision
    full[2 * block, 2 * block] += 1.0 / np.deg2rad(20.0) ** 2
    index = np.arange(2 * block + 1, n)
    full[index, index] += 1.0 / height_sd**2
    pull = np.zeros(n)
    pull[: 2 * block] = precision @ current[: 2 * block]
    pull[2 * block] = current[2 * block] / np.deg2rad(20.0) ** 2
    pull[index] = current[index] / height_sd**2
    factor = scipy.linalg.cho_factor(full, lower=True)
    step = scipy.linalg.cho_solve(factor, right - pull)
    change_x = step[:block].reshape(n_basis, n_tilts)
    change_y = step[block : 2 * block].reshape(n_basis, n_tilts)
    moved = np.stack([np.einsum("pia,ai->pi", values, change_x), np.einsum("pia,ai->pi", values, change_y)], axis=-1)
    moved[..., 0] += step[2 * block] * turned[0] + sine[None] * step[index][:, None]
    moved[..., 1] += step[2 * block] * turned[1]
    largest = float(np.percentile(np.abs(moved), 98))
    shrink = min(1.0, relax_px / max(largest, 1e-9))
    new = current + shrink * step
    inverse_diagonal = np.sum(scipy.linalg.solve_triangular(factor[0], np.eye(n), lower=True) ** 2, axis=0)[: 2 * block]
    coefficients = np.stack(
        [new[:block].reshape(n_basis, n_tilts).T, new[block : 2 * block].reshape(n_basis, n_tilts).T], axis=-1
    )
    spread = np.stack(
        [inverse_diagonal[:block].reshape(n_basis, n_tilts).T, inverse_diagonal[block:].reshape(n_basis, n_tilts).T],
        axis=-1,
    )
    widths, rotation_sd = (
        _estimate_widths(coefficients, spread, motion) if adapt else (motion.prior_sd, motion.rotation_sd)
    )
    return (
        Motion(coefficients, float(new[2 * block]), new[index], widths, rotation_sd),
        shrink * moved,
    )


def _prior_precision(motion: Motion, n_tilts: int, n_basis: int) -> Array:
    """Precision of the priors; per-tilt rotation moves the x-part along y against the y-part along x."""
    block = n_tilts * n_basis
    out = np.zeros((2 * block, 2 * block))
    variance = motion.prior_sd[:n_basis] ** 2
    for c in range(2):
        for b in range(n_basis):
            index = c * block + b * n_tilts + np.arange(n_tilts)
            out[index, index] = 1.0 / variance[b]
    if n_basis >= 3:
        # basis 1 is x, basis 2 is y
        x_along_y = 2 * n_tilts + np.arange(n_tilts)
        y_along_x = block + n_tilts + np.arange(n_tilts)
        r = motion.rotation_sd**2
        pair = np.linalg.inv(np.array([[variance[2] + r, -r], [-r, variance[1] + r]]))
        out[x_along_y, x_along_y] = pair[0, 0]
        out[y_along_x, y_along_x] = pair[1, 1]
        out[x_along_y, y_along_x] = out[y_along_x, x_along_y] = pair[0, 1]
    return out


def _estimate_widths(coefficients: Array, spread: Array, motion: Motion) -> tuple[Array, float]:
    """Prior widths that make the coefficients as likely as possible: one step of expectation-maximisation."""
    n_basis = coefficients.shape[1]
    second = (coefficients**2 + spread).mean(axis=(0, 2))
    widths = motion.prior_sd.copy()
    degree = DEGREES[:n_basis]
    for d in range(2, int(degree.max(initial=0)) + 1):
        widths[:n_basis][degree == d] = np.sqrt(second[degree == d].mean())
    rotation = motion.rotation_sd
    if n_basis >= 3:
        strain = np.concatenate(
            [coefficients[:, 1, 0] ** 2 + spread[:, 1, 0], coefficients[:, 2, 1] ** 2 + spread[:, 2, 1]]
        )
        widths[1:3] = np.sqrt(strain.mean())
        turn = (coefficients[:, 1, 1] - coefficients[:, 2, 0]) / 2
        turn_variance = (spread[:, 1, 1] + spread[:, 2, 0]) / 4
        rotation = float(np.sqrt(np.mean((turn - turn.mean()) ** 2 + turn_variance)))
    return np.clip(widths, 0.02, LOOSE_PX), float(np.clip(rotation, 0.02, 5.0))
