"""Projections of a field as the engine makes them: its density on a lattice, a projector, and pixels read from that.

With gradients of tables, decoder and the places where pixels look, which a warp may have moved. Throughput is counted
in samples a raw pixel apart along the rays, as other programs evaluate a field. Integrating rays within the field's
kernel took 15 to 48 times as long on the first GPU that timed both (one H200), and is not done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields import lattice_axes, make_field
from inrtomo.fields.grid import GridField
from inrtomo.geometry import centred_coordinates
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.gpu.hash_field import HashField
from inrtomo.gpu.operations import of
from inrtomo.projection import Lattice

F64 = NDArray[np.float64]
Tensor = torch.Tensor

TILTS = np.linspace(-60, 60, 61)
MARGIN = 3  # rows and columns around the view, for the cubic reading
WARP_PX = 1.5
DECODER: dict[str, Any] = {"levels": 6, "features": 2, "width": 16, "hidden": 1}  # that of inr-align


@dataclass(frozen=True)
class Slab:
    """A view of ``size`` x ``size`` raw px, and the lattice of all that its rays cross in a slab (raw px)."""

    size: int
    thickness: int
    tilt_deg: F64

    @property
    def lattice(self) -> Lattice:
        tilt = np.deg2rad(self.tilt_deg)
        half_x = ((self.size / 2 + MARGIN + self.thickness / 2 * np.abs(np.sin(tilt))) / np.cos(tilt)).max()
        return Lattice.covering(half_x, self.size / 2 + MARGIN, self.thickness / 2, 1.0)

    def field(self, **options: Any) -> GridField:
        """Its field, with parameters that matter: as many steps within the box as the lattice has planes."""
        nz, nx, ny = self.lattice.shape
        box = (-nx / 2, nx / 2, -ny / 2, ny / 2, -nz / 2, nz / 2)
        field = make_field("hash", box, 1.0, **options)
        assert isinstance(field, GridField)
        rng = np.random.default_rng(0)
        field.parameters()[:] += rng.normal(scale=0.1, size=field.parameters().size).astype(np.float32)
        return field

    def places(self) -> tuple[F64, F64]:
        """Where its pixels look, u and y ``(tilts, size, size)``, moved as by a warp."""
        centred = centred_coordinates(self.size)
        u, y = np.broadcast_to(centred[:, None], (self.size,) * 2), np.broadcast_to(centred, (self.size,) * 2)
        moved = u + WARP_PX * np.sin(y / 40), y + WARP_PX * np.cos(u / 40)
        shape = (len(self.tilt_deg), self.size, self.size)
        return np.broadcast_to(moved[0], shape), np.broadcast_to(moved[1], shape)

    @property
    def samples(self) -> float:
        """Along all its rays."""
        nz = self.lattice.shape[0]
        return float(self.size**2 * nz * (1 / np.cos(np.deg2rad(self.tilt_deg))).sum())


class ByLattice:
    """Density once on the lattice, ideal projections, and these read where the pixels look."""

    def __init__(self, slab: Slab, field: GridField, device: str, half: bool = True) -> None:
        lattice, self.ops = slab.lattice, of(device)
        n_u = 2 * (slab.size // 2 + MARGIN + 1) + 1
        self.kernels = HashField(field.grid, field.decoder, field.config["scale"], device, half)
        caps = np.full(lattice.shape[:2], field.grid.levels, dtype=np.uint8)
        self.plan = self.kernels.plan(lattice_axes(lattice), field.grid.level_weights(None), caps)
        self.geometry = TiltGeometry(lattice, slab.tilt_deg, n_u, device)
        u, y = slab.places()
        self.u, self.v = _tensor(u + (n_u - 1) / 2, device), _tensor(y + (lattice.shape[2] - 1) / 2, device)
        self.tables, self.weights, self.grads = _split(field, device)

    def forward(self) -> Tensor:
        values: Tensor = self.ops.values_at(self._ideal(), self.u, self.v)
        return values

    def train(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections and gradients of the pixels' places; the others are added."""
        ideal = self._ideal()
        values, by_u, by_y = self.ops.read_at(ideal, self.u, self.v)
        by_rho = torch.zeros(self.plan.shape, device=ideal.device)
        self.ops.add_back_projection(by_rho, self.ops.spread_at(grad, self.u, self.v, ideal.shape), self.geometry)
        self.kernels.lattice_backward(self.tables, self.weights, self.plan, by_rho, *self.grads)
        return values, grad * by_u, grad * by_y

    def _ideal(self) -> Tensor:
        ideal: Tensor = self.ops.project(self.kernels.lattice(self.tables, self.weights, self.plan), self.geometry)
        return ideal


def lines(
    device: str, size: int = 512, thickness: int = 180, tilt_deg: F64 = TILTS
) -> Iterator[tuple[str, Callable[[], Any], float, float]]:
    """What to time: name, work, samples along all rays, bytes' floor."""
    slab = Slab(size, thickness, tilt_deg)
    field = slab.field(**DECODER)
    p, m = field.parameters().size, len(tilt_deg) * size**2
    made, grad = ByLattice(slab, field, device), torch.ones((len(tilt_deg), size, size), device=device)
    for what, work, floor in (
        ("forward", made.forward, 4 * (p + 3 * m)),
        ("forward and backward", partial(made.train, grad), 4 * (4 * p + 8 * m)),
    ):
        yield f"projections of a {size} px slab, {what}", work, slab.samples, floor


def _tensor(values: F64, device: str) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values), dtype=torch.float32, device=device)


def _split(field: GridField, device: str) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Tables, decoder, and zeros for their gradients."""
    n, parameters = field.grid.n_parameters, torch.tensor(field.parameters(), device=device)
    grads = torch.zeros_like(parameters)
    return parameters[:n], parameters[n:], (grads[:n], grads[n:])
