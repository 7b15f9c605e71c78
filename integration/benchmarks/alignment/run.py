"""Alignment benchmark: every method on simulated series whose alignment is known.

    python -m integration.benchmarks.alignment.run --series S1,S2 --methods ours,tracks,truth

Constants of the programs may be set on seeds 0 to 4; the tables to be shown are of seeds 5 to 9, run once.
Results go to WORK/results.jsonl as they come (a run that is stopped goes on where it was); tables are printed at the
end and written to WORK/results.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from inrtomo.errors import InputError
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.io.mrc import open_stack, read_volume
from inrtomo.metrics.alignment import AlignmentError, Residual, compare_alignments
from inrtomo.simulate import simulate, write_simulation
from inrtomo.simulate.settings import SimulationSettings
from inrtomo.truth import TruePoints
from integration.benchmarks import json_lines
from integration.benchmarks.alignment.case import ROOT, Case, Outcome
from integration.benchmarks.alignment.methods import METHODS, available
from integration.benchmarks.alignment.series import SERIES, benchmark_settings
from integration.benchmarks.alignment.tables import SCALING_COLUMNS, tables
from integration.benchmarks.alignment.volumes import protein_positive, score_field, score_reconstruction

DENSITIES = ROOT.parent / "shared" / "data" / "densities"
SCALING_SIZES = (128, 256, 512)
SCALING = "scaling-"
HEADLINE_SEEDS = "5-9"


@click.command(context_settings={"show_default": True})
@click.option("--series", "names", default=",".join(SERIES), help="Comma-separated; see series.py.")
@click.option(
    "--seeds", default=HEADLINE_SEEDS, help="For instance 0-4 or 0,2; 0-4 to set constants, 5-9 for tables to be shown."
)
@click.option("--methods", help=f"Of {', '.join(METHODS)}.  [default: all that can run here]")
@click.option("--scaling", is_flag=True, help="Instead: inr-align on 128, 256 and 512 px images of the S1w kind.")
@click.option("--error-bars", is_flag=True, help="Run inr-align with --error-bars and count what they cover.")
@click.option("--volumes/--no-volumes", default=True, help="Score reconstructions too.")
@click.option("--densities", type=click.Path(file_okay=False, path_type=Path), help="Folder of MRC densities.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-alignment"))
@click.option("--threads", default=2, help="Threads every program may use.")
@click.option("--again", is_flag=True, help="Run what has a result already once more (the last one counts).")
def main(
    names: str,
    seeds: str,
    methods: str | None,
    scaling: bool,
    error_bars: bool,
    volumes: bool,
    densities: Path | None,
    work: Path,
    threads: int,
    again: bool,
) -> None:
    """Score alignment methods on simulated series with known alignment."""
    if densities is None and DENSITIES.is_dir():
        densities = DENSITIES
    click.echo(f"molecules: {densities or 'procedural'}")
    chosen = methods.split(",") if methods else ["ours"] if scaling else available()
    wanted = [f"{SCALING}{size}" for size in SCALING_SIZES] if scaling else names.split(",")
    for name, known in [(m, list(METHODS)) for m in chosen] + [(n, list(SERIES)) for n in wanted if not scaling]:
        if name not in known:
            raise click.UsageError(f"{name!r} is none of {', '.join(known)}")
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.jsonl"
    options = ("--error-bars",) if error_bars else ()
    for name in wanted:
        for seed in seed_numbers(seeds):
            done = {} if again else _records(results)
            missing = [m for m in chosen if not _is_done(done, name, seed, m)]
            if not missing:
                continue
            case = simulated_case(name, seed, densities, work, threads, options)
            for method in missing:
                for record in _run(case, method, volumes and not scaling):
                    json_lines.append(results, [record])
                    _echo(record)
    records = [r for r in _records(results).values() if r["series"] in wanted]
    text = tables(records, SCALING_COLUMNS) if scaling else tables(records)
    (work / ("scaling.md" if scaling else "results.md")).write_text(text, encoding="utf-8")
    click.echo(f"\n{text}")


def _run(case: Case, method: str, volumes: bool) -> Iterator[dict[str, Any]]:
    """Records of a method on a case, with an ``error`` instead of numbers where it failed."""
    head = {"series": case.name, "seed": case.seed, "run": method}
    try:
        outcomes = METHODS[method](case)
    except (RuntimeError, InputError, OSError) as error:
        yield {**head, "method": f"{method} (failed)", "error": str(error)}
        return
    for outcome in outcomes:
        yield {**head, **scored(case, outcome, volumes)}


def scored(case: Case, outcome: Outcome, volumes: bool) -> dict[str, Any]:
    """What is measured of an outcome; with ``volumes`` also of back-projections along it and of its own density."""
    error = compare_alignments(outcome.alignment, case.truth, case.thickness_px, exclude=case.blanks, known=case.known)
    pixels = case.truth.n_tilts * case.truth.image_size[0] * case.truth.image_size[1]
    record: dict[str, Any] = {
        "method": outcome.method,
        "rigid": _numbers_of(error.rigid),
        "gauge_free": _numbers_of(error.gauge_free),
        "per_tilt_px": error.gauge_free.per_tilt_px.round(4).tolist(),
        "shift_rms_px": _rms(np.linalg.norm(error.gauge_free.shift_px, axis=1)),
        "turn_rms_deg": _rms(error.gauge_free.turn_deg),
        "angle_rms_deg": _rms(error.angle_deg),
        "wall_s": outcome.wall_s,
        "peak_MB": outcome.peak_MB,
        "us_per_pixel": None if outcome.wall_s is None else outcome.wall_s / pixels * 1e6,
        **outcome.notes,
    }
    if outcome.thickness_px is not None:  # it calls itself levelled
        record["off_level_y_deg"], record["off_level_x_deg"] = map(abs, error.lean_deg(case.known.normal))
        record["thickness_ratio"] = outcome.thickness_px / case.known.thickness_px
    if "excluded" in outcome.notes:
        record["good_tilts_excluded"] = sorted(set(outcome.alignment.excluded) - set(case.blanks))
        record["blanks_missed"] = sorted(set(case.blanks) - set(outcome.alignment.excluded))
    if outcome.sigma_shift_px is not None:
        record["error_bars_cover"] = _coverage(error, np.asarray(outcome.sigma_shift_px, dtype=np.float64))
    if volumes:
        truth, pixel_A = read_volume(case.folder / f"{case.name}_truth.mrc")
        counts = bool(case.meta["settings"]["counts"])
        images = protein_positive(open_stack(case.stack).read(), counts)
        pixel_A = pixel_A or 1.0
        used = replace(
            outcome.alignment,
            excluded={**outcome.alignment.excluded, **{tilt: "blank" for tilt in case.blanks}},
        )
        record["fbp"] = score_reconstruction(images, used, error.motion, truth, pixel_A)
        if outcome.volume is not None:
            record["field"] = score_field(outcome.volume, error.motion, truth, pixel_A)
    return record


def _coverage(error: AlignmentError, sigma: np.ndarray) -> float:
    """Part of the true shift errors, gauge removed, that lie within their own standard error."""
    return float((np.abs(error.gauge_free.shift_px) <= sigma[error.tilts]).mean())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def _numbers_of(residual: Residual) -> dict[str, float]:
    return {key: value for key, value in asdict(residual).items() if isinstance(value, float)}


def simulated_case(
    name: str, seed: int, densities: Path | None, work: Path, threads: int, options: tuple[str, ...]
) -> Case:
    """The series, simulated if it is not there yet."""
    folder = work / "series" / f"{name}_{seed}"
    truth_path = folder / f"{name}_truth.json"
    settings = _settings(name, seed, densities)
    if not truth_path.exists():
        click.echo(f"simulating {name}, seed {seed}")
        write_simulation(simulate(settings), folder, name, overwrite=True)
    meta = json.loads(truth_path.read_text(encoding="utf-8"))
    if _comparable(meta["settings"]) != _comparable(json.loads(json.dumps(settings.as_dict()))):
        raise click.UsageError(f"{folder}: made with other settings; delete it")
    axis_deg = settings.axis_deg if settings.nominal_axis_deg is None else settings.nominal_axis_deg
    runs = work / "runs" / f"{name}_{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    return Case(
        name=name,
        seed=seed,
        folder=folder.resolve(),
        work=runs.resolve(),
        truth=alignment_from_dict(meta),
        known=_points_of(meta, folder),
        meta=meta,
        axis_deg=axis_deg,
        blanks=tuple(meta["blanks"]),
        threads=threads,
        align_options=options,
    )


def _points_of(meta: dict[str, Any], folder: Path) -> TruePoints:
    points = TruePoints.from_dict(meta)
    if points is None:
        raise click.UsageError(f"{folder}: made by an older version; delete it")
    return points


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without where on this machine the densities are."""
    return {**settings, "densities": settings["densities"] is not None}


