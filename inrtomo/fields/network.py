"""Coordinate networks in torch: slow, for comparison with what the papers used.

* `FourierField`: sines and cosines of random frequencies, then ReLU layers (the 2023 paper).
* `SirenField`: layers with a sine each, straight from the coordinates (Sitzmann et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.density import F32, F64, DensityField, LatticeSpec, inverse_softplus, lattice_axes
from inrtomo.fields.encodings import FourierFeatures

CHUNK = 1 << 16  # points a network handles at once, which bounds its memory
COPIES = 3  # of all layers, that a chunk of points and its gradient take
OMEGA = 30.0  # of the sines, as published: many periods across the box from the first layer on


@dataclass(frozen=True)
class LatticeRows:
    """A lattice: shape, positions along z, x and y, and which rows along y (z-major) are not left at zero."""

    shape: tuple[int, int, int]
    axes: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    rows: torch.Tensor


class Network:
    """A coordinate network as a function of its flat weights, on any device; `FieldOnDevice`.

    Points are handled in chunks, gradients are torch's, everything is float32.

    Args:
        config: of the field.
        sizes: of the layers.
        device: of all tensors.
    """

    def __init__(self, config: dict[str, Any], sizes: tuple[int, ...], device: str) -> None:
        low, high = np.array(config["box"], dtype=np.float32).reshape(3, 2).T
        self.device, self.sizes, self.scale = device, sizes, float(config["scale"])
        self.low, self.high = (torch.tensor(side, device=device) for side in (low, high))

    def argument(self, flat: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """What the softplus is of, ``(N, 1)``, at points ``(N, 3)`` (x, y, z) inside the box."""
        raise NotImplementedError

    def density(self, flat: torch.Tensor, xyz: torch.Tensor) -> torch.Tensor:
        """Density ``(N,)`` at points ``(N, 3)``; outside the box that of its surface."""
        value = self.argument(flat, torch.clamp(xyz, self.low, self.high))
        return self.scale * torch.nn.functional.softplus(value[:, 0])

    def layers(self, flat: torch.Tensor, value: torch.Tensor, bend: Any) -> torch.Tensor:
        """Affine layers with ``bend`` between them."""
        at = 0
        for k, (i, o) in enumerate(pairwise(self.sizes)):
            matrix, offsets = flat[at : at + i * o].reshape(o, i), flat[at + i * o : at + (i + 1) * o]
            value = torch.nn.functional.linear(value, matrix, offsets)
            at += (i + 1) * o
            if k < len(self.sizes) - 2:
                value = bend(value)
        return value

    # --- lattices --------------------------------------------------------------------------------------------------

    def plan(self, spec: LatticeSpec, caps: NDArray[np.integer[Any]]) -> LatticeRows:
        return self.plan_of(lattice_axes(spec), caps)

    def plan_of(self, axes: tuple[F64, F64, F64], caps: NDArray[np.integer[Any]]) -> LatticeRows:
        """A lattice at positions ``axes`` = (z, x, y); rows ``(nz, nx)`` of ``caps`` 0 stay at zero."""
        z, x, y = (torch.tensor(a, dtype=torch.float32, device=self.device) for a in axes)
        return LatticeRows(
            (len(z), len(x), len(y)), (z, x, y), torch.tensor(np.flatnonzero(caps > 0), device=self.device)
        )

    def lattice(self, parameters: torch.Tensor, plan: LatticeRows) -> torch.Tensor:
        rho = torch.zeros(plan.shape, device=self.device)
        lines = rho.view(-1, plan.shape[2])
        with torch.no_grad():
            for rows, xyz in self._chunks(plan):
                lines[rows] = self.density(parameters, xyz).view(len(rows), -1)
        return rho

    def add_gradient(
        self, parameters: torch.Tensor, plan: LatticeRows, grad_rho: torch.Tensor, grad: torch.Tensor
    ) -> None:
        flat, given = parameters.detach().requires_grad_(), grad_rho.reshape(-1, plan.shape[2])
        for rows, xyz in self._chunks(plan):
            grad += torch.autograd.grad(self.density(flat, xyz), flat, given[rows].flatten())[0]

    def backward_bytes(self, plan: LatticeRows) -> int:
        points = min(max(CHUNK, plan.shape[2]), len(plan.rows) * plan.shape[2])
        return 4 * points * (COPIES * sum(self.sizes) + 12)

    def _chunks(self, plan: LatticeRows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some rows at a time, and their points ``(N, 3)``."""
        (_, nx, ny), (z, x, y) = plan.shape, plan.axes
        for rows in plan.rows.split(max(1, CHUNK // ny)):
            sides = x[rows % nx][:, None], y[None, :], z[rows // nx][:, None]
            yield rows, torch.stack(torch.broadcast_tensors(*sides), dim=-1).view(-1, 3)

    # --- points ----------------------------------------------------------------------------------------------------

    def points(self, parameters: torch.Tensor, xyz: torch.Tensor) -> torch.Tensor:
        """Density ``(N,)``."""
        with torch.no_grad():
            return torch.cat([self.density(parameters, part) for part in xyz.split(CHUNK)])

    def add_gradient_at_points(
        self, parameters: torch.Tensor, xyz: torch.Tensor, given: torch.Tensor, grad: torch.Tensor
    ) -> torch.Tensor:
        """Add the gradient of ``sum(given * density)`` to ``grad`` and return that of the points ``(N, 3)``."""
        flat, moved = parameters.detach().requires_grad_(), []
        for part, slope in zip(xyz.split(CHUNK), given.split(CHUNK), strict=True):
            points = part.detach().requires_grad_()
            by_flat, by_points = torch.autograd.grad(self.density(flat, points), (flat, points), slope)
            grad += by_flat
            moved.append(by_points)
        return torch.cat(moved)


class NetworkField(DensityField):
    """What coordinate networks share: NumPy arrays in and out of a `Network`."""

    def __init__(self, config: dict[str, Any], decoder: Decoder, weights: F32) -> None:
        self.decoder = decoder
        matrix, offsets = decoder.layers(weights)[-1]
        matrix[:] *= 0.1  # a nearly flat start
        offsets[:] = inverse_softplus(config["initial"] / config["scale"])
        super().__init__(config, weights, {"decoder": slice(0, len(weights))})
        self._device = "cpu"
        self._saved: Any = None

    def active_groups(self, active_levels: float | None = None) -> list[str]:
        return ["decoder"]

    def rates(self, rate: float, active_levels: float | None = None) -> dict[str, float]:
        return {"decoder": rate}

    def use_device(self, device: str) -> None:
        self._device = device

    def on_device(self, device: str, active_levels: float | None = None) -> Network:
        raise NotImplementedError

    def lattice(
        self,
        spec: LatticeSpec,
        active_levels: float | None = None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        level_cap: NDArray[np.integer[Any]] | None = None,
    ) -> F32:
        network = self.on_device(self._device, active_levels)
        caps = np.ones(spec.shape[:2], np.int64) if level_cap is None else np.asarray(level_cap)
        plan = network.plan_of(lattice_axes(spec, offset), caps)
        self._saved = network, plan
        return _array(network.lattice(self._flat, plan))

    def backward_lattice(self, grad_rho: F32) -> None:
        network, plan = self._given(LatticeRows)
        total = torch.zeros_like(self._flat)
        network.add_gradient(self._flat, plan, self._tensor(grad_rho), total)
        self.grad += _array(total)

    def points(self, xyz: NDArray[np.floating[Any]], active_levels: float | None = None) -> F32:
        network, points = self.on_device(self._device, active_levels), self._tensor(xyz)
        self._saved = network, points
        return _array(network.points(self._flat, points))

    def backward_points(self, grad: F32) -> F32:
        network, points = self._given(torch.Tensor)
        total = torch.zeros_like(self._flat)
        moved = network.add_gradient_at_points(self._flat, points, self._tensor(grad), total)
        self.grad += _array(total)
        return _array(moved)

    def _given(self, kind: type) -> Any:
        if self._saved is None or not isinstance(self._saved[1], kind):
            raise RuntimeError("backward without an evaluation before it")
        return self._saved

    @property
    def _flat(self) -> torch.Tensor:
        return self._tensor(self._parameters)

    def _tensor(self, values: NDArray[np.floating[Any]]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self._device)


class FourierField(NetworkField):
    """Fourier-feature network of the 2023 paper: ReLU layers."""

    def __init__(self, config: dict[str, Any], encoding: FourierFeatures, decoder: Decoder) -> None:
        self.encoding = encoding
        super().__init__(config, decoder, decoder.initial(config["seed"], 0.0))

    def on_device(self, device: str, active_levels: float | None = None) -> Network:
        return FourierNetwork(self.config, self.decoder.sizes, device, self.encoding, active_levels)


class FourierNetwork(Network):
    """The network of a `FourierField` with so many levels."""

    def __init__(
        self,
        config: dict[str, Any],
        sizes: tuple[int, ...],
        device: str,
        encoding: FourierFeatures,
        active_levels: float | None,
    ) -> None:
        super().__init__(config, sizes, device)
        self.frequencies = torch.tensor(encoding.frequencies.T, device=device)
        self.level_weights = torch.tensor(encoding.level_weights(active_levels), device=device)

    def argument(self, flat: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        phase = 2 * torch.pi * (inside @ self.frequencies)
        value = torch.cat([torch.sin(phase) * self.level_weights, torch.cos(phase) * self.level_weights], dim=1)
        return self.layers(flat, value, torch.relu)


class SirenField(NetworkField):
    """Sinusoidal network; it has no levels: ``active_levels`` changes nothing.

    The box's longest side becomes [-1, 1]; the initial weights are those of Sitzmann et al. 2020, section 3.2: the
    first layer's uniform within 1 / inputs, the others' within sqrt(6 / inputs) / omega, so that every layer's
    sines see about a standard normal phase, beside their offset.
    """

    def __init__(self, config: dict[str, Any], decoder: Decoder) -> None:
        rng = np.random.default_rng([config["seed"], 1])
        weights = np.zeros(decoder.n_weights, dtype=np.float32)
        for k, (matrix, offsets) in enumerate(decoder.layers(weights)):
            inputs = matrix.shape[1]
            width = 1 / inputs if k == 0 else np.sqrt(6 / inputs) / OMEGA
            matrix[:] = rng.uniform(-width, width, size=matrix.shape)
            offsets[:] = rng.uniform(-1 / np.sqrt(inputs), 1 / np.sqrt(inputs), size=offsets.shape)
        super().__init__(config, decoder, weights)

    def on_device(self, device: str, active_levels: float | None = None) -> Network:
        return SirenNetwork(self.config, self.decoder.sizes, device)


class SirenNetwork(Network):
    """The network of a `SirenField`."""

    def argument(self, flat: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        centre, half = (self.low + self.high) / 2, (self.high - self.low).max() / 2
        return self.layers(flat, (inside - centre) / half, lambda value: torch.sin(OMEGA * value))


def _array(values: torch.Tensor) -> F32:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.float32)
