"""``inr-infer``: a tomogram from a raw stack and its alignment by a trained network, in seconds to minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from inrtomo.commands._aligned_stack import PIXEL_SIZE
from inrtomo.commands._common import MEMORY, TILT_LIST, command
from inrtomo.commands.recon import DEFAULT_MEMORY, DEFAULT_THICKNESS_NM

DEVICE_HELP = "auto, cpu, cuda or cuda:N."


@command("inr-infer", context_settings={"show_default": True})
@click.argument("stack", type=click.Path(path_type=Path))
@click.argument("alignment", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Tomogram, OUT.mrc.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Of inr-train, with its card beside it.  [default: those that came with the package]",
)
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
@click.option("--halves", "with_halves", is_flag=True, help="Also OUT_odd.mrc, OUT_even.mrc: frames, or else tilts.")
@click.option("--normalize", is_flag=True, help="Bring every tomogram to mean 0 and standard deviation 1.")
@click.option("--measured-only", "only_measured", is_flag=True, help="Nothing in the missing wedge.")
@click.option("--ctf", metavar="FILE|UM", help="Flip its phases: CTFFIND's, AreTomo's or IMOD's file, or underfocus.")
@click.option("--voltage", type=click.FloatRange(60, 1200), default=300.0, metavar="KV", help="For --ctf.")
@click.option("--memory", type=MEMORY, default=DEFAULT_MEMORY, help="To stay within, more or less.")
@click.option("--device", default="auto", help=DEVICE_HELP)
@click.option("--exclude", type=TILT_LIST, default=(), help="More tilts to leave out, counted from 0: 3,7-9.")
@PIXEL_SIZE
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def main(**options: Any) -> None:
    """Denoised tomogram from STACK along the rays that ALIGNMENT gives, local motion included, by a trained network.

    STACK and ALIGNMENT are those of inr-recon. The network was trained on simulated specimens: what it shows in the
    missing wedge, and much of what it shows at low signal, is what such specimens look like, not a measurement.
    Beside OUT.mrc, OUT.json says how it was made and OUT_live.png shows its central slices.
    """
    from inrtomo.commands._infer_run import Run

    Run(Options(**options)).run()


@dataclass(frozen=True)
class Options:
    """The command line."""

    stack: Path
    alignment: Path
    output: Path
    weights: Path | None
    thickness: float | None
    binning: int
    orientation: str
    contrast: str
    with_halves: bool
    normalize: bool
    only_measured: bool
    ctf: str | None
    voltage: float
    memory: float
    device: str
    exclude: tuple[int, ...]
    pixel_size: float | None
    overwrite: bool

    def beside(self, ending: str) -> Path:
        """OUT with an ending of its own, a tomogram's (``_odd``) followed by that of OUT."""
        suffix = "" if "." in ending else self.output.suffix
        return self.output.with_name(self.output.stem + ending + suffix)

    @property
    def outputs(self) -> list[Path]:
        """Everything that will be written."""
        endings = [".json", "_live.png"] + (["_odd", "_even"] if self.with_halves else [])
        return [self.output, *map(self.beside, endings)]
