"""The GPU's kernels in Triton's interpreter against float64 torch and the compiled CPU loops; choice of a device."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import Any

import numpy as np
import pytest
import torch

from inrtomo import device
from inrtomo.errors import InputError
from inrtomo.fields import lattice_axes, make_field
from inrtomo.fields.grid import GridField
from inrtomo.gpu import plain
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.gpu.operations import has_triton
from inrtomo.priors import total_variation
from inrtomo.projection import Lattice, project, read_at, spread_at
from inrtomo.reconstruct import joseph

if importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are first imported


def why_no_triton() -> str:
    """Why kernels cannot be interpreted here; empty if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton.runtime import interpreter

    if "int(self.handle.data)" in inspect.getsource(interpreter) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return "this Triton's interpreter takes arrays of one element for numbers, which numpy does not since 2.4"
    return ""


triton_here = pytest.mark.skipif(bool(why_no_triton()), reason=why_no_triton())
IMPLEMENTATIONS = ["plain", pytest.param("compiled", marks=triton_here)]
FIELD_BACKENDS = ["plain", pytest.param("triton", marks=triton_here)]
TILTS = np.array([-70.0, -45.0, 0.0, 33.0])
BOX = (-5.0, 6.0, -9.0, 12.0, -3.0, 3.0)
FIELDS: dict[str, dict[str, Any]] = {
    "hashed": {"kind": "hash", "levels": 3, "features": 2, "log2_table": 7},
    "odd sizes": {"kind": "hash", "levels": 2, "features": 3, "width": 7, "hidden": 2, "growth": 1.6},
    "three layers": {"kind": "hash", "levels": 1, "features": 4, "width": 20, "hidden": 3},
    "linear": {"kind": "hash", "levels": 2, "features": 1, "decoder": "linear"},
    "voxel": {"kind": "voxel", "levels": 2},
}


@pytest.fixture(params=IMPLEMENTATIONS)
def operations(request):
    if request.param == "plain":
        return plain
    from inrtomo.gpu import compiled

    return compiled


def tensor(values):
    return torch.tensor(np.ascontiguousarray(values))


def close(fast, exact, tolerance=2e-5):
    assert np.abs(np.asarray(fast) - exact).max() <= tolerance * np.abs(exact).max()


def pair(backend, name):
    made = [make_field(box=BOX, finest_px=1.0, scale=0.3, backend=b, **FIELDS[name]) for b in (backend, "reference")]
    values = np.random.default_rng(0).normal(scale=0.6, size=made[0].parameters().size).astype(np.float32)
    for field in made:
        field.parameters()[:] = values
    return made


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_lattice_density_and_gradients_equal_the_reference(backend, name):
    fast, exact = pair(backend, name)
    rng = np.random.default_rng(1)
    # past the box on both sides along y; a z step longer than a cell, one that fades a level, rows left out
    spacing = 2.3 if name == "voxel" else 0.9
    lattice = Lattice(spacing, (2, 2, 23), (-2.0, -5.5, -9.6))
    cap = np.array([[3, 1], [0, 3]])
    grad = rng.normal(size=lattice.shape).astype(np.float32)
    active = FIELDS[name]["levels"] - 0.4
    densities = []
    for field in (fast, exact):
        densities.append(field.lattice(lattice, active, level_cap=cap))
        field.backward_lattice(grad)
    close(*densities)
    for group in fast.groups.values():
        close(fast.grad[group], exact.grad[group])


@pytest.mark.parametrize("name", ["hashed", "odd sizes", "voxel"])
@pytest.mark.parametrize("backend", FIELD_BACKENDS)
def test_point_density_and_gradients_equal_the_reference(backend, name):
    fast, exact = pair(backend, name)
    rng = np.random.default_rng(2)
    xyz = rng.uniform((-8, -11, -4), (8, 14, 4), size=(37, 3)).astype(np.float32)
    grad = rng.normal(size=len(xyz)).astype(np.float32)
    results = []
    for field in (fast, exact):
        results.append((field.points(xyz, 1.7), field.backward_points(grad), field.grad.copy()))
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-4)


