"""A finished tomogram on its way to a file: rows come in one after the other, sections go out in either orientation.

Rows y are what every method makes one after the other, so they are outermost here, in memory where that is large
enough, else in a scratch file. What concerns the whole volume (mean and sd, the wedge) is done in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.io.mrc import StackWriter
from inrtomo.reconstruct.slabs import Slab, scratch_array

F32 = NDArray[np.float32]

ROWS_AT_A_TIME = 32


class Tomogram:
    """A volume that is written row by row.

    Attributes:
        values: ``[y, z, x]``, z upwards.
    """

    def __init__(self, values: F32) -> None:
        self.values = values

    @property
    def volume(self) -> F32:
        """The same values as ``[z, y, x]``."""
        return self.values.transpose(1, 0, 2)

    def take(self, slabs: Iterable[Slab]) -> None:
        """Set the rows of all slabs."""
        for rows, slab in slabs:
            self.values[rows.start : rows.stop] = slab.transpose(1, 0, 2)

    @property
    def mean_and_sd(self) -> tuple[float, float]:
        """Of all voxels."""
        total = squares = 0.0
        for part in self._parts():
            total += float(part.sum(dtype=np.float64))
        mean = total / self.values.size
        for part in self._parts():
            squares += float(((part - mean) ** 2).sum(dtype=np.float64))
        return mean, float(np.sqrt(squares / self.values.size))

    def normalise(self) -> tuple[float, float]:
        """Bring mean to 0 and sd to 1 (a constant volume to 0); returns what they were."""
        mean, sd = self.mean_and_sd
        for part in self._parts():
            part -= np.float32(mean)
            part /= np.float32(sd if sd > 0 else 1.0)
        return mean, sd

    def write(self, path: Path, orientation: str, voxel_A: float, overwrite: bool, label: str) -> tuple[int, int, int]:
        """Write an MRC file section by section; returns its shape (sections, rows, columns).

        Args:
            orientation: ``imod``: sections are rows y, z running against the row index, as IMOD's ``tilt`` writes them;
                ``xyz``: sections are planes z.
        """
        ny, nz, nx = self.values.shape
        shape = (ny, nz, nx) if orientation == "imod" else (nz, ny, nx)
        with StackWriter(path, shape, 2, voxel_A, overwrite, volume=True, label=label) as writer:
            for section in self.values[:, ::-1] if orientation == "imod" else self.volume:
                writer.write(section)
        return shape

    def _parts(self) -> Iterator[F32]:
        for first in range(0, len(self.values), ROWS_AT_A_TIME):
            yield self.values[first : first + ROWS_AT_A_TIME]


@contextmanager
def tomogram(shape: tuple[int, int, int], folder: Path, memory_bytes: float) -> Iterator[Tomogram]:
    """A `Tomogram` of voxels (nz, ny, nx); one that takes more memory than given lives in a scratch file."""
    nz, ny, nx = shape
    with scratch_array((ny, nz, nx), int(memory_bytes), folder) as values:
        yield Tomogram(values)
