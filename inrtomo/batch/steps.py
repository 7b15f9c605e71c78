"""The commands a batch can run: what each is given for a series, and what is read from its results."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from inrtomo.batch.manifest import Series
from inrtomo.errors import InputError

OWN = ("-o", "--output", "--resume")
"""Options that are for inr-batch to give."""
Measured = dict[str, float | str | None]


@dataclass(frozen=True)
class Step:
    """One command: ``arguments(series, source folder or None, output folder)`` and what its results say."""

    name: str
    arguments: Callable[[Series, Path | None, Path], list[str]]
    again: tuple[str, ...]
    """Given always, so that a series that was interrupted can be gone on with: the output folder is the batch's own."""
    measured: Callable[[Series, Path], Measured]

    @property
    def program(self) -> str:
        return f"inr-{self.name}"

    def command(self) -> click.Command:
        """The command itself, for its options."""
        main: click.Command = importlib.import_module(f"inrtomo.commands.{self.name}").main
        return main


def _align(series: Series, source: Path | None, out: Path) -> list[str]:
    start = () if series.alignment is None else ("--start", series.alignment)
    return [series.stack, "-o", str(out), *start]


def _align_measured(series: Series, out: Path) -> Measured:
    values = _json(out / f"{Path(series.stack).stem}_align.json")
    guard = values["guard"]
    return {
        **_verdict(values),
        "residual_px": values["residual_rms_px"],
        "thickness_nm": values["thickness_nm"],
        "axis_deg": values["tilt_axis_deg"],
        "excluded_tilts": len(values["excluded_tilts"]),
        "held_out_loss": values["held_out_loss"],
        "kept": "tracks" if guard is None else guard["chosen"],
        "axis_doubtful": "yes" if values["tilt_axis_ambiguous"] else "no",
        "memory_GiB": values["peak_memory_bytes"] / 2**30,
    }


def _alignment(series: Series, source: Path | None) -> str:
    if series.alignment is not None:
        return series.alignment
    if source is None:
        raise InputError(f"{series.name}: no alignment; give --from the folder of inr-batch align, or it in a column")
    return str(source / series.name)


def _recon(series: Series, source: Path | None, out: Path) -> list[str]:
    return [series.stack, _alignment(series, source), "-o", str(out / f"{series.name}_rec.mrc")]


def _recon_measured(series: Series, out: Path) -> Measured:
    made = _json(out / f"{series.name}_rec.json")["all"]
    return {"tilts_used": len(made["tilts_used"]), "energy_in_wedge": made["wedge_energy"]}


def _infer(series: Series, source: Path | None, out: Path) -> list[str]:
    return _recon(series, source, out)  # under the same name, so that inr-batch fsc finds its halves


def _infer_measured(series: Series, out: Path) -> Measured:
    outside = _json(out / f"{series.name}_rec.json")["all"]["outside_training_range"]
    return _recon_measured(series, out) | {"outside_training": "yes" if outside else "no"}


def _export(series: Series, source: Path | None, out: Path) -> list[str]:
    return [series.stack, _alignment(series, source), "-o", str(out / f"{series.name}_ali.mrc")]


def _export_measured(series: Series, out: Path) -> Measured:
    values = _json(out / f"{series.name}_ali.json")
    return {"least_seen": min(values["seen_fraction"]), "excluded_tilts": len(values["excluded_tilts"])}


def _fsc(series: Series, source: Path | None, out: Path) -> list[str]:
    if source is None:
        raise InputError(f"{series.name}: no half tomograms; give --from the folder of inr-batch recon … -- --halves")
    halves = [str(source / series.name / f"{series.name}_rec_{half}.mrc") for half in ("odd", "even")]
    return [*halves, "-o", str(out / series.name)]


def _fsc_measured(series: Series, out: Path) -> Measured:
    return {"resolution_A": _json(out / f"{series.name}.json")["resolution_A"]}


def _report(series: Series, source: Path | None, out: Path) -> list[str]:
    return [_alignment(series, source), "-o", str(out / series.name), "--stack", series.stack]


def _report_measured(series: Series, out: Path) -> Measured:
    values = _json(out / f"{series.name}_report.json")
    return {
        **_verdict(values),
        "disagreement_px": values["disagreement_px"],
        "residual_px": values["residual_rms_px"],
        "thickness_nm": values["thickness_nm"],
        "axis_deg": values["tilt_axis_deg"],
        "excluded_tilts": values["excluded_tilts"],
        "resolution_A": values["resolution_A"],
    }


def _verdict(values: dict[str, Any]) -> Measured:
    """Good, check or failed, and where it is not good, why; nothing of results from before there was a verdict."""
    if "verdict" not in values:
        return {}
    return {"verdict": values["verdict"], "why": "" if values["verdict"] == "good" else "; ".join(values["reasons"])}


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


STEPS = {
    step.name: step
    for step in (
        Step("align", _align, ("--resume",), _align_measured),
        Step("export", _export, ("--overwrite",), _export_measured),
        Step("recon", _recon, ("--overwrite",), _recon_measured),
        Step("infer", _infer, ("--overwrite",), _infer_measured),
        Step("fsc", _fsc, ("--overwrite",), _fsc_measured),
        Step("report", _report, ("--overwrite",), _report_measured),
    )
}


def check_options(step: Step, options: Sequence[str]) -> None:
    """Refuse (InputError) what would make every single series fail: options that the command does not have."""
    if not options:
        return
    command = step.command()
    for word in options:
        if word.partition("=")[0] in OWN:
            raise InputError(f"{word}: is inr-batch's to give to {step.program}; leave it out")
    paths = [p.metavar or p.name or "" for p in command.params if isinstance(p, click.Argument)]
    with command.make_context(step.program, [*paths, "-o", "x.mrc", *options]):
        pass


def columns(step: Step) -> dict[str, click.Option]:
    """Options of the command by the name of the column that gives them to single series: tilt_axis, thickness, …"""
    options = (p for p in step.command().params if isinstance(p, click.Option))
    return {p.opts[-1].lstrip("-").replace("-", "_"): p for p in options if p.opts[-1] not in (*OWN, "--version")}


def fitted(step: Step, series: Sequence[Series]) -> tuple[list[Series], list[str]]:
    """The series with only those columns that are options of the command, and the names of the others."""
    if not any(one.options for one in series):
        return list(series), []
    known = columns(step)
    left_out = dict.fromkeys(name for one in series for name in one.options if name not in known)
    if not left_out:
        return list(series), []
    kept = [replace(one, options={k: v for k, v in one.options.items() if k in known}) for one in series]
    return kept, list(left_out)


def command_line(step: Step, series: Series, source: Path | None, out: Path, options: Sequence[str]) -> list[str]:
    """What the command is called with; options of the series come last, and so before those of all."""
    words = [*step.arguments(series, source, out), *step.again, *options]
    known = columns(step) if series.options else {}
    for name, value in series.options.items():
        option = known[name]
        if not option.is_flag:
            words += [option.opts[-1], *(value.split() if option.nargs > 1 else [value])]
        elif value.lower() in ("1", "true", "yes"):
            words.append(option.opts[-1])
    return [*words, "--resume"] if step.name == "recon" and _is_fit(step, words) else words


def _is_fit(step: Step, words: Sequence[str]) -> bool:
    """Whether inr-recon is asked for a field, the one method that takes long and can be gone on with."""
    try:
        with step.command().make_context(step.program, list(words)) as context:
            return bool(context.params["method"] == "field")
    except click.ClickException:
        return False  # the command itself says what is wrong
