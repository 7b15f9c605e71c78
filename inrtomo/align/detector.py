"""What belongs to the detector and not to the specimen: told from one pass over the raw images.

A defect that stays at the same pixels correlates with itself at no displacement, so it holds all images where the
detector was. The mean over all images, each in units of its own spread, shows it: the specimen moves from image to
image and averages out. What does not move either - a bead on the tilt axis of a stack that is aligned already, the edge
of the beam - has been through the optics and rises over several pixels; a defect has edges of one pixel, and that is
asked of everything. Lines and saturated patches are also sought in every single image, and images written twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.align.prepare import dead_borders
from inrtomo.resample import fill_invalid
from inrtomo.tiltseries import TiltSeries

Array = NDArray[Any]
F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAD_TO_SD = 1.4826
CLIP_SD = 20.0  # of an image's spread: one wild pixel of one image is no defect of all
FEWEST = 5  # images that have a mean
RINGS_PX = (6.0, 20.0)  # radii at which a pixel's surroundings are asked
RING_SAMPLES = 8
OUT_SD, LEAST = 7.0, 1.5  # of the mean image: robust sd, spreads of an image
LEAST_TOGETHER = 4.0  # spreads times the root of the number of pixels: one faint pixel alone does no harm
EDGE_PX, EDGE_TIMES = 3, 3.0  # what frames that were shifted and summed leave at the border is no defect
LINE_ROWS = 64  # pixels along a line that are taken together
LINE_OUT_SD, LINE_LEAST = 8.0, 0.4
BESIDE_PX = (5, 6, 7, 8)  # on either side of a line: what it is held against
ONE_LINE_LEAST, ONE_LINE_CLIP = 0.8, 8.0  # of a line in a single image
OFTEN = 0.25  # of the images: what is bad in so many of them is left out of all
SHARP = 0.6  # step at the edge of a defect, of its height
MOST = 0.1  # of all pixels: more are no defects
SATURATED_SD, LEAST_SATURATED = 6.0, 4
CONSTANT_PX = 400  # of a region of one value; smaller ones may be beads that were clipped
EQUAL_BY_CHANCE = 0.01  # of the pixels elsewhere that are like all four neighbours
BY_CHANCE = 1e-3  # expected number of pixels that would look alike by chance
HALF_EMPTY = 0.2  # of an image, beyond what the border of constant rows and columns takes of the others
LIST = 8  # columns, rows, images named in a sentence
COPY_CORRELATION = 0.9999
COPY_SAMPLES = 4096
WHOLE_LINE = 0.5  # of a column or row: it is named as such
MASKED_OF_BIN = 0.1  # of the raw pixels of a binned one


@dataclass
class Defects:
    """Pixels that show the detector, and images that were written twice.

    Attributes:
        fixed: ``(ny, nx)``, raw pixels not to be used in any image.
        single: stack index -> rows and columns of more of them in this image.
        copies: stack index -> image that it is a copy of.
        half_empty: stack index -> part of this image that rows or columns of one value at its border take up.
    """

    fixed: Mask
    single: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    half_empty: dict[int, float] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether there are pixels to repair."""
        return bool(self.fixed.any()) or bool(self.single)

    def of_image(self, index: int) -> Mask:
        """Raw pixels ``(ny, nx)`` of one image that are not to be used."""
        if index not in self.single:
            return self.fixed
        mask = self.fixed.copy()
        mask[self.single[index]] = True
        return mask

    def binned(self, index: int, factor: int) -> Mask:
        """Pixels of an image binned by ``factor`` (centre on centre) that defects make up a good part of."""
        mask = self.of_image(index)
        my, mx = mask.shape[0] // factor, mask.shape[1] // factor
        y0, x0 = (mask.shape[0] - my * factor) // 2, (mask.shape[1] - mx * factor) // 2
        block = mask[y0 : y0 + my * factor, x0 : x0 + mx * factor].reshape(my, factor, mx, factor)
        return np.asarray(block.mean(axis=(1, 3)) >= MASKED_OF_BIN)

    def repaired(self, index: int, image: F32) -> F32:
        """A raw image ``(ny, nx)`` with its defects replaced by the mean of the good pixels around them."""
        mask = self.of_image(index)
        rows, columns = np.nonzero(mask)
        if not len(rows):
            return image
        r = 2
        values, good = np.pad(np.where(mask, 0, image), r), np.pad(~mask, r)
        total, count = np.zeros(len(rows)), np.zeros(len(rows))
        for j in range(2 * r + 1):
            for i in range(2 * r + 1):
                total += values[rows + j, columns + i]
                count += good[rows + j, columns + i]
        out = np.array(image, dtype=np.float32)
        if (count == 0).any():
            out = fill_invalid(out, ~mask)
        near = count > 0
        out[rows[near], columns[near]] = total[near] / count[near]
        return out

    def notes(self) -> list[str]:
        """Sentences on what was found and what is done about it."""
        notes = []
        if self.fixed.any():
            columns, rows = (np.flatnonzero(self.fixed.mean(axis=axis) >= WHOLE_LINE) for axis in (0, 1))
            rest = self.fixed.copy()
            rest[:, columns], rest[rows, :] = False, False
            parts = [_listed(name, found) for name, found in (("column", columns), ("row", rows)) if len(found)]
            if rest.any():
                n = int(rest.sum())
                parts.append(f"{n} {'other ' if parts else ''}pixel{'s' if n > 1 else ''}")
            notes.append(
                f"detector defects at the same place in all images: {' and '.join(parts)} (from 0); they are left out "
                "of correlation, tracks and fit"
            )
        if self.single:
            names = _listed("image", sorted(self.single))
            pixels = sum(len(rows) for rows, _ in self.single.values())
            notes.append(
                f"{pixels} pixels of defect lines, saturated patches or regions of one value in {names} are left out "
                "of correlation, tracks and fit"
            )
        notes += [
            f"image {index}: {part:.0%} of it, at its border, is of one value and left out; copy the stack again"
            for index, part in sorted(self.half_empty.items())
        ]
        shown = sorted(self.copies.items())
        notes += [f"image {copy} is a copy of image {first} and left out" for copy, first in shown[:LIST]]
        if len(shown) > LIST:
            others = [copy for copy, _ in shown[LIST:]]
            notes.append(f"{len(others)} images more, {others[0]} to {others[-1]}, are copies and left out")
        return notes

    def doubt(self, tilt_deg: Array) -> str | None:
        """A sentence where an image was written with two tilt angles ``(n,)``: one of them is wrong, maybe the used."""
        pairs = [(first, copy) for copy, first in sorted(self.copies.items()) if tilt_deg[copy] != tilt_deg[first]]
        if not pairs:
            return None
        first, copy = pairs[0]
        more = f", and {len(pairs) - 1} pairs more" if len(pairs) > 1 else ""
        return (
            f"images {first} and {copy} are one image with two tilt angles, {tilt_deg[first]:g}° and "
            f"{tilt_deg[copy]:g}°{more}: see which of them is right and leave out the other with --exclude"
        )


