"""Fits on a device, in plain torch on the CPU, against the compiled CPU path.

Steps of the motion are the same to rounding. Whole fits drift apart slowly, since Adam makes full steps of entries
whose gradient is nothing but rounding: losses agree to 0.3 %, shifts that moved by px to 0.03 px.
"""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from inrtomo.align import joint
from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.align.motion import BlockSums, Motion
from inrtomo.alignment import Alignment
from inrtomo.gpu import fit as gpu_fit
from inrtomo.gpu import operations, room
from inrtomo.gpu.motion import DeviceMotion, inverse
from inrtomo.reconstruct.field import FieldFit, FieldSettings, Recording
from tests.alignment_phantom import swaying_blobs
from tests.on_torch import FieldOnTorch, OnTorch

pytestmark = pytest.mark.usefixtures("plain_torch")

SIZE, THICK = 24, 10
TILTS = np.arange(-60.0, 61, 15)
MOVING = (Scale(bin=2, steps=6, motion_from=3, warp_from=4), Scale(bin=1, steps=3, motion_from=1, warp_from=1))


@pytest.fixture(scope="module")
def images():
    return swaying_blobs(SIZE, TILTS)


def alignment(shift=0.0):
    exact = Alignment.identity(TILTS, (SIZE, SIZE), 3.0, 10.0)
    return replace(exact, shift_px=np.random.default_rng(1).normal(scale=shift, size=(len(TILTS), 2)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"field": "voxel", "loss": "huber", "warp": "bilinear"},
        {"loss": "l1", "warp": "none"},
        {"warp": "network"},
        {"field": "mlp", "warp": "none"},
        {"memory_bytes": 1e7},
    ],
    ids=lambda s: "-".join(map(str, s.values())) or "defaults",
)
def test_a_joint_fit_takes_the_same_steps(images, settings, monkeypatch):
    if "memory_bytes" in settings:  # in batches of some tilts
        monkeypatch.setattr(room, "PIXEL_FLOATS", 900)
    if settings.get("field") == "mlp":
        monkeypatch.setattr(joint, "make_field", partial(joint.make_field, features=8, width=16))
    settings = JointSettings(levels=3, control_points=3, schedule=MOVING, held_out=0.1, **settings)
    weight = np.ones_like(images)
    fits = [kind(images, weight, alignment(0.5), THICK, settings) for kind in (JointFit, OnTorch)]
    ours, other = (fit.run() for fit in fits)
    np.testing.assert_allclose(np.array(other.losses), np.array(ours.losses), rtol=3e-3)
    # steps of a network differ by the processor's last digits, and one tilt of them by 0.03 px on some
    apart_px = 0.05 if settings.warp == "network" else 0.03
    assert np.abs(other.alignment.shift_px - ours.alignment.shift_px).max() < apart_px
    assert np.abs(ours.alignment.shift_px - alignment(0.5).shift_px).max() > 1
    if settings.warp != "none":
        assert ours.alignment.warp is not None and other.alignment.warp is not None
        np.testing.assert_allclose(other.alignment.warp.vectors, ours.alignment.warp.vectors, atol=0.03)
    np.testing.assert_allclose(other.gain, ours.gain, rtol=0.02)
    assert np.corrcoef(other.density.ravel(), ours.density.ravel())[0, 1] > 0.9999


def test_the_map_of_held_out_pixels_is_the_same(images, monkeypatch):
    settings = JointSettings(levels=3, control_points=3, schedule=MOVING, held_out=0.3)
    ours, other = (kind(images, np.ones_like(images), alignment(0.5), THICK, settings) for kind in (JointFit, OnTorch))
    ours.run()
    other.load_state_dict(ours.state_dict())
    wanted, found = ours.held_out_map(), other.held_out_map()
    assert wanted.shape == (*ours.held_blocks.shape, 2) and (wanted.sum(axis=(1, 2)) > 0).sum() > 10
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.max())


def test_a_fit_on_a_device_goes_on_from_its_saved_state(images):
    settings = JointSettings(levels=3, control_points=3, schedule=MOVING)
    weight = np.ones_like(images)
    saved: dict[str, np.ndarray] = {}

    def keep(fit):
        if fit.done_steps == 4 and not saved:
            saved.update({k: np.array(v) for k, v in fit.state_dict().items()})

    whole = OnTorch(images, weight, alignment(0.5), THICK, settings).run(keep)
    again = OnTorch(images, weight, alignment(0.5), THICK, settings)
    again.load_state_dict(saved)
    rest = again.run()
    np.testing.assert_allclose(rest.alignment.shift_px, whole.alignment.shift_px, atol=1e-6)
    np.testing.assert_allclose(np.array(rest.losses), np.array(whole.losses), rtol=1e-6)


@pytest.mark.parametrize("memory", [4e9, 6.5e6], ids=["one slab", "slabs"])
def test_a_field_reconstruction_takes_the_same_steps(images, memory):
    settings = FieldSettings(steps=(12, 3), memory_bytes=memory)
    made = []
    for kind in (FieldFit, FieldOnTorch):
        fit = kind(images, np.ones_like(images), alignment(), THICK, settings, 0, Recording())
        fit.optimise()
        made.append((fit.losses, fit.held_out_loss, np.concatenate([part for _, part in fit.slabs(8)], axis=1)))
    (ours, held, density), (other, other_held, other_density) = made
    assert len(ours) == len(other)
    np.testing.assert_allclose(np.array(other), np.array(ours), rtol=2e-3)
    assert other_held == pytest.approx(held, rel=2e-3)
    assert np.corrcoef(density.ravel(), other_density.ravel())[0, 1] > 0.999


