"""Backends on a device behind the interface of the CPU's: NumPy arrays in, NumPy arrays out.

For single evaluations and for the tests that all backends share. Fits on a device use the tensors themselves
(`inrtomo.gpu.fit`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class ArrayKernels:
    """`inrtomo.fields.kernels.cpu.Kernels` of a field on tensors, `inrtomo.gpu.hash_field.HashField` or its like."""

    def __init__(self, field: Any) -> None:
        self.field = field
        self.grid: HashGrid = field.grid
        self.decoder: Decoder = field.decoder
        self._saved: tuple[Any, ...] | None = None

    def lattice(
        self, tables: F32, weights: F32, axes: tuple[F64, F64, F64], level_weights: F32, caps: NDArray[np.uint8]
    ) -> F32:
        plan = self.field.plan(axes, level_weights, caps)
        given = self._tensor(tables), self._tensor(weights)
        rho = self.field.lattice(*given, plan)
        self._saved = (*given, plan)
        return _array(rho)

    def lattice_backward(self, grad_rho: F32, grad_tables: F32, grad_weights: F32) -> None:
        tables, weights, plan = self._given("lattice")
        by_tables, by_weights = torch.zeros_like(tables), torch.zeros_like(weights)
        self.field.lattice_backward(tables, weights, plan, self._tensor(grad_rho), by_tables, by_weights)
        self._add(by_tables, by_weights, grad_tables, grad_weights)

    def points(self, tables: F32, weights: F32, zxy: F32, level_weights: F32) -> F32:
        given = self._tensor(tables), self._tensor(weights), self._tensor(zxy), level_weights
        density = self.field.points(*given)
        self._saved = given
        return _array(density)

    def points_backward(self, grad: F32, grad_tables: F32, grad_weights: F32) -> F32:
        tables, weights, zxy, level_weights = self._given("points")
        by_tables, by_weights = torch.zeros_like(tables), torch.zeros_like(weights)
        slope = self._tensor(grad)
        by_points = self.field.points_backward(tables, weights, zxy, level_weights, slope, by_tables, by_weights)
        self._add(by_tables, by_weights, grad_tables, grad_weights)
        return _array(by_points)

    def _given(self, what: str) -> tuple[Any, ...]:
        if self._saved is None or (len(self._saved) == 3) != (what == "lattice"):
            raise RuntimeError(f"{what}_backward without an evaluation before it")
        given, self._saved = self._saved, None
        return given

    def _add(self, by_tables: torch.Tensor, by_weights: torch.Tensor, grad_tables: F32, grad_weights: F32) -> None:
        grad_tables += _array(by_tables)
        if self.decoder.trainable:
            grad_weights += _array(by_weights)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float32), device=self.field.device)


def _array(values: torch.Tensor) -> F32:
    return np.asarray(values.cpu().numpy(), dtype=np.float32)
