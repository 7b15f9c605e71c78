"""Coarse correlation in torch: `inrtomo.align.coarse.CorrelationWork` on a device.

Where a tilt is read next depends on where its peak was found, so every look waits for seven numbers from the device;
the search for the axis waits once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.coarse import (
    CorrelationWork,
    in_circle,
    pairs_to_compare,
    parabola_top,
    profile_band,
    view_taper,
)
from inrtomo.geometry import axis_rotation
from inrtomo.gpu.pixels import DevicePixelWork
from inrtomo.gpu.sampling import read_spline

Array = NDArray[Any]
F32 = NDArray[np.float32]
Tensor = torch.Tensor


class DeviceCorrelationWork(DevicePixelWork, CorrelationWork):
    """As `CorrelationWork`; spectra are tensors."""

    def view(self, coefficients: Any, tilt_deg: float, shift: Array, matrix: Array, size: int) -> Any:
        ny, nx = coefficients.shape
        grid = torch.arange(size, dtype=torch.float64, device=self.device) - (size - 1) / 2
        x, y = (grid * float(np.cos(np.deg2rad(tilt_deg))) - float(shift[0]))[None], (grid - float(shift[1]))[:, None]
        (xx, xy), (yx, yy) = matrix.tolist()
        values, inside = read_spline(
            coefficients[None], 0, xx * x + xy * y + (nx - 1) / 2, yx * x + yy * y + (ny - 1) / 2
        )
        weight = inside * self._matrix(("taper", size), lambda: view_taper(size))
        mean = (values * weight).sum() / weight.sum().clamp_min(1e-20)
        return torch.fft.rfft2((values - mean) * weight)

    def weighted_sum(self, weights: Sequence[Array], spectra: Sequence[Any]) -> Any:
        factors = self.sent(np.stack(weights))
        return (factors * torch.stack(list(spectra))).sum(dim=0)

    def peak(self, reference: Any, view: Any, reach: float, cosine: float) -> tuple[Array, float]:
        cross = reference * view.conj()
        power = cross.abs()
        cross = cross / (power + 1e-6 * power.max() + 1e-30).sqrt()
        size = view.shape[0]
        surface = torch.fft.irfft2(cross, s=(size, size))
        distance = np.fft.fftfreq(size) * size
        near = torch.tensor(distance, device=self.device)
        allowed = torch.hypot(near[:, None], near[None] * cosine) <= reach
        top = torch.where(allowed, surface, -torch.inf).argmax()
        row, column = top // size, top % size
        around = [surface[(row + j) % size, (column + i) % size] for j, i in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]
        numbers = torch.stack([top.double(), surface.std(correction=0).double(), *(v.double() for v in around)])
        at, spread, middle, above, below, left, right = numbers.tolist()
        row_at, column_at = divmod(int(at), size)
        move = np.array([
            (distance[column_at] + parabola_top(left, middle, right)) * cosine,
            distance[row_at] + parabola_top(above, middle, below),
        ])  # fmt: skip
        return move, middle / spread

    def axis_scores(self, images: F32, tilt_deg: Array, angles_deg: Array, size: int) -> Array:
        pixels, at_x, at_y = in_circle(images, size)
        flat = torch.tensor(pixels.T.copy(), dtype=torch.float64, device=self.device)
        x, y = (torch.tensor(v, dtype=torch.float64, device=self.device) for v in (at_x, at_y))
        first, second = (torch.tensor(v, device=self.device) for v in pairs_to_compare(tilt_deg))
        band = torch.tensor(profile_band(size), device=self.device)
        scores = []
        for angle in angles_deg:
            rotation = axis_rotation(float(angle))
            along = rotation[1, 0] * x + rotation[1, 1] * y + size / 2
            cell = along.floor()
            fraction = (along - cell)[:, None]
            profiles = torch.zeros((size + 2, len(images)), dtype=torch.float64, device=self.device)
            profiles.index_add_(0, cell.long(), flat * (1 - fraction))
            profiles.index_add_(0, cell.long() + 1, flat * fraction)
            spectrum = torch.fft.rfft(profiles.T, 2 * size) * band
            spectrum = spectrum / (spectrum.abs() + 1e-9).sqrt()
            norm = (spectrum.abs() ** 2).sum(dim=1).sqrt()
            correlation = torch.fft.irfft(spectrum[first] * spectrum[second].conj()) * spectrum.shape[1]
            scores.append((correlation.amax(dim=1) / (norm[first] * norm[second])).mean())
        return np.asarray(torch.stack(scores).cpu().numpy(), dtype=np.float64)
