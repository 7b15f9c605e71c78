"""AreTomo's ``.aln`` (versions 1 to 3), read only.

Rows are images kept, in ascending tilt; ``raw = R(rot) aligned + (TX, TY)``, so ``A = R(-rot)`` and
``d = -A (TX, TY)``. Sections count from 0 or from 1 depending on the version, or number the images that are not dark.
Local shifts of patches are a Gaussian-weighted mean over the good ones, evaluated in the raw orientation.
Behaviour as described by AreTomo3's manual and source (BSD-3 style licence).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.geometry import axis_rotation
from inrtomo.io.files import read_text

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

COLUMNS = 10
LOCAL_COLUMNS = 7
GAUSSIAN = 100.0
"""Weight of a patch is exp(-GAUSSIAN ((dx / nx)^2 + (dy / ny)^2))."""
GRID_NODES = 65
"""Of the sampled local motion along each axis: an eighth of the Gaussian's width."""
MAX_SECTIONS = 100_000


def read_aln(path: str | Path, image_size: tuple[int, int] | None = None, notes: list[str] | None = None) -> Alignment:
    """Alignment of the raw stack, dark images included (as excluded, with a harmless transform).

    Args:
        image_size: (nx, ny) of the raw images where the file does not say (version 1.2).
        notes: receives sentences on what was decided.
    """
    notes = notes if notes is not None else []
    name = Path(path).name
    aln = _parse(path)
    size = aln.raw_size[:2] if aln.raw_size else image_size
    if size is None or min(size) < 1:
        raise InputError(f"{path}: does not say how large its images are; give the stack")
    total = aln.raw_size[2] if aln.raw_size else len(aln.rows) + len(aln.dark)
    if not len(aln.rows) <= total <= MAX_SECTIONS:
        raise InputError(f"{path}: has {len(aln.rows)} rows for a stack of {total} images; give another file")
    index, base = _stack_indices(aln, total, path, notes)
    notes.append(f"{name}: sections count from {base}")
    if aln.beta_offset:
        notes.append(f"{name}: BetaOffset {aln.beta_offset:g} is not part of the alignment and left out")
    linear = np.tile(axis_rotation(float(np.median(aln.rows[:, 1]))), (total, 1, 1))
    shift, tilt = np.zeros((total, 2)), np.zeros(total)
    linear[index] = np.stack([axis_rotation(angle) for angle in aln.rows[:, 1]])
    shift[index] = -np.einsum("nij,nj->ni", linear[index], aln.rows[:, 3:5])
    tilt[index] = aln.rows[:, 9]
    kept = np.sort(index)
    excluded = {}
    for section in set(range(total)) - set(kept.tolist()):
        known = aln.dark.get(section + base)
        tilt[section] = known if known is not None else np.interp(section, kept, tilt[kept])
        excluded[section] = "left out by AreTomo" if known is None else "dark (AreTomo)"
    warp = _local_motion(aln, linear, index, size, total, path) if len(aln.local) else None
    return Alignment(tilt, linear, shift, (size[0], size[1]), None, warp, excluded=dict(sorted(excluded.items())))


@dataclass
class _Aln:
    """Parts of the file: ``rows`` (kept, 10), ``local`` (patches of all rows, 7), ``dark`` section -> nominal tilt."""

    raw_size: tuple[int, ...] = ()
    dark: dict[int, float] = field(default_factory=dict)
    beta_offset: float = 0.0
    rows: Array = field(default_factory=lambda: np.zeros((0, COLUMNS)))
    local: Array = field(default_factory=lambda: np.zeros((0, LOCAL_COLUMNS)))


