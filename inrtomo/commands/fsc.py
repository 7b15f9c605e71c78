"""``inr-fsc``: to what resolution two volumes, or two stacks of images, agree."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from inrtomo import __version__
from inrtomo.commands._common import PLAIN_NUMBER, command, device_option, echo_defaults, typed_options
from inrtomo.commands._volume_pair import Pair, as_images, as_volumes, read_mask, read_pair
from inrtomo.device import choose
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.angle_files import read_angles
from inrtomo.io.files import check_output, make_folder, write_text
from inrtomo.io.mrc import write_volume
from inrtomo.metrics.conventions import CONE_DEG, HALF_MAPS, REFERENCE

if TYPE_CHECKING:
    from inrtomo.metrics.fsc import VolumeFsc
    from inrtomo.metrics.shells import ShellCorrelation

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ENDINGS = (".star", ".csv", ".json", ".png")
LOCAL_ENDING = "_local.mrc"
ANGLE_FILES = (".tlt", ".rawtlt")
VOLUME_OPTIONS = ("mask", "register", "tilts", "cone", "orientation", "local", "seed")
"""Options that mean nothing to images."""
LIKENESS = {
    "cc": "correlation (CC)",
    "cc_after_best_filter": "CC after the best filter of frequency alone",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "vif": "VIF",
    "cnr": "CNR, particles of the truth to the rest",
    "enl": "ENL of the rest",
}


@command("inr-fsc", context_settings={"show_default": True})
@click.argument("vol1", type=click.Path(path_type=Path))
@click.argument("vol2", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "prefix", type=click.Path(path_type=Path), required=True,
    help="Write PREFIX.star, .csv, .json and .png.",
)  # fmt: skip
@click.option(
    "--reference", is_flag=True, help="VOL2 is the truth or a model: resolution at 0.5, not at the half maps' 0.143."
)
@click.option(
    "--mask", default="box", metavar="box|slab|FILE",
    help="The whole box or the slab that holds the specimen, both with soft edges, or a file from 0 to 1; "
    "a soft edge is laid around a mask of 0 and 1.",
)  # fmt: skip
@click.option(
    "--register", type=click.Choice(["none", "translation", "rigid"]), default="none", help="Lay VOL1 over VOL2 first."
)
@click.option(
    "--tilts", metavar="FILE|A,B",
    help="Curves inside and outside what was measured: from an alignment or a .tlt with every tilt, or from the "
    "first and last angle.",
)  # fmt: skip
@click.option("--cone", type=click.FloatRange(1, 90), default=CONE_DEG, metavar="DEG", help="Half angle of the cones.")
@click.option(
    "--orientation", type=click.Choice(["imod", "xyz"]),
    help="Axes of both as IMOD's tilt writes them (sections are y) or as after trimvol -rx.  [default: as the labels "
    "in their headers say, else z is the shorter side]",
)  # fmt: skip
@click.option("--local", is_flag=True, help="Also write PREFIX_local.mrc, the resolution (Å) around every voxel.")
@click.option("--frc", "images", is_flag=True, help="Sections are images: Fourier rings of each and of all.")
@click.option("--pixel-size", type=float, metavar="A", help="Å per voxel.  [default: the headers']")
@click.option("--seed", type=int, default=0, help="Of the random phases.")
@device_option()
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.pass_context
def main(
    context: click.Context,
    /,
    vol1: Path,
    vol2: Path,
    prefix: Path,
    reference: bool,
    mask: str,
    register: str,
    tilts: str | None,
    cone: float,
    orientation: str | None,
    local: bool,
    images: bool,
    pixel_size: float | None,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """Fourier shell correlation of VOL1 and VOL2, on boxes of any sides.

    Half maps (odd and even) are resolved to where their correlation crosses 0.143. With --reference VOL2 is the truth
    or a model, VOL1 is resolved to where it crosses 0.5, and correlation, PSNR, SSIM, VIF, CNR and ENL are printed too.
    Both crossings are printed for every curve: without and
    under a soft mask, under the mask with random phases (what the mask alone makes agree), corrected for that (Chen
    et al. 2013), in cones about x, y and z, and with --tilts inside and outside the measured part of Fourier space. In
    the wedge half maps agree on whatever one method puts there; only the truth tells whether it is right.
    To compare candidates fairly, run every one against the same reference with the same --register and --mask.
    """
    make_folder(prefix.parent)
    outputs = {ending: prefix.with_name(prefix.name + ending) for ending in (*ENDINGS, LOCAL_ENDING)}
    for ending in (*ENDINGS, *([LOCAL_ENDING] if local else [])):
        check_output(outputs[ending], overwrite)
    computing = choose(device)
    pair = read_pair(vol1, vol2, pixel_size)
    images = images or len(pair.a) == 1
    if images:
        _refuse_volume_options(context)
    # seconds to load: not for --help, nor for bad input
    from inrtomo.io.fsc_tables import write_fsc_csv, write_fsc_star
    from inrtomo.metrics.fsc import fourier_work_on, frc, volume_fsc
    from inrtomo.report.fsc import fsc_plot

    convention = "VOL2 as the truth" if reference else "half maps"
    threshold = REFERENCE if reference else HALF_MAPS
    pair.sources.append(("convention", f"{convention}, {threshold:g}", "--reference" if reference else "default"))
    pair.sources.append(("device", computing.sentence, ""))
    make_work = fourier_work_on(computing.name)
    record: dict[str, Any] = {
        "version": __version__,
        "volumes": [str(vol1), str(vol2)],
        "convention": convention,
        "threshold": threshold,
        "pixel_size_A": pair.pixel_size_A,
        "device": computing.name,
    }
    general: dict[str, object] = {"rlnUnfilteredMapHalf1": str(vol1), "rlnUnfilteredMapHalf2": str(vol2)}
    single: list[ShellCorrelation] = []
    local_map: F32 | None = None
    if images:
        pair = as_images(pair)
        echo_defaults(pair.sources)
        together, single = frc(pair.a, pair.b, pair.pixel_size_A, make_work)
        curves, headline = {"frc": together}, "frc"
        record["image_resolution_A"] = [_number(curve.resolution_A(threshold)) for curve in single]
    else:
        pair = as_volumes(pair, orientation)
        pair, moved = _registered(pair, register, computing.name)
        soft, mask_name = _mask(mask, pair, orientation)
        angles, every_tilt = (None, False) if tilts is None else _tilt_angles(tilts)
        if angles is not None:
            kind = f"{len(angles)} tilts" if every_tilt else "range"
            pair.sources.append(("tilts", f"{angles.min():.1f}° to {angles.max():.1f}°, {kind}", "--tilts"))
        echo_defaults(pair.sources)
        for note in pair.notes:
            click.echo(f"note: {note}")
        result = volume_fsc(
            pair.a, pair.b, pair.pixel_size_A, soft, tilt_deg=angles, every_tilt=every_tilt, cone_deg=cone, seed=seed,
            make_work=make_work,
        )  # fmt: skip
        curves, headline = result.curves(), "corrected"
        record |= {"registration": moved, "mask": mask_name, "mask_volume_fraction": float(soft.mean())}
        record |= {"randomised_from_A": result.randomised_from_A, "cone_deg": cone, "seed": seed}
        record["tilt_deg"] = None if angles is None else angles.tolist()
        general |= _relion_mask(result, mask_name)
        if reference:
            from inrtomo.metrics.likeness import likeness

            record["likeness"] = {name: _number(value) for name, value in likeness(pair.a, pair.b).items()}
        if local:
            local_map = _local_map(pair, curves[headline].resolution_A(threshold), threshold, record, computing.name)
    resolution = curves[headline].resolution_A(threshold)
    _print(curves)
    if "likeness" in record:
        _print_likeness(record["likeness"])
    _say_headline(resolution, threshold, convention, pair.pixel_size_A)

    record |= {"curve": headline, "resolution_A": _number(resolution)}
    frequency = curves[headline].frequency_per_A
    record |= {"frequency_per_A": frequency.tolist(), "curves": {n: _curve(c) for n, c in curves.items()}}
    write_fsc_star(
        outputs[".star"], curves, headline, {"rlnFinalResolution": min(resolution, 999.0), **general}, overwrite
    )
    write_fsc_csv(outputs[".csv"], curves, overwrite)
    write_text(outputs[".json"], json.dumps(record, indent=1), overwrite)
    fsc_plot(curves, headline, threshold, outputs[".png"], single=single, title=f"{vol1.name} and {vol2.name}")
    if local_map is not None:
        order = pair.orders[0]
        values = local_map if order == "xyz" else local_map[::-1].transpose(1, 0, 2)
        label = f"inr-fsc: local resolution in Angstrom, {order}"
        write_volume(outputs[LOCAL_ENDING], values, pair.pixel_size_A, overwrite=overwrite, label=label)
    names = [outputs[ending].name for ending in (*ENDINGS[1:], *([LOCAL_ENDING] if local else []))]
    click.echo(f"wrote {outputs['.star']}, {', '.join(names)}")


def _refuse_volume_options(context: click.Context) -> None:
    typed = typed_options(context)
    for name in VOLUME_OPTIONS:
        if name in typed:
            raise InputError(f"--{name}: is for volumes, and these are images; leave it out")


def _registered(pair: Pair, kind: str, device: str) -> tuple[Pair, dict[str, Any] | None]:
    """VOL1 laid over VOL2, and by what motion."""
    if kind == "none":
        return pair, None
    from inrtomo.metrics.registration import registration_work_on, rigid_between, translation_between

    work = registration_work_on(device)
    if kind == "translation":
        shift = translation_between(pair.a, pair.b, work=work)
        moved = work.translated(pair.a, shift)
        said = {"kind": kind, "shift_px_xyz": shift[::-1].tolist(), "rotation_deg_xyz": [0.0, 0.0, 0.0]}
    else:
        motion = rigid_between(pair.a, pair.b, work=work)
        moved = work.rigidly_moved(pair.a, motion)
        # the motion says where VOL2's points are in VOL1; VOL1 itself moves the other way
        shift, turn = -motion.rotation.T @ motion.translation_px, -motion.rotation_deg
        said = {"kind": kind, "shift_px_xyz": shift.tolist(), "rotation_deg_xyz": turn.tolist()}
    by = ", ".join(f"{value + 0.0:.2f}" for value in np.round(said["shift_px_xyz"], 2))
    turned = ", ".join(f"{value + 0.0:.2f}" for value in np.round(said["rotation_deg_xyz"], 2))
    pair.sources.append(("VOL1 moved by", f"{by} px (x, y, z), turned by {turned}°", f"--register {kind}"))
    return replace(pair, a=work.fetched(moved)), said


def _mask(name: str, pair: Pair, orientation: str | None) -> tuple[F32, str]:
    """The soft mask, and what it is called."""
    from inrtomo.metrics.masks import soft_box, soft_slab, softened

    if name == "box":
        pair.sources.append(("mask", "box with soft edges", "default"))
        return soft_box(pair.a.shape), name
    if name == "slab":
        mask = soft_slab(pair.a, pair.b)
        height = float(mask.max(axis=(1, 2)).sum()) * pair.pixel_size_A / 10
        pair.sources.append(("mask", f"slab of {height:.0f} nm", "--mask"))
        return mask, name
    mask = softened(read_mask(Path(name), pair, orientation))
    pair.sources.append(("mask", f"{float(mask.mean()):.0%} of the box", name))
    return mask, name


def _tilt_angles(given: str) -> tuple[F64, bool]:
    """Tilt angles (degrees), and whether they are every tilt or the ends of a range."""
    path, ends = Path(given), given.split(",")
    of_file = path.exists() or not all(map(_is_number, ends))
    if of_file:
        if len(ends) == 2 and not path.exists():
            raise InputError(f"--tilts {given}: are not two angles; write them as -60,60")
        if path.suffix in ANGLE_FILES:
            angles = read_angles(path)
        else:
            alignment = read_alignment(path)
            angles = np.asarray(alignment.tilt_deg[alignment.included])
    elif len(ends) == 2:
        angles = np.array([float(end) for end in ends])
    else:
        raise InputError(f"--tilts {given}: is neither a file nor two angles; give the first and the last as -60,60")
    if not (np.abs(angles) < 90).all() or np.ptp(angles) == 0:
        raise InputError(
            f"--tilts {given}: are not different angles between -90 and 90 degrees; give those of the series"
        )
    return angles, of_file


def _is_number(text: str) -> bool:
    return PLAIN_NUMBER.fullmatch(text.strip()) is not None


def _relion_mask(result: VolumeFsc, mask: str) -> dict[str, object]:
    if result.randomised_from_A is None:
        return {"rlnMaskName": mask}
    return {"rlnMaskName": mask, "rlnRandomiseFrom": result.randomised_from_A}


def _local_map(pair: Pair, resolution_A: float, threshold: float, record: dict[str, Any], device: str) -> F32:
    from inrtomo.metrics.local_resolution import local_resolution, window_for, window_work_on

    window = window_for(resolution_A, pair.pixel_size_A, pair.a.shape)
    values = local_resolution(pair.a, pair.b, pair.pixel_size_A, window, threshold, window_work_on(device))
    low, middle, high = (float(v) for v in np.percentile(values, (5, 50, 95)))
    record["local_resolution"] = {
        "window_px": window,
        "threshold": threshold,
        "percentiles_5_50_95_A": [low, middle, high],
    }
    click.echo(f"local resolution: {middle:.1f} Å ({low:.1f} to {high:.1f} in 90 % of the box), windows of {window} px")
    return values


def _print(curves: Mapping[str, ShellCorrelation]) -> None:
    width = None if sys.stdout.isatty() else 120
    table = Table(title="resolution, Å")
    table.add_column("curve")
    for name in (f"at {HALF_MAPS:g}", f"at {REFERENCE:g}", "mean"):
        table.add_column(name, justify="right")
    for name, curve in curves.items():
        if name == "randomised":
            continue  # what the mask does, no resolution of anything
        crossings = (_length(curve.resolution_A(t), curve) for t in (HALF_MAPS, REFERENCE))
        label = f"cone about {name}" if len(name) == 1 else name
        table.add_row(label, *crossings, f"{curve.mean():.3f}")
    Console(file=sys.stdout, width=width, highlight=False, emoji=False).print(table)


def _print_likeness(values: Mapping[str, float | None]) -> None:
    """What `inrtomo.metrics.likeness` found."""
    click.echo("VOL1 beside the truth, on its grey scale, in the middle of the view:")
    echo_defaults((LIKENESS[name], "too small" if v is None else f"{v:.4g}", "") for name, v in values.items())


def _length(resolution_A: float, curve: ShellCorrelation) -> str:
    if resolution_A <= 1 / curve.frequency_per_A[-1]:
        return f"{resolution_A:.1f} (Nyquist)"
    return f"{resolution_A:.1f}" if math.isfinite(resolution_A) else "never above"


def _say_headline(resolution_A: float, threshold: float, convention: str, pixel_size_A: float) -> None:
    if math.isinf(resolution_A):
        click.echo(f"no resolution: the curve starts below {threshold:g} ({convention})")
    else:
        click.echo(
            f"resolution {resolution_A:.1f} Å ({resolution_A / pixel_size_A:.2f} px) at {threshold:g}: {convention}"
        )


def _curve(curve: ShellCorrelation) -> dict[str, Any]:
    return {
        "resolution_A": {f"{t:g}": _number(curve.resolution_A(t)) for t in (HALF_MAPS, REFERENCE)},
        "mean": _number(curve.mean()),
        "correlation": [_number(value) for value in curve.correlation],
        "components": curve.count.tolist(),
    }


def _number(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
