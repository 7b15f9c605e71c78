"""The motion of a joint fit on the device: `inrtomo.align.motion.Motion` in torch, nothing copied back.

Small matrices are inverted by Gauss-Jordan elimination over the whole batch: elementwise steps, which a CUDA graph
records like any others.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.motion import (
    FIXED_POINT_STEPS,
    LARGEST_STEP_PX,
    MOMENTUM,
    WARP_SD_RANGE_PX,
    Motion,
    continued_nodes,
)
from inrtomo.deformation_network import Network
from inrtomo.gpu.sampling import catmull_rom
from inrtomo.gpu.warp_network import WarpNetwork

Tensor = torch.Tensor
Array = NDArray[np.float64]
F32 = NDArray[np.float32]

PIXELS_AT_ONCE = 2**21


def inverse(matrices: Tensor) -> Tensor:
    """Inverses of symmetric positive definite matrices ``(n, p, p)``."""
    a = matrices.clone()
    for k in range(a.shape[1]):
        pivot = 1 / a[:, k, k]
        row, column = a[:, k] * pivot[:, None], a[:, :, k].clone()
        a -= column[:, :, None] * row[:, None, :]
        a[:, k], a[:, :, k] = row, -column * pivot[:, None]
        a[:, k, k] = pivot
    return a


def displacement(
    nodes: Tensor, first: tuple[float, float], spacing: tuple[float, float], cubic: bool, u: Tensor, v: Tensor
) -> Tensor:
    """Warp vectors ``(n, rows, cols, 2)`` at aligned positions, of the same shape without the last axis.

    Args:
        nodes: ``(n, ny + 4, nx + 4, 2)``, continued by two on every side.
        first, spacing: of the nodes before that, (x, y).
    """
    n, height, width, _ = nodes.shape
    ix, wx = _taps(u, first[0], spacing[0], width - 4, cubic)
    iy, wy = _taps(v, first[1], spacing[1], height - 4, cubic)
    tilt = torch.arange(n, device=nodes.device)[:, None, None] * (height * width)
    flat = nodes.reshape(-1, 2)
    total = torch.zeros((*u.shape, 2), device=nodes.device)
    for a in range(4):
        for b in range(4):
            total += (wy[a] * wx[b])[..., None] * flat[tilt + (iy + 1 + a) * width + ix + 1 + b]
    return total


def _taps(at: Tensor, first: float, spacing: float, count: int, cubic: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Cell along an axis of ``count`` nodes and the weights of its four neighbours."""
    margin = 1.0 if cubic else 0.0
    t = ((at - first) / spacing).clamp(-margin, count - 1 + margin)
    cell = t.floor().long().clamp(-1, count - 1)
    f = t - cell
    if not cubic:
        zero = torch.zeros_like(f)
        return cell, (zero, 1 - f, f, zero)
    return cell, catmull_rom(f)


