"""Reconstruction benchmark: every method on specimens that are known, and side by side on one that is not.

    python -m integration.benchmarks.reconstruction.run --part spheres,shells --seeds 0-1

Results go to WORK/results.jsonl as they come (a run that is stopped goes on where it was); tables are printed at the
end and written to WORK/PART.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numba as nb

from integration.benchmarks.alignment.case import ROOT
from integration.benchmarks.alignment.run import seed_numbers
from integration.benchmarks.alignment.series import SERIES
from integration.benchmarks.reconstruction import known, large, real, shells, specimen, speed, spheres
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, do, records, tables


class Part(NamedTuple):
    """What it does, and the columns of its tables."""

    jobs: Callable[[Options], Iterator[Job]]
    columns: Sequence[Column]


PARTS = {
    "series": Part(known.jobs, known.COLUMNS),
    "snr": Part(specimen.noise_jobs, specimen.NOISE_COLUMNS),
    "spheres": Part(spheres.jobs, spheres.COLUMNS),
    "shells": Part(shells.jobs, shells.COLUMNS),
    "steps": Part(specimen.step_jobs, specimen.STEP_COLUMNS),
    "speed": Part(speed.jobs, speed.COLUMNS),
    "large": Part(large.jobs, large.COLUMNS),
    "real": Part(real.jobs, real.COLUMNS),
}
DENSITIES = ROOT.parent / "shared" / "data" / "densities"


@click.command(context_settings={"show_default": True})
@click.option("--part", "parts", required=True, help=f"Of {', '.join(PARTS)}, comma-separated.")
@click.option("--seeds", default="0", help="For instance 0-4 or 0,2.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-reconstruction"))
@click.option("--size", type=click.IntRange(16), help="Side of the specimen, px.  [default: the part's own]")
@click.option("--methods", help="Comma-separated.  [default: the part's own]")
@click.option("--threads", type=click.IntRange(1), default=2, help="Threads every program may use.")
@click.option("--densities", type=click.Path(file_okay=False, path_type=Path), help="Folder of MRC densities.")
@click.option("--series", default="S1w,S2w,S3w,S4w,S5w", help="series: of the alignment benchmark's.")
@click.option(
    "--aligned",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmark-alignment"),
    help="series: --work of the alignment benchmark, whose series and alignments are used; what lacks is made there.",
)
@click.option("--stack", type=click.Path(exists=True, path_type=Path), help="real: the raw stack.")
@click.option("--alignment", type=click.Path(exists=True, path_type=Path), help="real: what inr-align made of it.")
@click.option("--bin", "binning", type=click.IntRange(1), default=4, help="real: px of the stack per voxel.")
@click.option("--again", is_flag=True, help="Run what has a result already once more (the last one counts).")
def main(
    parts: str,
    seeds: str,
    work: Path,
    size: int | None,
    methods: str | None,
    threads: int,
    densities: Path | None,
    series: str,
    aligned: Path,
    stack: Path | None,
    alignment: Path | None,
    binning: int,
    again: bool,
) -> None:
    """Score reconstruction methods."""
    wanted = parts.split(",")
    for part in wanted:
        if part not in PARTS:
            raise click.UsageError(f"--part {part}: is none of {', '.join(PARTS)}")
    if densities is None and DENSITIES.is_dir():
        densities = DENSITIES
    nb.set_num_threads(min(threads, nb.get_num_threads()))
    chosen = [name.strip() for name in methods.split(",")] if methods else None
    names = series.split(",")
    if unknown := [name for name in names if name not in SERIES]:
        raise click.UsageError(f"--series {unknown[0]}: is none of {', '.join(SERIES)}")
    numbers = seed_numbers(seeds)
    options = Options(work, numbers, size, chosen, threads, densities, names, aligned, stack, alignment, binning)
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.jsonl"
    for part in wanted:
        do(part, PARTS[part].jobs(options), results, again, click.echo)
        text = tables(records(results, part), PARTS[part].columns)
        (work / f"{part}.md").write_text(text, encoding="utf-8")
        click.echo(f"\n## {part}: medians over seeds\n\n{text}")


if __name__ == "__main__":
    main()
