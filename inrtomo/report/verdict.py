"""Good, check or failed: one word for an alignment, by a rule that is written on the page beside it.

The rule is `RULE`; `integration/benchmarks/alignment/verdict.py` measures how often it is right where the truth is
known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inrtomo.alignment import Alignment
from inrtomo.report.consistency import Consistency
from inrtomo.report.run import Run

GOOD, CHECK, FAILED = "good", "check", "failed"

GOOD_PX = 0.75
"""Disagreement up to which an alignment is good, px of the images compared. Errors up to 1 px are meant: jitter shows
in full, but half or more of what neighbouring tilts share is not seen."""
FAILED_PX = 2.0
"""Disagreement from which on it has failed: an error of 2 to 3 px or more, up to 6 px if neighbours share it."""
BAD_TILT_PX = 3.0
"""Disagreement of a single tilt from which on it is named; the outermost tilts have few neighbours and reach 2."""
RECOGNISED_GOOD = 0.9
RECOGNISED_FAILED = 0.5
EXCLUDED_GOOD = 0.2
EXCLUDED_FAILED = 0.5
SHOWN = 8
"""Tilts named in a reason."""

RULE = f"""
Every aligned image is predicted from its neighbours in tilt, through a slab as thick as the specimen, and nine patches
of it are sought in that prediction. This uses neither the tracks nor the fitted density nor any residual of the fit.
The disagreement is the RMS displacement of the patches that are recognised; noise alone makes 0.2 to 0.6 px of it.
The images compared are the raw ones, binned to at most 512 px.

Failed: the disagreement is more than {FAILED_PX:g} px of the images compared, fewer than {RECOGNISED_FAILED:.0%} of the
patches are recognised, more than {EXCLUDED_FAILED:.0%} of the tilts are left out, or inr-align found that the tilt
axis or the order of the tilt angles does not fit the images.

Good: the disagreement is at most {GOOD_PX:g} px, at least {RECOGNISED_GOOD:.0%} of the patches are recognised, no tilt
in use disagrees by more than {BAD_TILT_PX:g} px or goes unrecognised, at most {EXCLUDED_GOOD:.0%} of the tilts are
left out, images next to each other in tilt show at least half of the same view, tilt angles and axis are not against
what is recorded or what fits the images, and the direction of the tilt axis is not a guess.

Check: anything else, and any run whose raw images are not at hand.

What it cannot see is an error that neighbouring tilts share, such as a slow drift over the whole series or an error of
all tilt angles alike. Of 110 alignments of simulated series whose truth is known, all 50 of inr-align were right to
1 px and called good; none that was more than 1 px off was called good; of 29 that were more than 3 px off 24 were
called failed and 5 check.
"""


@dataclass(frozen=True)
class Evidence:
    """What the verdict rests on.

    Attributes:
        tilts, excluded: numbers of images.
        axis_is_guess: the tilt axis came from the images alone, so the hand may be wrong.
        disagreement: RMS displacement of recognised patches, px of the images compared (NaN: none is recognised);
            disagreement_px: the same in raw px. None without raw images, as are the following.
        recognised: fraction of the patches.
        bad_tilts: stack indices of tilts in use that disagree by more than `BAD_TILT_PX` or go unrecognised.
        wrong_start, doubts: sentences of `inr-align` on what cannot be right, and on what is worth a look.
    """

    tilts: int
    excluded: int
    axis_is_guess: bool
    disagreement: float | None = None
    disagreement_px: float | None = None
    recognised: float | None = None
    bad_tilts: tuple[int, ...] = ()
    wrong_start: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run, found: Consistency | None) -> Evidence:
        """Of a run, with the consistency of its tilts where the raw images are at hand."""
        return cls.of_result(run.alignment, found, run.values)

    @classmethod
    def of_result(cls, a: Alignment, found: Consistency | None, values: dict[str, Any]) -> Evidence:
        """Of an alignment by `inr-align`, with what its ``BASE_align.json`` says of the start."""
        evidence = cls.of_alignment(a, found, bool(values.get("tilt_axis_ambiguous")))
        wrong, doubts = (tuple(map(str, values.get(key) or ())) for key in ("wrong_start", "doubts"))
        return replace(evidence, wrong_start=wrong, doubts=doubts)

    @classmethod
    def of_alignment(cls, a: Alignment, found: Consistency | None, axis_is_guess: bool = False) -> Evidence:
        """Of any alignment."""
        if found is None:
            return cls(a.n_tilts, len(a.excluded), axis_is_guess)
        off = found.per_tilt_px / found.bin
        bad = tuple(int(m) for m in a.included if not off[m] <= BAD_TILT_PX)
        rms = found.rms_px
        return cls(a.n_tilts, len(a.excluded), axis_is_guess, rms / found.bin, rms, found.found_fraction, bad)


@dataclass(frozen=True)
class Verdict:
    """``good``, ``check`` or ``failed``, and why, in sentences without a full stop."""

    word: str
    reasons: list[str]

    @property
    def is_failed(self) -> bool:
        return self.word == FAILED


def judge(evidence: Evidence) -> Verdict:
    """Apply `RULE`."""
    e = evidence
    failed: list[str] = list(e.wrong_start)
    check: list[str] = list(e.doubts)

    def weigh(reason: str, is_bad: bool, is_doubtful: bool) -> None:
        if is_bad or is_doubtful:
            (failed if is_bad else check).append(reason)

    weigh(
        f"{e.excluded} of {e.tilts} tilts are left out",
        e.excluded > EXCLUDED_FAILED * e.tilts,
        e.excluded > EXCLUDED_GOOD * e.tilts,
    )
    weigh(
        "the tilt axis is a guess from the images, so the hand may be wrong; give --tilt-axis", False, e.axis_is_guess
    )
    if e.disagreement is None or e.recognised is None:
        check.append("the raw images are not at hand, and nothing else is independent of the fit; give --stack")
        return Verdict(FAILED if failed else CHECK, failed + check)
    off = f"the tilts disagree by {e.disagreement_px:.2f} raw px ({e.disagreement:.2f} px of the images compared)"
    seen = f"{e.recognised:.0%} of the patches are recognised"
    weigh(seen, e.recognised < RECOGNISED_FAILED, e.recognised < RECOGNISED_GOOD)
    weigh(off, e.disagreement > FAILED_PX, e.disagreement > GOOD_PX)
    if e.bad_tilts:
        shown = ", ".join(map(str, e.bad_tilts[:SHOWN])) + (" and others" if len(e.bad_tilts) > SHOWN else "")
        check.append(f"images that do not fit their neighbours: {shown}")
    if failed:
        return Verdict(FAILED, failed + check)
    return Verdict(CHECK, check) if check else Verdict(GOOD, [off, seen])
