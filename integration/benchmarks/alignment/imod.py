"""IMOD on a case, in Etomo's steps: correlation, patch tracking, ``tiltalign``, with and without local alignments.

No setting is best everywhere. Several are run and the one nearest the truth counts, which a user could not choose: a
bar for the others, not a result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_files import read_alignment
from inrtomo.metrics.alignment import compare_alignments
from integration.benchmarks.alignment.case import Case, Outcome
from integration.benchmarks.alignment.measured import Measured

PATCHES = (5, 4, 3, 2)  # to the image's side
ROTATIONS = {"one axis angle": ["-1"], "axis angles in groups": ["3", "-RotDefaultGrouping", "5"]}
LOCAL: dict[str, list[str]] = {
    "shifts": [],
    "shifts and rotations": ["-LocalRotOption", "3", "-LocalRotDefaultGrouping", "6"],
    "Etomo's": [
        "-LocalRotOption", "3", "-LocalRotDefaultGrouping", "6", "-LocalTiltOption", "5", "-LocalTiltDefaultGrouping",
        "6", "-LocalMagOption", "3", "-LocalMagDefaultGrouping", "7", "-LocalMagReferenceView", "1",
    ],
}  # fmt: skip


def imod(case: Case) -> list[Outcome]:
    """Linear and local alignments, each with its best setting; ``notes`` has the setting and all errors, px."""
    folder = case.work / "imod"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found: dict[str, list[Outcome]] = {"IMOD patch tracking": [], "IMOD, local alignments": []}
    refused: list[str] = []
    skipped = ",".join(str(tilt + 1) for tilt in case.blanks)
    known: list[object] = ["-TiltFile", case.angles, "-RotationAngle", f"{case.axis_deg}"]
    before = list(_prealigned(case, folder, known, skipped))
    for parts in PATCHES:
        tracking = [*before, *_tracked(case, folder, known, skipped, parts)]
        for rotation, words in ROTATIONS.items():
            for local in (None, *LOCAL):
                setting = f"patches 1/{parts}, {rotation}" + (f", local {local}" if local else "")
                try:
                    ran = [*tracking, *_solved(case, folder, known, skipped, parts, words, local)]
                except RuntimeError as error:
                    refused.append(f"{setting}: {error}")
                    continue
                method = "IMOD, local alignments" if local else "IMOD patch tracking"
                wall, peak = sum(step.wall_s for step in ran), max(step.peak_MB for step in ran)
                found[method].append(
                    Outcome(method, read_alignment(folder, case.truth.image_size), wall, peak, notes={"best": setting})
                )
    if not found["IMOD patch tracking"]:
        raise RuntimeError(refused[0])
    return [_best(case, outcomes, refused) for outcomes in found.values() if outcomes]


def _best(case: Case, outcomes: list[Outcome], refused: list[str]) -> Outcome:
    errors = [_error_px(case, outcome.alignment) for outcome in outcomes]
    best = outcomes[errors.index(min(errors))]
    settings = {str(o.notes["best"]): round(e, 3) for o, e in zip(outcomes, errors, strict=True)}
    best.notes.update(settings=settings, refused=refused)
    return best


def _error_px(case: Case, alignment: Alignment) -> float:
    error = compare_alignments(alignment, case.truth, case.thickness_px, exclude=case.blanks, known=case.known)
    return error.gauge_free.rms_px


def _run(case: Case, folder: Path, *words: object) -> Measured:
    program = Path(os.environ["IMOD_DIR"]) / "bin" / str(words[0])
    return case.run([program, *words[1:]], "imod", folder)


def _band(skipped: str) -> list[object]:
    band: list[object] = ["-FilterSigma1", "0.03", "-FilterRadius2", "0.25", "-FilterSigma2", "0.05"]
    return [*band, "-SkipViews", skipped] if skipped else band


def _prealigned(case: Case, folder: Path, known: list[object], skipped: str) -> Iterator[Measured]:
    yield _run(case, folder, "tiltxcorr", "-InputFile", case.stack, "-OutputFile", "b.prexf", *known, *_band(skipped))
    yield _run(case, folder, "xftoxg", "-nfit", "0", "b.prexf", "b.prexg")
    images: list[object] = ["-input", case.stack, "-output", "b.preali", "-xform", "b.prexg"]
    yield _run(case, folder, "newstack", *images, "-float", "2", "-mode", "2")


def _tracked(case: Case, folder: Path, known: list[object], skipped: str, parts: int) -> Iterator[Measured]:
    size = max(32, round(min(case.truth.image_size) / parts))
    patches = ["-SizeOfPatchesXandY", f"{size},{size}", "-OverlapOfPatchesXandY", "0.5,0.5"]
    patches += ["-IterateCorrelations", "4", "-PrealignmentTransformFile", "b.prexg", "-ImagesAreBinned", "1"]
    files = ["-InputFile", "b.preali", "-OutputFile", "b_pt.fid"]
    yield _run(case, folder, "tiltxcorr", *files, *known, *_band(skipped), *patches)
    yield _run(case, folder, "imodchopconts", "-MinimumOverlap", "4", "-AssignSurfaces", "b_pt.fid", "b.fid")


def _solved(
    case: Case, folder: Path, known: list[object], skipped: str, parts: int, rotation: list[str], local: str | None
) -> Iterator[Measured]:
    """``tiltalign`` with robust fitting, angles and magnification as they are; then a folder as Etomo leaves it."""
    files = ["-ModelFile", "b.fid", "-ImageFile", "b.preali", "-OutputTransformFile", "b.tltxf"]
    files += ["-OutputTiltFile", "b.tlt", "-OutputModelFile", "b.3dmod", "-OutputResidualFile", "b.resid"]
    solve = ["-RotOption", *rotation, "-TiltOption", "0", "-MagOption", "0", "-XStretchOption", "0", "-SkewOption", "0"]
    solve += ["-SurfacesToAnalyze", "1", "-ResidualReportCriterion", "3", "-RobustFitting"]
    exclude = ["-ExcludeList", skipped] if skipped else []
    width, height = case.truth.image_size
    command = ["$tilt -StandardInput", "TILTFILE b.tlt", f"FULLIMAGE {width} {height}", "IMAGEBINNED 1"]
    command.append(f"THICKNESS {round(case.thickness_px)}")
    areas: list[str] = []
    if local is not None:
        areas = ["-LocalAlignments", "-OutputLocalFile", "blocal.xf", "-MinSizeOrOverlapXandY", "0.5,0.5"]
        areas += ["-TargetPatchSizeXandY", f"{width // 2},{height // 2}", "-MinFidsTotalAndEachSurface", "8,3"]
        areas += ["-FixXYZCoordinates", *LOCAL[local]]
        command.append("LOCALFILE blocal.xf")
    yield _run(case, folder, "tiltalign", *files, *known, *solve, *exclude, *areas)
    yield _run(case, folder, "xfproduct", "b.prexg", "b.tltxf", "b.xf")
    (folder / "tilt.com").write_text("\n".join([*command, ""]), encoding="utf-8")
