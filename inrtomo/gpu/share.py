"""One fit over several processes, each with a GPU of its own: rays are split by tilt, gradients are summed.

Every process holds the whole field, evaluates it and steps it; what it projects, compares and back-projects are its
own tilts. Sums go through `torch.distributed`, so after every step all processes hold the same parameters. Start the
processes with ``torchrun``, join them with ``torch.distributed.init_process_group`` and run the same fit in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


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
