"""The methods that are compared: each takes a simulated series and gives an alignment, its time and memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.geometry import specimen_to_aligned
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.metrics.alignment import best_linear
from integration.benchmarks.alignment.case import Case, Outcome
from integration.benchmarks.alignment.correlation import torch_tiltxcorr_is_installed
from integration.benchmarks.alignment.imod import imod


def nothing(case: Case) -> list[Outcome]:
    """No alignment: nominal angles and axis."""
    return [Outcome("nothing", case.nominal)]


def truth(case: Case) -> list[Outcome]:
    """The true alignment, and the best that shifts, rotations and other linear maps could do.

    Of a specimen that moves the true alignment is the nearest one: what depends on depth is beyond it, and its error.
    """
    return [
        Outcome("truth", case.truth),
        Outcome("truth, best linear", best_linear(case.truth, case.thickness_px)),
        Outcome("truth, best linear, nominal angles", linear_at_nominal_angles(case)),
    ]


def linear_at_nominal_angles(case: Case) -> Alignment:
    """Per tilt the least-squares affine map from the known points, projected at the file's angles, to their images."""
    out, half = case.nominal, np.array(case.truth.image_size) / 2
    linear, shift = out.linear.copy(), np.zeros((out.n_tilts, 2))
    for m, raw in enumerate(case.known.raw):
        seen = (np.abs(raw) <= half).all(axis=1)
        aligned = specimen_to_aligned(case.known.points[seen], float(out.tilt_deg[m]))
        fit = np.linalg.lstsq(np.column_stack([aligned, np.ones(len(aligned))]), raw[seen], rcond=None)[0]
        linear[m] = np.linalg.inv(fit[:2].T)
        shift[m] = -linear[m] @ fit[2]
    return replace(out, linear=linear, shift_px=shift, excluded=case.truth.excluded)


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
    field = volume if volume.exists() else None
    thickness = values.get("thickness_px")
    return Outcome(method, alignment, ran.wall_s, ran.peak_MB, field, sigma, thickness, notes)


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
