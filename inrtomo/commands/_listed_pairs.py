"""The pairs of ``inr-train --pairs``: rows of a STAR list, read and sampled."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from inrtomo.commands._aligned_stack import read_aligned_stack
from inrtomo.errors import InputError
from inrtomo.io.mrc import read_volume
from inrtomo.io.star import read_star
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.cache import SampleCache, add_pair
from inrtomo.localized.pairs import Pair, measured_pair

LISTED_BLOCKS = 40000  # of each listed pair
COLUMNS = ("inrStack", "inrAlignment", "inrReference")
LISTED_HELD_OUT = 0.2  # of the listed pairs, at least one

Row = dict[str, str]


def listed_rows(path: Path) -> list[Row]:
    """Rows of a list of pairs, all files there.

    Raises:
        InputError: columns or files are missing, or it has fewer than two pairs.
    """
    for table in read_star(path).values():
        if set(COLUMNS) <= set(table):
            rows = [
                dict(zip(COLUMNS, values, strict=True)) for values in zip(*(table[c] for c in COLUMNS), strict=True)
            ]
            break
    else:
        raise InputError(f"{path}: has no table with the columns {', '.join(COLUMNS)}; add them")
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} pair; at least two are needed, one of them for validation")
    for row in rows:
        for name in COLUMNS:
            if not (path.parent / row[name]).exists():
                raise InputError(
                    f"{path}: {row[name]} ({name}) does not exist; paths are relative to the list's folder"
                )
    return rows


def fill_from_list(
    path: Path, rows: list[Row], orientation: str, blocks: Blocks, seed: int, cache: SampleCache, held_out: SampleCache
) -> None:
    """Samples of a list's pairs, those that an earlier run has made left as they are; the last ones for validation."""
    apart = max(1, round(LISTED_HELD_OUT * len(rows)))
    for number, row in enumerate(rows):
        into = cache if number < len(rows) - apart else held_out
        name = f"{seed:06d}_{number:06d}.npz"
        if not any(there.name == name for there in into.paths()):
            add_pair(into, listed_pair(path, row, orientation), blocks, seed, number, LISTED_BLOCKS)
        click.echo(f"{row['inrStack']}: {'for training' if into is cache else 'for validation'}")


def listed_pair(path: Path, row: Row, orientation: str) -> Pair:
    """A row of the list as a pair."""
    stack, alignment, reference = (path.parent / row[name] for name in COLUMNS)
    given = read_aligned_stack(stack, alignment, None)
    volume, _ = read_volume(reference)
    if orientation == "imod":
        volume = np.ascontiguousarray(volume.transpose(1, 0, 2)[::-1])
    try:
        return measured_pair(given.series.image, given.alignment, volume)
    except InputError as error:
        raise InputError(f"{reference}: {error}") from None
