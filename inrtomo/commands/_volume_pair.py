"""The two volumes, or stacks of images, that a command compares: read, checked, turned the same way, of one height."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.images import open_images

F32 = NDArray[np.float32]

PIXEL_SIZE_TOLERANCE = 0.005
SMALLEST_SIDE = 8
"""Fewer voxels make too few shells for a curve."""


@dataclass(frozen=True)
class Pair:
    """Two volumes or stacks, and where things were found (what, value, source)."""

    a: F32
    b: F32
    paths: tuple[Path, Path]
    pixel_size_A: float
    sources: list[tuple[str, object, str]]


def read_pair(vol1: Path, vol2: Path, pixel_size_A: float | None) -> Pair:
    """Both as they are in their files.

    Raises:
        InputError: they cannot be read, are blank, hold what is no number, or have no pixel size or two.
    """
    if pixel_size_A is not None and not 0 < pixel_size_A < math.inf:
        raise InputError(f"--pixel-size {pixel_size_A:g}: must be positive; give Å per voxel")
    (a, pixel_a), (b, pixel_b) = (_read(path) for path in (vol1, vol2))
    pixel, source = pixel_size_A, "--pixel-size"
    if pixel is None:
        if pixel_a and pixel_b and abs(pixel_a - pixel_b) > PIXEL_SIZE_TOLERANCE * pixel_b:
            raise InputError(f"{vol1} and {vol2}: have voxels of {pixel_a:.4g} and {pixel_b:.4g} Å; give --pixel-size")
        pixel, source = pixel_b or pixel_a, f"header of {vol2 if pixel_b else vol1}"
    if pixel is None:
        raise InputError(f"{vol1}: its header has no pixel size; give --pixel-size")
    return Pair(a, b, (vol1, vol2), pixel, [("pixel size", f"{pixel:.4g} Å", source)])


def as_images(pair: Pair) -> Pair:
    """The pair, if it is two stacks ``(n, y, x)`` of one size.

    Raises:
        InputError: it is not, or they are too small.
    """
    if pair.a.shape != pair.b.shape:
        raise InputError(f"{_names_and_sizes(pair)}; cut or bin one to the size of the other")
    _check_sides(pair.a.shape[1:], pair.paths[0])
    return pair


def as_volumes(pair: Pair, orientation: str | None) -> tuple[Pair, str]:
    """The pair as ``[z, y, x]`` of one height, and the order of the axes in VOL1's file (``imod`` or ``xyz``).

    Specimens lie about the middle of their boxes, so the higher one is cut above and below alike.

    Raises:
        InputError: sides that go together in no way, or are too small.
    """
    orders = [orientation or order_of(v) for v in (pair.a, pair.b)]
    found = ", ".join(dict.fromkeys(orders))
    sources = [*pair.sources, ("orientation", found, "--orientation" if orientation else "z is the shortest side")]
    a, b = (upright(v, order) for v, order in zip((pair.a, pair.b), orders, strict=True))
    more = len(a) - len(b)
    if a.shape[1:] != b.shape[1:]:
        raise InputError(f"{_names_and_sizes(pair)}; cut or bin one to the size of the other")
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
    return replace(pair, a=a, b=b, sources=sources), orders[0]


def read_mask(path: Path, pair: Pair, orientation: str | None) -> F32:
    """A mask of the size of one of the volumes, as ``[z, y, x]`` and of the height that is compared.

    Raises:
        InputError: it has another size or values outside 0 to 1.
    """
    values, _ = _read(path)
    if values.min() < 0 or values.max() > 1:
        raise InputError(f"{path}: has values from {values.min():.3g} to {values.max():.3g}; a mask goes from 0 to 1")
    mask, height = upright(values, orientation or order_of(values)), len(pair.a)
    if mask.shape[1:] != pair.a.shape[1:] or len(mask) < height or (len(mask) - height) % 2:
        raise InputError(f"{path}: is not of the volumes' size; make the mask from one of them")
    return cut(mask, height)


def order_of(volume: F32) -> str:
    """``imod`` if rows are fewer than sections, as IMOD's tilt writes a slab, else ``xyz``."""
    depth, height, _ = volume.shape
    return "imod" if height < depth else "xyz"


def upright(volume: F32, order: str) -> F32:
    """``[z, y, x]`` of a volume in an order; of what IMOD's tilt writes as by ``trimvol -rx``."""
    return volume if order == "xyz" else np.ascontiguousarray(volume.transpose(1, 0, 2)[::-1])


def cut(volume: F32, height: int) -> F32:
    """The planes in the middle."""
    first = (len(volume) - height) // 2
    return volume[first : first + height]


def _read(path: Path) -> tuple[F32, float | None]:
    """A volume or stack with something in it and nothing that is no number, and its pixel size."""
    stack = open_images(path)
    values = np.stack([stack.image(k) for k in range(stack.shape[0])])
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise InputError(f"{path}: has {bad} voxels that are no number (NaN or infinite); write it again without them")
    if np.ptp(values) == 0:
        raise InputError(f"{path}: is blank (every voxel is {values.flat[0]:g}); use another")
    return values, stack.pixel_size_A


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
