"""Alignment: how every raw image maps to the ideal projection, linear part and local warp.

The primary form is *aligned -> raw*, the sense of IMOD's warp files::

    p = A^-1 (u + w(u) - d)

with ``A`` (2 x 2) and ``d`` the line of the ``.xf`` file and ``w`` the local warp, given on a grid of aligned
space. *raw -> aligned* inverts it by fixed-point iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from inrtomo.geometry import axis_angle, axis_rotation, specimen_to_aligned, turned_size

Array = NDArray[np.float64]

FIXED_POINT_TOLERANCE_PX = 1e-6
FIXED_POINT_STEPS = 50


DENSE_NODES = 16
"""Grids with more nodes an axis are interpolated from the four nodes around a point alone."""


@dataclass(frozen=True)
class LocalWarp:
    """Local motion of every tilt on a regular grid of aligned space.

    Attributes:
        x, y: grid positions, shape (nx,) and (ny,), evenly spaced, aligned px from the centre.
        vectors: ``(n_tilts, ny, nx, 2)``, the inverse vectors (w_x, w_y) in raw-sized px.
        interpolation: ``"bilinear"`` (what IMOD does between grid points, clamped outside) or ``"bicubic"``
            (Catmull-Rom between control points, linear continuation by one node outside, then clamped).
    """

    x: Array
    y: Array
    vectors: Array
    interpolation: str = "bicubic"

    def __call__(self, tilt: int, u: Array) -> Array:
        """Vectors ``(..., 2)`` at the aligned points ``u`` ``(..., 2)`` of image ``tilt``."""
        u = np.asarray(u, dtype=np.float64)
        wx = interpolation_matrix(self.x, u[..., 0].ravel(), self.interpolation)
        wy = interpolation_matrix(self.y, u[..., 1].ravel(), self.interpolation)
        if min(len(self.x), len(self.y)) > DENSE_NODES:
            return _few_taps(wx, wy, self.vectors[tilt]).reshape(u.shape)
        out = np.einsum("nj,ni,jic->nc", wy, wx, self.vectors[tilt], optimize=True)
        return out.reshape(u.shape)

    def on_lattice(self, tilt: int, x: Array, y: Array) -> Array:
        """Vectors ``(len(y), len(x), 2)`` on a regular lattice of aligned positions."""
        wx = interpolation_matrix(self.x, x, self.interpolation)
        wy = interpolation_matrix(self.y, y, self.interpolation)
        return np.einsum("nj,mi,jic->nmc", wy, wx, self.vectors[tilt], optimize=True)


def _few_taps(wx: Array, wy: Array, vectors: Array) -> Array:
    """``wy vectors wx`` point by point ``(n, 2)``, for weights ``(n, nodes)`` with at most four in a row not zero."""
    taps = np.arange(4)
    x, y = ((w != 0).argmax(axis=1).clip(0, w.shape[1] - 4)[:, None] + taps for w in (wx, wy))
    near = vectors[y[:, :, None], x[:, None, :]]
    return np.einsum("nj,ni,njic->nc", np.take_along_axis(wy, y, 1), np.take_along_axis(wx, x, 1), near)


def interpolation_matrix(nodes: Array, at: Array, interpolation: str) -> Array:
    """Weights ``(len(at), len(nodes))`` that interpolate node values at positions ``at``."""
    nodes, at = np.asarray(nodes, dtype=np.float64), np.asarray(at, dtype=np.float64)
    n = len(nodes)
    weights = np.zeros((len(at), n))
    if n == 1:
        weights[:] = 1.0
        return weights
    t = np.clip((at - nodes[0]) / (nodes[1] - nodes[0]), 0.0, n - 1.0)
    if interpolation == "bicubic" and n > 2:
        t = np.clip((at - nodes[0]) / (nodes[1] - nodes[0]), -1.0, float(n))
    cell = np.clip(np.floor(t).astype(int), 0, n - 2)
    f = t - cell
    rows = np.arange(len(at))
    if interpolation == "bilinear" or n == 2:
        np.add.at(weights, (rows, cell), 1 - f)
        np.add.at(weights, (rows, cell + 1), f)
        return weights
    if interpolation != "bicubic":
        raise ValueError(f"unknown interpolation {interpolation!r}; use 'bilinear' or 'bicubic'")
    g = np.clip(f, 0, 1)
    taps = (
        -0.5 * g + g**2 - 0.5 * g**3,
        1 - 2.5 * g**2 + 1.5 * g**3,
        0.5 * g + 2 * g**2 - 1.5 * g**3,
        -0.5 * g**2 + 0.5 * g**3,
    )
    for k, tap in zip((-1, 0, 1, 2), taps, strict=True):
        node = cell + k
        # beyond the ends the nodes continue linearly: c[-1] = 2 c[0] - c[1]
        low, high = node < 0, node > n - 1
        ok = ~(low | high)
        np.add.at(weights, (rows[ok], node[ok]), tap[ok])
        for outside, end, inner in ((low, 0, 1), (high, n - 1, n - 2)):
            np.add.at(weights, (rows[outside], np.full(outside.sum(), end)), 2 * tap[outside])
            np.add.at(weights, (rows[outside], np.full(outside.sum(), inner)), -tap[outside])
    for outside, end, inner, distance in ((f < 0, 0, 1, -f), (f > 1, n - 1, n - 2, f - 1)):
        if outside.any():
            # Catmull-Rom on linearly continued nodes has the end slope of the last two nodes
            np.add.at(weights, (rows[outside], np.full(outside.sum(), end)), distance[outside])
            np.add.at(weights, (rows[outside], np.full(outside.sum(), inner)), -distance[outside])
    return weights


@dataclass(frozen=True)
class Alignment:
    """Raw <-> aligned maps of a tilt series, one per image in stack order.

    Attributes:
        tilt_deg: refined tilt angles, ``(n_tilts,)``.
        linear: raw -> aligned matrices, ``(n_tilts, 2, 2)``.
        shift_px: shifts added after the matrix, raw px, ``(n_tilts, 2)`` (x, y).
        image_size: ``(nx, ny)`` of the raw images.
        pixel_size_A: Å per raw px, or None when unknown.
        warp: local motion, or None.
        x_tilt_deg: rotation of the specimen about x, ``(n_tilts,)`` (IMOD's XAXISTILT, minus its ``.xtilt``).
        excluded: 0-based stack index -> reason for images to leave out of reconstructions.
    """

    tilt_deg: Array
    linear: Array
    shift_px: Array
    image_size: tuple[int, int]
    pixel_size_A: float | None = None
    warp: LocalWarp | None = None
    x_tilt_deg: Array = field(default_factory=lambda: np.zeros(0))
    excluded: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.tilt_deg)
        if len(self.x_tilt_deg) == 0:
            object.__setattr__(self, "x_tilt_deg", np.zeros(n))
        if np.shape(self.linear) != (n, 2, 2) or np.shape(self.shift_px) != (n, 2):
            raise ValueError("linear must be (n_tilts, 2, 2) and shift_px (n_tilts, 2), with one tilt angle each")

    @classmethod
    def identity(
        cls,
        tilt_deg: Array,
        image_size: tuple[int, int],
        axis_deg: float = 0.0,
        pixel_size_A: float | None = None,
    ) -> Alignment:
        """No shifts, a common tilt axis ``axis_deg`` (IMOD's sense), no warp."""
        tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
        linear = np.tile(axis_rotation(axis_deg), (len(tilt_deg), 1, 1))
        return cls(tilt_deg, linear, np.zeros((len(tilt_deg), 2)), image_size, pixel_size_A)

    @property
    def n_tilts(self) -> int:
        return len(self.tilt_deg)

    @property
    def rotation_deg(self) -> Array:
        """Tilt-axis angle of every image (degrees, IMOD's sense), ``(n_tilts,)``."""
        return axis_angle(self.linear)

    @property
    def aligned_size(self) -> tuple[int, int]:
        """``(nx, ny)`` of aligned images and of the tomogram from above, raw px: see `turned_size`.

        Raw space keeps `image_size`. Both have their origin at index ``(n - 1) / 2``, so no shift depends on this.
        """
        used = self.included
        return turned_size(self.image_size, self.rotation_deg[used] if len(used) else self.rotation_deg)

    @property
    def sides_turned(self) -> bool:
        """Whether `aligned_size` is another than `image_size`."""
        return self.aligned_size != self.image_size

    @property
    def included(self) -> NDArray[np.int64]:
        """Stack indices that are not excluded."""
        return np.array([i for i in range(self.n_tilts) if i not in self.excluded], dtype=np.int64)

    def subset(self, indices: NDArray[np.int64]) -> Alignment:
        """The alignment of some images only, all of them used."""
        warp = self.warp
        return replace(
            self,
            tilt_deg=self.tilt_deg[indices],
            linear=self.linear[indices],
            shift_px=self.shift_px[indices],
            x_tilt_deg=self.x_tilt_deg[indices],
            warp=None if warp is None else replace(warp, vectors=warp.vectors[indices]),
            excluded={},
        )

    def aligned_to_raw(self, tilt: int, u: Array) -> Array:
        """Raw points ``(..., 2)`` of image ``tilt`` for aligned points ``u`` ``(..., 2)``."""
        u = np.asarray(u, dtype=np.float64)
        moved = u - self.shift_px[tilt]
        if self.warp is not None:
            moved = moved + self.warp(tilt, u)
        return moved @ np.linalg.inv(self.linear[tilt]).T

    def raw_to_aligned(self, tilt: int, p: Array) -> Array:
        """Aligned points ``(..., 2)`` for raw points ``p``; the warp is inverted by fixed-point iteration."""
        p = np.asarray(p, dtype=np.float64)
        linear = p @ self.linear[tilt].T + self.shift_px[tilt]
        if self.warp is None:
            return linear
        u = linear
        for _ in range(FIXED_POINT_STEPS):
            new = linear - self.warp(tilt, u)
            done = np.abs(new - u).max(initial=0.0) < FIXED_POINT_TOLERANCE_PX
            u = new
            if done:
                break
        return u

    def specimen_to_raw(self, tilt: int, points: Array) -> Array:
        """Raw pixels ``(..., 2)`` where specimen points ``(..., 3)`` are seen in image ``tilt``."""
        u = specimen_to_aligned(points, float(self.tilt_deg[tilt]), float(self.x_tilt_deg[tilt]))
        return self.aligned_to_raw(tilt, u)

    def without_warp(self) -> Alignment:
        """The linear part alone: what the ``.xf`` file holds."""
        return replace(self, warp=None)

    def translated(self, offset: tuple[float, float, float]) -> Alignment:
        """The same alignment for a tomogram whose origin moves: new point = old point + offset (x, y, z), px.

        Only for series without x-tilt this is exact with shifts alone; with one the offset is rotated first.
        """
        moved = np.array(
            [
                specimen_to_aligned(np.asarray(offset, dtype=np.float64), float(t), float(a))
                for t, a in zip(self.tilt_deg, self.x_tilt_deg, strict=True)
            ]
        )
        warp = self.warp
        if warp is not None:
            warp = _resampled_after_shift(warp, moved)
        return replace(self, shift_px=self.shift_px + moved, warp=warp)

    def folded(self) -> Alignment:
        """The same map with each warp's best affine part (over the grid's inner area) moved into the linear part.

        ``p = A^-1 (u + Bu + b + w' - d)`` becomes ``A' = (I+B)^-1 A, d' = (I+B)^-1 (d - b), w'' = (I+B)^-1 w'``,
        so that the ``.xf`` alone is the best linear fit of the full map.
        """
        if self.warp is None:
            return self
        nx, ny = self.aligned_size
        grid_x, grid_y = np.meshgrid(_inner(self.warp.x, nx), _inner(self.warp.y, ny))
        design = np.stack([np.ones(grid_x.size), grid_x.ravel(), grid_y.ravel()], axis=1)
        node_x, node_y = np.meshgrid(self.warp.x, self.warp.y)
        nodes = np.stack([np.ones(node_x.size), node_x.ravel(), node_y.ravel()], axis=1)
        linear, shift = self.linear.copy(), self.shift_px.copy()
        vectors = self.warp.vectors.copy()
        for m in range(self.n_tilts):
            sampled = self.warp.on_lattice(m, grid_x[0], grid_y[:, 0]).reshape(-1, 2)
            fit, *_ = np.linalg.lstsq(design, sampled, rcond=None)
            inverse = np.linalg.inv(np.eye(2) + fit[1:].T)
            linear[m] = inverse @ self.linear[m]
            shift[m] = inverse @ (self.shift_px[m] - fit[0])
            rest = vectors[m].reshape(-1, 2) - nodes @ fit
            vectors[m] = (rest @ inverse.T).reshape(vectors[m].shape)
        return replace(self, linear=linear, shift_px=shift, warp=replace(self.warp, vectors=vectors))


def _inner(nodes: Array, size: int) -> Array:
    """Sampling positions over the part of a grid that lies in an image of ``size`` px."""
    low, high = max(nodes[0], -size / 2), min(nodes[-1], size / 2)
    return np.linspace(low, high, 17) if high > low else np.asarray(nodes)


def _resampled_after_shift(warp: LocalWarp, moved: Array) -> LocalWarp:
    """The warp seen from aligned frames that moved by ``moved`` ``(n_tilts, 2)`` px."""
    vectors = np.stack([warp.on_lattice(m, warp.x - dx, warp.y - dy) for m, (dx, dy) in enumerate(moved)])
    return replace(warp, vectors=vectors)
