"""Aligned images in torch: the sections of `inrtomo.export` and the lines of `inrtomo.reconstruct.fbp` on a device.

The steps and borders are those of `inrtomo.resample`; a few million pixels are read at a time, so that their positions
take less memory than the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.joint import LEAST_NOISE
from inrtomo.align.prepare import robust_sd
from inrtomo.alignment import Alignment, interpolation_matrix
from inrtomo.dose import critical_exposure
from inrtomo.export import AlignedImage, Sections
from inrtomo.gpu.pixels import DevicePixelWork, quantile
from inrtomo.gpu.sampling import catmull_rom, read_spline, spline_weights
from inrtomo.reconstruct.fbp import OVERSAMPLING, LineFilter
from inrtomo.resample import EDGE_TOLERANCE_PX, FILL_BLOCK, FILL_CONFIDENCE_PIXELS, Frame, edge_window, padded_warp

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Tensor = torch.Tensor

PIXELS_AT_ONCE = 2**21
VOXELS_AT_ONCE = 2**26
EDGE = 12  # px by which outermost values are continued: a spline's coefficients forget an edge by 0.27 a px


class AlignedReader:
    """Reads raw images on an aligned lattice ``y`` by ``x``, as `inrtomo.resample.aligned_image` does."""

    def __init__(self, alignment: Alignment, x: Array, y: Array, device: str) -> None:
        self.alignment, self.pixels = alignment, DevicePixelWork(device)
        self.x, self.y = (torch.tensor(at, dtype=torch.float64, device=device) for at in (x, y))
        if (warp := alignment.warp) is not None:
            self.along_y = self.pixels.sent(interpolation_matrix(warp.y, y, warp.interpolation))

    def read(self, raw: NDArray[Any], tilt: int, shear: float = 0.0) -> tuple[Tensor, Tensor]:
        """Values and their validity."""
        coefficients = self.pixels.coefficients(raw[None])
        ny, nx = coefficients.shape[1:]
        a = self.alignment
        (xx, xy), (yx, yy) = np.linalg.inv(a.linear[tilt]).tolist()
        shift_x, shift_y = a.shift_px[tilt].tolist()
        rows, parts = max(1, PIXELS_AT_ONCE // len(self.x)), []
        for first in range(0, len(self.y), rows):
            some = slice(first, first + rows)
            y = self.y[some, None]
            x = self.x[None] + shear * y
            moved_x, moved_y = self._moved(tilt, some, x) if a.warp is not None else (0.0, 0.0)
            u, v = x - shift_x + moved_x, y - shift_y + moved_y
            at_x, at_y = xx * u + xy * v + (nx - 1) / 2, yx * u + yy * v + (ny - 1) / 2
            parts.append(read_spline(coefficients, 0, at_x, at_y, EDGE_TOLERANCE_PX))
        values, valid = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(valid)

    def _moved(self, tilt: int, rows: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """The warp's vectors (x, y) at positions ``x`` of some rows."""
        nodes, grid, bicubic = padded_warp(self.alignment.warp, tilt)
        (start, step, count), cubic = grid[0], bicubic and grid[0, 2] > 2
        # along y for whole rows; along x by what each pixel's place asks for, as rows may be sheared
        lines = self.along_y[rows] @ self.pixels.sent(np.moveaxis(nodes[3:-3], -1, 0))
        t = (x - start) / step
        t = t.clamp(-1, count) if cubic else t.clamp(0, count - 1)
        cell = t.floor()
        f, first = (t - cell).float(), cell.long() + 2
        taps = catmull_rom(f) if cubic else (0 * f, 1 - f, f, 0 * f)
        moved = torch.zeros((2, *x.shape), device=x.device)
        for k, tap in enumerate(taps):
            for line, total in zip(lines, moved, strict=True):
                total += tap * line.gather(1, first + k)
        return moved[0], moved[1]


class DeviceSections(Sections):
    """As `Sections`; ``device`` as torch calls it."""

    def __init__(
        self, alignment: Alignment, bin: int, exposure_e_A2: Array | None, voltage_kV: int, device: str
    ) -> None:
        super().__init__(alignment, bin, exposure_e_A2, voltage_kV)
        self.reader = AlignedReader(alignment, self.frame.x, self.frame.y, device)
        self.sides = self.frame.border[0] * bin, self.frame.border[1] * bin
        if self.frequency is not None:
            self.critical = self.reader.pixels.sent(critical_exposure(self.frequency, voltage_kV))

    def section(self, raw: NDArray[Any], tilt: int) -> AlignedImage:
        values, valid = self.reader.read(raw, tilt)
        values = fill_invalid(values, valid)
        if self.filtered:
            values = fourier_bin(settle_border(values, self.sides), self.bin, self.gain_of(tilt))
            ny, nx = values.shape
            valid = valid.reshape(ny, self.bin, nx, self.bin).amin(dim=(1, 3))
        return AlignedImage(self.frame.cut(values.cpu().numpy()), self.frame.cut(valid.cpu().numpy()))

    def gain_of(self, tilt: int) -> Tensor | None:
        """Dose weights of an image."""
        if self.exposure_e_A2 is None:
            return None
        return torch.exp(-float(self.exposure_e_A2[tilt]) / (2 * self.critical))


