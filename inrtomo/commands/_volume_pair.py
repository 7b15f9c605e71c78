"""The two volumes, or stacks of images, that a command compares: read, checked, turned the same way, of one height."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.axis_order import order_in
from inrtomo.io.images import open_images
from inrtomo.io.mrc import MrcStack, zero_of_mask

F32 = NDArray[np.float32]

PIXEL_SIZE_TOLERANCE = 0.005
LARGEST_BYTE = 255
"""Of a mask of whole numbers; one with more is none."""
SMALLEST_SIDE = 8
"""Fewer voxels make too few shells for a curve."""


DEFAULT_ORDER, UNTOLD = "xyz", "default"


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Attributes:
        values: (sections, rows, columns); pixel_size_A: None where the header has none.
        order: ``imod`` or ``xyz`` where its labels tell.
        images: whether its header says that the sections are images.
    """

    path: Path
    values: F32
    pixel_size_A: float | None
    order: str | None
    images: bool


@dataclass(frozen=True)
class Pair:
    """Two volumes or stacks, what their files hold, and where things were found (what, value, source).

    Attributes:
        orders: of the axes in the two files, once the volumes stand upright.
        notes: sentences for who compares them.
    """

    a: F32
    b: F32
    files: tuple[Found, Found]
    pixel_size_A: float
    sources: list[tuple[str, object, str]]
    notes: list[str]
    orders: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, Path]:
        return self.files[0].path, self.files[1].path


def read_pair(vol1: Path, vol2: Path, pixel_size_A: float | None) -> Pair:
    """Both as they are in their files.

    Raises:
        InputError: they cannot be read, are blank, hold what is no number, or have no pixel size or two.
    """
    if pixel_size_A is not None and not 0 < pixel_size_A < math.inf:
        raise InputError(f"--pixel-size {pixel_size_A:g}: must be positive; give Å per voxel")
    first, second = files = _read(vol1), _read(vol2)
    pixel, source = pixel_size_A, "--pixel-size"
    if pixel is None:
        _check_pixel_sizes(first, second)
        given = second if second.pixel_size_A else first
        pixel, source = given.pixel_size_A, f"header of {given.path}"
    if pixel is None:
        raise InputError(f"{vol1}: its header has no pixel size; give --pixel-size")
    sources: list[tuple[str, object, str]] = [("pixel size", f"{pixel:.4g} Å", source)]
    return Pair(first.values, second.values, files, pixel, sources, [])


def as_images(pair: Pair) -> Pair:
    """The pair, if it is two stacks ``(n, y, x)`` of one size.

    Raises:
        InputError: it is not, or they are too small.
    """
    if pair.a.shape != pair.b.shape:
        raise InputError(f"{_names_and_sizes(pair)}; cut or bin one to the size of the other")
    _check_sides(pair.a.shape[1:], pair.paths[0])
    return pair


def as_volumes(pair: Pair, orientation: str | None) -> Pair:
    """The pair as ``[z, y, x]`` of one height.

    Each file may have its axes in an order of its own: that of --orientation, else of its header's labels, else the
    one in which z is the shorter of the two sides that may be z. Specimens lie about the middle of their boxes, so the
    higher one is cut above and below alike.

    Raises:
        InputError: sides that go together in no way, or are too small.
    """
    notes = [*pair.notes, *_notes_on_images(pair)]
    found = [(orientation, "--orientation") if orientation else order_of(file) for file in pair.files]
    for file, (order, source) in zip(pair.files, found, strict=True):
        if source == UNTOLD:
            notes.append(
                f"{file.path}: neither header nor sides tell which axis is z; taken as {order}, sections are z; give "
                "--orientation imod if sections are y, as IMOD's tilt writes them"
            )
    orders = tuple(order for order, _ in found)
    said = (", ".join(dict.fromkeys(column)) for column in zip(*found, strict=True))
    sources = [*pair.sources, ("orientation", next(said), next(said))]
    a, b = (upright(v, order) for v, order in zip((pair.a, pair.b), orders, strict=True))
    if a.shape[1:] != b.shape[1:]:
        turned = sorted(pair.a.shape) == sorted(pair.b.shape)
        hint = f"were taken as {orders[0]} and {orders[1]}; give --orientation if both are otherwise" if turned else ""
        raise InputError(f"{_names_and_sizes(pair)}; {hint or 'cut or bin one to the size of the other'}")
    more = len(a) - len(b)
    if more % 2:
        raise InputError(
            f"{_names_and_sizes(pair)}: their middles lie half a voxel apart along z; give inr-recon a --thickness "
            "that makes it one voxel more or less"
        )
    if more:
        higher = pair.paths[0 if more > 0 else 1]
        height = min(len(a), len(b))
        sources.append(("height", f"{height} voxels", f"{higher} cut to it above and below alike"))
        a, b = cut(a, height), cut(b, height)
    _check_sides(a.shape, pair.paths[0])
    return replace(pair, a=a, b=b, sources=sources, notes=notes, orders=orders)


