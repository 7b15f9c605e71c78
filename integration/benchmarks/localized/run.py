"""Localized MLP benchmark: unseen specimens, our alignment, what training has not seen, speed, a real series.

    python -m integration.benchmarks.localized.run --part unseen,shift --seeds 0-2

Results go to WORK/results.jsonl as they come (a run that is stopped goes on where it was); tables are printed at the
end and written to WORK/PART.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numba as nb
import torch

from integration.benchmarks.alignment.case import ROOT
from integration.benchmarks.alignment.run import seed_numbers
from integration.benchmarks.localized import real, series, shift, speed, unseen
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.reconstruction.jobs import Column, Job, do, records, tables


class Part(NamedTuple):
    """What it does, and the columns of its tables."""

    jobs: Callable[[LocalizedOptions], Iterator[Job]]
    columns: Sequence[Column]


PARTS = {
    "unseen": Part(unseen.jobs, unseen.COLUMNS),
    "shift": Part(shift.jobs, shift.COLUMNS),
    "series": Part(series.jobs, series.COLUMNS),
    "speed": Part(speed.jobs, speed.COLUMNS),
    "real": Part(real.jobs, real.COLUMNS),
}
DENSITIES = ROOT.parent / "shared" / "data" / "densities"


@click.command(context_settings={"show_default": True})
@click.option("--part", "parts", required=True, help=f"Of {', '.join(PARTS)}, comma-separated.")
@click.option("--seeds", default="0", help="For instance 0-4 or 0,2.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-localized"))
@click.option("--weights", type=click.Path(path_type=Path), help="Of inr-train.  [default: those of the package]")
@click.option("--size", type=click.IntRange(16), help="Side of the view, px.  [default: the part's own]")
@click.option("--methods", help="Comma-separated.  [default: the part's own]")
@click.option("--threads", type=click.IntRange(1), default=2, help="Threads every program may use.")
@click.option("--densities", type=click.Path(file_okay=False, path_type=Path), help="Folder of MRC densities.")
@click.option("--series", "names", default="S1w,S2w,S3w,S4w,S5w", help="series: of the alignment benchmark's.")
@click.option(
    "--aligned",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmark-alignment"),
    help="series: --work of the alignment benchmark, whose series and alignments are used; what lacks is made there.",
)
@click.option("--stack", type=click.Path(exists=True, path_type=Path), help="real: the raw stack.")
@click.option("--alignment", type=click.Path(exists=True, path_type=Path), help="real: what inr-align made of it.")
@click.option("--bin", "binning", type=click.IntRange(1), default=2, help="real: px of the stack per voxel.")
@click.option("--again", is_flag=True, help="Run what has a result already once more (the last one counts).")
def main(
    parts: str,
    seeds: str,
    work: Path,
    weights: Path | None,
    size: int | None,
    methods: str | None,
    threads: int,
    densities: Path | None,
    names: str,
    aligned: Path,
    stack: Path | None,
    alignment: Path | None,
    binning: int,
    again: bool,
) -> None:
    """Score the localized MLP."""
    wanted = parts.split(",")
    for part in wanted:
        if part not in PARTS:
            raise click.UsageError(f"--part {part}: is none of {', '.join(PARTS)}")
    if densities is None and DENSITIES.is_dir():
        densities = DENSITIES
    nb.set_num_threads(min(threads, nb.get_num_threads()))
    torch.set_num_threads(min(threads, torch.get_num_threads()))
    chosen = [name.strip() for name in methods.split(",")] if methods else None
    options = LocalizedOptions(
        work, seed_numbers(seeds), size, chosen, threads, densities, names.split(","), aligned, stack, alignment,
        binning, weights,
    )  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.jsonl"
    for part in wanted:
        do(part, PARTS[part].jobs(options), results, again, click.echo)
        text = tables(records(results, part), PARTS[part].columns)
        (work / f"{part}.md").write_text(text, encoding="utf-8")
        click.echo(f"\n## {part}: medians over seeds\n\n{text}")


if __name__ == "__main__":
    main()