class DeviceLineFilter(LineFilter):
    """As `LineFilter`; ``device`` as torch calls it."""

    def __init__(self, alignment: Alignment, frame: Frame, kept: slice, splined: bool, device: str) -> None:
        super().__init__(alignment, frame, kept, splined)
        self.reader = AlignedReader(alignment, frame.x, frame.y, device)

    def lines(self, raw: NDArray[Any], tilt: int, weights: F32, shear: float) -> F32:
        pixels = self.reader.pixels
        values = settle_border(fill_invalid(*self.reader.read(raw, tilt, shear)), self.sides)
        values = fourier_bin(values, self.frame.bin, None)
        mean = values.mean(dtype=torch.float64).float()
        transform = torch.fft.rfft(values - mean) * pixels.sent(weights)
        dense = torch.fft.irfft(transform, n=OVERSAMPLING * values.shape[1])[:, self.kept]
        return pixels.fetched(pixels.splined(dense) if self.splined else dense)


def standardised(images: F32, factor: int, device: str) -> tuple[F32, Array]:
    """As `inrtomo.align.joint.standardised`."""
    ny, nx = (size // factor * factor for size in images.shape[1:])
    binned, noise = np.empty((len(images), ny // factor, nx // factor), np.float32), np.empty(len(images))
    for i, image in enumerate(images):
        values = fourier_bin(torch.tensor(image[:ny, :nx], dtype=torch.float32, device=device), factor, None)
        d = (values[1:, 1:] - values[:-1, 1:] - values[1:, :-1] + values[:-1, :-1]) / 2
        robust, whole = float(quantile(d.abs(), 0.5)) / 0.6745, float((d**2).mean(dtype=torch.float64).sqrt())
        noise[i] = max(float(robust_sd(robust, whole)), LEAST_NOISE)
        values = values / float(np.float32(noise[i]))
        binned[i] = (values - quantile(values, 0.5)).cpu().numpy()
    return binned, noise


def laid_level(planes: F32, at_z: Array, at_y: Array, device: str) -> F32:
    """Planes ``(nz, nx, ny)`` across x read at indices ``(heights, rows)``: ``(heights, rows, nx)``.

    As ``scipy.ndimage.map_coordinates`` of order 3 with mode ``nearest``, which continues the outermost values.
    """
    nz, nx, ny = planes.shape
    out = np.empty((*at_z.shape, nx), dtype=np.float32)
    at_once = max(1, VOXELS_AT_ONCE // (nz * ny))
    for first in range(0, nx, at_once):
        some = slice(first, first + at_once)
        out[:, :, some] = _laid_level(planes[:, some], at_z, at_y, device)
    return out


def _laid_level(planes: F32, at_z: Array, at_y: Array, device: str) -> F32:
    work, (nz, nx, ny) = DevicePixelWork(device), planes.shape
    # x last, so that neighbours in memory are read together
    values = work.sent(planes).permute(0, 2, 1)
    rows, columns = ((torch.arange(-EDGE, n + EDGE, device=device).clamp(0, n - 1)) for n in (nz, ny))
    values = values[rows][:, columns]
    along_z = work.splined(values.reshape(len(rows), -1)).reshape(values.shape)
    coefficients = work.splined(along_z.transpose(0, 1).reshape(len(columns), -1)).reshape(len(columns), len(rows), nx)
    out = np.empty((*at_z.shape, nx), dtype=np.float32)
    heights = max(1, PIXELS_AT_ONCE // (at_z.shape[1] * nx))
    for first in range(0, len(at_z), heights):
        some, total = slice(first, first + heights), torch.zeros((), device=device)
        (z, weights_z), (y, weights_y) = (
            _places(torch.tensor(at[some], dtype=torch.float64, device=device) + EDGE, n + 2 * EDGE)
            for at, n in ((at_z, nz), (at_y, ny))
        )
        for a, b in np.ndindex(4, 4):
            total = total + (weights_z[a] * weights_y[b])[..., None] * coefficients[y + b - 1, z + a - 1]
        out[some] = total.cpu().numpy()
    return out


def _places(at: Tensor, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The coefficient, of so many, below a position, and the weights of the four around it."""
    at = at.clamp(1, count - 3)
    low = at.floor()
    return low.long(), spline_weights((at - low).float())


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


def settle_border(image: Tensor, border: tuple[int, int]) -> Tensor:
    """As `inrtomo.resample.settle_border`."""
    mean = image.mean(dtype=torch.float64).float()
    rows, columns = (
        torch.tensor(edge_window(n, b), device=image.device) for n, b in zip(image.shape, border[::-1], strict=True)
    )
    return (image - mean) * rows[:, None] * columns + mean


def fourier_bin(image: Tensor, bin: int, gain: Tensor | None) -> Tensor:
    """As `inrtomo.resample.fourier_bin`."""
    if bin == 1 and gain is None:
        return image
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
