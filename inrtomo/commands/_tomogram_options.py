"""Options that ``inr-recon`` and ``inr-infer`` have in common: what a tomogram is made of, and its form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from inrtomo.commands._aligned_stack import PIXEL_SIZE
from inrtomo.commands._common import MEMORY, TILT_LIST
from inrtomo.errors import InputError

DEFAULT_THICKNESS_NM = 300.0
DEFAULT_MEMORY_GIB = 4

Decorated = Callable[..., Any]

_INPUT = (
    click.argument("stack", type=click.Path(path_type=Path)),
    click.argument("alignment", type=click.Path(path_type=Path)),
    click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Tomogram, OUT.mrc."),
)
_FORM = (
    click.option(
        "--thickness",
        type=float,
        metavar="NM",
        help=f"Of the sample.  [default: what inr-align found, or {DEFAULT_THICKNESS_NM:g}]",
    ),
    click.option(
        "--bin", "binning", type=click.IntRange(1, 64), default=1, help="Bin by cutting the Fourier transform."
    ),
    click.option(
        "--orientation",
        type=click.Choice(["imod", "xyz"]),
        default="imod",
        help="imod: sections are rows y, as tilt writes them; xyz: sections are planes z, as trimvol -rx makes them.",
    ),
    click.option(
        "--contrast",
        type=click.Choice(["input", "positive"]),
        default="input",
        help="positive: protein bright, whatever it is in the images.",
    ),
    click.option(
        "--halves", "with_halves", is_flag=True, help="Also OUT_odd.mrc, OUT_even.mrc: frames, or else tilts."
    ),
    click.option("--normalize", is_flag=True, help="Bring every tomogram to mean 0 and standard deviation 1."),
    click.option("--measured-only", "only_measured", is_flag=True, help="Nothing in the missing wedge."),
    click.option(
        "--ctf", metavar="FILE|UM", help="Correct for it: CTFFIND's, AreTomo's or IMOD's file, or underfocus."
    ),
    click.option(
        "--ctf-hand",
        type=click.Choice(["1", "-1"]),
        help="For --ctf: 1: at positive tilt the right of an aligned image is more underfocused; -1: the left.  "
        "[default: what FILE says, or 1]",
    ),
    click.option("--voltage", type=click.FloatRange(60, 1200), default=300.0, metavar="KV", help="For --ctf."),
)
_RUN = (
    click.option(
        "--memory",
        type=MEMORY,
        help=f"To stay within, more or less.  [default: {DEFAULT_MEMORY_GIB}G; most of a GPU's]",
    ),
    click.option("--exclude", type=TILT_LIST, default=(), help="More tilts to leave out, counted from 0: 3,7-9."),
    PIXEL_SIZE,
    click.option("--overwrite", is_flag=True, help="Replace files that exist."),
)


def refuse_voltage(o: TomogramOptions, typed: set[str]) -> None:
    """Say that ``--voltage`` without ``--ctf`` means nothing, if it was typed."""
    if "voltage" in typed and o.ctf is None:
        raise InputError("--voltage: is for --ctf FILE or --ctf UM, and there is none; leave it out")


def tomogram_options(*own: Decorated) -> Decorated:
    """Decorate a command with the options of `TomogramOptions`, and with its own between form and run."""

    def decorate(function: Decorated) -> Decorated:
        for option in reversed((*_INPUT, *_FORM, *own, *_RUN)):
            function = option(function)
        return function

    return decorate


@dataclass(frozen=True, kw_only=True)
class TomogramOptions:
    """The part of the command line that both have."""

    stack: Path
    alignment: Path
    output: Path
    thickness: float | None
    binning: int
    orientation: str
    contrast: str
    with_halves: bool
    normalize: bool
    only_measured: bool
    ctf: str | None
    ctf_hand: str | None
    voltage: float
    memory: float | None
    device: str
    exclude: tuple[int, ...]
    pixel_size: float | None
    overwrite: bool

    def beside(self, ending: str) -> Path:
        """OUT with an ending of its own, a tomogram's (``_odd``) followed by that of OUT."""
        suffix = "" if "." in ending else self.output.suffix
        return self.output.with_name(self.output.stem + ending + suffix)

    @property
    def used(self) -> dict[str, Any]:
        """The options that mean something to this run, for the record of it."""
        return asdict(self)

    @property
    def outputs(self) -> list[Path]:
        """Everything that will be written."""
        endings = [".json", "_live.png"] + (["_odd", "_even"] if self.with_halves else [])
        return [self.output, *map(self.beside, endings)]
