"""Results as they come, a JSON record a line: what a benchmark that was stopped goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def append(results: Path, records: Iterable[Record]) -> None:
    """Add records; a half-written last line does not take the first of them along."""
    cut_short = results.exists() and not results.read_bytes().endswith(b"\n")
    with open(results, "a", encoding="utf-8") as file:
        file.write("\n" if cut_short else "")
        for record in records:
            file.write(json.dumps(record) + "\n")


def read(results: Path) -> Iterator[Record]:
    """All records but half-written ones; none where there is no file yet."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