class DeviceMotion:
    """A copy of a `Motion` on a device, but for its penalty.

    Args:
        motion: what is copied, and what `pull` writes back to.
        x, y: raw px of the pixels' columns and rows.
        block: pixels along each side of the blocks that `block_sums` sums over.
    """

    def __init__(self, motion: Motion, x: Array, y: Array, block: int, device: str) -> None:
        self.motion, self.block, self.device = motion, block, device

        def tensor(values: Array) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self.linear, self.shift, self.nodes = tensor(motion.linear), tensor(motion.shift), tensor(motion.nodes)
        self.velocity, self.warp_sd = tensor(motion.velocity), tensor(np.array(motion.warp_sd_px))
        self.x, self.y = tensor(x), tensor(y)
        self.half_size = max(motion.start.image_size) / 2
        starts = [np.arange(0, len(at), block) for at in (x, y)]
        centre_x, centre_y = (
            np.array([at[s : s + block].mean() for s in start]) for at, start in zip((x, y), starts, strict=True)
        )
        gx, gy = np.meshgrid(centre_x, centre_y)
        self.points = tensor(np.stack([gx.ravel(), gy.ravel()], axis=1))
        k = motion.control_points
        self.continued = tensor(_continuation(k))
        self.first = motion.nodes_x[0], motion.nodes_y[0]
        self.spacing = motion.nodes_x[1] - motion.nodes_x[0], motion.nodes_y[1] - motion.nodes_y[0]
        tilt = np.deg2rad(motion.start.tilt_deg)
        modes = np.stack([np.cos(tilt), np.sin(tilt)], axis=1)
        self.gauge = tensor(modes @ np.linalg.pinv(modes))
        prior = np.zeros(3 + 2 * k * k)
        prior[2] = 1.0  # as in `Motion.step`
        self.prior = tensor(prior)
        self.has_warp = bool(motion.nodes.any())
        network = motion.network
        self.network = WarpNetwork(network, motion.network_adam, device) if isinstance(network, Network) else None

    def pull(self) -> None:
        """Write the present state back."""
        m = self.motion
        m.linear[:], m.shift[:], m.nodes[:] = (v.cpu().numpy() for v in (self.linear, self.shift, self.nodes))
        m.velocity[:], m.warp_sd_px = self.velocity.cpu().numpy(), float(self.warp_sd)
        if self.network is not None:
            self.network.pull()

    def coordinates(self, part: slice, spacing: float, n_u: int, n_v: int, warped: bool) -> tuple[Tensor, Tensor]:
        """Fractional lattice indices (u, v) ``(n, rows, cols)`` of the pixels; see `Motion.coordinates`."""
        linear, shift = self.linear[part], self.shift[part]
        start_x = linear[:, 0, 0, None, None] * self.x + linear[:, 0, 1, None, None] * self.y[:, None]
        start_y = linear[:, 1, 0, None, None] * self.x + linear[:, 1, 1, None, None] * self.y[:, None]
        start_x, start_y = (
            (start_x + shift[:, 0, None, None]).float(), (start_y + shift[:, 1, None, None]).float()
        )  # fmt: skip
        u, v = start_x, start_y
        if warped:
            nodes = torch.einsum("ya,nabc,xb->nyxc", self.continued, self.nodes[part], self.continued).float()
            for _ in range(FIXED_POINT_STEPS):
                moved = self._displacement(nodes, u, v)
                u, v = start_x - moved[..., 0], start_y - moved[..., 1]
        return u / spacing + (n_u - 1) / 2, v / spacing + (n_v - 1) / 2

    def _displacement(self, nodes: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return displacement(nodes, self.first, self.spacing, self.motion.interpolation == "bicubic", u, v)

    def _taps(self, at: Tensor, axis: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        k, cubic = self.motion.control_points, self.motion.interpolation == "bicubic"
        return _taps(at, self.first[axis], self.spacing[axis], k, cubic)

    def block_sums(self, residual: Tensor, slope_u: Tensor, slope_v: Tensor) -> Tensor:
        """``(n, blocks, 5)``: see `inrtomo.align.motion.BlockSums`."""
        n, rows, cols = residual.shape
        b = self.block
        n_y, n_x = -(-rows // b), -(-cols // b)

        def summed(values: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(values, (0, n_x * b - cols, 0, n_y * b - rows))
            return padded.reshape(n, n_y, b, n_x, b).sum(dim=(2, 4), dtype=torch.float64).reshape(n, -1)

        products = (
            residual * slope_u, residual * slope_v, slope_u * slope_u, slope_u * slope_v, slope_v * slope_v
        )  # fmt: skip
        return torch.stack([summed(values) for values in products], dim=-1)

    def step(self, values: Tensor, rate: Tensor, with_warp: bool) -> None:
        """One damped Gauss-Newton step of every tilt; see `Motion.step`."""
        n, k = len(self.linear), self.motion.control_points
        solved_warp = with_warp and self.network is None
        size = 3 + (2 * k * k if solved_warp else 0)
        jac_u, jac_v = self._jacobians(with_warp)
        gradient = torch.einsum("mbp,mb->mp", jac_u, values[..., 0]) + torch.einsum("mbp,mb->mp", jac_v, values[..., 1])
        if with_warp and self.network is not None:
            self.nodes.copy_(self.network.step(gradient[:, 3:], rate))
            gradient, jac_u, jac_v = gradient[:, :3], jac_u[..., :3], jac_v[..., :3]
        weighted_u = values[..., 2:3] * jac_u + values[..., 3:4] * jac_v
        weighted_v = values[..., 3:4] * jac_u + values[..., 4:5] * jac_v
        curvature = jac_u.mT @ weighted_u + jac_v.mT @ weighted_v
        trace = curvature.diagonal(dim1=1, dim2=2).sum(dim=1)
        prior, present = self.prior[:size].clone(), torch.zeros((n, size), dtype=torch.float64, device=self.device)
        if solved_warp:
            prior[3:] = self.warp_sd**-2
            present[:, 3:] = self.nodes.permute(0, 3, 1, 2).reshape(n, -1)
        diagonal = curvature.diagonal(dim1=1, dim2=2)
        diagonal += prior + (1e-9 * trace / size + 1e-12)[:, None]
        covariance = inverse(curvature)
        move = -(covariance @ (gradient + prior * present)[..., None])[..., 0]
        move = move.clamp(-LARGEST_STEP_PX, LARGEST_STEP_PX)
        if solved_warp:
            spread = present[:, 3:] ** 2 + covariance.diagonal(dim1=1, dim2=2)[:, 3:]
            self.warp_sd.copy_(spread.mean().sqrt().clamp(*WARP_SD_RANGE_PX))
        self.velocity *= MOMENTUM
        self.velocity[:, :size] += rate * move
        self.velocity[:, 0] -= self.gauge @ self.velocity[:, 0]
        self.velocity[:, 1] -= self.velocity[:, 1].mean()
        self.velocity[:, 3:] -= self.velocity[:, 3:].mean(dim=0)
        self.shift += self.velocity[:, :2]
        angle = self.velocity[:, 2] / self.half_size
        c, s = torch.cos(angle), torch.sin(angle)
        turns = torch.stack([torch.stack([c, s], dim=1), torch.stack([-s, c], dim=1)], dim=1)
        self.linear.copy_(turns @ self.linear)
        self.nodes += self.velocity[:, 3:].reshape(n, 2, k, k).permute(0, 2, 3, 1)

    def _jacobians(self, with_warp: bool) -> tuple[Tensor, Tensor]:
        """As `Motion._jacobians`."""
        n, k = len(self.linear), self.motion.control_points
        rotated = torch.einsum("mij,bj->mbi", self.linear, self.points)
        shape = n, len(self.points), 3 + (2 * k * k if with_warp else 0)
        jac_u, jac_v = (torch.zeros(shape, dtype=torch.float64, device=self.device) for _ in range(2))
        jac_u[..., 0] = 1.0
        jac_v[..., 1] = 1.0
        jac_u[..., 2] = rotated[..., 1] / self.half_size
        jac_v[..., 2] = -rotated[..., 0] / self.half_size
        if with_warp:
            at = rotated + self.shift[:, None]
            along_x, along_y = (self._basis(at[..., axis], axis) for axis in range(2))
            basis = (along_y[..., :, None] * along_x[..., None, :]).reshape(n, -1, k * k)
            jac_u[..., 3 : 3 + k * k] = -basis
            jac_v[..., 3 + k * k :] = -basis
        return jac_u, jac_v

    def _basis(self, at: Tensor, axis: int) -> Tensor:
        """Weights ``(..., k)`` of the control points along an axis at aligned positions."""
        cell, taps = self._taps(at, axis)
        padded = torch.zeros((*at.shape, self.motion.control_points + 4), dtype=torch.float64, device=self.device)
        for b, tap in enumerate(taps):
            padded.scatter_add_(-1, (cell + 1 + b)[..., None], tap.double()[..., None])
        return padded @ self.continued


def _continuation(k: int) -> Array:
    """``(k + 4, k)``: control points continued linearly by two at both ends."""
    whole = np.zeros((k + 4, k))
    whole[2:-2] = np.eye(k)
    for row, end, inner, steps in ((1, 0, 1, 1), (0, 0, 1, 2), (-2, -1, -2, 1), (-1, -1, -2, 2)):
        whole[row, end] += 1 + steps
        whole[row, inner] -= steps
    return whole


def lattice_indices(
    linear: Array, shift: Array, nodes_x: Array, nodes_y: Array, nodes: Array, interpolation: str, x: Array, y: Array,
    fixed_point_steps: int, device: str,
) -> tuple[F32, F32]:  # fmt: skip
    """As `inrtomo.align.motion.lattice_indices` with a lattice of one raw px a step and its middle at index 0."""
    u = np.empty((len(linear), len(y), len(x)), dtype=np.float32)
    v = np.empty_like(u)
    continued = continued_nodes(continued_nodes(nodes, 1), 2)
    first, spacing = (nodes_x[0], nodes_y[0]), (nodes_x[1] - nodes_x[0], nodes_y[1] - nodes_y[0])
    at_x = torch.tensor(x, dtype=torch.float64, device=device)
    rows = max(1, PIXELS_AT_ONCE // len(x))
    for m, ((xx, xy), (yx, yy)) in enumerate(linear.tolist()):
        warp = torch.tensor(continued[m : m + 1], dtype=torch.float32, device=device)
        for top in range(0, len(y), rows):
            at_y = torch.tensor(y[top : top + rows, None], dtype=torch.float64, device=device)
            start_u = (xx * at_x + xy * at_y + float(shift[m, 0]))[None]
            start_v = (yx * at_x + yy * at_y + float(shift[m, 1]))[None]
            seen_u, seen_v = start_u, start_v
            for _ in range(fixed_point_steps if nodes[m].any() else 0):
                moved = displacement(warp, first, spacing, interpolation == "bicubic", seen_u, seen_v)
                seen_u, seen_v = start_u - moved[..., 0], start_v - moved[..., 1]
            u[m, top : top + rows], v[m, top : top + rows] = seen_u[0].cpu().numpy(), seen_v[0].cpu().numpy()
    return u, v
