"""Output files that are complete or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inrtomo.errors import InputError


def check_output(path: str | Path, overwrite: bool) -> None:
    """Refuse (InputError) a path that exists already, unless it may be overwritten."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another name or --overwrite")


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, renamed to it when the block ends well, removed when it does not."""
    path = Path(path)
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        check_output(path, overwrite)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
