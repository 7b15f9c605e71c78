"""Do tilt axis and tilt angles fit the images? Told from small images before anything is aligned, in about a second.

Axis: images are correlated outwards from the lowest tilt, as `coarse` does it, with their stretch along several axes.
The mean height of the peaks is a smooth function of the axis with a period of 180 degrees; the phase of its first
harmonic is the axis that fits best, to about 3 degrees. Which way that axis points no images tell.

Order: every image is most like those next to it in angle. The most similar image is chosen by one half of the pixels
and held against the neighbours in angle by the other half, so that noise alone cannot make it win. Angles of the
opposite sign keep neighbours together and give the mirrored specimen: no images tell that either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.align.coarse import correlate_outwards, parabola_top
from inrtomo.align.prepare import fourier_crop
from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation, point_the_other_way

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

SIZE_PX = 80  # of the images compared, about
AXES_DEG = np.arange(0.0, 180.0, 30.0)
NEAR_DEG = 20.0
MOST_TILTS = 41  # that the axis is sought with
AXIS_OFF_DEG = 9.0  # tracks find the axis from as far off; further they stay near where they began
AXIS_FOUND_DEG = 5.0  # beyond what the axis that fits best is known to
AXIS_SIGNIFICANT, ORDER_SIGNIFICANT = 4.0, 3.0  # standard errors; the best of many axes gains 3 by chance
LEAST_IMAGES = 8  # of which something can be said
ORDER_GAIN = 1.1  # by so much the most similar images must be more alike than neighbours in angle
MOST_INCLINED_DEG = 30.0  # of the normal of a flat specimen to the beam at zero tilt
LEAST_OVERLAP = 0.5  # of the view of an image, with the next one in angle


@dataclass(frozen=True)
class AxisCheck:
    """What the images say of a tilt axis.

    Attributes:
        axis_deg: what was asked about; best_deg: what fits best, on the side of ``axis_deg`` (IMOD's sense, degrees).
        standard_errors: by which the images agree better along ``best_deg``.
    """

    axis_deg: float
    best_deg: float
    standard_errors: float

    @property
    def off_deg(self) -> float:
        """From one to the other, without regard to which way they point."""
        return abs(between_axes(self.axis_deg, self.best_deg))

    @property
    def fits(self) -> bool:
        return self.off_deg <= AXIS_OFF_DEG or self.standard_errors < AXIS_SIGNIFICANT

    @property
    def direction_is_known(self) -> bool:
        """Whether ``axis_deg`` says which way ``best_deg`` points."""
        return self.off_deg < 45.0


def between_axes(one_deg: float, other_deg: float) -> float:
    """Angle between two axes in [-90, 90), degrees; an axis turned by 180 degrees is the same."""
    return (other_deg - one_deg + 90.0) % 180.0 - 90.0


@dataclass(frozen=True)
class StartCheck:
    """What the images say of where an alignment is to start from.

    Attributes:
        axis: of the tilt axis, or None where there was none to ask about.
        wrong_order: a sentence when the angles cannot be those of the images, or None.
    """

    axis: AxisCheck | None
    wrong_order: str | None


def check_start(working: F32, tilt_deg: Array, included: Ints, axis_deg: float | None) -> StartCheck:
    """Hold tilt angles and axis against the images.

    Args:
        working: band-passed images ``(n, ny, nx)`` (`coarse.working_images`).
        tilt_deg: ``(n,)``.
        included: stack indices of the images that are used.
        axis_deg: in IMOD's sense; None leaves it out, as do angles in a wrong order.
    """
    images = small_images(working)
    wrong_order = order_doubt(images, tilt_deg, included)
    axis = None if axis_deg is None or wrong_order else check_axis(images, tilt_deg, included, axis_deg)
    return StartCheck(axis, wrong_order)


def small_images(working: F32) -> F32:
    """Images ``(n, ny, nx)`` binned until their smaller side is about `SIZE_PX`."""
    factor = max(1, round(min(working.shape[1:]) / SIZE_PX))
    return working if factor == 1 else np.stack([fourier_crop(image, factor) for image in working])


def check_axis(images: F32, tilt_deg: Array, included: Ints, axis_deg: float) -> AxisCheck:
    """Hold a tilt axis (degrees, IMOD's sense) against `small_images` ``(n, ny, nx)`` of a series.

    ``included`` are the stack indices of those that are used.
    """
    if len(included) < LEAST_IMAGES:
        return AxisCheck(axis_deg, axis_deg, 0.0)
    step = -(-len(included) // MOST_TILTS)
    used = np.asarray(sorted(included, key=lambda i: tilt_deg[i])[::step], dtype=np.int64)

    def peaks(axis: float) -> Array:
        found = correlate_outwards(images, tilt_deg, used, axis)[1]
        return np.delete(found[used], np.argmin(np.abs(tilt_deg[used])))  # the lowest tilt is compared with nothing

    means = np.array([peaks(axis).mean() for axis in AXES_DEG])
    best = float(np.rad2deg(np.angle(np.sum(means * np.exp(2j * np.deg2rad(AXES_DEG))))) / 2)
    off = between_axes(axis_deg, best)
    best = float((axis_deg + off + 180.0) % 360.0 - 180.0)
    if abs(off) <= AXIS_OFF_DEG:
        return AxisCheck(axis_deg, best, 0.0)
    # tilts to one side only, or few of them, take the harmonic some degrees from the top: look there
    near = [float(peaks(best + step).mean()) for step in (-NEAR_DEG, 0.0, NEAR_DEG)]
    best += 2 * NEAR_DEG * parabola_top(*near)
    off = between_axes(axis_deg, best)
    if abs(off) <= AXIS_OFF_DEG:
        return AxisCheck(axis_deg, axis_deg + off, 0.0)
    gain = peaks(best) - peaks(axis_deg)
    return AxisCheck(axis_deg, best, float(gain.mean() / max(float(gain.std()), 1e-9) * np.sqrt(len(gain))))


def order_doubt(images: F32, tilt_deg: Array, included: Ints) -> str | None:
    """A sentence when it is not the images next to each other in angle that look alike, else None."""
    used = np.asarray(sorted(included, key=lambda i: tilt_deg[i]), dtype=np.int64)
    n, half = len(used), images.shape[1] // 2
    if n < LEAST_IMAGES:
        return None
    halves = [_likeness(images[used][:, rows]) for rows in (slice(0, half), slice(half, 2 * half))]
    rank, tilt = np.arange(n), tilt_deg[used]
    near = np.abs(rank[:, None] - rank) <= 1
    alike, expected, usual, away = _alike(halves, near, np.eye(n, dtype=bool))
    gain = alike - expected
    if gain.mean() <= ORDER_SIGNIFICANT * gain.std() / np.sqrt(len(gain)) or not _much_more(alike, expected, usual):
        return None
    # a flat specimen looks alike from both sides of its normal, which is tilted in a lamella, whatever the
    # order: it has to hold without such pairs too, wherever the normal is
    step, itself = float(np.median(np.diff(tilt))), np.eye(n, dtype=bool)
    sums = tilt[:, None] + tilt
    for total in np.arange(-2 * MOST_INCLINED_DEG, 2 * MOST_INCLINED_DEG + step / 2, max(step / 2, 0.5)):
        mirrored = ~near & (np.abs(sums - total) < 0.49 * step)
        if not _much_more(*_alike(halves, near, itself | mirrored)[:3]):
            return None
    return (
        f"the tilt angles do not fit the order of the images: {away} of {n} images are more like others "
        "than like those next to them in angle; give the angles in the order of the stack with --tilt-angles"
    )


def _alike(halves: Sequence[Array], near: Bools, left_out: Bools) -> tuple[Array, Array, float, int]:
    """How alike every image is to the one most like it, and to the more alike of those next to it in angle.

    Args:
        halves: likeness of any two images by two halves of their pixels, ``(n, n)``: one chooses, the other judges.
        near: which are next to each other in angle; left_out: which are not to be chosen.

    Returns:
        both, ``(2 n,)``; what is usual of images apart; the number of images most like one that is not next to them.
    """
    rank, away = np.arange(len(near)), np.zeros(len(near), dtype=bool)
    alike, expected, usual = [], [], []
    for choosing, judging in (halves, halves[::-1]):
        choice = np.where(left_out, -np.inf, choosing)
        most_alike, next_in_angle = choice.argmax(axis=1), np.where(near, choice, -np.inf).argmax(axis=1)
        alike.append(judging[rank, most_alike])
        expected.append(judging[rank, next_in_angle])
        usual.append(np.median(judging[~near]))
        away |= ~near[rank, most_alike] & (alike[-1] > expected[-1])
    return np.concatenate(alike), np.concatenate(expected), float(np.mean(usual)), int(away.sum())


def _much_more(alike: Array, expected: Array, usual: float) -> bool:
    return bool(alike.mean() - usual >= ORDER_GAIN * (expected.mean() - usual))


def _likeness(images: F32) -> Array:
    """Height of the correlation peak of any two images, in sd of its map ``(n, n)``."""
    n, ny, nx = images.shape
    window = np.hanning(ny + 2)[1:-1, None] * np.hanning(nx + 2)[1:-1][None]
    spectra: NDArray[Any] = scipy.fft.rfft2((images - images.mean(axis=(1, 2), keepdims=True)) * window)
    out = np.zeros((n, n))
    for i in range(n):
        cross = spectra[i] * np.conj(spectra[i:])
        size = np.abs(cross)
        cross = cross / np.sqrt(size + 1e-6 * size.max(axis=(1, 2), keepdims=True) + 1e-30)
        surface = scipy.fft.irfft2(cross, s=(ny, nx))
        out[i, i:] = surface.max(axis=(1, 2)) / np.maximum(surface.std(axis=(1, 2)), 1e-30)
        out[i:, i] = out[i, i:]
    return out


def wrong_start(checked: StartCheck, result: Alignment) -> list[str]:
    """Sentences on what cannot be right of an alignment: the order of its tilt angles, its tilt axis."""
    out = [] if checked.wrong_order is None else [checked.wrong_order]
    if checked.axis is not None and not checked.axis.fits:
        axis = float(np.median(result.rotation_deg[result.included]))
        if abs(between_axes(axis, checked.axis.best_deg)) > AXIS_OFF_DEG:
            best = checked.axis.best_deg
            out.append(
                f"the tilt axis, {axis:.1f}°, does not fit the images: {best:.1f}° fits better; use --tilt-axis auto"
            )
    return out


def axis_doubt(checked: StartCheck, result: Alignment) -> str | None:
    """A sentence when an axis that does not fit the images was refined towards the one that does, and not to it."""
    if checked.axis is None or checked.axis.fits:
        return None
    axis, best = float(np.median(result.rotation_deg[result.included])), checked.axis.best_deg
    if not AXIS_FOUND_DEG < abs(between_axes(axis, best)) <= AXIS_OFF_DEG:
        return None
    return (
        f"the tilt axis, {checked.axis.axis_deg:.1f}°, does not fit the images and was refined to {axis:.1f}° only: "
        f"{best:.1f}° fits better; use --tilt-axis auto"
    )


def hand_doubt(recorded_axis_deg: float | None, source: str, result: Alignment) -> str | None:
    """A sentence when the axis of a result points the other way than the one recorded in ``source``, else None."""
    axis = float(np.median(result.rotation_deg[result.included]))
    if recorded_axis_deg is None or not point_the_other_way(axis, recorded_axis_deg):
        return None
    return (
        f"the tilt axis, {axis:.1f}°, points the other way than the {recorded_axis_deg:.1f}° of {source}, so the "
        "specimen has the other hand; see which of them is right and give it with --tilt-axis"
    )


def overlap_doubt(alignment: Alignment) -> str | None:
    """A sentence when images next to each other in angle show too little of the same specimen, else None."""
    order = alignment.included[np.argsort(alignment.tilt_deg[alignment.included], kind="stable")]
    nx, ny = alignment.image_size
    apart = np.diff(alignment.shift_px[order], axis=0)
    turn = np.linalg.inv(axis_rotation(float(np.median(alignment.rotation_deg[order]))))
    raw = np.abs(apart @ turn.T)
    shared = np.clip(1 - raw[:, 0] / nx, 0, 1) * np.clip(1 - raw[:, 1] / ny, 0, 1)
    little: Sequence[int] = np.flatnonzero(shared < LEAST_OVERLAP).tolist()
    if not little:
        return None
    worst = min(little, key=lambda k: float(shared[k]))
    more = f", and {len(little) - 1} pairs more" if len(little) > 1 else ""
    return (
        f"images {int(order[worst])} and {int(order[worst + 1])} show only {shared[worst]:.0%} of the same view{more}: "
        "the specimen drifted too far to be followed with confidence; leave out one side with --exclude"
    )
