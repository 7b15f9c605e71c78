"""Arrays from ``.npz`` files of our own making: checkpoints, fields, samples.

Headers are not believed: an array that would be larger than the file is refused before it is allocated. Nothing
pickled is opened, since opening it would run whatever somebody put there.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of a file that `numpy.savez` wrote, by name.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: anything else that is wrong with it, in one line.
    """
    try:
        _check_headers(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the parsers of zip and numpy let through whatever a damaged file leads to
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:100]) from error


def _check_headers(path: Path) -> None:
    left = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
                raise ValueError(f"{info.filename} is no plain array")
            with archive.open(info) as part:
                version = npy.read_magic(part)
                if version not in HEADERS:
                    raise ValueError(f"{info.filename} has an unknown version")
                shape, _, dtype = HEADERS[version](part)
            left -= dtype.itemsize * math.prod(shape)
            if dtype.hasobject or left < 0 or min(shape, default=0) < 0:
                raise ValueError(f"{info.filename} is not what its header says")