@triton_here
def test_half_precision_decodes_to_a_thousandth():
    from inrtomo.gpu.hash_field import HashField

    fast, exact = pair("plain", "odd sizes")
    lattice = Lattice(1.0, (1, 2, 16), (0.0, -3.0, -8.0))
    half = HashField(fast.grid, fast.decoder, 0.3, "cpu", half=True)
    n = fast.grid.n_parameters
    axes: Any = tuple(o + np.arange(k, dtype=np.float64) for o, k in zip(lattice.origin, lattice.shape, strict=True))
    plan = half.plan(axes, fast.grid.level_weights(None), np.full((1, 2), 9))
    density = half.lattice(tensor(fast.parameters()[:n]), tensor(fast.parameters()[n:]), plan)
    close(density, exact.lattice(lattice), 2e-3)
    assert np.abs(density.numpy() - exact.lattice(lattice)).max() > 0  # it is half precision


@pytest.mark.parametrize("origin_x", [-6.0, -4.3])
def test_projections_and_their_adjoint(operations, origin_x):
    rng = np.random.default_rng(0)
    lattice, n_u = Lattice(2.0, (4, 9, 11), (-3.0, 2 * origin_x, -10.0)), 13
    density = rng.normal(size=lattice.shape).astype(np.float32)
    given = rng.normal(size=(len(TILTS), n_u, 11)).astype(np.float32)
    geometry = TiltGeometry(lattice, TILTS, n_u, "cpu")
    made = operations.project(tensor(density), geometry)
    close(made, project(density, lattice, TILTS, n_u))
    back = torch.zeros(lattice.shape)
    operations.add_back_projection(back, tensor(given), geometry)
    assert np.vdot(made.numpy().astype(np.float64), given) == pytest.approx(
        np.vdot(density.astype(np.float64), back.numpy()), rel=1e-5
    )


def test_corrections_of_some_tilts(operations):
    rng = np.random.default_rng(3)
    lattice, n_u = Lattice(1.0, (3, 9, 6), (-1.0, -4.0, -2.0)), 5
    start, step = (rng.normal(size=lattice.shape).astype(np.float32) for _ in range(2))
    chosen = np.array([1, 3])
    ideal, received = (rng.uniform(0, 1, size=(2, n_u, 6)).astype(np.float32) for _ in range(2))
    geometry, tilts = TiltGeometry(lattice, TILTS, n_u, "cpu"), torch.tensor(chosen, dtype=torch.int32)
    for by in ("step", "nothing", "means"):
        expected, found = start.copy(), tensor(start)
        if by == "means":
            joseph.correct_by_means(expected, ideal, received, lattice, TILTS[chosen], 0.3, -0.5)
            operations.correct_by_means(found, tensor(ideal), tensor(received), geometry, tilts, 0.3, -0.5)
        else:
            factor = step if by == "step" else None
            joseph.correct(expected, ideal, lattice, TILTS[chosen], factor, -0.5)
            operations.correct(found, tensor(ideal), geometry, tilts, None if factor is None else tensor(step), -0.5)
        assert np.any(expected != start)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_reading_and_spreading_at_edges(operations):
    rng = np.random.default_rng(4)
    images = rng.normal(size=(2, 9, 12)).astype(np.float32)
    u = rng.uniform(0, 8, size=(2, 5, 7)).astype(np.float32)
    v = rng.uniform(0, 11, size=u.shape).astype(np.float32)
    u[0, 0, :3], v[0, 0, :3] = (1.0, 7.0, -9.0), (9.999, 5.0, 3.0)  # the last cell that counts, the first that does not
    expected = read_at(images, u, v)
    for found, exact in zip(operations.read_at(tensor(images), tensor(u), tensor(v)), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), exact, atol=2e-5)
    assert np.isnan(expected[0]).any() and np.isfinite(expected[0]).any()
    values = operations.values_at(tensor(images), tensor(u), tensor(v)).numpy()
    np.testing.assert_allclose(values, np.nan_to_num(expected[0]), atol=2e-5)
    given = rng.normal(size=u.shape).astype(np.float32)
    spread = operations.spread_at(tensor(given), tensor(u), tensor(v), images.shape).numpy()
    np.testing.assert_allclose(spread, spread_at(given, u, v, images.shape), atol=2e-5)


