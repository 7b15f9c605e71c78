"""Coordinate networks in torch: slow, for comparison with what the papers used.

* `FourierField`: sines and cosines of random frequencies, then ReLU layers (the 2023 paper).
* `SirenField`: layers with a sine each, straight from the coordinates (Sitzmann et al. 2020).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.density import F32, DensityField, LatticeSpec, inverse_softplus, lattice_axes
from inrtomo.fields.encodings import FourierFeatures

CHUNK = 1 << 16  # points a network handles at once, which bounds its memory
OMEGA = 30.0  # of the sines, as published: many periods across the box from the first layer on


class NetworkField(DensityField):
    """What coordinate networks share: chunks of points, gradients by torch; `_density` is the network."""

    def __init__(self, config: dict[str, Any], decoder: Decoder, weights: F32) -> None:
        self.decoder = decoder
        matrix, offsets = decoder.layers(weights)[-1]
        matrix[:] *= 0.1  # a nearly flat start
        offsets[:] = inverse_softplus(config["initial"] / config["scale"])
        super().__init__(config, weights, {"decoder": slice(0, len(weights))})
        box = np.array(config["box"]).reshape(3, 2)
        self._low, self._high = torch.tensor(box[:, 0]).float(), torch.tensor(box[:, 1]).float()
        self._saved: tuple[torch.Tensor, float | None] | None = None
        self._rows: NDArray[np.intp] | None = None

    def active_groups(self, active_levels: float | None = None) -> list[str]:
        return ["decoder"]

    def rates(self, rate: float, active_levels: float | None = None) -> dict[str, float]:
        return {"decoder": rate}

    def lattice(
        self,
        spec: LatticeSpec,
        active_levels: float | None = None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        level_cap: NDArray[np.integer[Any]] | None = None,
    ) -> F32:
        z, x, y = np.meshgrid(*lattice_axes(spec, offset), indexing="ij")
        keep = np.ones(z.shape, bool) if level_cap is None else np.broadcast_to(level_cap[:, :, None] > 0, z.shape)
        self._rows = np.nonzero(keep.ravel())[0]
        out = np.zeros(z.size, dtype=np.float32)
        xyz = np.stack([a.ravel()[self._rows] for a in (x, y, z)], axis=1)
        out[self._rows] = self.points(xyz, active_levels)
        return out.reshape(z.shape)

    def backward_lattice(self, grad_rho: F32) -> None:
        if self._rows is None:
            raise RuntimeError("backward_lattice without a lattice evaluation before it")
        self._backward(grad_rho.ravel()[self._rows], coordinates=False)

    def points(self, xyz: NDArray[np.floating[Any]], active_levels: float | None = None) -> F32:
        points = torch.as_tensor(np.asarray(xyz, dtype=np.float32))
        self._saved = (points, active_levels)
        flat = torch.from_numpy(self._parameters)
        with torch.no_grad():
            parts = [self._density(flat, p, active_levels) for p in torch.split(points, CHUNK)]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)

    def backward_points(self, grad: F32) -> F32:
        return self._backward(grad, coordinates=True)

    def _backward(self, grad: F32, coordinates: bool) -> F32:
        if self._saved is None:
            raise RuntimeError("backward without an evaluation before it")
        points, active_levels = self._saved
        moved = np.zeros(points.shape if coordinates else (0, 3), dtype=np.float32)
        given = torch.as_tensor(np.asarray(grad, dtype=np.float32))
        for first in range(0, len(points), CHUNK):
            part = slice(first, first + CHUNK)
            flat = torch.from_numpy(self._parameters).requires_grad_()
            p = points[part].clone().requires_grad_(coordinates)
            wanted = (flat, p) if coordinates else (flat,)
            slopes = torch.autograd.grad(self._density(flat, p, active_levels), wanted, given[part])
            self.grad += slopes[0].numpy()
            if coordinates:
                moved[part] = slopes[1].numpy()
        return moved

    def _density(self, flat: torch.Tensor, xyz: torch.Tensor, active_levels: float | None) -> torch.Tensor:
        value = self._network(flat, torch.minimum(torch.maximum(xyz, self._low), self._high), active_levels)
        return float(self.config["scale"]) * torch.nn.functional.softplus(value[:, 0])

    def _network(self, flat: torch.Tensor, inside: torch.Tensor, active_levels: float | None) -> torch.Tensor:
        """Argument ``(N, 1)`` of the softplus at points ``(N, 3)`` inside the box."""
        raise NotImplementedError

    def _layers(self, flat: torch.Tensor, value: torch.Tensor, bend: Any) -> torch.Tensor:
        """Affine layers with ``bend`` between them."""
        sizes, at = self.decoder.sizes, 0
        for k, (i, o) in enumerate(pairwise(sizes)):
            matrix, offsets = flat[at : at + i * o].reshape(o, i), flat[at + i * o : at + (i + 1) * o]
            value = torch.nn.functional.linear(value, matrix, offsets)
            at += (i + 1) * o
            if k < len(sizes) - 2:
                value = bend(value)
        return value


class FourierField(NetworkField):
    """Fourier-feature network of the 2023 paper: ReLU layers."""

    def __init__(self, config: dict[str, Any], encoding: FourierFeatures, decoder: Decoder) -> None:
        self.encoding = encoding
        super().__init__(config, decoder, decoder.initial(config["seed"], 0.0))

    def _network(self, flat: torch.Tensor, inside: torch.Tensor, active_levels: float | None) -> torch.Tensor:
        level_weights = torch.as_tensor(self.encoding.level_weights(active_levels))
        phase = 2 * torch.pi * (inside @ torch.from_numpy(self.encoding.frequencies).T)
        value = torch.cat([torch.sin(phase) * level_weights, torch.cos(phase) * level_weights], dim=1)
        return self._layers(flat, value, torch.relu)


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
        self._centre = (self._low + self._high) / 2
        self._half = float((self._high - self._low).max()) / 2

    def _network(self, flat: torch.Tensor, inside: torch.Tensor, active_levels: float | None) -> torch.Tensor:
        return self._layers(flat, (inside - self._centre) / self._half, lambda value: torch.sin(OMEGA * value))
