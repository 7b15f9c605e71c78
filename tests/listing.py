"""Lists of pairs for ``inr-train --pairs`` in tests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from inrtomo.io.star import write_star


def copied_series(stack: Path) -> Path:
    """The same images and angles under another name."""
    copy = stack.with_name(f"{stack.stem}_again{stack.suffix}")
    shutil.copy(stack.with_suffix(".rawtlt"), copy.with_suffix(".rawtlt"))
    return Path(shutil.copy(stack, copy))


def write_list(path: Path, *rows: Mapping[str, object]) -> Path:
    """A list of rows: a value for each column without ``inr``, the same columns in all."""
    table = {f"inr{name}": [str(row[name]) for row in rows] for name in rows[0]}
    return write_star(path, {"": table}, overwrite=True)


def list_of_two(path: Path, stack: Path, alignment: Path, reference: str | Path) -> Path:
    """One for training, one for validation, of the same images."""
    given = [{"Stack": s, "Alignment": alignment, "Reference": reference} for s in (stack, copied_series(stack))]
    return write_list(path, *given)
