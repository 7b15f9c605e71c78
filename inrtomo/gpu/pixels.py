"""What preparation, correlation and tracks do to whole images, in torch: `inrtomo.align.prepare.PixelWork` on a device.

Linear filters that act along rows and columns (Gaussians, binning, spline coefficients) are products with two matrices
made once: fast on a GPU, with the borders of the CPU's filters by construction, and exact to float32 whatever the
device makes of convolutions. An image goes to the device and its result comes back; nothing else waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, spline_filter1d

from inrtomo.align.prepare import (
    GOLD_GROWN_PX,
    GOLD_OF_TOP,
    GOLD_SD,
    GOLD_TOP_PERCENT,
    GOLD_WIDTHS_PX,
    HOT_PIXEL_SD,
    MAD_TO_SD,
    TEXTURE_WIDTHS_PX,
    PixelWork,
    PrepareSettings,
    dead_borders,
    restoring_gain,
    restoring_pad,
    robust_sd,
)
from inrtomo.align.sampling import LIMIT_SD, band_gain, band_pad

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Tensor = torch.Tensor


class DevicePixelWork(PixelWork):
    """As `PixelWork`; results agree to rounding in float32.

    Args:
        device: as torch calls it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._made: dict[tuple[Any, ...], Tensor] = {}
        self._restoring = torch.zeros(0)
        self._restoring_for: tuple[Any, ...] = ()

    def cleaned(self, image: F32) -> tuple[F32, NDArray[np.bool_]]:
        values = self.sent(image)
        finite = values.isfinite()
        if not bool(finite.all()):
            values = torch.where(finite, values, _median_of(values, finite))
        around = (torch.nn.functional.avg_pool2d(_mirrored(values, 1), 3, stride=1)[0] * 9 - values) / 8
        difference = (values - around).abs()
        sd = MAD_TO_SD * quantile(difference[::2, ::2], 0.5)
        rows, columns = torch.nonzero((difference > HOT_PIXEL_SD * sd) & (sd > 0) | ~finite, as_tuple=True)
        padded = _mirrored(values, 1)[0]
        near = torch.stack(
            [padded[rows + j, columns + i] for j in range(3) for i in range(3) if (i, j) != (1, 1)], dim=-1
        ).sort(dim=-1)[0]
        low, high, usual = near[:, 0], near[:, -1], 0.5 * (near[:, 3] + near[:, 4])
        excess = torch.maximum(values[rows, columns] - high, low - values[rows, columns])
        hot = (excess > HOT_PIXEL_SD * sd + (high - low)) | ~finite[rows, columns]
        values[rows, columns] = torch.where(hot, usual, values[rows, columns])
        constant_rows, constant_columns = (
            (values.amax(dim=axis) == values.amin(dim=axis)).cpu().numpy() for axis in (1, 0)
        )
        return self.fetched(values), dead_borders(constant_rows, constant_columns)

    def texture(self, image: F32) -> float:
        narrow, wide = TEXTURE_WIDTHS_PX
        ny, nx = image.shape
        band = self._gaussian(ny, narrow)[::2] @ self.sent(image) @ self._gaussian(nx, narrow)[::2].T
        band = band - self._blurred(band, wide)
        return MAD_TO_SD * float(quantile((band - quantile(band, 0.5)).abs(), 0.5))

    def noise_sd(self, image: F32) -> float:
        v = self.sent(image)
        a = v[:-1, :-1] - v[1:, :-1] - v[:-1, 1:] + v[1:, 1:]
        robust = MAD_TO_SD * float(quantile(a[::2, ::2].abs(), 0.5))
        return float(robust_sd(robust, float(a.square().mean().sqrt()))) / 2.0

    def gold_mask(self, image: F32) -> NDArray[np.bool_]:
        band = self._between(self.sent(image), *GOLD_WIDTHS_PX)
        sampled = band[::3, ::3]
        middle = quantile(sampled, 0.5)
        high = middle + GOLD_SD * MAD_TO_SD * quantile((sampled - middle).abs(), 0.5)
        mask = band > torch.maximum(high, GOLD_OF_TOP * quantile(band, GOLD_TOP_PERCENT / 100))
        for _ in range(GOLD_GROWN_PX):
            grown = mask.clone()
            grown[1:] |= mask[:-1]
            grown[:-1] |= mask[1:]
            grown[:, 1:] |= mask[:, :-1]
            grown[:, :-1] |= mask[:, 1:]
            mask = grown
        return np.asarray(mask.cpu().numpy())

    def blurred(self, image: F32, sigma_px: float) -> F32:
        return self.fetched(self._blurred(self.sent(image), sigma_px))

    def between(self, image: F32, narrow_px: float, wide_px: float) -> F32:
        return self.fetched(self._between(self.sent(image), narrow_px, wide_px))

    def fourier_crop(self, image: F32, factor: int) -> F32:
        rows, columns = (
            self._matrix(("crop", n, factor), lambda n=n: cropping_matrix(n, factor))  # type: ignore[misc]
            for n in image.shape
        )
        values = self.sent(image)
        mean = values.mean(dtype=torch.float64).float()  # often far from zero, which would cost digits
        return self.fetched(rows @ (values - mean) @ columns.T + mean)

    def restore(self, image: F32, pixel_size_A: float, defocus_A: float, settings: PrepareSettings) -> F32:
        pad = restoring_pad(image.shape)
        shape = image.shape[0] + 2 * pad, image.shape[1] + 2 * pad
        key = shape, pixel_size_A, defocus_A, settings
        if key != self._restoring_for:  # one defocus for all, or one for each
            self._restoring = self.sent(restoring_gain(*key))
            self._restoring_for = key
        return self.fetched(_filtered(_mirrored(self.sent(image), pad), self._restoring)[0, pad:-pad, pad:-pad])

    def mean_power(self, images: F32, window: Array) -> Array:
        total, weight = torch.zeros((), device=self.device), self.sent(window)
        for image in images:
            total = total + torch.fft.rfft2(self.sent(image) * weight).abs() ** 2
        return np.asarray((total / len(images)).cpu().numpy(), dtype=np.float64)

    def band_pass(self, images: F32, longest_px: float, shortest_px: float) -> F32:
        ny, nx = images.shape[1:]
        pad = band_pad((ny, nx), longest_px)
        shape = ny + 2 * pad, nx + 2 * pad
        key = ("band", *shape, longest_px, shortest_px)
        gain = self._matrix(key, lambda: band_gain(shape, longest_px, shortest_px))
        out = np.empty(images.shape, dtype=np.float32)
        for i, image in enumerate(images):
            band = _filtered(_mirrored(self.sent(image), pad), gain)[0, pad : pad + ny, pad : pad + nx]
            limit = LIMIT_SD * MAD_TO_SD * quantile(band[::2, ::2].abs(), 0.5)
            limit = torch.where(limit > 0, limit, torch.inf)
            out[i] = self.fetched(band.clamp(-limit, limit))
        return out

    def coefficients(self, images: F32) -> Any:
        """Spline coefficients ``(n, ny, nx)``, a tensor."""
        return torch.stack([self._spline_coefficients(self.sent(image)) for image in images])

    def sent(self, values: NDArray[Any]) -> Tensor:
        """On the device, float32."""
        return torch.tensor(np.ascontiguousarray(values, dtype=np.float32), device=self.device)

    def fetched(self, values: Tensor) -> F32:
        """Back from the device."""
        return np.asarray(values.cpu().numpy(), dtype=np.float32)

    def _matrix(self, key: tuple[Any, ...], make: Callable[[], NDArray[Any]]) -> Tensor:
        """What ``make`` gives, on the device, made once."""
        if key not in self._made:
            self._made[key] = self.sent(make())
        return self._made[key]

    def _gaussian(self, n: int, sigma_px: float) -> Tensor:
        """Blurs ``n`` samples."""
        return self._matrix(("gaussian", n, sigma_px), lambda: gaussian_filter1d(np.eye(n), sigma_px, axis=0))

    def _blurred(self, image: Tensor, sigma_px: float) -> Tensor:
        ny, nx = image.shape
        return self._gaussian(ny, sigma_px) @ image @ self._gaussian(nx, sigma_px).T

    def _between(self, image: Tensor, narrow_px: float, wide_px: float) -> Tensor:
        return self._blurred(image, narrow_px) - self._blurred(image, wide_px)

    def splined(self, values: Tensor) -> Tensor:
        """Spline coefficients along the first axis of ``(n, m)``."""
        n = len(values)
        matrix = self._matrix(("spline", n), lambda: spline_filter1d(np.eye(n), 3, axis=0, mode="mirror"))
        return matrix @ values

    def _spline_coefficients(self, image: Tensor) -> Tensor:
        return self.splined(self.splined(image).T).T


