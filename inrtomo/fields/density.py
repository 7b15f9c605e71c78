"""Density fields: encoding + decoder + softplus, one interface whatever they are made of.

A field holds its parameters as one flat float32 array, its gradient as another of the same layout, and `groups`
naming the parts that an optimiser may treat apart. The density is ``scale * softplus(.)``: never negative; the
solvent level belongs to whoever projects it.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.fields import decoders, kernels
from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import FourierFeatures, HashGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Box = tuple[float, float, float, float, float, float]

COARSEST_RATE = 0.4  # of the softplus' argument per step; beyond it coarse levels overshoot and the density dies
DECODER_RATE = 0.02
FOURIER_CHUNK = 1 << 16  # points a Fourier network handles at once, which bounds its memory


class LatticeSpec(Protocol):
    """A regular lattice ``[z, x, y]``: spacing in raw px, shape, and position (z, x, y) of its first element."""

    @property
    def spacing(self) -> float: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def origin(self) -> tuple[float, float, float]: ...


class DensityField:
    """What all fields share: flat parameters and gradient, named groups, saving and loading."""

    def __init__(self, config: dict[str, Any], parameters: F32, groups: dict[str, slice]) -> None:
        self.config = config
        self._parameters = parameters
        self.grad: F32 = np.zeros_like(parameters)
        self.groups = groups

    def parameters(self) -> F32:
        """The flat parameters ``(P,)`` themselves, to be changed in place."""
        return self._parameters

    def zero_grad(self) -> None:
        self.grad[:] = 0.0

    def active_groups(self, active_levels: float | None = None) -> list[str]:
        """Names of the parameter groups that ``active_levels`` levels make use of."""
        raise NotImplementedError

    def rates(self, rate: float, active_levels: float | None = None) -> dict[str, float]:
        """Step sizes for `Adam`, given that of the finest active level (hash 0.03, voxel 0.1, mlp 0.001 are good)."""
        raise NotImplementedError

    def lattice(
        self,
        spec: LatticeSpec,
        active_levels: float | None = None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        level_cap: NDArray[np.integer[Any]] | None = None,
    ) -> F32:
        """Density ``(nz, nx, ny)`` on a lattice.

        Args:
            spec: the lattice.
            active_levels: how many levels are on, coarsest first; a fraction fades the next one in. None: all.
            offset: moves the lattice by (z, x, y) raw px, for sub-voxel jitter.
            level_cap: ``(nz, nx)``, the most levels to use in each row along y; 0 leaves the row at zero. For
                material outside the region of interest (few levels) and space that no ray crosses (none).
        """
        raise NotImplementedError

    def backward_lattice(self, grad_rho: F32) -> None:
        """Add to `grad` the gradient of ``sum(grad_rho * rho)`` for the last `lattice` call; once per call."""
        raise NotImplementedError

    def points(self, xyz: NDArray[np.floating[Any]], active_levels: float | None = None) -> F32:
        """Density ``(N,)`` at points ``(N, 3)`` (x, y, z), raw px; outside the box that of its surface."""
        raise NotImplementedError

    def backward_points(self, grad: F32) -> F32:
        """Add to `grad` for the last `points` call; returns the gradient ``(N, 3)`` of the points (x, y, z)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: ``parameters`` and ``config`` (JSON text)."""
        return {"parameters": self._parameters.copy(), "config": np.array(json.dumps(self.config))}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Take the parameters of a field of the same configuration."""
        if json.loads(str(state["config"])) != self.config:
            raise ValueError("the state belongs to a field of another configuration")
        self._parameters[:] = state["parameters"]

    def save(self, path: Path) -> None:
        """Write the state as an ``.npz`` file without pickled objects."""
        with open(path, "wb") as stream:
            np.savez(stream, allow_pickle=False, **self.state_dict())