def _listed(name: str, numbers: Iterable[int]) -> str:
    """``columns 40, 77``."""
    found = [int(n) for n in numbers]
    more = f" and {len(found) - LIST} more" if len(found) > LIST else ""
    return f"{name}{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:LIST]))}{more}"


def find_defects(series: TiltSeries) -> Defects:
    """What is wrong with the images of a series that are in use; reads each of them once."""
    scan = DetectorScan((series.size[1], series.size[0]))
    for index in series.included.tolist():
        scan.add(index, series.image(index))
    return scan.found(None if series.order is None else series.order.tolist())


class DetectorScan:
    """One pass over raw images ``(ny, nx)``: `add` each, then ask what was `found`."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.count = 0
        self.total = np.zeros(shape, dtype=np.float32)
        self.often = np.zeros(shape, dtype=np.uint16)
        self.first: F32 | None = None
        self.stuck = np.ones(shape, dtype=bool)
        self.signatures: dict[int, F32] = {}
        self.bordered: dict[int, float] = {}
        self.defects = Defects(np.zeros(shape, dtype=bool))
        # sampled at random: pixels of a grid all lie in the same columns
        pick = np.random.default_rng(0)
        self.sampled = pick.integers(0, shape[0], COPY_SAMPLES), pick.integers(0, max(1, shape[1] - 1), COPY_SAMPLES)

    def add(self, index: int, image: F32) -> None:
        """Take in the image with this stack index."""
        middle, spread = _middle_and_spread(image[::3, ::3])
        if spread <= 0:
            return  # blank, or hardly any counts: nothing stands out of that
        rows, columns = self.sampled
        difference = image[rows, (columns + 1) % self.shape[1]] - image[rows, columns]
        size = float(np.linalg.norm(difference))
        if size > 0:
            self.signatures[index] = (difference / size).astype(np.float32)
        if self.first is None:
            self.first = image.copy()
        else:
            self.stuck &= image == self.first
        scaled = np.clip((image - middle) / spread, -CLIP_SD, CLIP_SD)
        bad = self._single(index, image, scaled, middle, spread)
        # a few images must not make a defect of all; what is bad often is counted
        self.often += bad
        self.total += np.where(bad, 0, scaled)
        self.count += 1

    def _single(self, index: int, image: F32, scaled: F32, middle: float, spread: float) -> Mask:
        """Lines, saturated patches and regions of one value in a single image: pixels ``(ny, nx)``."""
        border = dead_borders(np.ptp(image, axis=1) == 0, np.ptp(image, axis=0) == 0)
        self.bordered[index] = float(border.mean())
        flat = (_saturated(image, middle, spread) | _constant(image)) & ~border
        scaled = np.where(flat, np.float32(0), fill_invalid(scaled, ~border))
        lines = np.zeros(self.shape, dtype=bool)
        for turned in (False, True):
            part = (scaled.T if turned else scaled).clip(-ONE_LINE_CLIP, ONE_LINE_CLIP)
            found = _lines(part, max(LINE_ROWS, -(-part.shape[0] // 4)), np.mean, LINE_OUT_SD, ONE_LINE_LEAST)
            lines |= found.T if turned else found
        if border.any():
            lines &= ~ndimage.binary_dilation(border, iterations=EDGE_PX)
        if flat.sum() < LEAST_SATURATED:
            flat[:] = False
        if lines.any() or flat.any():
            rows, columns = np.nonzero(lines | flat)
            self.defects.single[index] = rows, columns
        return lines | flat

    def found(self, order: list[int] | None = None) -> Defects:
        """The defects; ``order`` is the acquisition index of every image: of two copies the later one goes."""
        out = self.defects
        out.copies = self._copies(order)
        usual = float(np.median(list(self.bordered.values()))) if self.bordered else 0.0
        out.half_empty = {i: part for i, part in self.bordered.items() if part > usual + HALF_EMPTY}
        if self.count >= FEWEST:
            assert self.first is not None
            # whole rows and columns at the border are left out of every image as it is, see `prepare.dead_borders`
            border = dead_borders(*(np.asarray(self.stuck.all(axis=axis)) for axis in (1, 0)))
            mean = (self.total / np.maximum(self.count - self.often, 1)).astype(np.float32)
            often = self.often >= OFTEN * self.count
            out.fixed = (fixed_defects(fill_invalid(mean, ~(border | often))) | often) & ~border
            self.stuck &= ~border
            stuck = np.flatnonzero(self.stuck)
            # in images with few counts many pixels have the same value every time
            values = self.first.ravel()[stuck]
            for value in np.unique(values)[:LIST]:
                share = float(np.mean(self.first == value))
                if share**self.count * self.first.size > BY_CHANCE:
                    stuck = stuck[self.first.ravel()[stuck] != value]
            out.fixed.ravel()[stuck] = True
        # what is bad in every image need not be told of single ones
        for index, (rows, columns) in list(out.single.items()):
            new = ~ndimage.binary_dilation(out.fixed)[rows, columns] if out.fixed.any() else np.ones(len(rows), bool)
            if new.sum() < LEAST_SATURATED:
                del out.single[index]
            else:
                out.single[index] = rows[new], columns[new]
        return out

    def _copies(self, order: list[int] | None) -> dict[int, int]:
        indices = sorted(self.signatures, key=lambda i: i if order is None else order[i])
        if len(indices) < 2:
            return {}
        signatures = np.stack([self.signatures[i] for i in indices])
        alike = np.abs(signatures @ signatures.T) > COPY_CORRELATION
        copies: dict[int, int] = {}
        for later in range(1, len(indices)):
            earlier = [k for k in np.flatnonzero(alike[later, :later]) if indices[k] not in copies]
            if earlier:
                copies[indices[later]] = indices[earlier[0]]
        return copies


def fixed_defects(mean: F32) -> Mask:
    """Pixels, clusters, columns and rows that stand out of the mean of all images, in units of their spread."""
    mask = np.zeros(mean.shape, dtype=bool)
    for radius in RINGS_PX:
        if 2 * radius >= min(mean.shape):
            continue
        away = mean - _ring_median(mean, radius)
        limit = max(OUT_SD * _robust_sd(away), LEAST)
        times = np.maximum(_edge_times(mean.shape[0])[:, None], _edge_times(mean.shape[1]))
        mask |= _sharp(away, np.abs(away) > limit, (0, 1), np.abs(away) > limit * times, LEAST_TOGETHER)
    for turned in (False, True):
        part = mean.T if turned else mean
        found = _lines(part, LINE_ROWS, np.median, LINE_OUT_SD, LINE_LEAST)
        mask |= found.T if turned else found
    return mask if mask.mean() < MOST else np.zeros_like(mask)


def _middle_and_spread(values: Array) -> tuple[float, float]:
    """Median and robust sd; of the rest where half of the values or more are one and the same."""
    middle = float(np.median(values))
    spread = MAD_TO_SD * float(np.median(np.abs(values - middle)))
    rest = values[values != middle] if spread == 0 else values
    if spread == 0 and rest.size > MOST * values.size:
        middle = float(np.median(rest))
        spread = MAD_TO_SD * float(np.median(np.abs(rest - middle)))
    return middle, spread


def _robust_sd(values: Array) -> float:
    values = values[::3, ::3] if values.ndim == 2 and values.size > 10**5 else values
    return MAD_TO_SD * float(np.median(np.abs(values - np.median(values))))


def _edge_times(n: int) -> Array:
    """How many times farther a pixel at each of ``n`` places must stand out."""
    place = np.arange(n)
    return np.where(np.minimum(place, n - 1 - place) < EDGE_PX, EDGE_TIMES, 1.0)


def _ring_median(image: F32, radius: float) -> F32:
    """Median of samples of a circle around every pixel; mirrored at the border."""
    angle = 2 * np.pi * (np.arange(RING_SAMPLES) + 0.5) / RING_SAMPLES
    dy, dx = np.rint(radius * np.sin(angle)).astype(int), np.rint(radius * np.cos(angle)).astype(int)
    pad = int(radius) + 1
    padded = np.pad(image, pad, mode="reflect")
    out = np.empty_like(image)
    ny, nx = image.shape
    for row in range(0, ny, 128):
        rows = min(128, ny - row)
        around = np.stack([
            padded[pad + row + j : pad + row + j + rows, pad + i : pad + i + nx] for j, i in zip(dy, dx, strict=True)
        ])  # fmt: skip
        half = RING_SAMPLES // 2
        around.partition((half - 1, half), axis=0)
        out[row : row + rows] = (around[half - 1] + around[half]) / 2
    return out


def _lines(image: F32, length: int, average: Any, out_sd: float, least: float) -> Mask:
    """Columns ``(ny, nx)``, or pieces of them ``length`` px long, that stand out of those beside them."""
    ny, nx = image.shape
    pieces = max(1, ny // length)
    edges = np.linspace(0, ny, pieces + 1).astype(int)
    profile = np.stack([average(image[a:b], axis=0) for a, b in zip(edges, edges[1:], strict=False)])
    pad = min(BESIDE_PX[-1], nx - 1)
    padded = np.pad(profile, ((0, 0), (pad, pad)), mode="reflect")
    beside = [padded[:, pad + k : pad + k + nx] for d in BESIDE_PX if d <= pad for k in (-d, d)]
    away = profile - np.median(beside, axis=0) if beside else np.zeros_like(profile)
    limit = max(out_sd * _robust_sd(away), least)
    out = _sharp(away, np.abs(away) > limit, (1,), np.abs(away) > limit * _edge_times(nx))
    mask = np.zeros(image.shape, dtype=bool)
    for k, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        for column in np.flatnonzero(out[k]):
            # all along, that is, and not where a patch crosses
            along = np.median(image[a:b, column]) - (profile[k, column] - away[k, column])
            mask[a:b, column] = along * np.sign(away[k, column]) > 0.5 * abs(away[k, column])
    return mask


def _sharp(
    away: Array, candidates: Mask, axes: tuple[int, ...], seeds: Mask | None = None, together: float = 0.0
) -> Mask:
    """Those connected candidates whose edges, across ``axes``, are steps of a good part of their height.

    One of them at least is a seed, and their height times the root of their number is at least ``together``.
    """
    if not candidates.any():
        return candidates
    structure = np.ones((3, 3)) if len(axes) == 2 else np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]])
    labels, n = ndimage.label(candidates, structure)
    height = np.abs(away)
    steps, of = [], []
    for axis in axes:
        for here, there in (((slice(1, None)), slice(None, -1)), (slice(None, -1), slice(1, None))):
            one = tuple(here if a == axis else slice(None) for a in range(2))
            two = tuple(there if a == axis else slice(None) for a in range(2))
            edge = candidates[one] & ~candidates[two]
            # a step to the other side of the surroundings counts no more than one to their level
            outside = np.maximum(np.sign(away[one][edge]) * away[two][edge], 0)
            steps.append(height[one][edge] - outside)
            of.append(labels[one][edge])
    index = np.arange(1, n + 1)
    edge_of, step = np.concatenate(of), np.concatenate(steps)
    middle = np.asarray(ndimage.median(height, labels, index))
    typical = np.zeros(n)
    some = np.unique(edge_of)
    # a patch has edges enough for a median; a line has two, and a slope may look like one of them
    typical[some - 1] = (ndimage.median if len(axes) == 2 else ndimage.minimum)(step, edge_of, some)
    size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    good = np.concatenate([[False], (typical >= SHARP * middle) & (middle * np.sqrt(size) >= together)])
    if seeds is not None:
        good &= np.bincount(labels[seeds], minlength=n + 1) > 0
    return np.asarray(good[labels])


def _saturated(image: F32, middle: float, spread: float) -> Mask:
    """Patches at the highest value of an image that end as abruptly as no bead does."""
    top = float(image.max())
    mask = image == top
    if top < middle + SATURATED_SD * spread or mask.sum() < LEAST_SATURATED:
        return np.zeros(image.shape, dtype=bool)
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    large = sizes >= LEAST_SATURATED
    large[0] = False
    mask = large[labels]
    return _sharp(image - np.float32(middle), mask, (0, 1)) if mask.any() else mask


def _constant(image: F32) -> Mask:
    """Large regions of one and the same value."""
    equal = np.zeros(image.shape, dtype=bool)
    equal[1:-1, 1:-1] = True
    for axis in (0, 1):
        same = np.diff(image, axis=axis) == 0
        if not same.any():
            return np.zeros(image.shape, dtype=bool)
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(1, None), slice(None, -1)
        equal[tuple(first)] &= same
        equal[tuple(last)] &= same
    inner = ndimage.binary_erosion(equal)
    if inner.sum() < CONSTANT_PX / 4:
        return np.zeros(image.shape, dtype=bool)
    labels, _ = ndimage.label(inner)
    sizes = np.bincount(labels.ravel())
    large = sizes >= CONSTANT_PX / 2
    large[0] = False
    mask = ndimage.binary_dilation(large[labels], np.ones((3, 3)), iterations=2)
    # in images with few counts neighbours are equal everywhere
    return np.asarray(mask) if np.mean(equal[~mask]) < EQUAL_BY_CHANCE else np.zeros(image.shape, dtype=bool)
