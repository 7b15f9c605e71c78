"""Preparation, coarse correlation, tracks and bundle adjustment in a row: what ``--fast`` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.coarse import CorrelationWork, coarse_alignment, find_axis, working_images
from inrtomo.align.prepare import PREPARE_DEFAULTS, Prepared, PrepareSettings, prepare
from inrtomo.align.start_check import StartCheck, check_axis, check_start, small_images
from inrtomo.align.tracks import TRACK_DEFAULTS, TrackResult, TrackSettings, refined_axis, track_and_bundle
from inrtomo.align.windows import TrackWork
from inrtomo.alignment import Alignment

if TYPE_CHECKING:
    from inrtomo.tiltseries import TiltSeries

Array = NDArray[np.float64]
Progress = Callable[[str, float], None]

AXIS_ROUNDS, AXIS_SETTLED_DEG = 5, 0.5


class Work(CorrelationWork, TrackWork):
    """What takes time in all of these stages, on the CPU."""


ON_CPU = Work()


def work_on(device: str, memory_bytes: float) -> Work:
    """The work of these stages on ``"cpu"`` or a GPU as torch calls it, there within about ``memory_bytes``."""
    if device == "cpu":
        return ON_CPU
    from inrtomo.gpu.early import DeviceWork

    return DeviceWork(device, memory_bytes)


@dataclass(frozen=True)
class FastReport:
    """What the fast alignment found on its way.

    Attributes:
        prepared: the images as the alignment saw them (also what the joint fit starts from).
        coarse: alignment by correlation alone (or the user's start).
        tracks: bundle adjustment, with residuals.
        checked: what the images say of the tilt angles and of the axis that the alignment began with.
        axis_ambiguous: the axis came from the data alone, so the specimen may be mirrored (axis off by 180 degrees).
        seconds: wall time per step.
        notes: what was decided, to be printed.
    """

    prepared: Prepared
    coarse: Alignment
    tracks: TrackResult
    checked: StartCheck
    axis_ambiguous: bool
    seconds: dict[str, float]
    notes: list[str]


def fast_alignment(
    series: TiltSeries,
    axis_deg: float | None = None,
    start: Alignment | None = None,
    prepare_settings: PrepareSettings = PREPARE_DEFAULTS,
    track_settings: TrackSettings = TRACK_DEFAULTS,
    progress: Progress | None = None,
) -> tuple[Alignment, FastReport]:
    """Align a series without a density.

    Args:
        series: the tilt series.
        axis_deg: tilt axis in IMOD's sense; None searches for it.
        start: an alignment to start from instead of correlating.
    """
    images = series.read()
    return fast_alignment_of(
        images,
        series.tilt_deg,
        axis_deg,
        series.pixel_size_A,
        start,
        prepare_settings,
        track_settings,
        dict(series.excluded),
        progress,
    )


def fast_alignment_of(
    images: NDArray[np.float32],
    tilt_deg: Array,
    axis_deg: float | None = None,
    pixel_size_A: float | None = None,
    start: Alignment | None = None,
    prepare_settings: PrepareSettings = PREPARE_DEFAULTS,
    track_settings: TrackSettings = TRACK_DEFAULTS,
    excluded: dict[int, str] | None = None,
    progress: Progress | None = None,
    hide: Callable[[Prepared], Prepared] | None = None,
    work: Work = ON_CPU,
    axis_is_recorded: bool = False,
    unseen: NDArray[np.bool_] | None = None,
) -> tuple[Alignment, FastReport]:
    """`fast_alignment` for images ``(n, ny, nx)`` in memory.

    ``hide`` takes out of the prepared images what the tracks must not see: pixels held out for a later judgement. An
    ``axis_deg`` that does not fit the images is replaced by the one that does if it is only recorded; one that a user
    gave is kept, and a note says so. ``unseen`` are pixels without weight ``(n, ny, nx)``.
    """
    tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
    clock = [time.perf_counter()]
    prepared = prepare(images, tilt_deg, pixel_size_A, prepare_settings, excluded, progress, work, unseen)
    clock.append(time.perf_counter())
    working = working_images(prepared, work)
    axis, checked, replaced = (
        axis_deg,
        check_start(working[0], tilt_deg, prepared.included, axis_asked_of(axis_deg, start)),
        False,
    )
    notes = start_notes(checked, axis_is_recorded and start is None)
    if start is None:
        if axis is None:
            axis = _searched_axis(working[0], tilt_deg, prepared.included, work)
        elif axis_is_recorded and checked.axis is not None and not checked.axis.fits:
            axis, replaced = checked.axis.best_deg, True
        coarse = coarse_alignment(prepared, tilt_deg, axis, pixel_size_A, progress, work, working)
        if axis_deg is None or replaced:
            coarse = _with_refined_axis(prepared, coarse, work)
    else:
        coarse = start
    clock.append(time.perf_counter())
    tracks = track_and_bundle(hide(prepared) if hide else prepared, coarse, track_settings, progress, work)
    clock.append(time.perf_counter())
    seconds = dict(zip(("prepare", "coarse", "tracks"), np.diff(clock).tolist(), strict=True))
    ambiguous = start is None and axis_deg is None
    if replaced:
        assert checked.axis is not None
        ambiguous = not checked.axis.direction_is_known
    notes = prepared.notes + notes + tracks.notes
    if ambiguous:
        notes.append(
            f"tilt axis found from the images: {tracks.axis_deg:.1f} deg; {tracks.axis_deg + 180:.1f} deg fits them "
            "equally well and gives the mirrored specimen: give --tilt-axis if the hand matters"
        )
    report = FastReport(prepared, coarse, tracks, checked, ambiguous, seconds, notes)
    return tracks.alignment, report


def axis_asked_of(axis_deg: float | None, start: Alignment | None) -> float | None:
    """The tilt axis (degrees) that an alignment begins with: that of a start comes first; None is to be found."""
    return axis_deg if start is None else float(np.median(start.rotation_deg[start.included]))


def start_notes(checked: StartCheck, axis_is_recorded: bool) -> list[str]:
    """Sentences on what does not fit the images, and what is done about it."""
    notes = [] if checked.wrong_order is None else [checked.wrong_order]
    axis = checked.axis
    if axis is not None and not axis.fits:
        fits = f"tilt axis {axis.axis_deg:.1f}° does not fit the images: {axis.best_deg:.1f}° fits better"
        if axis_is_recorded:
            notes.append(f"{fits} and is taken, as the other is only recorded; give --tilt-axis to decide")
        else:
            notes.append(f"{fits}; correct it or use --tilt-axis auto")
    return notes


def _searched_axis(working: NDArray[np.float32], tilt_deg: Array, included: NDArray[np.int64], work: Work) -> float:
    """The tilt axis in (-90, 90] by common lines, or by correlation where that fits the images much better."""
    axis = find_axis(working[included], tilt_deg[included], work)
    checked = check_axis(small_images(working), tilt_deg, included, axis)
    return axis if checked.fits else (checked.best_deg + 90.0) % 180.0 - 90.0


def _with_refined_axis(prepared: Prepared, coarse: Alignment, work: Work) -> Alignment:
    """Common lines leave the axis some degrees off: refine it with tracks, correlate again, until it stays."""
    for _ in range(AXIS_ROUNDS):
        before = float(np.median(coarse.rotation_deg))
        axis = refined_axis(prepared, coarse, work=work)
        coarse = coarse_alignment(prepared, coarse.tilt_deg, axis, coarse.pixel_size_A, work=work)
        if abs((axis - before + 180) % 360 - 180) < AXIS_SETTLED_DEG:
            break
    return coarse
