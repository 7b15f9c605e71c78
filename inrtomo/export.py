"""Aligned stacks: every raw image read once through the full map, edges filled, binned and dose weighted on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.dose import dose_filter
from inrtomo.resample import Frame, aligned_image, fill_invalid, fourier_bin, settle_border

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BORDER = 16  # output px around an image that is filtered in Fourier space


@dataclass(frozen=True)
class AlignedImage:
    """One section of an aligned stack.

    Attributes:
        values: ``(ny, nx)``, the local mean where the raw image has no pixel.
        valid: ``(ny, nx)``, whether the raw image was there (for a binned pixel: for all of it).
    """

    values: F32
    valid: Mask


def export_images(
    image: Callable[[int], NDArray],
    alignment: Alignment,
    bin: int = 1,
    exposure_e_A2: Array | None = None,
    voltage_kV: int = 300,
) -> Iterator[AlignedImage]:
    """All images of the series in stack order, excluded ones too, so that sections keep their numbers.

    Args:
        image: gives the raw image ``(ny, nx)`` of a stack index.
        bin: raw px per output px, by cutting the Fourier transform; sizes are rounded down.
        exposure_e_A2: exposure by which each image is dose weighted, ``(n_tilts,)``, or None for no weighting;
            needs the alignment's pixel size.
        voltage_kV: 300 or 200.
    """
    filtered = bin > 1 or exposure_e_A2 is not None
    border = BORDER if filtered else 0
    frame = Frame.of(alignment.image_size, bin, (border, border))
    frequency = _frequencies(frame, alignment.pixel_size_A) if exposure_e_A2 is not None else None
    for m in range(alignment.n_tilts):
        values, valid = aligned_image(image(m), alignment, m, frame.x, frame.y)
        values = fill_invalid(values, valid)
        if filtered:
            raw_border = (frame.border[0] * bin, frame.border[1] * bin)
            gain = None
            if exposure_e_A2 is not None and frequency is not None:
                gain = dose_filter(frequency, float(exposure_e_A2[m]), voltage_kV).astype(np.float32)
            values = fourier_bin(settle_border(values, raw_border), bin, gain)
            ny, nx = values.shape
            valid = np.asarray(valid.reshape(ny, bin, nx, bin).all(axis=(1, 3)))
        yield AlignedImage(frame.cut(values), frame.cut(valid))


def _frequencies(frame: Frame, pixel_size_A: float | None) -> Array:
    """Spatial frequencies (1/Å) of ``rfft2`` of a frame with its border."""
    if pixel_size_A is None:
        raise ValueError("dose weighting needs a pixel size")
    step = pixel_size_A * frame.bin
    nx, ny = (n + 2 * b for n, b in zip(frame.size, frame.border, strict=True))
    return np.hypot(np.fft.fftfreq(ny, step)[:, None], np.fft.rfftfreq(nx, step))
