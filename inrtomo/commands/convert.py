"""``inr-convert``: an alignment in another program's format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from inrtomo.commands._aligned_stack import frame_row
from inrtomo.commands._common import command, echo_defaults
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_record
from inrtomo.io.belonging.metadata import known_pixel_size
from inrtomo.io.convert import FORMATS, format_of, write_record
from inrtomo.io.ctf import read_ctf
from inrtomo.io.images import ImageList, row_order_notes
from inrtomo.io.mrc import read_header
from inrtomo.io.names import safe_name
from inrtomo.io.series_record import SeriesRecord
from inrtomo.tiltseries import NoAnglesError, TiltSeries, open_tilt_series

EXPLAINED = ("etomo", "imod", "aretomo", "relion5", "warp", "mdoc", "json")
"""Formats whose reader is explained; their tables are in `inrtomo.io.explained`."""


def _explain(context: click.Context, param: click.Parameter, name: str | None) -> None:
    """Print what is taken of a format, and end."""
    if name is not None and not context.resilient_parsing:
        from inrtomo.io.explained import text

        click.echo(text(name))
        context.exit()


@command("inr-convert", context_settings={"show_default": True})
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(list(FORMATS)), help="Format of OUT.  [default: by its name]")
@click.option("--stack", type=click.Path(path_type=Path), help="Raw stack: image size, pixel size, recorded angles.")
@click.option("--ctf", type=click.Path(path_type=Path), help="For RELION: CTFFIND's, AreTomo's or IMOD's defocus file.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option(
    "--explain",
    type=click.Choice(EXPLAINED),
    is_eager=True,
    expose_value=False,
    callback=_explain,
    help="Print what is taken of a format's files and what is not, and end.",
)
def main(source: Path, target: Path, form: str | None, stack: Path | None, ctf: Path | None, overwrite: bool) -> None:
    """Convert the alignment IN to OUT, local motion included.

    IN is an inr-align, Etomo or AreTomo _Imod folder, a .xf with its .tlt, a warp file, an AreTomo .aln, a RELION
    tomograms.star or the STAR file of a series, a Warp XML, the JSON of inr-align and inr-simulate, or an .mdoc, which
    has recorded angles, doses and the tilt axis only.

    OUT is by its suffix .aln (AreTomo), .star (RELION 5: tomograms.star, with tilt_series/NAME.star), .xml (Warp),
    .json, or else .xf or a folder (IMOD: NAME.xf .tlt .xtilt .rawtlt, the warp file, NAMElocal.xf, com files). The
    formats outimod1 and outimod2 are AreTomo's NAME_Imod folders of -OutImod 1 and 2.

    What OUT cannot hold is said, and how nearly it holds the local motion. RELION's programs want CTF and doses, from
    --ctf and an .mdoc beside the stack. Files of RELION and Warp that may be overwritten keep their CTF and paths.
    """
    form = form or format_of(target)
    if form is None:
        raise InputError(f"{target}: its suffix is of no format; name one with --to ({', '.join(FORMATS)})")
    if ctf is not None and form != "relion5":
        raise InputError(f"--ctf {ctf}: of the formats only RELION's takes it; leave it out")
    if ctf is not None and stack is None:
        raise InputError(f"--ctf {ctf}: counts the images of a stack; give it with --stack")
    notes: list[str] = []
    series, size, pixel = _read_stack(stack, notes)
    notes += [] if series is None else row_order_notes(series.stack)
    record = read_record(source, series if series is not None else size, notes)
    count = record.alignment.n_tilts
    if stack is not None and series is None and count != read_header(stack).shape[0]:
        raise InputError(
            f"{source}: aligns {count} images, {stack} has {read_header(stack).shape[0]} and no tilt angles to match "
            f"them by; put {stack.stem}.rawtlt beside it"
        )
    record = _completed(record, series, stack, pixel)
    if ctf is not None:
        recorded = None if series is None else series.tilt_deg
        kept = record.alignment.included.tolist()
        record = replace(record, defoci=read_ctf(ctf, record.alignment.n_tilts, notes, kept, recorded))
    safe_name(record.name, stack or source)
    paths, said = write_record(target, record, form, None if stack is None else str(stack), overwrite)
    a = record.alignment
    rows: list[tuple[str, object, str]] = [
        ("images", f"{a.n_tilts}, {a.image_size[0]} x {a.image_size[1]} px", record.name),
        frame_row(a),
        ("pixel size", "unknown" if a.pixel_size_A is None else f"{a.pixel_size_A:.4g} Å", ""),
        ("tilt angles", f"{a.tilt_deg.min():.2f} to {a.tilt_deg.max():.2f}°", "refined"),
        ("recorded angles", "unknown" if record.nominal_tilt_deg is None else "known", ""),
        ("local motion", _motion(record), ""),
        ("left out", ", ".join(map(str, sorted(a.excluded))) or "none", "counted from 0" if a.excluded else ""),
    ]
    echo_defaults(rows)
    for note in [*notes, *said]:
        click.echo(f"note: {note}")
    click.echo("wrote " + ", ".join(map(str, paths)))


def _read_stack(stack: Path | None, notes: list[str]) -> tuple[TiltSeries | None, tuple[int, int] | None, float | None]:
    """The series of a stack; where it has no angles of its own, at least the size of its images and pixels."""
    if stack is None:
        return None, None, None
    try:
        series = open_tilt_series(stack)
    except NoAnglesError:
        header = read_header(stack)
        notes.append(f"{stack}: has no tilt angles of its own; the order of its images is taken on trust")
        return None, (header.shape[2], header.shape[1]), known_pixel_size(header.pixel_size_A)
    notes += series.remarks
    return series, series.size, series.pixel_size_A


def _completed(
    record: SeriesRecord, series: TiltSeries | None, stack: Path | None, pixel_size_A: float | None
) -> SeriesRecord:
    """The record with what the stack knows and IN does not."""
    a = record.alignment
    if a.pixel_size_A is None and pixel_size_A:
        record = replace(record, alignment=replace(a, pixel_size_A=pixel_size_A))
    if stack is not None:
        record = replace(record, name=stack.stem)
        if record.images is None:
            listed = series.stack.names if series is not None and isinstance(series.stack, ImageList) else None
            record = replace(record, images=listed or tuple(f"{k + 1:06d}@{stack}" for k in range(a.n_tilts)))
    if series is None:
        return record
    nominal, exposure = record.nominal_tilt_deg, record.exposure_e_A2
    return replace(
        record,
        nominal_tilt_deg=series.tilt_deg if nominal is None else nominal,
        exposure_e_A2=series.exposure_e_A2 if exposure is None else exposure,
    )


def _motion(record: SeriesRecord) -> str:
    warp = record.alignment.warp
    return "none" if warp is None else f"up to {np.linalg.norm(warp.vectors, axis=-1).max():.2f} px"
