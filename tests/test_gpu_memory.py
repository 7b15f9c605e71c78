"""What the alignment takes on a device stays within ``--memory``: tensors counted on the CPU as if on a GPU.

With Triton at hand its own launches are left out, since only what is allocated for them matters here.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inrtomo import device
from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.align.windows import Band, Window
from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci
from inrtomo.errors import InputError
from inrtomo.gpu import room
from inrtomo.gpu.early import DeviceWork
from inrtomo.gpu.field_stage import DeviceFieldStage
from inrtomo.gpu.fit import DeviceStage
from inrtomo.gpu.sweeps import DeviceSweeps
from inrtomo.localized.inference import inferred_slabs
from inrtomo.localized.scaling import measured_scaling
from inrtomo.localized.tilts import filtered_tilts
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.reconstruct import prepared, sart_tv, sirt
from inrtomo.reconstruct.ctf_correction import CtfOperator
from inrtomo.reconstruct.field import FieldFit, FieldSettings, Priors, Recording

if find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are first imported

SIZE, TILTS, THICK = 64, np.arange(-45.0, 46, 5), 1.0


class Peak(TorchDispatchMode):
    """Within ``with Peak() as peak``: ``peak.bytes`` is the most that was held of what was made since it began."""

    def __init__(self):
        super().__init__()
        self.held = self.bytes = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self.held += size
        self.bytes = max(self.bytes, self.held)

        def gone():
            self.held -= size
            del self._known[key]

        self._known[key] = weakref.finalize(storage, gone)


def fit(memory_bytes):
    images = np.random.default_rng(0).normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    scale = Scale(bin=1, steps=4, motion_from=0, warp_from=0)
    settings = JointSettings(levels=1, control_points=3, schedule=(scale,), held_out=0.1, memory_bytes=memory_bytes)
    return JointFit(images, np.ones_like(images), Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0), THICK, settings)


def stage_within(memory_bytes):
    joint = fit(memory_bytes)
    return DeviceStage(joint, joint.settings.schedule[0])


def least_bytes(make, refusal):
    """The smallest bound that is not refused."""
    with pytest.raises(InputError, match=refusal):
        make(1.0)
    low, high = 1.0, 1e9
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        try:
            make(middle)
            high = middle
        except InputError:
            low = middle
    return high


def test_peaks_are_counted():
    with Peak() as peak:
        one = torch.zeros(1000)
        two = one + 1
        del one
        view = (two * 2).view(10, 100)
        assert (peak.held, peak.bytes) == (8000, 8000)
        del two, view
        assert peak.held == 0


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("share", [1.0, 1.5, 10.0])
def test_a_step_of_the_fit_stays_within_the_bound(share, monkeypatch):
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(GridExecutor, "__call__", lambda *given, **named: None)
    bound = share * least_bytes(stage_within, r"--memory 9.3e-10G: .*G on the GPU; give that")
    with Peak() as peak:
        stage = stage_within(bound)
        for step in range(2):
            stage.step(step)
    assert type(stage.field.form.kernels).__name__ == "HashField"
    n_batches = len(stage.batches())
    assert n_batches == 1 if share == 10 else n_batches > 2
    assert (0 if share == 10 else 0.6 * bound) < peak.bytes <= bound


def test_too_little_for_the_last_scale_is_said_before_the_first(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    scales = (Scale(bin=2, steps=4, motion_from=0, warp_from=0), Scale(bin=1, steps=4, motion_from=0, warp_from=0))

    def with_bound(size):
        joint = fit(size)
        joint.settings = replace(joint.settings, schedule=scales)
        return joint

    of_scales = [
        least_bytes(lambda size, scale=scale: DeviceStage(with_bound(size), scale), f"binned by {scale.bin}, which")
        for scale in scales
    ]
    assert 1.5 * of_scales[0] < of_scales[1]
    whole = least_bytes(lambda size: room.refuse_too_little(with_bound(size)), "binned by 1, which")
    assert whole == pytest.approx(of_scales[1], rel=2e-3)

    joint = with_bound(1.1 * of_scales[0])
    joint.settings = replace(joint.settings, device="cuda:0")
    checked = room.refuse_too_little
    monkeypatch.setattr(room, "refuse_too_little", lambda fit: checked(with_bound(fit.settings.memory_bytes)))
    with pytest.raises(InputError, match="binned by 1, which"):
        joint.run()
    assert joint.losses == []


def reconstruction(field, terms, memory_bytes):
    images = np.random.default_rng(0).normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    alignment = Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0)
    priors, recording = Priors(), Recording()
    if terms == "priors and check":
        priors, recording = Priors(wedge=1.0, isotropic=1.0, boundary=float(field == "tensor")), Recording(check=images)
    elif terms == "transfer":
        defoci = Defoci.of(2e4, len(TILTS))
        recording = Recording(lambda bin: CtfOperator(alignment, defoci, bin, voltage_kV=300.0))
    settings = FieldSettings(field, priors=priors, memory_bytes=memory_bytes, steps=(4,))
    made = FieldFit(images, np.ones_like(images), alignment, 20.0, settings, 0, recording)
    return DeviceFieldStage(made, made.settings.schedule[0])


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("terms", ["nothing more", "priors and check", "transfer"])
@pytest.mark.parametrize("field", ["hash", "tensor"])
def test_a_step_of_a_reconstruction_stays_within_the_bound(field, terms, monkeypatch):
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(GridExecutor, "__call__", lambda *given, **named: None)
    bound = least_bytes(lambda size: reconstruction(field, terms, size), "which needs .*G; give that")
    with Peak() as peak:
        stage = reconstruction(field, terms, bound)
        stage.pace = 1.0
        copies = [stage.snapshot() for _ in range(3)]  # the best, and those that wait for their losses
        for step in range(2):
            stage.step(step)
    assert len(copies) == 3 and len(stage.slabs) > 1
    # blocks of fixed size are not full in a case as small as this
    assert (0.5 * bound if (field, terms) == ("hash", "nothing more") else 0) < peak.bytes <= bound


@pytest.mark.parametrize("kind", ["sirt", "subsets", "support", "sart-tv"])
def test_slabs_of_sweeps_stay_within_the_bound(kind, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def on_device(device, rays, images, weight, level, n_subsets, allowed=None):
        return DeviceSweeps(rays, images, weight, level, n_subsets, "cpu", allowed)

    idle = SimpleNamespace(
        project=lambda rho, geometry: torch.zeros((geometry.n_tilts, geometry.n_u, rho.shape[2])),
        add_back_projection=lambda *given: None, correct=lambda *given: None, correct_by_means=lambda *given: None,
        values_at=lambda ideal, u, v: torch.zeros_like(u), spread_at=lambda values, u, v, shape: torch.zeros(shape),
        add_variation=lambda *given: None,
    )  # fmt: skip
    monkeypatch.setattr("inrtomo.gpu.sweeps.operations.of", lambda device: idle)
    monkeypatch.setattr(sirt, "sweeps_on", on_device)
    monkeypatch.setattr(sart_tv, "sweeps_on", on_device)
    size, height, bound = 128, 32, 24e6
    images = np.random.default_rng(0).normal(size=(len(TILTS), size, size)).astype(np.float32)
    given = images, np.ones_like(images), Alignment.identity(TILTS, (size, size), 5.0, 10.0), float(height)
    with Peak() as peak:
        if kind == "sart-tv":
            slabs = list(sart_tv.sart_tv_slabs(*given, sart_tv.SartTvSettings(1, memory_bytes=bound)))
        else:
            support = np.ones((height, size, size), bool) if kind == "support" else None
            subsets = 5 if kind == "subsets" else 1
            settings = sirt.SirtSettings(1, subsets, support=support, memory_bytes=bound)
            slabs = list(sirt.sirt_slabs(*given, settings))
    assert len(slabs) > 1 and 0.3 * bound < peak.bytes <= bound


@pytest.mark.parametrize("bound", [1e8, 3e8])
def test_slabs_of_an_inference_stay_within_the_bound(bound):
    size, height = 160, 32
    images = np.random.default_rng(0).normal(size=(len(TILTS), size, size)).astype(np.float32)
    model, _ = load_weights(shipped_weights())
    with filtered_tilts(images, Alignment.identity(TILTS, (size, size), 5.0, 10.0), height) as tilts:
        scaling = measured_scaling(tilts, (height, size, size), 10.0, "cpu:0")
        with Peak() as peak:
            slabs = inferred_slabs(tilts, (height, size, size), scaling, model, bound, "cpu:0")
            assert next(slabs)[0].stop < size
            next(slabs)
    assert 0.5 * bound < peak.bytes <= bound


def test_a_batch_of_tilts_takes_what_was_reckoned(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    # reading and spreading that allocate what the kernels do
    operations = SimpleNamespace(
        read_at=lambda ideal, u, v: (torch.zeros_like(u), torch.zeros_like(u), torch.zeros_like(u)),
        spread_at=lambda values, u, v, shape: torch.zeros(shape),
    )
    with Peak() as peak:
        stage = stage_within(1e9)
        stage.ops, stage.motion.has_warp = operations, True
        image, plane = stage.data.images[0].size, stage.n_u * stage.lattice.shape[2]
        sums = torch.zeros((len(TILTS), len(stage.motion.points), 5), dtype=torch.float64)
        for n in (1, 4, 9):
            before = peak.bytes = peak.held
            stage.data_gradient(torch.zeros((n, stage.n_u, stage.lattice.shape[2])), slice(0, n), True, sums)
            reckoned = 4 * n * (room.PIXEL_FLOATS * image + 2 * plane)
            assert 0.6 * reckoned < peak.bytes - before <= reckoned


@pytest.mark.parametrize("memory_bytes", [1e6, 4e6, 1e8])
def test_windows_are_read_within_the_bound(memory_bytes):
    rng = np.random.default_rng(0)
    n_tracks, window = 40, Window(16, 2.0)
    images = rng.normal(size=(len(TILTS), 40, 40)).astype(np.float32)
    centres, linear = rng.uniform(-4, 4, (n_tracks, len(TILTS), 2)), np.tile(np.eye(2), (len(TILTS), 1, 1))
    shift, band = np.zeros((len(TILTS), 2)), Band.of(window, 40.0, 8.0)
    with Peak() as peak:
        work = DeviceWork("cpu", memory_bytes)
        views, _ = work.read_views(work.coefficients(images), linear, shift, TILTS, centres, window, band)
    assert views.shape[:2] == (n_tracks, len(TILTS))
    assert peak.bytes <= memory_bytes


def test_the_bound_is_what_was_asked_for_or_most_of_what_is_free(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (8e9, 10e9))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, name: set_to.append((fraction, name))
    )
    gpu, cpu = device.Device("cuda:1", ""), device.Device("cpu", "")
    assert device.memory_bound([gpu], 4e9, 1e9) == 4e9
    assert device.memory_bound([gpu], None, 1e9) == device.memory_bound([gpu], 9e9, 1e9) == pytest.approx(7.2e9)
    assert set_to == [(pytest.approx(f), "cuda:1") for f in (0.4, 0.72, 0.72)]
    assert (device.memory_bound([cpu], None, 1e9), device.memory_bound([cpu], 3e9, 1e9)) == (1e9, 3e9)
    assert len(set_to) == 3


def test_of_several_gpus_the_fullest_one_bounds_all(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (3e9 if name == "cuda:1" else 8e9, 10e9))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, name: set_to.append((fraction, name))
    )
    both = [device.Device(f"cuda:{k}", "") for k in range(2)]
    assert device.memory_bound(both, None, 1e9) == pytest.approx(2.7e9)
    device.limit("cuda:1", 2.7e9)  # what the process there does with the bound it is told
    device.limit("cpu", 1.0)
    assert set_to == [(pytest.approx(0.27), "cuda:0"), (pytest.approx(0.27), "cuda:1")]


@pytest.mark.parametrize(("where", "wanted"), [("cpu", 1e9), ("cuda:0", 4e9)])
def test_polishing_before_a_reconstruction_has_the_whole_gpu(where, wanted, monkeypatch):
    asked = []

    def stop(images, weight, start, thickness_px, settings):
        asked.append((settings.memory_bytes, settings.device))
        raise InputError("enough")

    monkeypatch.setattr(prepared, "JointFit", stop)
    start = Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0)
    tilts: Any = SimpleNamespace(alignment=start, images=0, weight=0)
    with pytest.raises(InputError, match="enough"):
        prepared.refined(tilts, 10.0, 4e9, 0, lambda *step: None, where)
    assert asked == [(wanted, where)]