def test_variation_and_updates(operations):
    rng = np.random.default_rng(5)
    density = rng.normal(size=(3, 4, 5)).astype(np.float32)
    found = torch.ones(density.shape)
    operations.add_variation(found, tensor(density), 0.7, 0.1)
    np.testing.assert_allclose(found.numpy(), 1 + 0.7 * total_variation(density, 0.1)[1], atol=1e-5)
    parameters, gradient = (tensor(rng.normal(size=20).astype(np.float32)) for _ in range(2))
    exact = parameters.clone().requires_grad_()
    exact.grad = gradient
    optimiser = torch.optim.Adam([exact], lr=0.1, betas=(0.9, 0.95), eps=1e-12)
    first, second = torch.zeros(20), torch.zeros(20)
    for t in (1, 2):
        steps = torch.tensor([0.1 / (1 - 0.9**t), (1 - 0.95**t) ** -0.5])
        operations.adam(parameters, gradient, first, second, steps, 0.9, 0.95, 1e-12)
        optimiser.step()
    np.testing.assert_allclose(parameters.numpy(), exact.detach().numpy(), atol=1e-6)


def test_lines_are_back_projected(operations):
    from inrtomo.reconstruct.fbp import _back_project

    rng = np.random.default_rng(6)
    lines = rng.normal(size=(len(TILTS), 24, 5)).astype(np.float32)
    angles, z, x = np.deg2rad(TILTS), np.arange(3) - 1.0, np.arange(9) - 4.0
    start = rng.normal(size=(3, 9, 5)).astype(np.float32)
    expected = start.copy()
    _back_project(lines, np.cos(angles), np.sin(angles), z, x, -5.8, 8, expected)
    found, given = tensor(start), (tensor(v.astype(np.float32)) for v in (np.cos(angles), np.sin(angles), z, x))
    operations.back_project_lines(tensor(lines), *given, -5.8, 2, found)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_a_device_is_chosen_or_refused_in_one_sentence():
    assert device.choose("cpu").name == "cpu" and not device.choose("cpu").is_gpu
    for wrong in ("gpu", "cuda:x", "cuda:", ""):
        with pytest.raises(InputError, match="auto, cpu, cuda"):
            device.choose(wrong)
    if not torch.cuda.is_available():
        assert device.choose("auto").name == "cpu"
        with pytest.raises(InputError, match="use --device cpu"):
            device.choose("cuda:1")
    assert device.peak_device_bytes("cpu") == 0


def test_without_a_gpu_nothing_asks_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not has_triton("cpu")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_no_launch_on_a_large_lattice_has_more_programs_than_cuda_takes(monkeypatch):
    from inrtomo.gpu import hash_kernels
    from inrtomo.gpu.hash_field import HashField

    grids: dict[str, list[tuple[int, ...]]] = {}

    class Launch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            grids.setdefault(self.name, []).append(grid)
            return lambda *given, **named: None

    names = "lattice_forward", "lattice_backward", "reduce_x", "reduce_y", "hashed_runs"
    for name in names:
        monkeypatch.setattr(hash_kernels, name, Launch(name))
    lattice = Lattice.covering(512, 24, 150, 1.0)
    nz, nx, ny = lattice.shape
    box = (-nx / 2, nx / 2, -ny / 2, ny / 2, -nz / 2, nz / 2)
    made = make_field(kind="hash", box=box, finest_px=1.0, levels=1, features=4, log2_table=12, scale=1.0)
    assert isinstance(made, GridField)
    field = HashField(made.grid, made.decoder, 1.0, "meta")
    tables, weights, rho = (torch.empty(n, device="meta") for n in (made.grid.n_parameters, made.decoder.n_weights, 1))
    plan = field.plan(lattice_axes(lattice), np.ones(1, np.float32), np.ones((nz, nx), np.int64))
    field.lattice(tables, weights, plan)
    field.lattice_backward(tables, weights, plan, rho, tables, weights)
    assert set(grids) == set(names)
    largest = [max(grid[axis] for each in grids.values() for grid in each if len(grid) > axis) for axis in range(3)]
    assert largest[0] > 65535
    assert largest[1] <= 65535 and largest[2] <= 65535


def test_the_benchmarks_projections_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still: both lines, counting a sample a px along rays through a slab of 3 px."""
    from integration.benchmarks.gpu import projections, run

    monkeypatch.setattr(run, "seconds", lambda work: (work(), 1.0)[1])
    monkeypatch.setattr(run, "lines", lambda device: projections.lines(device, 1, 3, np.array([0.0, 60.0])))
    forward, both = run.projection_lines("cpu", 1e12)
    planes = projections.Slab(1, 3, np.array([0.0, 60.0])).lattice.shape[0]
    assert forward.samples_per_second == pytest.approx(planes * (1 + 2)) == both.samples_per_second
