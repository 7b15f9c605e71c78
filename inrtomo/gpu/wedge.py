"""What no tilt has measured, in torch: the work of `inrtomo.reconstruct.wedge` on a device.

The volume stays where it is, perhaps in a file: planes of it come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.reconstruct.wedge import Given, Part, WedgeWork, conjugates, slab_frequencies, thickness_voxels

F32 = NDArray[np.float32]
Array = NDArray[np.floating[Any]]
Tensor = torch.Tensor

VOXELS_AT_ONCE = 2**22


class DeviceWedgeWork(WedgeWork):
    """As `WedgeWork`; ``device`` as torch calls it."""

    def __init__(self, device: str) -> None:
        self.device = device

    def energy(self, volume: NDArray[Any], level: Any, part: Part, given: Given) -> float:
        missing = self._missing(*given, part.columns)
        missing *= torch.tensor(conjugates(volume.shape[2])[part.columns], device=self.device)
        return float((self._transform(volume, float(level), part).abs() ** 2 * missing).sum(dtype=torch.float64))

    def remove(self, volume: F32, part: Part, given: Given) -> None:
        spectrum = self._transform(volume, 0.0, part) * self._missing(*given, part.columns)
        lines = torch.fft.ifftn(spectrum, dim=_axes(part), norm="ortho")
        nx = volume.shape[2]
        for planes in _planes(volume, part):
            line = torch.zeros((*lines[planes].shape[:2], nx // 2 + 1), dtype=lines.dtype, device=self.device)
            line[..., part.columns] = lines[planes]
            volume[planes, part.rows] -= torch.fft.irfft(line, nx, norm="ortho").cpu().numpy()

    def _transform(self, volume: NDArray[Any], level: float, part: Part) -> Tensor:
        """As `Part.transform`."""
        lines = []
        for planes in _planes(volume, part):
            values = np.ascontiguousarray(volume[planes, part.rows], dtype=np.float32)
            sent = torch.tensor(values, device=self.device) - level
            lines.append(torch.fft.rfft(sent, norm="ortho")[..., part.columns])
        return torch.fft.fftn(torch.cat(lines), dim=_axes(part), norm="ortho")

    def _missing(
        self,
        shape: tuple[int, int, int],
        tilt_deg: Array,
        voxel_px: float,
        thickness_px: float | None,
        x_tilt_deg: float,
        columns: slice,
    ) -> Tensor:
        """One less `inrtomo.reconstruct.wedge.measured_region` at some of the frequencies along x."""
        thickness = thickness_voxels(shape, voxel_px, thickness_px)
        kz, kx = slab_frequencies(shape, x_tilt_deg, columns)
        height, along = (torch.tensor(k, device=self.device) for k in (kz, kx))
        distance = torch.full((*kz.shape[:2], len(kx)), torch.inf, dtype=torch.float64, device=self.device)
        for slope in np.tan(np.deg2rad(np.unique(tilt_deg))).tolist():
            torch.minimum(distance, (height - along * slope).abs(), out=distance)
        beyond = (distance * thickness - 0.5).clamp(0, 1)
        return (0.5 - 0.5 * torch.cos(torch.pi * beyond)).float()


def _axes(part: Part) -> tuple[int, ...]:
    """Axes of lines that are transformed across."""
    return (0, 1) if part.along_y else (0,)


def _planes(volume: NDArray[Any], part: Part) -> Iterator[slice]:
    """Some planes at a time."""
    nz, ny, nx = volume.shape
    count = max(1, VOXELS_AT_ONCE // (len(range(ny)[part.rows]) * nx))
    return (slice(first, first + count) for first in range(0, nz, count))
