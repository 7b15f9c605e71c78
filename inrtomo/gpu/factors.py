"""Vector-matrix factors on quadtree nodes in torch, on any device: `inrtomo.fields.kernels.factor_cpu` on tensors.

Interpolation along a lattice separates: a node's vectors and matrices are brought to its x, y and z by one matrix
product each, and features are products of what comes out, so nothing is ever gathered for single voxels. Nodes of one
size are evaluated together, `VOXELS_AT_ONCE` at most; gradients are torch's. Sums are made in a fixed order, but for
those of `add_gradient_at_points`, which adds with atomics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.density import LatticeSpec, lattice_axes
from inrtomo.fields.factors import FactorGrid, interpolation

if TYPE_CHECKING:
    from inrtomo.fields.tensor import TensorField

F64 = NDArray[np.float64]
Tensor = torch.Tensor

VOXELS_AT_ONCE = 2**22
BLOCK_COPIES = 6  # of the density of some tiles, with its gradient and what products leave behind
FACTOR_COPIES = 5  # of a tile's factors while they are interpolated


@dataclass(frozen=True)
class Tiles:
    """Parts of a lattice, equally many points along x and along y, one in each of some nodes of a layer.

    Attributes:
        parameters: those of the layer's nodes, of which there are ``n_of_layer``; ``nodes`` (n,): which are meant.
        vertices: of a node along x, y and z.
        at: index of the tiles' points ``(n, x, z, y)`` in the lattice's arrays.
        across, along, height: interpolation ``(n, x, vertices)``, ``(n, y, vertices)`` and ``(z, vertices)``.
        counted: ``(n, x, z, 1)``: which rows along y are the nodes' to show.
    """

    parameters: slice
    n_of_layer: int
    nodes: Tensor
    vertices: tuple[int, int, int]
    at: tuple[Tensor, Tensor, Tensor]
    across: Tensor
    along: Tensor
    height: Tensor
    counted: Tensor


@dataclass(frozen=True)
class FactorPlan:
    """A lattice ``(nz, nx, ny)`` in tiles."""

    shape: tuple[int, int, int]
    tiles: list[Tiles]


class Factors:
    """Density of vector-matrix factors with a one-layer decoder; see `inrtomo.fields.density.FieldOnDevice`.

    Parameters are flat, the decoder's (weights, then the offset) last.
    """

    def __init__(self, grid: FactorGrid, scale: float, device: str) -> None:
        self.grid, self.scale, self.device = grid, float(scale), device
        # of the nodes, for points
        layers = grid.layers[grid.nodes[:, 0]]
        intervals = layers[:, 3:].astype(np.int64)
        corners = np.column_stack([grid.nodes[:, 1:3] * intervals[:, :2], np.zeros(len(layers))])
        self._box, self._cell_size = self._tensor(np.reshape(grid.box, (3, 2)).T), self._tensor(grid.tree.cell_size)
        self._owner, self._last_cell = self._tensor(grid.tree.owner), self._tensor(np.array(grid.tree.cells) - 1)
        self._starts, self._intervals = self._tensor(grid.nodes[:, 3]), self._tensor(intervals)
        self._vertices_per_px, self._corners = self._tensor(layers[:, 3:] / layers[:, :3]), self._tensor(corners)
        self._features = self._tensor(np.arange(grid.features))

    def _tensor(self, values: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=dtype, device=self.device)

    # --- lattices --------------------------------------------------------------------------------------------------

    def plan_of(self, axes: tuple[F64, F64, F64], which: NDArray[np.uint8]) -> FactorPlan:
        """What the others need to know of a lattice.

        Args:
            axes: positions (z, x, y), raw px.
            which: ``(nz, nx)``: 2 for rows of the tree, 1 for rows of the coarse nodes, 0 for rows of zeros.
        """
        groups: dict[tuple[int, ...], list[tuple[int, range, range]]] = defaultdict(list)
        for node, wanted, tiles in self._spans(axes, which):
            for number, (x, y) in enumerate(tiles):
                # a node has one tile in a group, so that tiles share no gradient
                groups[int(self.grid.nodes[node, 0]), wanted, len(x), len(y), number].append((node, x, y))
        planned, nz = list[Tiles](), len(axes[0])
        for (layer, wanted, nx, ny, _), members in groups.items():
            at_once = max(1, VOXELS_AT_ONCE // (nz * nx * ny))
            for first in range(0, len(members), at_once):
                planned.append(self._tiles(layer, members[first : first + at_once], axes, which == wanted))
        return FactorPlan((nz, len(axes[1]), len(axes[2])), planned)

    def _spans(
        self, axes: tuple[F64, F64, F64], which: NDArray[np.uint8]
    ) -> Iterator[tuple[int, int, list[tuple[range, range]]]]:
        """Every node, what ``which`` has in its rows, and its points in tiles of the lattice's x and y."""
        grid, (z, x, y) = self.grid, axes
        for node, (across, along) in enumerate(zip(grid.spans(0, x), grid.spans(1, y), strict=True)):
            wanted = 2 if node < grid.n_tree else 1
            columns = across[0] + np.nonzero(np.any(which[:, slice(*across)] == wanted, axis=0))[0]
            if len(columns) and along[0] < along[1]:
                whole = range(int(columns[0]), int(columns[-1]) + 1), range(*(int(v) for v in along))
                yield node, wanted, _cut(*whole, max(1, VOXELS_AT_ONCE // len(z)))

    def _tiles(
        self, layer: int, members: list[tuple[int, range, range]], axes: tuple[F64, F64, F64], shown: NDArray[np.bool_]
    ) -> Tiles:
        grid, of_layer = self.grid, np.nonzero(self.grid.nodes[:, 0] == layer)[0]
        start, size = int(grid.nodes[of_layer[0], 3]), sum(grid.parts(layer))
        nodes = np.array([node for node, _, _ in members])
        z, x, y = np.arange(len(axes[0])), np.array([x for _, x, _ in members]), np.array([y for *_, y in members])
        kx, ky, kz = (count - 1 for count in grid.vertices(layer))
        along_x, along_y, along_z = (grid.positions(k, axes[(k + 1) % 3])[layer] for k in range(3))
        index = z[None, None, :, None], x[:, :, None, None], y[:, None, None, :]
        return Tiles(
            slice(start, start + len(of_layer) * size),
            len(of_layer),
            self._tensor(nodes - of_layer[0]),
            grid.vertices(layer),
            (self._tensor(index[0]), self._tensor(index[1]), self._tensor(index[2])),
            self._interpolation(along_x[x] - grid.nodes[nodes, 1, None] * kx, kx),
            self._interpolation(along_y[y] - grid.nodes[nodes, 2, None] * ky, ky),
            self._interpolation(along_z, kz),
            self._tensor(shown[index[0], index[1]]),
        )

    def _interpolation(self, positions: F64, intervals: int) -> Tensor:
        return self._tensor(interpolation(positions, intervals), torch.float32)

    def lattice(self, parameters: Tensor, plan: FactorPlan) -> Tensor:
        rho, weights = torch.zeros(plan.shape, device=self.device), self._weights(parameters)
        with torch.no_grad():
            for tiles in plan.tiles:
                rho[tiles.at] += self._density(_blocks(parameters, tiles), weights, tiles)
        return rho

    def add_gradient(self, parameters: Tensor, plan: FactorPlan, grad_rho: Tensor, grad: Tensor) -> None:
        weights = self._weights(parameters).detach().requires_grad_()
        for tiles in plan.tiles:
            blocks = _blocks(parameters, tiles).detach().requires_grad_()
            density = self._density(blocks, weights, tiles)
            by_blocks, by_weights = torch.autograd.grad(density, (blocks, weights), grad_rho[tiles.at])
            grad[tiles.parameters].view(tiles.n_of_layer, -1).index_add_(0, tiles.nodes, by_blocks)
            self._weights(grad).add_(by_weights)

    def backward_bytes(self, plan: FactorPlan) -> int:
        return max((self._bytes(tiles) for tiles in plan.tiles), default=0)

    def _bytes(self, tiles: Tiles) -> int:
        (n, nx, _), ny, nz = tiles.across.shape, tiles.along.shape[1], len(tiles.height)
        x, y, z = (max(sides) for sides in zip((nx, ny, nz), tiles.vertices, strict=True))
        factors = self.grid.features * (x * y + x * z + y * z)
        return 4 * n * (BLOCK_COPIES * nx * ny * nz + FACTOR_COPIES * factors)

    def _weights(self, flat: Tensor) -> Tensor:
        return flat[self.grid.n_parameters :]

    def _density(self, blocks: Tensor, weights: Tensor, tiles: Tiles) -> Tensor:
        """Density ``(n, x, z, y)`` of nodes' parameters ``(n, size)``."""
        X, Y, Z, XY, XZ, YZ = self._views(blocks, tiles.vertices)
        across, along, height, w = tiles.across, tiles.along, tiles.height, weights[:-1]
        x, y, z = across @ X, Y @ along.mT, height @ Z
        xy = torch.einsum("nxv,nvrw,nyw->nxry", across, XY, along)
        xz = torch.einsum("nxv,nvwr,zw->nxzr", across, XZ, height)
        yz = torch.einsum("zv,nvrw,nyw->nzry", height, YZ, along)
        argument = torch.einsum("nxr,nzry->nxzy", w * x, yz)
        argument = argument + torch.einsum("nxzr,nry->nxzy", w * xz, y)
        argument = argument + torch.einsum("nzr,nxry->nxzy", w * z, xy)
        return self._positive(argument + weights[-1]) * tiles.counted

    def _views(self, blocks: Tensor, vertices: tuple[int, int, int]) -> Iterator[Tensor]:
        """Factors X, Y, Z, XY, XZ and YZ with the axes that `FactorGrid.parts` names, nodes in front."""
        r, (x, y, z) = self.grid.features, vertices
        shapes = ((x, r), (r, y), (z, r), (x, r, y), (x, z, r), (z, r, y))
        parts = blocks.split([int(np.prod(shape)) for shape in shapes], dim=1)
        return (part.reshape(len(blocks), *shape) for part, shape in zip(parts, shapes, strict=True))

    def _positive(self, argument: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.softplus(argument)

    # --- points ----------------------------------------------------------------------------------------------------

    def points(self, parameters: Tensor, xyz: Tensor) -> Tensor:
        """Density ``(N,)`` of the tree at points ``(N, 3)`` (x, y, z), float64; outside the box that of its surface."""
        with torch.no_grad():
            entries, fractions = self._places(xyz)
            return self._at_points(parameters[entries], fractions, self._weights(parameters))

    def add_gradient_at_points(self, parameters: Tensor, xyz: Tensor, given: Tensor, grad: Tensor) -> Tensor:
        """Add the gradient of ``sum(given * density)`` to ``grad`` and return that of the points ``(N, 3)``."""
        points = xyz.detach().requires_grad_()
        entries, fractions = self._places(points)
        values, weights = (v.detach().requires_grad_() for v in (parameters[entries], self._weights(parameters)))
        density = self._at_points(values, fractions, weights)
        by_values, by_weights, by_points = torch.autograd.grad(density, (values, weights, points), given)
        grad.index_add_(0, entries.flatten(), by_values.flatten())
        self._weights(grad).add_(by_weights)
        return by_points

    def _places(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries ``(18, N, features)`` of the parameters points use, and where in their cells they are.

        Entries are those of X, Y, Z, XY, XZ and YZ, of the latter the lower vertex along both axes, along the first,
        along the second, along none; places are fractions ``(N, 3)``.
        """
        low, high = self._box
        inside = torch.clamp(xyz, low, high) - low
        cell = (inside.detach()[:, :2] / self._cell_size).long()
        node = self._owner[tuple(torch.minimum(cell, self._last_cell).unbind(1))]
        intervals = self._intervals[node]
        local = inside * self._vertices_per_px[node] - self._corners[node]
        at = torch.minimum(local.detach().long().clamp_min(0), intervals - 1)
        i, j, k = (v[:, None] for v in at.unbind(1))
        px, py, pz = (v[:, None] + 1 for v in intervals.unbind(1))
        R, r = self.grid.features, self._features
        starts = torch.cat([self._starts[node, None], R * px, R * py, R * pz, R * px * py, R * px * pz], dim=1)
        X, Y, Z, XY, XZ, YZ = (start[:, None] for start in starts.cumsum(1).unbind(1))
        both = [(0, 0), (0, 1), (1, 0), (1, 1)]
        entries = [
            *(X + (i + a) * R + r for a in (0, 1)),
            *(Y + r * py + j + a for a in (0, 1)),
            *(Z + (k + a) * R + r for a in (0, 1)),
            *(XY + ((i + a) * R + r) * py + j + b for a, b in both),
            *(XZ + ((i + a) * pz + k + b) * R + r for a, b in both),
            *(YZ + ((k + a) * R + r) * py + j + b for a, b in both),
        ]
        return torch.stack(entries), (local - at).clamp(0, 1).float()

    def _at_points(self, values: Tensor, fractions: Tensor, weights: Tensor) -> Tensor:
        """Density ``(N,)`` of what `_places` found."""
        s, t, u = (f[:, None] for f in fractions.unbind(1))
        x, y, z = (torch.lerp(values[2 * k], values[2 * k + 1], f) for k, f in enumerate((s, t, u)))
        xy, xz, yz = (
            torch.lerp(torch.lerp(values[k], values[k + 1], g), torch.lerp(values[k + 2], values[k + 3], g), f)
            for k, f, g in ((6, s, t), (10, s, u), (14, u, t))
        )
        return self._positive((x * yz + y * xz + z * xy) @ weights[:-1] + weights[-1])


class TensorOnDevice(Factors):
    """A `TensorField` on a device."""

    def __init__(self, field: TensorField, device: str) -> None:
        super().__init__(field.grid, field.config["scale"], device)
        self._rows = field.rows

    def plan(self, spec: LatticeSpec, caps: NDArray[np.integer[Any]]) -> FactorPlan:
        return self.plan_of(lattice_axes(spec), self._rows(spec, caps))


def _blocks(parameters: Tensor, tiles: Tiles) -> Tensor:
    """The parameters ``(n, size)`` of some nodes."""
    return parameters[tiles.parameters].view(tiles.n_of_layer, -1)[tiles.nodes]


def _cut(x: range, y: range, most: int) -> list[tuple[range, range]]:
    """A rectangle in tiles of so many points at most."""
    width = max(1, int(np.sqrt(most)))
    ny = min(len(y), max(width, most // len(x)))
    nx = max(1, most // ny)
    return [(x[a : a + nx], y[b : b + ny]) for a in range(0, len(x), nx) for b in range(0, len(y), ny)]
