"""``inr-export``: the aligned stack."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo import __version__
from inrtomo.commands._aligned_stack import (
    PIXEL_SIZE,
    AlignedStack,
    check_outputs,
    frame_record,
    read_aligned_stack,
)
from inrtomo.commands._common import Progress, command, device_option, echo_defaults
from inrtomo.device import choose
from inrtomo.dose import RELATIVE_TO_300_KV
from inrtomo.errors import InputError
from inrtomo.io.files import write_text
from inrtomo.io.imod import write_angles, write_x_tilt
from inrtomo.io.mrc import StackWriter

Array = NDArray[np.float64]


@command("inr-export", context_settings={"show_default": True})
@click.argument("stack", type=click.Path(path_type=Path))
@click.argument("alignment", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Aligned stack, OUT.mrc.")
@click.option("--bin", "binning", type=click.IntRange(1, 64), default=1, help="Bin by cutting the Fourier transform.")
@click.option("--mask", type=click.Path(path_type=Path), help="Also write where the images are: 1 seen, 0 filled.")
@click.option("--dose-weight", is_flag=True, help="Weight by the critical exposure curve (Grant & Grigorieff 2015).")
@click.option("--dose-per-tilt", type=float, metavar="E/A2", help="Exposure of each image.  [default: from the .mdoc]")
@click.option("--voltage", type=click.Choice([str(v) for v in RELATIVE_TO_300_KV]), default="300", metavar="KV")
@PIXEL_SIZE
@device_option()
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(
    stack: Path,
    alignment: Path,
    output: Path,
    binning: int,
    mask: Path | None,
    dose_weight: bool,
    dose_per_tilt: float | None,
    voltage: str,
    pixel_size: float | None,
    device: str,
    overwrite: bool,
) -> None:
    """Write STACK aligned by ALIGNMENT: rotation, shift and local motion in one interpolation.

    STACK is the raw stack the alignment was made for, or any of its size: the odd or even frames, another filter.
    ALIGNMENT is an inr-align folder, a .xf with its .tlt, or any other format inr-recon reads. The sides of the images
    are turned where the tilt axis lies nearer to x. Where an image has no pixel the local mean goes on. Beside OUT.mrc
    come OUT.tlt (refined angles), OUT.rawtlt (recorded angles), OUT.xtilt if the specimen is tilted about x, and
    OUT.json, which says how much of every section was seen. Excluded images stay in the stack, so that sections keep
    their numbers; OUT.json lists them.
    """
    texts = [output.with_suffix(ending) for ending in (".tlt", ".rawtlt", ".xtilt", ".json")]
    check_outputs([output, *texts, *([mask] if mask else [])], overwrite, stack, alignment)
    given = read_aligned_stack(stack, alignment, pixel_size)
    series, aligned = given.series, given.alignment
    exposure, source = _exposure(given, dose_per_tilt) if dose_weight or dose_per_tilt is not None else (None, "")
    if exposure is not None:
        given.sources.append(("dose weighting", f"{exposure.min():.1f} to {exposure.max():.1f} e/Å²", source))
    computing = choose(device)
    given.sources.append(("device", computing.sentence, ""))
    echo_defaults(given.sources)

    nx, ny = (n // binning for n in aligned.aligned_size)
    if min(nx, ny) < 1:
        raise InputError(f"--bin {binning}: nothing is left of images of {series.size[0]} x {series.size[1]}")
    shape, voxel = (series.n_tilts, ny, nx), given.pixel_size_A * binning
    from inrtomo.export import export_images  # numba: not for --help, nor for bad input

    seen = []
    with ExitStack() as stacks:
        writer = stacks.enter_context(StackWriter(output, shape, 2, voxel, overwrite, label="inr-export: aligned"))
        masks = (
            stacks.enter_context(StackWriter(mask, shape, 1, voxel, overwrite, label="inr-export: 1 where seen"))
            if mask
            else None
        )
        progress = stacks.enter_context(Progress("export"))
        images = export_images(series.image, aligned, binning, exposure, int(voltage), computing.name)
        for done, image in enumerate(images, 1):
            writer.write(image.values)
            if masks:
                masks.write(image.valid)
            seen.append(float(image.valid.mean()))
            progress(done / series.n_tilts)
    write_angles(texts[0], aligned.tilt_deg, overwrite)
    write_angles(texts[1], series.tilt_deg, overwrite)
    if aligned.x_tilt_deg.any():
        write_x_tilt(texts[2], aligned.x_tilt_deg, overwrite)
    record: dict[str, Any] = {
        "version": __version__,
        "stack": str(stack),
        "alignment": str(alignment),
        "bin": binning,
        "pixel_size_A": voxel,
        "frame": frame_record(aligned),
        "excluded_tilts": [{"tilt": tilt, "reason": reason} for tilt, reason in sorted(aligned.excluded.items())],
        "seen_fraction": [round(value, 4) for value in seen],
        "mask": str(mask) if mask else None,
        "device": computing.name,
        "weighted_by_exposure_e_A2": None if exposure is None else exposure.tolist(),
    }
    write_text(texts[3], json.dumps(record, indent=1), overwrite)
    click.echo(f"wrote {output} ({nx} x {ny} x {series.n_tilts}, {voxel:.4g} Å/px), seen: {min(seen):.0%} or more")


def _exposure(given: AlignedStack, dose_per_tilt: float | None) -> tuple[Array, str]:
    """Exposure of the middle of every image (e/Å2): what a specimen that decays meanwhile shows on average."""
    series = given.series
    if dose_per_tilt is not None:
        if not dose_per_tilt > 0:
            raise InputError(f"--dose-per-tilt {dose_per_tilt:g}: must be positive; give e/Å²")
        if series.order is None:
            raise InputError(f"{series.path}: the order of its images is not known; put its .mdoc beside it")
        turn = series.order if series.taken is None else series.taken
        exposure: Array = dose_per_tilt * (turn.astype(np.float64) + 0.5)
        return exposure, "--dose-per-tilt and the order of recording"
    if series.exposure_e_A2 is None:
        raise InputError(f"{series.path}: no doses found; put its .mdoc beside it or give --dose-per-tilt")
    half: Array = np.zeros(series.n_tilts) if series.dose_per_tilt is None else series.dose_per_tilt / 2
    return series.exposure_e_A2 + half, series.sources["exposure"]
