"""A stack and the alignment that goes with it, as ``inr-export`` and ``inr-recon`` are given them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.files import check_output
from inrtomo.io.imod import read_x_tilt
from inrtomo.tiltseries import NoAnglesError, TiltSeries, open_tilt_series

ANGLES_ONLY = (".tlt", ".rawtlt")

PIXEL_SIZE = click.option("--pixel-size", type=float, metavar="A", help="Å per raw pixel.  [default: the header's]")


@dataclass(frozen=True)
class AlignedStack:
    """A tilt series, its alignment in its own pixels, and where things were found (what, value, source)."""

    series: TiltSeries
    alignment: Alignment
    pixel_size_A: float
    sources: list[tuple[str, object, str]]


def read_aligned_stack(
    stack: Path,
    alignment_path: Path,
    pixel_size_A: float | None,
    exclude: tuple[int, ...] = (),
    pixel_size_named: str = "--pixel-size",
) -> AlignedStack:
    """Open a stack with its alignment; a ``.tlt`` as alignment says that the stack is aligned already.

    ``pixel_size_named`` is what a user of the command gives the pixel size with.
    Raises InputError when they do not belong together, the pixel size is unknown, or a tilt to leave out is not there.
    """
    if pixel_size_A is not None and not pixel_size_A > 0:
        raise InputError(f"{pixel_size_named} {pixel_size_A:g}: must be positive; give Å per pixel")
    aligned_already = alignment_path.suffix in ANGLES_ONLY
    if aligned_already and not alignment_path.is_file():
        raise InputError(f"{alignment_path}: no such file; check the name")
    series = _open(stack, alignment_path, pixel_size_A, aligned_already)
    notes = list(series.remarks)
    if aligned_already:
        alignment = Alignment.identity(series.tilt_deg, series.size)
        x_tilt = alignment_path.with_suffix(".xtilt")
        if x_tilt.is_file():
            alignment = replace(alignment, x_tilt_deg=read_x_tilt(x_tilt, series.n_tilts))
            notes.append(f"x-tilt from {x_tilt}")
        notes.append("the stack is taken as aligned already")
    else:
        alignment = read_alignment(alignment_path, series, notes)
    pixel = series.known_pixel_size_A or alignment.pixel_size_A or series.pixel_size_A
    if pixel is None:
        raise InputError(f"{stack}: its header has no pixel size; give {pixel_size_named}")
    outside = [tilt for tilt in exclude if tilt >= series.n_tilts]
    if outside:
        raise InputError(f"--exclude {outside[0]}: there are {series.n_tilts} tilts, counted from 0")
    excluded = {**alignment.excluded, **series.excluded, **dict.fromkeys(exclude, "--exclude")}
    alignment = replace(alignment, pixel_size_A=pixel, excluded=excluded)
    own = pixel == series.pixel_size_A
    pixel_source = series.sources.get("pixel size", str(alignment_path)) if own else str(alignment_path)
    sources: list[tuple[str, object, str]] = [
        ("stack", f"{series.n_tilts} images, {series.size[0]} x {series.size[1]} px", str(stack)),
        ("pixel size", f"{pixel:.4g} Å", pixel_source),
        ("tilt angles", f"{alignment.tilt_deg.min():.2f} to {alignment.tilt_deg.max():.2f}°", str(alignment_path)),
        ("local motion", "none" if alignment.warp is None else f"up to {_largest(alignment):.2f} px", "alignment"),
    ]
    if excluded:
        reasons = "; ".join(f"{tilt}: {reason}" for tilt, reason in sorted(excluded.items()))
        sources.append(("left out", ", ".join(map(str, sorted(excluded))), reasons))
    sources += [("note", note, "") for note in notes]
    return AlignedStack(series, alignment, pixel, sources)


def _open(stack: Path, alignment_path: Path, pixel_size_A: float | None, aligned_already: bool) -> TiltSeries:
    """The series with its own recorded angles; where none are found, with those of the alignment."""
    if aligned_already:
        return open_tilt_series(stack, alignment_path, pixel_size_A)
    try:
        return open_tilt_series(stack, None, pixel_size_A)
    except NoAnglesError:
        base = alignment_path.with_name(alignment_path.stem.removesuffix("_align") + ".tlt")
        own = alignment_path / f"{stack.stem}.tlt"
        files = sorted(alignment_path.glob("*.tlt")) if alignment_path.is_dir() and not own.is_file() else [own, base]
        found = [path for path in files if path.is_file()]
        if len(found) != 1:
            raise InputError(
                f"{stack}: has no tilt angles, and no .tlt is with {alignment_path}; put {stack.stem}.rawtlt beside it"
            ) from None
        return open_tilt_series(stack, found[0], pixel_size_A)


def check_outputs(paths: list[Path], overwrite: bool, *inputs: Path) -> None:
    """Refuse (InputError) outputs that exist, or that are the same file as another of them or as an input."""
    taken = {path.resolve() for path in inputs}
    for path in paths:
        if path.resolve() in taken:
            raise InputError(f"{path}: is also an input, or another output; give another name")
        taken.add(path.resolve())
        check_output(path, overwrite)


def thickness_beside(alignment_path: Path, base: str, pixel_size_A: float) -> tuple[float, str] | None:
    """Sample thickness (nm) that an ``inr-align`` folder or JSON states, and the file; None if there is none."""
    files = [alignment_path]
    if alignment_path.is_dir():
        own = alignment_path / f"{base}_align.json"
        files = [own] if own.is_file() else sorted(alignment_path.glob("*_align.json"))
    for file in files:
        if file.suffix != ".json":
            continue
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("thickness_nm"):
            return float(values["thickness_nm"]), str(file)
        if values.get("thickness_px"):
            noted = (values.get("alignment") or {}).get("pixel_size_A")  # of its images, which may be binned otherwise
            return float(values["thickness_px"]) * float(noted or pixel_size_A) / 10, str(file)
    return None


def _largest(alignment: Alignment) -> float:
    assert alignment.warp is not None
    return float(np.linalg.norm(alignment.warp.vectors, axis=-1).max())