class GridField(DensityField):
    """Hash grid (or voxel pyramid) with a decoder, evaluated by compiled kernels."""

    def __init__(self, config: dict[str, Any], grid: HashGrid, decoder: Decoder) -> None:
        scale, initial, seed = config["scale"], config["initial"], config["seed"]
        self.grid, self.decoder = grid, decoder
        self._fixed = decoder.initial(seed, _inverse_softplus(initial / scale))
        count = grid.n_parameters
        groups = {f"level{k}": grid.level(k) for k in range(grid.levels)}
        parts = [grid.initial(seed)]
        if decoder.trainable:
            groups["decoder"] = slice(count, count + decoder.n_parameters)
            parts.append(self._fixed)
        super().__init__(config, np.concatenate(parts), groups)
        self._kernels = kernels.load(config["backend"])(grid, decoder, scale)

    def active_groups(self, active_levels: float | None = None) -> list[str]:
        weights = self.grid.level_weights(active_levels)
        return [f"level{k}" for k in np.nonzero(weights)[0]] + (["decoder"] if self.decoder.trainable else [])

    def rates(self, rate: float, active_levels: float | None = None) -> dict[str, float]:
        if self.decoder.trainable:
            # one rate for all levels: longer steps of coarse levels start faster but end worse behind a decoder
            # (benchmark S1: held-out loss 0.56 instead of 0.45, 0.125 px instead of 0.096)
            return {group: DECODER_RATE if group == "decoder" else rate for group in self.groups}
        # summed levels: coarse ones see much more data per entry, so they may move in proportion to their spacing
        finest = max(int(np.count_nonzero(self.grid.level_weights(active_levels))) - 1, 0)
        ratios = np.maximum(self.grid.spacing / self.grid.spacing[finest], 1.0)
        steps = np.minimum(rate * ratios, max(rate, COARSEST_RATE))
        return {f"level{k}": float(step) for k, step in enumerate(steps)}

    def _split(self, flat: F32) -> tuple[F32, F32]:
        count = self.grid.n_parameters
        return flat[:count], flat[count:]

    def _values(self) -> tuple[F32, F32]:
        tables, weights = self._split(self._parameters)
        return tables, (weights if self.decoder.trainable else self._fixed)

    def lattice(
        self,
        spec: LatticeSpec,
        active_levels: float | None = None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        level_cap: NDArray[np.integer[Any]] | None = None,
    ) -> F32:
        tables, weights = self._values()
        caps = np.full(spec.shape[:2], self.grid.levels) if level_cap is None else np.asarray(level_cap)
        if caps.shape != tuple(spec.shape[:2]):
            raise ValueError(f"level_cap has shape {caps.shape}, the lattice's rows are {tuple(spec.shape[:2])}")
        level_weights = self.grid.level_weights(active_levels)
        rho: F32 = self._kernels.lattice(tables, weights, lattice_axes(spec, offset), level_weights, caps)
        return rho

    def backward_lattice(self, grad_rho: F32) -> None:
        self._kernels.lattice_backward(grad_rho, *self._split(self.grad))

    def points(self, xyz: NDArray[np.floating[Any]], active_levels: float | None = None) -> F32:
        zxy = np.ascontiguousarray(np.asarray(xyz, dtype=np.float32)[:, [2, 0, 1]])
        density: F32 = self._kernels.points(*self._values(), zxy, self.grid.level_weights(active_levels))
        return density

    def backward_points(self, grad: F32) -> F32:
        zxy: F32 = self._kernels.points_backward(grad, *self._split(self.grad))
        return zxy[:, [1, 2, 0]]


class FourierField(DensityField):
    """Fourier-feature network of the 2023 paper: ReLU layers in torch; slow, for comparison."""

    def __init__(self, config: dict[str, Any], encoding: FourierFeatures, decoder: Decoder) -> None:
        self.encoding, self.decoder = encoding, decoder
        initial = _inverse_softplus(config["initial"] / config["scale"])
        weights = decoder.initial(config["seed"], initial)
        decoder.layers(weights)[-1][0][:] *= 0.1  # a nearly flat start
        decoder.layers(weights)[-1][1][:] = initial
        super().__init__(config, weights, {"decoder": slice(0, len(weights))})
        box = np.array(config["box"]).reshape(3, 2)
        self._low, self._high = torch.tensor(box[:, 0]).float(), torch.tensor(box[:, 1]).float()
        self._saved: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rows: NDArray[np.intp] | None = None
        self._shape: tuple[int, ...] = ()

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
        self._rows, self._shape = np.nonzero(keep.ravel())[0], z.shape
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
        level_weights = torch.as_tensor(self.encoding.level_weights(active_levels))
        self._saved = (points, level_weights)
        flat = torch.from_numpy(self._parameters)
        with torch.no_grad():
            parts = [self._density(flat, p, level_weights) for p in torch.split(points, FOURIER_CHUNK)]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)

    def backward_points(self, grad: F32) -> F32:
        return self._backward(grad, coordinates=True)

    def _backward(self, grad: F32, coordinates: bool) -> F32:
        if self._saved is None:
            raise RuntimeError("backward without an evaluation before it")
        points, level_weights = self._saved
        moved = np.zeros(points.shape if coordinates else (0, 3), dtype=np.float32)
        given = torch.as_tensor(np.asarray(grad, dtype=np.float32))
        for first in range(0, len(points), FOURIER_CHUNK):
            part = slice(first, first + FOURIER_CHUNK)
            flat = torch.from_numpy(self._parameters).requires_grad_()
            p = points[part].clone().requires_grad_(coordinates)
            wanted = (flat, p) if coordinates else (flat,)
            slopes = torch.autograd.grad(self._density(flat, p, level_weights), wanted, given[part])
            self.grad += slopes[0].numpy()
            if coordinates:
                moved[part] = slopes[1].numpy()
        return moved

    def _density(self, flat: torch.Tensor, xyz: torch.Tensor, level_weights: torch.Tensor) -> torch.Tensor:
        inside = torch.minimum(torch.maximum(xyz, self._low), self._high)
        phase = 2 * torch.pi * (inside @ torch.from_numpy(self.encoding.frequencies).T)
        value = torch.cat([torch.sin(phase) * level_weights, torch.cos(phase) * level_weights], dim=1)
        sizes, at = self.decoder.sizes, 0
        for k, (i, o) in enumerate(pairwise(sizes)):
            matrix, offsets = flat[at : at + i * o].reshape(o, i), flat[at + i * o : at + (i + 1) * o]
            value = torch.nn.functional.linear(value, matrix, offsets)
            at += (i + 1) * o
            if k < len(sizes) - 2:
                value = torch.relu(value)
        return float(self.config["scale"]) * torch.nn.functional.softplus(value[:, 0])


