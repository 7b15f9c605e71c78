"""One reader of numbers for every text format: finite, within what the quantity can be, nothing left over.

Python's ``float`` takes more than any program means by a number (``nan``, ``1_000``, digits of other scripts), and no
quantity of a tilt series can be 1e24. What is refused is refused by one sentence with file, line and what was there.
A decimal comma, as programs write it where the locale has one, is read as meant where a comma can mean nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inrtomo.errors import InputError

NUMBER = re.compile(r"[-+]?(\d+(\.\d*|,\d+)?|[.,]\d+)([eEdD][-+]?\d+)?", re.ASCII)
"""A number as C, Fortran or a locale with a decimal comma writes it."""
DECIMAL_COMMA = re.compile(r"\d,\d|(?<![\d.]),\d", re.ASCII)
PLAIN_TEXT = re.compile(r"[-+\d.eE\s]*", re.ASCII)
SHOWN = 40
"""Characters of a word in a message."""


class Word(str):
    """A word of a text file that knows the line it stands in, from 1; 0 where that is not known."""

    line: int

    def __new__(cls, text: str, line: int = 0) -> Word:
        word = super().__new__(cls, text)
        word.line = line
        return word


@dataclass(frozen=True)
class Quantity:
    """What a number means and what it can be; messages say it as ``NAME in UNIT (low to high)``."""

    name: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        limits = "" if math.isinf(self.low) else f" ({self.low:g} to {self.high:g})"
        return f"{self.name}{unit}{limits}"


ANY = Quantity("a number")
TILT = Quantity("a tilt angle", "degrees", -90.5, 90.5)
X_TILT = Quantity("a tilt about the x axis", "degrees", -90.5, 90.5)
AXIS = Quantity("the angle of a tilt axis", "degrees", -360.0, 360.0)
ANGLE = Quantity("an angle", "degrees", -360.0, 360.0)
MATRIX = Quantity("a term of a rotation or magnification", "", -10.0, 10.0)
SHIFT_PX = Quantity("a shift", "px", -1e7, 1e7)
SHIFT_A = Quantity("a shift", "Å", -1e7, 1e7)
DOSE = Quantity("a dose", "e/Å²", 0.0, 1e4)
PIXEL_SIZE = Quantity("a pixel size", "Å", 0.0, 1e4)
SIZE_PX = Quantity("a size", "px", 0.0, 1e6, whole=True)
THICKNESS_PX = Quantity("a thickness", "px", 0.0, 1e6)
THICKNESS_NM = Quantity("a thickness", "nm", 0.0, 1e6)


def where(path: str | Path, word: str) -> str:
    """``FILE: line N`` of a word, or the file alone."""
    line = getattr(word, "line", 0)
    return f"{path}: line {line}" if line else str(path)


def read(word: str, at: str, quantity: Quantity = ANY) -> float:
    """The number that a word is.

    Args:
        word: without blanks; one comma between its digits, and no point, is a decimal comma.
        at: file and line, for the message.

    Raises:
        InputError: it is none, not finite, or not in the range of the quantity.
    """
    text = word.strip()
    value = float(re.sub("[dD]", "e", text.replace(",", "."))) if NUMBER.fullmatch(text) else math.nan
    good = math.isfinite(value) and quantity.low <= value <= quantity.high
    if not good or (quantity.whole and value != round(value)):
        raise InputError(f"{at}: {text[:SHOWN]!r} is not {quantity}; correct it, or give another file")
    return value


def check(value: object, at: str, quantity: Quantity) -> float:
    """A value that was read (from JSON), where it is a number in the range of a quantity; else InputError."""
    number = isinstance(value, float | int) and not isinstance(value, bool)
    if not number or not quantity.low <= value <= quantity.high:  # type: ignore[operator]
        raise InputError(f"{at}: {str(value)[:SHOWN]} is not {quantity}; correct it, or give another file")
    return float(value)  # type: ignore[arg-type]


def read_all(words: Iterable[str], at: str, quantity: Quantity = ANY) -> list[float]:
    """The numbers that words are, see `read`."""
    return [read(word, at, quantity) for word in words]


def read_list(text: str, at: str, counts: Sequence[int] = (), quantity: Quantity = ANY) -> list[float]:
    """Numbers between which stand blanks or commas.

    Args:
        counts: how many there can be, by default any number. A comma between digits is a decimal comma where only that
            gives such a number of them, and refused where either reading does.
    """
    split, kept = text.replace(",", " ").split(), text.split()
    words = split if len(split) in counts or not counts else kept
    both = len(split) in counts and len(kept) in counts and split != kept
    if both and "." not in text and DECIMAL_COMMA.search(text):
        raise InputError(
            f"{at}: {text.strip()[:SHOWN]!r} can be read with decimal commas and without; write decimal points"
        )
    if counts and len(words) not in counts:
        wanted = " or ".join(map(str, counts))
        plural = "" if wanted == "1" else "s"
        raise InputError(
            f"{at}: {text.strip()[:SHOWN]!r} is not {wanted} number{plural}; correct it, or give another file"
        )
    return read_all(words, at, quantity)


def read_text_of_numbers(text: str, path: str | Path, first_line: int = 1) -> list[float]:
    """All numbers of a text that holds nothing else, however it is broken into lines."""
    if PLAIN_TEXT.fullmatch(text):  # files of local motion have millions
        try:
            values = list(map(float, text.split()))
        except ValueError:
            values = [math.nan]
        if all(map(math.isfinite, values)):
            return values
    values = []
    for line, words in enumerate(text.splitlines(), first_line):
        values += read_all(words.split(), f"{path}: line {line}")
    return values