def test_a_field_reconstruction_on_a_device_goes_on_from_its_saved_state(images):
    settings = FieldSettings(steps=(6, 12))
    saved: dict[str, np.ndarray] = {}

    def keep(fit):
        if (fit.done_scales, fit.done_steps) == (1, 4):
            saved.update({k: np.array(v) for k, v in fit.state_dict().items()})

    whole, again = (
        FieldOnTorch(images, np.ones_like(images), alignment(), THICK, settings, 0, Recording()) for _ in range(2)
    )
    whole.optimise(keep)
    again.load_state_dict(saved)
    again.optimise()
    np.testing.assert_allclose(np.array(again.losses), np.array(whole.losses), rtol=1e-6)
    np.testing.assert_allclose(again.field.parameters(), whole.field.parameters(), atol=1e-6)


@pytest.mark.parametrize("warp", ["bicubic", "bilinear"])
def test_a_step_of_the_motion_and_its_coordinates_are_the_same(warp):
    rng = np.random.default_rng(2)
    at, n = np.arange(30.0) - 14.5, len(TILTS)
    start = Alignment.identity(TILTS, (30, 30), 7.0, 10.0)
    ours = Motion(start, 4, warp)
    ours.nodes += rng.normal(scale=0.5, size=ours.nodes.shape)
    ours.velocity += rng.normal(scale=0.1, size=ours.velocity.shape)
    other = DeviceMotion(Motion(start, 4, warp), at, at, 8, "cpu")
    for mine, theirs in ((other.nodes, ours.nodes), (other.velocity, ours.velocity)):
        mine.copy_(torch.tensor(theirs))
    maps = rng.normal(size=(3, n, 30, 30)).astype(np.float32)
    for with_warp in (False, True):
        sums = BlockSums.of(maps[0], maps[1], maps[2], at, at, 8)
        found = other.block_sums(*(torch.tensor(m) for m in maps))
        np.testing.assert_allclose(found.numpy(), sums.values.reshape(n, -1, 5), rtol=1e-5, atol=1e-5)
        ours.step(sums, 0.4, with_warp)
        given = torch.tensor(sums.values).reshape(n, -1, 5)
        other.step(given, torch.tensor(0.4, dtype=torch.float64), with_warp)
        for mine, theirs in ((other.linear, ours.linear), (other.shift, ours.shift), (other.nodes, ours.nodes)):
            np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-9)
    assert float(other.warp_sd) == pytest.approx(ours.warp_sd_px)
    part = slice(2, 5)
    exact = ours.coordinates(part, at, at, 2.0, 25, 21)
    for found, wanted in zip(other.coordinates(part, 2.0, 25, 21, warped=True), exact, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-5)


def test_small_matrices_are_inverted():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 9, 9))
    a = a @ a.transpose(0, 2, 1) + 1e-3 * np.eye(9)
    np.testing.assert_allclose(inverse(torch.tensor(a)).numpy() @ a, np.broadcast_to(np.eye(9), a.shape), atol=1e-8)


@pytest.fixture
def without_values(monkeypatch):
    """Tensors on torch's ``meta`` device: reading one, indexing by a mask and mixing with the CPU's are errors."""
    begin = gpu_fit.OnDevice.begin

    def begun(stage):
        given = stage.fit.settings
        stage.fit.settings = replace(given, device="meta")
        begin(stage)
        stage.fit.settings = given

    monkeypatch.setattr(gpu_fit.OnDevice, "begin", begun)
    monkeypatch.setattr(gpu_fit.Replayed, "__call__", lambda self, key, step: step())
    monkeypatch.setattr(operations, "has_triton", lambda device: False)


def test_no_step_of_a_joint_fit_waits_for_the_device(images, without_values):
    scale = Scale(bin=1, steps=9, motion_from=2, warp_from=3)
    settings = JointSettings(levels=2, control_points=3, schedule=(scale,), held_out=0.1)
    stage = OnTorch(images, np.ones_like(images), alignment(0.5), THICK, settings).stage(scale)
    for step in range(1, 5):
        stage.step(step)
    assert stage.motion.has_warp and stage.totals.is_meta
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        stage.read()


def test_no_step_of_a_field_reconstruction_waits_for_the_device(images, without_values):
    settings = FieldSettings(steps=(9, 9), memory_bytes=6.5e6)
    fit = FieldOnTorch(images, np.ones_like(images), alignment(), THICK, settings, 0, Recording())
    fit.done_scales = 1  # gains are free
    stage = fit.stage(fit.settings.schedule[-1])
    stage.step(1)
    assert len(stage.planned) > 1 and stage.snapshot().is_meta


def test_a_recorded_step_goes_before_another_kind_of_step_takes_memory(monkeypatch):
    made: list[weakref.ref[object]] = []
    said: list[object] = []

    class Graph:
        def __init__(self):
            made.append(weakref.ref(self))

        def replay(self):
            said.append("replayed")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda name: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda name: said.append("waited"))
    replayed = gpu_fit.Replayed("cuda:0")
    for _ in range(3):
        replayed("still", lambda: said.append("still"))
    assert said == ["still", "still", "replayed", "replayed"]  # run, recorded and replayed, replayed
    assert made[0]() is not None
    said.clear()
    replayed("moving", lambda: said.append(made[0]() is None))
    assert said == ["waited", True]
    replayed("moving", lambda: said.append("moving"))
    assert said == ["waited", True, "moving", "replayed"]
