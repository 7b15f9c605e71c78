"""Names are data: which of them may become files of an output folder, and words of other programs' files.

A series is called as its stack, a STAR file, an XML, a JSON or a table says, and whoever wrote these need not have
meant well. So a name passes `safe_name` before it becomes part of a path, `one_line` before it becomes (part of) a line
of a text file, and `com_value` before it becomes a value of an IMOD com file.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from inrtomo.errors import InputError

MAX_NAME_BYTES = 180
"""Of a series: file systems take 255 of a file, of which the longest endings and temporary names need up to 75."""
NOT_IN_COM = "'\"`$%\\#"
"""IMOD turns a com file into a Python script in which every line stands between quotes and %NAME is a variable, and its
programs take what follows a # for a comment."""
NOT_IN_LINE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that end or hide a line: control characters, halves of characters (bytes that are no UTF-8), line
and paragraph separators."""


def safe_name(name: str, source: str | Path) -> str:
    """The name of a series, where it can be (the beginning of) the name of a file in an output folder.

    Args:
        name: of a series, without a folder.
        source: file that gave it, for the message.

    Returns:
        The name as it is.

    Raises:
        InputError: it would lead out of the folder, make a hidden file or one that looks like an option, break a line,
            or it is too long.
    """
    why = _unsafe(name)
    if why:
        raise InputError(
            f"{shown(source)}: its series is called '{shown(name, 60)}', which cannot be the name of a file ({why}); "
            "rename it, or give a stack with another name"
        )
    return name


def is_safe_name(name: str) -> bool:
    """Whether `safe_name` takes a name."""
    return not _unsafe(name)


def _unsafe(name: str) -> str:
    """What is wrong with a name, empty where nothing is."""
    if not name:
        return "it is empty"
    if "/" in name:
        return "it names a folder"
    if not _is_one_line(name):
        return "it has control characters or bytes that are no UTF-8"
    if name[0] in ".-":
        return f"it begins with {name[0]}"
    if name != name.strip():
        return "it begins or ends with a blank"
    if len(name.encode("utf-8")) > MAX_NAME_BYTES:
        return f"it has more than {MAX_NAME_BYTES} bytes"
    return ""


def one_line(text: str, source: str | Path, what: str = "name") -> str:
    """A name or path, where it stays within the line that it is written into.

    Raises:
        InputError: it has line breaks or other control characters, or bytes that are no UTF-8.
    """
    if not _is_one_line(text):
        raise InputError(
            f"{shown(source)}: the {what} '{shown(text, 100)}' has control characters or bytes that are no UTF-8, "
            "which cannot be written into a text file; rename it"
        )
    return text


def com_value(text: str, source: str | Path) -> str:
    """A name or path, where an IMOD com file can hold it as a value.

    Raises:
        InputError: it has characters that mean something else there.
    """
    if not fits_com(text):
        bad = next((c for c in NOT_IN_COM if c in text), "")
        why = f"{bad} means something else there" if bad else "control characters, or a blank or = at its ends"
        raise InputError(
            f"{shown(source)}: the name '{shown(text, 100)}' cannot be written into an IMOD com file ({why}); rename it"
        )
    return text


def fits_com(text: str) -> bool:
    """Whether `com_value` takes a name or path."""
    ends = text != text.strip() or text.startswith("=")
    return bool(text) and not ends and _is_one_line(text) and not any(c in text for c in NOT_IN_COM)


def shown(text: str | Path, most: int = 4000) -> str:
    """A name as a message shows it: on one line, without what a terminal would obey, and not longer than ``most``."""
    line = "".join(c if _is_one_line(c) else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _is_one_line(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(c) in NOT_IN_LINE for c in text)
