"""A real series: slices of ours beside back-projection and field, and odd against even tilts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from inrtomo.io.files import read_text
from inrtomo.io.mrc import read_volume
from integration.benchmarks.alignment.measured import run_measured
from integration.benchmarks.localized.methods import OURS
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.reconstruction import real
from integration.benchmarks.reconstruction.command import environment, recon
from integration.benchmarks.reconstruction.jobs import Column, Job, Record
from integration.benchmarks.reconstruction.scores import finite, half_fsc

INFER = "from inrtomo.commands.infer import main; main()"
METHODS = ("FBP", "hash")

COLUMNS: tuple[Column, ...] = (
    ("odd/even tilts: mean FSC", "fsc_mean", "{:.3f}"),
    ("FSC 0.143 (Å)", "half_A", "{:.1f}"),
    ("variance in the wedge", "wedge_energy", "{:.3f}"),
    ("time, one tomogram (s)", "seconds", "{:.0f}"),
)
"""Halves that a network has denoised share its prior: their FSC says how alike they are, not how right."""


def jobs(options: LocalizedOptions) -> Iterator[Job]:
    """A job per method, then the picture of all."""
    if options.stack is None or options.alignment is None:
        raise click.UsageError("--part real: needs --stack and --alignment")
    what = f"{options.stack.stem}, bin {options.bin}"
    folder = options.work / "real" / f"{options.stack.stem}_bin{options.bin}"
    names = (*(options.methods or METHODS), OURS)
    for name in names:
        yield Job(f"{what}, {name}", 0, _job(options, options.stack, options.alignment, folder / f"{name}.mrc", what))
    volumes = {name: folder / f"{name}.mrc" for name in names}
    if all(path.exists() for path in volumes.values()):
        real.side_by_side({name: read_volume(path)[0] for name, path in volumes.items()}, folder / "slices.png")


def _job(options: LocalizedOptions, stack: Path, alignment: Path, out: Path, what: str) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        more = ["--halves", "--bin", str(options.bin)]
        if out.stem == OURS:
            _infer(options, stack, alignment, out, more)
        else:
            recon(stack, alignment, out, out.stem, options.threads, more=more)
        (odd, voxel_A), (even, _) = (read_volume(out.with_name(f"{out.stem}_{half}.mrc")) for half in ("odd", "even"))
        curve = half_fsc(odd, even, voxel_A or 1.0)
        record = json.loads(read_text(out.with_suffix(".json")))
        scores = {
            "fsc_mean": curve.mean(),
            "half_A": finite(curve.resolution_A(0.143)),
            "wedge_energy": record["all"]["wedge_energy"],
            "seconds": record["seconds"] / 3,  # two halves and the whole
        }
        return [{"table": what, "row": out.stem, **scores}]

    return run


def _infer(options: LocalizedOptions, stack: Path, alignment: Path, out: Path, more: list[str]) -> None:
    """``inr-infer`` as a user runs it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-c", INFER, str(stack), str(alignment), "-o", str(out), *more]
    words += ["--orientation", "xyz", "--contrast", "positive", "--overwrite"]
    words += [] if options.weights is None else ["--weights", str(options.weights)]
    ran = run_measured(words, out.with_suffix(".log"), environment(options.threads))
    if ran.status != 0:
        raise RuntimeError(f"inr-infer ended with status {ran.status}: {ran.said.strip().splitlines()[-1:]}")
