"""Which device computes: ``--device auto|cpu|cuda[:N]``, in `inr-align` also several GPUs.

``cpu`` is the compiled CPU path, whose results the benchmarks are of. A GPU needs torch built for CUDA, a driver and
Triton (which comes with torch on Linux); ``auto`` takes one when all three are there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from inrtomo.errors import InputError

CPU = "cpu"
SHARE_OF_FREE = 0.9  # of a GPU's free memory: the rest is for the driver's own needs


@dataclass(frozen=True)
class Device:
    """A device that was chosen.

    Attributes:
        name: ``"cpu"`` or ``"cuda:N"``, as torch calls it.
        sentence: what was chosen and why, for the user.
    """

    name: str
    sentence: str

    @property
    def is_gpu(self) -> bool:
        return self.name != CPU


def choose(wanted: str = "auto") -> Device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: another name, or a GPU that cannot be used.
    """
    if wanted == CPU:
        return Device(CPU, "the CPU")
    if wanted != "auto" and not _is_cuda_name(wanted):
        raise InputError(f"--device {wanted}: not a device; give auto, cpu, cuda or cuda:N")
    missing = _missing()
    if wanted == "auto":
        return Device(CPU, f"the CPU: {missing}") if missing else _gpu(0)
    import torch

    number = int(wanted.partition(":")[2] or 0)
    if missing:
        raise InputError(f"--device {wanted}: {missing}; use --device cpu")
    if number >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InputError(f"--device {wanted}: there is no such GPU; give cuda:0 to cuda:{last}")
    return _gpu(number)


def choose_several(wanted: str) -> list[Device]:
    """As `choose`, also for several GPUs: ``cuda:0,cuda:1``. The first is the one that leads.

    Raises:
        InputError: as `choose`, or a device twice, or one that is no GPU among several.
    """
    names = wanted.split(",")
    if len(names) > 1 and (len(set(names)) < len(names) or not all(_is_cuda_name(n) and ":" in n for n in names)):
        raise InputError(f"--device {wanted}: several devices have to be different GPUs; write them as cuda:0,cuda:1")
    # the last that is chosen is where this process works
    return [choose(name) for name in reversed(names)][::-1]


def memory_bound(devices: Sequence[Device], wanted_bytes: float | None, on_cpu_bytes: float) -> float:
    """Bytes that a run may hold, on each of its devices: on GPUs what was asked for, or most of what is free on all.

    Torch takes no more on the first of them from then on; processes on the others call `limit`.

    Args:
        wanted_bytes: ``--memory``; None where it was not given.
        on_cpu_bytes: the default on the CPU.
    """
    first = devices[0]
    if not first.is_gpu:
        return on_cpu_bytes if wanted_bytes is None else wanted_bytes
    import torch

    free = min(torch.cuda.mem_get_info(device.name)[0] for device in devices)
    bound = min(SHARE_OF_FREE * free, float("inf") if wanted_bytes is None else wanted_bytes)
    limit(first.name, bound)
    return bound


def limit(name: str, bound_bytes: float) -> None:
    """Have torch take no more than so much on a GPU in this process; nothing on the CPU."""
    if name == CPU:
        return
    import torch

    total = torch.cuda.mem_get_info(name)[1]
    torch.cuda.set_per_process_memory_fraction(min(bound_bytes / total, 1.0), name)


def peak_device_bytes(name: str) -> int:
    """The most memory that tensors took on a GPU so far; 0 on the CPU."""
    if name == CPU:
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated(name)) if torch.cuda.is_available() else 0


def _is_cuda_name(wanted: str) -> bool:
    kind, colon, number = wanted.partition(":")
    return kind == "cuda" and (not colon or (number.isascii() and number.isdigit()))


def _missing() -> str:
    """Why no GPU can be used; empty if one can."""
    import torch  # takes seconds to load, which --help need not

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        return "torch sees no NVIDIA GPU" if built else "this torch was built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return ""


def _gpu(number: int) -> Device:
    import torch

    torch.cuda.set_device(number)  # where Triton starts its kernels
    properties = torch.cuda.get_device_properties(number)
    return Device(f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
