"""Do the tilts agree with each other? Every image is predicted from the others and sought in its own place.

An aligned image k back-projected through a slab of thickness T and projected at tilt m is, row by row,

    P_mk(f) = A_k(f / c) sinc(f s T / c),    c = cos k / cos m,    s = sin(k - m) / cos m,

f along x: the stretched image k, less what the slab's depth blurs. The sum over the neighbours is a prediction of image
m that has none of its noise. Where patches of the two correlate best says how far image m lies from where the others
want it, independently of tracks, density and residuals of the alignment. What it cannot see is an error that
neighbours share: a slow drift over the whole series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.align.prepare import fourier_crop
from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates
from inrtomo.io.belonging.alignment import scaled
from inrtomo.resample import aligned_image, fill_invalid

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

LARGEST_PX = 512
"""Longer side of the frames that are compared."""
SLAB_OF_THICKNESS = 1.2
"""Slab assumed, in thicknesses of the specimen."""
NEIGHBOURS = 8
"""On either side; farther ones share only the lowest frequencies with an image."""
BAND = (1 / 48, 1 / 6)
"""Frequencies compared, per px of the frames: no shadows and ice, and no noise."""
PATCHES = 3
"""Patches along either side of an image."""
CLIP_SD = 4.0
"""Of the band-passed images: beads count no more than dense protein."""
REACH_OF_PATCH = 0.25
"""Largest displacement sought, of a patch."""
SIGNIFICANT = 5.0
"""Height of a correlation peak over the standard deviation of the map: noise alone reaches 4 in a map of this size."""


@dataclass(frozen=True)
class Consistency:
    """Displacements of patches of every image against the prediction from its neighbours.

    Attributes:
        shift_px: ``(n, PATCHES, PATCHES, 2)`` (rows of patches along y; x and y), raw px, NaN for excluded images.
        peak: height of the correlation peak over the standard deviation of its map, ``(n, PATCHES, PATCHES)``.
        bin: raw px per px of the frames that were compared.
    """

    shift_px: Array
    peak: Array
    bin: int = 1

    @property
    def found(self) -> NDArray[np.bool_]:
        """Patches that the prediction recognises, ``(n, PATCHES, PATCHES)``."""
        return np.asarray(np.nan_to_num(self.peak) >= SIGNIFICANT)

    @property
    def found_fraction(self) -> float:
        """Of the patches of images that are not excluded."""
        return float(self.found.sum() / max(np.isfinite(self.peak).sum(), 1))

    @property
    def per_tilt_px(self) -> Array:
        """RMS displacement of an image's recognised patches ``(n,)``, raw px, NaN where there is none."""
        square = np.where(self.found, (self.shift_px**2).sum(axis=-1), 0).sum(axis=(1, 2))
        count = self.found.sum(axis=(1, 2))
        return np.sqrt(np.divide(square, count, out=np.full(len(count), np.nan), where=count > 0))

    @property
    def rms_px(self) -> float:
        """Over all recognised patches, raw px; NaN where there is none."""
        found = self.found
        return float(np.sqrt((self.shift_px[found] ** 2).sum(axis=-1).mean())) if found.any() else float("nan")


