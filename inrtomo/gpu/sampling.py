"""Reading images at any position by cubic B-splines, in torch: `inrtomo.align.sampling.read_spline` on a device."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def read_spline(
    coefficients: Tensor, tilt: Tensor | int, x: Tensor, y: Tensor, tolerance_px: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Values and whether a position lies in its image, both of the positions' shape.

    Args:
        coefficients: of images ``(n, ny, nx)``.
        tilt: which image is read, broadcasting to the positions.
        x, y: pixel indices; double, so that places far from the corner are as exact as those near it.
        tolerance_px: how far beyond the outermost pixels' centres an image still counts as there.
    """
    ny, nx = coefficients.shape[-2:]
    least, last_x, last_y = -tolerance_px, nx - 1 + tolerance_px, ny - 1 + tolerance_px
    inside = (x >= least) & (x <= last_x) & (y >= least) & (y <= last_y)
    first_x, first_y = x.floor().clamp(0, nx - 1), y.floor().clamp(0, ny - 1)
    fraction_x, fraction_y = (x - first_x).float(), (y - first_y).float()
    columns = [mirrored(first_x.int() + k, nx) for k in (-1, 0, 1, 2)]
    rows = [mirrored(first_y.int() + k, ny) for k in (-1, 0, 1, 2)]
    flat, total = coefficients.reshape(-1), torch.zeros_like(fraction_x)
    for row, weight_y in zip(rows, spline_weights(fraction_y), strict=True):
        start, line = (tilt * ny + row) * nx, torch.zeros_like(fraction_x)
        for column, weight_x in zip(columns, spline_weights(fraction_x), strict=True):
            line += weight_x * flat[start + column]
        total += weight_y * line
    return torch.where(inside, total, 0), inside


def spline_weights(f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the four coefficients around a position a fraction ``f`` beyond the second."""
    g = 1 - f
    return g**3 / 6, (4 - 6 * f**2 + 3 * f**3) / 6, (4 - 6 * g**2 + 3 * g**3) / 6, f**3 / 6


def mirrored(index: Tensor, n: int) -> Tensor:
    """Indices mirrored about the outermost pixels."""
    index = index.abs()
    return torch.where(index > n - 1, 2 * (n - 1) - index, index).clamp_min(0)


def catmull_rom(f: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the four neighbours at fraction ``f`` between the middle two."""
    f2, f3 = f * f, f * f * f
    return 0.5 * (-f + 2 * f2 - f3), 0.5 * (2 - 5 * f2 + 3 * f3), 0.5 * (f + 4 * f2 - 3 * f3), 0.5 * (f3 - f2)
