"""Aligned stacks in torch: the sections of `inrtomo.export` on a device.

The steps and borders are those of `inrtomo.resample`; a few million pixels are read at a time, so that their positions
take less memory than the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, interpolation_matrix
from inrtomo.dose import critical_exposure
from inrtomo.export import AlignedImage, Sections
from inrtomo.gpu.pixels import DevicePixelWork
from inrtomo.gpu.sampling import read_spline
from inrtomo.resample import EDGE_TOLERANCE_PX, FILL_BLOCK, FILL_CONFIDENCE_PIXELS, edge_window

Array = NDArray[np.float64]
Tensor = torch.Tensor

PIXELS_AT_ONCE = 2**21


class DeviceSections(Sections):
    """As `Sections`; ``device`` as torch calls it."""

    def __init__(
        self, alignment: Alignment, bin: int, exposure_e_A2: Array | None, voltage_kV: int, device: str
    ) -> None:
        super().__init__(alignment, bin, exposure_e_A2, voltage_kV)
        self.pixels, self.device = DevicePixelWork(device), device
        if self.frequency is not None:
            self.critical = self.pixels.sent(critical_exposure(self.frequency, voltage_kV))
        self.windows = [
            self.pixels.sent(edge_window(len(at), border * bin))
            for at, border in zip((self.frame.y, self.frame.x), self.frame.border[::-1], strict=True)
        ]
        self.x, self.y = (
            torch.tensor(at, dtype=torch.float64, device=device) for at in (self.frame.x, self.frame.y)
        )  # fmt: skip
        if (warp := alignment.warp) is not None:
            self.along_x, self.along_y = (
                self.pixels.sent(interpolation_matrix(nodes, at, warp.interpolation))
                for nodes, at in ((warp.x, self.frame.x), (warp.y, self.frame.y))
            )

    def section(self, raw: NDArray[Any], tilt: int) -> AlignedImage:
        coefficients = self.pixels.coefficients(raw[None])
        values, valid = self.read(coefficients, tilt)
        values = fill_invalid(values, valid)
        if self.filtered:
            mean = values.mean(dtype=torch.float64).float()
            rows, columns = self.windows
            values = fourier_bin((values - mean) * rows[:, None] * columns + mean, self.bin, self.gain_of(tilt))
            ny, nx = values.shape
            valid = valid.reshape(ny, self.bin, nx, self.bin).amin(dim=(1, 3))
        return AlignedImage(self.frame.cut(values.cpu().numpy()), self.frame.cut(valid.cpu().numpy()))

    def read(self, coefficients: Tensor, tilt: int) -> tuple[Tensor, Tensor]:
        """As `inrtomo.resample.aligned_image`, from spline coefficients ``(1, ny, nx)``."""
        ny, nx = coefficients.shape[1:]
        a, warp = self.alignment, self.alignment.warp
        (xx, xy), (yx, yy) = np.linalg.inv(a.linear[tilt]).tolist()
        shift_x, shift_y = a.shift_px[tilt].tolist()
        nodes = None if warp is None else self.pixels.sent(np.moveaxis(warp.vectors[tilt], -1, 0))
        rows, parts = max(1, PIXELS_AT_ONCE // len(self.x)), []
        for first in range(0, len(self.y), rows):
            some = slice(first, first + rows)
            u, v = self.x[None] - shift_x, self.y[some, None] - shift_y
            if nodes is not None:
                moved = self.along_y[some] @ nodes @ self.along_x.T
                u, v = u + moved[0], v + moved[1]
            at_x, at_y = xx * u + xy * v + (nx - 1) / 2, yx * u + yy * v + (ny - 1) / 2
            parts.append(read_spline(coefficients, 0, at_x, at_y, EDGE_TOLERANCE_PX))
        values, valid = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(valid)

    def gain_of(self, tilt: int) -> Tensor | None:
        """Dose weights of an image."""
        if self.exposure_e_A2 is None:
            return None
        return torch.exp(-float(self.exposure_e_A2[tilt]) / (2 * self.critical))


def fill_invalid(values: Tensor, valid: Tensor) -> Tensor:
    """As `inrtomo.resample.fill_invalid`."""
    if bool(valid.all()):
        return values
    total, count = _block_sums(values * valid, FILL_BLOCK), _block_sums(valid, FILL_BLOCK)
    levels = []
    while max(total.shape) > 1:
        levels.append((total, count))
        total, count = _block_sums(total, 2), _block_sums(count, 2)
    mean = total / count.clamp_min(1)
    for total, count in reversed(levels):
        coarse = _twice(mean)[: total.shape[0], : total.shape[1]]
        mean = (total + FILL_CONFIDENCE_PIXELS * coarse) / (count + FILL_CONFIDENCE_PIXELS)
    size = 1
    while size < FILL_BLOCK:
        mean, size = _twice(mean), 2 * size
    return torch.where(valid, values, mean[: values.shape[0], : values.shape[1]].float())


def fourier_bin(image: Tensor, bin: int, gain: Tensor | None) -> Tensor:
    """As `inrtomo.resample.fourier_bin`."""
    ny, nx = (n // bin for n in image.shape)
    rows = np.round(np.fft.fftfreq(ny) * ny).astype(int)
    cut = torch.fft.rfft2(image)[torch.tensor(rows, device=image.device)][:, : nx // 2 + 1]
    if bin > 1:
        # to the centre of the pixels that a binned one stands for
        phase_y, phase_x = (
            torch.tensor(np.exp(1j * np.pi * (bin - 1) / bin * f).astype(np.complex64), device=image.device)
            for f in (np.fft.fftfreq(ny), np.fft.rfftfreq(nx))
        )
        cut = cut * phase_y[:, None] * phase_x / bin**2
    if gain is not None:
        cut = cut * gain
    return torch.fft.irfft2(cut, s=(ny, nx))


def _block_sums(values: Tensor, size: int) -> Tensor:
    """Sums over ``size`` x ``size`` blocks, double; blocks at the far edges may be smaller."""
    ny, nx = (-(-n // size) for n in values.shape)
    padded = torch.zeros((ny * size, nx * size), dtype=torch.float64, device=values.device)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded.reshape(ny, size, nx, size).sum(dim=(1, 3))


def _twice(values: Tensor) -> Tensor:
    """Linear interpolation to two samples for each along both axes, constant beyond the ends."""
    for _ in range(2):
        before, after = torch.cat([values[:1], values[:-1]]), torch.cat([values[1:], values[-1:]])
        doubled = torch.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], dim=1)
        values = doubled.reshape(-1, values.shape[1]).T
    return values
