"""``inr-compare``: how far apart two alignments are, or an alignment from the truth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from inrtomo import __version__
from inrtomo.alignment import Alignment
from inrtomo.commands._common import TILT_LIST, command, echo_defaults
from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.alignment_files import read_record
from inrtomo.io.belonging.alignment import in_order_of
from inrtomo.io.files import atomic_path, check_output, make_folder
from inrtomo.truth import TruePoints

if TYPE_CHECKING:
    from inrtomo.metrics.alignment import AlignmentError, Residual

DEFAULT_THICKNESS = 0.3
"""Slab thickness over the shorter image side, where nothing says it."""


@command("inr-compare", context_settings={"show_default": True})
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("-o", "--output", "prefix", type=click.Path(path_type=Path), help="Write PREFIX.json and PREFIX.png.")
@click.option("--thickness", type=float, metavar="NM", help="Sample thickness.  [default: as in B's or A's JSON]")
@click.option("--exclude", type=TILT_LIST, default=(), help="More tilts to leave out, counted from 0: 3,7-9.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(
    a: Path, b: Path, prefix: Path | None, thickness: float | None, exclude: tuple[int, ...], overwrite: bool
) -> None:
    """Distance between alignments A and B (the reference, or the truth) of the same images.

    A and B are an inr-align folder, a .xf with its .tlt, a truth or result JSON, or any format inr-recon reads.

    The specimen is moved as a rigid body to agree best; what then is left between the projections of the same points
    is the error. It is given again without deformations of the specimen that depend on y alone ("slice gauge"), which
    one tilt axis cannot show. Tilts that A or B excludes are left out.

    Where B is the truth of inr-simulate, the points are those it holds (unless --thickness is given), because no
    alignment says all of a specimen that moves; and the level and the thickness that A found are compared with it.
    """
    outputs = [] if prefix is None else [prefix.with_name(prefix.name + ending) for ending in (".json", ".png")]
    if prefix is not None:
        make_folder(prefix.parent)
    for path in outputs:
        check_output(path, overwrite)
    notes: list[str] = []
    first, second = _read_both(a, b, notes)
    thickness_px, source = _thickness(thickness, first, second, a, b)
    known = None if b.suffix != ".json" else TruePoints.from_dict(json.loads(b.read_text(encoding="utf-8")))
    pixel = second.pixel_size_A or first.pixel_size_A
    outside = [tilt for tilt in exclude if tilt >= second.n_tilts]
    if outside:
        raise InputError(f"--exclude {outside[0]}: there are {second.n_tilts} tilts, counted from 0")
    from inrtomo.metrics.alignment import compare_alignments  # scipy: not for --help, nor for bad input

    shown = f"{thickness_px:.0f} px" if pixel is None else f"{thickness_px * pixel / 10:.0f} nm"
    by_points = known if thickness is None else None
    slab = ("slab", shown, source) if by_points is None else ("points", f"{len(by_points.points)} in {shown}", source)
    echo_defaults([slab, *(("note", note, "") for note in notes)])
    try:
        error = compare_alignments(first, second, thickness_px, exclude=exclude, known=by_points)
    except ValueError as problem:
        raise InputError(f"{a} and {b}: {problem}; compare alignments of the same stack") from None
    _print(error)
    values: dict[str, Any] = {"a": str(a), "b": str(b), "version": __version__, "thickness_px": thickness_px}
    if known is not None:
        values |= _specimen(error, known, a)
    if outputs:
        with atomic_path(outputs[0], overwrite) as temporary:
            temporary.write_text(json.dumps({**values, **error.as_dict()}, indent=1), encoding="utf-8")
        from inrtomo.report.comparison import comparison  # matplotlib: only where there is a picture to draw

        comparison(error, outputs[1], title=f"{a} against {b}")
        click.echo(f"wrote {outputs[0]} and {outputs[1].name}")


def _read_both(a: Path, b: Path, notes: list[str]) -> tuple[Alignment, Alignment]:
    """Read what says its own image size first, as the other may be bare numbers; entries in one order."""
    if _says_size(a) and not _says_size(b):
        first = read_record(a)
        second = read_record(b, first.alignment.image_size)
    else:
        second = read_record(b)
        first = read_record(a, second.alignment.image_size)
    if first.alignment.n_tilts == second.alignment.n_tilts:
        first = in_order_of(first, a, second, b, notes)
    return first.alignment, second.alignment


def _says_size(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".json"


def _thickness(option_nm: float | None, a: Alignment, b: Alignment, *paths: Path) -> tuple[float, str]:
    """Thickness in raw px and where it comes from; the reference (the last path) is asked first."""
    pixel = b.pixel_size_A or a.pixel_size_A
    if option_nm is not None:
        if not option_nm > 0:
            raise InputError(f"--thickness {option_nm:g}: must be positive; give nm")
        if pixel is None:
            raise InputError(f"{paths[-1]}: no pixel size known, so --thickness cannot be used; leave it out")
        return option_nm * 10 / pixel, "--thickness"
    for path in reversed(paths):
        if (said := _own_thickness(path, pixel)) is not None:
            return said
    return DEFAULT_THICKNESS * min(b.image_size), f"{DEFAULT_THICKNESS:g} of the shorter image side"


def _specimen(error: AlignmentError, known: TruePoints, a: Path) -> dict[str, float]:
    """Say and return how level the true specimen is in A's frame, and what A holds its thickness for."""
    about_y, about_x = error.lean_deg(known.normal)
    text = f"level: the specimen leans by {about_y:+.2f} degrees about y and {about_x:+.2f} about x in the frame of A"
    values = {"level_about_y_deg": about_y, "level_about_x_deg": about_x}
    if (own := _own_thickness(a, error.pixel_size_A)) is not None:
        values["thickness_ratio"] = own[0] / known.thickness_px
        text += f"; its thickness is {values['thickness_ratio']:.2f} of the true one there"
    click.echo(text)
    return values


