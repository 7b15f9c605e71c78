"""Rays integrated within the field's kernel, the GPU benchmark's other way, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from inrtomo.fields import make_field
from inrtomo.fields.grid import GridField
from inrtomo.projection import project
from tests.test_gpu_kernels import close, triton_here

pytestmark = triton_here
BOX = (-5.0, 6.0, -9.0, 12.0, -2.0, 2.0)
TILTS = np.array([0.0, -60.0, 60.0])
# of every tilt two: one across the box, then one past it; over an edge, across; over the opposite edge, past it
U = np.array([[4.1, -6.3], [-1.8, 1.2], [4.0, 9.7]])
FIELDS: dict[str, tuple[bool, int, int, dict[str, Any]]] = {
    "hashed, one layer, bent": (True, 3, 6, {"levels": 3, "features": 2, "log2_table": 7}),
    "dense, two layers": (False, 3, 6, {"levels": 2, "features": 3, "width": 7, "hidden": 2, "growth": 1.6}),
    "dense, no layer, two tiles": (False, 1, 70, {"levels": 2, "features": 1, "decoder": "linear"}),
}


def grid_field(kind: str, box: tuple[float, ...], **options: Any) -> GridField:
    field = make_field(kind, box, 1.0, **options)  # type: ignore[arg-type]
    assert isinstance(field, GridField)
    return field


@pytest.mark.parametrize("name", FIELDS)
def test_integrals_and_gradients_equal_the_reference_at_the_same_samples(name: str) -> None:
    from integration.benchmarks.gpu.ray_field import RayField, marched

    bent, n_tilts, n_y, options = FIELDS[name]
    tilts = TILTS[-n_tilts:]
    field, exact = (grid_field("hash", BOX, scale=0.3, backend=b, **options) for b in ("cpu", "reference"))
    rng = np.random.default_rng(0)
    for each in (field, exact):
        each.parameters()[:] = np.random.default_rng(1).normal(scale=0.6, size=field.parameters().size)
    u = U[-n_tilts:, :, None] + bent * rng.uniform(-0.3, 0.3, size=(n_tilts, 2, n_y if bent else 1))
    y = np.linspace(-9.6, 12.6, n_y) + rng.uniform(-0.2, 0.2, size=(n_tilts, 2, n_y))  # past the box at both ends
    grad, active, step = rng.normal(size=y.shape), options["levels"] - 0.4, 1.7
    expected = marched(exact, tilts, u, y, step, grad, active)
    assert (expected[0] == 0).any() and (expected[0] > 0).any(axis=(1, 2)).all()

    n = field.grid.n_parameters
    parameters, grads = torch.tensor(field.parameters()), torch.zeros(field.parameters().size)
    rays: Any = RayField(field.grid, field.decoder, 0.3, "cpu", half=False)
    places = (torch.tensor(v, dtype=torch.float32) for v in (u, y))
    given = parameters[:n], parameters[n:], tilts, *places, field.grid.level_weights(active), step
    found = rays.rays(*given)
    slopes = rays.rays_backward(*given, torch.tensor(grad, dtype=torch.float32), grads[:n], grads[n:])
    for a, b in zip((found, *slopes), expected, strict=True):
        close(a, b, 1e-4)
    for group in field.groups.values():
        close(grads[group], exact.grad[group], 1e-4)


def test_a_lattice_and_its_projector_find_the_same_integrals() -> None:
    """Of a blob with sigma 4 px to 2 % of the largest: the projector interpolates between columns, rays do not.

    By the compiled CPU loops, which the lattice's kernels are held to in `test_gpu_kernels`.
    """
    from integration.benchmarks.gpu.projections import Slab
    from integration.benchmarks.gpu.ray_field import RayField

    slab = Slab(25, 25, np.array([-60.0, 20.0]))
    field = slab.field(levels=1, features=1, decoder="linear")
    z, x, y = (np.arange(n) - (n - 1) / 2 for n in field.grid.shapes[0])
    blob = np.exp(-((z[:, None, None] - 2) ** 2 + (x[:, None] - 1) ** 2 + (y + 2) ** 2) / 32)
    field.parameters()[:] = np.append(np.log(np.expm1(blob + 1e-9)), (1, 0))  # which the softplus undoes
    expected = project(field.lattice(slab.lattice), slab.lattice, slab.tilt_deg, 25)[:, [14]]

    n, parameters = field.grid.n_parameters, torch.tensor(field.parameters())
    rows = np.arange(expected.shape[2]) - (expected.shape[2] - 1) / 2
    places = (
        torch.full((2, 1, 1), 14.0 - 12.0),
        torch.tensor(np.broadcast_to(rows, expected.shape).copy(), dtype=torch.float32),
    )
    rays = RayField(field.grid, field.decoder, 1.0, "cpu", half=False)
    found = rays.rays(parameters[:n], parameters[n:], slab.tilt_deg, *places, field.grid.level_weights(None), 1.0)
    assert expected.max() > 7
    close(found, expected, 0.02)


def test_the_benchmarks_lines_and_check_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU as the device, a clock that stands still and a tiny slab."""
    from integration.benchmarks.gpu import projections, run

    def seconds(work: Any) -> float:
        work()
        return 1.0

    tiny = {"size": 1, "thickness": 1}
    name = "6 levels x 2, 16 wide"
    monkeypatch.setattr(projections, "DECODERS", {name: projections.DECODERS[name]})
    monkeypatch.setattr(run, "seconds", seconds)
    monkeypatch.setattr(run, "lines", lambda device: projections.lines(device, **tiny, tilt_deg=TILTS / 2, every=2))
    monkeypatch.setattr(run, "errors", lambda device: projections.errors(device, **tiny))
    found = list(run.projection_lines("cpu", 1e12))
    assert len(found) == 6 and found[0].milliseconds == 1e3 and found[-1].milliseconds > 1e3
    assert len(run.check_rays("cpu")) == 2 * 4
