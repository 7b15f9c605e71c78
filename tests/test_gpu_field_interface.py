"""What every hash field on a device has to do, whatever its tables: one set of tests for all backends.

tinycudann's is run with a stand-in for its module (`tinycudann_stand_in`), in float and in half precision.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tinycudann_stand_in as stand_in  # type: ignore[import-not-found]
import torch

from inrtomo.fields.decoders import mlp
from inrtomo.fields.encodings import HashGrid
from inrtomo.gpu.operations import hash_field

if importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are first imported

GRID = HashGrid((-9.0, 12.0, -5.0, 6.0, -3.0, 3.0), 1.0, 3, 2, log2_table=7)
DECODER = mlp(GRID.n_features, 16, 2)
AXES = np.linspace(-3.4, 2.0, 2), np.linspace(-8.0, 12.5, 2), np.linspace(-6.0, 7.0, 9)  # some past the box
FADED = np.array([1.0, 1.0, 0.6], dtype=np.float32)
CAPS = np.array([[3, 1], [0, 2]])


@dataclass
class Made:
    """A field with parameters: tables and weights."""

    kernels: Any
    tables: torch.Tensor
    weights: torch.Tensor
    tolerance: float

    @property
    def empty(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(self.tables), torch.zeros_like(self.weights)

    def points(self, zxy: torch.Tensor, levels: np.ndarray) -> torch.Tensor:
        found: torch.Tensor = self.kernels.points(self.tables, self.weights, zxy, levels)
        return found

    def close(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        assert float((found - wanted).abs().max()) <= self.tolerance * float(wanted.abs().max())


@pytest.fixture(params=["plain", "triton", "tinycudann", "tinycudann in half precision"])
def made(request, monkeypatch) -> Made:
    name, _, half = request.param.partition(" ")
    if name == "triton":
        from test_gpu_kernels import why_no_triton  # type: ignore[import-not-found]

        if why := why_no_triton():
            pytest.skip(why)
    monkeypatch.setitem(sys.modules, "tinycudann", stand_in)
    monkeypatch.setitem(stand_in.PRECISION, "of", torch.half if half else torch.float)
    kernels = hash_field(GRID, DECODER, 0.3, "cpu", name)
    if name == "triton":
        kernels._half = False
    rng = np.random.default_rng(0)
    counts = (kernels.n_tables, 0) if name == "tinycudann" else (GRID.n_parameters, DECODER.n_weights)
    tables, weights = (torch.tensor(rng.normal(scale=0.6, size=n), dtype=torch.float32) for n in counts)
    return Made(kernels, tables, weights, 2e-2 if half else 1e-4)


def row(z: int, x: int) -> torch.Tensor:
    """Points of a row of the lattice."""
    points = np.stack(np.broadcast_arrays(AXES[0][z], AXES[1][x], AXES[2]), axis=1)
    return torch.tensor(points, dtype=torch.float32)


def levels_of(z: int, x: int) -> np.ndarray:
    return np.where(np.arange(3) < CAPS[z, x], FADED, 0).astype(np.float32)


def test_a_lattice_is_its_points_with_the_levels_of_its_rows(made):
    rho = made.kernels.lattice(made.tables, made.weights, made.kernels.plan(AXES, FADED, CAPS))
    assert rho.shape == (2, 2, 9) and rho.dtype == torch.float32
    for z, x in np.ndindex(2, 2):
        if CAPS[z, x]:
            made.close(rho[z, x], made.points(row(z, x), levels_of(z, x)))
        else:
            assert not rho[z, x].any()
    assert float(rho[0, 0].std()) > 0.005
    other = made.points(row(0, 0), np.ones(3, np.float32))
    assert float((other - rho[0, 0]).abs().max()) > 0.003  # a level fades


def test_gradients_of_a_lattice_are_those_of_its_points(made):
    given = torch.tensor(np.random.default_rng(1).normal(size=(2, 2, 9)), dtype=torch.float32)
    plan, found, wanted = made.kernels.plan(AXES, FADED, CAPS), made.empty, made.empty
    for part in (*found, *wanted):
        part += 0.5  # they are added to
    made.kernels.lattice_backward(made.tables, made.weights, plan, given, *found)
    for z, x in np.ndindex(2, 2):
        if CAPS[z, x]:
            made.kernels.points_backward(
                made.tables, made.weights, row(z, x), levels_of(z, x), given[z, x].contiguous(), *wanted
            )
    for one, two in zip(found, wanted, strict=True):
        if len(one):
            made.close(one - 0.5, two - 0.5)
            assert float((one - 0.5).abs().max()) > 0.01


def test_gradients_are_those_of_the_density(made):
    rng = np.random.default_rng(2)
    inside = torch.tensor(rng.uniform((-2.9, -8.9, -4.9), (2.9, 11.9, 5.9), size=(40, 3)), dtype=torch.float32)
    given, grads = torch.tensor(rng.normal(size=40), dtype=torch.float32), made.empty

    def total(zxy: torch.Tensor) -> float:
        return float((made.points(zxy, FADED).double() * given).sum())

    by_points = made.kernels.points_backward(made.tables, made.weights, inside, FADED, given, *grads)
    # half precision has to see the step, and without it no unit should close or open on the way
    error, step = (0.15, 0.03) if made.tolerance > 1e-3 else (0.02, 0.002)
    for part, grad in zip((made.tables, made.weights), grads, strict=True):
        if len(part):
            direction = grad / grad.norm()  # steepest: the derivative is the gradient's length
            part += step * direction
            more = total(inside)
            part -= 2 * step * direction
            less = total(inside)
            part += step * direction
            assert (more - less) / (2 * step) == pytest.approx(float(grad.norm()), rel=error)
    direction = by_points / by_points.norm()
    numeric = (total(inside + 0.004 * direction) - total(inside - 0.004 * direction)) / 0.008
    assert numeric == pytest.approx(float(by_points.norm()), rel=max(error, 0.05))


def test_beyond_the_box_is_its_surface(made):
    beyond, surface = (torch.tensor([[1.0, at, 0.0]]) for at in (20.0, 12.0))
    made.close(made.points(beyond, FADED), made.points(surface, FADED))
    given = torch.ones(1)
    by_points = made.kernels.points_backward(made.tables, made.weights, beyond, FADED, given, *made.empty)
    assert by_points[0, 1] == 0 and by_points[0, 2] != 0


def test_an_empty_lattice_and_large_gradients(made):
    nothing = made.kernels.plan(AXES, FADED, np.zeros((2, 2), dtype=np.int64))
    assert not made.kernels.lattice(made.tables, made.weights, nothing).any()
    given, plan = torch.ones((2, 2, 9)), made.kernels.plan(AXES, FADED, CAPS)
    small, large = made.empty, made.empty
    made.kernels.lattice_backward(made.tables, made.weights, plan, given, *small)
    made.kernels.lattice_backward(made.tables, made.weights, plan, 1e6 * given, *large)
    made.close(large[0] / 1e6, small[0])
