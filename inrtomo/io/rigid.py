"""An alignment for programs that hold a rotation, a shift and a grid of local shifts per image.

AreTomo, RELION and Warp project a point to ``q = R(rotation) u + offset`` (centred raw px, u its aligned position)
and then add a local shift ``s(q)``, or take it away. They differ in how ``s`` goes from nodes to pixels, but each
does so along x and along y separately: ``s = by(y) C bx(x)``, so that nodes can be fitted with two small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation

Array = NDArray[np.float64]
Basis = Callable[[int, int, Array], Array]
"""``basis(nodes, size, at)``: weights ``(len(at), k)`` of an axis with ``size`` pixels at centred positions."""

TOLERANCE_PX = 0.02
"""A grid of local shifts is made finer until it is this close to the motion everywhere."""
NEGLIGIBLE_PX = 1e-3
"""Local shifts smaller than this are not written."""
NODES = (3, 4, 5, 6, 8, 10, 12, 16)
SAMPLES, CHECKS = 37, 31
WARP_NODES = (9, 17, 33, 65, 97)
WARP_TOLERANCE_PX = 3e-4
"""Error of a motion that was read and is sampled for `LocalWarp`."""
WATCHED = 4
"""Images, those that move most, for which that error is measured."""
WILD_SHIFT = 1.0
"""An image shifted by more than its own size has nothing to show of the grid."""


@dataclass(frozen=True)
class Rigid:
    """Rotation (degrees, the tilt axis in IMOD's sense) ``(n,)`` and offset (raw px) ``(n, 2)`` of every image."""

    rotation_deg: Array
    offset_px: Array

    @classmethod
    def part_of(cls, alignment: Alignment) -> Rigid:
        """The rotation nearest to every matrix, and where the centre of aligned space is seen without the warp."""
        offset = -np.einsum("nij,nj->ni", np.linalg.inv(alignment.linear), alignment.shift_px)
        return cls(alignment.rotation_deg, offset)

    @property
    def linear(self) -> Array:
        """Raw -> aligned matrices ``(n, 2, 2)``."""
        return np.stack([axis_rotation(angle) for angle in self.rotation_deg])

    @property
    def shift_px(self) -> Array:
        """Shifts added after the matrix ``(n, 2)``."""
        return -np.einsum("nij,nj->ni", self.linear, self.offset_px)

    def local_shifts(self, alignment: Alignment, tilt: int, q: Array) -> Array:
        """What is missing at rigidly projected points ``q`` ``(..., 2)``: true raw position - q."""
        u = (q - self.offset_px[tilt]) @ axis_rotation(self.rotation_deg[tilt]).T
        return alignment.aligned_to_raw(tilt, u) - q


@dataclass(frozen=True)
class LocalGrid:
    """Fitted nodes ``(n, ky, kx, 2)`` of the local shifts, and how well they hold them over the included images."""

    nodes: int
    values: Array
    rms_px: float
    largest_px: float


def fit_local_shifts(
    alignment: Alignment, rigid: Rigid, basis: Basis, most: int = NODES[-1], rcond: float = 1e-10
) -> LocalGrid | None:
    """The coarsest grid (at most ``most`` nodes an axis) that is within `TOLERANCE_PX`, or else the best; None if flat.

    The motion is that over the images' area; excluded images get no local shifts.
    """
    tilts: list[int] = alignment.included.tolist()
    x, y = (_positions(size, SAMPLES) for size in alignment.image_size)
    x_check, y_check = (_positions(size, CHECKS) for size in alignment.image_size)
    shifts = _sampled(alignment, rigid, tilts, x, y)
    truth = _sampled(alignment, rigid, tilts, x_check, y_check)
    if not len(tilts) or np.abs(truth).max() < NEGLIGIBLE_PX:
        return None
    best: LocalGrid | None = None
    nx, ny = alignment.image_size
    for count in (n for n in NODES if n <= most):
        inverse_x = np.linalg.pinv(basis(count, nx, x), rcond=rcond)
        inverse_y = np.linalg.pinv(basis(count, ny, y), rcond=rcond)
        fitted = np.einsum("ky,tyxc,lx->tklc", inverse_y, shifts, inverse_x, optimize=True)
        again = np.einsum(
            "yk,tklc,xl->tyxc", basis(count, ny, y_check), fitted, basis(count, nx, x_check), optimize=True
        )
        error = np.linalg.norm(again - truth, axis=-1)
        if best is None or error.max() < best.largest_px:
            values = np.zeros((alignment.n_tilts, *fitted.shape[1:]))
            values[tilts] = fitted
            best = LocalGrid(count, values, float(np.sqrt((error**2).mean())), float(error.max()))
        if best.largest_px < TOLERANCE_PX:
            break
    return best


def _positions(size: int, count: int) -> Array:
    """Centred positions from the first pixel's outer edge to the last one's."""
    return np.linspace(-size / 2, size / 2, count)


def _sampled(alignment: Alignment, rigid: Rigid, tilts: list[int], x: Array, y: Array) -> Array:
    q = np.stack(np.meshgrid(x, y), axis=-1)
    return np.array([rigid.local_shifts(alignment, int(m), q) for m in tilts]).reshape(len(tilts), len(y), len(x), 2)


def warp_from_local_shifts(
    local_shifts: Callable[[int, Array], Array], rigid: Rigid, image_size: tuple[int, int], tilts: Sequence[int]
) -> LocalWarp | None:
    """The inverse vectors ``w(u) = A s(R u + offset)`` of local shifts ``s(tilt, q)``, just densely enough sampled.

    Args:
        local_shifts: raw px at centred raw positions ``(..., 2)``; tilts: the images that have any.
    """
    if not len(tilts):
        return None
    linear, size = rigid.linear, np.array(image_size, dtype=np.float64)
    shift = np.abs(rigid.shift_px[list(tilts)])
    shift = shift[shift.max(axis=1) < WILD_SHIFT * size.max()]
    half = (np.abs(linear[list(tilts)]) @ size / 2).max(axis=0) + shift.max(axis=0, initial=0.0)

    def vectors(m: int, u: Array) -> Array:
        q = u @ linear[m] + rigid.offset_px[m]  # A is a rotation, so u @ A = A^-1 u
        return local_shifts(m, q) @ linear[m].T

    coarse = np.stack(np.meshgrid(*(np.linspace(-h, h, WARP_NODES[0]) for h in half)), axis=-1)
    sizes = {int(m): float(np.abs(vectors(int(m), coarse)).max()) for m in tilts}
    if max(sizes.values()) < NEGLIGIBLE_PX / 10:
        return None
    largest = sorted(sizes, key=lambda m: -sizes[m])[:WATCHED]
    for count in WARP_NODES:
        x, y = (np.linspace(-h, h, count) for h in half)
        if all(_error_in_view(vectors, rigid, m, x, y, size) < WARP_TOLERANCE_PX for m in largest):
            break
    nodes = np.stack(np.meshgrid(x, y), axis=-1)
    values = np.zeros((len(linear), count, count, 2))
    for m in sizes:
        values[m] = vectors(m, nodes)
    return LocalWarp(x, y, values, "bicubic")


def _error_in_view(
    vectors: Callable[[int, Array], Array], rigid: Rigid, m: int, x: Array, y: Array, size: Array
) -> float:
    """Largest error of vectors sampled at the nodes ``x``, ``y``, between them where image ``m`` shows something."""
    warp = LocalWarp(x, y, vectors(m, np.stack(np.meshgrid(x, y), axis=-1))[None], "bicubic")
    step = max(1, len(x) // 32)
    between_x, between_y = ((nodes[:-1] + nodes[1:])[::step] / 2 for nodes in (x, y))
    u = np.stack(np.meshgrid(between_x, between_y), axis=-1)
    seen = (np.abs(u @ rigid.linear[m] + rigid.offset_px[m]) <= size / 2).all(axis=-1)
    return float(np.abs(vectors(m, u) - warp.on_lattice(0, between_x, between_y))[seen].max(initial=0.0))


# --- how programs go from nodes to pixels --------------------------------------------------------------------------


def natural_spline(nodes: int, size: int, at: Array) -> Array:
    """Warp: an interpolating natural cubic spline, nodes from the first pixel's index 0 to index ``size``."""
    along = (np.asarray(at) + (size - 1) / 2) / size
    return spline_weights(nodes, along)


def spline_weights(nodes: int, along: Array) -> Array:
    """Weights ``(len(along), nodes)`` of a natural cubic spline whose nodes go from 0 to 1; linear beyond them."""
    if nodes == 1:
        return np.ones((len(along), 1))
    if nodes == 2:
        return np.stack([1 - along, along], axis=1)
    inside = np.clip(along, 0.0, 1.0)
    from scipy.interpolate import CubicSpline  # slow to load, and seldom needed

    spline = CubicSpline(np.linspace(0, 1, nodes), np.eye(nodes), bc_type="natural")
    return np.asarray(spline(inside) + (along - inside)[:, None] * spline(inside, 1))


def hermite_spline(nodes: int, size: int, at: Array) -> Array:
    """RELION: values, then slopes per grid step, of a cubic Hermite spline from index 0 to index ``size``.

    Beyond these it goes on with its slope, where RELION stands still: smoothly, and no pixel is seen there.
    """
    cells = nodes - 1
    t = (np.asarray(at) + (size - 1) / 2) / size * cells
    inside = np.clip(t, 0.0, cells)
    cell = np.minimum(inside.astype(int), cells - 1)
    f, beyond = inside - cell, t - inside
    weights = np.zeros((len(t), 2 * nodes))
    rows = np.arange(len(t))
    weights[rows, cell] = 1 - 3 * f**2 + 2 * f**3
    weights[rows, cell + 1] = 3 * f**2 - 2 * f**3
    weights[rows, nodes + cell] = f - 2 * f**2 + f**3 + np.minimum(beyond, 0.0)
    weights[rows, nodes + cell + 1] = -(f**2) + f**3 + np.maximum(beyond, 0.0)
    return weights


def patch_centres(nodes: int, size: int) -> Array:
    """AreTomo's patches: centres of ``nodes`` equal parts of an axis, centred px."""
    return (np.arange(nodes) + 0.5) / nodes * size - size / 2


GAUSSIAN = 100.0
"""Weight of a patch in AreTomo is exp(-GAUSSIAN ((dx / nx)^2 + (dy / ny)^2))."""


def gaussian_mean(nodes: int, size: int, at: Array) -> Array:
    """AreTomo: the mean of patches by a Gaussian of their distance, along one axis."""
    exponent = -GAUSSIAN * ((np.asarray(at)[:, None] - patch_centres(nodes, size)) / size) ** 2
    weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
