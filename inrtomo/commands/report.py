"""``inr-report``: one page that a person looks at, about a run of ``inr-align``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from inrtomo.commands._common import Progress, command
from inrtomo.io.files import check_input, check_output, make_folder, write_text
from inrtomo.report.run import open_stack_of, read_run

ENDINGS = ("_report.html", "_report.json", "_Metrics.csv")


@command("inr-report", context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "prefix", type=click.Path(path_type=Path),
    help="Write PREFIX_report.html and so on.  [default: FOLDER/BASE]",
)  # fmt: skip
@click.option(
    "--stack", type=click.Path(path_type=Path), metavar="FILE", help="The raw images.  [default: those of the run]"
)
@click.option(
    "--tomogram", type=click.Path(path_type=Path), metavar="FILE",
    help="Slice this volume.  [default: BASE_rec.mrc, else the fitted density]",
)  # fmt: skip
@click.option("--fsc", type=click.Path(path_type=Path), metavar="JSON", help="PREFIX.json of inr-fsc.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(
    folder: Path, prefix: Path | None, stack: Path | None, tomogram: Path | None, fsc: Path | None, overwrite: bool
) -> None:
    """Make a page from FOLDER, which inr-align wrote: is this alignment good, and if not, why?

    Written are PREFIX_report.html, one file with all pictures and the movie in it that opens without a network,
    PREFIX_report.json with the same numbers, and PREFIX_Metrics.csv, one row for a table over many series (its first
    five columns are named as in AreTomo3's).

    The verdict - good, check or failed - rests on how far every aligned image lies from its prediction by the other
    tilts. The rule is on the page.
    """
    run = read_run(folder)
    prefix = prefix or run.json.with_name(run.base)
    make_folder(prefix.parent)
    outputs = [prefix.with_name(prefix.name + ending) for ending in ENDINGS]
    for path in outputs:
        check_output(path, overwrite)
    for given in (tomogram, fsc):
        if given is not None:
            check_input(given)
    series, why_not = open_stack_of(run, stack)
    from inrtomo.report.page import csv_row, make_report  # matplotlib and all: not for --help, nor for bad input

    missing = () if series is not None else (f"movie and agreement of the tilts: {why_not}",)
    with Progress("page") as progress:
        report = make_report(run, series, tomogram, fsc, missing, lambda task, fraction: progress(fraction, scale=task))
    page, numbers, table = outputs
    write_text(table, csv_row(report.row), overwrite)
    write_text(numbers, json.dumps(report.values, indent=1, allow_nan=False), overwrite)
    write_text(page, report.html, overwrite)
    for what in report.left_out:
        click.echo(f"not on the page: {what}")
    click.echo(f"{report.verdict.word}: {'; '.join(report.verdict.reasons)}")
    click.echo(f"wrote {page}, {numbers.name}, {table.name}")
