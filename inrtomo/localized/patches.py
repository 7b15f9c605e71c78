"""The plain form of the method, voxel by voxel, in float64: the reference for the fast one.

For one point, a patch is cut from every filtered tilt around the point's projection, by interpolation at a chosen
spacing; the patch is described by its inner products with Gaussian derivatives; descriptions are summed over tilts.
1e13 operations for a tomogram of usual size, so nothing but tests uses it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inrtomo.localized.bank import Scale
from inrtomo.localized.tilts import FilteredTilts

Array = NDArray[np.float64]


def patch_features(tilts: FilteredTilts, scale: Scale, point: Array, spacing: float = 0.5) -> Array:
    """Features ``(n_features,)`` of a scale at the specimen point ``(3,)`` (x, y, z), px.

    Args:
        spacing: px between the samples of a patch.
    """
    half = int(np.ceil(max(5 * scale.sigma, 8) / spacing))
    at = np.arange(-half, half + 1, dtype=np.float64) * spacing
    orders = range(scale.order + 1)
    # a band-limited patch: the inner product with samples of the derivative is the integral
    kernels = np.stack([_gaussian_derivative(at, scale.sigma, a) * spacing for a in orders])
    total = np.zeros(len(scale.features))
    angular = scale.angular(tilts.tilt) * tilts.weight[:, None]
    for m in range(tilts.n_tilts):
        c, s, ca, sa = (f(t[m]) for t in (tilts.tilt, tilts.x_tilt) for f in (np.cos, np.sin))
        u = point[0] * c + (point[2] * ca - point[1] * sa) * s
        v = point[1] * ca + point[2] * sa
        patch = _patch(tilts, m, u + at, v + at)
        value = np.array([kernels[b] @ patch @ kernels[a] for a, b in scale.channels])
        total += angular[m] * value[scale.channel_of]
    return total


def _gaussian_derivative(x: Array, sigma: float, order: int) -> Array:
    """``sigma^order`` times the derivative of a Gaussian, seen from the point: ``(-1)^order`` of it at ``-x``."""
    hermite = np.polynomial.hermite_e.hermeval(x / sigma, np.eye(order + 1)[order])
    return np.asarray(hermite * np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)))


def _patch(tilts: FilteredTilts, m: int, u: Array, v: Array) -> Array:
    """The ramp-filtered tilt at positions ``(len(v), len(u))``: Fourier interpolation across the axis and along it."""
    image = np.asarray(tilts.images[m], dtype=np.float64)
    n_rows, length = image.shape
    f = np.fft.fftfreq(length)
    ramp = np.interp(np.abs(f), np.fft.rfftfreq(length), tilts._ramp)
    across = np.exp(2j * np.pi * np.outer(f, u - tilts.first[0])) / length
    columns = (np.fft.fft(image, axis=1) * ramp @ across).real
    rows = v[:, None] - tilts.first[1] - np.arange(n_rows)
    return np.asarray(np.sinc(rows) @ columns)
