"""The methods that are compared: each takes a simulated series and gives an alignment, its time and memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.metrics.alignment import best_linear
from integration.benchmarks.alignment.correlation import torch_tiltxcorr_is_installed
from integration.benchmarks.alignment.measured import Measured, run_measured

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Case:
    """A simulated series on disk.

    Attributes:
        name, seed: which one; folder: where its files are, ``NAME.mrc`` and so on; work: where methods may write.
        truth: the true alignment; meta: the rest of the truth file.
        axis_deg: the tilt axis a method is told.
        blanks: tilts without a specimen. Peers are told of them, inr-align is not.
        threads: for every program that can be told.
    """

    name: str
    seed: int
    folder: Path
    work: Path
    truth: Alignment
    meta: dict[str, Any]
    axis_deg: float
    blanks: tuple[int, ...]
    threads: int
    align_options: tuple[str, ...] = ()

    @property
    def stack(self) -> Path:
        return self.folder / f"{self.name}.mrc"

    @property
    def angles(self) -> Path:
        return self.folder / f"{self.name}.rawtlt"

    @property
    def thickness_px(self) -> float:
        return float(self.meta["thickness_px"])

    @property
    def nominal(self) -> Alignment:
        """What is known before any alignment: angles and the tilt axis."""
        tilt_deg = np.loadtxt(self.angles, ndmin=1)
        return Alignment.identity(tilt_deg, self.truth.image_size, self.axis_deg, self.truth.pixel_size_A)

    def run(self, command: Sequence[object], name: str, folder: Path | None = None) -> Measured:
        """Run a program; RuntimeError with its last words if it fails."""
        threads = str(self.threads)
        environment = {f"{library}_NUM_THREADS": threads for library in ("OMP", "NUMBA", "MKL", "OPENBLAS")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [str(word) for word in command]
        result = run_measured(words, self.work / f"{name}.log", environment, folder)
        if result.status != 0:
            last = result.said.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{Path(words[0]).name} ended with status {result.status}: {last[0]}")
        return result


@dataclass(frozen=True)
class Outcome:
    """What a method made of a case. ``volume`` is the file of its own density, where it has one."""

    method: str
    alignment: Alignment
    wall_s: float | None = None
    peak_MB: float | None = None
    volume: Path | None = None
    sigma_shift_px: Any = None
    notes: dict[str, Any] = field(default_factory=dict)


def nothing(case: Case) -> list[Outcome]:
    """No alignment: nominal angles and axis."""
    return [Outcome("nothing", case.nominal)]


def truth(case: Case) -> list[Outcome]:
    """The true alignment, and the best that shifts, rotations and other linear maps could do."""
    return [
        Outcome("truth", case.truth),
        Outcome("truth, best linear", best_linear(case.truth, case.thickness_px)),
    ]


def correlation(case: Case) -> list[Outcome]:
    """Cosine-stretched cross-correlation of neighbouring tilts."""
    out = case.work / "correlation.json"
    script = "integration.benchmarks.alignment.correlation"
    words = [sys.executable, "-m", script, case.stack, case.angles, f"{case.axis_deg}", out]
    ran = case.run([*words, *case.blanks], "correlation")
    alignment = alignment_from_dict(json.loads(out.read_text(encoding="utf-8")))
    made_with = "torch-tiltxcorr" if torch_tiltxcorr_is_installed() else "inr-align's coarse step"
    return [Outcome("cross-correlation", alignment, ran.wall_s, ran.peak_MB, notes={"with": made_with})]


def tracks(case: Case) -> list[Outcome]:
    """``inr-align --fast``: feature tracks and bundle adjustment."""
    return [_inr_align(case, "tracks (--fast)", "fast", "--fast")]


def no_local_model(case: Case) -> list[Outcome]:
    """``inr-align --warp none``: the joint fit of a field with linear maps only."""
    return [_inr_align(case, "ours, no local model", "linear", "--warp", "none")]


def ours(case: Case) -> list[Outcome]:
    """``inr-align``: everything, and what its ``.xf`` file holds of it."""
    full = _inr_align(case, "ours", "ours", *case.align_options)
    linear = replace(full, method="ours, .xf alone", alignment=full.alignment.without_warp(), volume=None)
    return [full, replace(linear, wall_s=None, peak_MB=None, sigma_shift_px=None)]


def _inr_align(case: Case, method: str, folder: str, *options: str) -> Outcome:
    out = case.work / folder
    shutil.rmtree(out, ignore_errors=True)
    start = "from inrtomo.commands.align import main; main()"
    words = [sys.executable, "-c", start, case.stack, "--tilt-angles", case.angles, "-o", out, *options]
    ran = case.run([*words, f"--tilt-axis={case.axis_deg}"], folder)
    values = json.loads((out / f"{case.name}_align.json").read_text(encoding="utf-8"))
    alignment = read_alignment(out)
    volume = out / f"{case.name}_field.npz"
    notes = {"excluded": sorted(alignment.excluded), "held_out_loss": values.get("held_out_loss"), "cpu_s": ran.cpu_s}
    sigma = values.get("sigma_shift_px")
    return Outcome(method, alignment, ran.wall_s, ran.peak_MB, volume if volume.exists() else None, sigma, notes)


def imod(case: Case) -> list[Outcome]:
    """IMOD: correlation, patch tracking, ``tiltalign`` with robust fitting; linear, one tilt axis (Etomo's steps)."""
    folder = case.work / "imod"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    programs = Path(os.environ["IMOD_DIR"]) / "bin"
    size = max(64, round(min(case.truth.image_size) / 4))
    skipped = ",".join(str(tilt + 1) for tilt in case.blanks)
    skip = ["-SkipViews", skipped] if skipped else []
    exclude = ["-ExcludeList", skipped] if skipped else []
    known = ["-TiltFile", case.angles, "-RotationAngle", f"{case.axis_deg}"]
    band = ["-FilterSigma1", "0.03", "-FilterRadius2", "0.25", "-FilterSigma2", "0.05", *skip]
    patches = ["-SizeOfPatchesXandY", f"{size},{size}", "-OverlapOfPatchesXandY", "0.5,0.5"]
    patches += ["-IterateCorrelations", "4", "-PrealignmentTransformFile", "b.prexg", "-ImagesAreBinned", "1"]
    files = ["-ModelFile", "b.fid", "-ImageFile", "b.preali", "-OutputTransformFile", "b.tltxf"]
    files += ["-OutputTiltFile", "b.tlt", "-OutputModelFile", "b.3dmod", "-OutputResidualFile", "b.resid"]
    # one axis angle for all (-1), everything but shifts else fixed
    solve = ["-RotOption", "-1", "-TiltOption", "0", "-MagOption", "0", "-XStretchOption", "0", "-SkewOption", "0"]
    solve += ["-SurfacesToAnalyze", "1", "-ResidualReportCriterion", "3", "-RobustFitting"]
    steps: list[list[object]] = [
        ["tiltxcorr", "-InputFile", case.stack, "-OutputFile", "b.prexf", *known, *band],
        ["xftoxg", "-nfit", "0", "b.prexf", "b.prexg"],
        ["newstack", "-input", case.stack, "-output", "b.preali", "-xform", "b.prexg", "-float", "2", "-mode", "2"],
        ["tiltxcorr", "-InputFile", "b.preali", "-OutputFile", "b_pt.fid", *known, *band, *patches],
        ["imodchopconts", "-MinimumOverlap", "4", "-AssignSurfaces", "b_pt.fid", "b.fid"],
        ["tiltalign", *files, *known, *solve, *exclude],
        ["xfproduct", "b.prexg", "b.tltxf", "b.xf"],
    ]
    ran = [case.run([programs / str(words[0]), *words[1:]], "imod", folder) for words in steps]
    alignment = read_alignment(folder / "b.xf", case.truth.image_size)
    wall, peak = sum(step.wall_s for step in ran), max(step.peak_MB for step in ran)
    return [Outcome("IMOD patch tracking", alignment, wall, peak)]


def aretomo(case: Case) -> list[Outcome]:
    """AreTomo2 or 3, global and local alignment, first GPU."""
    folder = case.work / "aretomo"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = sorted(Path(os.environ["ARETOMO_HOME"]).glob("**/AreTomo[23]*"))
    programs = [path for path in found if path.is_file() and os.access(path, os.X_OK)]
    if not programs:
        raise RuntimeError(f"no AreTomo2 or AreTomo3 program under ARETOMO_HOME={os.environ['ARETOMO_HOME']}")
    thickness = str(round(case.thickness_px))
    words = [programs[-1], "-InMrc", case.stack, "-OutMrc", folder / "b.mrc", "-AngFile", case.angles]
    words += ["-TiltAxis", f"{case.axis_deg}", "1", "-AlignZ", thickness, "-VolZ", thickness, "-Patch", "5", "5"]
    ran = case.run([*words, "-PixSize", f"{case.truth.pixel_size_A}", "-Gpu", "0"], "aretomo", folder)
    written = sorted([*folder.glob("*.aln"), *case.folder.glob("*.aln")])  # by version, beside output or input
    if not written:
        raise RuntimeError("AreTomo wrote no .aln file")
    alignment = read_alignment(written[0], case.truth.image_size)
    return [Outcome("AreTomo", alignment, ran.wall_s, ran.peak_MB)]


Method = Callable[[Case], list[Outcome]]

METHODS: dict[str, Method] = {
    "nothing": nothing,
    "correlation": correlation,
    "tracks": tracks,
    "no-local": no_local_model,
    "ours": ours,
    "imod": imod,
    "aretomo": aretomo,
    "truth": truth,
}


def available() -> list[str]:
    """Methods that can run here: IMOD and AreTomo where the environment says they are installed."""
    needs = {"imod": "IMOD_DIR", "aretomo": "ARETOMO_HOME"}
    return [name for name in METHODS if name not in needs or os.environ.get(needs[name])]
