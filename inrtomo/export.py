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


class Sections:
    """Makes the sections of an aligned stack, on the CPU; `inrtomo.gpu.resample` does the same on a device.

    Args: as of `export_images`.
    """

    def __init__(self, alignment: Alignment, bin: int, exposure_e_A2: Array | None, voltage_kV: int) -> None:
        self.alignment, self.bin, self.exposure_e_A2, self.voltage_kV = alignment, bin, exposure_e_A2, voltage_kV
        self.filtered = bin > 1 or exposure_e_A2 is not None
        border = BORDER if self.filtered else 0
        self.frame = Frame.of(alignment.aligned_size, bin, (border, border))
        self.frequency = None if exposure_e_A2 is None else _frequencies(self.frame, alignment.pixel_size_A)

    def section(self, raw: NDArray, tilt: int) -> AlignedImage:
        """The section of the raw image ``(ny, nx)`` of a stack index."""
        frame, bin = self.frame, self.bin
        values, valid = aligned_image(raw, self.alignment, tilt, frame.x, frame.y)
        values = fill_invalid(values, valid)
        if self.filtered:
            raw_border = (frame.border[0] * bin, frame.border[1] * bin)
            gain = None
            if self.exposure_e_A2 is not None and self.frequency is not None:
                exposure = float(self.exposure_e_A2[tilt])
                gain = dose_filter(self.frequency, exposure, self.voltage_kV).astype(np.float32)
            values = fourier_bin(settle_border(values, raw_border), bin, gain)
            ny, nx = values.shape
            valid = np.asarray(valid.reshape(ny, bin, nx, bin).all(axis=(1, 3)))
        return AlignedImage(frame.cut(values), frame.cut(valid))


def export_images(
    image: Callable[[int], NDArray],
    alignment: Alignment,
    bin: int = 1,
    exposure_e_A2: Array | None = None,
    voltage_kV: int = 300,
    device: str = "cpu",
) -> Iterator[AlignedImage]:
    """All images of the series in stack order, excluded ones too, so that sections keep their numbers.

    Args:
        image: gives the raw image ``(ny, nx)`` of a stack index.
        bin: raw px per output px, by cutting the Fourier transform; sizes (`Alignment.aligned_size`) are rounded down.
        exposure_e_A2: exposure by which each image is dose weighted, ``(n_tilts,)``, or None for no weighting;
            needs the alignment's pixel size.
        voltage_kV: 300 or 200.
        device: ``"cpu"``, or a GPU as torch calls it.
    """
    sections = sections_on(device, alignment, bin, exposure_e_A2, voltage_kV)
    for m in range(alignment.n_tilts):
        yield sections.section(image(m), m)


def sections_on(device: str, alignment: Alignment, bin: int, exposure_e_A2: Array | None, voltage_kV: int) -> Sections:
    """What makes the sections on a device."""
    if device == "cpu":
        return Sections(alignment, bin, exposure_e_A2, voltage_kV)
    from inrtomo.gpu.resample import DeviceSections

    return DeviceSections(alignment, bin, exposure_e_A2, voltage_kV, device)


def _frequencies(frame: Frame, pixel_size_A: float | None) -> Array:
    """Spatial frequencies (1/Å) of ``rfft2`` of a frame with its border."""
    if pixel_size_A is None:
        raise ValueError("dose weighting needs a pixel size")
    step = pixel_size_A * frame.bin
    nx, ny = (n + 2 * b for n, b in zip(frame.size, frame.border, strict=True))
    return np.hypot(np.fft.fftfreq(ny, step)[:, None], np.fft.rfftfreq(nx, step))
