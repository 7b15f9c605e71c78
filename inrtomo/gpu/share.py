"""One fit over several processes, each with a GPU of its own: rays are split by tilt, gradients are summed.

Every process holds the whole field, evaluates it and steps it; what it projects, compares and back-projects are its
own tilts. Sums go through `torch.distributed`, so after every step all processes hold the same parameters.

`followers` starts the processes: the one that calls it leads, hands every fit that it runs to the others (`announce`),
and alone sees what comes out. Programs may start them otherwise (``torchrun``) and run the same fit in each.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from inrtomo.device import limit
from inrtomo.errors import InputError

SECONDS_TO_END = 20


@dataclass(frozen=True)
class Share:
    """The part of this process.

    Attributes:
        rank, count: which process this is, of how many.
        first, stop: its tilts.
    """

    rank: int
    count: int
    first: int
    stop: int

    @classmethod
    def of(cls, n_tilts: int) -> Share:
        """The share of this process in ``n_tilts``; all of them where there is no group of processes."""
        joined = dist.is_available() and dist.is_initialized()
        rank, count = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        return cls(rank, count, rank * n_tilts // count, (rank + 1) * n_tilts // count)

    def within(self, batches: list[slice]) -> list[slice]:
        """Batches of tilts, cut down to those of this process."""
        cut = [slice(max(b.start, self.first), min(b.stop, self.stop)) for b in batches]
        return [part for part in cut if part.start < part.stop]

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Replace tensors by their sums over all processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, values: torch.Tensor) -> None:
        """Replace what is said of other processes' tilts ``(n_tilts, ...)`` by what they say."""
        if self.count > 1:
            values[: self.first] = 0
            values[self.stop :] = 0
            dist.all_reduce(values)


@contextmanager
def followers(devices: Sequence[str]) -> Iterator[None]:
    """A process on every device but the first, which runs what this one announces, as long as the context lasts.

    Args:
        devices: all of them, as torch calls them.

    Raises:
        InputError: this torch cannot join processes, or one of them ended.
    """
    backend = "gloo" if "cpu" in devices else "nccl"
    if not dist.is_available() or not dist.is_backend_available(backend):
        raise InputError(f"--device {','.join(devices)}: this torch has no torch.distributed with {backend}; give one")
    with tempfile.TemporaryDirectory() as folder:
        store, context, processes = Path(folder) / "store", mp.get_context("spawn"), []
        for rank in range(1, len(devices)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_follow, args=(theirs, store, rank, list(devices)), daemon=True)
            process.start()
            theirs.close()  # so that it sees when this process is gone
            processes.append(process)
            _following.append(ours)
        try:
            _join(store, 0, devices)
            yield
            _send(None)
            for process in processes:
                process.join(SECONDS_TO_END)
        except (RuntimeError, BrokenPipeError) as error:
            ended = wait([process.sentinel for process in processes], SECONDS_TO_END)
            for process, device in zip(processes, devices[1:], strict=True):
                if process.sentinel in ended:
                    process.join(SECONDS_TO_END)  # its end is seen a moment before its exit status
                if process.exitcode:
                    raise InputError(f"--device {','.join(devices)}: the process on {device} ended") from error
            raise
        finally:
            # after an error or Ctrl-C they wait for sums that never come
            for process in processes:
                process.kill()
            _following.clear()
            if dist.is_initialized():
                dist.destroy_process_group()


_following: list[Connection] = []
"""Where the followers of this process listen."""


def announce(fit: Any, work: Callable[[Any], object], settings: Any, *given: Any, **named: Any) -> None:
    """Have the followers do the work of a fit from where it is now, step by step with this process.

    Args:
        fit: an `inrtomo.align.joint.JointFit` or one of its kind.
        work: the method of its class that was begun.
        settings: what it was made with, and given and named arguments beside them.
    """
    _send((type(fit), work, replace(settings, shared=False), given, named, fit.state_dict()))


def _send(job: Any) -> None:
    for follower in _following:
        follower.send(job)


def _join(store: Path, rank: int, devices: Sequence[str]) -> None:
    own = torch.device(devices[rank])
    if own.type == "cuda":
        torch.cuda.set_device(own)
    backend = "gloo" if "cpu" in devices else "nccl"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=len(devices))


def _follow(listening: Connection, store: Path, rank: int, devices: Sequence[str]) -> None:
    """What a follower does: every fit that is announced, until there is nothing more or nobody to announce."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the leader saves its state first, then ends the others
    _join(store, rank, devices)
    while (job := _received(listening)) is not None:
        kind, work, settings, given, named, state = job
        limit(devices[rank], settings.memory_bytes)
        fit = kind(*given, settings=replace(settings, device=devices[rank]), **named)
        fit.load_state_dict(state)
        try:
            work(fit)
        except InputError:
            break  # the leader says so
    dist.destroy_process_group()


def _received(listening: Connection) -> Any:
    """The next fit; None where there is none, or where the leader is gone."""
    try:
        return listening.recv()
    except EOFError:
        return None
