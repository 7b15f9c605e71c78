"""Preparation, coarse correlation, tracks and bundle adjustment in a row: what ``--fast`` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.coarse import CorrelationWork, coarse_alignment
from inrtomo.align.prepare import PREPARE_DEFAULTS, Prepared, PrepareSettings, prepare
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
        axis_ambiguous: the axis came from the data alone, so the specimen may be mirrored (axis off by 180 degrees).
        seconds: wall time per step.
        notes: what was decided, to be printed.
    """

    prepared: Prepared
    coarse: Alignment
    tracks: TrackResult
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
) -> tuple[Alignment, FastReport]:
    """`fast_alignment` for images ``(n, ny, nx)`` in memory.

    ``hide`` takes out of the prepared images what the tracks must not see: pixels held out for a later judgement.
    """
    tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
    clock = [time.perf_counter()]
    prepared = prepare(images, tilt_deg, pixel_size_A, prepare_settings, excluded, progress, work)
    clock.append(time.perf_counter())
    if start is None:
        coarse = coarse_alignment(prepared, tilt_deg, axis_deg, pixel_size_A, progress, work)
        if axis_deg is None:
            coarse = _with_refined_axis(prepared, coarse, work)
    else:
        coarse = start
    clock.append(time.perf_counter())
    tracks = track_and_bundle(hide(prepared) if hide else prepared, coarse, track_settings, progress, work)
    clock.append(time.perf_counter())
    seconds = dict(zip(("prepare", "coarse", "tracks"), np.diff(clock).tolist(), strict=True))
    ambiguous = start is None and axis_deg is None
    notes = prepared.notes + tracks.notes
    if ambiguous:
        notes.append(
            f"tilt axis found from the images: {tracks.axis_deg:.1f} deg; {tracks.axis_deg + 180:.1f} deg fits them "
            "equally well and gives the mirrored specimen: give --tilt-axis if the hand matters"
        )
    report = FastReport(prepared, coarse, tracks, ambiguous, seconds, notes)
    return tracks.alignment, report


def _with_refined_axis(prepared: Prepared, coarse: Alignment, work: Work) -> Alignment:
    """Common lines leave the axis some degrees off: refine it with tracks, correlate again, until it stays."""
    for _ in range(AXIS_ROUNDS):
        before = float(np.median(coarse.rotation_deg))
        axis = refined_axis(prepared, coarse, work=work)
        coarse = coarse_alignment(prepared, coarse.tilt_deg, axis, coarse.pixel_size_A, work=work)
        if abs((axis - before + 180) % 360 - 180) < AXIS_SETTLED_DEG:
            break
    return coarse