def _own_thickness(path: Path, pixel_size_A: float | None) -> tuple[float, str] | None:
    """Thickness in raw px that a JSON, or that of a folder of inr-align, says; and the file's name."""
    for file in sorted(path.glob("*_align.json")) if path.is_dir() else [path] * (path.suffix == ".json"):
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.get("thickness_px"):
            return numbers.check(values["thickness_px"], f"{file}: thickness_px", numbers.THICKNESS_PX), str(file)
        if values.get("thickness_nm") and pixel_size_A is not None:
            nm = numbers.check(values["thickness_nm"], f"{file}: thickness_nm", numbers.THICKNESS_NM)
            return nm * 10 / pixel_size_A, str(file)
    return None


def _print(error: AlignmentError) -> None:
    width = None if sys.stdout.isatty() else 120
    console = Console(file=sys.stdout, width=width, highlight=False, emoji=False)
    unit = "px" if error.pixel_size_A is None else "px (Å)"
    table = Table(title=f"error over {len(error.tilts)} tilts, {unit}")
    for name in ("removed", "RMS", "median", "smooth in tilt", "jitter", "local"):
        table.add_column(name, justify="left" if name == "removed" else "right")
    for name, residual in (("rigid motion", error.rigid), ("and slice gauge", error.gauge_free)):
        table.add_row(name, *(_length(value, error.pixel_size_A) for value in _numbers(residual)))
    console.print(table)
    turn, move = error.motion.rotation_deg, error.motion.translation_px
    click.echo(
        "rigid motion from B to A: turned by "
        + ", ".join(f"{angle:.2f}" for angle in np.round(turn, 2) + 0.0)
        + " degrees about x, y, z, moved by "
        + ", ".join(f"{step:.1f}" for step in np.round(move, 1) + 0.0)
        + " px"
    )
    worst = np.argsort(error.gauge_free.per_tilt_px)[::-1][:3]
    click.echo(
        "largest error: "
        + ", ".join(
            f"{error.gauge_free.per_tilt_px[k]:.2f} px in tilt {error.tilts[k]} ({error.tilt_deg[k]:.1f}°)"
            for k in worst
        )
    )
    if error.excluded:
        click.echo(f"left out: tilts {', '.join(map(str, error.excluded))} (counted from 0)")


def _numbers(residual: Residual) -> tuple[float, ...]:
    return residual.rms_px, residual.median_px, residual.smooth_px, residual.jitter_px, residual.local_px


def _length(value: float, pixel_size_A: float | None) -> str:
    return f"{value:.3f}" if pixel_size_A is None else f"{value:.3f} ({value * pixel_size_A:.2f})"
