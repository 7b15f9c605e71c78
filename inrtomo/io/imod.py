"""IMOD's alignment files: ``.xf``, ``.tlt``, ``.xtilt``, warp files (version 3), ``newst.com`` and ``tilt.com``.

Local alignments of ``tilt`` are in `inrtomo.io.imod_local`.

Positions in these files are pixel indices of the aligned image; ours are centred, ``x = index - (n - 1) / 2``.
The sides of the aligned image are those of the raw one turned where the tilt axis lies nearer to x: as Etomo does, at
more than 45 degrees, in ``SizeToOutputInXandY`` and ``FULLIMAGE`` alike (its NewstParam and TiltParam). ``newstack``
turns about the centres of both images. A warp file keeps the raw size: its grid is centred on the output by newstack.
Shifts and warp vectors are in pixels of the raw, unbinned stack. Angles are in degrees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp, interpolation_matrix
from inrtomo.errors import InputError
from inrtomo.geometry import centre_index
from inrtomo.io import numbers
from inrtomo.io.angle_files import read_angles
from inrtomo.io.files import read_text, write_text
from inrtomo.io.names import com_value
from inrtomo.io.numbers import Quantity, Word

Array = NDArray[np.float64]

WARP_VERSION = 3
INVERSE_VECTORS, CONTROL_POINTS = 1, 2
PAIRS_PER_LINE = 4
MAX_GRID_NODES = 10**6
"""Of one section; more is a damaged file."""

WARP_TOLERANCE_PX = 0.02
"""Largest error over the field of view that bilinear interpolation on a written grid may make."""
WARP_DECIMALS = 3
MAX_VIEWS = 100_000
OPTION = re.compile(r"([^\s=#]+)[\s=]*((?:[^#]|(?<!\s)#)*)")
"""Name and value of an option in a com file."""
MAX_INTERVALS = 256
FRACTIONS = (0.3, 0.5, 0.7)
"""Where in a grid interval the error is measured."""


# --- .xf, .tlt, .xtilt ---------------------------------------------------------------------------------------------


def read_xf(path: str | Path, n_tilts: int | None = None) -> tuple[Array, Array]:
    """Transforms raw -> aligned: matrices ``(n, 2, 2)`` and shifts ``(n, 2)`` in raw px.

    With ``n_tilts`` the file must have a line for each, or exactly one, which then applies to all.
    """
    rows = [_xf_numbers(line, path, k) for k, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: holds no transforms; give another file")
    if n_tilts is not None and len(rows) == 1:
        rows *= n_tilts
    if n_tilts is not None and len(rows) != n_tilts:
        raise InputError(f"{path}: has {len(rows)} transforms for {n_tilts} images; give the file of this series")
    table = np.array(rows)
    linear = table[:, :4].reshape(-1, 2, 2)
    if np.abs(np.linalg.det(linear)).min() < 1e-3:
        raise InputError(f"{path}: a transform has no inverse; every line needs A11 A12 A21 A22 DX DY")
    return linear, table[:, 4:]


def _xf_numbers(line: str, path: str | Path, number: int) -> list[float]:
    """Six numbers of a line, by blanks, or by IMOD's columns where full fields leave no blanks between them."""
    words = line.split()
    if len(words) != 6 and len(line.rstrip()) == 72:
        words = [line[12 * k : 12 * (k + 1)] for k in range(6)]
    if len(words) != 6:
        raise InputError(f"{path}: line {number} is not six numbers A11 A12 A21 A22 DX DY; give another file")
    at = f"{path}: line {number}"
    return numbers.read_all(words[:4], at, numbers.MATRIX) + numbers.read_all(words[4:], at, numbers.SHIFT_PX)


def write_xf(path: str | Path, linear: Array, shift_px: Array, overwrite: bool = False) -> Path:
    """Write transforms raw -> aligned: ``linear`` ``(n, 2, 2)``, ``shift_px`` ``(n, 2)`` raw px."""
    lines = [
        "".join(f" {a:11.7f}" for a in np.ravel(matrix)) + f" {shift[0]:11.3f} {shift[1]:11.3f}\n"
        for matrix, shift in zip(linear, shift_px, strict=True)
    ]
    return write_text(path, "".join(lines), overwrite)


