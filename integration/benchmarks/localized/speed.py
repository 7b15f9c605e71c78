"""How long a tomogram of usual size takes: 256 x 256 x 90 from 61 tilts, and the bound on memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numba as nb
import numpy as np

from inrtomo.align.pipeline import peak_memory_bytes
from inrtomo.alignment import Alignment
from integration.benchmarks.localized.methods import localized
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.reconstruction.jobs import Column, Job, Record
from integration.benchmarks.reconstruction.methods import Imaged

SIZE, HEIGHT, TILT_DEG = 256, 90, np.arange(-60, 61, 2.0)
COLUMNS: tuple[Column, ...] = (
    ("time (s)", "wall_s", "{:.1f}"),
    ("processor time (s)", "cpu_s", "{:.1f}"),
    ("memory (MB)", "peak_MB", "{:.0f}"),
)


def jobs(options: LocalizedOptions) -> Iterator[Job]:
    """One job; noise takes as long as anything."""
    yield Job(f"{options.size or SIZE} px, {options.threads} threads", 0, _job(options))


def _job(options: LocalizedOptions) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        size = options.size or SIZE
        images = np.random.default_rng(0).standard_normal((len(TILT_DEG), size, size), dtype=np.float32)
        small = Imaged(images[:, :32, :32], Alignment.identity(TILT_DEG, (32, 32)), 16)
        localized(small, 10.0, options.weights)  # compiles
        series = Imaged(images, Alignment.identity(TILT_DEG, (size, size)), HEIGHT)
        wall, spent = time.monotonic(), time.process_time()
        localized(series, 10.0, options.weights)
        times = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - spent}
        row = f"{nb.get_num_threads()} threads"
        table = f"{size} x {size} x {HEIGHT} voxels, {len(TILT_DEG)} tilts"
        return [{"table": table, "row": row, **times, "peak_MB": peak_memory_bytes() / 2**20}]

    return run
