"""A `GridField` on a device, as fits there use it: hash grid (or voxel pyramid) and decoder of flat parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.density import LatticeSpec, lattice_axes
from inrtomo.gpu import operations
from inrtomo.gpu.plan import LatticePlan

if TYPE_CHECKING:
    from inrtomo.fields.grid import GridField

Tensor = torch.Tensor

ROWS_OF_TILE = 64  # of a lattice, for which the decoder's gradient is summed apart


class GridOnDevice:
    """See `inrtomo.fields.density.FieldOnDevice`; ``active_levels`` as of `DensityField.lattice`."""

    def __init__(self, field: GridField, active_levels: float | None, device: str) -> None:
        self.grid, self.decoder = field.grid, field.decoder
        self.level_weights = self.grid.level_weights(active_levels)
        self.kernels = operations.hash_field(self.grid, self.decoder, field.config["scale"], device)
        self._fixed = None if self.decoder.trainable else torch.tensor(field.fixed_weights, device=device)

    def plan(self, spec: LatticeSpec, caps: NDArray[np.integer[Any]]) -> LatticePlan:
        plan: LatticePlan = self.kernels.plan(lattice_axes(spec), self.level_weights, caps)
        return plan

    def lattice(self, parameters: Tensor, plan: LatticePlan) -> Tensor:
        rho: Tensor = self.kernels.lattice(*self._split(parameters), plan)
        return rho

    def add_gradient(self, parameters: Tensor, plan: LatticePlan, grad_rho: Tensor, grad: Tensor) -> None:
        by_tables, by_weights = self._split(grad)
        if self._fixed is not None:
            by_weights = torch.zeros_like(self._fixed)
        self.kernels.lattice_backward(*self._split(parameters), plan, grad_rho, by_tables, by_weights)

    def backward_bytes(self, plan: LatticePlan) -> int:
        _, nx, ny = plan.shape
        return plan.backward_bytes + 4 * self.decoder.n_weights * nx * -(-ny // ROWS_OF_TILE)

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Tables and the decoder's weights."""
        count = self.grid.n_parameters
        return flat[:count], flat[count:] if self._fixed is None else self._fixed
