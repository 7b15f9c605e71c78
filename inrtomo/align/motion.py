"""The motion being refined: shift, rotation and control-point warp of every tilt, moved by Gauss-Newton steps.

The image gradient of a rendered projection says how each pixel's residual answers to a small displacement of its
aligned coordinate. Motion is smooth, so these answers are summed over blocks of pixels first, and the normal
equations of any smooth motion model cost next to nothing (`BlockSums`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp, interpolation_matrix
from inrtomo.deformation import make_deformation
from inrtomo.fields import Adam
from inrtomo.geometry import axis_angle, axis_rotation
from inrtomo.priors import deformation_size

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

FIXED_POINT_STEPS = 3  # the warp's slope is a few %, so three steps leave < 1e-3 px
LARGEST_STEP_PX = 3.0
WARP_SD_RANGE_PX = (0.02, 2.0)
FIRST_WARP_SD_PX = 0.3
MOMENTUM = 0.6
NETWORK_RATE = 2e-3


@nb.njit(fastmath=True, cache=True)
def _catmull_rom(f):  # type: ignore[no-untyped-def]
    f2 = f * f
    f3 = f2 * f
    return 0.5 * (-f + 2 * f2 - f3), 0.5 * (2 - 5 * f2 + 3 * f3), 0.5 * (f + 4 * f2 - 3 * f3), 0.5 * (f3 - f2)


@nb.njit(fastmath=True, cache=True)
def _linear_taps(f):  # type: ignore[no-untyped-def]
    return 0.0, 1.0 - f, f, 0.0


@nb.njit(parallel=True, fastmath=True, cache=True)
def _coordinates(x, y, linear, shift, nodes, first, step, cubic, n_steps, scale, centre_u, centre_v, u, v):  # type: ignore[no-untyped-def]
    n_rows = y.shape[0]
    nny, nnx = nodes.shape[1], nodes.shape[2]  # padded by two on every side
    margin = 1.0 if cubic else 0.0
    for task in nb.prange(linear.shape[0] * n_rows):
        m, row = task // n_rows, task % n_rows
        for col in range(x.shape[0]):
            lx = linear[m, 0, 0] * x[col] + linear[m, 0, 1] * y[row] + shift[m, 0]
            ly = linear[m, 1, 0] * x[col] + linear[m, 1, 1] * y[row] + shift[m, 1]
            ux, uy = lx, ly
            for _ in range(n_steps):
                tx = min(max((ux - first[0]) / step[0], -margin), nnx - 5.0 + margin)
                ty = min(max((uy - first[1]) / step[1], -margin), nny - 5.0 + margin)
                ix = min(max(int(np.floor(tx)), -1), nnx - 5)
                iy = min(max(int(np.floor(ty)), -1), nny - 5)
                wx = _catmull_rom(tx - ix) if cubic else _linear_taps(tx - ix)
                wy = _catmull_rom(ty - iy) if cubic else _linear_taps(ty - iy)
                dx, dy = 0.0, 0.0
                for a in range(4):
                    along_x, along_y = 0.0, 0.0
                    for b in range(4):
                        along_x += wx[b] * nodes[m, iy + 1 + a, ix + 1 + b, 0]
                        along_y += wx[b] * nodes[m, iy + 1 + a, ix + 1 + b, 1]
                    dx += wy[a] * along_x
                    dy += wy[a] * along_y
                ux, uy = lx - dx, ly - dy
            u[m, row, col] = ux * scale + centre_u
            v[m, row, col] = uy * scale + centre_v


def lattice_indices(
    linear: Array,
    shift: Array,
    nodes_x: Array,
    nodes_y: Array,
    nodes: Array,
    interpolation: str,
    x: Array,
    y: Array,
    spacing: float,
    n_u: int,
    n_v: int,
    fixed_point_steps: int = FIXED_POINT_STEPS,
) -> tuple[F32, F32]:
    """Fractional indices (u, v) ``(n, len(y), len(x))`` at which a centred lattice is seen by raw pixels.

    Args:
        linear, shift: of every tilt, ``(n, 2, 2)`` and ``(n, 2)`` raw px.
        nodes_x, nodes_y, nodes: a `LocalWarp`'s grid and vectors ``(n, ny, nx, 2)``, two nodes or more an axis.
        x, y: raw px from the image's centre.
        spacing: raw px per lattice step.
        n_u, n_v: size of the lattice; its middle is aligned position 0.
        fixed_point_steps: that invert the warp; each leaves the error times the warp's slope.
    """
    u = np.empty((len(linear), len(y), len(x)), dtype=np.float32)
    v = np.empty_like(u)
    padded = continued_nodes(continued_nodes(nodes, 1), 2)
    first = np.array([nodes_x[0], nodes_y[0]])
    step = np.array([nodes_x[1] - nodes_x[0], nodes_y[1] - nodes_y[0]])
    n_steps = fixed_point_steps if nodes.any() else 0
    cubic = interpolation == "bicubic"
    centre_u, centre_v = (n_u - 1) / 2, (n_v - 1) / 2
    _coordinates(
        x, y, linear, shift, padded, first, step, cubic, n_steps, 1 / spacing, centre_u, centre_v, u, v
    )  # fmt: skip
    return u, v


def continued_nodes(nodes: Array, axis: int) -> Array:
    """Control points continued linearly by two nodes at both ends of an axis."""
    c = np.moveaxis(nodes, axis, 0)
    before = [3 * c[0] - 2 * c[1], 2 * c[0] - c[1]]
    after = [2 * c[-1] - c[-2], 3 * c[-1] - 2 * c[-2]]
    return np.moveaxis(np.concatenate([before, c, after]), 0, axis)


@nb.njit(parallel=True, fastmath=True, cache=True)
def _block_sums(residual, slope_u, slope_v, block, out):  # type: ignore[no-untyped-def]
    n_tilts, rows, cols = residual.shape
    n_by, n_bx = out.shape[1], out.shape[2]
    for task in nb.prange(n_tilts * n_by):
        m, by = task // n_by, task % n_by
        for bx in range(n_bx):
            gu, gv, huu, huv, hvv = 0.0, 0.0, 0.0, 0.0, 0.0
            for row in range(by * block, min(rows, (by + 1) * block)):
                for col in range(bx * block, min(cols, (bx + 1) * block)):
                    r, a, b = residual[m, row, col], slope_u[m, row, col], slope_v[m, row, col]
                    gu += r * a
                    gv += r * b
                    huu += a * a
                    huv += a * b
                    hvv += b * b
            out[m, by, bx, 0] = gu
            out[m, by, bx, 1] = gv
            out[m, by, bx, 2] = huu
            out[m, by, bx, 3] = huv
            out[m, by, bx, 4] = hvv


@dataclass
class BlockSums:
    """Gradient and curvature of the data term against displacement, per block of pixels.

    Attributes:
        values: ``(n_tilts, n_by, n_bx, 5)``: r gu, r gv, gu gu, gu gv, gv gv summed, per raw px.
        x, y: raw coordinates of the block centres, ``(n_bx,)`` and ``(n_by,)``.
    """

    values: Array
    x: Array
    y: Array

    @classmethod
    def of(cls, residual: F32, slope_u: F32, slope_v: F32, x: Array, y: Array, block: int) -> BlockSums:
        """Sum over ``block`` x ``block`` pixels; slopes per raw px, all zero where a pixel does not count."""
        starts_x, starts_y = np.arange(0, len(x), block), np.arange(0, len(y), block)
        out = np.zeros((len(residual), len(starts_y), len(starts_x), 5))
        _block_sums(residual, slope_u, slope_v, block, out)
        centre_x = np.array([x[s : s + block].mean() for s in starts_x])
        centre_y = np.array([y[s : s + block].mean() for s in starts_y])
        return cls(out, centre_x, centre_y)


class Motion:
    """Per-tilt shift, rotation and warp, with the momentum of their steps.

    Args:
        start: the alignment to refine; its warp, if any, gives the first control points.
        control_points: nodes per axis of the warp, over the raw field of view seen in aligned space.
        warp: ``"bicubic"`` or ``"bilinear"`` control points, ``"network"`` (one small network a tilt, 2023 paper,
            read at bicubic nodes and trained by Adam) or ``"none"``.
        penalty: ICE-TIDE's eq. 7 weights for rotation (degree), shift and warp (px), on the departure from the start.
        seed: of the network's first weights.
    """

    def __init__(
        self,
        start: Alignment,
        control_points: int = 5,
        warp: str = "bicubic",
        penalty: tuple[float, float, float] = (0.0, 0.0, 0.0),
        seed: int = 0,
    ) -> None:
        self.start, self.control_points, self.penalty = start, control_points, penalty
        self.interpolation = "bilinear" if warp == "bilinear" else "bicubic"
        self.warp_sd_px = FIRST_WARP_SD_PX
        self.linear, self.shift = start.linear.copy(), start.shift_px.copy()
        n, k = start.n_tilts, control_points
        half = aligned_half_size(start, about_shift=True)
        self.nodes_x, self.nodes_y = np.linspace(-half[0], half[0], k), np.linspace(-half[1], half[1], k)
        self.nodes = np.zeros((n, k, k, 2))
        if start.warp is not None:
            self.nodes = np.stack([start.warp.on_lattice(m, self.nodes_x, self.nodes_y) for m in range(n)])
        self.velocity = np.zeros((n, 3 + 2 * k * k))
        self.network = (
            make_deformation("network", n, self.nodes_x, self.nodes_y, seed=seed) if warp == "network" else None
        )
        if self.network is not None:
            self.network_adam = Adam({"network": slice(0, self.network.parameters().size)}, NETWORK_RATE)

    @property
    def alignment(self) -> Alignment:
        """The present motion as an alignment."""
        warp = (
            LocalWarp(self.nodes_x, self.nodes_y, self.nodes.copy(), self.interpolation) if self.nodes.any() else None
        )
        s = self.start
        return Alignment(
            s.tilt_deg,
            self.linear.copy(),
            self.shift.copy(),
            s.image_size,
            s.pixel_size_A,
            warp,
            s.x_tilt_deg,
            s.excluded,
        )

    def coordinates(self, tilts: slice, x: Array, y: Array, spacing: float, n_u: int, n_v: int) -> tuple[F32, F32]:
        """Fractional lattice indices (u, v) ``(n, len(y), len(x))`` of the raw pixels at ``x, y`` (raw px)."""
        return lattice_indices(
            self.linear[tilts], self.shift[tilts], self.nodes_x, self.nodes_y, self.nodes[tilts], self.interpolation,
            x, y, spacing, n_u, n_v,
        )  # fmt: skip

    def step(self, sums: BlockSums, rate: float, with_warp: bool) -> None:
        """One damped Gauss-Newton step of every tilt, with momentum, gauge projected out.

        The data term is noise-normalised, so its curvature is Fisher information and the control points' Gaussian
        prior enters as 1 / sd^2; the sd is the empirical-Bayes estimate of the step before.
        """
        n, k = self.start.n_tilts, self.control_points
        solved_warp = with_warp and self.network is None
        values = sums.values.reshape(n, -1, 5)
        jac_u, jac_v = self._jacobians(sums, with_warp)
        gradient = np.einsum("mbp,mb->mp", jac_u, values[..., 0]) + np.einsum("mbp,mb->mp", jac_v, values[..., 1])
        gradient += self._penalty_gradient(with_warp)
        if with_warp and self.network is not None:
            self._network_step(gradient[:, 3:], rate)
            gradient, jac_u, jac_v = gradient[:, :3], jac_u[..., :3], jac_v[..., :3]
        weighted_u = values[..., 2:3] * jac_u + values[..., 3:4] * jac_v
        weighted_v = values[..., 3:4] * jac_u + values[..., 4:5] * jac_v
        curvature = jac_u.transpose(0, 2, 1) @ weighted_u + jac_v.transpose(0, 2, 1) @ weighted_v
        n_parameters = jac_u.shape[2]
        damping = 1e-9 * np.trace(curvature, axis1=1, axis2=2)[:, None, None] / n_parameters + 1e-12
        prior = np.zeros(n_parameters)
        prior[2] = 1.0  # one px at the edge: holds a tilt without signal, far below any real information
        present = np.zeros((n, n_parameters))
        if solved_warp:
            prior[3:] = self.warp_sd_px**-2
            present[:, 3:] = self.nodes.transpose(0, 3, 1, 2).reshape(n, 2 * k * k)
        covariance = np.linalg.inv(curvature + np.diag(prior) + damping * np.eye(n_parameters))
        move = -np.einsum("mpq,mq->mp", covariance, gradient + prior * present)
        move = np.clip(move, -LARGEST_STEP_PX, LARGEST_STEP_PX)
        if solved_warp:
            spread = present[:, 3:] ** 2 + np.diagonal(covariance, axis1=1, axis2=2)[:, 3:]
            self.warp_sd_px = float(np.clip(np.sqrt(spread.mean()), *WARP_SD_RANGE_PX))
        self.velocity *= MOMENTUM
        self.velocity[:, :n_parameters] += rate * move
        self._project_gauge()
        self._apply(self.velocity)

    def _penalty_gradient(self, with_warp: bool) -> Array:
        """ICE-TIDE's size penalty against (shift, rotation as px at the edge, control points)."""
        n, k = self.start.n_tilts, self.control_points
        out = np.zeros((n, 3 + (2 * k * k if with_warp else 0)))
        if any(self.penalty):
            turn = axis_angle(self.linear) - axis_angle(self.start.linear)
            moved = self.shift - self.start.shift_px
            _, by_turn, by_shift, by_node = deformation_size(turn, moved, self.nodes, self.penalty)
            out[:, :2] = by_shift
            out[:, 2] = by_turn * np.rad2deg(1 / self._half_size)
            if with_warp:
                out[:, 3:] = by_node.transpose(0, 3, 1, 2).reshape(n, 2 * k * k)
        return out

    def _network_step(self, gradient: Array, rate: float) -> None:
        """One Adam step of the deformation networks along the gradient of their node vectors."""
        assert self.network is not None
        n, k = self.start.n_tilts, self.control_points
        nodes = gradient.reshape(n, 2, k, k).transpose(0, 2, 3, 1)
        self.network.zero_grad()
        self.network.backward_vectors(np.ascontiguousarray(nodes, dtype=np.float32))
        self.network_adam.step(self.network.parameters(), self.network.grad, factor=rate)
        self.nodes = self.network.vectors().astype(np.float64)
        self.nodes -= self.nodes.mean(axis=0)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What changes during a fit, as plain arrays."""
        state: dict[str, NDArray[Any]] = {
            "linear": self.linear, "shift": self.shift, "nodes": self.nodes, "velocity": self.velocity,
            "warp_sd_px": np.array(self.warp_sd_px),
        }  # fmt: skip
        if self.network is not None:
            state["network"] = self.network.parameters()
            state |= {f"network_adam.{k}": v for k, v in self.network_adam.state_dict().items()}
        return {name: np.array(value) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state_dict` gave."""
        self.linear, self.shift = state["linear"].copy(), state["shift"].copy()
        self.nodes, self.velocity = state["nodes"].copy(), state["velocity"].copy()
        self.warp_sd_px = float(state["warp_sd_px"])
        if self.network is not None:
            self.network.parameters()[:] = state["network"]
            self.network_adam.load_state_dict({k: state[f"network_adam.{k}"] for k in ("first", "second", "count")})

    def _jacobians(self, sums: BlockSums, with_warp: bool) -> tuple[Array, Array]:
        """d(u_x), d(u_y) at the block centres against (shift x, y, rotation at the edge, control points)."""
        n, k = self.start.n_tilts, self.control_points
        gx, gy = np.meshgrid(sums.x, sums.y)
        points = np.stack([gx.ravel(), gy.ravel()], axis=1)
        rotated = np.einsum("mij,bj->mbi", self.linear, points)
        n_parameters = 3 + (2 * k * k if with_warp else 0)
        jac_u, jac_v = np.zeros((n, len(points), n_parameters)), np.zeros((n, len(points), n_parameters))
        half = self._half_size
        jac_u[..., 0] = 1.0
        jac_v[..., 1] = 1.0
        jac_u[..., 2] = rotated[..., 1] / half
        jac_v[..., 2] = -rotated[..., 0] / half
        if with_warp:
            for m in range(n):
                at = rotated[m] + self.shift[m]
                wx = interpolation_matrix(self.nodes_x, at[:, 0], self.interpolation)
                wy = interpolation_matrix(self.nodes_y, at[:, 1], self.interpolation)
                basis = (wy[:, :, None] * wx[:, None, :]).reshape(len(points), k * k)
                jac_u[m, :, 3 : 3 + k * k] = -basis
                jac_v[m, :, 3 + k * k :] = -basis
        return jac_u, jac_v

    @property
    def _half_size(self) -> float:
        return max(self.start.image_size) / 2

    def _project_gauge(self) -> None:
        """Take translations of the specimen and the tilts' mean warp out of the velocity.

        The mean rotation stays: it is the tilt-axis angle, which the projections of a thick specimen do determine.
        """
        tilt = np.deg2rad(self.start.tilt_deg)
        modes = np.stack([np.cos(tilt), np.sin(tilt)], axis=1)
        fit, *_ = np.linalg.lstsq(modes, self.velocity[:, 0], rcond=None)
        self.velocity[:, 0] -= modes @ fit
        self.velocity[:, 1] -= self.velocity[:, 1].mean()
        self.velocity[:, 3:] -= self.velocity[:, 3:].mean(axis=0)

    def _apply(self, move: Array) -> None:
        k = self.control_points
        self.shift += move[:, :2]
        turns = np.stack([axis_rotation(float(np.rad2deg(a))) for a in move[:, 2] / self._half_size])
        self.linear = turns @ self.linear
        self.nodes += move[:, 3:].reshape(-1, 2, k, k).transpose(0, 2, 3, 1)


def aligned_half_size(alignment: Alignment, about_shift: bool = False) -> tuple[float, float]:
    """Half-widths (x, y; raw px) of the aligned area that all raw images cover together.

    With ``about_shift`` the shifts are left out: the half-widths of one typical image.
    """
    nx, ny = alignment.image_size
    corners = np.array([[sx * nx / 2, sy * ny / 2] for sx in (-1, 1) for sy in (-1, 1)])
    aligned = np.einsum("mij,cj->mci", alignment.linear, corners)
    if not about_shift:
        aligned = aligned + alignment.shift_px[:, None]
    reach = np.abs(aligned).reshape(-1, 2)
    half = np.median(np.abs(aligned).max(axis=1), axis=0) if about_shift else reach.max(axis=0)
    return float(half[0]), float(half[1])
