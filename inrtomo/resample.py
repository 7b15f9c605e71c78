"""Aligned images: a raw image read once through the full map (linear part and local warp), edges filled.

The raw image is turned into cubic B-spline coefficients and read at the raw positions of an aligned lattice, so
every aligned pixel is the product of exactly one interpolation (flat to 2 % up to half the Nyquist frequency).
Where the map leaves the image the local mean goes on, so that no edge is there for a filter to ring on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import spline_filter

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import centred_coordinates

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)

EDGE_TOLERANCE_PX = 1e-3  # an identity map must not lose its outermost pixels to rounding
FILL_BLOCK = 8
FILL_CONFIDENCE_PIXELS = 64  # a block mean is trusted in proportion to n / (n + this)


def aligned_image(
    image: F32, alignment: Alignment, tilt: int, x: Array, y: Array, shear: float = 0.0
) -> tuple[F32, Mask]:
    """The ideal projection that raw ``image`` ``(ny, nx)`` of stack index ``tilt`` shows, on an aligned lattice.

    Args:
        x, y: positions of the lattice's columns and rows, evenly spaced in x, aligned px from the centre.
        shear: the row at ``y`` is read at ``x + shear * y`` (how an x-tilted specimen is reconstructed by rows).

    Returns:
        values ``(len(y), len(x))``, undefined (zero) where the map leaves the image, and their validity.
    """
    coefficients = spline_filter(image, order=3, output=np.float32, mode="mirror")
    values = np.zeros((len(y), len(x)), dtype=np.float32)
    valid = np.zeros(values.shape, dtype=np.bool_)
    nodes, grid, bicubic = padded_warp(alignment.warp, tilt)
    step = float(x[1] - x[0]) if len(x) > 1 else 1.0
    _read(
        coefficients, np.linalg.inv(alignment.linear[tilt]), np.asarray(alignment.shift_px[tilt], dtype=np.float64),
        nodes, grid, bicubic, float(x[0]), step, np.asarray(y, dtype=np.float64), shear, values, valid,
    )  # fmt: skip
    return values, valid


def fill_invalid(values: F32, valid: Mask) -> F32:
    """``values`` ``(ny, nx)`` with the invalid pixels replaced by the mean of the valid ones nearby.

    A pyramid of block means: each invalid pixel takes the finest mean that enough valid pixels support, so the
    fill follows the image at its edge and tends to the image's mean far from it. All zero when nothing is valid.
    """
    if valid.all():
        return values
    total, count = _block_sums(np.where(valid, values, 0), FILL_BLOCK), _block_sums(valid, FILL_BLOCK)
    levels = []
    while max(total.shape) > 1:
        levels.append((total, count))
        total, count = _block_sums(total, 2), _block_sums(count, 2)
    mean = total / np.maximum(count, 1)
    for total, count in reversed(levels):
        coarse = _twice(_twice(mean, 0), 1)[: total.shape[0], : total.shape[1]]
        mean = (total + FILL_CONFIDENCE_PIXELS * coarse) / (count + FILL_CONFIDENCE_PIXELS)
    size = 1
    while size < FILL_BLOCK:
        mean, size = _twice(_twice(mean, 0), 1), 2 * size
    return np.where(valid, values, mean[: values.shape[0], : values.shape[1]]).astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """The lattice of an exported or reconstructed image: the size asked for and a border for the filters.

    Attributes:
        size: ``(nx, ny)`` of the output, in output pixels.
        bin: raw px per output pixel.
        border: ``(x, y)`` output pixels added on every side, cut off after filtering.
    """

    size: tuple[int, int]
    bin: int
    border: tuple[int, int]

    @classmethod
    def of(cls, aligned_size: tuple[int, int], bin: int, least_border: tuple[int, int]) -> Frame:
        """A frame for aligned images (nx, ny), raw px, with lengths that transform fast and a border in output px."""
        size = (aligned_size[0] // bin, aligned_size[1] // bin)
        border = [_fast_border(n, b) if b else 0 for n, b in zip(size, least_border, strict=True)]
        return cls(size, bin, (border[0], border[1]))

    @property
    def x(self) -> Array:
        """Aligned positions (raw px) of the raw-sized columns, border included: ``bin`` for each output column."""
        return centred_coordinates((self.size[0] + 2 * self.border[0]) * self.bin)

    @property
    def y(self) -> Array:
        """As `x`, for the rows."""
        return centred_coordinates((self.size[1] + 2 * self.border[1]) * self.bin)

    def cut(self, image: NDArray[T]) -> NDArray[T]:
        """An output-sized image without its border."""
        bx, by = self.border
        return image[by : image.shape[0] - by, bx : image.shape[1] - bx]


def settle_border(image: F32, border: tuple[int, int]) -> F32:
    """``image`` with its border brought smoothly to the image's mean, so that it can be taken as periodic.

    Args:
        border: ``(x, y)`` pixels on every side.
    """
    mean = image.mean(dtype=np.float64)
    window_y, window_x = (edge_window(n, b) for n, b in zip(image.shape, border[::-1], strict=True))
    return ((image - mean) * window_y[:, None] * window_x + mean).astype(np.float32)


def fourier_bin(image: F32, bin: int, gain: F32 | None = None) -> F32:
    """``image`` ``(ny, nx)`` with its Fourier transform cut to ``1 / bin`` of the Nyquist frequency.

    Pixel k of the result is centred on the ``bin`` pixels it stands for, as in IMOD's binning; means are kept.

    Args:
        bin: divides both sizes.
        gain: real factors for the frequencies kept, shape of ``rfft2`` of the result.
    """
    if bin == 1 and gain is None:
        return image
    ny, nx = (n // bin for n in image.shape)
    full = scipy.fft.rfft2(image)
    rows = np.round(np.fft.fftfreq(ny) * ny).astype(int)
    cut = full[rows][:, : nx // 2 + 1]
    if bin > 1:
        # sample k of a plain cut lies on raw pixel k * bin; its centre is (bin - 1) / 2 further on
        offset = (bin - 1) / 2
        fy, fx = np.fft.fftfreq(ny) / bin, np.fft.rfftfreq(nx) / bin
        cut = cut * np.exp(2j * np.pi * offset * fy)[:, None] * np.exp(2j * np.pi * offset * fx) / bin**2
    if gain is not None:
        cut = cut * gain
    return scipy.fft.irfft2(cut, s=(ny, nx)).astype(np.float32)


def binned_stack(images: NDArray, bin: int) -> F32:
    """`fourier_bin` of every image ``(n, ny, nx)``, a copy; what fills no binned pixel is cut at the far ends."""
    ny, nx = (size // bin * bin for size in images.shape[1:])
    return np.stack([fourier_bin(np.asarray(image[:ny, :nx], dtype=np.float32), bin) for image in images])


def _fast_border(size: int, least: int) -> int:
    length = size + 2 * least
    while (fast := scipy.fft.next_fast_len(length, real=True)) - size & 1:
        length = fast + 1
    return (fast - size) // 2


def edge_window(n: int, border: int) -> F32:
    """Weights ``(n,)`` that are 1 and fall to 0 over ``border`` samples at both ends."""
    window = np.ones(n, dtype=np.float32)
    if border:
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(border) + 0.5) / border)
        window[:border], window[n - border :] = ramp, ramp[::-1]
    return window


def _block_sums(values: NDArray, size: int) -> Array:
    """Sums over ``size`` x ``size`` blocks; blocks at the far edges may be smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], size), axis=0, dtype=np.float64)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], size), axis=1)


