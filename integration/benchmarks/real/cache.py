"""Intermediate results kept on disk, so that a run that was stopped goes on and a new alignment costs its own time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.files import atomic_path

Arrays = dict[str, NDArray[Any]]


def digest(*given: Any) -> str:
    """A name for what a result is made from: plain values, arrays, alignments and files (by name, size and time)."""
    return hashlib.sha256(json.dumps([_plain(value) for value in given]).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Alignment):
        return alignment_to_dict(value)
    if isinstance(value, Path):
        about = value.stat()
        return [value.name, about.st_size, about.st_mtime_ns]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def cached(work: Path, kind: str, name: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``work/kind/name.npz``, made if they are not there."""
    path = work / kind / f"{name}.npz"
    if not path.is_file():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    with np.load(path) as kept:
        return dict(kept)
