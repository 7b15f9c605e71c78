"""Torch backend of vector-matrix factors, float32, on any device: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.factors import FactorGrid
from inrtomo.gpu.factors import Factors

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Kernels:
    """As `inrtomo.fields.kernels.factor_cpu.Kernels`."""

    def __init__(self, grid: FactorGrid, scale: float, device: str = "cpu") -> None:
        self.factors = Factors(grid, scale, device)
        self._saved: Any = None

    def lattice(self, parameters: F32, weights: F32, axes: tuple[F64, F64, F64], which: NDArray[np.uint8]) -> F32:
        flat, plan = self._flat(parameters, weights), self.factors.plan_of(axes, which)
        rho = self.factors.lattice(flat, plan)
        self._saved = flat, plan
        return _array(rho)

    def lattice_backward(self, grad_rho: F32, grad: F32, grad_weights: F32) -> None:
        flat, plan = self._saved
        total = torch.zeros_like(flat)
        self.factors.add_gradient(flat, plan, self._tensor(grad_rho), total)
        _add(total, grad, grad_weights)

    def points(self, parameters: F32, weights: F32, xyz: F64) -> F32:
        flat, points = self._flat(parameters, weights), torch.tensor(xyz, device=self.factors.device)
        density = self.factors.points(flat, points)
        self._saved = flat, points
        return _array(density)

    def points_backward(self, given: F32, grad: F32, grad_weights: F32) -> F32:
        flat, points = self._saved
        total = torch.zeros_like(flat)
        moved = self.factors.add_gradient_at_points(flat, points, self._tensor(given), total)
        _add(total, grad, grad_weights)
        return _array(moved)

    def _flat(self, parameters: F32, weights: F32) -> torch.Tensor:
        return torch.cat([self._tensor(parameters), self._tensor(weights)])

    def _tensor(self, values: F32) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.factors.device)


def _add(total: torch.Tensor, grad: F32, grad_weights: F32) -> None:
    by_parameters, by_weights = np.split(_array(total), [len(grad)])
    grad += by_parameters
    grad_weights += by_weights


def _array(values: torch.Tensor) -> F32:
    return np.asarray(values.cpu().numpy(), dtype=np.float32)
