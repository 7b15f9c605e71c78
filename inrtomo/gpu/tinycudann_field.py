"""Hash grid and decoder by tinycudann, behind the interface of `hash_field.HashField`: a second implementation.

Its grids are cubes over the box's longest side with a hash of their own, and its decoder has no offsets, so its
parameters are not ours: they are one flat tensor, the decoder's first as in `NetworkWithInputEncoding`, handed in as
``tables`` with ``weights`` empty. Where all levels count fully that fused module evaluates them; where they do not,
its encoding and its network do one after the other, with the levels' weights in between. Its base resolution counts
vertices: the coarsest level has a cell less than ours, finer ones nearly as many.

A lattice is taken as points, some rows of it at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tensor = torch.Tensor

FUSED_WIDTHS = (16, 32, 64, 128)
PADDED_TO = 16  # features: the fused module fills up what is missing otherwise than its parts do
POINTS_AT_ONCE = 2**20
LARGEST_SUM = 64.0  # of slopes: tinycudann multiplies them by 128 and adds up gradients in half precision, up to 65504


@dataclass(frozen=True)
class PointPlan:
    """A lattice as points.

    Attributes:
        z, x, y: positions along its axes.
        rows: indices (z, x) of the rows along y that use any level, ``(n, 2)``.
        level_weights: of these rows' levels, ``(n, levels)``, zero from a row's cap on.
        full: whether all of them use every level fully.
    """

    z: Tensor
    x: Tensor
    y: Tensor
    rows: Tensor
    level_weights: Tensor
    full: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.z), len(self.x), len(self.y)

    def parts(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Some rows at a time: their indices along z and x, their points (z, x, y), and weights of these."""
        n_rows, ny = max(1, POINTS_AT_ONCE // len(self.y)), len(self.y)
        for first in range(0, len(self.rows), n_rows):
            z, x = self.rows[first : first + n_rows].T
            grid = torch.broadcast_tensors(self.z[z, None], self.x[x, None], self.y)
            weights = self.level_weights[first : first + n_rows].repeat_interleave(ny, dim=0)
            yield z, x, torch.stack(grid, dim=-1).reshape(-1, 3), None if self.full else weights


class TinyCudaField:
    """Densities and gradients; arguments as of `hash_field.HashField`.

    Attributes:
        n_parameters, n_tables: of the one flat tensor.

    Raises:
        InputError: tinycudann is not installed.
    """

    def __init__(self, grid: HashGrid, decoder: Decoder, scale: float, device: str) -> None:
        tcnn = _tinycudann()
        self.grid, self.decoder, self.scale, self.device = grid, decoder, float(scale), device
        extent = grid.upper - grid.origin
        self._origin, self._upper = (torch.tensor(v, device=device) for v in (grid.origin, grid.upper))
        self._longest = float(extent.max())
        encoding = {
            "otype": "HashGrid", "n_levels": grid.levels, "n_features_per_level": grid.features,
            "log2_hashmap_size": grid.log2_table, "per_level_scale": grid.growth,
            "base_resolution": max(2, round(self._longest / float(grid.spacing[0]))),
        }  # fmt: skip
        widths = decoder.sizes[1:-1]
        if len(set(widths)) > 1:
            raise ValueError("tinycudann's hidden layers are of one width")
        fused = bool(widths) and set(widths) <= set(FUSED_WIDTHS)
        network = {
            "otype": "FullyFusedMLP" if fused else "CutlassMLP", "activation": "ReLU", "output_activation": "None",
            "n_neurons": widths[0] if widths else 16, "n_hidden_layers": len(widths),
        }  # fmt: skip
        self._encoding = tcnn.Encoding(3, encoding).to(device)
        self._network = tcnn.Network(grid.n_features, 1, network).to(device)
        self._whole: Any = None
        if grid.n_features % PADDED_TO == 0:
            self._whole = tcnn.NetworkWithInputEncoding(3, 1, encoding, network).to(device)
        self._n_weights = int(self._network.params.numel())
        self.n_parameters = self.n_tables = self._n_weights + int(self._encoding.params.numel())

    def plan(self, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.integer[Any]]) -> PointPlan:
        """What `lattice` needs to know of a lattice."""
        within = np.arange(self.grid.levels) < np.asarray(caps)[..., None]
        weights = np.where(within, level_weights, np.float32(0))
        rows = np.argwhere(weights.any(axis=-1))
        used = weights[rows[:, 0], rows[:, 1]]
        z, x, y, sent = (torch.tensor(v, dtype=torch.float32, device=self.device) for v in (*axes, used))
        return PointPlan(z, x, y, torch.tensor(rows, device=self.device), sent, bool((used == 1).all()))

    def lattice(self, tables: Tensor, weights: Tensor, plan: PointPlan) -> Tensor:
        """Density ``(nz, nx, ny)``."""
        rho = torch.zeros(plan.shape, device=self.device)
        self._take(tables)
        with torch.no_grad():
            for z, x, points, level_weights in plan.parts():
                rho[z, x] = self._density(self._value(points, level_weights)).reshape(len(z), -1)
        return rho

    def lattice_backward(
        self, tables: Tensor, weights: Tensor, plan: PointPlan, grad_rho: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> None:  # fmt: skip
        """Add the gradients of ``sum(grad_rho * rho)``."""
        self._take(tables)
        for z, x, points, level_weights in plan.parts():
            self._backward(points, level_weights, grad_rho[z, x].flatten(), grad_tables)

    def points(self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32) -> Tensor:
        """Density ``(N,)`` at points ``(N, 3)`` in (z, x, y) order; outside the box that of its surface."""
        self._take(tables)
        with torch.no_grad():
            return self._density(self._value(zxy, self._levels(level_weights)))

    def points_backward(
        self, tables: Tensor, weights: Tensor, zxy: Tensor, level_weights: F32, grad: Tensor, grad_tables: Tensor,
        grad_weights: Tensor,
    ) -> Tensor:  # fmt: skip
        """Add the gradient of ``sum(grad * density)`` to ``grad_tables``; that of the points ``(N, 3)``."""
        self._take(tables)
        points = zxy.detach().requires_grad_()
        return self._backward(points, self._levels(level_weights), grad, grad_tables)

    def _take(self, tables: Tensor) -> None:
        """Have the modules use these parameters, which stay where they are."""
        flat = tables.detach()
        self._network.params.data, self._encoding.params.data = flat[: self._n_weights], flat[self._n_weights :]
        if self._whole is not None:
            self._whole.params.data = flat

    def _levels(self, level_weights: F32) -> Tensor | None:
        """Weights of all points; None where every level counts fully."""
        return None if np.all(level_weights == 1) else torch.tensor(level_weights, device=self.device)[None]

    def _value(self, zxy: Tensor, level_weights: Tensor | None) -> Tensor:
        """Argument of the softplus ``(N,)``, as precise as the module gives it."""
        inside = torch.minimum(torch.maximum(zxy, self._origin), self._upper)
        unit = (inside - self._origin) / self._longest
        if level_weights is None and self._whole is not None:
            value: Tensor = self._whole(unit)
        else:
            features = self._encoding(unit).float()
            if level_weights is not None:
                features = features * level_weights.repeat_interleave(self.grid.features, dim=1)
            value = self._network(features)
        return value[:, 0]

    def _density(self, value: Tensor) -> Tensor:
        return self.scale * torch.nn.functional.softplus(value.float())

    def _backward(self, points: Tensor, level_weights: Tensor | None, grad: Tensor, grad_tables: Tensor) -> Tensor:
        """Add the parameters' gradient; that of the points where it is asked for, else an empty tensor."""
        value = self._value(points, level_weights)
        slope = self.scale * grad * torch.sigmoid(value.detach().float())
        largest, total = slope.abs().max(), slope.abs().sum()
        size = torch.maximum(largest, total / LARGEST_SUM).clamp_min(torch.finfo(torch.float32).tiny)
        parts = [self._network, self._encoding]
        if level_weights is None and self._whole is not None:
            parts = [self._whole]
        wanted = [part.params for part in parts] + ([points] if points.requires_grad else [])
        found = torch.autograd.grad(value, wanted, (slope / size).to(value.dtype))
        grad_tables += size * torch.cat(found[: len(parts)])
        return size * found[-1] if points.requires_grad else torch.empty(0, device=self.device)


def _tinycudann() -> Any:
    try:
        import tinycudann
    except ImportError as error:
        raise InputError(
            f"tinycudann cannot be used ({error}); build it with the CUDA compiler from "
            "https://github.com/NVlabs/tiny-cuda-nn, folder bindings/torch"
        ) from error
    except OSError as error:
        raise InputError(
            f"tinycudann is installed, but finds no driver or no GPU that it was built for ({error}); run this where "
            "there is one"
        ) from error
    return tinycudann