def write_angles(path: str | Path, angles_deg: Array, overwrite: bool = False) -> Path:
    """Write ``.tlt`` or ``.xtilt``: degrees, one a line, exact to 0.002 px at the edge of a 4k image."""
    return write_text(path, "".join(f"{angle:10.4f}\n" for angle in angles_deg), overwrite)


def read_x_tilt(path: str | Path, n_tilts: int | None = None) -> Array:
    """Rotations of the specimen about x in our sense, that of ``XAXISTILT``; a ``.xtilt`` holds minus that.

    ``tilt`` takes ``XAXISTILT`` away from the angles of ``XTILTFILE`` (IMOD's source).
    """
    return -read_angles(path, n_tilts, numbers.X_TILT) + 0.0


def write_x_tilt(path: str | Path, x_tilt_deg: Array, overwrite: bool = False) -> Path:
    """Write the ``.xtilt`` of rotations in our sense, see `read_x_tilt`."""
    return write_angles(path, -np.asarray(x_tilt_deg) + 0.0, overwrite)


# --- warp files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WarpFile:
    """What a warp file holds, in its own pixels.

    Attributes:
        size: (nx, ny) of the images the warp belongs to; pixel_size_A: theirs, or None.
        linear, shift_px: raw -> aligned, ``(n, 2, 2)`` and ``(n, 2)``.
        warp: inverse vectors at centred aligned positions, or None where all of them are zero.
    """

    size: tuple[int, int]
    pixel_size_A: float | None
    linear: Array
    shift_px: Array
    warp: LocalWarp | None


@dataclass(frozen=True)
class _Section:
    """Grid of one section: positions (px from the centre) and vectors ``(ny, nx, 2)``; empty without local motion."""

    x: Array
    y: Array
    vectors: Array


class _Numbers:
    """The numbers of a warp file one after the other, however they are broken into lines."""

    def __init__(self, text: str, path: str | Path) -> None:
        self.path, self.at = path, 0
        self.values = np.array(numbers.read_text_of_numbers(text, path))

    def take(self, count: int) -> Array:
        if self.at + count > len(self.values):
            raise InputError(f"{self.path}: ends too early for a warp file; copy it again")
        self.at += count
        return self.values[self.at - count : self.at]

    def whole(self, count: int) -> list[int]:
        values = self.take(count)
        if (values != np.rint(values)).any() or np.abs(values).max() > 2**31:
            raise InputError(f"{self.path}: has {values} where whole numbers belong; give a warp file of version 3")
        return [int(value) for value in values]


def is_warp_file(path: str | Path) -> bool:
    """Whether a file starts like a warp file of version 3 (an ``.xf`` starts with six numbers)."""
    lines = [line.split() for line in read_text(path).splitlines()[:2]]
    return len(lines) == 2 and lines[0] == [str(WARP_VERSION)] and len(lines[1]) == 6


