"""``inr-recon``: a tomogram from a raw stack and its alignment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.commands._aligned_stack import (
    PIXEL_SIZE,
    AlignedStack,
    check_outputs,
    read_aligned_stack,
    thickness_beside,
)
from inrtomo.commands._common import TILT_LIST, Progress, command, echo_defaults
from inrtomo.errors import InputError
from inrtomo.io.mrc import StackWriter
from inrtomo.reconstruct.fbp import FbpSettings, fbp_sections
from inrtomo.reconstruct.filters import FILTERS, RadialFilter

DEFAULT_THICKNESS_NM = 300.0
POLARITY_SIZE = 512  # px: enough of an image to see whether protein is bright
_FILTER = RadialFilter()


@command("inr-recon", context_settings={"show_default": True})
@click.argument("stack", type=click.Path(path_type=Path))
@click.argument("alignment", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Tomogram, OUT.mrc.")
@click.option("--method", type=click.Choice(["fbp"]), default="fbp", help="Weighted back-projection.")
@click.option(
    "--thickness",
    type=float,
    metavar="NM",
    help=f"Of the sample.  [default: what inr-align found, or {DEFAULT_THICKNESS_NM:g}]",
)
@click.option("--bin", "binning", type=click.IntRange(1, 64), default=1, help="Bin by cutting the Fourier transform.")
@click.option(
    "--orientation",
    type=click.Choice(["imod", "xyz"]),
    default="imod",
    help="imod: sections are rows y, as tilt writes them; xyz: sections are planes z, as trimvol -rx makes them.",
)
@click.option(
    "--contrast",
    type=click.Choice(["input", "positive"]),
    default="input",
    help="positive: protein bright, whatever it is in the images.",
)
@click.option("--filter", "filter_name", type=click.Choice(FILTERS), default=_FILTER.name, help="Radial weighting.")
@click.option(
    "--radial",
    nargs=2,
    type=float,
    metavar="CUTOFF FALLOFF",
    help="IMOD's RADIAL: above CUTOFF (cycles per pixel) a Gaussian of sd FALLOFF.  [default: no cutoff]",
)
@click.option("--iterations", type=click.IntRange(1), default=_FILTER.iterations, help="Of the sirt-like filter.")
@click.option("--exclude", type=TILT_LIST, default=(), help="More tilts to leave out, counted from 0: 3,7-9.")
@PIXEL_SIZE
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(
    stack: Path,
    alignment: Path,
    output: Path,
    method: str,
    thickness: float | None,
    binning: int,
    orientation: str,
    contrast: str,
    filter_name: str,
    radial: tuple[float, float] | None,
    iterations: int,
    exclude: tuple[int, ...],
    pixel_size: float | None,
    overwrite: bool,
) -> None:
    """Reconstruct a tomogram from STACK along the rays that ALIGNMENT gives, local motion included.

    STACK is the raw stack (all frames, odd or even) and ALIGNMENT an inr-align folder, a .xf with its .tlt (and
    .xtilt, _warp.xf), an Etomo folder, an .aln or BASE_align.json; or STACK is aligned and ALIGNMENT its .tlt.
    The tomogram is as wide as the raw images and keeps their contrast.
    """
    check_outputs([output], overwrite, stack, alignment)
    radial_filter = _filter(filter_name, radial, iterations)
    given = read_aligned_stack(stack, alignment, pixel_size, exclude)
    thickness_nm = _thickness(thickness, alignment, given)
    thickness_px = max(binning, round(thickness_nm * 10 / given.pixel_size_A))
    if len(np.unique(np.round(given.alignment.tilt_deg[given.alignment.included], 3))) < 2:
        raise InputError(f"{stack}: fewer than two different tilt angles are left; a reconstruction needs more")
    given.sources.append(("filter", filter_name, "default" if filter_name == _FILTER.name else "--filter"))
    image, sign = _turned(given, contrast)
    if contrast == "positive":
        given.sources.append(("contrast", "turned" if sign < 0 else "kept", "protein bright in the tomogram"))
    echo_defaults(given.sources)

    settings = FbpSettings(thickness_px, radial_filter, binning)
    nz, ny, nx = settings.shape(given.alignment.image_size)
    if min(nx, ny) < 1:
        raise InputError(f"--bin {binning}: nothing is left of images of {nx} x {ny}")
    shape = (ny, nz, nx) if orientation == "imod" else (nz, ny, nx)
    voxel = given.pixel_size_A * binning
    label = f"inr-recon: {method}, {filter_name}, {orientation}"
    with (
        StackWriter(output, shape, 2, voxel, overwrite, volume=True, label=label) as writer,
        Progress(method) as progress,
    ):
        for section in fbp_sections(image, given.alignment, settings, orientation, output.parent, progress):
            writer.write(section)
    click.echo(f"wrote {output} ({shape[2]} x {shape[1]} x {shape[0]}, {voxel:.4g} Å/voxel, {orientation})")


def _filter(name: str, radial: tuple[float, float] | None, iterations: int) -> RadialFilter:
    if radial is None:
        return RadialFilter(name, iterations=iterations)
    cutoff, falloff = radial
    if not (0 < cutoff <= 0.5 and falloff > 0):
        raise InputError(
            f"--radial {cutoff:g} {falloff:g}: the cutoff is in cycles per pixel, up to 0.5, the falloff positive; "
            "IMOD's usual values are 0.35 0.035"
        )
    return RadialFilter(name, cutoff, falloff, iterations)


def _thickness(option_nm: float | None, path: Path, given: AlignedStack) -> float:
    """Thickness in nm, its source noted."""
    found: tuple[float, str] | None = None
    if option_nm is not None:
        if not option_nm > 0:
            raise InputError(f"--thickness {option_nm:g}: must be positive; give nm")
        found = option_nm, "--thickness"
    found = found or thickness_beside(path, given.series.name, given.pixel_size_A) or (DEFAULT_THICKNESS_NM, "default")
    given.sources.append(("thickness", f"{found[0]:.4g} nm", found[1]))
    return found[0]


def _turned(given: AlignedStack, contrast: str) -> tuple[Callable[[int], NDArray[np.float32]], int]:
    """Reader of images with the contrast asked for, and the sign it multiplies them with."""
    series = given.series
    if contrast == "input":
        return series.image, 1
    images = series.read(bin=max(1, min(series.size) // POLARITY_SIZE))
    settings = PrepareSettings(restore=False, mask_gold=False)
    sign = prepare(images, given.alignment.tilt_deg, None, settings, dict(given.alignment.excluded)).polarity
    return (series.image if sign > 0 else lambda tilt: -series.image(tilt)), sign
