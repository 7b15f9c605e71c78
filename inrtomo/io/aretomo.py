"""AreTomo's ``.aln`` (versions 1 to 3).

Rows are images kept, in ascending tilt; ``raw = R(rot) aligned + (TX, TY)``, so ``A = R(-rot)`` and
``d = -A (TX, TY)``. Sections count from 0 or from 1 depending on the version, or number the images that are not dark.
TILT is the recorded angle plus AlphaOffset. Local shifts of patches are a Gaussian-weighted mean over the good ones,
evaluated in the raw orientation. Behaviour as described by AreTomo3's manual and source (BSD-3 style licence).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io import keys, numbers
from inrtomo.io.files import read_text, write_text
from inrtomo.io.keys import Section, left_out, no_matter, taken
from inrtomo.io.numbers import Quantity
from inrtomo.io.rigid import (
    GAUSSIAN,
    LocalGrid,
    Rigid,
    fit_local_shifts,
    gaussian_mean,
    patch_centres,
    warp_from_local_shifts,
)
from inrtomo.io.series_record import SeriesRecord, series_name

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_SECTIONS = 100_000
SECTION = Quantity("the number of a section", "", 0, MAX_SECTIONS, whole=True)
SIZE = Quantity("a number of pixels or images", "", 0, 1e6, whole=True)
MAGNIFICATION = Quantity("a magnification", "", 0.1, 10.0)
HEADER = {
    "RawSize": (SIZE, SIZE, SIZE),
    "DarkFrame": (numbers.ANY, SECTION, numbers.TILT),
    "AlphaOffset": (numbers.TILT,),
    "BetaOffset": (numbers.TILT,),
    "Thickness": (numbers.THICKNESS_PX,),
}
"""Lines ``# KEY = values`` and what their values are."""
ALN = Section(
    "NAME.aln",
    (
        *taken("size and number of the raw images, dark ones included", "RawSize"),
        *taken("image left out as dark, with its recorded angle", "DarkFrame"),
        *taken("TILT less the recorded angle", "AlphaOffset"),
        *taken("px of the tomogram, where none is given", "Thickness"),
        *taken("image of a row", "SEC"),
        *taken("tilt axis from y, degrees", "ROT"),
        *taken("px by which the image is moved", "TX", "TY"),
        *taken("refined tilt angle", "TILT"),
        *taken("patches: a Gaussian mean over those that are good", "Local Alignment"),
        *left_out("a tilt about x that AreTomo found and did not apply", "BetaOffset", usual=("0",)),
        *left_out("magnification of the images", "GMAG", usual=("1",)),
        *left_out("scale of the grey values", "SMEAN", "SFIT", "SCALE", usual=("1",)),
        *left_out("offset of the grey values", "BASE", usual=("0",)),
        *no_matter("patches of an image, counted in the local section", "NumPatches"),
    ),
    "said to be left out",
)
COLUMNS = ("SEC", "ROT", "GMAG", "TX", "TY", "SMEAN", "SFIT", "SCALE", "BASE", "TILT")
SHIFTS = (numbers.SHIFT_PX, numbers.SHIFT_PX)
ROW = (SECTION, numbers.AXIS, MAGNIFICATION, *SHIFTS, *[numbers.ANY] * 4, numbers.TILT)
"""What the numbers in `COLUMNS` are."""
LOCAL_ROW = (SECTION, SECTION, *SHIFTS, *SHIFTS, numbers.ANY)
"""Row, patch, centre, shift, whether it is good."""
MOST_PATCHES = 12
"""An axis: finer than the Gaussian is wide brings nothing."""
GAUSSIAN_RCOND = 1e-4
"""Patches whose shifts would have to fight each other for a fit are left calm."""
SAME_OFFSET_DEG = 5e-4


def read_aln(path: str | Path, image_size: tuple[int, int] | None = None, notes: list[str] | None = None) -> Alignment:
    """The alignment of `read_aln_record`."""
    return read_aln_record(path, image_size, notes).alignment


def read_aln_record(
    path: str | Path, image_size: tuple[int, int] | None = None, notes: list[str] | None = None
) -> SeriesRecord:
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
    notes += _left_out(aln, name)
    rotation, offset = np.full(total, float(np.median(aln.rows[:, 1]))), np.zeros((total, 2))
    tilt, nominal = np.zeros(total), np.zeros(total)
    rotation[index], offset[index] = aln.rows[:, 1], aln.rows[:, 3:5]
    tilt[index] = aln.rows[:, 9]
    kept = np.sort(index)
    alpha = aln.alpha_offset or 0.0
    nominal[index] = tilt[index] - alpha
    excluded = {}
    for section in set(range(total)) - set(kept.tolist()):
        known = aln.dark.get(section + base)
        tilt[section] = known + alpha if known is not None else np.interp(section, kept, tilt[kept])
        nominal[section] = known if known is not None else tilt[section] - alpha
        excluded[section] = "left out by AreTomo" if known is None else "dark (AreTomo)"
    rigid = Rigid(rotation, offset)
    warp = _local_motion(aln, rigid, index, (size[0], size[1]), path) if len(aln.local) else None
    alignment = Alignment(
        tilt,
        rigid.linear,
        rigid.shift_px,
        (size[0], size[1]),
        None,
        warp,
        excluded=dict(sorted(excluded.items())),
    )
    if aln.alpha_offset is None:
        return SeriesRecord(alignment, series_name(path), None, thickness_px=aln.thickness_px)
    return SeriesRecord(alignment, series_name(path), nominal, thickness_px=aln.thickness_px)


