"""Field reconstructions on a device, in plain torch on the CPU, against the compiled CPU path: all that a fit can have.

Every field, loss and prior, and the transfer function: the same losses step by step to 0.3 %, and parameters that
differ by less than a tenth of how far they have moved (Adam makes full steps of gradients that are only rounding).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_gpu_memory import Peak  # type: ignore[import-not-found]

from inrtomo.alignment import Alignment
from inrtomo.fields.tensor import TensorField
from inrtomo.gpu import fit as gpu_fit
from inrtomo.gpu.field_stage import DeviceFieldStage
from inrtomo.reconstruct import field as field_module
from inrtomo.reconstruct.ctf_correction import CtfOperator
from inrtomo.reconstruct.field import FieldFit, FieldSettings, Priors, Recording
from tests.alignment_phantom import swaying_blobs
from tests.on_torch import FieldOnTorch

pytestmark = pytest.mark.usefixtures("plain_torch")

SIZE, THICK = 24, 10
TILTS = np.arange(-60.0, 61, 20)
STEPS = (6, 4)
SLABS = 6.5e6  # bytes: too little for all rows at once


@pytest.fixture(scope="module")
def images():
    return swaying_blobs(SIZE, TILTS)


def alignment():
    return Alignment.identity(TILTS, (SIZE, SIZE), 5.0, 10.0)


COUNTS = Recording(background=np.full(len(TILTS), 30.0), gain=np.full(len(TILTS), -9.0), read=np.full(len(TILTS), 0.2))
CASES: dict[str, dict[str, Any]] = {
    "tensor": {"field": "tensor"},
    "tensor with edges": {"field": "tensor", "priors": Priors(boundary=3.0)},
    "mlp": {"field": "mlp"},
    "siren": {"field": "siren"},
    "ctf": {"recording": Recording(partial(CtfOperator, alignment(), 2e4))},
    "poisson": {"loss": "poisson", "recording": COUNTS},
    "heteroscedastic": {"loss": "heteroscedastic", "recording": COUNTS},
    "wedge": {"priors": Priors(wedge=10.0)},
    "isotropic": {"priors": Priors(isotropic=3.0)},
    "huber in slabs": {"loss": "huber", "priors": Priors(wedge=1.0, isotropic=1.0), "memory_bytes": SLABS},
}


def fit(kind, images, recording=None, **options: Any) -> FieldFit:
    settings = FieldSettings(**{"steps": STEPS, "held_out": 0.1, **options})
    made: FieldFit = kind(images, np.ones_like(images), alignment(), THICK, settings, 0, recording or Recording())
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fields of few parameters."""
    make = field_module.make_field

    def made(kind, *given, **named):
        few: dict[str, Any] = {
            "tensor": {"features": 4, "plane": 7},
            "mlp": {"features": 8, "width": 16},
            "siren": {"width": 16},
        }
        return make(kind, *given, **(named | few.get(kind, {})))

    monkeypatch.setattr(field_module, "make_field", made)
    monkeypatch.setattr("inrtomo.reconstruct.field_stage.BOUNDARY_PAIRS", 300)


@pytest.mark.parametrize("name", CASES)
def test_a_reconstruction_takes_the_same_steps(images, name):
    made = []
    for kind in (FieldFit, FieldOnTorch):
        one = fit(kind, images, **CASES[name])
        start, stages = one.field.parameters().copy(), list[Any]()

        def note(done: FieldFit, stages: list[Any] = stages) -> None:
            stages.append(done.stage_now)

        one.optimise(note)
        made.append((one, start, stages))
    (ours, start, _), (other, _, stages) = made
    assert all(isinstance(stage, DeviceFieldStage) for stage in stages)
    assert len(stages[-1].planned) > 1 if "slabs" in name else len(stages[-1].planned) == 1
    assert len(ours.losses) == len(other.losses) == sum(STEPS)
    np.testing.assert_allclose(np.array(other.losses), np.array(ours.losses), rtol=3e-3)
    mine, theirs = ours.field.parameters(), other.field.parameters()
    assert mine.shape == theirs.shape
    if mine.shape == start.shape:
        assert np.linalg.norm(theirs - mine) < 0.1 * np.linalg.norm(mine - start)
    rho, found = (np.concatenate([part for _, part in one.slabs(8)], axis=1) for one in (ours, other))
    assert np.linalg.norm(found - rho) < 0.02 * np.linalg.norm(rho) and rho.std() > 0


