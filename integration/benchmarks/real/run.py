"""Witnesses on a real series: what can be said of alignments and tomograms when nobody knows the truth.

    python -m integration.benchmarks.real.run ALIGNMENT [ALIGNMENT ...]

Every alignment (a folder of inr-align, or any format inr-convert reads) is looked at with its local motion and without;
all are brought to one frame, that of the first. Tomograms of every method are made along the first one.
"""

from __future__ import annotations

from pathlib import Path

import click

from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.tiltseries import open_tilt_series
from integration.benchmarks.alignment.case import ROOT
from integration.benchmarks.real import beads, halves, particles
from integration.benchmarks.real.case import Case
from integration.benchmarks.real.volumes import METHODS

DATA = ROOT.parent / "shared" / "data"
STACK = DATA / "empiar10499_ts01" / "ts01.mrc"
TEMPLATE = DATA / "densities" / "5mrc.mrc"
PARTS = {"beads": beads.run, "particles": particles.run, "halves": halves.run}


@click.command(context_settings={"show_default": True})
@click.argument("alignments", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--part", "parts", default=",".join(PARTS), help=f"Of {', '.join(PARTS)}.")
@click.option("--stack", type=click.Path(dir_okay=False, path_type=Path), default=STACK, show_default=False)
@click.option("--tilt-axis", type=float, default=-4.3, help="Nominal, degrees, IMOD's sense: to follow beads by.")
@click.option("--defocus", type=float, default=1.75, help="um, to restore low frequencies; 0: leave them.")
@click.option("--template", type=click.Path(dir_okay=False, path_type=Path), default=TEMPLATE, show_default=False)
@click.option("--low-pass", type=float, default=40.0, help="Of the template, Å.")
@click.option("--bin", "binning", type=click.IntRange(1), default=3, help="px of the stack per voxel.")
@click.option("--methods", default=",".join(METHODS), help="For tomograms.")
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-real"))
def main(
    alignments: tuple[Path, ...],
    parts: str,
    stack: Path,
    tilt_axis: float,
    defocus: float,
    template: Path,
    low_pass: float,
    binning: int,
    methods: str,
    threads: int,
    work: Path,
) -> None:
    """Compare alignments, and tomograms along the first, on a real series."""
    wanted, chosen = parts.split(","), methods.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise click.UsageError(f"--part {unknown[0]}: is none of {', '.join(PARTS)}")
    if unknown := [name for name in chosen if name not in METHODS]:
        raise click.UsageError(f"--methods {unknown[0]}: is none of {', '.join(METHODS)}")
    for needed in (stack, *([template] if "particles" in wanted else [])):
        if not needed.is_file():
            click.echo(f"skipped: {needed} is not here")
            return
    series = open_tilt_series(stack)
    try:
        read = [(str(path), read_alignment(path, series)) for path in alignments]
        work.mkdir(parents=True, exist_ok=True)
        defocus_A = defocus * 1e4 or None
        case = Case(stack, tilt_axis, read, template, low_pass, defocus_A, binning, work, threads, chosen, click.echo)
        for part in wanted:
            click.echo(f"\n## {part}\n\n{PARTS[part](case)}")
    except (InputError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
