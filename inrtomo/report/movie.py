"""The movie of a tilt series before and after alignment, and the same as profiles that ought to be straight lines."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from inrtomo.align.prepare import fourier_crop
from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates
from inrtomo.io.belonging.alignment import scaled
from inrtomo.resample import aligned_image, fill_invalid

F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

LARGEST_PX = 256
"""Longer side of a frame: enough to see a wobble of a pixel of it, small enough to mail."""
SMOOTH_PX = 0.8
"""Of the frames: what one tilt shows is mostly noise."""
GREY_PERCENTILES = (0.5, 99.5)
JPEG_QUALITY = 80
TREND_OF_PROFILE = 12.0
"""Profiles lose what is smoother than this (px, sd): the thickness of ice, shadows of the grid bar."""


@dataclass(frozen=True)
class Movie:
    """Frames in the order of the tilt angles.

    Attributes:
        tilts: stack indices ``(n,)``.
        before, after: JPEG files, turned to the tilt axis alone and aligned.
        profiles_before, profiles_after: means along x of every frame ``(n, rows)``, standardised: along the tilt
            axis a specimen stays where it is, so that aligned ones make lines that do not waver.
        bin: raw px per px of a frame.
    """

    tilts: Ints
    before: list[bytes]
    after: list[bytes]
    profiles_before: F32
    profiles_after: F32
    bin: int


def make_movie(image: Callable[[int], F32], alignment: Alignment) -> Movie:
    """Every image of the series (``image(index)`` is raw, ``(ny, nx)``) through the nominal and the full map."""
    bin_ = max(1, -(-max(alignment.image_size) // LARGEST_PX))
    small = scaled(alignment, 1 / bin_, _binned(alignment.image_size, bin_))
    axis = float(np.median(alignment.rotation_deg[alignment.included]))
    turned = Alignment.identity(small.tilt_deg, small.image_size, axis)
    x, y = (centred_coordinates(n) for n in small.aligned_size)
    tilts = np.argsort(alignment.tilt_deg, kind="stable")
    frames: tuple[list[bytes], list[bytes]] = ([], [])
    profiles: tuple[list[F32], list[F32]] = ([], [])
    for tilt in map(int, tilts):
        raw = fourier_crop(image(tilt), bin_) if bin_ > 1 else image(tilt)
        raw = ndimage.gaussian_filter(raw, SMOOTH_PX)
        low, high = (float(v) for v in np.percentile(raw, GREY_PERCENTILES))
        for number, way in enumerate((turned, replace(small, excluded={}))):
            values, valid = aligned_image(raw, way, tilt, x, y)
            values = fill_invalid(values, valid)
            frames[number].append(_jpeg(values, low, high))
            profiles[number].append(_profile(values, valid))
    before, after = (np.array(lines, dtype=np.float32) for lines in profiles)
    return Movie(tilts, *frames, before, after, bin_)


def _binned(size: tuple[int, int], bin_: int) -> tuple[int, int]:
    return size[0] // bin_, size[1] // bin_


def _jpeg(values: F32, low: float, high: float) -> bytes:
    """Grey picture with y up, as everywhere else on the page."""
    grey = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * 255
    stream = io.BytesIO()
    Image.fromarray(grey[::-1].astype(np.uint8)).save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return stream.getvalue()


def _profile(values: F32, valid: NDArray[np.bool_]) -> F32:
    """Mean along x over what the image shows, without its trend, of unit size; 0 where it shows nothing."""
    count = valid.sum(axis=1)
    shown = count > 0
    mean = np.where(shown, np.where(valid, values, 0).sum(axis=1) / np.maximum(count, 1), 0)
    known = np.maximum(ndimage.gaussian_filter1d(shown.astype(float), TREND_OF_PROFILE), 1e-3)
    mean = np.where(shown, mean - ndimage.gaussian_filter1d(mean, TREND_OF_PROFILE) / known, 0)
    return np.asarray(mean / max(float(mean.std()), 1e-12), dtype=np.float32)
