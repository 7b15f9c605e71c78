"""Tomograms of every method along the first alignment: all tilts, odd ones and even ones, from the same images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.mrc import read_volume
from integration.benchmarks.alignment.measured import run_measured
from integration.benchmarks.localized.real import INFER
from integration.benchmarks.real.cache import digest
from integration.benchmarks.real.case import Case
from integration.benchmarks.reconstruction.command import environment, recon, write_alignment

F32 = NDArray[np.float32]

METHODS = {
    "FBP": "nothing",
    "SIRT": "few iterations: smooth",
    "hash": "prior: positive, sparse, little variation",
    "network": "training: simulated specimens",
}
"""A method, and what its halves share besides the specimen."""
WHOLE, ODD, EVEN = "", "_odd", "_even"


def volume(case: Case, method: str, half: str = WHOLE) -> F32:
    """A method's tomogram ``[z, y, x]`` in the common frame, protein bright, by its command.

    Raises:
        RuntimeError: if the command fails or gives a volume of another shape than a back-projection has.
    """
    alignment = case.placed(case.alignments[0][1]).alignment
    images = case.image_file()
    made_from = digest(images, alignment, case.thickness_px, case.bin)
    out = case.work / "volumes" / made_from / f"{method}.mrc"
    if not all(out.with_name(f"{out.stem}{end}.mrc").is_file() for end in (WHOLE, ODD, EVEN)):
        case.say(f"tomograms: {method}")
        _run(case, images, alignment, out, method)
    values, _ = read_volume(out.with_name(f"{out.stem}{half}.mrc"))
    nx, ny = (n // case.bin for n in alignment.image_size)
    if values.shape != (case.thickness_px // case.bin, ny, nx):
        raise RuntimeError(f"{method}: its volume is {values.shape}, not {(case.thickness_px // case.bin, ny, nx)}")
    return values


def odd_and_even(alignment: Alignment) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tilt angles of the two halves, as `inrtomo.reconstruct.halves` makes them of tilts."""
    tilt_deg = np.sort(alignment.tilt_deg[alignment.included])
    return tilt_deg[0::2], tilt_deg[1::2]


def _run(case: Case, images: Path, alignment: Alignment, out: Path, method: str) -> None:
    folder = write_alignment(alignment, out.parent / f"{images.stem}_align.json")
    thickness_nm = case.thickness_px * case.series.pixel_A / 10
    more = ["--halves", "--bin", str(case.bin)]
    if method != "network":
        recon(images, folder, out, method, case.threads, thickness_nm, more)
        return
    words = [sys.executable, "-c", INFER, str(images), str(folder), "-o", str(out), *more, "--overwrite"]
    words += ["--orientation", "xyz", "--contrast", "positive", "--thickness", f"{thickness_nm:.6g}", "--device", "cpu"]
    ran = run_measured(words, out.with_suffix(".log"), environment(case.threads))
    if ran.status != 0:
        raise RuntimeError(f"inr-infer ended with status {ran.status}: {ran.said.strip().splitlines()[-1:]}")
