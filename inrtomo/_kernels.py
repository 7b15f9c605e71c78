"""Where compiled kernels are kept, for users who can write neither to the installation nor to their home directory.

numba looks in those two places and raises where it may write to neither: in a container without a home directory, on
nodes where that is read-only. The temporary folder of the system is always there.
"""

from __future__ import annotations

import os
import stat


def find_place() -> None:
    """Name a folder to numba, in the environment, where it would find none."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    usual = (os.path.dirname(__file__), os.path.join(cache, "numba"))
    if not os.environ.get("NUMBA_CACHE_DIR") and not any(map(_can_write, usual)):
        os.environ["NUMBA_CACHE_DIR"] = _own_folder()


def _can_write(folder: str) -> bool:
    while not os.path.exists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def _own_folder() -> str:
    """Among the temporary files; kernels are code, so it has to be one that nobody else can put any into."""
    from tempfile import gettempdir, mkdtemp  # slow to load, and seldom needed

    folder = os.path.join(gettempdir(), f"inrtomo-kernels-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        there = os.lstat(folder)
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or stat.S_IMODE(there.st_mode) & 0o077:
            return mkdtemp(prefix="inrtomo-kernels-")
    return folder