def gradient(kind, images, **options: Any) -> np.ndarray:
    """Of a step of the last scale, at parameters that show something."""
    one = fit(kind, images, **options)
    values = one.field.parameters()
    values += np.random.default_rng(3).normal(scale=0.2, size=values.shape).astype(np.float32)
    stage = one.stage(one.settings.schedule[-1])
    if not isinstance(stage, DeviceFieldStage):
        stage.accumulate(False)
        return one.field.grad
    stage.prepare(0)
    stage.gradients(False, False)
    return np.asarray(stage.field.grad.numpy())


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_the_same_and_every_term_has_a_part_in_it(images, name):
    wanted, found = (gradient(kind, images, **CASES[name]) for kind in (FieldFit, FieldOnTorch))
    error = np.linalg.norm(found - wanted)
    assert error < 1e-4 * np.linalg.norm(wanted)
    without = {key: value for key, value in CASES[name].items() if key == "field"}
    if without != CASES[name]:
        assert np.linalg.norm(gradient(FieldFit, images, **without) - wanted) > 30 * error


def test_a_tensor_field_grows_on_a_device_as_on_the_cpu(images):
    trees = []
    for kind in (FieldFit, FieldOnTorch):
        one = fit(kind, images, field="tensor")
        assert isinstance(one.field, TensorField)
        first = one.field.grid.tree.leaves
        one.optimise()
        assert isinstance(one.field, TensorField)
        trees.append(one.field.grid.tree.leaves)
    assert trees[0] == trees[1] and len(trees[0]) > len(first)


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(images, name, monkeypatch):
    """On torch's ``meta`` device reading a value, indexing by a mask and mixing with the CPU's tensors are errors."""
    begin = gpu_fit.OnDevice.begin

    def begun(stage):
        given = stage.fit.settings
        stage.fit.settings = replace(given, device="meta")
        begin(stage)
        stage.fit.settings = given

    monkeypatch.setattr(gpu_fit.OnDevice, "begin", begun)
    monkeypatch.setattr(gpu_fit.Replayed, "__call__", lambda self, key, step: step())
    monkeypatch.setattr("inrtomo.gpu.operations.has_triton", lambda device: False)
    one = fit(FieldOnTorch, images, **CASES[name])
    one.done_scales = 1  # gains are free
    stage: Any = one.stage(one.settings.schedule[-1])
    stage.step(1)
    assert stage.snapshot().is_meta and stage.totals.is_meta
    assert ("edges" in name) == (stage.pairs is not None)


@pytest.mark.parametrize("name", ["tensor", "mlp", "siren"])
@pytest.mark.parametrize("voxels_at_once", [3000, 2**22])
def test_a_field_takes_what_is_reckoned(images, name, voxels_at_once, monkeypatch):
    monkeypatch.setattr("inrtomo.gpu.factors.VOXELS_AT_ONCE", voxels_at_once)
    monkeypatch.setattr("inrtomo.fields.network.CHUNK", voxels_at_once)
    one = fit(FieldOnTorch, images, field=name)
    form, lattice = one.field.on_device("cpu"), one.lattice(1)
    parameters = torch.tensor(one.field.parameters())
    plan = form.plan(lattice, np.full(lattice.shape[:2], one.settings.levels))
    grad_rho, grad = torch.ones(lattice.shape), torch.zeros_like(parameters)
    with Peak() as peak:
        rho = form.lattice(parameters, plan)
        peak.bytes -= rho.nbytes
        assert peak.bytes <= form.backward_bytes(plan)
        peak.bytes = 0
        form.add_gradient(parameters, plan, grad_rho, grad)
        assert 0.4 * form.backward_bytes(plan) < peak.bytes - rho.nbytes <= form.backward_bytes(plan)
