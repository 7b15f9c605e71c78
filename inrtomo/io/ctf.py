"""Defocus of every image from CTFFIND's text, AreTomo's ``_CTF.txt`` or IMOD's ``.defocus``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.ctf import Defoci
from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.belonging.order import SAME_TILT_DEG
from inrtomo.io.belonging.tables import check_angles_of_ranges, images_by_angle, images_of_rows
from inrtomo.io.files import read_text
from inrtomo.io.imod import list_text

Array = NDArray[np.float64]

NM_TO_A = 10.0
RANGE_A = (100.0, 300_000.0)
FULL_TURN = 2 * np.pi + 1e-3
IMOD_VERSIONS = (2, 3)
# what the first line of IMOD's version 3 says about the columns
ASTIGMATISM, ANGLE_IN_RADIANS, PHASE_SHIFT, PHASE_IN_RADIANS, INVERTED = (1 << bit for bit in range(5))
CTFFIND_COLUMNS = 6
NOT_FITTED = ("inf", "nan", "-nan")
ARETOMO_COLUMNS = 8  # AreTomo3 adds the hand to CTFFIND's seven columns
MAX_VIEW = 100_000

Entry = tuple[int, int, float, float, float, float]  # first, last, defocus 1 and 2 (Å), angle and phase shift (rad)


def read_ctf(
    path: str | Path,
    n_tilts: int,
    notes: list[str] | None = None,
    kept: Sequence[int] | None = None,
    tilt_deg: Array | None = None,
) -> Defoci:
    """Defocus, astigmatism and phase shift of every image in stack order.

    CTFFIND and AreTomo: ``image  defocus_1  defocus_2  azimuth  phase_shift ...`` in Å, degrees and radians, images
    counted from 1; AreTomo3 adds the hand. IMOD: ``first_view last_view angle angle defocus ...`` in nm, versions 1
    to 3 (the first line of 3 says whether astigmatism and phase shift follow, and the hand; a phase plate's cut-on
    frequency is not used); a view in several ranges gets their mean. The angle is the first defocus's direction.
    Images between rows, and views that IMOD's ranges leave out, are interpolated from their neighbours in the stack,
    which is said; a table of CTFFIND's kind needs a row for the first and the last image.

    Args:
        notes: receives sentences on what was filled in or matched.
        kept: stack indices of the images that the alignment uses: a table may be of these alone.
        tilt_deg: recorded angles ``(n_tilts,)``: the views of IMOD's format are held against them.

    Raises:
        InputError: another format, images that the stack has not, fewer rows than images, values that are no defocus.
    """
    notes = notes if notes is not None else []
    lines = [(k, line.strip()) for k, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    commented = any(line.startswith("#") for _, line in lines)
    table = [_row(line.split(), f"{path}: line {k}") for k, line in lines if not line.startswith("#")]
    if not table:
        raise InputError(f"{path}: holds no defocus; give another file")
    # a second column of thousands is Å, not the last view of a range
    if commented or min(row[1] if len(row) > 1 else 0.0 for row in table) > MAX_VIEW / 100:
        entries, hand = _ctffind(table, path)
        if len(table[0]) == ARETOMO_COLUMNS and tilt_deg is not None and (np.diff(tilt_deg) < 0).any():
            notes.append(
                f"{path}: its numbers are taken as those of images in the stack, which is not sorted by angle; AreTomo "
                "sorts images before it numbers them, so check which it was"
            )
        entries = _of_images(entries, images_of_rows([e[0] + 1 for e in entries], n_tilts, path, kept, notes).tolist())
    else:
        entries, hand = _imod(table, path)
        if hand < 0 and tilt_deg is not None and _have_other_sign(entries, table, tilt_deg):
            tilt_deg = -tilt_deg
        entries = _views_of_stack(entries, table, n_tilts, path, kept, tilt_deg, notes)
    total, count = np.zeros((4, n_tilts)), np.zeros(n_tilts)
    rows = [k for k, line in lines if not line.startswith("#")][-len(entries) :]
    for row, (first, last, *values) in zip(rows, entries, strict=True):
        if not 0 <= first <= last < n_tilts:
            raise InputError(f"{path}: mentions image {last + 1} of {n_tilts}; give the file of this series")
        if not all(RANGE_A[0] <= defocus <= RANGE_A[1] for defocus in values[:2]):
            raise InputError(f"{path}: line {row}: {min(values[:2]):g} Å is not an underfocus; correct it")
        if np.abs(values[2:]).max() > FULL_TURN:
            raise InputError(f"{path}: line {row}: its angle or phase shift is more than a full turn; correct it")
        one, two, angle, shift = values
        # astigmatism as a vector of twice its angle, so that it can be averaged and interpolated
        terms = ((one + two) / 2, (one - two) * np.cos(2 * angle), (one - two) * np.sin(2 * angle), shift)
        total[:, first : last + 1] += np.array(terms)[:, None]
        count[first : last + 1] += 1
    known = np.flatnonzero(count)
    mean, along, across, phase = (np.interp(np.arange(n_tilts), known, t[known] / count[known]) for t in total)
    return Defoci(
        mean,
        np.hypot(along, across),
        np.rad2deg(np.arctan2(across, along) / 2),
        np.rad2deg(phase),
        hand or 1,
        hand != 0,
    )


def _row(words: list[str], at: str) -> list[float]:
    """Numbers of a line; CTFFIND writes that no ring was fitted as a resolution (its last column) of ``inf``."""
    fitted, resolution = words[:CTFFIND_COLUMNS], words[CTFFIND_COLUMNS:]
    return numbers.read_all(fitted, at) + [
        np.inf if word.lower() in NOT_FITTED else numbers.read(word, at) for word in resolution
    ]


def read_defocus(
    path: str | Path, n_tilts: int, notes: list[str] | None = None, tilt_deg: Array | None = None
) -> Array:
    """Underfocus in Å, mean of both axes, of every image in stack order, ``(n_tilts,)``; see `read_ctf`."""
    return read_ctf(path, n_tilts, notes, tilt_deg=tilt_deg).defocus_A


def _of_images(entries: list[Entry], images: Sequence[int]) -> list[Entry]:
    return [(int(k), int(k), *entry[2:]) for k, entry in zip(images, entries, strict=True)]


def _views_of_stack(
    entries: list[Entry],
    table: list[list[float]],
    n_tilts: int,
    path: str | Path,
    kept: Sequence[int] | None,
    tilt_deg: Array | None,
    notes: list[str],
) -> list[Entry]:
    """IMOD's ranges with views of this stack; one that lists every view singly is a table by image like CTFFIND's."""
    single = len(entries) > 1 and [first for first, _, *_ in entries] == list(range(len(entries)))
    single &= all(first == last for first, last, *_ in entries)
    if single:
        angles = np.array([(row[2] + row[3]) / 2 for row in table[-len(entries) :]])
        images = images_by_angle(angles, tilt_deg, path, notes) if len(entries) <= n_tilts else None
        if images is None:
            images = images_of_rows([first + 1 for first, *_ in entries], n_tilts, path, kept, notes)
        return _of_images(entries, images.tolist())
    check_angles_of_ranges(entries, np.array([row[2:4] for row in table[-len(entries) :]]), tilt_deg, path, notes)
    covered = {view for first, last, *_ in entries if first >= 0 for view in range(first, min(last, n_tilts - 1) + 1)}
    left = [view + 1 for view in range(n_tilts) if view not in covered]
    if left:
        notes.append(f"{path}: says nothing of views {list_text(left)}; they are interpolated from those about them")
    return entries


def _have_other_sign(entries: list[Entry], table: list[list[float]], tilt_deg: Array) -> bool:
    """Whether the angles of a file with inverted tilt angles are those of its views with the other sign."""
    angles = [(row[2] + row[3]) / 2 for row in table[-len(entries) :]]
    views = [slice(max(first, 0), last + 1) for first, last, *_ in entries]
    return all(
        tilt_deg[view].size and abs(angle + np.mean(tilt_deg[view])) < SAME_TILT_DEG
        for angle, view in zip(angles, views, strict=True)
    )


def _ctffind(table: list[list[float]], path: str | Path) -> tuple[list[Entry], int]:
    """Entries with images from 0, and the hand, 0 where no column has it."""
    if any(len(row) < CTFFIND_COLUMNS for row in table):
        raise InputError(f"{path}: has lines that are not CTFFIND's; give another file")
    images = [_whole(row[0], path) - 1 for row in table]
    hands = {row[-1] if len(row) == ARETOMO_COLUMNS else 0.0 for row in table}
    entries = [(k, k, row[1], row[2], float(np.deg2rad(row[3])), row[4]) for k, row in zip(images, table, strict=True)]
    return entries, int(hands.pop()) if hands in ({1.0}, {-1.0}) else 0


def _imod(table: list[list[float]], path: str | Path) -> tuple[list[Entry], int]:
    """Entries with views from 0, and the hand, 0 before version 3."""
    first = table[0]
    version = first[-1] if len(first) == 6 else 1.0
    flags = 0
    if version == IMOD_VERSIONS[1]:
        flags, table = _whole(first[0], path), table[1:]
    phase_at = 7 if flags & ASTIGMATISM else 5
    columns = phase_at + (1 if flags & PHASE_SHIFT else 0)
    if not table or any(len(row) < columns for row in table):
        raise InputError(f"{path}: has lines that are not those of IMOD's .defocus; give another file")
    views = [(_whole(row[0], path), _whole(row[1], path)) for row in table]
    base = 0 if min(start for start, _ in views) == 0 else 1  # early files counted from 0
    entries = []
    for (start, end), row in zip(views, table, strict=True):
        one = two = NM_TO_A * row[4]
        angle = phase = 0.0
        if flags & ASTIGMATISM:
            two, angle = NM_TO_A * row[5], row[6] if flags & ANGLE_IN_RADIANS else float(np.deg2rad(row[6]))
        if flags & PHASE_SHIFT:
            phase = row[phase_at] if flags & PHASE_IN_RADIANS else float(np.deg2rad(row[phase_at]))
        entries.append((start - base, end - base, one, two, angle, phase))
    return entries, 0 if version != IMOD_VERSIONS[1] else -1 if flags & INVERTED else 1


def _whole(value: float, path: str | Path) -> int:
    if not abs(value) < MAX_VIEW or value != int(value):
        raise InputError(f"{path}: has {value:g} where the number of an image belongs; give another file")
    return int(value)