def read_mask(path: Path, pair: Pair, orientation: str | None) -> F32:
    """A mask of the size of one of the volumes, 0 to 1, as ``[z, y, x]`` and of the height that is compared.

    One of whole numbers from 0, such as bytes, is divided by the largest, which is noted in the pair's sources. Where
    neither --orientation nor its labels tell, its axes are as those of the volume whose sides its file has.

    Raises:
        InputError: it has another size or values outside 0 to 1.
    """
    file = _read(path)
    values = file.values
    stack = open_images(path)
    if isinstance(stack, MrcStack) and (zero := zero_of_mask(stack)):
        values = values - np.float32(zero)
    largest = float(values.max())
    if 1 < largest <= LARGEST_BYTE and values.min() == 0 and (values == np.rint(values)).all():
        pair.sources.append(("mask", f"whole numbers, divided by the largest, {largest:.0f}", str(path)))
        values = values / np.float32(largest)
    if values.min() < 0 or values.max() > 1:
        raise InputError(f"{path}: has values from {values.min():.3g} to {values.max():.3g}; a mask goes from 0 to 1")
    alike = [order for of, order in zip(pair.files, pair.orders, strict=True) if of.values.shape == values.shape]
    order = orientation or file.order or next(iter(alike), order_of(file)[0])
    mask, height = upright(values, order), len(pair.a)
    if mask.shape[1:] != pair.a.shape[1:] or len(mask) < height or (len(mask) - height) % 2:
        raise InputError(f"{path}: is not of the volumes' size; make the mask from one of them")
    return cut(mask, height)


def order_of(file: Found) -> tuple[str, str]:
    """``imod`` (sections are y, as IMOD's tilt writes a slab) or ``xyz``, and what tells."""
    if file.order is not None:
        return file.order, "label in the header"
    depth, height, _ = file.values.shape
    if depth == height:
        return DEFAULT_ORDER, UNTOLD
    return "imod" if height < depth else "xyz", "z is the shorter side"


def upright(volume: F32, order: str) -> F32:
    """``[z, y, x]`` of a volume in an order; of what IMOD's tilt writes as by ``trimvol -rx``."""
    return volume if order == "xyz" else np.ascontiguousarray(volume.transpose(1, 0, 2)[::-1])


def cut(volume: F32, height: int) -> F32:
    """The planes in the middle."""
    first = (len(volume) - height) // 2
    return volume[first : first + height]


def _read(path: Path) -> Found:
    """A volume or stack with something in it and nothing that is no number."""
    stack = open_images(path)
    values = np.stack([stack.image(k) for k in range(stack.shape[0])])
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{path}: has {bad} voxels that are no number (NaN or infinite); write it again without them")
    if np.ptp(values) == 0:
        raise InputError(f"{path}: is blank (every voxel is {values.flat[0]:g}); use another")
    if not isinstance(stack, MrcStack):
        return Found(path, values, stack.pixel_size_A, None, False)
    header = stack.header
    return Found(path, values, stack.pixel_size_A, order_in(header.labels), header.sections_are_images)


def _check_pixel_sizes(a: Found, b: Found) -> None:
    """Two headers that contradict each other: one of them is wrong, or one file is binned."""
    if not a.pixel_size_A or not b.pixel_size_A:
        return
    if abs(a.pixel_size_A - b.pixel_size_A) <= PIXEL_SIZE_TOLERANCE * b.pixel_size_A:
        return
    said = f"{a.path} and {b.path}: have voxels of {a.pixel_size_A:.4g} and {b.pixel_size_A:.4g} Å"
    columns = a.values.shape[2], b.values.shape[2]
    if columns[0] == columns[1]:  # x in either order
        raise InputError(f"{said} and are {columns[0]} wide both; give --pixel-size, the right one")
    fine, coarse = sorted((a, b), key=lambda file: file.pixel_size_A or 0.0)
    assert fine.pixel_size_A and coarse.pixel_size_A
    ratio = coarse.pixel_size_A / fine.pixel_size_A
    how = f"bin {fine.path} by {round(ratio)} (IMOD: binvol -binning {round(ratio)}, or inr-recon --bin)"
    if abs(ratio - round(ratio)) > PIXEL_SIZE_TOLERANCE * ratio:
        how = f"resample {fine.path} to {coarse.pixel_size_A:.4g} Å"
    raise InputError(f"{said}, and shells are of voxels of one size; {how}")


def _notes_on_images(pair: Pair) -> list[str]:
    """At most one: that stacks are about to be compared as volumes."""
    names = " and ".join(str(file.path) for file in pair.files if file.images)
    if not names:
        return []
    return [f"{names}: the header says that sections are images, compared as a volume here; --frc is for images"]


def _check_sides(shape: tuple[int, ...], path: Path) -> None:
    if min(shape) < SMALLEST_SIDE:
        hint = "; use --frc if its sections are images" if len(shape) == 3 else ""
        raise InputError(
            f"{path}: is {_size(shape)}, and Fourier shells need {SMALLEST_SIDE} voxels along each side{hint}"
        )


def _names_and_sizes(pair: Pair) -> str:
    return f"{pair.paths[0]} and {pair.paths[1]}: are {_size(pair.a.shape)} and {_size(pair.b.shape)} voxels"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in reversed(shape))
