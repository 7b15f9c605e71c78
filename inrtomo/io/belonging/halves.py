"""Do two stacks hold the odd and the even frames of a series? One or two images from the middle tell.

What both halves share with the full stack is the specimen, and with its frames the noise, too. A half that is blank,
the same as its sibling or as the full stack, or that shows something else, would make error bars and FSC a fiction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from inrtomo.io.images import ImageStack

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

JUDGED_SIZE = 128
"""Pixels an image is binned to: enough to tell images apart, and little noise is left of what is large."""
SAME = 1 - 1e-6
"""Correlation at which two images are one, but for a factor."""
UNLIKE = 0.2
"""Below it, a half and the full stack show different things; by noise alone frames of one image share more."""
LOOK_AROUND = 0.6
"""Below it, the other images of the series are looked at: one of them may be this one."""
ENOUGH = 1536
"""Pixels along a side, about the middle of an image, that are looked at."""
TAKEN_AWAY = 0.25
"""The full stack is the sum of its halves; where it is one less this share of the other, it is a half itself."""
MOST = 0.5
"""Of an image's variance that two others explain, and of what one of them shares with the other."""
MORE = 0.1
"""By how much another image has to be more alike."""


def why_not_halves(full: ImageStack, halves: Sequence[ImageStack], names: Sequence[str]) -> str | None:
    """What is wrong with two stacks as the halves of a full one, or None.

    Args:
        full: all frames, ``(n, ny, nx)``; halves: two stacks of the odd and the even ones.
        names: of the halves, for the sentence.
    """
    for half, name in zip(halves, names, strict=True):
        if half.shape != full.shape:
            return f"{name} has {_size(half.shape)}, the stack {_size(full.shape)}"
    chosen = _with_content(full)
    if not chosen:
        return None
    likeness = []
    for index in chosen:
        whole = _seen(full.image(index))
        parts = [_seen(half.image(index)) for half in halves]
        for part, name in zip(parts, names, strict=True):
            if not np.any(part):
                return f"{name} is blank (image {index})"
        if _alike(*parts) > SAME:
            return f"{names[0]} and {names[1]} are the same (image {index})"
        for part, name in zip(parts, names, strict=True):
            if _alike(part, whole) > SAME:
                return f"{name} is the same as the full stack (image {index})"
        share, explained = _shares(whole, parts)
        if min(explained, _alike(*parts)) > MOST and min(share) < -TAKEN_AWAY * max(share) < 0:
            name = names[int(np.argmax(share))]
            return f"{name} seems to hold all frames, and the stack only a part of them; give the full one as the stack"
        likeness.append([_alike(_coarse(part), _coarse(whole)) for part in parts])
    for k, name in enumerate(names):
        own = np.array([row[k] for row in likeness])
        if own.min() < LOOK_AROUND:
            elsewhere = [_most_like(full, halves[k], index) for index in chosen]
            if any(
                i != index and r > max(UNLIKE, one) + MORE
                for (i, r), index, one in zip(elsewhere, chosen, own, strict=True)
            ):
                return f"{name} has its images in another order than the stack"
        if own.max() < UNLIKE:
            return f"{name} does not show what the stack shows (correlation {own.max():.2f})"
    return None


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} images of {shape[2]} x {shape[1]}"


def _with_content(full: ImageStack) -> list[int]:
    """Up to two images about the middle of a stack, on either side of it, that show something."""
    n = full.shape[0]
    chosen: list[int] = []
    for around in (range(n // 3, n // 2), range(2 * n // 3, n // 2 - 1, -1)):
        found = (k for k in around if k not in chosen and np.any(_seen(full.image(k))))
        chosen += [k for k in [next(found, -1)] if k >= 0]
    return chosen


def _seen(image: F32) -> F32:
    """The middle of an image about its mean, pixels that are no numbers set to it; zeros where it shows nothing."""
    ny, nx = (max(0, (side - ENOUGH) // 2) for side in image.shape)
    image = image[ny : ny + ENOUGH, nx : nx + ENOUGH]
    good = np.isfinite(image)
    if not good.any() or np.ptp(image[good]) == 0:
        return np.zeros_like(image)
    mean = np.float32(image[good].mean(dtype=np.float64))
    return np.where(good, image - mean, np.float32(0))


def _coarse(image: F32) -> Array:
    """Binned, and without its trend over the field, which has nothing to do with what is seen."""
    by = max(1, min(image.shape) // JUDGED_SIZE)
    ny, nx = (side // by for side in image.shape)
    small = image[: ny * by, : nx * by].reshape(ny, by, nx, by).mean(axis=(1, 3), dtype=np.float64)
    y, x = np.meshgrid(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    fit, *_ = np.linalg.lstsq(terms, small.ravel(), rcond=None)
    return np.asarray(small - (terms @ fit).reshape(small.shape))


def _alike(one: NDArray, other: NDArray) -> float:
    """Correlation of two images about their means."""
    a, b = (image.ravel().astype(np.float64) for image in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def _shares(whole: F32, parts: Sequence[F32]) -> tuple[Array, float]:
    """Factors of two images whose sum is most like a third, and the share of its variance that this explains."""
    columns, seen = np.stack([part.ravel() for part in parts]).astype(np.float64), whole.ravel().astype(np.float64)
    with_whole = columns @ seen
    factors = np.linalg.solve(columns @ columns.T, with_whole)
    return np.asarray(factors), float(factors @ with_whole / (seen @ seen))


def _most_like(full: ImageStack, half: ImageStack, index: int) -> tuple[int, float]:
    """The image of the full stack that is most like one of a half, and how much."""
    part = _coarse(_seen(half.image(index)))
    likeness = [_alike(part, _coarse(_seen(full.image(k)))) for k in range(full.shape[0])]
    best = int(np.argmax(likeness))
    return best, likeness[best]
