"""One joint fit over two processes, with gloo on the CPU: the result of one process."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.alignment import Alignment
from inrtomo.gpu.fit import DeviceStage
from inrtomo.gpu.share import Share

SIZE, TILTS = 16, np.arange(-60.0, 61, 24)
SCHEDULE = (Scale(bin=2, steps=4, motion_from=1, warp_from=2),)


class OnTorch(JointFit):
    def stage(self, scale):
        return DeviceStage(self, scale)


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """Not the interpreter, which would take hours."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def fit():
    images = np.random.default_rng(0).normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    images[:, 4:9, 6:10] += 2
    start = Alignment.identity(TILTS, (SIZE, SIZE), 0.0, 10.0)
    settings = JointSettings(levels=2, control_points=3, schedule=SCHEDULE, held_out=0.1)
    found = OnTorch(images, np.ones_like(images), start, 6.0, settings).run()
    return found.alignment.shift_px, np.array(found.losses), found.density, found.gain


def join(rank, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)


def other(path):
    join(1, path)
    fit()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo here")
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