def write_aln(path: str | Path, record: SeriesRecord, overwrite: bool = False) -> list[str]:
    """Write an ``.aln``; returns sentences on what it does not hold, or only nearly.

    Sections count from 0 in the raw stack, which every version reads; excluded images become dark frames. What a
    rotation and a shift do not hold, local motion and changes of magnification, goes to the local section.
    """
    a, name = record.alignment, Path(path).name
    rigid = Rigid.part_of(a)
    grid = fit_local_shifts(a, rigid, gaussian_mean, MOST_PATCHES, GAUSSIAN_RCOND)
    rows = sorted(a.included.tolist(), key=lambda m: (a.tilt_deg[m], m))
    if not rows:
        raise InputError(f"{path}: every image is excluded; nothing is left to write")
    alpha, notes = _alpha_offset(record, rows, name)
    recorded = a.tilt_deg - alpha if record.nominal_tilt_deg is None else record.nominal_tilt_deg
    patches = 0 if grid is None else grid.nodes**2
    lines = ["# AreTomo Alignment / Priims bprmMn", "# RawSize = {} {} {}".format(*a.image_size, a.n_tilts)]
    lines.append(f"# NumPatches = {patches}")
    for k, section in enumerate(sorted(a.excluded)):
        lines.append(f"# DarkFrame = {k:5d} {section:4d} {recorded[section]:10.4f}")
    lines += [f"# AlphaOffset = {alpha:10.4f}", "# BetaOffset =     0.0000"]
    if record.thickness_px:
        lines.append(f"# Thickness = {round(record.thickness_px)}")
    lines.append("# SEC     ROT           GMAG        TX           TY       SMEAN     SFIT    SCALE     BASE     TILT")
    for m in rows:
        x, y = rigid.offset_px[m] + 0.0
        lines.append(
            f"{m:5d} {rigid.rotation_deg[m]:12.6f}    1.00000 {x:12.4f} {y:12.4f}"
            f"     1.00     1.00     1.00     0.00 {a.tilt_deg[m]:12.5f}"
        )
    if grid is not None:
        lines.append("# Local Alignment")
        lines += _local_lines(grid, rigid, rows, a.image_size)
        notes.append(
            f"{name}: the local motion is held by {grid.nodes} x {grid.nodes} patches to {grid.rms_px:.3f} px RMS, "
            f"{grid.largest_px:.3f} px at most"
        )
    write_text(path, "\n".join(lines) + "\n", overwrite)
    return notes


def _alpha_offset(record: SeriesRecord, rows: list[int], name: str) -> tuple[float, list[str]]:
    """The one difference of refined and recorded angles that the file holds."""
    a, notes = record.alignment, []
    alpha = 0.0
    if record.nominal_tilt_deg is not None:
        difference = (a.tilt_deg - record.nominal_tilt_deg)[rows]
        alpha = float(np.median(difference))
        worst = float(np.abs(difference - alpha).max())
        if worst > SAME_OFFSET_DEG:
            notes.append(
                f"{name}: recorded angles are held as one offset from the refined ones, {alpha:.2f} degrees, which is "
                f"wrong by up to {worst:.2f}; the refined angles are exact"
            )
    if a.x_tilt_deg.any():
        notes.append(
            f"{name}: holds no x-axis tilt; the tomogram lies as before levelling, turned by "
            f"{np.median(a.x_tilt_deg):.2f} degrees about x"
        )
        uneven = float(np.abs(a.x_tilt_deg - np.median(a.x_tilt_deg))[rows].max())
        if uneven > SAME_OFFSET_DEG:
            notes.append(f"{name}: x-axis tilts that differ between images, by up to {uneven:.2f} degrees, are lost")
    return alpha, notes