def read_warp(path: str | Path, n_tilts: int | None = None) -> WarpFile:
    """Read a warp file of version 3 with inverse vectors on grids.

    Raises:
        InputError: other versions, forward vectors, control points, a wrong number of sections, damage.
    """
    numbers = _Numbers(read_text(path), path)
    (version,) = numbers.whole(1)
    if version != WARP_VERSION:
        raise InputError(f"{path}: is not a warp file of version {WARP_VERSION}; give another")
    nx, ny, nz, _ = numbers.whole(4)
    pixel = float(numbers.take(1)[0])
    (flags,) = numbers.whole(1)
    if min(nx, ny, nz) < 1:
        raise InputError(f"{path}: gives the size {nx} x {ny} x {nz}; write it again")
    if flags & CONTROL_POINTS:
        raise InputError(f"{path}: holds control points; only vectors on a grid can be read")
    if not flags & INVERSE_VECTORS:
        raise InputError(f"{path}: holds forward vectors; only inverse vectors (flag 1) can be read")
    if n_tilts is not None and nz not in (1, n_tilts):
        raise InputError(f"{path}: has {nz} sections for {n_tilts} images; give the file of this series")
    transforms, sections = [], []
    for _ in range(nz):
        x_start, x_step, columns, y_start, y_step, rows = numbers.take(6)
        if columns != int(columns) or rows != int(rows) or min(columns, rows) < 0 or columns * rows > MAX_GRID_NODES:
            raise InputError(f"{path}: has a grid of {columns:g} x {rows:g}; write it again")
        if columns * rows and ((columns > 1 and x_step <= 0) or (rows > 1 and y_step <= 0)):
            raise InputError(f"{path}: has a grid with a spacing that is not positive; write it again")
        transforms.append(numbers.take(6))
        vectors = numbers.take(2 * int(columns * rows)).reshape(int(rows), int(columns), 2)
        x = x_start + x_step * np.arange(int(columns)) - centre_index(nx)
        y = y_start + y_step * np.arange(int(rows)) - centre_index(ny)
        sections.append(_Section(x, y, vectors))
    if numbers.at != len(numbers.values):
        raise InputError(f"{path}: goes on after its {nz} sections; write it again")
    table = np.array(transforms)
    count = n_tilts if n_tilts is not None and nz == 1 else nz
    table = np.repeat(table, count // nz, axis=0)
    if np.abs(np.linalg.det(table[:, :4].reshape(-1, 2, 2))).min() < 1e-3:
        raise InputError(f"{path}: a transform has no inverse; write it again")
    warp = _common_grid(sections * (count // nz))
    return WarpFile((nx, ny), pixel if pixel > 0 else None, table[:, :4].reshape(-1, 2, 2), table[:, 4:], warp)


def _common_grid(sections: list[_Section]) -> LocalWarp | None:
    """One bilinear warp for all sections, on the densest of their grids; None where nothing moves."""
    if not any(np.any(section.vectors) for section in sections):
        return None
    x = max((s.x for s in sections if s.vectors.size), key=lambda nodes: (len(nodes), np.ptp(nodes)))
    y = max((s.y for s in sections if s.vectors.size), key=lambda nodes: (len(nodes), np.ptp(nodes)))
    vectors = np.zeros((len(sections), len(y), len(x), 2))
    for k, section in enumerate(sections):
        if section.vectors.size:
            warp = LocalWarp(section.x, section.y, section.vectors[None], "bilinear")
            vectors[k] = warp.on_lattice(0, x, y)
    return LocalWarp(x, y, vectors, "bilinear")


def write_warp(path: str | Path, alignment: Alignment, overwrite: bool = False) -> Path:
    """Write a warp file of version 3 (inverse vectors) holding the whole map of an alignment.

    Its grid is just dense enough for bilinear interpolation, see `grid_warp`. The linear lines are those of the
    ``.xf`` with more decimals; without a local warp all vectors are zero.
    """
    nx, ny = alignment.image_size
    warp = grid_warp(alignment)
    x, y = warp.x + centre_index(nx), warp.y + centre_index(ny)
    grid = f"{x[0]:12.3f} {x[1] - x[0]:12.5f} {len(x):6d} {y[0]:12.3f} {y[1] - y[0]:12.5f} {len(y):6d}\n"
    pixel = alignment.pixel_size_A or 0.0
    line = " ".join([f"%.{WARP_DECIMALS}f %.{WARP_DECIMALS}f"] * PAIRS_PER_LINE) + "\n"
    parts = [f"{WARP_VERSION}\n", f"{nx} {ny} {alignment.n_tilts} 1 {pixel:.6g} {INVERSE_VECTORS}\n"]
    for linear, shift, vectors in zip(alignment.linear, alignment.shift_px, warp.vectors, strict=True):
        parts.append(grid)
        parts.append("".join(f" {a:12.8f}" for a in linear.ravel()) + f" {shift[0]:12.4f} {shift[1]:12.4f}\n")
        # adding zero after rounding turns -0.000 into 0.000
        values = (np.round(vectors, WARP_DECIMALS) + 0.0).ravel().tolist()
        parts.append((line * (len(values) // (2 * PAIRS_PER_LINE))) % tuple(values))
    return write_text(path, "".join(parts), overwrite)


def grid_warp(alignment: Alignment, tolerance_px: float = WARP_TOLERANCE_PX) -> LocalWarp:
    """The warp of an alignment on a grid for bilinear interpolation (what IMOD does between grid points).

    The grid covers every aligned position at which a raw pixel can be seen and reaches an interval past it; its
    spacing is the widest whose measured error stays below ``tolerance_px`` there. A warp that is bilinear already
    keeps its own grid (beyond it both continue with the value at the edge). The number of columns is a multiple of
    four, so that a reader that starts a line with every row and one that does not see the same.
    """
    warp, half = alignment.warp, half_view(alignment)
    if warp is None:
        x, y = np.linspace(-half[0], half[0], PAIRS_PER_LINE), np.linspace(-half[1], half[1], 2)
        return LocalWarp(x, y, np.zeros((alignment.n_tilts, len(y), len(x), 2)), "bilinear")
    if warp.interpolation == "bilinear" and len(warp.x) > 1 and len(warp.y) > 1:
        return _padded(warp)
    share = tolerance_px
    while True:
        x, y = (_nodes(warp, half, axis, share) for axis in (0, 1))
        if max(len(x), len(y)) > MAX_INTERVALS or _gridding_error(warp, x, y, half) < tolerance_px:
            break
        share *= 0.85  # errors of both axes add up where they meet
    vectors = np.stack([warp.on_lattice(m, x, y) for m in range(alignment.n_tilts)])
    return LocalWarp(x, y, vectors, "bilinear")


def _gridding_error(warp: LocalWarp, x: Array, y: Array, half: tuple[float, float]) -> float:
    """Largest error (px) of bilinear interpolation on the grid ``x``, ``y``, over the view and all tilts."""
    exact_x, linear_x = _both_ways(warp.x, x, half[0], warp.interpolation)
    exact_y, linear_y = _both_ways(warp.y, y, half[1], warp.interpolation)
    worst = 0.0
    for vectors in warp.vectors:
        by_component = np.moveaxis(vectors, -1, 0)
        error = exact_y @ by_component @ exact_x.T - linear_y @ by_component @ linear_x.T
        worst = max(worst, float((error**2).sum(axis=0).max(initial=0.0)))
    return float(np.sqrt(worst))


def _both_ways(control: Array, nodes: Array, half: float, interpolation: str) -> tuple[Array, Array]:
    """Matrices from control points to positions within grid intervals: exactly, and by way of the grid's nodes."""
    fine = np.sort(np.concatenate([nodes[:-1] + fraction * (nodes[1] - nodes[0]) for fraction in FRACTIONS]))
    fine = fine[np.abs(fine) <= half]
    exact = interpolation_matrix(control, fine, interpolation)
    return exact, interpolation_matrix(nodes, fine, "bilinear") @ interpolation_matrix(control, nodes, interpolation)


def half_view(alignment: Alignment) -> tuple[float, float]:
    """Half extents (x, y) of aligned space that the output image or the turned raw image reaches, px."""
    turned = np.abs(alignment.linear) @ np.array(alignment.image_size, dtype=np.float64)
    widest = np.maximum(turned.max(axis=0), alignment.aligned_size) / 2
    return float(widest[0]), float(widest[1])


def _nodes(warp: LocalWarp, half: tuple[float, float], axis: int, tolerance_px: float) -> Array:
    """Grid positions along an axis (0 x, 1 y), evenly spaced about the centre."""
    along = warp.x if axis == 0 else warp.y
    vectors = np.swapaxes(warp.vectors, 1, 2) if axis == 0 else warp.vectors
    intervals = 2
    while True:
        step = 2.0 * half[axis] / intervals
        if step >= 8:
            step = float(np.floor(step))  # whole pixels keep the file exact
        count = int(np.ceil(2 * half[axis] / step)) + 3
        if axis == 0:
            count += -count % PAIRS_PER_LINE
        nodes = np.linspace(-0.5, 0.5, count) * ((count - 1) * step)
        exact, linear = _both_ways(along, nodes, half[axis], warp.interpolation)
        error = np.einsum("nk,mkjc->mnjc", exact - linear, vectors, optimize=True)
        if np.sqrt((error**2).sum(axis=-1).max(initial=0.0)) < tolerance_px or intervals >= MAX_INTERVALS:
            return nodes
        intervals = int(np.ceil(1.15 * intervals))


def _padded(warp: LocalWarp) -> LocalWarp:
    """The same bilinear warp with a multiple of four columns; those added repeat the last, as does the rule outside."""
    extra = -len(warp.x) % PAIRS_PER_LINE
    step = warp.x[1] - warp.x[0]
    x = np.append(warp.x, warp.x[-1] + step * np.arange(1, extra + 1))
    return LocalWarp(x, warp.y, np.pad(warp.vectors, ((0, 0), (0, 0), (0, extra), (0, 0)), mode="edge"), "bilinear")


# --- command files -------------------------------------------------------------------------------------------------


def newst_com(base: str, stack: str, aligned: str, turned_size: tuple[int, int] | None = None) -> str:
    """Text of ``newst.com``: resample ``stack`` through ``BASE_warp.xf`` into ``aligned``.

    Args:
        turned_size: (nx, ny) of the aligned stack where its sides are turned, raw px; by default those of the raw one.

    Raises:
        InputError: a name that would not be a value there.
    """
    for name in (base, stack, aligned):
        com_value(name, "newst.com")
    size = "" if turned_size is None else f"SizeToOutputInXandY\t{turned_size[0]},{turned_size[1]}\n"
    return f"""# Make the aligned stack: submfg newst.com
$newstack -StandardInput
InputFile\t{stack}
OutputFile\t{aligned}
TransformFile\t{base}_warp.xf
{size}AdjustOrigin
TaperAtFill\t1,0
BinByFactor\t1
"""


def tilt_com(
    base: str, aligned: str, reconstruction: str, size: tuple[int, int], thickness_px: int, excluded: Sequence[int] = ()
) -> str:
    """Text of ``tilt.com``: reconstruct from the aligned stack.

    Args:
        size: (nx, ny) of the aligned stack, raw px; thickness_px: of the slab, raw px.
        excluded: views to leave out, counted from 0 (in the file they count from 1).

    Raises:
        InputError: a name that would not be a value there.
    """
    for name in (base, aligned, reconstruction):
        com_value(name, "tilt.com")
    lines = [
        "# Reconstruct: submfg tilt.com",
        "$tilt -StandardInput",
        f"InputProjections {aligned}",
        f"OutputFile {reconstruction}",
        "IMAGEBINNED 1",
        f"FULLIMAGE {size[0]} {size[1]}",
        "SUBSETSTART 0 0",
        f"THICKNESS {thickness_px}",
        f"TILTFILE {base}.tlt",
        f"XTILTFILE {base}.xtilt",
        "OFFSET 0.0",
        "SHIFT 0.0 0.0",
        "RADIAL 0.35 0.035",
        "MODE 2",
        "SCALE 0.0 1.0",
        "PERPENDICULAR",
        "AdjustOrigin",
        "ActionIfGPUFails 1,2",
    ]
    if excluded:
        lines.append(f"EXCLUDELIST2 {list_text([view + 1 for view in excluded])}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class CommandFile:
    """A com file: the program and its options; option names in upper case, of repeated ones all values.

    Attributes:
        names: how the program spells the names, by their upper case.
    """

    path: Path
    program: str
    options: dict[str, list[Word]]
    names: Mapping[str, str]

    def value(self, *names: str) -> Word | None:
        """The last value of an option under any of its names, or None."""
        values = [value for name in names for value in self.options.get(name.upper(), [])]
        return values[-1] if values else None

    def last_values(self) -> dict[str, str]:
        """Last value of every option, by the program's spelling of its name where that is known."""
        return {self.names.get(name, name): values[-1] for name, values in self.options.items()}

    def numbers(self, name: str, *counts: int, quantity: Quantity = numbers.ANY) -> list[float]:
        """The numbers of an option, as many as one of ``counts``, if any, says; empty where the option is missing."""
        text = self.value(name)
        if text is None:
            return []
        return numbers.read_list(text, f"{numbers.where(self.path, text)}: {name}", counts, quantity)


def read_command_file(path: str | Path, program: str, names: Mapping[str, str] | None = None) -> CommandFile:
    """Options that a com file gives to ``program``; InputError where it does not run it.

    As IMOD reads them: ``NAME value`` or ``NAME = value``, a name shortened as far as it is clear, ``#`` before
    remarks, and nothing after ``DONE``.

    Args:
        names: upper case -> spelling of the names that the program knows; further ones to them are other spellings.
    """
    names = names or {}
    options: dict[str, list[Word]] = {}
    inside = found = False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if line.startswith("$"):
            words = line[1:].split()
            inside = bool(words) and Path(words[0]).name == program
            found |= inside
        elif inside and (option := OPTION.match(line)):
            name = _full_name(option.group(1).upper(), names)
            inside = name not in ("DONE", "ENDINPUT")
            options.setdefault(name, []).append(Word(option.group(2).strip(), number))
    if not found:
        raise InputError(f"{path}: does not run {program}; give another file")
    return CommandFile(Path(path), program, options, names)


def _full_name(name: str, names: Mapping[str, str]) -> str:
    """The name that a shortened one stands for, itself where it stands for none or several."""
    if name in names:
        return names[name].upper()
    longer = {full.upper() for full in names.values() if full.upper().startswith(name)}
    return longer.pop() if len(longer) == 1 else name


def etomo_excluded_views(path: str | Path, axis: str = "A") -> list[int]:
    """Views that Etomo's project file (``.edf``) leaves out of an axis, ``A`` or ``B``, counted from 0."""
    key = f"Setup.Axis{axis}.ExcludeProjections="
    values = [line.removeprefix(key) for line in read_text(path).splitlines() if line.startswith(key)]
    return [view - 1 for view in parse_list(",".join(values), f"{path}: {key[:-1]}")]


def etomo_pixel_size_A(path: str | Path) -> float | None:
    """Pixel size of the raw stack in Etomo's project file (``.edf``, nm there), None where it has none."""
    key = "Setup.PixelSize="
    values = [line.removeprefix(key) for line in read_text(path).splitlines() if line.startswith(key)]
    try:
        size = 10 * float(values[-1]) if values else 0.0
    except ValueError:
        return None
    return size if np.isfinite(size) and size > 0 else None


def parse_list(text: str, where: str) -> list[int]:
    """``1,4-6`` -> [1, 4, 5, 6]; InputError naming ``where`` for anything else."""
    out: set[int] = set()
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        ok = (first + last).isascii() and first.isdecimal() and (last.isdecimal() or not dash)
        if not ok or int(last or first) - int(first) not in range(MAX_VIEWS):
            raise InputError(f"{where}: {part!r} is not a view or a range of views; write 1,4-6")
        out.update(range(int(first), int(last or first) + 1))
    return sorted(out)


def list_text(views: Sequence[int]) -> str:
    """[1, 4, 5, 6] -> ``1,4-6``."""
    runs: list[list[int]] = []
    for view in sorted(set(views)):
        if runs and view == runs[-1][1] + 1:
            runs[-1][1] = view
        else:
            runs.append([view, view])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
