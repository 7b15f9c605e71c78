"""Two lists of tilt angles of the same images: are they in one order, and if not, which entry is which image?

Refined angles differ from recorded ones by an offset common to all, by a scale near 1, sometimes by their sign, and by
a few degrees each. So these are taken off first, robustly; what is left over tells one order from another. That the
entries are in the order of the images is believed unless another order fits far better: a reordering that is wrong is
worse than angles that wander.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SCALES = (0.85, 1.15)
"""Of refined to recorded angles; beyond it is another order, or another series."""
SURE_DEG = 1.5
"""Angles this close to the recorded ones are theirs, whatever other order would fit."""
PLAUSIBLE_DEG = 8.0
"""What one refined angle may be off where no other order is better."""
SAME_TILT_DEG = 0.5
"""Images closer in tilt cannot be told apart by it; recorded angles this close are the same one."""
FAR_BETTER = 4.0
"""Another order is believed when its largest difference is smaller by this factor."""
WITHIN = 0.6
"""Of the step between images: what an angle may be off that names its image."""
ODD_ONES = 0.15
"""Share of entries whose angles may be off by any amount."""
LARGE_OFFSET_DEG = 15.0
MOST_FOR_SCALE = 500
SHOWN = 4


@dataclass(frozen=True)
class Comparison:
    """``angles = sign scale recorded + offset + rest``, one ``rest`` (degrees) an entry."""

    sign: int
    scale: float
    offset_deg: float
    rest: Array

    @property
    def worst(self) -> float:
        return float(np.abs(self.rest).max(initial=0.0))

    @property
    def odd_ones(self) -> Ints:
        """Entries whose angles are too far off to be refined ones."""
        return np.flatnonzero(np.abs(self.rest) > PLAUSIBLE_DEG)

    @property
    def is_plausible(self) -> bool:
        """Whether the angles may be refined ones of these recorded ones, in this order."""
        return len(self.odd_ones) <= ODD_ONES * len(self.rest) and np.median(np.abs(self.rest)) < PLAUSIBLE_DEG / 2

    def of(self, recorded: Array) -> Array:
        """The angles to expect for recorded ones."""
        return np.asarray(self.sign * self.scale * recorded + self.offset_deg)


@dataclass(frozen=True)
class Order:
    """Which image each entry belongs to.

    Attributes:
        at: image of every entry, or None where angles do not say.
        comparison: of the entries used with their images (those at the same place where ``at`` is None).
        why_not: where ``at`` is None.
    """

    at: Ints | None
    comparison: Comparison | None = None
    why_not: str = ""

    @property
    def is_same(self) -> bool:
        return self.at is not None and bool((self.at == np.arange(len(self.at))).all())


def compare(angles: Array, recorded: Array, signs: tuple[int, ...] = (1, -1)) -> Comparison:
    """Angles held against the recorded ones at the same places, both ``(n,)`` degrees."""
    found = [_compare(np.asarray(angles, np.float64), np.asarray(recorded, np.float64), sign) for sign in signs]
    # the same sign unless the other fits far better: half of a series lies on either side of 0
    best = found[0]
    for other in found[1:]:
        if FAR_BETTER * _typical(other) + SAME_TILT_DEG < _typical(best):
            best = other
    return best


def _typical(comparison: Comparison) -> float:
    return float(np.quantile(np.abs(comparison.rest), 0.75))


def _compare(angles: Array, recorded: Array, sign: int) -> Comparison:
    x = sign * recorded
    some = slice(None, None, 1 + len(x) // MOST_FOR_SCALE)
    step = x[some][None] - x[some][:, None]
    far = step > 0.25 * np.ptp(x) if np.ptp(x) > 0 else np.zeros_like(step, dtype=bool)
    slopes = (angles[some][None] - angles[some][:, None])[far] / step[far]
    scale = float(np.clip(np.median(slopes), *SCALES)) if len(slopes) else 1.0
    offset = float(np.median(angles - scale * x))
    return Comparison(sign, scale, offset, angles - scale * x - offset)


def order_of(
    angles: Array,
    recorded: Array,
    turns: tuple[Array, Array] | None = None,
    same_zero: bool = False,
    used: Ints | None = None,
) -> Order:
    """Which of ``len(recorded)`` images each of at most as many entries belongs to.

    Args:
        angles: of the entries ``(k,)``, recorded or refined.
        recorded: of the images ``(n,)``.
        turns: exposures or turns of the entries ``(k,)`` and of the images ``(n,)``, where both are known: they tell
            apart images of one angle.
        same_zero: both lists were recorded: then no offset is taken off where some images have no entry, and angles
            that fit in the opposite order are in the opposite order rather than of the other sign.
        used: entries whose angles can be believed, by default all: those of others may be made up.
    """
    angles, recorded = np.asarray(angles, np.float64), np.asarray(recorded, np.float64)
    if len(angles) > len(recorded):
        return Order(None, None, f"{len(angles)} entries are more than {len(recorded)} images")
    if len(angles) == len(recorded):
        return _order_of_all(angles, recorded, turns, same_zero, np.arange(len(angles)) if used is None else used)
    return _order_of_some(angles, recorded, turns, same_zero)


def _order_of_all(
    angles: Array, recorded: Array, turns: tuple[Array, Array] | None, same_zero: bool, used: Ints
) -> Order:
    here, believed = np.arange(len(angles)), angles[used]
    same = compare(believed, recorded[used], (1,) if same_zero else (1, -1))
    if same.worst <= SURE_DEG:
        return Order(here, same)
    at, told_apart = _by_rank(angles, recorded, turns)
    other = compare(believed, recorded[at][used], (1,))
    if other.worst * FAR_BETTER < same.worst and other.worst < max(0.6 * SAME_TILT_DEG, WITHIN * _spacing(recorded)):
        if not told_apart:
            return Order(None, same, "two images have one angle, and nothing else tells their entries apart")
        mirrored = compare(believed, recorded[_by_rank(-angles, recorded, turns)[0]][used], (-1,))
        turned = not same_zero and mirrored.worst < 2 * other.worst + SAME_TILT_DEG
        if turned and abs(other.offset_deg) > LARGE_OFFSET_DEG and abs(mirrored.offset_deg) < abs(other.offset_deg) / 2:
            return Order(None, same, "they fit in another order and with the other sign in yet another")
        return Order(at, other)
    same = compare(believed, recorded[used])
    if same.is_plausible:
        return Order(here, same)
    return Order(None, same, "they do not fit in any one order")


def _by_rank(angles: Array, recorded: Array, turns: tuple[Array, Array] | None) -> tuple[Ints, bool]:
    """The image of the same rank in tilt for every entry, and whether images of one angle are told apart."""
    images = np.argsort(recorded, kind="stable")
    entries = np.argsort(angles, kind="stable")
    told_apart = True
    first = 0
    for last in range(1, len(images) + 1):
        if last < len(images) and recorded[images[last]] - recorded[images[last - 1]] < SAME_TILT_DEG:
            continue
        if last - first > 1:
            told_apart &= turns is not None
            if turns is not None:
                group, them = images[first:last], entries[first:last]
                images[first:last] = group[np.argsort(turns[1][group], kind="stable")]
                entries[first:last] = them[np.argsort(turns[0][them], kind="stable")]
        first = last
    at = np.empty(len(angles), dtype=np.int64)
    at[entries] = images
    return at, told_apart


def _order_of_some(angles: Array, recorded: Array, turns: tuple[Array, Array] | None, same_zero: bool) -> Order:
    """Fewer entries than images: the offset has to be found too, and may be whole steps off."""
    within = SAME_TILT_DEG if same_zero else max(SAME_TILT_DEG, min(0.45 * _spacing(recorded), 2.0))
    offsets = [0.0] if same_zero else [0.0, *(np.sort(angles)[0] - recorded)]
    found: dict[tuple[int, ...], Comparison] = {}
    for offset in offsets:
        for _ in range(2):  # once more from the middle of what was found
            at = np.abs(angles[:, None] - offset - recorded[None]).argmin(axis=1)
            offset = 0.0 if same_zero else float(np.median(angles - recorded[at]))
        rest = angles - offset - recorded[at]
        if len(set(at.tolist())) < len(at) and turns is None:
            continue
        if np.abs(rest).max() < within:
            found.setdefault(tuple(at.tolist()), Comparison(1, 1.0, offset, rest))
    near = {at: one for at, one in found.items() if abs(one.offset_deg) < SAME_TILT_DEG}
    if len(near) == 1:
        found = near
    if len(found) != 1:
        why = "the images they fit cannot be told" if found else "they fit no images"
        return Order(None, None, f"{len(angles)} entries are fewer than {len(recorded)} images and {why}")
    ((places, comparison),) = found.items()
    told = _told_apart(np.array(places), angles - comparison.offset_deg, recorded, turns)
    if told is None:
        return Order(None, None, "two images have one angle, and nothing else tells their entries apart")
    return Order(told, comparison)


def _told_apart(at: Ints, angles: Array, recorded: Array, turns: tuple[Array, Array] | None) -> Ints | None:
    """Entries of angles that several images have, given to the image of the nearest turn; None where unclear."""
    at = at.copy()
    for entry, image in enumerate(at):
        alike = np.flatnonzero(np.abs(recorded - recorded[image]) < SAME_TILT_DEG)
        if len(alike) < 2:
            continue
        if turns is None:
            return None
        at[entry] = alike[np.abs(turns[1][alike] - turns[0][entry]).argmin()]
    return at if len(set(at.tolist())) == len(at) else None


def _spacing(recorded: Array) -> float:
    """Usual step between images next to each other in tilt."""
    steps = np.diff(np.sort(recorded))
    steps = steps[steps >= SAME_TILT_DEG]
    return float(np.median(steps)) if len(steps) else 0.0


def in_another_order(angles: Array, recorded: Array) -> bool:
    """Whether two lists of recorded angles are the same ones, but not in one order."""
    if len(angles) != len(recorded):
        return False
    same = np.abs(np.sort(angles) - np.sort(recorded)).max(initial=0.0) < SAME_TILT_DEG
    return bool(same and np.abs(angles - recorded).max(initial=0.0) > SURE_DEG)


def shown(angles: Array) -> str:
    """The first of some angles, to name an order by."""
    angles = np.asarray(angles)
    return ", ".join(f"{angle:.4g}" for angle in angles[:SHOWN] + 0.0) + (", ..." if len(angles) > SHOWN else "")
