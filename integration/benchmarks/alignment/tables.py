"""Benchmark records as Markdown tables: the median over seeds for every series and method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]

LAST_TUNED_SEED = 4

ALIGNMENT_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("error after slice gauge", "gauge_free.rms_px", "{:.3f}"),
    ("after rigid only", "rigid.rms_px", "{:.3f}"),
    ("smooth", "gauge_free.smooth_px", "{:.3f}"),
    ("jitter", "gauge_free.jitter_px", "{:.3f}"),
    ("local", "gauge_free.local_px", "{:.3f}"),
    ("shifts (px)", "shift_rms_px", "{:.3f}"),
    ("rotation (°)", "turn_rms_deg", "{:.3f}"),
    ("angles (°)", "angle_rms_deg", "{:.2f}"),
    ("off level about y (°)", "off_level_y_deg", "{:.2f}"),
    ("about x (°)", "off_level_x_deg", "{:.2f}"),
    ("thickness of true", "thickness_ratio", "{:.2f}"),
    ("FBP CC", "fbp.cc", "{:.3f}"),
    ("of truth's", "fbp_cc_of_truth", "{:.1%}"),
    ("FBP FSC", "fbp.fsc_mean", "{:.3f}"),
    ("of truth's", "fbp_fsc_of_truth", "{:.1%}"),
    ("field CC", "field.cc", "{:.3f}"),
    ("field FSC", "field.fsc_mean", "{:.3f}"),
    ("time (s)", "wall_s", "{:.1f}"),
    ("processor time (s)", "cpu_s", "{:.0f}"),
    ("memory (MB)", "peak_MB", "{:.0f}"),
)
SCALING_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("error after slice gauge", "gauge_free.rms_px", "{:.3f}"),
    ("time (s)", "wall_s", "{:.1f}"),
    ("µs per pixel and tilt", "us_per_pixel", "{:.1f}"),
    ("memory (MB)", "peak_MB", "{:.0f}"),
)


def tables(records: Iterable[Record], columns: Sequence[tuple[str, str, str]] = ALIGNMENT_COLUMNS) -> str:
    """One table per series, without columns that have nothing; failed runs are listed below it."""
    everything = _with_ratios(list(records))
    out = []
    for series in dict.fromkeys(str(record["series"]) for record in everything):
        here = [record for record in everything if record["series"] == series]
        out.append(f"### {_caption(series, here)}\n\n{_table(here, columns)}\n{_remarks(here)}")
    return "\n".join(out)


def _caption(series: str, records: Sequence[Record]) -> str:
    seeds = sorted({int(record["seed"]) for record in records})
    tuned = [seed for seed in seeds if seed <= LAST_TUNED_SEED]
    text = f"{series}, medians over seeds {', '.join(map(str, seeds))}"
    if tuned:
        return f"{text}; constants were set on seeds 0 to {LAST_TUNED_SEED}, this is no headline"
    return f"{text}, on which no constant was set"


def _table(records: Sequence[Record], columns: Sequence[tuple[str, str, str]]) -> str:
    columns = [c for c in columns if any("error" not in r and _value(r, c[1]) is not None for r in records)]
    lines = [
        "| method | seeds | " + " | ".join(name for name, _, _ in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for method in dict.fromkeys(str(record["method"]) for record in records):
        runs = [r for r in records if r["method"] == method and "error" not in r]
        if not runs:
            continue
        cells = [_median(runs, key, form.format) for _, key, form in columns]
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _median(records: Sequence[Record], key: str, form: Callable[[float], str]) -> str:
    values = [value for record in records if (value := _value(record, key)) is not None]
    return form(float(np.median(values))) if values else ""


def _value(record: Record, key: str) -> float | None:
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else float(value)


def _with_ratios(records: list[Record]) -> list[Record]:
    """Back-projections relative to that with the true alignment of the same series."""
    best = {(r["series"], r["seed"]): r.get("fbp") for r in records if r["method"] == "truth" and "error" not in r}
    out = []
    for record in records:
        own, other = record.get("fbp"), best.get((record["series"], record["seed"]))
        if own and other:
            ratios = {
                "fbp_cc_of_truth": own["cc"] / other["cc"],
                "fbp_fsc_of_truth": own["fsc_mean"] / other["fsc_mean"],
            }
            record = {**record, **ratios}
        out.append(record)
    return out


def _remarks(records: Sequence[Record]) -> str:
    remarks = []
    for record in records:
        name = f"{record['method']}, seed {record['seed']}"
        if "error" in record:
            remarks.append(f"- {name}: {record['error']}")
        wrong = record.get("good_tilts_excluded") or []
        missed = record.get("blanks_missed") or []
        if wrong:
            remarks.append(f"- {name}: excluded good tilts {wrong}")
        if missed:
            remarks.append(f"- {name}: did not exclude blank tilts {missed}")
    covered = [record["error_bars_cover"] for record in records if record.get("error_bars_cover") is not None]
    if covered:
        remarks.append(f"- 68 % error bars cover {np.median(covered):.0%} of the shift errors (median over seeds)")
    return "\n".join(remarks) + "\n" if remarks else ""
