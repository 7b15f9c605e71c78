"""What starts Triton's kernels, on the GPU of `tests.fake_gpu` and in Triton's interpreter, against plain torch there.

Not collected by itself; `tests.test_on_a_fake_gpu` runs it in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from inrtomo.fields.decoders import mlp
from inrtomo.fields.encodings import HashGrid
from inrtomo.gpu import operations, plain
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.projection import Lattice
from tests.test_gpu_kernels import why_no_triton

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are first imported
pytestmark = pytest.mark.skipif(bool(why_no_triton()), reason=why_no_triton())

GPU = "cuda:0"
SHAPE, N_U, TILTS = (3, 9, 6), 7, np.array([-50.0, 0.0, 33.0])
GRID = HashGrid((-9.0, 12.0, -5.0, 6.0, -3.0, 3.0), 1.0, 3, 2, log2_table=7)
DECODER = mlp(GRID.n_features, 16, 1)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).uniform(0, 1, shape), dtype=torch.float32, device=GPU)


def geometry() -> TiltGeometry:
    return TiltGeometry(Lattice(1.0, SHAPE, (-1.0, -4.0, -2.0)), TILTS, N_U, GPU)


def corrected(ops: ModuleType) -> torch.Tensor:
    rho, chosen = numbers(*SHAPE), torch.tensor([0, 2], dtype=torch.int32, device=GPU)
    ideal, received = numbers(2, N_U, 6, seed=1), numbers(2, N_U, 6, seed=2)
    ops.correct(rho, ideal, geometry(), chosen, None, -0.5)
    ops.correct(rho, ideal, geometry(), chosen, numbers(*SHAPE, seed=3), -0.5)
    ops.correct_by_means(rho, ideal, received, geometry(), chosen, 0.3, -0.5)
    return rho


def back_projected(ops: ModuleType) -> torch.Tensor:
    rho = numbers(*SHAPE)
    ops.add_back_projection(rho, numbers(len(TILTS), N_U, 6), geometry())
    return rho


def varied(ops: ModuleType) -> torch.Tensor:
    rho = numbers(*SHAPE)
    ops.add_variation(rho, numbers(*SHAPE, seed=1), 0.7, 0.1)
    return rho


def updated(ops: ModuleType) -> torch.Tensor:
    values = [numbers(20, seed=k) for k in range(4)]
    ops.adam(*values, torch.tensor([0.1, 1.2], device=GPU), 0.9, 0.95, 1e-12)
    return torch.stack(values)


def lines(ops: ModuleType) -> torch.Tensor:
    rho, angles = numbers(*SHAPE), torch.deg2rad(torch.tensor(TILTS, dtype=torch.float32, device=GPU))
    z, x = (torch.arange(n, dtype=torch.float32, device=GPU) - n // 2 for n in SHAPE[:2])
    ops.back_project_lines(numbers(len(TILTS), 24, 6), angles.cos(), angles.sin(), z, x, -5.8, 2, rho)
    return rho


WORKS: dict[str, Callable[[Any], torch.Tensor]] = {
    "project": lambda ops: ops.project(numbers(*SHAPE), geometry()),
    "back-project": back_projected,
    "correct": corrected,
    "read": lambda ops: torch.stack(ops.read_at(numbers(2, 9, 12), 7 * numbers(2, 5, 7), 9 * numbers(2, 5, 7, seed=1))),
    "values": lambda ops: ops.values_at(numbers(2, 9, 12), 9 * numbers(2, 5, 7), 12 * numbers(2, 5, 7, seed=1)),
    "spread": lambda ops: ops.spread_at(
        numbers(2, 5, 7), 9 * numbers(2, 5, 7), 12 * numbers(2, 5, 7, seed=1), (2, 9, 12)
    ),
    "variation": varied,
    "Adam": updated,
    "lines": lines,
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
def test_operations(work: Callable[[Any], torch.Tensor]) -> None:
    assert operations.of(GPU) is not plain
    found, expected = work(operations.of(GPU)), work(plain)
    assert found.device == expected.device == torch.device(GPU)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_fields() -> None:
    """Density and gradients on a lattice and at points; the decoder computes in half precision."""
    axes = np.linspace(-3.4, 2.0, 2), np.linspace(-8.0, 12.5, 2), np.linspace(-6.0, 7.0, 9)
    levels, found = np.array([1.0, 1.0, 0.6], dtype=np.float32), []
    points = torch.tensor([-6.0, -8.0, -4.0], device=GPU) + 12 * numbers(37, 3)
    for backend in ("triton", "plain"):
        field = operations.hash_field(GRID, DECODER, 0.3, GPU, backend)
        tables, weights = numbers(GRID.n_parameters) - 0.5, numbers(DECODER.n_weights, seed=1) - 0.5
        grads = torch.zeros_like(tables), torch.zeros_like(weights)
        plan = field.plan(axes, levels, np.array([[3, 1], [0, 2]]))
        made = [field.lattice(tables, weights, plan), field.points(tables, weights, points, levels)]
        field.lattice_backward(tables, weights, plan, numbers(2, 2, 9), *grads)
        made.append(field.points_backward(tables, weights, points, levels, numbers(37), *grads))
        found.append([*made, *grads])
    for ours, other in zip(*found, strict=True):
        assert ours.device == other.device == torch.device(GPU)
        assert float((ours - other).abs().max()) <= 1e-2 * float(other.abs().max())
