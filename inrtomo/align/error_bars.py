"""Standard errors of the shifts from two fits to half of the data each.

Two halves with independent noise give shifts a and b of each tilt. Each is fitted from scratch through all scales,
with the full fit's local motion kept, from starts `JITTER_PX` off (which they forget: 0, 0.1 and 0.3 px give the same).
With the gauge between them removed (a translation of the specimen), the variance of ``a - b`` is twice that of one
half, which is twice that of the full fit. Single differences are chi-square with one degree of freedom, so they are
pooled over neighbouring tilts and with the series' mean:

    sigma^2 = CALIBRATION^2 / 4 * pool((a - b)^2) + SHARED_PX^2

What both halves have in common, the density's prior and errors of the local motion, they cannot show; the two
constants stand for it. They were set on the benchmark's series S1-S5, seed 0, where they have to be set anew when the
fit changes: what they cover is in the table of the README.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.align.joint import JointSettings
from inrtomo.alignment import Alignment

Array = NDArray[np.float64]

CALIBRATION = 1.53
SHARED_PX = 0.0127
POOL_TILTS = 3.0  # sd, in tilts, of the window that pools squared differences
POOLED_FRACTION = 0.3  # of the series' mean square in every tilt's pool
BLOCK_PX = 32
JITTER_PX = 0.3


def jittered(alignment: Alignment, seed: int) -> Alignment:
    """The alignment with shifts off by `JITTER_PX` (sd), so that a half fit has to find them itself."""
    noise = np.random.default_rng(seed).normal(size=alignment.shift_px.shape) * JITTER_PX
    return replace(alignment, shift_px=alignment.shift_px + noise)


def half_settings(settings: JointSettings) -> JointSettings:
    """The joint fit of one half: every pixel fitted, the warp as it is.

    Halves that refine their own warp scatter three times more than the full fit's shifts do.
    """
    schedule = tuple(replace(scale, warp_from=None) for scale in settings.schedule)
    return replace(settings, schedule=schedule, held_out=0.0)


def half_data_masks(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Complementary checkerboards of `BLOCK_PX` blocks ``(n_tilts, ny, nx)`` that alternate from tilt to tilt."""
    tilt, row, column = np.ogrid[: shape[0], : shape[1], : shape[2]]
    even = (tilt + row // BLOCK_PX + column // BLOCK_PX) % 2
    return even.astype(np.float32), (1 - even).astype(np.float32)


def central_shifts(alignment: Alignment) -> Array:
    """Aligned position of every image's centre ``(n, 2)``, local motion included."""
    return np.stack([alignment.raw_to_aligned(m, np.zeros(2)) for m in range(alignment.n_tilts)])


def without_gauge(difference: Array, tilt_deg: Array) -> Array:
    """Shift differences ``(n, 2)`` less what a rigid motion of the specimen would make of them."""
    tilt = np.deg2rad(tilt_deg)
    one = np.ones_like(tilt)
    out = np.empty_like(difference)
    for axis, modes in enumerate((np.stack([np.cos(tilt), np.sin(tilt)], axis=1), one[:, None])):
        fit, *_ = np.linalg.lstsq(modes, difference[:, axis], rcond=None)
        out[:, axis] = difference[:, axis] - modes @ fit
    return out


def sigma_of_shifts(first: Alignment, second: Alignment) -> Array:
    """Standard error ``(n_tilts, 2)`` px of the full fit's shifts from the two halves' alignments.

    The formula is in the module's description; the pool is a Gaussian window over `POOL_TILTS` neighbours in tilt
    mixed with `POOLED_FRACTION` of the mean over all tilts.
    """
    difference = without_gauge(central_shifts(first.folded()) - central_shifts(second.folded()), first.tilt_deg)
    order = np.argsort(first.tilt_deg, kind="stable")
    squares = difference[order] ** 2
    pooled = ndimage.gaussian_filter1d(squares, POOL_TILTS, axis=0, mode="reflect")
    pooled = (1 - POOLED_FRACTION) * pooled + POOLED_FRACTION * squares.mean(axis=0)
    sigma = np.empty_like(pooled)
    sigma[order] = np.sqrt(CALIBRATION**2 / 4 * pooled + SHARED_PX**2)
    return sigma