def lattice_axes(spec: LatticeSpec, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[F64, F64, F64]:
    """Positions along z, x and y of a lattice's elements, raw px."""
    z, x, y = (
        (o + d + spec.spacing * np.arange(n)).astype(np.float64)
        for o, d, n in zip(spec.origin, offset, spec.shape, strict=True)
    )
    return z, x, y


def make_field(
    kind: str,
    box: Box,
    finest_px: float,
    levels: int = 8,
    features: int | None = None,
    seed: int = 0,
    *,
    width: int | None = None,
    hidden: int | None = None,
    growth: float = 2.0,
    log2_table: int = 22,
    decoder: str = "mlp",
    scale: float = 1.0,
    initial: float = 0.1,
    backend: str = "cpu",
) -> DensityField:
    """A density field by name.

    Args:
        kind: ``"hash"`` (hash grid + decoder), ``"voxel"`` (pyramid of voxel grids, summed) or ``"mlp"``
            (Fourier features + ReLU network).
        box: ``(x0, x1, y0, y1, z0, z1)``, raw px from the specimen's centre. A finest grid whose vertices are a
            lattice's points has that lattice's first and last points as its box.
        finest_px: spacing of the finest level, raw px: one voxel of the finest scale of the fit.
        levels, features: numbers of levels and of features in each (hash 2, voxel 1, mlp 64 frequencies).
        seed: of the initial parameters.
        width, hidden: of the decoder (hash 16 and 1, mlp 128 and 3).
        growth: ratio of spacings of neighbouring levels.
        log2_table: levels with more vertices are hashed.
        decoder: ``"mlp"`` or ``"linear"``, for the hash grid.
        scale: factor of the softplus: typical density of the specimen.
        initial: density everywhere at the start.
        backend: of grid fields, ``"cpu"`` or ``"reference"``.
    """
    config: dict[str, Any] = {
        "kind": kind, "box": [float(v) for v in box], "finest_px": float(finest_px), "levels": levels,
        "features": features, "seed": seed, "width": width, "hidden": hidden, "growth": growth,
        "log2_table": log2_table, "decoder": decoder, "scale": float(scale), "initial": float(initial),
        "backend": backend,
    }  # fmt: skip
    if kind == "mlp":
        fourier = FourierFeatures(box, finest_px, levels, features or 64, seed)
        return FourierField(
            config, fourier, decoders.mlp(fourier.n_features, width or 128, hidden or 3, start="random")
        )
    if kind == "hash":
        grid = HashGrid(box, finest_px, levels, features or 2, growth, log2_table)
        makers = {
            "mlp": lambda: decoders.mlp(
                grid.n_features, width or 16, 1 if hidden is None else hidden, share=grid.features
            ),
            "linear": lambda: decoders.linear(grid.n_features, grid.features),
        }
        if decoder not in makers:
            raise ValueError(f"unknown decoder {decoder!r}; use one of {', '.join(makers)}")
        return GridField(config, grid, makers[decoder]())
    if kind == "voxel":
        grid = HashGrid(box, finest_px, levels, features or 1, growth, log2_table=62)
        return GridField(config, grid, decoders.total(grid.n_features))
    raise ValueError(f"unknown field {kind!r}; use 'hash', 'voxel' or 'mlp'")


def load_field(path: Path) -> DensityField:
    """A field from the file that `DensityField.save` wrote."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            state = {name: archive[name] for name in ("parameters", "config")}
        config = json.loads(str(state["config"]))
        config["box"] = tuple(config["box"])
        field = make_field(**config)
        field.load_state_dict(state)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path}: not a density field of this program ({error}); make it again") from error
    return field


def _inverse_softplus(value: float) -> float:
    return float(value + np.log(-np.expm1(-max(value, 1e-12))))
