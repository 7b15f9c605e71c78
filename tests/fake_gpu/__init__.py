"""A GPU for tests where there is none: torch's device "cuda" with the host's memory and torch's kernels for the CPU.

On the CPU as the device, tests cannot see a tensor left on the wrong side, a copy that was forgotten or a branch that
only a GPU takes. Here both sides share their memory but not their types: torch refuses what a GPU would refuse, and
numbers come out. `device.cpp` is the device; `install` has torch take it for a GPU, for the rest of the process.
As a plugin, ``pytest -p tests.fake_gpu FILE``, it does so before any test is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import library

operations = library.Library("fake_gpu", "FRAGMENT")
N_DEVICES = 2
FREE_BYTES = 8 << 30


def unavailable() -> str:
    """Why it cannot be built here; empty if it can."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this torch is made for GPUs and has kernels of its own for them"
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        return "tests/fake_gpu/device.cpp is written for the inner interfaces of torch 2.13"
    missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
    return f"needs {' and '.join(missing)} to compile tests/fake_gpu/device.cpp" if missing else ""


def install() -> None:
    """Compile and load the device (half a minute the first time), and have `torch.cuda` speak of it."""
    from torch.utils import cpp_extension

    source = Path(__file__).with_name("device.cpp")
    name = f"fake_gpu_{torch.__version__}".replace(".", "_").replace("+", "_")
    cpp_extension.load(name, [str(source)], is_python_module=False, extra_cflags=["-O0"])
    cuda: Any = torch.cuda
    properties = SimpleNamespace(name="a GPU of the tests", total_memory=2 * FREE_BYTES, multi_processor_count=2)
    cuda._lazy_init = cuda.empty_cache = cuda.set_per_process_memory_fraction = lambda *_: None
    cuda.synchronize = lambda *_: torch.ops.fake_gpu.arrive()
    cuda.is_available = cuda.is_bf16_supported = lambda *_: True
    cuda.device_count = lambda: N_DEVICES
    cuda.get_device_properties = lambda *_: properties
    cuda.mem_get_info = lambda *_: (FREE_BYTES, 2 * FREE_BYTES)
    cuda.max_memory_allocated = lambda name: torch.ops.fake_gpu.most_held(torch.device(name).index)
    cuda.current_device = torch.ops.fake_gpu.current
    cuda._exchange_device = cuda._maybe_exchange_device = torch.ops.fake_gpu.exchange
    cuda.set_device = lambda device: torch.ops.fake_gpu.exchange(cuda._utils._get_device_index(device))
    cuda.CUDAGraph, cuda.graph = Graph, capture
    cuda.current_stream, cuda.Event = Event, Event
    join_through_gloo()
    torch.serialization.register_package(0, lambda _: None, loaded)  # type: ignore[arg-type]


def join_through_gloo() -> None:
    """Have processes on several of the devices join, though there is no NCCL: sums go by the host's memory."""
    if not torch.distributed.is_available():
        return
    dist: Any = torch.distributed
    begin, add_up = dist.init_process_group, dist.all_reduce
    # as an operation of torch it is recorded with the others
    operations.define("add_up(Tensor(a!) values) -> ()")
    operations.impl("add_up", lambda values: add_up(values) and None, "CPU")
    dist.is_backend_available = lambda name: True
    dist.init_process_group = lambda backend, **named: begin("gloo", **named)
    dist.all_reduce = torch.ops.fake_gpu.add_up


def loaded(storage: Any, location: str) -> Any:
    """A storage of a file on the device, for `torch.load`, whose own way is compiled for CUDA only."""
    if not location.startswith("cuda"):
        return None
    return torch.empty(0, dtype=torch.uint8).set_(storage).to(location).untyped_storage()


class Graph:
    """What was run while it was captured, run again on the same tensors.

    Capturing runs it once already, other than on a GPU; so the first `replay` does nothing.
    """

    def __init__(self) -> None:
        self.number, self.has_run = -1, False

    def replay(self) -> None:
        if self.has_run:
            torch.ops.fake_gpu.replay(self.number)
        self.has_run = True

    def __del__(self) -> None:
        torch.ops.fake_gpu.forget(self.number)


class Event:
    """A stream or an event of one: waiting for it has copies arrive that were asked for with ``non_blocking``."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        torch.ops.fake_gpu.arrive()


@contextmanager
def capture(graph: Graph, capture_error_mode: str = "global") -> Iterator[None]:
    """In place of `torch.cuda.graph`."""
    graph.number = torch.ops.fake_gpu.begin()
    try:
        yield
    finally:
        torch.ops.fake_gpu.end()


def pytest_configure() -> None:
    install()
