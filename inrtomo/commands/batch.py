"""``inr-batch``: one command over many series, here or on a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from inrtomo import __version__
from inrtomo.batch.manifest import Series, find_series
from inrtomo.batch.runner import Runner, places
from inrtomo.batch.slurm_template import TEMPLATE, read_template
from inrtomo.batch.state import CLAIMED, DONE, FAILED, Batch
from inrtomo.batch.steps import STEPS, check_options, fitted
from inrtomo.batch.summary import COLUMNS, Summary, shown, write_summary
from inrtomo.batch.watch import Watch
from inrtomo.commands._common import OneSentence, Program, echo_defaults
from inrtomo.errors import InputError

EXIT_SOME_FAILED = 1
SUMMARY_EVERY_S = 60.0
WAIT_S = 5.0
MOST_LINES = 20
"""Of a list on the screen; the page has all of it."""
SHOWN = ("verdict", "residual_px", "thickness_nm", "axis_deg", "resolution_A")
"""Worth a word on the line of a series that is done."""


class _BatchProgram(Program):
    """What follows ``--`` is for the command of every series: it is kept aside in ``ctx.obj``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[end + 1 :])
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- OPTIONS OF THE COMMAND]"]


@click.command("inr-batch", cls=_BatchProgram, context_settings={"show_default": True})
@click.version_option(__version__, "--version", prog_name="inr-batch")
@click.argument("command", type=click.Choice([*STEPS, "status", "template"]))
@click.argument("series", nargs=-1)
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), help="Folder of the batch.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Folder of the batch before: its alignments, its tomograms.",
)
@click.option("--watch", type=click.Path(path_type=Path), metavar="FOLDER", help="Take stacks as they come in here.")
@click.option(
    "--settle", type=click.FloatRange(0), default=60.0, metavar="S",
    help="A stack is complete when it has not grown for so long.",
)  # fmt: skip
@click.option("--idle-stop", type=click.FloatRange(0), metavar="MIN", help="End --watch when nothing came for so long.")
@click.option("--workers", type=click.IntRange(1), help="Series at a time.  [default: one a GPU, or one for 4 cores]")
@click.option("--retry", is_flag=True, help="Try again what failed.")
@click.option(
    "--slurm", "template", type=click.Path(path_type=Path), metavar="TEMPLATE",
    help="Submit a job array, as this script says.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="With --slurm: until the jobs have ended.")
@click.pass_context
def main(
    context: click.Context,
    command: str,
    series: tuple[str, ...],
    folder: Path | None,
    source: Path | None,
    watch: Path | None,
    settle: float,
    idle_stop: float | None,
    workers: int | None,
    retry: bool,
    template: Path | None,
    wait: bool,
) -> None:
    """Run inr-align, inr-export, inr-recon, inr-infer, inr-fsc or inr-report over many series.

    SERIES are stacks, folders of stacks, quoted patterns ("raw/*/*.st") and tables (.csv, .star, .json) with a column
    stack and, where wanted, name, alignment and options of the command: tilt_axis, thickness, … What follows -- is for
    all of them. Without SERIES it goes on with those of DIR, or with what --from has done.

    Results go to DIR/NAME; DIR/state says what is claimed, done and failed, with a log and a record for each. Called
    again, it goes on; called several times at once, on any number of machines, it shares the work. Written at the end
    are DIR/summary.csv and DIR/summary.html; "inr-batch status -o DIR" writes them at any time. "inr-batch template"
    prints a script for --slurm.

    Exit status: 0 all done, 1 some failed, 2 bad input, 130 after Ctrl-C.
    """
    rest: tuple[str, ...] = context.obj
    if command == "template":
        click.echo(TEMPLATE, nl=False)
        return
    if folder is None:
        raise click.UsageError("Missing option '-o': give the folder of the batch")
    if command == "status":
        _report(write_summary(Batch.open(folder)), everything=True)
        return
    check_options(STEPS[command], rest)
    if template is not None:
        read_template(template)  # before anything is written
    before = folder / "state" / "batch.json"
    if not series and watch is None and source is None and before.exists():
        old = Batch.open(folder)
        source, rest = old.source, rest or old.options
    batch = Batch(folder.absolute(), command, rest, source and source.absolute(), Path.cwd())
    found, notes = _series(batch, series, watch)
    batch.save()
    batch.add(found)
    again = batch.retry(batch.series()) if retry else []
    states = batch.states()
    todo = [one for one in found if states.get(one.name) not in (DONE, FAILED)]
    settled = f"{len(found) - len(todo)} of them done or failed before"
    rows: list[tuple[str, object, str]] = [("series", len(found), settled if len(todo) < len(found) else "")]
    rows += [("again", len(again), "--retry")] if again else []
    rows += [("command", " ".join([STEPS[command].program, "…", *rest]), "for all")]
    columns = dict.fromkeys(name for one in found for name in one.options)
    rows += [("by series", ", ".join(columns), "columns of the table")] if columns else []
    rows += [("note", note, "") for note in notes]
    watcher = None
    if watch is not None:
        known = {one.stack: one.name for one in batch.series().values()}
        idle_s = None if idle_stop is None else 60 * idle_stop
        watcher = Watch(watch, known, settle, idle_s, "--tilt-angles" in rest)
        rows.append(("watching", watch, f"stacks that have not grown for {settle:g} s and have their angles"))
    if template is not None:
        echo_defaults(rows)
        _submit(batch, todo, template, watcher, wait)
    else:
        _work(batch, todo, watcher, workers, rows)
    summary = write_summary(batch)
    _report(summary)
    if template is None or wait:
        _end(summary, found)


# --- which series --------------------------------------------------------------------------------------------------


def _series(batch: Batch, given: Sequence[str], watch: Path | None) -> tuple[list[Series], list[str]]:
    """The series to run, with options of this command only, and what there is to say about them."""
    recorded, notes = batch.series(), []
    before = _done_before(batch.source) if batch.source else None
    if given:
        known = {one.stack: one.name for one in [*(before or {}).values(), *recorded.values()]}
        found = find_series(given, known)
    elif before is not None and watch is None:
        found = list(before.values())
        if not found:
            raise InputError(f"{batch.source}: nothing is done there yet; run that batch first")
    else:
        found = list(recorded.values())
        if not found and watch is None and batch.source is not None:
            raise InputError(f"{batch.source}: no batch was run there; give its -o, or say which SERIES it is for")
        if not found and watch is None:
            raise click.UsageError("Missing argument 'SERIES...': give stacks, a folder, a table, --from or --watch")
    if before is not None and given:
        missing = [one.name for one in found if one.name not in before and one.alignment is None]
        if missing:
            notes.append(f"{len(missing)} series are not done in {batch.source} ({missing[0]}, …): left out")
            found = [one for one in found if one.name not in missing]
    found, left_out = fitted(STEPS[batch.step], found)
    if left_out:
        notes.append(f"columns that are no options of {STEPS[batch.step].program}: {', '.join(left_out)}: not used")
    return found, notes


def _done_before(source: Path) -> dict[str, Series] | None:
    """What another batch has done; None where the folder is not one's."""
    if not (source / "state" / "batch.json").exists():
        if not source.is_dir():
            raise InputError(f"{source}: no such folder; give the -o of the batch before")
        return None
    other = Batch.open(source)
    states = other.states()
    return {
        name: replace(one, alignment=None, options={})
        for name, one in other.series().items()
        if states.get(name) == DONE
    }


# --- running them --------------------------------------------------------------------------------------------------


def _work(
    batch: Batch,
    todo: Sequence[Series],
    watcher: Watch | None,
    workers: int | None,
    rows: list[tuple[str, object, str]],
) -> None:
    """Here, until nothing is left."""
    where = places(workers)
    gpus = sorted({place["CUDA_VISIBLE_DEVICES"] for place in where if "CUDA_VISIBLE_DEVICES" in place})
    source = f"{where[0]['OMP_NUM_THREADS']} threads each" + (f", GPUs {', '.join(gpus)}" if gpus else "")
    echo_defaults([*rows, ("workers", len(where), source)])
    ended, written = 0, time.monotonic()

    def say(name: str, record: dict[str, Any]) -> None:
        nonlocal ended, written
        ended += 1
        click.echo(f"[{ended}] {_line(name, record)}")
        if time.monotonic() - written > SUMMARY_EVERY_S:
            write_summary(batch)
            written = time.monotonic()

    runner = Runner(batch, where, say)
    runner.add(todo)
    try:
        if watcher is None:
            runner.work()
        else:
            runner.work(_noting(batch, watcher))
    except KeyboardInterrupt:
        write_summary(batch)
        click.echo(f"{batch.path}: the same call goes on with it", err=True)
        raise
    _say_unready(watcher)


def _noting(batch: Batch, watcher: Watch) -> Any:
    """The watcher, with every series it finds noted in the folder of the batch."""

    def more() -> Iterable[Series] | None:
        found = watcher()
        if found:
            batch.add(found)
        return found

    return more


def _say_unready(watcher: Watch | None) -> None:
    for path, why in sorted(watcher.unready.items()) if watcher else ():
        click.echo(f"not taken: {path}: {why}" if str(path) not in why else f"not taken: {why}")


def _submit(batch: Batch, todo: Sequence[Series], template: Path, watcher: Watch | None, wait: bool) -> None:
    """To SLURM; with a watcher as long as that goes on, with ``wait`` until all jobs have ended."""
    try:
        from inrtomo.batch.slurm import in_queue, submit
    except ModuleNotFoundError as missing:
        if missing.name != "submitit":
            raise
        raise InputError("--slurm: needs submitit; pip install submitit (or inrtomo[slurm])") from None
    jobs = []
    more = _noting(batch, watcher) if watcher else lambda: None
    fresh: Iterable[Series] | None = todo
    while fresh is not None:
        if fresh:
            these = submit(batch, list(fresh), template)
            jobs += these
            tasks = f"{len(these)} task{'s' if len(these) > 1 else ''}"
            click.echo(f"submitted {tasks}, job {these[0].job_id.partition('_')[0]}")
        fresh = more()
        if fresh is not None and not fresh:
            time.sleep(1.0)
    while wait and in_queue(jobs):
        time.sleep(WAIT_S)
    _say_unready(watcher)


# --- telling -------------------------------------------------------------------------------------------------------


def _line(name: str, record: dict[str, Any]) -> str:
    """``ts07 done in 35 s  residual 0.41 px``."""
    said = [f"{name} {record['state']} in {record['seconds']:.0f} s"]
    for key in SHOWN:
        if record["measured"].get(key) is not None:
            said.append(f"{COLUMNS[key].title} {shown(record['measured'][key])} {COLUMNS[key].unit}".rstrip())
    return "  ".join([*said, *([record["message"]] if record["state"] != DONE else [])])


def _report(summary: Summary, everything: bool = False) -> None:
    """How many are what, what failed and why, what stands out; with ``everything`` what goes on as well."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows = [(row.name, "failed", row.message) for row in summary.failed]
    rows += [(name, "look", "; ".join(reasons)) for name, reasons in summary.standing_out().items()]
    if everything:
        rows += [(row.name, "claimed", row.message) for row in summary.rows if row.state == CLAIMED]
    for row in rows[:MOST_LINES]:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False).print(table)
    if len(rows) > MOST_LINES:
        click.echo(f"… and {len(rows) - MOST_LINES} more")
    click.echo(f"{summary.line()}; see {summary.batch.path / 'summary.html'}")


def _end(summary: Summary, asked: Sequence[Series]) -> None:
    """The exit status: every series asked for is done, or a sentence."""
    if summary.failed:
        first = summary.failed[0]
        sentence = f"{len(summary.failed)} of {len(summary.rows)} series failed; see {summary.batch.log(first.name)}"
        raise OneSentence("inr-batch", f"{sentence}, then --retry", EXIT_SOME_FAILED)
    done = {row.name for row in summary.rows if row.state == DONE}
    unfinished = [one.name for one in asked if one.name not in done]
    if unfinished:  # by tasks that were cancelled, or killed
        sentence = f"{len(unfinished)} of {len(asked)} series are unfinished; the same call goes on with them"
        raise OneSentence("inr-batch", sentence, EXIT_SOME_FAILED)
