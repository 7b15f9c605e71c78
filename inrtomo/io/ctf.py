"""Defocus of every image from CTFFIND's text, AreTomo's ``_CTF.txt`` or IMOD's ``.defocus``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.files import read_text

Array = NDArray[np.float64]

NM_TO_A = 10.0
RANGE_A = (100.0, 300_000.0)
ASTIGMATISM_FLAG = 1
IMOD_VERSIONS = (2, 3)
CTFFIND_COLUMNS = 6
MAX_VIEW = 100_000


def read_defocus(path: str | Path, n_tilts: int) -> Array:
    """Underfocus in Å, mean of both axes, of every image in stack order, ``(n_tilts,)``.

    CTFFIND and AreTomo: ``image  defocus_1  defocus_2  ...`` in Å, images counted from 1. IMOD: ``first_view
    last_view  angle  angle  defocus  ...`` in nm, versions 1 to 3 (3 may have two values, for astigmatism); a view in
    several ranges gets their mean. Images that are not mentioned are interpolated from their neighbours in the stack.

    Raises:
        InputError: another format, images that the stack has not, values that are no defocus.
    """
    lines = read_text(path).splitlines()
    commented = any(line.lstrip().startswith("#") for line in lines)
    rows = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    try:
        table = [[float(word) for word in row] for row in rows]
    except ValueError:
        raise InputError(f"{path}: holds more than numbers; give CTFFIND's, AreTomo's or IMOD's defocus file") from None
    if not table:
        raise InputError(f"{path}: holds no defocus; give another file")
    # a second column of thousands is Å, not the last view of a range
    if commented or min(row[1] if len(row) > 1 else 0.0 for row in table) > MAX_VIEW / 100:
        entries = _ctffind(table, path)
    else:
        entries = _imod(table, path)
    total, count = np.zeros(n_tilts), np.zeros(n_tilts)
    for first, last, defocus in entries:
        if not 0 <= first <= last < n_tilts:
            raise InputError(f"{path}: mentions image {last + 1} of {n_tilts}; give the file of this series")
        if not RANGE_A[0] <= defocus <= RANGE_A[1]:
            raise InputError(f"{path}: {defocus:g} Å is not an underfocus; correct it")
        total[first : last + 1] += defocus
        count[first : last + 1] += 1
    known = np.flatnonzero(count)
    return np.interp(np.arange(n_tilts), known, total[known] / count[known])


def _ctffind(table: list[list[float]], path: str | Path) -> list[tuple[int, int, float]]:
    """(image, image, Å), images from 0."""
    if any(len(row) < CTFFIND_COLUMNS for row in table):
        raise InputError(f"{path}: has lines that are not CTFFIND's; give another file")
    images = [_whole(row[0], path) for row in table]
    return [(k - 1, k - 1, (row[1] + row[2]) / 2) for k, row in zip(images, table, strict=True)]


def _imod(table: list[list[float]], path: str | Path) -> list[tuple[int, int, float]]:
    """(first, last, Å), views from 0."""
    first = table[0]
    version = first[-1] if len(first) == 6 else 1.0
    two_values = False
    if version == IMOD_VERSIONS[1]:
        two_values, table = bool(_whole(first[0], path) & ASTIGMATISM_FLAG), table[1:]
    columns = 7 if two_values else 5
    if not table or any(len(row) < columns for row in table):
        raise InputError(f"{path}: has lines that are not those of IMOD's .defocus; give another file")
    views = [(_whole(row[0], path), _whole(row[1], path)) for row in table]
    base = 0 if min(start for start, _ in views) == 0 else 1  # early files counted from 0
    values = [NM_TO_A * ((row[4] + row[5]) / 2 if two_values else row[4]) for row in table]
    return [(start - base, end - base, value) for (start, end), value in zip(views, values, strict=True)]


def _whole(value: float, path: str | Path) -> int:
    if not abs(value) < MAX_VIEW or value != int(value):
        raise InputError(f"{path}: has {value:g} where the number of an image belongs; give another file")
    return int(value)
