"""Volumes made in slabs of rows y, and their sections in the order of an MRC file, in bounded memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Slab = tuple[range, F32]
"""Rows y of a volume and what it holds there, ``[z, rows, x]``."""


def volume_shape(aligned_size: tuple[int, int], thickness_px: float, bin: int) -> tuple[int, int, int]:
    """Voxels ``(nz, ny, nx)`` of ``bin`` raw px over aligned images ``(nx, ny)`` and a thickness (raw px)."""
    nx, ny = aligned_size
    return max(1, round(thickness_px / bin)), ny // bin, nx // bin


def ranges(start: int, stop: int, size: int) -> Iterator[range]:
    """Consecutive parts of ``start ... stop``, of ``size`` but for the last."""
    for low in range(start, stop, size):
        yield range(low, min(low + size, stop))


def joined(slabs: Iterable[Slab], shape: tuple[int, int, int]) -> F32:
    """The volume ``[z, y, x]`` of all slabs."""
    volume = np.empty(shape, dtype=np.float32)
    for rows, slab in slabs:
        volume[:, rows.start : rows.stop] = slab
    return volume


def sections(
    slabs: Iterable[Slab],
    shape: tuple[int, int, int],
    orientation: str,
    memory_bytes: int,
    scratch_folder: Path | None = None,
) -> Iterator[F32]:
    """The sections of a volume in the order of an MRC file.

    Args:
        slabs: in the order of their rows.
        shape: of the volume, ``(nz, ny, nx)``.
        orientation: ``imod``: sections are rows y, ``(nz, nx)`` with the row index running against z; ``xyz``:
            sections are planes z, ``(ny, nx)``, for which all slabs must be there first.
        memory_bytes: planes beyond this go to a scratch file.
        scratch_folder: where that is (the system's temporary folder if None).
    """
    if orientation == "imod":
        for _, slab in slabs:
            yield from np.ascontiguousarray(slab[::-1].transpose(1, 0, 2))
        return
    with scratch_array(shape, memory_bytes, scratch_folder) as volume:
        for rows, slab in slabs:
            volume[:, rows.start : rows.stop] = slab
        yield from volume


@contextmanager
def scratch_array(shape: tuple[int, ...], memory_bytes: int, folder: Path | None) -> Iterator[F32]:
    """An array in memory, or in a file that is gone when the block ends if it is larger than ``memory_bytes``."""
    if 4 * int(np.prod(shape)) <= memory_bytes:
        yield np.empty(shape, dtype=np.float32)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an OSError here, not a bus error at some later write
            os.posix_fallocate(file.fileno(), 0, 4 * int(np.prod(shape)))
        yield np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
