"""STAR files as text: blocks of columns, nothing converted, so that a series called 01 keeps its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from inrtomo.errors import InputError
from inrtomo.io.files import read_text, write_text
from inrtomo.io.names import one_line, shown
from inrtomo.io.numbers import Word

Table = dict[str, list[str]]
"""Column (without the underscore) -> its values, as many in every column; those read know their line (`Word`)."""

WORD = re.compile(r"""'[^']*'(?=\s|$)|"[^"]*"(?=\s|$)|\S+""")

KEYWORDS = ("data_", "loop_", "save_", "stop_", "global_")
"""What begins something other than a value; a value that begins so has to stand between quotes."""


def read_star(path: str | Path) -> dict[str, Table]:
    """Blocks by name (without ``data_``), loops and single values alike; a block without columns is left out.

    Raises:
        InputError: it is none, or a block is not one table.
    """
    blocks: dict[str, Table] = {}
    table: Table = {}
    labels: list[str] = []
    in_loop = has_rows = False
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("data_"):
            table = blocks.setdefault(line[5:].strip(), {})
            labels, in_loop, has_rows = [], False, False
        elif line.split()[0] == "loop_":
            labels, in_loop, has_rows = [], True, False
        elif line.startswith("_") and not has_rows:
            words = WORD.findall(line)
            name = words[0][1:]
            if name in table:
                raise InputError(f"{path}: line {number} has the column {name} again; give another file")
            if in_loop:
                table[name] = []
                labels.append(name)
            else:
                table[name] = [Word(_bare(words[1]) if len(words) > 1 else "", number)]
        elif in_loop:
            words, has_rows = WORD.findall(line), True
            if len(words) != len(labels):
                raise InputError(
                    f"{path}: line {number} has {len(words)} values for {len(labels)} columns; copy it again"
                )
            for name, word in zip(labels, words, strict=True):
                table[name].append(Word(_bare(word), number))
        else:
            raise InputError(f"{path}: line {number} is not one of a STAR file; give another file")
    for name, columns in blocks.items():
        if len({len(values) for values in columns.values()}) > 1:
            raise InputError(f"{path}: the columns of data_{name} are not of one length; copy it again")
    return {name: columns for name, columns in blocks.items() if columns}


def _bare(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] in "'\"" and word[-1] == word[0] else word


def write_star(path: str | Path, blocks: Mapping[str, Mapping[str, Sequence[str]]], overwrite: bool = False) -> Path:
    """Write every block as a loop, as RELION does for lists.

    Raises:
        InputError: a word that no STAR file can hold.
    """
    lines = []
    for block, table in blocks.items():
        one_line(block, path, "name of a series")
        lines += ["", "# version 50001", "", f"data_{block}", "", "loop_"]
        lines += [f"_{name} #{k}" for k, name in enumerate(table, 1)]
        columns = [[_quoted(word, path) for word in column] for column in table.values()]
        widths = [max((len(word) for word in column), default=0) for column in columns]
        lines += [
            " ".join(word.rjust(width) for word, width in zip(row, widths, strict=True))
            for row in zip(*columns, strict=True)
        ]
    return write_text(path, "\n".join(lines) + "\n\n", overwrite)


def _quoted(word: str, path: str | Path) -> str:
    """A word as it stands, or between quotes where it would be taken for several, or for more than a word."""
    one_line(word, path, "word")
    if word and not re.search(r"\s", word) and word[0] not in "'\"_#$;" and not word.lower().startswith(KEYWORDS):
        return word
    quotes = [quote for quote in "\"'" if quote not in word]
    if not quotes:
        raise InputError(
            f"{path}: '{shown(word, 100)}' has quotes of both kinds, which no STAR file can hold; rename it"
        )
    return f"{quotes[0]}{word}{quotes[0]}"