def _twice(values: Array, axis: int) -> Array:
    """Linear interpolation to two samples for each, along an axis, constant beyond the ends."""
    values = np.moveaxis(values, axis, 0)
    before = np.concatenate([values[:1], values[:-1]])
    after = np.concatenate([values[1:], values[-1:]])
    out = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], axis=1)
    return np.moveaxis(out.reshape(-1, *values.shape[1:]), 0, axis)


def padded_warp(warp: LocalWarp | None, tilt: int) -> tuple[Array, Array, bool]:
    """Nodes ``(ny + 6, nx + 6, 2)`` continued linearly, ``[[start, step, n] of x, of y]``, and whether bicubic.

    With the continuation, `LocalWarp`'s rule is plain Catmull-Rom on a position clamped one node outside.
    """
    if warp is None:
        return np.zeros((7, 7, 2)), np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]), False
    grid, nodes = [], warp.vectors[tilt]
    for axis, at in enumerate((warp.x, warp.y)):
        grid.append([at[0], at[1] - at[0] if len(at) > 1 else 1.0, len(at)])
        along = np.moveaxis(nodes, 1 - axis, 0)
        slope = (along[1] - along[0], along[-1] - along[-2]) if len(at) > 1 else (0.0, 0.0)
        before = [along[0] - k * slope[0] for k in (3, 2, 1)]
        after = [along[-1] + k * slope[1] for k in (1, 2, 3)]
        nodes = np.moveaxis(np.concatenate([before, along, after]), 0, 1 - axis)
    return np.ascontiguousarray(nodes, dtype=np.float64), np.array(grid), warp.interpolation == "bicubic"