def _local_lines(grid: LocalGrid, rigid: Rigid, rows: list[int], size: tuple[int, int]) -> list[str]:
    """Rows of the local section; positions are counted from where the shift has moved the centre to."""
    centres = np.stack(np.meshgrid(*(patch_centres(grid.nodes, n) for n in size)), axis=-1).reshape(-1, 2)
    lines = []
    for k, m in enumerate(rows):
        at, shifts = centres - rigid.offset_px[m], grid.values[m].reshape(-1, 2) + 0.0
        for patch, ((x, y), (sx, sy)) in enumerate(zip(at, shifts, strict=True)):
            lines.append(f"{k:4d} {patch:3d} {x:10.2f} {y:10.2f} {sx:10.4f} {sy:10.4f}   1.0")
    return lines


@dataclass
class _Aln:
    """Parts of the file: ``rows`` (kept, 10), ``local`` (patches of all rows, 7), ``dark`` section -> nominal tilt,
    ``header`` last value of every key."""

    raw_size: tuple[int, ...] = ()
    dark: dict[int, float] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)
    alpha_offset: float | None = None
    thickness_px: float | None = None
    rows: Array = field(default_factory=lambda: np.zeros((0, len(ROW))))
    local: Array = field(default_factory=lambda: np.zeros((0, len(LOCAL_ROW))))


def _parse(path: str | Path) -> _Aln:
    aln = _Aln()
    rows: list[list[float]] = []
    local: list[list[float]] = []
    in_local = False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        at = f"{path}: line {number}"
        if line.startswith("#"):
            key, equals, value = line.lstrip("# ").partition("=")
            key = key.strip()
            in_local |= key.startswith("Local Alignment")
            if equals:
                aln.header[key] = value.strip()
            if equals and key in HEADER:
                words = _as_many(value.split(), len(HEADER[key]), at)
                values = [numbers.read(*word) for word in zip(words, [at] * len(words), HEADER[key], strict=True)]
                if key == "RawSize":
                    aln.raw_size = tuple(int(size) for size in values)
                elif key == "DarkFrame":
                    aln.dark[int(values[1])] = values[2]
                elif key == "AlphaOffset":
                    aln.alpha_offset = values[0]
                elif key == "Thickness":
                    aln.thickness_px = values[0] or None
        elif line:
            columns = LOCAL_ROW if in_local else ROW
            words = _as_many(line.split(), len(columns), at)
            (local if in_local else rows).append(
                [numbers.read(word, at, quantity) for word, quantity in zip(words, columns, strict=True)]
            )
    if not rows:
        raise InputError(f"{path}: holds no alignment; give an .aln file of AreTomo")
    aln.rows = np.array(rows)
    aln.local = np.array(local).reshape(-1, len(LOCAL_ROW))
    return aln


def _left_out(aln: _Aln, name: str) -> list[str]:
    """Sentences on what the file says and the alignment does not hold."""
    found = aln.header | {column: [f"{v:g}" for v in aln.rows[:, k]] for k, column in enumerate(COLUMNS)}
    said = keys.sentences(name, found, ALN.keys)
    said += [f"{name}: {key} is not known here and left out" for key in aln.header if key not in ALN.names.values()]
    patches = int(sum(numbers.read_list(aln.header.get("NumPatches", ""), f"{name}: NumPatches")))
    if len(aln.local) and patches and len(aln.local) != patches * len(aln.rows):
        said.append(
            f"{name}: has {len(aln.local)} rows of local alignment for {len(aln.rows)} images of {patches} patches; "
            "those that are there are used"
        )
    return said


def _as_many(words: list[str], count: int, at: str) -> list[str]:
    if len(words) != count:
        raise InputError(f"{at} has {len(words)} values where an .aln file has {count}; give another file")
    return words


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


def _local_motion(aln: _Aln, rigid: Rigid, index: Ints, size: tuple[int, int], path: str | Path) -> LocalWarp | None:
    """The patches' shifts as inverse vectors on a grid of aligned space.

    AreTomo evaluates ``raw = p + s(p) + T`` at ``p = R(rot) u``, so patches lie at ``p + T`` in the image.
    """
    rows = aln.local[:, 0].astype(int)
    if rows.min() < 0 or rows.max() >= len(index):
        raise InputError(f"{path}: its local section mentions images that have no row; give another file")
    good = {int(index[row]): aln.local[(rows == row) & (aln.local[:, 6] > 0.5)] for row in np.unique(rows)}
    good = {m: patches for m, patches in good.items() if len(patches)}

    def local_shifts(m: int, q: Array) -> Array:
        p, patches = q - rigid.offset_px[m], good[m]
        dx = (p[..., 0, None] - patches[:, 2]) / size[0]
        dy = (p[..., 1, None] - patches[:, 3]) / size[1]
        exponent = -GAUSSIAN * (dx**2 + dy**2)
        weight = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
        return np.asarray(weight @ patches[:, 4:6] / weight.sum(axis=-1, keepdims=True))

    return warp_from_local_shifts(local_shifts, rigid, size, sorted(good))
