"""Two ways to the projections of a field: by a lattice and a projector, as the engine does, and fused within rays.

Both start from the same tables and give the same pixels of the same slab, rays through places that a warp may have
moved, with gradients of tables, decoder and those places. Samples are a raw pixel apart, on the lattice and along rays.
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
from inrtomo.gpu.operations import of
from inrtomo.projection import Lattice
from integration.benchmarks.gpu.ray_field import RayField, marched

F64 = NDArray[np.float64]
Tensor = torch.Tensor

TILTS = np.linspace(-60, 60, 61)
EVERY = 20  # of the tilts is fused: 4 of 61, since all would take minutes
MARGIN = 3  # rows and columns around the view, for the cubic reading
STEP = 1.0
WARP_PX = 1.5
OFF_PX = 0.25  # of all pixels, from the vertices of the field, where its gradients jump
DECODERS: dict[str, dict[str, Any]] = {
    "6 levels x 2, 16 wide": {"levels": 6, "features": 2, "width": 16, "hidden": 1},
    "8 levels x 4, 2 x 64 wide": {"levels": 8, "features": 4, "width": 64, "hidden": 2},
}


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

    def field(self, backend: str = "cpu", **options: Any) -> GridField:
        """Its field, with parameters that matter: as many steps within the box as the lattice has planes."""
        nz, nx, ny = self.lattice.shape
        box = (-nx / 2, nx / 2, -ny / 2, ny / 2, -nz / 2, nz / 2)
        field = make_field("hash", box, 1.0, backend=backend, **options)
        assert isinstance(field, GridField)
        rng = np.random.default_rng(0)
        field.parameters()[:] += rng.normal(scale=0.1, size=field.parameters().size).astype(np.float32)
        return field

    def places(self, warp_px: float) -> tuple[F64, F64]:
        """Where its pixels look, u and y ``(tilts, size, size)``; u ``(tilts, size, 1)`` without a warp."""
        n, centred = len(self.tilt_deg), centred_coordinates(self.size) + OFF_PX
        y = np.broadcast_to(centred, (n, self.size, self.size))
        u = np.broadcast_to(centred[:, None], (n, self.size, 1))
        return (u + warp_px * np.sin(y / 40), y + warp_px * np.cos(u / 40)) if warp_px else (u, y)

    @property
    def samples(self) -> float:
        """Along all its rays."""
        nz = self.lattice.shape[0]
        return float(self.size**2 * nz / STEP * (1 / np.cos(np.deg2rad(self.tilt_deg))).sum())


class ByLattice:
    """Density once on the lattice, ideal projections, and these read where the pixels look."""

    def __init__(self, slab: Slab, field: GridField, device: str, warp_px: float, half: bool = True) -> None:
        lattice, self.ops = slab.lattice, of(device)
        n_u = 2 * (slab.size // 2 + MARGIN + 1) + 1
        self.kernels = RayField(field.grid, field.decoder, field.config["scale"], device, half)
        caps = np.full(lattice.shape[:2], field.grid.levels, dtype=np.uint8)
        self.plan = self.kernels.plan(lattice_axes(lattice), field.grid.level_weights(None), caps)
        self.geometry = TiltGeometry(lattice, slab.tilt_deg, n_u, device)
        u, y = np.broadcast_arrays(*slab.places(warp_px))
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


class ByRays:
    """Every pixel's ray integrated within the field's kernel."""

    def __init__(self, slab: Slab, field: GridField, device: str, warp_px: float, half: bool = True) -> None:
        self.kernels = RayField(field.grid, field.decoder, field.config["scale"], device, half)
        u, y = slab.places(warp_px)
        self.given = slab.tilt_deg, _tensor(u, device), _tensor(y, device), field.grid.level_weights(None), STEP
        self.tables, self.weights, self.grads = _split(field, device)

    def forward(self) -> Tensor:
        return self.kernels.rays(self.tables, self.weights, *self.given)

    def train(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `ByLattice`."""
        return self.forward(), *self.kernels.rays_backward(self.tables, self.weights, *self.given, grad, *self.grads)


def errors(device: str, size: int = 70, thickness: int = 4) -> Iterator[tuple[str, float]]:
    """The fused way against the float64 reference at the same samples, of the largest value."""
    # tilts at which no sample lies on a face of the box, to be rounded to either side
    slab = Slab(size, thickness, np.array([-57.0, 0.0, 45.0]))
    for name, options in DECODERS.items():
        field, exact = slab.field(**options), slab.field("reference", **options)
        for form, warp_px in (("straight", 0.0), ("bent", WARP_PX)):
            rays = ByRays(slab, field, device, warp_px)
            u, y = slab.places(warp_px)
            grad = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
            exact.zero_grad()
            expected: list[Any] = [*marched(exact, slab.tilt_deg, u, y, STEP, grad), exact.grad]
            found = [*rays.train(torch.tensor(grad, device=device)), torch.cat(rays.grads)]
            for what, one, other in zip(
                ("values", "gradients of places", "gradients of places along y", "gradients of parameters"),
                found, expected, strict=True,
            ):  # fmt: skip
                apart = np.abs(one.cpu().numpy() - other).max() / np.abs(other).max()
                yield f"fused within {form} rays, {name}, {what}", float(apart)


def lines(
    device: str, size: int = 512, thickness: int = 180, tilt_deg: F64 = TILTS, every: int = EVERY
) -> Iterator[tuple[str, Callable[[], Any], float, float, float]]:
    """What to time: name, work, how many times longer all tilts would take, samples along all rays, bytes' floor."""
    slab, part = Slab(size, thickness, tilt_deg), Slab(size, thickness, tilt_deg[::every])
    field = slab.field(**DECODERS["6 levels x 2, 16 wide"])
    p, m = field.parameters().size, len(tilt_deg) * size**2
    share, few = slab.samples / part.samples, f"{len(part.tilt_deg)} of {len(tilt_deg)} tilts, scaled"
    ways: tuple[tuple[str, Any, Slab, float, float], ...] = (
        ("lattice, projector and reading", ByLattice, slab, WARP_PX, 1.0),
        (f"fused within rays, straight ({few})", ByRays, part, 0.0, share),
        (f"fused within rays, bent ({few})", ByRays, part, WARP_PX, share),
    )
    for name, way, seen, warp_px, longer in ways:
        made = way(seen, field, device, warp_px)
        grad = torch.ones((len(seen.tilt_deg), size, size), device=device)
        for what, work, floor in (
            ("forward", made.forward, 4 * (p + 3 * m)),
            ("forward and backward", partial(made.train, grad), 4 * (4 * p + 8 * m)),
        ):
            yield f"projections of a {size} px slab, {what}: {name}", work, longer, slab.samples, floor


def _tensor(values: F64, device: str) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values), dtype=torch.float32, device=device)


def _split(field: GridField, device: str) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Tables, decoder, and zeros for their gradients."""
    n, parameters = field.grid.n_parameters, torch.tensor(field.parameters(), device=device)
    grads = torch.zeros_like(parameters)
    return parameters[:n], parameters[n:], (grads[:n], grads[n:])
