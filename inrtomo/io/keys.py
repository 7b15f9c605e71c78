"""What readers know of another program's file: every key with its meaning, and what becomes of it.

A reader declares its keys once. The declaration says which are left out with a sentence, so that no key that matters
is passed over without a word, and it is the table that ``inr-convert --explain`` prints (`inrtomo.io.explained`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inrtomo.io.numbers import NUMBER


class Fate(enum.Enum):
    """What becomes of a key."""

    TAKEN = "taken"
    LEFT_OUT = "left out, which is said"
    NO_MATTER = "no matter here"


@dataclass(frozen=True)
class Key:
    """A key of a file.

    Attributes:
        name: as the program spells it; meaning: in a few words, for the table and the sentence.
        usual: values at which a key that is left out changes nothing, and nothing is said.
    """

    name: str
    fate: Fate
    meaning: str
    usual: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Section:
    """The keys of one kind of file; ``others`` says what becomes of keys that are not listed."""

    title: str
    keys: tuple[Key, ...]
    others: str

    @property
    def names(self) -> dict[str, str]:
        """Upper-case spelling -> spelling of every key."""
        return {key.name.upper(): key.name for key in self.keys}


def taken(meaning: str, *names: str) -> tuple[Key, ...]:
    return tuple(Key(name, Fate.TAKEN, meaning) for name in names)


def left_out(meaning: str, *names: str, usual: Sequence[str] = ()) -> tuple[Key, ...]:
    """Keys that are left out, which is said unless their value is empty or one of ``usual``."""
    return tuple(Key(name, Fate.LEFT_OUT, meaning, ("", *usual)) for name in names)


def no_matter(meaning: str, *names: str) -> tuple[Key, ...]:
    return tuple(Key(name, Fate.NO_MATTER, meaning) for name in names)


def sentences(file: str, found: Mapping[str, str | Sequence[str]], keys: Iterable[Key]) -> list[str]:
    """A sentence for every key of a file that is left out; one for all columns that have the same meaning.

    Args:
        file: its name; found: keys as the table spells them, with the value, or with the values of a column.
    """
    said, columns = [], dict[str, list[str]]()
    for key in keys:
        value = found.get(key.name)
        if key.fate is not Fate.LEFT_OUT or value is None:
            continue
        values = [value] if isinstance(value, str) else value
        if all(_is_usual(one, key.usual) for one in values):
            continue
        if isinstance(value, str):
            said.append(f"{file}: {' '.join(f'{key.name} {value}'.split())} is left out: {key.meaning}")
        else:
            columns.setdefault(key.meaning, []).append(key.name)
    for meaning, names in columns.items():
        is_or_are = "is" if len(names) == 1 else "are"
        said.append(f"{file}: {', '.join(names)} {is_or_are} left out: {meaning}")
    return said


def _is_usual(value: str, usual: Sequence[str]) -> bool:
    """Whether a value is one of those listed, as numbers where it is made of them."""
    return any(_as_numbers(value) == _as_numbers(one) for one in usual)


def _as_numbers(value: str) -> tuple[float | str, ...]:
    return tuple(
        float(word) if NUMBER.fullmatch(word) and "," not in word and "d" not in word.lower() else word.lower()
        for word in value.replace(",", " ").split()
    )
