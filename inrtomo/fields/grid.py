"""Grid fields: hash grid (or voxel pyramid) and decoder, evaluated by compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.fields import kernels
from inrtomo.fields.decoders import Decoder
from inrtomo.fields.density import (
    DECODER_RATE,
    F32,
    DensityField,
    FieldOnDevice,
    LatticeSpec,
    inverse_softplus,
    lattice_axes,
)
from inrtomo.fields.encodings import HashGrid

COARSEST_RATE = 0.4  # of the softplus' argument per step; beyond it coarse levels overshoot and the density dies


class GridField(DensityField):
    """Hash grid (or voxel pyramid) with a decoder, evaluated by compiled kernels."""

    def __init__(self, config: dict[str, Any], grid: HashGrid, decoder: Decoder) -> None:
        scale, initial, seed = config["scale"], config["initial"], config["seed"]
        self.grid, self.decoder = grid, decoder
        self._fixed = decoder.initial(seed, inverse_softplus(initial / scale))
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

    @property
    def fixed_weights(self) -> F32:
        """The decoder's initial weights, which are all it ever has where it is not trainable."""
        return self._fixed

    def use_device(self, device: str) -> None:
        from inrtomo.fields.kernels.device import ArrayKernels
        from inrtomo.gpu.operations import hash_field

        self._kernels = ArrayKernels(hash_field(self.grid, self.decoder, self.config["scale"], device))

    def on_device(self, device: str, active_levels: float | None = None) -> FieldOnDevice:
        from inrtomo.gpu.grid_on_device import GridOnDevice

        return GridOnDevice(self, active_levels, device)

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
