"""The pairs of ``inr-train --pairs``: rows of a STAR list, read as ``inr-infer`` reads series, and sampled."""

from __future__ import annotations

from pathlib import Path

import click

from inrtomo.commands._aligned_stack import read_aligned_stack
from inrtomo.commands._tomogram_run import defoci_of, polarity_of, underfocus_um
from inrtomo.commands._volume_pair import upright
from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.mrc import read_volume
from inrtomo.io.numbers import Quantity
from inrtomo.io.star import read_star
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.cache import SampleCache, add_pair
from inrtomo.localized.pairs import Pair, measured_pair
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.halves import ImageReader

LISTED_BLOCKS = 40000  # of each listed pair
COLUMNS = ("inrStack", "inrAlignment", "inrReference")
NUMBERS = {"inrPixelSize": (0.1, 100.0, "a number of Å per raw pixel"), "inrVoltage": (60.0, 1200.0, "a voltage in kV")}
"""Columns that need not be there, and between which values they are."""
OPTIONAL = (*NUMBERS, "inrCtf")
NOT_GIVEN = ("", "none")
DEFAULT_VOLTAGE_KV = 300.0  # as --voltage of inr-infer
LISTED_HELD_OUT = 0.2  # of the listed stacks, at least one
USUAL_LIKENESS = 0.45  # of a reference: 95 % of simulated pairs reach it (see `LEAST_LIKENESS`)

Row = dict[str, str]
"""A value for each of `COLUMNS` and `OPTIONAL`; empty where it is not given. Paths start at the list's folder."""


def listed_rows(path: Path) -> list[Row]:
    """Rows of a list of pairs, all files there.

    Raises:
        InputError: columns or files are missing, values are none, or it has fewer than two stacks.
    """
    for table in read_star(path).values():
        if set(COLUMNS) <= set(table):
            break
    else:
        raise InputError(f"{path}: has no table with the columns {', '.join(COLUMNS)}; add them")
    given = {name: table[name] for name in (*COLUMNS, *OPTIONAL) if name in table}
    values = zip(*given.values(), strict=True)
    rows = [dict.fromkeys(OPTIONAL, "") | dict(zip(given, row, strict=True)) for row in values]
    for row in rows:
        row |= {name: "" for name in OPTIONAL if row[name].lower() in NOT_GIVEN}
        _check(path, row)
    stacks = {_file(path, row, "inrStack") for row in rows}
    if len(stacks) < 2:
        raise InputError(
            f"{path}: lists {len(stacks)} tilt series; at least two different ones are needed, one of them for "
            "validation alone"
        )
    return rows


def _check(path: Path, row: Row) -> None:
    """Raise InputError where a row cannot be used, before time goes into others."""
    where = f"{path}: {row['inrStack']}:"
    is_file = row["inrCtf"] and underfocus_um(row["inrCtf"], f"{where} inrCtf") is None
    for name in (*COLUMNS, "inrCtf") if is_file else COLUMNS:
        if not (path.parent / row[name]).exists():
            raise InputError(f"{path}: {row[name]} ({name}) does not exist; paths are relative to the list's folder")
    if _file(path, row, "inrReference") == _file(path, row, "inrStack"):
        raise InputError(f"{where} is its own reference; give the volume that should come out of it")
    for name, (low, high, what) in NUMBERS.items():
        if row[name]:
            numbers.read(row[name], f"{where} {name}", Quantity(what, "", low, high))


def _file(path: Path, row: Row, name: str) -> Path:
    """A row's file, the same for all its names."""
    return (path.parent / row[name]).resolve()


def for_validation(path: Path, rows: list[Row]) -> list[bool]:
    """Which rows are kept for validation: all of some stacks, so that none is learnt from and validated on."""
    stacks = list(dict.fromkeys(_file(path, row, "inrStack") for row in rows))
    apart = stacks[-max(1, round(LISTED_HELD_OUT * len(stacks))) :]
    return [_file(path, row, "inrStack") in apart for row in rows]


def fill_from_list(
    path: Path, rows: list[Row], orientation: str, blocks: Blocks, seed: int, cache: SampleCache, held_out: SampleCache
) -> None:
    """Samples of a list's pairs, those that an earlier run has made left as they are."""
    for number, (row, apart) in enumerate(zip(rows, for_validation(path, rows), strict=True)):
        into, said = (held_out, "for validation") if apart else (cache, "for training")
        if not any(there.name == f"{seed:06d}_{number:06d}.npz" for there in into.paths()):
            pair = listed_pair(path, row, orientation)
            likeness = pair.facts["likeness"]
            said += f"; its reference is like a back-projection: correlation {abs(likeness):.2f}"
            if abs(likeness) < USUAL_LIKENESS:
                said += f", less than the usual {USUAL_LIKENESS} and more; look at both"
            add_pair(into, pair, blocks, seed, number, LISTED_BLOCKS)
        click.echo(f"{row['inrStack']}: {said}")


def listed_pair(path: Path, row: Row, orientation: str) -> Pair:
    """A row of the list as a pair."""
    stack, alignment, reference = (path.parent / row[name] for name in COLUMNS)
    pixel = numbers.read(row["inrPixelSize"], str(path)) if row["inrPixelSize"] else None
    given = read_aligned_stack(stack, alignment, pixel, pixel_size_named=f"the column inrPixelSize in {path}")
    for note in (str(said) for what, said, _ in given.sources if what == "note"):
        click.echo(f"{row['inrStack']}: {note}")
    volume, _ = read_volume(reference)
    volume = upright(volume, orientation)
    image: ImageReader = given.series.image
    if row["inrCtf"]:
        typed = underfocus_um(row["inrCtf"]) is not None
        defoci = defoci_of(row["inrCtf"] if typed else str(path.parent / row["inrCtf"]), given)
        voltage = numbers.read(row["inrVoltage"], str(path)) if row["inrVoltage"] else DEFAULT_VOLTAGE_KV
        image = ctf_corrected(image, given.alignment, defoci, "flip", voltage)
    try:
        return measured_pair(image, given.alignment, volume, polarity_of(given, "cpu"))
    except InputError as error:
        raise InputError(f"{reference}: {error}") from None
