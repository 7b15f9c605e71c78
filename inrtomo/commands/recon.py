"""``inr-recon``: a tomogram, and its halves, from a raw stack and its alignment, by the method of choice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from inrtomo.commands._aligned_stack import PIXEL_SIZE
from inrtomo.commands._common import DEVICE, MEMORY, TILT_LIST, command
from inrtomo.errors import InputError
from inrtomo.reconstruct.filters import FILTERS, RadialFilter

METHODS = ("fbp", "sirt", "sart-tv", "field")
DEFAULT_THICKNESS_NM = 300.0
DEFAULT_MEMORY = "4G"
CTF_MODES = ("flip", "wiener")
FIELDS = ("hash", "mlp", "siren", "tensor", "voxel")
LOSSES = ("l1", "l2", "huber", "poisson", "heteroscedastic")
PRIORS = {"sparsity": 0.64, "variation": 0.4, "wedge": 0.0, "isotropic": 0.0, "boundary": 0.0}
SIRT_ITERATIONS, SART_TV_ITERATIONS = 30, 20
"""What --help says of methods that would take seconds to load; a test holds it against their settings."""
OWN_OPTIONS = {
    "filter_name": ("fbp",),
    "radial": ("fbp",),
    "iterations": ("fbp", "sirt", "sart-tv"),
    "subsets": ("sirt",),
    "nonnegative": ("sirt", "sart-tv"),
    "ctf_mode": ("fbp", "sirt", "sart-tv"),
    "field_kind": ("field",),
    "prior": ("field",),
    "loss": ("field",),
    "average": ("field",),
    "refine": ("field",),
    "mask_gold": ("sirt", "sart-tv", "field"),
    "seed": ("field",),
}
"""Options that mean nothing to other methods."""


@command("inr-recon", context_settings={"show_default": True})
@click.argument("stack", type=click.Path(path_type=Path))
@click.argument("alignment", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Tomogram, OUT.mrc.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="fbp",
    help="fbp: weighted back-projection; sirt, sart-tv: iterations; field: a fitted non-negative density.",
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
@click.option("--ctf", metavar="FILE|UM", help="Correct for it: CTFFIND's, AreTomo's or IMOD's file, or underfocus.")
@click.option(
    "--ctf-mode", type=click.Choice(CTF_MODES), default="flip", help="But for field, which has it in its fit."
)
@click.option("--voltage", type=click.FloatRange(60, 1200), default=300.0, metavar="KV", help="For --ctf.")
@click.option(
    "--filter", "filter_name", type=click.Choice(FILTERS), default=RadialFilter().name, help="fbp: weighting."
)
@click.option(
    "--radial",
    nargs=2,
    type=float,
    metavar="CUTOFF FALLOFF",
    help="fbp: IMOD's RADIAL: above CUTOFF (cycles per pixel) a Gaussian of sd FALLOFF.  [default: no cutoff]",
)
@click.option(
    "--iterations",
    type=click.IntRange(1),
    help=f"Of sirt, of sart-tv, of the sirt-like filter.  [default: {SIRT_ITERATIONS}, {SART_TV_ITERATIONS}, "
    f"{RadialFilter().iterations}]",
)
@click.option("--subsets", type=click.IntRange(1), default=1, help="sirt: of tilts, one after the other.")
@click.option("--nonnegative", is_flag=True, help="sirt, sart-tv: no density below that of the surroundings.")
@click.option("--field", "field_kind", type=click.Choice(FIELDS), default=FIELDS[0], help="field: what holds it.")
@click.option(
    "--prior",
    metavar="NAME[=W],...",
    help="field: of " + ", ".join(PRIORS) + "; no density is negative in any case.  "
    f"[default: {','.join(f'{name}={weight:g}' for name, weight in PRIORS.items() if weight)}]",
)
@click.option("--loss", type=click.Choice(LOSSES), default="l2", help="field: data term.")
@click.option("--average", type=click.IntRange(1), default=1, help="field: mean of so many fits; sd in OUT_sd.mrc.")
@click.option("--refine", is_flag=True, help="field: polish the alignment first; kept if held-out pixels agree.")
@click.option("--mask-gold", is_flag=True, help="Rays through gold beads do not count.")
@click.option("--memory", type=MEMORY, default=DEFAULT_MEMORY, help="To stay within, more or less.")
@click.option("--seed", type=int, default=0, help="field: of everything random.")
@DEVICE
@click.option("--exclude", type=TILT_LIST, default=(), help="More tilts to leave out, counted from 0: 3,7-9.")
@PIXEL_SIZE
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Reconstruct a tomogram from STACK along the rays that ALIGNMENT gives, local motion included.

    STACK is the raw stack (all frames, odd or even) and ALIGNMENT an inr-align folder, a .xf with its .tlt (and
    .xtilt, _warp.xf), an Etomo folder, an .aln or BASE_align.json; or STACK is aligned and ALIGNMENT its .tlt.
    The tomogram is as wide as the raw images and keeps their contrast. Beside OUT.mrc, OUT.json says how it was made
    and OUT_live.png shows its central slices, while field fits and at the end.
    """
    typed = {name for name in options if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    chosen = Options(**options)
    _check_combination(chosen, typed)
    from inrtomo.commands._recon_run import Run  # takes seconds to load: not for --help

    Run(chosen).run()


@dataclass(frozen=True)
class Options:
    """The command line."""

    stack: Path
    alignment: Path
    output: Path
    method: str
    thickness: float | None
    binning: int
    orientation: str
    contrast: str
    with_halves: bool
    normalize: bool
    only_measured: bool
    ctf: str | None
    ctf_mode: str
    voltage: float
    filter_name: str
    radial: tuple[float, float] | None
    iterations: int | None
    subsets: int
    nonnegative: bool
    field_kind: str
    prior: str | None
    loss: str
    average: int
    refine: bool
    mask_gold: bool
    memory: float
    seed: int
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
        endings = [".json", "_live.png"]
        endings += ["_odd", "_even"] if self.with_halves else []
        endings += ["_sd"] if self.average > 1 else []
        return [self.output, *map(self.beside, endings)]


def _check_combination(o: Options, typed: set[str]) -> None:
    """Refuse options that the method would ignore."""
    names = {"filter_name": "filter", "field_kind": "field"}
    for name, methods in OWN_OPTIONS.items():
        if name in typed and o.method not in methods:
            option = "--" + names.get(name, name).replace("_", "-")
            raise InputError(f"{option}: means nothing to --method {o.method}; it is for {' and '.join(methods)}")
    if "ctf_mode" in typed and o.ctf is None:
        raise InputError("--ctf-mode: needs --ctf FILE or --ctf UM")
