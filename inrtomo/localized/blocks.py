"""Blocks of voxels and the orthogonal transform in which the network sees them (Haar's, 2 x 2 x 2) or single voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.geometry import centre_index

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

OUTPUTS = {"pixel": 1, "haar": 2}
"""Edge of the block of each kind of output, voxels."""


@dataclass(frozen=True)
class Blocks:
    """How a volume is cut.

    Attributes:
        edge: of a block, voxels: 1, or 2 with the Haar transform.
    """

    edge: int

    @classmethod
    def of(cls, output: str) -> Blocks:
        """For ``pixel`` or ``haar``."""
        return cls(OUTPUTS[output])

    @property
    def size(self) -> int:
        """Voxels of a block."""
        return self.edge**3

    @property
    def offsets(self) -> Array:
        """Voxels of a block from its centre ``(size, 3)`` (x, y, z), in the order of ``[z, y, x]``."""
        at = np.arange(self.edge) - centre_index(self.edge)
        z, y, x = np.meshgrid(at, at, at, indexing="ij")
        return np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)

    @property
    def transform(self) -> F32:
        """Orthogonal matrix ``(size, size)``: coefficients = transform @ voxels, the first the scaled mean."""
        if self.edge == 1:
            return np.ones((1, 1), dtype=np.float32)
        one = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
        return np.kron(np.kron(one, one), one).astype(np.float32)

    def cut(self, volume: F32, corners: NDArray[np.int64]) -> F32:
        """Coefficients ``(n, size)`` of the blocks of ``volume`` ``[z, y, x]`` at corners ``(n, 3)`` (z, y, x)."""
        steps = np.stack(np.meshgrid(*3 * [np.arange(self.edge)], indexing="ij"), axis=-1).reshape(-1, 3)
        at = corners[:, None, :] + steps
        return np.asarray(volume[at[..., 0], at[..., 1], at[..., 2]] @ self.transform.T, dtype=np.float32)

    def joined(self, coefficients: F32, counts: tuple[int, int, int]) -> F32:
        """A volume ``[z, y, x]`` of whole blocks from the coefficients ``(n, size)`` of all, in the order z, y, x."""
        e, (bz, by, bx) = self.edge, counts
        voxels = (coefficients @ self.transform).reshape(bz, by, bx, e, e, e)
        return np.ascontiguousarray(voxels.transpose(0, 3, 1, 4, 2, 5)).reshape(bz * e, by * e, bx * e)
