"""What there is to do, done once: jobs, their records in a file, and the records as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inrtomo.errors import InputError
from integration.benchmarks import json_lines
from integration.benchmarks.json_lines import Record

Column = tuple[str, str, str]
"""Heading, key of the record (``a.b`` for nested ones), format."""


@dataclass(frozen=True)
class Job:
    """Something that gives records, each a row of a table.

    Attributes:
        name: unique within a part, but for the seed.
        run: gives the records, each with ``table`` and ``row``.
    """

    name: str
    seed: int
    run: Callable[[], Iterable[Record]]


@dataclass(frozen=True)
class Options:
    """Of the command line, for all parts.

    Attributes:
        work: folder of results.
        seeds: of specimens, noise and fits.
        size: px of the side of a specimen, None for each part's own.
        methods: None for each part's own.
        threads: every program may use.
        densities: folder of molecules, None for procedural ones.
        series: names of the alignment benchmark's.
        aligned: work folder of the alignment benchmark.
        stack, alignment, bin: of the real series.
    """

    work: Path
    seeds: Sequence[int] = (0,)
    size: int | None = None
    methods: Sequence[str] | None = None
    threads: int = 2
    densities: Path | None = None
    series: Sequence[str] = ("S1w", "S2w", "S3w", "S4w", "S5w")
    aligned: Path = Path("benchmark-alignment")
    stack: Path | None = None
    alignment: Path | None = None
    bin: int = 4


def do(part: str, jobs: Iterable[Job], results: Path, again: bool, say: Callable[[str], None]) -> None:
    """Run the jobs that have no records yet, and append theirs; a failed one is told and leaves its error."""
    for job in jobs:
        head = {"part": part, "job": job.name, "seed": job.seed}
        if not again and any(_same(record, head) and "error" not in record for record in records(results)):
            continue
        start, spent = time.monotonic(), time.process_time()
        found: list[Record] = []
        try:
            found = list(job.run())
        except (RuntimeError, InputError, OSError) as error:
            found = [{"table": "failed", "row": job.name, "error": str(error)}]
        took = time.monotonic() - start
        head |= {"job_s": round(took, 2), "job_cpu_s": round(time.process_time() - spent, 2)}
        json_lines.append(results, [head | record for record in found])
        say(f"{part}: {job.name}, seed {job.seed}: {found[-1].get('error', f'{took:.0f} s')}")


def records(results: Path, part: str | None = None) -> list[Record]:
    """The last records of every job and seed."""
    latest: dict[tuple[Any, ...], Record] = {}
    for record in json_lines.read(results):
        head = (record["part"], record["job"], record["seed"])
        if "error" not in record:
            latest.pop(head + ("failed", record["job"]), None)
        latest[head + (record["table"], record["row"])] = record
    return [record for record in latest.values() if part in (None, record["part"])]


def _same(record: Record, head: Record) -> bool:
    return all(record[key] == value for key, value in head.items())


def tables(rows: Sequence[Record], columns: Sequence[Column]) -> str:
    """Markdown, a table for every ``table``, the median over seeds in each cell; failures are listed below."""
    out = []
    good = [row for row in rows if "error" not in row]
    for name in dict.fromkeys(row["table"] for row in good):
        here = [row for row in good if row["table"] == name]
        used = [c for c in columns if any(_value(row, c[1]) is not None for row in here)]
        lines = [
            f"| {name} | seeds |" + "".join(f" {title} |" for title, _, _ in used),
            "|---|---|" + "---|" * len(used),
        ]
        for label in dict.fromkeys(row["row"] for row in here):
            runs = [row for row in here if row["row"] == label]
            cells = "".join(f" {_median(runs, key, form)} |" for _, key, form in used)
            lines.append(f"| {label} | {len({row['seed'] for row in runs})} |{cells}")
        out.append("\n".join(lines) + "\n")
    failed = [f"- {row['row']}, seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*out, *(["\n".join(failed) + "\n"] if failed else [])])


def _median(rows: Sequence[Record], key: str, form: str) -> str:
    values = [value for row in rows if (value := _value(row, key)) is not None]
    return form.format(float(np.median(values))) if values else ""


def _value(record: Record, key: str) -> float | None:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else float(value)