@nb.njit(cache=True, inline="always")
def _node_weights(at, start, step, n, bicubic, out):  # type: ignore[no-untyped-def]
    """Fill four weights for the padded nodes from the returned index on."""
    cubic = bicubic and n > 2
    t = (at - start) / step
    t = min(max(t, -1.0), n) if cubic else min(max(t, 0.0), n - 1.0)
    cell = math.floor(t)
    f = t - cell
    if cubic:
        out[0] = -0.5 * f + f * f - 0.5 * f * f * f
        out[1] = 1.0 - 2.5 * f * f + 1.5 * f * f * f
        out[2] = 0.5 * f + 2.0 * f * f - 1.5 * f * f * f
        out[3] = 0.5 * f * f * f - 0.5 * f * f
    else:
        out[0], out[1], out[2], out[3] = 0.0, 1.0 - f, f, 0.0
    return int(min(cell, n)) + 2


@nb.njit(cache=True, inline="always")
def _mirrored(index, n):  # type: ignore[no-untyped-def]
    if index < 0:
        index = -index
    if index > n - 1:
        index = 2 * (n - 1) - index
    return min(max(index, 0), n - 1)


@nb.njit(parallel=True, fastmath=True, cache=True)
def _read(coefficients, inverse, shift, nodes, grid, bicubic, x0, step, y, shear, values, valid):  # type: ignore[no-untyped-def]
    ny, nx = coefficients.shape
    cy, cx = (ny - 1) / 2, (nx - 1) / 2
    n_nodes_x = nodes.shape[1]
    for row in nb.prange(len(y)):
        v = y[row]
        wy = np.empty(4)
        first = _node_weights(v, grid[1, 0], grid[1, 1], grid[1, 2], bicubic, wy)
        line = np.zeros((n_nodes_x, 2))
        for k in range(4):
            for i in range(n_nodes_x):
                line[i, 0] += wy[k] * nodes[first + k, i, 0]
                line[i, 1] += wy[k] * nodes[first + k, i, 1]
        wx = np.empty(4)
        for column in range(values.shape[1]):
            u = x0 + step * column + shear * v
            first = _node_weights(u, grid[0, 0], grid[0, 1], grid[0, 2], bicubic, wx)
            du, dv = u - shift[0], v - shift[1]
            for k in range(4):
                du += wx[k] * line[first + k, 0]
                dv += wx[k] * line[first + k, 1]
            px = inverse[0, 0] * du + inverse[0, 1] * dv + cx
            py = inverse[1, 0] * du + inverse[1, 1] * dv + cy
            if (
                px < -EDGE_TOLERANCE_PX
                or py < -EDGE_TOLERANCE_PX
                or px > nx - 1 + EDGE_TOLERANCE_PX
                or py > ny - 1 + EDGE_TOLERANCE_PX
            ):
                continue
            ix, iy = math.floor(px), math.floor(py)
            fx, fy = px - ix, py - iy
            gx, gy = 1.0 - fx, 1.0 - fy
            bx0, bx3 = gx * gx * gx / 6.0, fx * fx * fx / 6.0
            by0, by3 = gy * gy * gy / 6.0, fy * fy * fy / 6.0
            bx1 = 2.0 / 3.0 - 0.5 * fx * fx * (1.0 + gx)
            bx2 = 2.0 / 3.0 - 0.5 * gx * gx * (1.0 + fx)
            by1 = 2.0 / 3.0 - 0.5 * fy * fy * (1.0 + gy)
            by2 = 2.0 / 3.0 - 0.5 * gy * gy * (1.0 + fy)
            inside = ix >= 1 and iy >= 1 and ix + 2 < nx and iy + 2 < ny
            total = 0.0
            for k in range(4):
                by = by0 if k == 0 else by1 if k == 1 else by2 if k == 2 else by3
                if inside:
                    j = iy - 1 + k
                    total += by * (
                        bx0 * coefficients[j, ix - 1]
                        + bx1 * coefficients[j, ix]
                        + bx2 * coefficients[j, ix + 1]
                        + bx3 * coefficients[j, ix + 2]
                    )
                else:
                    j = _mirrored(iy - 1 + k, ny)
                    total += by * (
                        bx0 * coefficients[j, _mirrored(ix - 1, nx)]
                        + bx1 * coefficients[j, _mirrored(ix, nx)]
                        + bx2 * coefficients[j, _mirrored(ix + 1, nx)]
                        + bx3 * coefficients[j, _mirrored(ix + 2, nx)]
                    )
            values[row, column] = total
            valid[row, column] = True
