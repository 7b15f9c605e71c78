"""Laying volumes over each other in torch: the work of `inrtomo.metrics.registration` on a device.

Volumes and transforms are single precision, positions and sums double. Gaussians and spline coefficients are products
with matrices made once, as in `inrtomo.gpu.pixels`; a few million voxels are read at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, spline_filter1d

from inrtomo.geometry import centred_coordinates
from inrtomo.gpu.sampling import mirrored, spline_weights
from inrtomo.metrics.alignment import RigidMotion
from inrtomo.metrics.masks import soft_box
from inrtomo.metrics.registration import (
    SMOOTHED_PX,
    Equations,
    RegistrationWork,
    highest,
    index_map,
    near_offsets,
    refined_peak,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Tensor = torch.Tensor

VOXELS_AT_ONCE = 2**21


class DeviceRegistrationWork(RegistrationWork):
    """As `RegistrationWork`; ``device`` as torch calls it."""

    def __init__(self, device: str) -> None:
        self.device = device

    def translated(self, volume: Any, shift: F64) -> Tensor:
        values = self._sent(volume)
        spectrum = torch.fft.rfftn(values)
        for axis, (size, step) in enumerate(zip(values.shape, shift.tolist(), strict=True)):
            frequency = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
            phase = torch.tensor(np.exp(-2j * np.pi * frequency * step).astype(np.complex64), device=self.device)
            spectrum *= phase.reshape([-1 if k == axis else 1 for k in range(3)])
        return torch.fft.irfftn(spectrum, s=values.shape)

    def rigidly_moved(self, volume: Any, motion: RigidMotion) -> Tensor:
        values = self._sent(volume)
        mean = _mean(values)
        coefficients = self._along_axes(values - mean, _splining)
        return torch.cat([self._read(coefficients, motion, some) for some in _planes(values)]) + mean

    def transform(self, volume: Any, window: F32) -> Tensor:
        values = self._sent(volume)
        return torch.fft.rfftn((values - _mean(values)) * self._sent(window))

    def phase_peak(self, moving: Any, fixed: Any, shape: Sequence[int], max_px: float) -> F64:
        product = fixed * moving.conj()
        size = product.abs()
        product = product / (size.sqrt() + 1e-12 * (size.max().sqrt() if bool(size.max() > 0) else 1.0))
        surface = torch.fft.irfftn(product, s=tuple(shape))
        offsets, near = near_offsets(shape, max_px)
        index = [torch.tensor(np.flatnonzero(some), device=self.device) for some in near]
        allowed = surface[index[0][:, None, None], index[1][:, None], index[2]]
        whole = highest(allowed.cpu().numpy(), offsets, near)
        weighted = product.to(torch.complex128) * 2
        weighted[..., 0] /= 2

        def interpolant(*waves: NDArray[Any]) -> NDArray[Any]:
            z, y, x = (torch.tensor(wave, device=self.device) for wave in waves)
            values = torch.tensordot(z, torch.tensordot(weighted, x, ([2], [1])), ([1], [0]))
            return np.asarray(torch.einsum("jy,iyk->ijk", y, values).real.cpu().numpy())

        return refined_peak(interpolant, shape, whole)

    def binned(self, volume: Any, size: int) -> Tensor:
        values = self._sent(volume)
        nz, ny, nx = (n // size for n in values.shape)
        blocks = values[: nz * size, : ny * size, : nx * size].reshape(nz, size, ny, size, nx, size)
        return blocks.mean(dim=(1, 3, 5))

    def equations(self, moving: Any, fixed: Any) -> Equations:
        target, source = (self._along_axes(v - _mean(v), _smoothing) for v in map(self._sent, (fixed, moving)))
        coefficients, window = self._along_axes(source, _splining), self._sent(soft_box(fixed.shape))
        z, y, x = (
            self._sent(centred_coordinates(n)).reshape([-1 if k == axis else 1 for k in range(3)])
            for axis, n in enumerate(fixed.shape)
        )
        right, nz = target * window, len(target)

        def about(motion: RigidMotion) -> tuple[F64, F64]:
            # some planes at a time, as seven slopes of a whole volume are many volumes
            normal, wanted = (torch.zeros(n, dtype=torch.float64, device=self.device) for n in ((7, 7), (7,)))
            for some in _planes(coefficients):
                first, last = max(some.start - 1, 0), min(some.stop + 1, nz)  # what differences reach
                inside = slice(some.start - first, some.stop - first)
                now = self._read(coefficients, motion, slice(first, last))
                gz, gy, gx = (slope[inside] for slope in torch.gradient(now))
                height = z[some]
                slopes = (
                    now[inside], gx, gy, gz, y * gz - height * gy, height * gx - x * gz, x * gy - y * gx
                )  # fmt: skip
                columns = [slope * window[some] for slope in slopes]
                normal += torch.stack([torch.stack([_dot(a, b) for b in columns]) for a in columns])
                wanted += torch.stack([_dot(a, right[some]) for a in columns])
            return normal.cpu().numpy(), wanted.cpu().numpy()

        return about

    def fetched(self, volume: Any) -> F32:
        return np.asarray(volume.cpu().numpy(), dtype=np.float32)

    def _sent(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _along_axes(self, volume: Tensor, matrix_of: Callable[[int], NDArray[Any]]) -> Tensor:
        """A volume with a filter's matrix applied along every axis."""
        for _ in range(3):  # the axis in front each time, which goes to the back
            matrix = self._sent(matrix_of(len(volume)))
            volume = torch.tensordot(volume, matrix, dims=([0], [1]))
        return volume

    def _read(self, coefficients: Tensor, motion: RigidMotion, planes: slice) -> Tensor:
        """Planes of the volume of spline coefficients at ``motion(X)`` for every point X of its lattice; 0 outside."""
        shape = coefficients.shape
        matrix, offset = index_map(shape, 1.0, shape, motion.rotation, motion.translation_px)
        z, y, x = (torch.arange(n, dtype=torch.float64, device=self.device) for n in shape)
        places = [
            row[0] * z[planes, None, None] + row[1] * y[:, None] + row[2] * x + start
            for row, start in zip(matrix.tolist(), offset.tolist(), strict=True)
        ]
        return read_spline(coefficients, places)


