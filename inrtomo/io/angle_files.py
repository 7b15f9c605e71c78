"""Files of angles, a line an image: ``.tlt``, ``.rawtlt``, ``.xtilt``, AreTomo's ``_TLT.txt``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.files import read_text
from inrtomo.io.numbers import Quantity

Array = NDArray[np.float64]

Lines = list[tuple[int, list[str]]]
"""Number of a line, its words."""

MOST_COLUMNS = 3
"""Angle, order of acquisition, dose: as AreTomo takes them."""
SINGLE_DIGITS = 9


def read_angles(path: str | Path, n_tilts: int | None = None, quantity: Quantity = numbers.TILT) -> Array:
    """The first number of every line: degrees, ``(n,)``, in stack order.

    Further columns of numbers (AreTomo's acquisition order and dose) are left alone; ``#`` starts a comment. Whether
    the numbers are those of a tilt series is for `inrtomo.tiltseries.check_tilt_angles` to say.

    Raises:
        InputError: a line that is not a number in the range of ``quantity``, or has something else behind it.
    """
    lines = [(k, line.split("#", 1)[0].strip()) for k, line in enumerate(read_text(path).splitlines(), 1)]
    lines = [(k, line) for k, line in lines if line]
    if not lines:
        raise InputError(f"{path}: holds no angles; give another file")
    rows = _in_columns(lines, path)
    for k, words in rows:
        numbers.read_all(words[1:], f"{path}: line {k}")
        if len(words) > MOST_COLUMNS:
            raise InputError(f"{path}: line {k} has {len(words)} numbers; write one angle a line")
        if len(words) != len(rows[0][1]):
            raise InputError(
                f"{path}: line {k} has {len(words)} numbers, line {rows[0][0]} has {len(rows[0][1])}; write one angle "
                "a line"
            )
    angles = np.array([numbers.read(words[0], f"{path}: line {k}", quantity) for k, words in rows])
    if len(rows[0][1]) > 1 and _counts(angles) and any(words[1].startswith("-") for _, words in rows):
        raise InputError(f"{path}: its first column counts the lines; write the angles first")
    if n_tilts is not None and len(angles) != n_tilts:
        raise InputError(f"{path}: has {len(angles)} angles for {n_tilts} images; give the file of this series")
    return angles


def _in_columns(lines: list[tuple[int, str]], path: str | Path) -> Lines:
    """The words of every line; commas are decimal commas, or stand between columns, where only one can be meant."""
    kept = [(k, line.split()) for k, line in lines]
    text = "\n".join(line for _, line in lines)
    if "," not in text:
        return kept
    split = [(k, line.replace(",", " ").split()) for k, line in lines]
    decimal = "." not in text and all(numbers.NUMBER.fullmatch(word) for _, words in kept for word in words)
    if not decimal or len({len(words) for _, words in split}) > 1:
        return kept if decimal else split
    seconds = [words[1] for _, words in split if len(words) > 1]
    order = all(word.isdecimal() for word in seconds) and _counts(np.sort(np.array(seconds, dtype=np.float64)))
    if order and len(seconds) > SINGLE_DIGITS:
        return split
    if order or len({len(word) for word in seconds}) > 1:
        raise InputError(
            f"{path}: line {lines[0][0]}: {lines[0][1][: numbers.SHOWN]!r} can be an angle with a decimal comma or two "
            "columns; write decimal points"
        )
    return kept


def _counts(values: Array) -> bool:
    """Whether values are 0, 1, 2 ... or 1, 2, 3 ..."""
    return len(values) > 1 and values[0] in (0, 1) and bool((np.diff(values) == 1).all())
