"""What an ``.mdoc`` and the headers say of a stack: whose section is which image, doses, and the size of a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.io.belonging.order import SAME_TILT_DEG, compare, order_of, shown
from inrtomo.io.belonging.sizes import alike, growth, turned_like
from inrtomo.io.mdoc import Mdoc

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

UNTOLD_A = 1.0
"""The pixel size that many programs write when they were not told one."""
PIXEL_RANGE_A = (0.05, 1000.0)
"""Of images in an electron microscope, binned ones included."""
CONTRADICTED = 0.05
"""Pixel sizes that differ by more are said."""
SAME_SHAPE = 0.01


def known_pixel_size(header_A: float | None) -> float | None:
    """A header's pixel size, None where it has none, or one that nobody measured."""
    if header_A is None or header_A == UNTOLD_A or not PIXEL_RANGE_A[0] <= header_A <= PIXEL_RANGE_A[1]:
        return None
    return header_A


# --- pixel size ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PixelSize:
    """Å a pixel of a stack, or None, where it is from, and what has to be said about it."""

    size_A: float | None
    source: str = ""
    said: tuple[str, ...] = ()


def pixel_size_of(
    header_A: float | None,
    across_A: float | None,
    mdoc: Mdoc | None,
    mdoc_name: str,
    size: tuple[int, int],
    given_A: float | None = None,
) -> PixelSize:
    """The pixel size of a stack: as given, else the header's, else the ``.mdoc``'s for images of this size.

    Args:
        header_A, across_A: along x and along y, as the header has them, or None.
        mdoc, mdoc_name: the series' metadata; they may be of images of another size.
        size: (nx, ny) of the stack's images.
        given_A: by the user.
    """
    said = []
    header = known_pixel_size(header_A)
    if header_A is not None and header is None and header_A != UNTOLD_A:
        said.append(f"the header's pixel size, {header_A:.4g} Å, is not one of an electron microscope; it is not used")
    if header is not None and across_A is not None and abs(across_A / header - 1) > SAME_SHAPE:
        said.append(f"the header's pixels are {header:.4g} Å along x and {across_A:.4g} Å along y; the first is used")
    noted, scale_said = mdoc_pixel_size(mdoc, mdoc_name, size)
    if given_A is not None:
        for other, whose in ((header, "the header"), (noted, mdoc_name)):
            if other is not None and abs(given_A / other - 1) > CONTRADICTED:
                said.append(f"the pixel size given, {given_A:.4g} Å, is not that of {whose}, {other:.4g} Å")
        return PixelSize(given_A, "as given", tuple(said))
    if header is not None:
        if noted is not None and abs(noted / header - 1) > CONTRADICTED:
            said.append(f"pixel size: the header says {header:.4g} Å, {mdoc_name} {noted:.4g} Å; the header's is used")
        return PixelSize(header, "header", tuple(said))
    if scale_said:
        said.append(scale_said)
    if noted is not None:
        return PixelSize(noted, mdoc_name, tuple(said))
    if header_A == UNTOLD_A:
        return PixelSize(header_A, "header (1 Å is also what a file says that was never told)", tuple(said))
    return PixelSize(None, "", tuple(said))


def mdoc_pixel_size(mdoc: Mdoc | None, name: str, size: tuple[int, int]) -> tuple[float | None, str]:
    """The ``.mdoc``'s pixel size for images of ``size``, and what has to be said."""
    if mdoc is None or mdoc.pixel_size_A is None:
        return None, ""
    if mdoc.image_size is None or min(mdoc.image_size) < 1 or sorted(mdoc.image_size) == sorted(size):
        return mdoc.pixel_size_A, ""
    was = turned_like(mdoc.image_size, size)
    factor = growth(size, was)
    images = f"images of {was[0]} x {was[1]}"
    if not alike(size, was, factor):
        return None, f"{name}: its pixel size is of {images}, these are {size[0]} x {size[1]}; it is not used"
    said = f"{name}: its pixel size, {mdoc.pixel_size_A:.4g} Å, is of {images}; times {factor:.4g} for these"
    return mdoc.pixel_size_A * factor, said


# --- sections and doses --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sections:
    """Which section of an ``.mdoc`` each image is, ``(n,)``, and what has to be said about it."""

    of_images: Ints
    said: tuple[str, ...] = ()


def sections_of(mdoc: Mdoc, tilt_deg: Array) -> Sections | None:
    """The section of every image, by position or by angle; None where they cannot be matched.

    Where a tilt was taken twice and the stack has one image of it, the later one is believed to have been kept.
    """
    n, recorded = len(tilt_deg), np.asarray(mdoc.tilt_deg)
    if len(recorded) < n:
        return None
    if len(recorded) == n:
        if _is_close(compare(tilt_deg, recorded, (1,)).rest):
            return Sections(np.arange(n))
        found = order_of(tilt_deg, recorded, same_zero=True)
        if found.at is not None and found.comparison is not None and _is_close(found.comparison.rest):
            return Sections(found.at)
    return _retaken(mdoc, tilt_deg)


def _is_close(rest: Array) -> bool:
    return bool(np.abs(rest).max(initial=0.0) < SAME_TILT_DEG)


def _retaken(mdoc: Mdoc, tilt_deg: Array) -> Sections | None:
    """Sections by angle, of several of one angle the last taken, or as many of the last as there are images."""
    recorded = np.asarray(mdoc.tilt_deg)
    turn = np.arange(len(recorded)) if mdoc.order is None else mdoc.order
    sections = np.full(len(tilt_deg), -1, dtype=np.int64)
    fewer, alike = [], []
    for group in _groups(tilt_deg):
        angle = float(np.mean(tilt_deg[group]))
        there = np.flatnonzero(np.abs(recorded - angle) < SAME_TILT_DEG)
        if len(there) < len(group):
            return None
        latest = there[np.argsort(turn[there], kind="stable")][-len(group) :]
        sections[group] = latest
        if len(there) > len(group):
            fewer.append(angle)
        elif len(group) > 1:
            alike.append(angle)
    if len(set(sections.tolist())) < len(sections):
        return None
    said = []
    if fewer:
        said.append(
            f"more than one section is at {shown(np.array(fewer))} degrees and the stack has fewer images there: these "
            "are taken to be the last recorded, after the dose of those before"
        )
    if alike:
        said.append(
            f"several images are at {shown(np.array(alike))} degrees: they are taken to be in the order of recording"
        )
    return Sections(sections, tuple(said))


def _groups(tilt_deg: Array) -> list[Ints]:
    """Images of one angle, in the order of the stack."""
    order = np.argsort(tilt_deg, kind="stable")
    breaks = np.flatnonzero(np.diff(np.asarray(tilt_deg)[order]) >= SAME_TILT_DEG) + 1
    return [np.sort(group) for group in np.split(order, breaks)]