def _parse(path: str | Path) -> _Aln:
    aln = _Aln()
    rows: list[list[float]] = []
    local: list[list[float]] = []
    in_local = False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        try:
            if line.startswith("#"):
                key, equals, value = line.lstrip("# ").partition("=")
                key = key.strip()
                in_local |= key.startswith("Local Alignment")
                if equals and key == "RawSize":
                    aln.raw_size = tuple(int(word) for word in value.split())
                    if len(aln.raw_size) != 3:
                        raise ValueError
                elif equals and key == "DarkFrame":
                    _, section, angle = value.split()
                    aln.dark[int(section)] = float(angle)
                elif equals and key == "BetaOffset":
                    aln.beta_offset = float(value)
            elif line:
                values = [float(word) for word in line.split()]
                if len(values) != (LOCAL_COLUMNS if in_local else COLUMNS) or not np.isfinite(values).all():
                    raise ValueError
                (local if in_local else rows).append(values)
        except ValueError:
            raise InputError(f"{path}: line {number} is not one of an .aln file; give another file") from None
    if not rows:
        raise InputError(f"{path}: holds no alignment; give an .aln file of AreTomo")
    aln.rows = np.array(rows)
    aln.local = np.array(local).reshape(-1, LOCAL_COLUMNS)
    return aln


def _stack_indices(aln: _Aln, total: int, path: str | Path, notes: list[str]) -> tuple[Ints, int]:
    """Stack index of every row, and the number of the first section.

    Some versions number the kept images alone: then rows and dark images use the same numbers.
    """
    sections = aln.rows[:, 0].astype(int)
    if len(set(sections.tolist())) != len(sections):
        raise InputError(f"{path}: mentions a section twice; give another file")
    if set(sections.tolist()) & set(aln.dark):
        base = min(aln.dark)
        base = base if base in (0, 1) and max(aln.dark) - base < total else 0
        places = np.array([k for k in range(total) if k + base not in aln.dark])
        rank = sections - sections.min()
        if rank.max() >= len(places):
            raise InputError(f"{path}: its sections do not fit a stack of {total} images; give another file")
        notes.append(f"{Path(path).name}: sections number the images that are not dark, in stack order")
        return places[rank], base
    mentioned = [*sections.tolist(), *aln.dark]
    # a stack whose first image was left out without a word starts at 1 in either way: believe the newer one
    base = 0 if min(mentioned) == 0 else 1
    index = sections - base
    if min(mentioned) < 0 or max(mentioned) - base >= total:
        raise InputError(f"{path}: its sections do not fit a stack of {total} images; give another file")
    return index, base


def _local_motion(
    aln: _Aln, linear: Array, index: Ints, size: tuple[int, ...], total: int, path: str | Path
) -> LocalWarp:
    """The patches' shifts as inverse vectors on a grid of aligned space.

    AreTomo evaluates ``raw = p + s(p) + T`` at ``p = R(rot) u``, so ``w(u) = A s(A^-1 u)``.
    """
    half = np.abs(linear).max(axis=0) @ np.array(size[:2], dtype=np.float64) / 2
    x, y = np.linspace(-half[0], half[0], GRID_NODES), np.linspace(-half[1], half[1], GRID_NODES)
    nodes = np.stack(np.meshgrid(x, y), axis=-1)
    vectors = np.zeros((total, GRID_NODES, GRID_NODES, 2))
    rows = aln.local[:, 0].astype(int)
    if rows.min() < 0 or rows.max() >= len(index):
        raise InputError(f"{path}: its local section mentions images that have no row; give another file")
    for row in np.unique(rows):
        patches = aln.local[(rows == row) & (aln.local[:, 6] > 0.5)]
        if not len(patches):
            continue
        matrix = linear[index[row]]
        p = nodes @ np.linalg.inv(matrix).T
        dx = (p[..., 0, None] - patches[:, 2]) / size[0]
        dy = (p[..., 1, None] - patches[:, 3]) / size[1]
        exponent = -GAUSSIAN * (dx**2 + dy**2)
        weight = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
        shift = weight @ patches[:, 4:6] / weight.sum(axis=-1, keepdims=True)
        vectors[index[row]] = shift @ matrix.T
    return LocalWarp(x, y, vectors, "bicubic")
