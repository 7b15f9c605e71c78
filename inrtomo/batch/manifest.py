"""The series of a batch: from stacks, folders, patterns and tables, each under a name of its own."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inrtomo.errors import InputError
from inrtomo.io.files import PACKED_SUFFIXES, read_text
from inrtomo.io.names import one_line, safe_name, shown
from inrtomo.io.star import read_star
from inrtomo.tiltseries import HALVES, STACK_SUFFIXES

MANIFEST_SUFFIXES = (".csv", ".star", ".json")
EMPTY = ("", "None", "none", "nan", "<NA>")
"""How tables write that a value is not known: the option is then not given."""
RELION_COLUMNS = {
    "rlnTomoName": "name",
    "rlnTomoTiltSeriesName": "stack",
    "rlnTomoTiltSeriesPixelSize": "pixel_size",
}
HALF_ENDS = tuple(dict.fromkeys(end for halves in HALVES for end in halves))
STATE = "state"
"""Folder of what a batch remembers, beside those of the series."""
TAKEN = (STATE, "summary.csv", "summary.html")
"""What a folder of a batch has of its own: no series can be called so."""
NUMBER = re.compile(r"[-+.,\deE]*")
ODD = re.compile(r"[^\w.+=,@-]")


@dataclass(frozen=True)
class Series:
    """A tilt series: name of its folder and files of state, stack, alignment if one is named, options of its own."""

    name: str
    stack: str
    alignment: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "stack": self.stack, "alignment": self.alignment, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Series:
        alignment = values["alignment"]
        options = {str(k): str(v) for k, v in values["options"].items()}
        return cls(str(values["name"]), str(values["stack"]), alignment and str(alignment), options)


def find_series(given: Sequence[str], known: Mapping[str, str]) -> list[Series]:
    """Series of stacks, folders of stacks, patterns (``"raw/*.st"``) and tables (.csv, .star, .json), each once.

    ``known`` are names in use, by stack: a series keeps the name it has. Stacks of odd and even frames are left out
    where the full stack is there too. InputError for what is not there, and for two series of one name.
    """
    named: list[Series] = []
    stacks: list[Path] = []
    for text in given:
        path = Path(text)
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            named += read_manifest(path)
        elif path.is_dir():
            found = stacks_in(path)
            if not found:
                raise InputError(f"{path}: has no stack ({', '.join(STACK_SUFFIXES)}); give the folder of the stacks")
            stacks += found
        elif glob.has_magic(text) and not path.exists():
            found = [Path(p) for p in sorted(glob.glob(text, recursive=True))]
            if not found:
                raise InputError(f"{text}: no file is called so; check the pattern")
            stacks += found
        elif path.exists():
            stacks.append(path)
        else:
            raise InputError(f"{path}: no such file; check the name")
    unique = list(dict.fromkeys(path.absolute() for path in stacks))
    names = name_stacks(without_halves(unique), known)
    named += [Series(name, str(path)) for path, name in names.items()]
    _check_names(named, known)
    return named


def stacks_in(folder: Path) -> list[Path]:
    """Stacks of a folder, not of those in it, sorted; hidden files are somebody's unfinished ones.

    Packed ones are among them, to be refused by name, unless they have been unpacked.
    """
    files = {p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file()}
    packed = {p for p in files if p.suffix in PACKED_SUFFIXES and p.with_suffix("") not in files}
    return sorted(p for p in files if (p.with_suffix("") if p in packed else p).suffix.lower() in STACK_SUFFIXES)


def without_halves(stacks: Iterable[Path]) -> list[Path]:
    """Stacks but those of odd or even frames whose full stack is among them."""
    stacks = list(stacks)
    stems = {path.with_suffix("") for path in stacks}

    def is_half(path: Path) -> bool:
        stem = path.with_suffix("")
        ends = (end for end in HALF_ENDS if stem.name.endswith(end))
        return any(stem.with_name(stem.name.removesuffix(end)) in stems for end in ends)

    return [path for path in stacks if not is_half(path)]


def name_stacks(stacks: Sequence[Path], known: Mapping[str, str]) -> dict[Path, str]:
    """A name for every stack: the one it has, or else its stem, with as many folders before it as tell it apart."""
    names = {path: known[str(path)] for path in stacks if str(path) in known}
    unnamed = [path for path in stacks if path not in names]
    taken = {*TAKEN, *known.values()}
    depth = 1
    while unnamed:
        candidates = {path: _name(path, depth) for path in unnamed}
        count = Counter(candidates.values())
        names |= {path: name for path, name in candidates.items() if count[name] == 1 and name not in taken}
        taken |= {names[path] for path in unnamed if path in names}
        unnamed = [path for path in unnamed if path not in names]
        depth += 1
    return {path: names[path] for path in stacks}


def _name(path: Path, depth: int) -> str:
    """The stem, with so many parts before it; where these do not suffice, with the suffix, and then numbered."""
    parts = [*(part.strip("/") for part in path.parts[:-1]), path.stem]
    beyond = depth - len(parts)
    parts = parts[-depth:] + ([path.suffix.strip(".")] if beyond > 0 else []) + ([str(beyond)] if beyond > 1 else [])
    return ODD.sub("_", "_".join(filter(None, parts))).lstrip(".-") or "series"


def read_manifest(path: Path) -> list[Series]:
    """Series of a table: ``stack``, and where wanted ``name``, ``alignment`` and options of the command as columns.

    CSV with a header line, a STAR file (the first block with a stack; RELION's names of columns are known), or JSON:
    a list of objects, or an object of them by name. Relative paths are from the table's folder, or else from here.
    """
    rows = {".csv": _csv_rows, ".star": _star_rows, ".json": _json_rows}[path.suffix.lower()](path)
    if not rows:
        raise InputError(f"{path}: lists no series; give one a line")
    series = []
    for number, row in enumerate(rows, 1):
        values = {RELION_COLUMNS.get(k, k).replace("-", "_"): v for k, v in row.items() if v not in EMPTY}
        stack = values.pop("stack", None)
        if stack is None:
            raise InputError(f"{path}: series {number} has no stack; give it in a column called stack")
        for what, value in {"stack": stack, **values}.items():
            one_line(value, path, what)
        stack = beside(path, stack.removesuffix(":mrc"))
        name = values.pop("name", None) or _name(Path(stack), 1)
        check_name(name, path)
        alignment = values.pop("alignment", None)
        values = {k: str((path.parent / v).absolute()) if _is_beside(path, v) else v for k, v in values.items()}
        series.append(Series(name, stack, None if alignment is None else beside(path, alignment), values))
    return series


def check_name(name: str, source: str | Path) -> None:
    """Refuse (InputError) a name that cannot be the folder of a series, as the file ``source`` gives it."""
    if ODD.search(name) or name in TAKEN:
        raise InputError(f"{source}: {shown(name, 60)!r} cannot be the name of a folder; use letters, digits, - and _")
    safe_name(name, source)


def beside(manifest: Path, value: str) -> str:
    """Absolute path of a table's entry: from the table's folder, or from here where only that is there."""
    here = Path(value).absolute()
    there = (manifest.parent / value).absolute()
    return str(here if here.exists() and not there.exists() else there)


def _is_beside(manifest: Path, value: str) -> bool:
    """Whether an option's value names a file in the table's folder; numbers do not."""
    return not NUMBER.fullmatch(value) and (manifest.parent / value).exists()


def _csv_rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise InputError(f"{path}: line {reader.line_num} has not as many values as the first line; correct it")
        rows.append({k.strip(): v.strip() for k, v in row.items()})
    return rows


def _star_rows(path: Path) -> list[dict[str, str]]:
    for table in read_star(path).values():
        if {"stack", "rlnTomoTiltSeriesName"} & table.keys():
            return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    raise InputError(f"{path}: no block has a column stack or rlnTomoTiltSeriesName; give another table")


def _json_rows(path: Path) -> list[dict[str, str]]:
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); correct it") from None
    if isinstance(values, dict):
        values = [{"name": name, **row} if isinstance(row, dict) else None for name, row in values.items()]
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise InputError(f'{path}: is no list of series; write [{{"stack": "ts01.mrc"}}, …]')
    return [{str(k): _word(v) for k, v in row.items()} for row in values]


def _word(value: Any) -> str:
    """As it would be typed: nothing for null, lists with commas."""
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return "" if value is None else str(value)


def _check_names(series: Sequence[Series], known: Mapping[str, str]) -> None:
    stacks = {name: stack for stack, name in known.items()}
    for one in series:
        safe_name(one.name, one.stack)
        other = stacks.setdefault(one.name, one.stack)
        if other != one.stack:
            raise InputError(f"{one.stack}: would be called {one.name}, as is {other}; give names in a table")
    twice = [name for name, count in Counter(one.name for one in series).items() if count > 1]
    if twice:
        raise InputError(f"series {twice[0]}: is listed twice; list it once")