def cropping_matrix(n: int, factor: int) -> Array:
    """Matrix ``(n // factor, n)`` that bins ``n`` samples as `inrtomo.align.prepare.fourier_crop` does an axis.

    The sum over the frequencies kept of cosines of the distance between a sample and where the result is read.
    """
    m = n // factor
    read = (np.arange(m) - (m - 1) / 2) * factor + (n - 1) / 2
    kept = int((np.abs(np.fft.fftfreq(n)) < 0.5 / factor).sum())
    angle = np.pi * (read[:, None] - np.arange(n)) / n
    sine = np.sin(angle)
    return np.divide(np.sin(kept * angle), n * sine, out=np.full(angle.shape, kept / n), where=np.abs(sine) > 1e-9)


def quantile(values: Tensor, part: float) -> Tensor:
    """As ``numpy.quantile``, linear between two samples: a tensor of no dimensions."""
    ordered = values.flatten().sort()[0]
    at = part * (len(ordered) - 1)
    first = min(int(at), len(ordered) - 1)
    last = min(first + 1, len(ordered) - 1)
    return torch.lerp(ordered[first], ordered[last], at - first)


def _median_of(values: Tensor, some: Tensor) -> Tensor:
    """Median of the values where ``some`` holds; 0 if there is none."""
    return quantile(values[some], 0.5) if bool(some.any()) else torch.zeros((), device=values.device)


def _mirrored(image: Tensor, pad: int) -> Tensor:
    """``(1, ny + 2 pad, nx + 2 pad)``: mirrored about its outermost pixels."""
    return torch.nn.functional.pad(image[None], (pad, pad, pad, pad), mode="reflect")


def _filtered(images: Tensor, gain: Tensor) -> Tensor:
    """Images ``(n, ny, nx)`` whose transforms are multiplied by a gain."""
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=images.shape[-2:])