def _planes(volume: Tensor) -> list[slice]:
    """Some planes at a time, two at least, between which there are differences."""
    nz, count = len(volume), max(2, VOXELS_AT_ONCE // volume[0].numel())
    return [slice(first, min(first + count, nz)) for first in range(0, nz, count)]


def read_spline(coefficients: Tensor, places: Sequence[Tensor]) -> Tensor:
    """A volume of cubic B-spline coefficients at indices (z, y, x); 0 outside."""
    inside = torch.ones((), dtype=torch.bool, device=coefficients.device)
    taps = []
    for at, n in zip(places, coefficients.shape, strict=True):
        inside = inside & (at >= 0) & (at <= n - 1)
        first = at.floor().clamp(0, n - 1)
        index = [mirrored(first.int() + k, n) for k in (-1, 0, 1, 2)]
        taps.append(list(zip(index, spline_weights((at - first).float()), strict=True)))
    _, ny, nx = coefficients.shape
    flat, total = coefficients.reshape(-1), torch.zeros(inside.shape, device=coefficients.device)
    for plane, weight_z in taps[0]:
        for row, weight_y in taps[1]:
            start, line = (plane.long() * ny + row) * nx, torch.zeros_like(total)
            for column, weight_x in taps[2]:
                line += weight_x * flat[start + column]
            total += weight_z * weight_y * line
    return torch.where(inside, total, 0)


def _mean(values: Tensor) -> Tensor:
    return values.mean(dtype=torch.float64).float()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)


def _smoothing(n: int) -> NDArray[Any]:
    return np.asarray(gaussian_filter1d(np.eye(n), SMOOTHED_PX, axis=0))


def _splining(n: int) -> NDArray[Any]:
    return np.asarray(spline_filter1d(np.eye(n), 3, axis=0, mode="mirror"))
