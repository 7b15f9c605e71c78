"""Reading images at any position: cubic B-splines, and views of a tilt in aligned and stretched coordinates."""

from __future__ import annotations

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]
F32 = NDArray[np.float32]


def spline_coefficients(images: F32) -> F32:
    """Cubic B-spline coefficients of images ``(n, ny, nx)``, mirrored at the borders."""
    return np.stack([ndimage.spline_filter(image, 3, output=np.float32, mode="mirror") for image in images])


@nb.njit(fastmath=True, cache=True)
def read_spline(coefficients, x, y, out, inside):  # type: ignore[no-untyped-def]
    """Values of one image ``(ny, nx)`` (as spline coefficients) at pixel indices ``x``, ``y`` (flat arrays).

    ``inside`` becomes 1 where the position lies within the image, else 0 (and the value 0).
    """
    ny, nx = coefficients.shape
    wx = np.empty(4, np.float32)
    wy = np.empty(4, np.float32)
    for n in range(x.size):
        px, py = x[n], y[n]
        if not (px >= 0.0 and px <= nx - 1.0 and py >= 0.0 and py <= ny - 1.0):
            out[n] = 0.0
            inside[n] = 0.0
            continue
        inside[n] = 1.0
        ix, iy = int(px), int(py)
        for axis in range(2):
            f = np.float32(px - ix) if axis == 0 else np.float32(py - iy)
            w = wx if axis == 0 else wy
            g = 1.0 - f
            w[0] = g * g * g / 6.0
            w[1] = (4.0 - 6.0 * f * f + 3.0 * f * f * f) / 6.0
            w[2] = (4.0 - 6.0 * g * g + 3.0 * g * g * g) / 6.0
            w[3] = f * f * f / 6.0
        total = np.float32(0.0)
        for j in range(4):
            row = abs(iy - 1 + j)
            if row > ny - 1:
                row = 2 * (ny - 1) - row
            line = np.float32(0.0)
            for i in range(4):
                column = abs(ix - 1 + i)
                if column > nx - 1:
                    column = 2 * (nx - 1) - column
                line += wx[i] * coefficients[row, column]
            total += wy[j] * line
        out[n] = total


def read(coefficients: F32, x: Array, y: Array) -> tuple[F32, F32]:
    """Values and validity (0 or 1) of one image at pixel indices of any shape."""
    out = np.empty(x.size, dtype=np.float32)
    inside = np.empty(x.size, dtype=np.float32)
    read_spline(
        coefficients,
        np.ascontiguousarray(x, dtype=np.float64).ravel(),
        np.ascontiguousarray(y, dtype=np.float64).ravel(),
        out,
        inside,
    )
    return out.reshape(x.shape), inside.reshape(x.shape)


LIMIT_SD = 4.0  # values of a band-passed image beyond so many robust sd are cut to it


def band_pass(images: F32, low_px: float, high_px: float) -> F32:
    """Keep wavelengths between ``high_px`` and ``low_px`` px (soft edges), and limit what stands out (gold).

    Values beyond `LIMIT_SD` robust sd are cut to it, so that single beads do not rule a correlation.

    Args:
        images: ``(n, ny, nx)``.
        low_px: longest wavelength, px.
        high_px: shortest wavelength, px; Gaussian fall-off beyond it.
    """
    out = np.empty(images.shape, dtype=np.float32)
    for i, image in enumerate(images):
        pad = band_pad((image.shape[0], image.shape[1]), low_px)
        padded = np.pad(image, pad, mode="reflect")
        spectrum = scipy.fft.rfft2(padded) * band_gain((padded.shape[0], padded.shape[1]), low_px, high_px)
        band = scipy.fft.irfft2(spectrum, s=padded.shape)[pad : pad + image.shape[0], pad : pad + image.shape[1]]
        sd = 1.4826 * float(np.median(np.abs(band[::2, ::2])))
        if sd > 0:
            band = np.clip(band, -LIMIT_SD * sd, LIMIT_SD * sd)
        out[i] = band
    return out


def band_pad(shape: tuple[int, int], low_px: float) -> int:
    """Pixels by which an image is mirrored on every side before its longest wavelengths are cut."""
    return int(min(low_px / 2, min(shape) // 2))


def band_gain(shape: tuple[int, int], low_px: float, high_px: float) -> F32:
    """Gain of `band_pass` for ``rfft2`` of an image of ``shape``."""
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    gain = 1 - np.exp(-((k * low_px) ** 2) / 1.4)
    edge = 1.0 / high_px
    gain = gain * np.exp(-(np.maximum(k - edge, 0) ** 2) / (2 * (0.12 * edge) ** 2))
    return gain.astype(np.float32)
