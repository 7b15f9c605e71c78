"""The GPU of `tests.fake_gpu` itself: it refuses what a GPU refuses, and otherwise gives the CPU's numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

GPU = "cuda:0"
HERE = torch.arange(20.0).reshape(4, 5)
THERE = HERE.to(GPU)
AT = torch.tensor([0, 2])

REFUSED: dict[str, Callable[[], object]] = {
    "sum": lambda: THERE + HERE,
    "output": lambda: torch.add(HERE, HERE, out=THERE),
    "product": lambda: THERE @ HERE.T,
    "einsum": lambda: torch.einsum("ij,kj->ik", THERE, HERE),
    "join": lambda: torch.cat([THERE, HERE]),
    "stacked numbers": lambda: torch.stack([THERE.sum(), HERE.sum()]),
    "where": lambda: torch.where(HERE > 3, THERE, 0),
    "mask": lambda: THERE.masked_fill(HERE > 3, 0),
    "index on the device": lambda: HERE[AT.to(GPU)],
    "values set": lambda: THERE.clone().__setitem__(AT, HERE[:2]),
    "index_add": lambda: torch.zeros_like(THERE).index_add_(0, AT, THERE[:2]),
    "gather": lambda: THERE.gather(0, AT[None]),
    "search": lambda: torch.searchsorted(THERE[0], HERE[0]),
    "grid": lambda: functional.grid_sample(THERE[None, None], torch.zeros(1, 2, 2, 2), align_corners=True),
    "convolution": lambda: functional.conv2d(THERE[None, None], torch.ones(1, 1, 3, 3)),
    "another device": lambda: THERE + HERE.to("cuda:1"),
    "numpy": lambda: THERE.numpy(),
    "array": lambda: np.sqrt(THERE),
    "random numbers": lambda: torch.empty(3, device=GPU).normal_(generator=torch.Generator()),
}

ALLOWED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "number": lambda x: x * torch.tensor(2.0),
    "index": lambda x: x[AT],
    "view": lambda x: x.T[1:, ::2].unfold(0, 2, 1),
    "Fourier": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(x).conj(), s=x.shape),
    "complex parts": lambda x: torch.view_as_real(torch.fft.fft(x))[..., 1],
    "sort": lambda x: (-x).sort(dim=1).values.cumsum(0),
    "equations": lambda x: torch.linalg.solve(x @ x.T + torch.eye(4, device=x.device), x),
    "scattered": lambda x: torch.zeros_like(x).index_add_(0, torch.tensor([1, 1, 0, 2], device=x.device), x),
    "resampled": lambda x: functional.grid_sample(
        x[None, None], torch.full((1, 2, 2, 2), 0.3, device=x.device), align_corners=True
    ),
    "convolved": lambda x: functional.conv2d(x[None, None], torch.ones(1, 1, 3, 3, device=x.device)),
}


@pytest.mark.parametrize("work", REFUSED.values(), ids=REFUSED.keys())
def test_sides_are_kept_apart(work: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        work()


@pytest.mark.parametrize("work", ALLOWED.values(), ids=ALLOWED.keys())
def test_numbers_and_gradients_are_those_of_the_cpu(work: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = []
    for device in ("cpu", GPU):
        x = HERE.to(device, copy=True).requires_grad_()
        made = work(x)
        assert made.device == x.device
        (slope,) = torch.autograd.grad(made.square().sum(), x)
        found.append((made.detach().cpu(), slope.cpu()))
    torch.testing.assert_close(found[1], found[0])


def test_a_graph_runs_again_on_what_has_changed_and_never_waits() -> None:
    total, step = torch.zeros(3, device=GPU), torch.ones((), device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = total * 2 + step
        total.copy_(doubled)
        total[:1].zero_()
    for value, expected in ((1.0, 1.0), (2.0, 4.0), (3.0, 11.0)):
        step.fill_(value)
        graph.replay()
        if value == 1.0:
            continue  # which was done while capturing
        assert total.tolist() == [0.0, expected, expected]
    for waits in (lambda: float(total.sum()), total.cpu, lambda: torch.ones(3).to(GPU), lambda: total[total > 0]):
        with pytest.raises(RuntimeError, match="captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            waits()


def test_copies_arrive_when_they_are_waited_for() -> None:
    found = torch.zeros(5, pin_memory=True)
    found.copy_(THERE[1], non_blocking=True)
    assert not found.any()
    torch.cuda.synchronize()
    torch.testing.assert_close(found, HERE[1])


def test_what_tensors_hold_is_counted() -> None:
    torch.ops.fake_gpu.forget_most()
    before = torch.cuda.max_memory_allocated(GPU)
    one = torch.empty(1000, device=GPU)
    two = one + 1
    del one
    three = two * 2
    assert torch.cuda.max_memory_allocated(GPU) - before == 8000
    del two, three
    torch.ops.fake_gpu.forget_most()
    assert torch.cuda.max_memory_allocated(GPU) == before
