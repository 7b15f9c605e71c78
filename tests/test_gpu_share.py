"""One fit, or one field reconstruction, over two processes with gloo on the CPU: the result of one process."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from alignment_phantom import blob_series  # type: ignore[import-not-found]

from inrtomo.align.joint import JointSettings, Scale
from inrtomo.align.pipeline import align_series
from inrtomo.align.settings import AlignSettings
from inrtomo.alignment import Alignment
from inrtomo.device import choose_several
from inrtomo.errors import InputError
from inrtomo.gpu.share import Share, followers
from inrtomo.io.mrc import write_stack
from inrtomo.reconstruct.ctf_correction import CtfOperator
from inrtomo.reconstruct.field import FieldSettings, Priors, Recording
from inrtomo.tiltseries import open_tilt_series
from tests.on_torch import FieldOnTorch, OnTorch

pytestmark = pytest.mark.usefixtures("plain_torch")

SIZE, TILTS = 16, np.arange(-60.0, 61, 24)
SLABS = 3.2e6  # bytes: too little for all rows at once
SCHEDULE = (Scale(bin=2, steps=4, motion_from=1, warp_from=2),)


gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here"
)  # fmt: skip


def fit():
    found = joint().run()
    return found.alignment.shift_px, np.array(found.losses), found.density, found.gain


def join(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)


def other(path):
    join(1, path)
    fit()
    dist.destroy_process_group()


@gloo
def test_two_processes_find_what_one_finds(tmp_path):
    alone = fit()
    process = mp.get_context("spawn").Process(target=other, args=(tmp_path / "store",))
    process.start()
    try:
        join(0, tmp_path / "store")
        assert Share.of(6) == Share(0, 2, 0, 3)
        together = fit()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        process.join(600)
    assert process.exitcode == 0
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


def test_batches_are_cut_to_the_share():
    share = Share(1, 2, 3, 7)
    assert share.within([slice(0, 2), slice(2, 5), slice(5, 9)]) == [slice(3, 5), slice(5, 7)]
    assert Share.of(5) == Share(0, 1, 0, 5)


class Failing(OnTorch):
    def stage(self, scale):
        if dist.get_rank() == 1:
            raise RuntimeError("no memory, say")
        return super().stage(scale)


def joint(kind=OnTorch, shared=False, **changes):
    images = np.random.default_rng(0).normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    images[:, 4:9, 6:10] += 2
    start = Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0)
    settings = JointSettings(levels=2, control_points=3, schedule=SCHEDULE, held_out=0.1, shared=shared, **changes)
    return kind(images, np.ones_like(images), start, 6.0, settings)


@gloo
def test_followers_take_part_in_every_fit():
    alone, other = joint().run(), joint(seed=1).run()
    torch.set_num_threads(1)
    with followers(["cpu", "cpu"]):
        assert Share.of(6) == Share(0, 2, 0, 3)
        half_way, together = joint(shared=True), joint(shared=True, seed=1).run()
        half_way.load_state_dict(joint().state_dict())
        first = half_way.run()
    assert Share.of(6) == Share(0, 1, 0, 6)
    for found, wanted in ((first, alone), (together, other)):
        for name in ("density", "gain"):
            one, two = getattr(wanted, name), getattr(found, name)
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())
        np.testing.assert_allclose(found.alignment.shift_px, wanted.alignment.shift_px, atol=1e-3)
    assert np.abs(alone.density - other.density).max() > 0


HASH = {"memory_bytes": SLABS}
TENSOR = {"field": "tensor", "priors": Priors(wedge=2.0, boundary=2.0)}  # these on the leader alone


def reconstruction(shared, **options):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    images[:, 4:9, 6:10] += 8
    other = images + rng.normal(size=images.shape).astype(np.float32)
    settings = FieldSettings(steps=(12, 8), shared=shared, **options)
    start = Alignment.identity(TILTS, (SIZE, SIZE), 3.0, 10.0)
    transfer = partial(CtfOperator, start, 8e3) if "field" in options else None
    return FieldOnTorch(images, np.ones_like(images), start, 6.0, settings, 1, Recording(transfer, check=other))


def reconstructed(fit, on_step=None):
    fit.optimise(on_step)
    density = np.concatenate([part for _, part in fit.slabs(8)], axis=1)
    return density, np.array(fit.losses), fit.gain, np.array(fit.held_out_loss)


@gloo
def test_a_reconstruction_of_two_processes_is_that_of_one():
    alone, tensor_alone = (reconstructed(reconstruction(False, **options)) for options in (HASH, TENSOR))
    saved: dict[str, np.ndarray] = {}

    def keep(fit):
        if (fit.done_scales, fit.done_steps) == (1, 3) and not saved:
            saved.update({k: np.array(v) for k, v in fit.state_dict().items()})

    torch.set_num_threads(1)
    with followers(["cpu", "cpu"]):
        together = reconstructed(reconstruction(True, **HASH), keep)
        later = reconstruction(True, **HASH)
        later.load_state_dict(saved)
        resumed = reconstructed(later)
        tensor = reconstructed(reconstruction(True, **TENSOR))
    for wanted, found in ((alone, together), (alone, resumed), (tensor_alone, tensor)):
        for one, two in zip(wanted, found, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())
    for wanted in (alone, tensor_alone):
        assert wanted[0].max() > 2 * wanted[0].mean() > 0 and np.isfinite(wanted[-1])


@gloo
def test_a_follower_that_ends_is_told_in_one_sentence():
    with pytest.raises(InputError, match="--device cpu,cpu: the process on cpu ended"), followers(["cpu", "cpu"]):
        joint(Failing, shared=True).run()
    assert not dist.is_initialized()


def test_a_torch_that_joins_no_processes_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda:0,cuda:1: this torch has no torch.distributed with nccl"):
        with followers(["cuda:0", "cuda:1"]):
            pass


@pytest.mark.slow
@gloo
def test_a_whole_alignment_announces_every_fit(tmp_path):
    images, truth = blob_series((64, 64), np.arange(-60.0, 61, 10), shift_px=2, slab_px=12)
    write_stack(tmp_path / "ts.mrc", images, 10.0)
    np.savetxt(tmp_path / "ts.rawtlt", truth.tilt_deg)
    series, settings = open_tilt_series(tmp_path / "ts.mrc"), AlignSettings(axis_deg=0.0, thickness_px=16)
    alone, led = (align_series(series, replace(settings, others=others)) for others in ((), ("cpu",)))
    np.testing.assert_array_equal(led.alignment.shift_px, alone.alignment.shift_px)
    assert led.losses == alone.losses and not dist.is_initialized()


def test_several_devices_are_different_gpus():
    assert [each.name for each in choose_several("cpu")] == ["cpu"]
    for wrong in ("cuda:0,cuda:0", "cuda:0,cpu", "cuda,cuda:1", "cuda:0,", "auto,cuda:1"):
        with pytest.raises(InputError, match="write them as cuda:0,cuda:1"):
            choose_several(wrong)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="use --device cpu"):
            choose_several("cuda:0,cuda:1")
