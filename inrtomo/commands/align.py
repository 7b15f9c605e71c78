"""``inr-align``: from a tilt series to an alignment that IMOD takes as its own."""

from __future__ import annotations

import glob
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo import __version__
from inrtomo.align.checkpoint import check_unfinished
from inrtomo.align.settings import AlignSettings
from inrtomo.alignment import Alignment
from inrtomo.commands._aligned_stack import frame_record, frame_row
from inrtomo.commands._common import MEMORY, TILT_AXIS, TILT_LIST, Progress, command, device_option, echo_defaults
from inrtomo.device import choose_several, memory_bound, peak_device_bytes
from inrtomo.errors import InputError
from inrtomo.geometry import point_the_other_way
from inrtomo.io.alignment_files import alignment_paths, read_alignment, write_alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.files import check_output, make_folder, put_in_place, read_text, write_text
from inrtomo.io.images import row_order_notes
from inrtomo.io.mrc import StackWriter
from inrtomo.io.names import com_value, fits_com, safe_name
from inrtomo.tiltseries import TiltSeries, open_tilt_series

if TYPE_CHECKING:
    from inrtomo.align.pipeline import AlignResult
    from inrtomo.report.verdict import Verdict

_D = AlignSettings()
PICTURES = ("alignment", "residual", "warp", "loss", "slices")
TOMOGRAM_OF_THICKNESS = 1.3  # height of the tomogram, in thicknesses of the specimen


