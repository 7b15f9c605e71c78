"""What came of a batch: a row a series, which values stand out, and the files that say so."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inrtomo.batch.state import CLAIMED, DONE, FAILED, WAITING, Batch
from inrtomo.batch.steps import Measured
from inrtomo.io.files import write_text

OUTLIER_SD = 4.0
"""Values further than so many (robust) standard deviations from the median stand out ..."""
LEAST_FRACTION = 0.05
"""... if they differ from it by more than this part of it too, or by what the column says: series of one session agree
almost exactly."""
FEWEST = 5
"""Of fewer series nobody can say what is usual."""
HIGH, LOW, BOTH = "high", "low", "both"


@dataclass(frozen=True)
class Column:
    """A measured value: how it is called, its unit, and on which side it is worth a look, or unlike which word."""

    title: str
    unit: str = ""
    side: str = ""
    least: float | None = None
    is_angle: bool = False
    good: str = ""
    why: str = ""
    """Column that says why."""


COLUMNS = {
    "verdict": Column("verdict", good="good", why="why"),
    "why": Column("why"),
    "disagreement_px": Column("disagreement", "px", HIGH),
    "residual_px": Column("residual", "px", HIGH),
    "thickness_nm": Column("thickness", "nm", BOTH),
    "axis_deg": Column("tilt axis", "°", BOTH, least=1.0, is_angle=True),
    "excluded_tilts": Column("tilts left out", "", HIGH, least=3.0),
    "held_out_loss": Column("held-out loss", "", HIGH),
    "kept": Column("kept"),
    "axis_doubtful": Column("axis 180° in doubt"),
    "outside_training": Column("unlike the training", good="no"),
    "memory_GiB": Column("memory", "GiB"),
    "tilts_used": Column("tilts used", "", LOW, least=3.0),
    "energy_in_wedge": Column("variance in wedge", "", HIGH),
    "least_seen": Column("least seen", "", LOW),
    "resolution_A": Column("resolution", "Å", HIGH),
}


@dataclass(frozen=True)
class Row:
    """A series and what became of it."""

    name: str
    stack: str
    state: str
    message: str = ""
    attempts: int = 0
    seconds: float | None = None
    measured: Measured = field(default_factory=dict)
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """All series of a batch, in the order they were given."""

    batch: Batch
    rows: Sequence[Row]

    @cached_property
    def count(self) -> Counter[str]:
        return Counter(row.state for row in self.rows)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.state == FAILED]

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Those that some series has a value for."""
        return {key: column for key, column in COLUMNS.items() if any(key in row.measured for row in self.rows)}

    def numbers(self, key: str) -> NDArray[np.float64]:
        """A value of every series, NaN where it is not known."""
        values = (row.measured.get(key) for row in self.rows)
        return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)

    @cached_property
    def outliers(self) -> dict[str, NDArray[np.bool_]]:
        """For each column that has a side to look at, which series stand out."""
        return {key: outlying(self.numbers(key), column) for key, column in self.columns.items() if column.side}

    def standing_out(self) -> dict[str, list[str]]:
        """Names of series that stand out, and in what."""
        found: dict[str, list[str]] = {}
        for key, column in self.columns.items():
            for row in self.rows if column.good else ():
                if row.measured.get(key, column.good) != column.good:
                    why = row.measured.get(column.why)
                    said = f"{column.title} {shown(row.measured[key])}" + (f": {why}" if why else "")
                    found.setdefault(row.name, []).append(said)
        for key, flags in self.outliers.items():
            column = self.columns[key]
            middle = np.nanmedian(self.numbers(key)) if flags.any() else 0.0
            for k in np.flatnonzero(flags).tolist():
                value = f"{column.title} {shown(self.rows[k].measured[key])} {column.unit}".rstrip()
                found.setdefault(self.rows[k].name, []).append(f"{value} (median {shown(float(middle))})")
        return found

    def line(self) -> str:
        """``8 of 10 done, 1 failed, 1 waiting``."""
        others = [f"{n} {state}" for state, n in sorted(self.count.items()) if state != DONE]
        return ", ".join([f"{self.count[DONE]} of {len(self.rows)} done", *others])


def summarise(batch: Batch) -> Summary:
    """The batch as its files say it is now."""
    states = batch.states()
    rows = []
    for name, series in batch.series().items():
        state = states.get(name, WAITING)
        record = batch.record(name) if state != WAITING else None
        message = str(record["message"]) if record else ""
        if state == CLAIMED:
            message = "its worker is gone; inr-batch takes it over" if batch.is_lost(name) else "running"
        if record is None:
            rows.append(Row(name, series.stack, state, message))
            continue
        rows.append(
            Row(
                name, series.stack, state, message, int(record["attempts"]), float(record["seconds"]),
                record["measured"], tuple(record["tail"]),
            )
        )  # fmt: skip
    return Summary(batch, rows)


def write_summary(batch: Batch) -> Summary:
    """Write ``summary.csv`` and ``summary.html`` into the folder of the batch."""
    from inrtomo.batch.page import page

    summary = summarise(batch)
    write_text(batch.path / "summary.csv", table(summary), overwrite=True)
    when = time.strftime("%Y-%m-%d %H:%M")
    write_text(batch.path / "summary.html", page(summary, when), overwrite=True)
    return summary


def table(summary: Summary) -> str:
    """All rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    standing_out = summary.standing_out()
    writer.writerow(["name", "state", *summary.columns, "stands_out", "attempts", "seconds", "message", "stack"])
    for row in summary.rows:
        measured = [_plain(row.measured.get(key)) for key in summary.columns]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        out = "; ".join(standing_out.get(row.name, ()))
        writer.writerow([row.name, row.state, *measured, out, row.attempts, seconds, row.message, row.stack])
    return text.getvalue()


def outlying(values: NDArray[np.float64], column: Column) -> NDArray[np.bool_]:
    """Which values are far from the median on the column's side, by the median absolute deviation; NaN never is.

    Angles are in degrees: 359 and 1 are neighbours.
    """
    known = np.isfinite(values)
    far = np.zeros(len(values), dtype=bool)
    if known.sum() < FEWEST:
        return far
    middle = _middle_angle(values[known]) if column.is_angle else float(np.median(values[known]))
    away = np.where(known, values - middle, 0.0)
    if column.is_angle:
        away = (away + 180) % 360 - 180
    spread = 1.4826 * float(np.median(np.abs(away[known])))
    least = LEAST_FRACTION * abs(middle) if column.least is None else column.least
    away = {HIGH: away, LOW: -away, BOTH: np.abs(away)}[column.side]
    far[:] = known & (away >= max(OUTLIER_SD * spread, least)) & (away > 0)
    return far


def _middle_angle(degrees: NDArray[np.float64]) -> float:
    """The median of angles, counted from where most of them are."""
    folded = np.round(degrees) % 360
    usual = float(np.bincount(folded.astype(int)).argmax())
    return usual + float(np.median((degrees - usual + 180) % 360 - 180))


def shown(value: float | str | None) -> str:
    """As people read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _plain(value: float | str | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shown(value)


def alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Failed series by why, the largest group first: names of files and numbers make no difference."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        words = (word for word in row.message.split() if "/" not in word and not any(c.isdigit() for c in word))
        kinds.setdefault(" ".join(words), []).append(row)
    return sorted(kinds.values(), key=len, reverse=True)
