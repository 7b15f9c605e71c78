"""Records as tables: Markdown on the screen and in a file, all numbers as JSON beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
Column = tuple[str, str, str]
"""Heading, key of the record, format of a number (lists: of each)."""


def table(title: str, rows: Sequence[Record], columns: Sequence[Column]) -> str:
    """A Markdown table; columns that no row has are left out."""
    used = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    head = f"| {title} |" + "".join(f" {name} |" for name, _, _ in used)
    lines = [head, "|---|" + "---|" * len(used)]
    lines += [f"| {row['row']} |" + "".join(f" {_cell(row.get(key), form)} |" for _, key, form in used) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(form.format(v) for v in value)
    return value if isinstance(value, str) else form.format(value)


def write_results(work: Path, part: str, values: Record, text: str) -> None:
    """``PART.json`` and ``PART.md`` in the work folder."""
    (work / f"{part}.json").write_text(json.dumps(_plain(values), indent=1), encoding="utf-8")
    (work / f"{part}.md").write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
