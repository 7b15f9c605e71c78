"""A bounded folder of samples: simulated in other processes while training goes on, or made once from listed pairs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from inrtomo.errors import InputError
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.pairs import Pair, simulated_pairs
from inrtomo.localized.samples import Samples, pair_samples

Report = Callable[[float], None]

POLL_S = 1.0
HELD_OUT_SEED = 900001  # apart from every seed of a stream


class SampleCache:
    """Files ``SEED_NUMBER.npz`` in a folder, the oldest of which go when there are more than ``most``."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        folder.mkdir(parents=True, exist_ok=True)

    def paths(self) -> list[Path]:
        """Complete files, in the order of their names."""
        return sorted(self.folder.glob("[0-9]*_[0-9]*.npz"))

    def add(self, samples: Samples, seed: int, number: int) -> None:
        """Keep samples, and make room for them."""
        samples.save(self.folder / f"{seed:06d}_{number:06d}.npz")
        by_age = sorted(self.paths(), key=lambda path: path.stat().st_mtime if path.exists() else 0.0)
        for path in by_age[: max(0, len(by_age) - self.most)]:
            path.unlink(missing_ok=True)

    def load(self, path: Path) -> Samples | None:
        """A file's samples; None when it has gone meanwhile."""
        try:
            return Samples.load(path)
        except FileNotFoundError:
            return None


def add_pair(cache: SampleCache, pair: Pair, blocks: Blocks, seed: int, number: int, count: int | None = None) -> None:
    """Sample a pair; the same seed and number choose the same blocks."""
    random = np.random.default_rng([seed, number])
    samples = pair_samples(pair, blocks, random) if count is None else pair_samples(pair, blocks, random, count)
    cache.add(samples, seed, number)


def simulate_into(
    cache: SampleCache, output: str, seed: int, densities: Path | None, count: int | None,
    report: Report = lambda fraction: None,
) -> None:  # fmt: skip
    """Simulate pairs into a cache: so many, or without end while the process that asked for them lives."""
    parent = os.getppid()
    if count is not None and len(cache.paths()) >= count:
        return
    numbers = [int(path.stem.split("_")[1]) for path in cache.paths() if int(path.stem.split("_")[0]) == seed]
    done = max(numbers, default=-1) + 1
    # a stream that goes on starts another one, so that nothing is made twice
    for k, pair in enumerate(simulated_pairs([seed, done], densities, cache.folder.parent)):
        add_pair(cache, pair, Blocks.of(output), seed, done + k)
        if count is not None:
            report(len(cache.paths()) / count)
        if (len(cache.paths()) >= count) if count is not None else (os.getppid() != parent):
            return


@contextmanager
def simulating(
    cache: SampleCache, output: str, seed: int, densities: Path | None, workers: int
) -> Iterator[list[BaseProcess]]:
    """Processes that fill a cache without end until the block ends; their streams have seeds of their own."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=simulate_into, args=(cache, output, seed + k, densities, None), daemon=True)
        for k in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def wait_for(
    cache: SampleCache, count: int, processes: list[BaseProcess], report: Report = lambda fraction: None
) -> None:
    """Until a cache holds so many files.

    Raises:
        InputError: those who fill it have died.
    """
    while (there := len(cache.paths())) < count:
        if processes and not any(process.is_alive() for process in processes):
            raise InputError(
                f"{cache.folder}: the processes that simulate into it have ended; see what they said above"
            )
        report(there / count)
        time.sleep(POLL_S)