@command("inr-align", context_settings={"show_default": True})
@click.argument("stack", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option(
    "--tilt-angles",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=".rawtlt, .tlt or .mdoc.  [default: beside STACK]",
)
@click.option("--tilt-axis", type=TILT_AXIS, help="In IMOD's sense; auto searches for it.  [default: the .mdoc's]")
@click.option("--pixel-size", type=float, metavar="A", help="Å per raw pixel.  [default: the header's]")
@click.option("--thickness", type=float, metavar="NM", help="Of the sample.  [default: estimated]")
@click.option(
    "--defocus", metavar="UM|FILE", help="Underfocus, or a CTFFIND, .defocus or _CTF.txt file.  [default: estimated]"
)
@click.option(
    "--start",
    type=click.Path(path_type=Path),
    metavar="ALIGNMENT",
    help="Refine this .xf (with its .tlt), .aln, Etomo or inr-align folder.  [default: correlation and tracks]",
)
@click.option("--exclude", type=TILT_LIST, default=(), help="Tilts to leave out, counted from 0: 3,7-9.")
@click.option("--fast", is_flag=True, help="Stop after tracks and bundle adjustment.")
@click.option("--no-level", is_flag=True, help="Keep the start's frame: do not level and centre the specimen.")
@click.option("--error-bars", is_flag=True, help="Standard error of every shift, from two fits to half of the data.")
@click.option("--recon", is_flag=True, help="Also write the tomogram BASE_rec.mrc (as inr-recon --method fbp).")
@click.option("--field", type=click.Choice(["hash", "voxel", "mlp"]), default=_D.field, help="Model of the density.")
@click.option(
    "--warp",
    type=click.Choice(["bicubic", "bilinear", "network", "none"]),
    default=_D.warp,
    help="Model of local motion.",
)
@click.option("--loss", type=click.Choice(["l2", "l1", "huber"]), default=_D.loss, help="Data term.")
@click.option(
    "--working-size",
    type=click.IntRange(64),
    default=_D.working_size,
    help="Images are binned until their longer side is at most this many px.",
)
@click.option(
    "--memory",
    type=MEMORY,
    help=f"For a batch of tilts; on a GPU for all it holds.  [default: {_D.memory_bytes / 2**30:g}G; most of a GPU's]",
)
@click.option("--seed", type=int, default=_D.seed, help="Of everything random.")
@device_option(more="; cuda:0,cuda:1 share the fits")
@click.option("--strict", is_flag=True, help="Exit status 1 when the verdict is failed; the results are written.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(
    stack: Path,
    folder: Path,
    tilt_angles: Path | None,
    tilt_axis: float | str | None,
    pixel_size: float | None,
    thickness: float | None,
    defocus: str | None,
    start: Path | None,
    exclude: tuple[int, ...],
    fast: bool,
    no_level: bool,
    error_bars: bool,
    recon: bool,
    field: str,
    warp: str,
    loss: str,
    working_size: int,
    memory: float | None,
    seed: int,
    device: str,
    strict: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """Align the tilt series STACK, local motion included, and write what IMOD needs to FOLDER.

    Written are BASE.xf .tlt .xtilt, BASE_warp.xf (local motion, for newstack -xform), newst.com, tilt.com,
    BASE_align.json (every number), BASE_field.npz (the density model) and pictures; BASE is the stack's stem. At the
    end stands what inr-report says of it: good, check or failed, and why.

    Ctrl-C, a full disk or a crash leave BASE_checkpoint.npz, from which --resume goes on.
    """
    if thickness is not None and not thickness > 0:
        raise InputError(f"--thickness {thickness:g}: must be positive; give nm")
    series = open_tilt_series(stack, tilt_angles, pixel_size, exclude)
    com_value(safe_name(series.name, stack), stack)
    if series.pixel_size_A is None:
        raise InputError(f"{stack}: its header has no pixel size; give --pixel-size")
    axis, axis_source = _axis(tilt_axis, series, start)
    outputs = _Outputs(make_folder(folder), series.name, recon)
    if outputs.is_complete and resume and not overwrite:
        click.echo(f"{outputs.json}: complete already; nothing to do")
        if strict and _failed(outputs.json):
            sys.exit(1)
        return
    outputs.check(resume, overwrite)
    computing, *others = choose_several(device)
    notes = [*series.remarks, *row_order_notes(series.stack)]
    raw = _named_from(folder, stack, notes)
    settings = AlignSettings(
        axis_deg=axis,
        axis_is_recorded=axis is not None and tilt_axis is None,
        thickness_px=None if thickness is None else thickness * 10 / series.pixel_size_A,
        defocus_A=_defocus(defocus, series, notes),
        start=None if start is None else read_alignment(start, series, notes),
        fast=fast,
        level=not no_level,
        error_bars=error_bars,
        field=field,
        warp=warp,
        loss=loss,
        working_size=working_size,
        memory_bytes=memory_bound((computing, *others), memory, _D.memory_bytes),
        seed=seed,
        device=computing.name,
        others=tuple(other.name for other in others),
    )
    echo_defaults(
        [
            *_rows(series, settings, axis_source, defocus, start, thickness),
            ("device", "; ".join(each.sentence for each in (computing, *others)), ""),
            *(("note", n, "") for n in notes),
        ]
    )
    from inrtomo.align.pipeline import align_series  # takes seconds to load: not for --help, nor for bad input

    try:
        with _progress() as progress:
            result = align_series(series, settings, progress, outputs.checkpoint, resume, progress.say)
            verdict = _verdict(series, settings, result, progress)
    except KeyboardInterrupt:
        if outputs.checkpoint.exists():
            click.echo(f"{outputs.checkpoint} holds the run so far; --resume goes on with it", err=True)
        raise
    with outputs.staged() as staging:
        _write(staging, series, settings, result, verdict, recon, raw)
    echo_defaults([frame_row(result.alignment)])
    for path in outputs.written:
        click.echo(f"wrote {path}")
    seconds = "  ".join(f"{stage} {value:.0f} s" for stage, value in result.seconds.items())
    click.echo(f"{seconds}  peak memory {result.peak_memory_bytes / 2**30:.2f} GiB")
    if computing.is_gpu:
        peak, bound = peak_device_bytes(computing.name) / 2**30, settings.memory_bytes / 2**30
        click.echo(f"peak memory of {computing.name} {peak:.2f} of {bound:.2f} GiB")
    click.echo(f"{verdict.word}: {'; '.join(verdict.reasons)}")
    if strict and verdict.is_failed:
        sys.exit(1)


# --- input ---------------------------------------------------------------------------------------------------------


def _axis(option: float | str | None, series: TiltSeries, start: Path | None) -> tuple[float | None, str]:
    """Tilt-axis angle (None: to be found) and where it comes from."""
    if isinstance(option, float):
        if series.axis_deg is not None and point_the_other_way(option, series.axis_deg):
            return option, f"--tilt-axis; the .mdoc says {series.axis_deg:.1f}°: 180° apart, the hand is the other one"
        return option, "--tilt-axis"
    if option == "auto":
        return None, "--tilt-axis"
    if series.axis_deg is not None:
        return series.axis_deg, series.sources.get("mdoc", "the .mdoc")
    if start is not None:
        return None, "the start's"
    raise InputError(f"{series.path}: its tilt axis is not known; give --tilt-axis DEG, or auto to search for it")


def _defocus(option: str | None, series: TiltSeries, notes: list[str]) -> float | tuple[float, ...] | None:
    """Underfocus in Å: one value, or one per tilt from a file."""
    if option is None:
        return None
    try:
        microns = float(option)
    except ValueError:
        from inrtomo.io.ctf import read_defocus

        return tuple(float(v) for v in read_defocus(Path(option), series.n_tilts, notes, series.tilt_deg))
    if not 0.1 <= microns <= 20:
        raise InputError(f"--defocus {option}: must be from 0.1 to 20 um of underfocus; give micrometres")
    return microns * 1e4


def _rows(
    series: TiltSeries,
    settings: AlignSettings,
    axis_source: str,
    defocus: str | None,
    start: Path | None,
    thickness: float | None,
) -> list[tuple[str, object, str]]:
    """What the run uses and where it comes from."""
    s, nx, ny = series.sources, *series.size
    axis = "to be found" if settings.axis_deg is None else f"{settings.axis_deg:.2f}°"

    def chosen(name: str, value: object | None, otherwise: str) -> tuple[str, object, str]:
        return (name, otherwise, "default") if value is None else (name, value, f"--{name}")

    rows: list[tuple[str, object, str]] = [
        ("stack", f"{series.n_tilts} images, {nx} x {ny} px", str(series.path)),
        ("tilt angles", f"{series.tilt_deg.min():.2f} to {series.tilt_deg.max():.2f}°", s.get("tilt angles", "")),
        ("tilt axis", axis, axis_source),
        ("pixel size", f"{series.pixel_size_A:.4g} Å", s.get("pixel size", "")),
        chosen("thickness", None if thickness is None else f"{thickness:g} nm", "to be estimated"),
        chosen("defocus", defocus, "restored if the images look like it"),
        chosen("start", start, "correlation and tracks"),
        chosen("exclude", ", ".join(map(str, sorted(series.excluded))) or None, "what shows no signal"),
    ]
    if not settings.fast:
        models = f"field {settings.field}, warp {settings.warp}, loss {settings.loss}"
        rows.append(("joint fit", models, f"seed {settings.seed}"))
    return rows


# --- progress ------------------------------------------------------------------------------------------------------


class _Stages:
    """A progress line for whichever stage is running."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._line: Progress | None = None

    def __call__(self, task: str, fraction: float, scale: str = "", loss: float | None = None) -> None:
        if self._line is None or self._line.task != task:
            self.close()
            self._line = self._stack.enter_context(Progress(task))
        self._line(fraction, scale=scale, loss=loss)

    def say(self, text: str) -> None:
        """Print a line without breaking the progress line."""
        self.close()
        click.echo(text)

    def close(self) -> None:
        self._stack.close()
        self._line = None


@contextmanager
def _progress() -> Iterator[_Stages]:
    stages = _Stages()
    try:
        yield stages
    finally:
        stages.close()


# --- output --------------------------------------------------------------------------------------------------------


def _verdict(series: TiltSeries, settings: AlignSettings, result: AlignResult, progress: _Stages) -> Verdict:
    """What `inr-report` will say of the result, by the same rule."""
    from inrtomo.report.consistency import consistency_of
    from inrtomo.report.verdict import Evidence, judge

    started = time.monotonic()
    progress("verdict", 0.0)
    found = consistency_of(series.image, result.alignment, settings.thickness_px or result.thickness_px)
    progress("verdict", 1.0)
    total = result.seconds.pop("total")
    result.seconds["verdict"] = time.monotonic() - started
    result.seconds["total"] = total + result.seconds["verdict"]
    return judge(Evidence.of_result(result.alignment, found, _start_values(result)))


def _start_values(result: AlignResult) -> dict[str, Any]:
    """What ``BASE_align.json`` says of where the alignment started from."""
    return {
        "tilt_axis_ambiguous": result.axis_ambiguous,
        "wrong_start": result.wrong_start,
        "doubts": result.doubts,
    }


def _failed(path: Path) -> bool:
    """Whether the verdict of a complete run, by its ``BASE_align.json``, is failed."""
    try:
        return bool(json.loads(read_text(path)).get("verdict") == "failed")
    except (ValueError, AttributeError):
        raise InputError(f"{path}: is damaged; run inr-align again with --overwrite") from None


class _Outputs:
    """The files of a run: checked before, staged in a hidden folder, moved into place when all are complete."""

    def __init__(self, folder: Path, base: str, recon: bool) -> None:
        self.folder, self.base = folder, base
        self.json = folder / f"{base}_align.json"
        self.checkpoint = folder / f"{base}_checkpoint.npz"
        self.written: list[Path] = []
        self.expected = [*alignment_paths(folder, base), self.json, folder / f"{base}_field.npz"]
        self.expected += [folder / f"{base}_{name}.png" for name in PICTURES]
        if recon:
            self.expected.append(folder / f"{base}_rec.mrc")

    @property
    def is_complete(self) -> bool:
        return self.json.exists() and not self.checkpoint.exists()

    def check(self, resume: bool, overwrite: bool) -> None:
        """Refuse to touch what is there, unless told to."""
        for path in self.expected:
            check_output(path, overwrite)
        check_unfinished(self.checkpoint, resume, overwrite)
        # find out now, not after an hour, that nothing can be written
        probe = tempfile.TemporaryFile(dir=self.folder)
        probe.close()
        if not resume:
            self.checkpoint.unlink(missing_ok=True)
        for left_over in self.folder.glob(f".{glob.escape(self.base)}_align-*.part"):
            shutil.rmtree(left_over, ignore_errors=True)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder for the results; what is in it at the end replaces what is in the output folder, JSON last."""
        staging = Path(tempfile.mkdtemp(prefix=f".{self.base}_align-", suffix=".part", dir=self.folder))
        try:
            yield staging
            files = sorted(staging.iterdir(), key=lambda path: (path.name == self.json.name, path.name))
            fresh = {path.name for path in files}
            for stale in self.expected:
                if stale.name not in fresh:
                    stale.unlink(missing_ok=True)
            for path in files:
                put_in_place(path, self.folder / path.name)
            self.written = [self.folder / path.name for path in files]
            self.checkpoint.unlink(missing_ok=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _named_from(folder: Path, stack: Path, notes: list[str]) -> str:
    """The stack as it is called from a folder; its bare name, which is noted, where no com file can hold its path."""
    raw = os.path.relpath(stack.resolve(), folder.resolve())
    if fits_com(raw):
        return raw
    notes.append(
        f"newst.com cannot hold the path of {stack.name} and names it alone; link {stack} into {folder} for it"
    )
    return com_value(stack.name, stack)


def _write(
    staging: Path,
    series: TiltSeries,
    settings: AlignSettings,
    result: AlignResult,
    verdict: Verdict,
    recon: bool,
    raw: str,
) -> None:
    """All result files into one folder; ``raw`` is the stack as ``newst.com`` names it."""
    from inrtomo.align.placed_field import PlacedField

    base, alignment = series.name, result.alignment
    height = 2 * int(np.ceil(TOMOGRAM_OF_THICKNESS * (settings.thickness_px or result.thickness_px) / 2))
    write_alignment(staging, base, alignment, thickness_px=height, stack=raw)
    if result.field is not None:
        PlacedField(result.field, *result.field_to_result, result.working_bin).save(staging / f"{base}_field.npz")
    volume = None
    if recon:
        volume = _reconstruct(staging / f"{base}_rec.mrc", series, alignment, height, settings.device)
    _draw(staging, series, result, volume)
    values = _report(series, settings, result, verdict, height)
    # a key a line: readable, and a warp does not take a line for every number
    lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items()]
    write_text(staging / f"{base}_align.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _reconstruct(path: Path, series: TiltSeries, alignment: Alignment, height: int, device: str) -> NDArray[np.float32]:
    """The tomogram as ``inr-recon`` writes it by default; returns its central sections ``[z, y, x]`` for a picture."""
    from inrtomo.reconstruct.fbp import FbpSettings, fbp_sections

    settings = FbpSettings(thickness_px=height, device=device)
    nz, ny, nx = settings.shape(alignment.aligned_size)
    volume = np.zeros((nz, ny, nx), dtype=np.float32)
    label = "inr-align: fbp, imod"
    with (
        StackWriter(path, (ny, nz, nx), 2, series.pixel_size_A, volume=True, label=label) as writer,
        Progress("tomogram") as progress,
    ):
        for row, section in enumerate(fbp_sections(series.image, alignment, settings, "imod", path.parent, progress)):
            writer.write(section)
            volume[:, row] = section[::-1]
    return volume


def _draw(staging: Path, series: TiltSeries, result: AlignResult, volume: NDArray[np.float32] | None) -> None:
    """Quick-look pictures."""
    from inrtomo.report import figures

    alignment, base = result.alignment, series.name
    figures.alignment_plots(
        alignment,
        staging / f"{base}_alignment.png",
        nominal_tilt_deg=series.tilt_deg,
        sigma_shift_px=result.sigma_shift_px,
    )
    if np.isfinite(result.residual_px).any():
        figures.residuals(alignment, result.residual_px, staging / f"{base}_residual.png")
    if alignment.warp is not None:
        figures.warp_arrows(alignment, staging / f"{base}_warp.png")
    if result.losses:
        bins, _, fitted, held = np.array(result.losses).T
        starts = np.flatnonzero(np.diff(bins, prepend=0))
        figures.held_out_loss(
            np.arange(len(held), dtype=np.float64), held, staging / f"{base}_loss.png", fitted=fitted,
            scale_starts=[(float(k), f"bin {int(bins[k]) * result.working_bin}") for k in starts],
        )  # fmt: skip
    if volume is not None:
        figures.slices(volume, staging / f"{base}_slices.png", f"{base}: tomogram", series.pixel_size_A)
    elif result.density is not None and result.lattice is not None:
        voxel = result.lattice.spacing * result.working_bin * (series.pixel_size_A or 1.0)
        half = [size / 2 / result.working_bin for size in alignment.aligned_size]
        seen_x, seen_y = (
            np.abs(result.lattice.origin[axis] + result.lattice.spacing * np.arange(result.lattice.shape[axis])) <= h
            for axis, h in zip((1, 2), half, strict=True)
        )
        density = result.density[:, seen_x][:, :, seen_y].transpose(0, 2, 1)
        figures.slices(density, staging / f"{base}_slices.png", f"{base}: density of the fit", voxel)


def _report(
    series: TiltSeries, settings: AlignSettings, result: AlignResult, verdict: Verdict, height: int
) -> dict[str, Any]:
    """``BASE_align.json``: lengths in raw px unless the name says otherwise, tilts counted from 0."""
    a, pixel = result.alignment, series.pixel_size_A or 1.0
    thickness = settings.thickness_px or result.thickness_px
    guard = result.verdict
    return {
        "verdict": verdict.word,
        "reasons": verdict.reasons,
        "excluded_tilts": [{"tilt": int(i), "reason": why} for i, why in sorted(a.excluded.items())],
        "shift_px": a.shift_px.tolist(),
        "rotation_deg": a.rotation_deg.tolist(),
        "tilt_deg": a.tilt_deg.tolist(),
        "sigma_shift_px": None if result.sigma_shift_px is None else _plain(result.sigma_shift_px),
        "held_out_loss": None if guard is None else guard.held_out_loss[guard.chosen],
        "residual_px": _plain(result.residual_px),
        "residual_rms_px": result.residual_rms_px,
        "tracks": {"place_px": result.tracks_px[:, :2].tolist(), "residual_px": result.tracks_px[:, 2].tolist()},
        "tilt_axis_deg": float(np.median(a.rotation_deg[a.included])),
        **_start_values(result),
        "thickness_px": thickness,
        "thickness_nm": thickness * pixel / 10,
        "thickness_estimate_px": result.thickness_px,
        "tomogram_height_px": height,
        "frame": frame_record(a),
        "levelling": result.levelling,
        "guard": None if guard is None else guard.as_dict(),
        "losses": [list(row) for row in result.losses],
        "notes": result.notes,
        "alignment": alignment_to_dict(a),
        "start_alignment": alignment_to_dict(result.start),
        "settings": settings.as_dict(),
        "input": {"stack": str(series.path), "sources": series.sources, "nominal_tilt_deg": series.tilt_deg.tolist()},
        "working_bin": result.working_bin,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "device": settings.device,
        "peak_device_bytes": peak_device_bytes(settings.device),
        "versions": {
            "inrtomo": __version__, "python": platform.python_version(), "numpy": np.__version__,
            "numba": version("numba"),
        },
        "command": shlex.join(["inr-align", *sys.argv[1:]]),
    }  # fmt: skip


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists with None where a value is not known."""
    known = values.astype(object)
    known[~np.isfinite(values)] = None
    return known.tolist()