def _settings(name: str, seed: int, densities: Path | None) -> SimulationSettings:
    if not name.startswith(SCALING):
        return benchmark_settings(name, seed, densities)
    size = int(name.removeprefix(SCALING))
    s1 = benchmark_settings("S1w", seed, densities)
    return replace(s1, size=(size, size), thickness_px=round(s1.thickness_px * size / s1.size[0]))


def _records(results: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The last record of every series, seed and method."""
    records: dict[tuple[str, int, str], dict[str, Any]] = {}
    for record in json_lines.read(results):
        if "error" not in record:
            records.pop((record["series"], record["seed"], f"{record['run']} (failed)"), None)
        records[record["series"], record["seed"], record["method"]] = record
    return records


def _is_done(records: dict[tuple[str, int, str], dict[str, Any]], name: str, seed: int, run: str) -> bool:
    return any(
        record["run"] == run and "error" not in record
        for (series, number, _), record in records.items()
        if (series, number) == (name, seed)
    )


def _echo(record: dict[str, Any]) -> None:
    head = f"{record['series']} seed {record['seed']}  {record['method']}: "
    if "error" in record:
        click.echo(f"{head}FAILED, {record['error']}")
        return
    free, parts = record["gauge_free"], ""
    for part in ("smooth", "jitter", "local"):
        parts += f"  {part} {free[f'{part}_px']:.3f}"
    text = f"{head}{free['rms_px']:.3f} px ({record['rigid']['rms_px']:.3f} rigid){parts}"
    for key in ("fbp", "field"):
        if key in record:
            text += f"  {key} CC {record[key]['cc']:.3f}"
    if record["wall_s"] is not None:
        text += f"  {record['wall_s']:.0f} s  {record['peak_MB']:.0f} MB"
    click.echo(text)


def seed_numbers(text: str) -> list[int]:
    """``0-2,4`` -> [0, 1, 2, 4]."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise click.UsageError(f"--seeds {text}: write it as 0-4 or 0,2")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


if __name__ == "__main__":
    main()
