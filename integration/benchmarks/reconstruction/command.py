"""``inr-recon`` as a user runs it: what it writes, its own time and memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_to_dict
from integration.benchmarks.alignment.case import ROOT
from integration.benchmarks.alignment.measured import Measured, run_measured

RECON = "from inrtomo.commands.recon import main; main()"
METHODS: dict[str, tuple[str, ...]] = {
    "FBP": ("--method", "fbp"),
    "SIRT": ("--method", "sirt"),
    "SART+TV": ("--method", "sart-tv"),
    "hash": ("--method", "field", "--field", "hash"),
    "mlp": ("--method", "field", "--field", "mlp"),
    "siren": ("--method", "field", "--field", "siren"),
    "tensor": (
        *("--method", "field", "--field", "tensor"),
        *("--prior", "sparsity=0.64,variation=0.4,isotropic,boundary"),
    ),
}


def recon(
    stack: Path,
    alignment: Path,
    out: Path,
    method: str,
    threads: int,
    thickness_nm: float | None = None,
    more: Sequence[str] = (),
    program: str = RECON,
) -> Measured:
    """Run the command for a method of `METHODS`: volume ``[z, y, x]`` in ``out``, protein bright.

    Without a thickness the command takes the one that lies beside the alignment. ``program`` is what Python runs.

    Raises:
        RuntimeError: with its last words, if it fails.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-c", program, str(stack), str(alignment), "-o", str(out), *METHODS[method]]
    words += ["--orientation", "xyz", "--contrast", "positive", "--overwrite"]
    words += [] if thickness_nm is None else ["--thickness", f"{thickness_nm:.6g}"]
    ran = run_measured([*words, *more], out.with_suffix(".log"), environment(threads))
    if ran.status != 0:
        last = ran.said.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"inr-recon --method {method} ended with status {ran.status}: {last[0]}")
    return ran


def environment(threads: int) -> dict[str, str]:
    """For a program of ours or another's that may use so many threads."""
    names = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "NUMBA", "MKL", "OPENBLAS")}
    return {**names, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def write_alignment(alignment: Alignment, path: Path) -> Path:
    """An alignment as ``BASE_align.json``, which the commands read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"alignment": alignment_to_dict(alignment)}), encoding="utf-8")
    return path