def consistency_of(image: Callable[[int], F32], alignment: Alignment, thickness_px: float) -> Consistency:
    """`consistency` of a series from its raw images (``image(index)``, ``(ny, nx)``), in stack order, raw px."""
    bin_ = max(1, -(-max(alignment.image_size) // LARGEST_PX))
    nx, ny = (n // bin_ for n in alignment.image_size)
    small = scaled(alignment, 1 / bin_, (nx, ny))
    use = alignment.included
    use = use[np.argsort(alignment.tilt_deg[use], kind="stable")]
    nx, ny = small.aligned_size
    x, y = centred_coordinates(nx), centred_coordinates(ny)
    frames = np.empty((len(use), ny, nx), dtype=np.float32)
    for frame, m in zip(frames, map(int, use), strict=True):
        raw = fourier_crop(image(m), bin_) if bin_ > 1 else image(m)
        frame[:] = fill_invalid(*aligned_image(raw, small, m, x, y))
    x_tilt = float(np.median(alignment.x_tilt_deg[use]))
    found = consistency(frames, alignment.tilt_deg[use], SLAB_OF_THICKNESS * thickness_px / bin_, x_tilt)
    shift = np.full((alignment.n_tilts, PATCHES, PATCHES, 2), np.nan)
    peak = np.full(shift.shape[:-1], np.nan)
    shift[use], peak[use] = found.shift_px * bin_, found.peak
    return Consistency(shift, peak, bin_)


def consistency(frames: F32, tilt_deg: Array, thickness_px: float, x_tilt_deg: float = 0.0) -> Consistency:
    """Compare every frame with what the others predict.

    Args:
        frames: aligned images ``(n, ny, nx)`` in the order of their tilt angles.
        tilt_deg: ``(n,)``.
        thickness_px: of the slab that holds the specimen, in px of the frames.
        x_tilt_deg: of the specimen, by which its middle plane rises along y.
    """
    filtered = np.stack([_band_passed(frame) for frame in frames])
    n, ny, nx = frames.shape
    x, y = centred_coordinates(nx), centred_coordinates(ny)
    height = -y * np.tan(np.deg2rad(x_tilt_deg))
    frequency = np.fft.rfftfreq(nx)
    tilt = np.deg2rad(tilt_deg)
    shifts, peaks = np.zeros((n, PATCHES, PATCHES, 2)), np.zeros((n, PATCHES, PATCHES))
    for m in range(n):
        prediction = np.zeros((ny, nx // 2 + 1), dtype=np.complex64)
        for k in range(max(0, m - NEIGHBOURS), min(n, m + NEIGHBOURS + 1)):
            if k == m:
                continue
            stretch = np.cos(tilt[k]) / np.cos(tilt[m])
            slope = np.sin(tilt[k] - tilt[m]) / np.cos(tilt[m])
            shared = np.sinc(frequency * slope * thickness_px / stretch)
            rise = np.exp(2j * np.pi * frequency * (height * slope / stretch)[:, None])
            spectrum = scipy.fft.rfft(_stretched(filtered[k], x * stretch), axis=1)
            prediction += spectrum * (shared * rise).astype(np.complex64)
        predicted = scipy.fft.irfft(prediction, n=nx, axis=1)
        for row, column, patch in _patches(ny, nx):
            shifts[m, row, column], peaks[m, row, column] = _displacement(predicted[patch], filtered[m][patch])
    return Consistency(shifts, peaks)


def _stretched(frame: F32, x: Array) -> F32:
    """Columns read at ``x`` px from the centre, linearly; 0 outside."""
    nx = frame.shape[1]
    at = x + (nx - 1) / 2
    cell = np.clip(np.floor(at).astype(int), 0, nx - 2)
    part = (at - cell).astype(np.float32)
    out = frame[:, cell] * (1 - part) + frame[:, cell + 1] * part
    out[:, (at < 0) | (at > nx - 1)] = 0
    return out


def _band_passed(frame: F32) -> F32:
    """The band that is compared, of unit variance, clipped."""
    low, high = (0.25 / f for f in BAND)
    band = ndimage.gaussian_filter(frame, high, mode="reflect") - ndimage.gaussian_filter(frame, low, mode="reflect")
    sd = max(float(1.4826 * np.median(np.abs(band - np.median(band)))), 1e-12)
    return np.asarray(np.clip(band / sd, -CLIP_SD, CLIP_SD), dtype=np.float32)


def _patches(ny: int, nx: int) -> list[tuple[int, int, tuple[slice, slice]]]:
    """Row and column of every patch, and where it is; neighbours overlap by half."""
    high, wide = 2 * ny // (PATCHES + 1), 2 * nx // (PATCHES + 1)
    return [
        (r, c, (slice(r * (ny - high) // (PATCHES - 1), r * (ny - high) // (PATCHES - 1) + high),
                slice(c * (nx - wide) // (PATCHES - 1), c * (nx - wide) // (PATCHES - 1) + wide)))
        for r in range(PATCHES) for c in range(PATCHES)
    ]  # fmt: skip


def _displacement(predicted: F32, seen: F32) -> tuple[Array, float]:
    """Displacement (x, y) of ``seen`` against ``predicted``, px, and the height of its peak in sd of the map."""
    ny, nx = seen.shape
    taper = np.hanning(ny)[:, None] * np.hanning(nx)[None]
    one, two = (scipy.fft.rfft2((v - v.mean()) * taper) for v in (predicted, seen))
    # amplitude-free towards the strong frequencies: beads make broad peaks otherwise
    cross = np.conj(one) * two
    size = np.hypot(np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)[None])
    weight = ((size >= BAND[0]) & (size <= BAND[1])) / np.sqrt(np.abs(cross) + 1e-3 * np.abs(cross).max() + 1e-30)
    field = scipy.fft.fftshift(scipy.fft.irfft2(cross * weight, s=(ny, nx)))
    cy, cx = ny // 2, nx // 2
    ry, rx = (max(2, int(REACH_OF_PATCH * n)) for n in (ny, nx))
    inner = field[cy - ry : cy + ry + 1, cx - rx : cx + rx + 1]
    j, i = (int(v) for v in np.unravel_index(np.argmax(inner), inner.shape))
    sd = float(field.std())
    peak = float(inner[j, i]) / sd if sd > 0 else 0.0
    place = [float(i - rx), float(j - ry)]
    for axis, (at, line) in enumerate(((i, inner[j]), (j, inner[:, i]))):
        if 0 < at < len(line) - 1:
            curvature = line[at - 1] - 2 * line[at] + line[at + 1]
            place[axis] += 0.5 * (line[at - 1] - line[at + 1]) / curvature if curvature < 0 else 0.0
    return np.array(place), peak
