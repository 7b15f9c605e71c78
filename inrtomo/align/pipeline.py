"""From raw images to an alignment: prepare, start, joint fit, guard, level.

Everything works on *working images*: the raw ones, Fourier-binned until their longer side is at most
`AlignSettings.working_size`. Lengths inside are working px; the result is in raw px.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.checkpoint import Checkpoint, Fingerprint, Interrupts, Stopped
from inrtomo.align.coarse import working_images as correlated_images
from inrtomo.align.detector import Defects, DetectorScan
from inrtomo.align.error_bars import half_data_masks, half_settings, jittered, sigma_of_shifts
from inrtomo.align.fast import Work, axis_asked_of, fast_alignment_of, start_notes, work_on
from inrtomo.align.guard import Verdict, choose, held_out_blocks
from inrtomo.align.joint import (
    HELD_BLOCK_PX,
    JointFit,
    JointResult,
    JointSettings,
    Scale,
    blocks_to_hold_out,
)
from inrtomo.align.level import Level, centred_on_views, find_level, levelled, translated
from inrtomo.align.motion import aligned_half_size
from inrtomo.align.prepare import Prepared, PrepareSettings, prepare
from inrtomo.align.settings import AlignSettings
from inrtomo.align.start_check import (
    AxisCheck,
    StartCheck,
    axis_doubt,
    check_start,
    hand_doubt,
    overlap_doubt,
    wrong_start,
)
from inrtomo.align.tracks import TrackSettings
from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.fields import DensityField
from inrtomo.geometry import axis_angle, axis_rotation, rotation_about_x, rotation_about_y
from inrtomo.io.alignment_json import alignment_from_dict, alignment_to_dict
from inrtomo.io.belonging.alignment import scaled
from inrtomo.io.mrc import open_stack
from inrtomo.metrics.alignment import folded_over_specimen
from inrtomo.projection import Lattice

if TYPE_CHECKING:
    from inrtomo.tiltseries import TiltSeries

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

SURVEY_STEPS = 40
SURVEY_SIZE = 40  # px of the binned images of the survey
SURVEY_SLAB = 2.0  # slab of the survey, in thicknesses found by the tracks
LEAST_SLAB_OF_SIZE = 0.15  # no specimen is assumed thinner than this, of the smaller image side
SLAB_MARGIN = 1.15  # slab of the joint fit, in thicknesses of the specimen
SLAB_MARGIN_PX = 8.0


@dataclass
class AlignResult:
    """An alignment in raw px, with everything a report tells about it.

    Attributes:
        alignment: the result; excluded tilts carry an interpolated line.
        start: what the joint fit set out from, in the same frame as the input's tilt angles.
        thickness_px: of the specimen as its density says, raw px.
        residual_px: weighted RMS residual of the tracks per tilt (NaN where there is none), raw px.
        residual_rms_px: over all tracks and tilts, None without tracks.
        tracks_px: x and y in the start's specimen and RMS residual of every track, ``(n_tracks, 3)`` raw px.
        losses: per step of the joint fit: bin, step, loss of fitted, loss of held-out pixels; empty with ``fast``.
        verdict: of the guard; None with ``fast``.
        levelling: where the specimen lay in the frame of the start (height, tilt offset, x-tilt; raw px, degrees)
            and how its origin was moved.
        sigma_shift_px: standard error of the shifts ``(n_tilts, 2)``, raw px; None unless asked for.
        axis_ambiguous: the axis was found from the images alone, so the hand may be wrong.
        wrong_start: sentences on what cannot be right: tilt angles, or the tilt axis of the result.
        doubts: sentences on what is worth a look.
        density, lattice, field: of the joint fit, in its own frame (working px).
        field_to_result: rotation and translation (working px) of a point of that frame to the result's specimen.
        working_bin: raw px per working px.
        notes: what was decided on the way.
        seconds: wall time per stage.
        peak_memory_bytes: of the process.
    """

    alignment: Alignment
    start: Alignment
    thickness_px: float
    residual_px: Array
    residual_rms_px: float | None
    tracks_px: Array
    losses: list[tuple[int, int, float, float]]
    verdict: Verdict | None
    levelling: dict[str, Any]
    sigma_shift_px: Array | None
    axis_ambiguous: bool
    wrong_start: list[str]
    doubts: list[str]
    density: F32 | None
    lattice: Lattice | None
    field: DensityField | None
    field_to_result: tuple[Array, Array]
    working_bin: int
    notes: list[str]
    seconds: dict[str, float]
    peak_memory_bytes: int


Progress = Callable[[str, float, str, float | None], None]
"""Task, fraction of it that is done, scale, loss."""


def _silent(task: str, fraction: float, scale: str = "", loss: float | None = None) -> None:
    pass


def align_series(
    series: TiltSeries,
    settings: AlignSettings | None = None,
    progress: Progress | None = None,
    checkpoint_path: Path | None = None,
    resume: bool = False,
    note: Callable[[str], None] | None = None,
) -> AlignResult:
    """Align a tilt series.

    Args:
        series: the tilt series.
        settings: see `AlignSettings`.
        progress: told about every step.
        checkpoint_path: file that holds the state of the run; None keeps none.
        resume: go on from that file, if it is there.
        note: told at once about every decision (also in the result's ``notes``).

    Raises:
        InputError: input that cannot be aligned, or a checkpoint of another run.
    """
    settings = settings or AlignSettings()
    factor = working_bin(series.size, settings.working_size)
    work = work_on(settings.device, settings.memory_bytes)
    images, hashed, defects = usable_images(series, factor, work)
    identity = settings.as_dict() | {"input": hashed}
    del identity["memory_bytes"]  # of the device; results do not depend on it
    identity["excluded tilts"] = sorted(series.excluded)
    checkpoint = Checkpoint.begun(checkpoint_path, identity, resume)
    run = _Run(series, settings, images, factor, defects, checkpoint, progress or _silent, note, work)
    if not settings.others:
        return run.result()
    from inrtomo.gpu.share import followers

    with followers((settings.device, *settings.others)):
        return run.result()


def working_bin(size: tuple[int, int], working_size: int) -> int:
    """Raw px per working px."""
    return max(1, int(np.ceil(max(size) / working_size)))


def usable_images(series: TiltSeries, factor: int, work: Work) -> tuple[F32, str, Defects]:
    """`working_images` without the detector's defects, which the series leaves out from then on, a `Fingerprint` of the
    raw images and the defects; with any they are read twice.
    """
    hashed = Fingerprint((series.n_tilts, series.size[1], series.size[0]), np.asarray(series.tilt_deg))
    scan = DetectorScan((series.size[1], series.size[0]))
    used = set(series.included.tolist())

    def seen(index: int, image: F32) -> None:
        hashed.add(image)
        if index in used:
            scan.add(index, image)

    series.repair = None
    images = working_images(series, factor, work, seen)
    defects = scan.found(None if series.order is None else series.order.tolist())
    if defects.any:
        series.repair = defects.repaired
        images = working_images(series, factor, work)
    return images, hashed.text, defects


def working_images(series: TiltSeries, factor: int, work: Work, seen: Callable[[int, F32], None] | None = None) -> F32:
    """The images Fourier-binned by ``factor`` ``(n, ny, nx)``, centre on centre; ``seen`` is shown every raw one.

    One raw image is in memory at a time.
    """
    images = []
    for i in range(series.n_tilts):
        image = np.asarray(series.image(i), dtype=np.float32)
        if seen is not None:
            seen(i, image)
        images.append(image if factor == 1 else work.fourier_crop(_finite(image), factor))
    return np.stack(images)


def _finite(image: NDArray[Any]) -> F32:
    image = np.asarray(image, dtype=np.float32)
    bad = ~np.isfinite(image)
    if bad.any() and not bad.all():
        image = np.where(bad, np.median(image[~bad]), image)
    return np.nan_to_num(image)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


class _Run:
    """One run of the pipeline: the stages in order, each remembered in the checkpoint."""

    def __init__(
        self,
        series: TiltSeries,
        settings: AlignSettings,
        images: F32,
        factor: int,
        defects: Defects,
        checkpoint: Checkpoint,
        progress: Progress,
        note: Callable[[str], None] | None,
        work: Work,
    ) -> None:
        self.work = work
        self.series, self.settings, self.images, self.factor = series, settings, images, factor
        self.defects = defects
        self.checkpoint, self.progress, self.tell = checkpoint, progress, note or (lambda text: None)
        self.notes: list[str] = []
        self.seconds: dict[str, float] = dict(checkpoint.stages.get("seconds", {}))
        self.size = (images.shape[2], images.shape[1])
        self.interrupts = Interrupts()
        self.fitted: JointResult | None = None

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.tell(text)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to a stage's."""
        before, started = self.seconds.get(stage, 0.0), time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = before + time.monotonic() - started
            self.checkpoint.stages["seconds"] = self.seconds

    def result(self) -> AlignResult:
        """All stages."""
        out: AlignResult | None = None
        with self.interrupts.held_back():
            out = self._result()
        assert out is not None, "a held-back signal always ends the run"
        return out

    def _result(self) -> AlignResult:
        s = self.settings
        start, tracked = self.start()
        self.used: Ints = start.included.astype(np.int64)
        with self.timed("survey"):
            level, slab = self.survey(start, tracked["slab_px"])
        # height and slope along x are taken out before the fit, so that its slab can be tight; the origin moves to
        # the middle of the views now, while no control points have to move with it
        final = centred = levelled(start, level, with_x_tilt=False)
        offset = (0.0, 0.0)
        if s.level:
            centred, offset = centred_on_views(centred)
            final = centred
        rest = Level(0.0, 0.0, -float(np.tan(np.deg2rad(level.x_tilt_deg))), level.thickness_px)
        verdict, losses = None, []
        if not s.fast:
            fit = self.joint(centred, slab)
            losses = fit.losses
            verdict, final = self.guard(centred, merged(centred, fit.alignment, self.used), slab, fit.gain)
            if fit.density.any():
                rest = find_level(fit.density, fit.lattice, aligned_half_size(centred, about_shift=True))
        sigma = self.error_bars(final, slab) if s.error_bars else None
        height = level.height_px + rest.height_px
        levelling: dict[str, Any] = {
            "levelled": s.level,
            "height_px": height * self.factor,
            "tilt_offset_deg": level.tilt_offset_deg + rest.tilt_offset_deg,
            "x_tilt_deg": rest.x_tilt_deg,
            "origin_moved_px": [0.0, 0.0, 0.0],
        }
        up = np.array([0.0, 0.0, 1.0])
        if s.level:
            final = levelled(final, rest)
            levelling["origin_moved_px"] = [v * self.factor for v in (*offset, -height)]
            turn = (rotation_about_y(rest.tilt_offset_deg) @ rotation_about_x(rest.x_tilt_deg)).T
            field_to_result = turn, -rest.height_px * turn @ up
        else:
            # back to the frame of the start: the same turn and move undone, its x-tilt put back
            final = replace(final, tilt_deg=final.tilt_deg - level.tilt_offset_deg)
            final = translated(final, (0.0, 0.0, level.height_px))
            final = replace(final, x_tilt_deg=np.full(final.n_tilts, tracked["x_tilt_deg"]))
            turn = rotation_about_x(tracked["x_tilt_deg"]).T
            field_to_result = turn @ rotation_about_y(level.tilt_offset_deg), level.height_px * turn @ up
        start = replace(start, x_tilt_deg=np.full(start.n_tilts, tracked["x_tilt_deg"]))
        thickness = rest.thickness_px if s.thickness_px is None else s.thickness_px / self.factor
        final = folded_over_specimen(final, thickness)
        raw_size, pixel = self.series.size, self.series.pixel_size_A
        residual = np.array([np.nan if v is None else v for v in tracked["residual_px"]], dtype=np.float64)
        rms = tracked["residual_rms_px"]
        self.seconds["total"] = sum(v for k, v in self.seconds.items() if k != "total")
        return AlignResult(
            alignment=scaled(with_harmless_lines(final), self.factor, raw_size, pixel),
            start=scaled(with_harmless_lines(start), self.factor, raw_size, pixel),
            thickness_px=rest.thickness_px * self.factor,
            residual_px=residual * self.factor,
            residual_rms_px=None if rms is None else rms * self.factor,
            tracks_px=np.array(tracked["tracks_px"], dtype=np.float64).reshape(-1, 3) * self.factor,
            losses=losses,
            verdict=verdict,
            levelling=levelling,
            sigma_shift_px=None if sigma is None else sigma * self.factor,
            axis_ambiguous=bool(tracked["axis_ambiguous"]),
            wrong_start=wrong_start(self.checked(tracked), final),
            doubts=self.doubts(self.checked(tracked), final),
            density=None if self.fitted is None else self.fitted.density,
            lattice=None if self.fitted is None else self.fitted.lattice,
            field=None if self.fitted is None else self.fitted.field,
            field_to_result=field_to_result,
            working_bin=self.factor,
            notes=self.notes,
            seconds=dict(self.seconds),
            peak_memory_bytes=peak_memory_bytes(),
        )

    def start(self) -> tuple[Alignment, dict[str, Any]]:
        """Prepared images and where the refinement sets out from (working px, no x-tilt), with what tracks found."""
        s, series, stages = self.settings, self.series, self.checkpoint.stages
        pixel = None if series.pixel_size_A is None else series.pixel_size_A * self.factor
        tilt_deg = np.asarray(series.tilt_deg, dtype=np.float64)
        given = None if s.start is None else self.users_start(s.start)
        copies = {copy: f"a copy of image {first}" for copy, first in self.defects.copies.items()}
        excluded = copies | dict(series.excluded) | ({} if given is None else given.excluded)
        for text in self.defects.notes():
            self.note(text)
        unseen = self.unseen()
        optics = PrepareSettings(defocus_A=s.defocus_A)

        def report(task: str, fraction: float) -> None:
            self.progress(task, fraction, "", None)
            if self.interrupts.received is not None:
                raise Stopped

        def prepared_only() -> Prepared:
            with self.timed("prepare"):
                return prepare(self.images, tilt_deg, pixel, optics, excluded, report, self.work, unseen)

        if "start" in stages:
            self.prepared = prepared_only()
            start, tracked = alignment_from_dict(stages["start"]), stages["tracked"]
        elif given is not None and not s.fast:
            self.prepared = prepared_only()
            start = replace(given, excluded=dict(self.prepared.excluded))
            none = np.full(len(tilt_deg), np.nan)
            with self.timed("coarse"):
                working, _ = correlated_images(self.prepared, self.work)
                checked = check_start(working, tilt_deg, self.prepared.included, axis_asked_of(None, given))
            notes = start_notes(checked, False)
            tracked = self.tracked(0.5 * min(self.size), none, None, np.zeros((0, 3)), False, checked, notes)
        else:
            slab = None if s.thickness_px is None else s.thickness_px / self.factor
            start, fast = fast_alignment_of(
                self.images, tilt_deg, s.axis_deg, pixel, given, optics, TrackSettings(slab_px=slab), excluded, report,
                None if s.fast else self.without_held_out, self.work, s.axis_is_recorded, unseen,
            )  # fmt: skip
            self.prepared = fast.prepared
            start = replace(start, excluded=dict(self.prepared.excluded))
            for stage, value in fast.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + value
            found = fast.tracks
            seen = np.isfinite(found.residual_per_track)
            tracks = np.column_stack([found.points[:, :2], found.residual_per_track])[seen]
            tracked = self.tracked(
                found.slab_px, found.residual_per_tilt, found.residual_rms, tracks, fast.axis_ambiguous, fast.checked,
                fast.notes,
            )  # fmt: skip
        for text in (*self.prepared.notes, *tracked["notes"]):
            self.note(text)
        if "start" not in stages:
            stages |= {"start": alignment_to_dict(start), "tracked": tracked, "seconds": self.seconds}
            self.saved()
        return start, tracked

    def unseen(self) -> NDArray[np.bool_] | None:
        """Working pixels ``(n, ny, nx)`` that show the detector; None where there are none."""
        if not self.defects.any:
            return None
        return np.stack([self.defects.binned(i, self.factor) for i in range(self.series.n_tilts)])

    def without_held_out(self, prepared: Prepared) -> Prepared:
        """The prepared images with the pixels held out for the guard smoothly painted over.

        Tracks that had seen them would have fitted their noise, and would win by that against any later result.
        """
        settings, used = self.joint_settings, prepared.included
        blocks = blocks_to_hold_out((len(used), *prepared.images.shape[1:]), settings.held_out, settings.seed)
        images = prepared.images.copy()
        for index, held in zip(used, blocks, strict=True):
            image = images[index]
            hidden = held.repeat(HELD_BLOCK_PX, axis=0).repeat(HELD_BLOCK_PX, axis=1)[
                : image.shape[0], : image.shape[1]
            ]
            known = self.work.blurred((~hidden).astype(np.float32), HELD_BLOCK_PX / 2)
            smooth = self.work.blurred(np.where(hidden, 0, image), HELD_BLOCK_PX / 2) / np.maximum(known, 1e-3)
            image[hidden] = smooth[hidden]
        return replace(prepared, images=images)

    def tracked(
        self,
        slab_px: float,
        residual_px: Array,
        rms_px: float | None,
        tracks_px: Array,
        ambiguous: bool,
        checked: StartCheck,
        notes: list[str],
    ) -> dict[str, Any]:
        """What is remembered of the tracks, as plain values."""
        return {
            "slab_px": float(slab_px),
            "residual_px": [float(v) if np.isfinite(v) else None for v in residual_px],
            "residual_rms_px": None if rms_px is None or not np.isfinite(rms_px) else float(rms_px),
            "tracks_px": tracks_px.tolist(),
            "axis_ambiguous": ambiguous,
            "checked": asdict(checked),
            "x_tilt_deg": 0.0 if self.settings.start is None else float(np.mean(self.settings.start.x_tilt_deg)),
            "notes": list(notes),
        }

    def doubts(self, checked: StartCheck, final: Alignment) -> list[str]:
        """Sentences on what is worth a look."""
        found = (
            self.series.sources.get("other angles"),
            axis_doubt(checked, final),
            hand_doubt(self.series.axis_deg, self.series.sources.get("mdoc", "the .mdoc"), final),
            overlap_doubt(final),
            self.defects.doubt(self.series.tilt_deg),
        )
        return [said for said in found if said]

    @staticmethod
    def checked(tracked: dict[str, Any]) -> StartCheck:
        """What the images said of the start, as `tracked` remembers it."""
        found = tracked["checked"]
        axis = None if found["axis"] is None else AxisCheck(**found["axis"])
        return StartCheck(axis, found["wrong_order"])

    def users_start(self, start: Alignment) -> Alignment:
        """A user's alignment in working px and in the frame of the tilt axis."""
        if start.n_tilts != self.series.n_tilts:
            raise InputError(
                f"start alignment: has {start.n_tilts} images, the stack {self.series.n_tilts}; give the one of this "
                "stack"
            )
        if np.ptp(start.x_tilt_deg) > 0.01:
            raise InputError("start alignment: the x-tilt differs between images; give one with a single x-tilt")
        flat = replace(start, x_tilt_deg=np.zeros(start.n_tilts))
        return scaled(flat, 1 / self.factor, self.size)

    def survey(self, start: Alignment, slab_px: float) -> tuple[Level, float]:
        """Where the specimen lies, from a quick density at the start's motion, and the slab the joint fit needs."""
        s, stages = self.settings, self.checkpoint.stages
        given = None if s.thickness_px is None else s.thickness_px / self.factor
        if "level" not in stages:
            bin_ = max(1, round(min(self.size) / SURVEY_SIZE))
            least = LEAST_SLAB_OF_SIZE * min(self.size)
            thick = SURVEY_SLAB * max(given or slab_px, least)
            quick = JointSettings(
                levels=4, schedule=(Scale(bin_, SURVEY_STEPS, SURVEY_STEPS, None),), fit_motion=False, held_out=0.0,
                warp="none" if start.warp is None else "bicubic", seed=s.seed, memory_bytes=s.memory_bytes,
                device=s.device, shared=bool(s.others),
            )  # fmt: skip
            fit = self.new_fit(start, thick, quick)
            found = fit.run(self.watch("survey"))
            level = find_level(found.density, found.lattice, aligned_half_size(start, about_shift=True))
            stages["level"] = asdict(level)
            self.saved()
        level = Level(**stages["level"])
        thickness = given or max(level.thickness_px, LEAST_SLAB_OF_SIZE * min(self.size))
        if level.is_found:
            self.note(
                f"specimen about {level.thickness_px * self.factor:.0f} px thick, {level.height_px * self.factor:+.1f} "
                f"px from the centre, tilted by {level.tilt_offset_deg:+.2f} deg about y and {level.x_tilt_deg:+.2f} "
                "about x"
            )
        else:
            self.note(
                "the survey does not tell the specimen from what surrounds it: neither its level nor its thickness is "
                "found; give --thickness"
            )
        # the slope along y stays in the fit's frame
        rise = abs(np.tan(np.deg2rad(level.x_tilt_deg))) * start.aligned_size[1]
        return level, SLAB_MARGIN * thickness + SLAB_MARGIN_PX + rise

    def new_fit(self, alignment: Alignment, slab_px: float, settings: JointSettings) -> JointFit:
        """A joint fit of the included tilts."""
        weight = self.prepared.density_weight[self.used]
        return JointFit(self.prepared.images[self.used], weight, alignment.subset(self.used), slab_px, settings)

    @property
    def joint_settings(self) -> JointSettings:
        s = self.settings
        return JointSettings(
            field=s.field,
            warp=s.warp,
            loss=s.loss,
            seed=s.seed,
            memory_bytes=s.memory_bytes,
            device=s.device,
            shared=bool(s.others),
        )

    def joint(self, start: Alignment, slab_px: float) -> JointResult:
        """The joint fit, from wherever the checkpoint has it."""
        s = self.settings
        with self.timed("joint fit"):
            start = start if s.start is not None else rigid(start)
            settings = self.joint_settings.finished(start.subset(self.used), slab_px)
            fit = self.new_fit(start, slab_px, settings)
            state = self.checkpoint.part("joint")
            if state:
                fit.load_state_dict(state)
            else:
                millions = fit.field.parameters().size / 1e6
                self.note(f"joint fit: {millions:.1f} M parameters, slab {slab_px * self.factor:.0f} px")
            self.fitted = fit.run(self.watch("joint fit", "joint"))
            self.checkpoint.set_part("joint", fit.state_dict())
        self.saved()
        return self.fitted

    def guard(self, start: Alignment, final: Alignment, slab_px: float, gain: Array) -> tuple[Verdict, Alignment]:
        """The best of start, result without and result with its warp, by held-out pixels."""
        folded = final.folded()
        candidates = {"start": start, "linear": folded.without_warp()}
        if final.warp is not None:
            candidates["warp"] = folded
        with self.timed("guard"):
            for number, (name, candidate) in enumerate(candidates.items()):
                if f"guard.{name}" in self.checkpoint.arrays:
                    continue
                watch = self.watch("guard", first=number / len(candidates), share=1 / len(candidates))
                images, weight = self.prepared.images[self.used], self.prepared.density_weight[self.used]
                blocks = held_out_blocks(
                    images, weight, candidate.subset(self.used), slab_px, self.joint_settings, gain, watch
                )
                self.checkpoint.arrays[f"guard.{name}"] = blocks
                if self.checkpoint.is_due:
                    self.saved()
        verdict = choose({name: self.checkpoint.arrays[f"guard.{name}"] for name in candidates})
        self.saved()
        self.note(f"guard: {verdict.reason}")
        return verdict, candidates[verdict.chosen]

    def error_bars(self, final: Alignment, slab_px: float) -> Array:
        """Standard errors of the shifts of all tilts ``(n, 2)``, NaN for excluded ones."""
        with self.timed("error bars"):
            halves = []
            for number, (images, weight) in enumerate(self.halves()):
                key = f"half{number}"
                if key not in self.checkpoint.stages:
                    start = jittered(final.subset(self.used), self.settings.seed + 1 + number)
                    fit = JointFit(images, weight, start, slab_px, half_settings(self.joint_settings))
                    found = fit.run(self.watch("error bars", first=number / 2, share=0.5))
                    self.checkpoint.stages[key] = alignment_to_dict(found.alignment)
                    self.saved()
                halves.append(alignment_from_dict(self.checkpoint.stages[key]))
            sigma = np.full((final.n_tilts, 2), np.nan)
            sigma[self.used] = sigma_of_shifts(halves[0], halves[1])
            return sigma

    def halves(self) -> Iterator[tuple[F32, F32]]:
        """Images and weights of two halves of the data: odd and even frames, or two sets of pixel blocks."""
        series, prepared = self.series, self.prepared
        weight = prepared.density_weight[self.used]
        if series.odd is not None and series.even is not None:
            pixel = None if series.pixel_size_A is None else series.pixel_size_A * self.factor
            optics = PrepareSettings(
                defocus_A=prepared.restored_defocus_A, restore=prepared.restored_defocus_A is not None,
                polarity=prepared.polarity,
            )  # fmt: skip
            for path in (series.odd, series.even):
                stack = open_stack(path)
                images = np.stack(
                    [
                        self.work.fourier_crop(_finite(self.defects.repaired(i, stack.image(i))), self.factor)
                        for i in range(series.n_tilts)
                    ]
                )
                tilt_deg = np.asarray(series.tilt_deg)
                half = prepare(images, tilt_deg, pixel, optics, prepared.excluded, work=self.work)
                yield half.images[self.used], weight
            return
        for mask in half_data_masks(weight.shape):
            yield prepared.images[self.used], weight * mask

    def watch(
        self, task: str, part: str | None = None, first: float = 0.0, share: float = 1.0
    ) -> Callable[[JointFit], None]:
        """An ``on_step`` that reports progress, saves the fit's state as ``part``, and lets signals take effect."""

        def on_step(fit: JointFit) -> None:
            bin_, _, loss, _ = fit.losses[-1]
            self.progress(task, first + share * fit.fraction_done, f"bin {bin_ * self.factor}", loss)
            stopping = self.interrupts.received is not None
            if stopping or (part is not None and self.checkpoint.is_due):
                if part is not None:
                    self.checkpoint.set_part(part, fit.state_dict())
                self.saved()
            if stopping:
                raise Stopped

        return on_step

    def saved(self) -> None:
        """Save the checkpoint with the times so far."""
        self.checkpoint.stages["seconds"] = self.seconds
        self.checkpoint.save()


def rigid(alignment: Alignment) -> Alignment:
    """Shifts and one common tilt axis: what the joint fit starts from after tracks.

    Strain and local motion that tracks find are nearer the truth than none, but their error is in modes that the
    fit then corrects slowly: it ends better without them (S1: 0.14 instead of 0.22 px).
    """
    axis = axis_rotation(float(np.median(axis_angle(alignment.linear[alignment.included]))))
    return replace(alignment, linear=np.tile(axis, (alignment.n_tilts, 1, 1)), warp=None)


def merged(whole: Alignment, part: Alignment, indices: Ints) -> Alignment:
    """``whole`` with the images ``indices`` replaced by those of ``part``; the others lose their warp."""
    linear, shift, tilt = whole.linear.copy(), whole.shift_px.copy(), whole.tilt_deg.copy()
    linear[indices], shift[indices], tilt[indices] = part.linear, part.shift_px, part.tilt_deg
    warp = part.warp
    if warp is not None:
        vectors = np.zeros((whole.n_tilts, *warp.vectors.shape[1:]))
        vectors[indices] = warp.vectors
        warp = replace(warp, vectors=vectors)
    return replace(whole, linear=linear, shift_px=shift, tilt_deg=tilt, warp=warp)


def with_harmless_lines(alignment: Alignment) -> Alignment:
    """Excluded images get rotation and shift interpolated between their neighbours in tilt, and no warp."""
    if not alignment.excluded:
        return alignment
    use, out = alignment.included, np.array(sorted(alignment.excluded))
    order = use[np.argsort(alignment.tilt_deg[use], kind="stable")]
    at, tilt = alignment.tilt_deg[out], alignment.tilt_deg[order]
    linear, shift = alignment.linear.copy(), alignment.shift_px.copy()
    turn = np.unwrap(np.deg2rad(axis_angle(alignment.linear[order])))
    linear[out] = [axis_rotation(float(np.rad2deg(a))) for a in np.interp(at, tilt, turn)]
    for axis in range(2):
        shift[out, axis] = np.interp(at, tilt, alignment.shift_px[order, axis])
    warp = alignment.warp
    if warp is not None:
        vectors = warp.vectors.copy()
        vectors[out] = 0.0
        warp = replace(warp, vectors=vectors)
    return replace(alignment, linear=linear, shift_px=shift, warp=warp)
