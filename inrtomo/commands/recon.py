"""``inr-recon``: a tomogram, and its halves, from a raw stack and its alignment, by the method of choice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from inrtomo.commands._common import command, device_option, typed_options
from inrtomo.commands._tomogram_options import TomogramOptions, refuse_voltage, tomogram_options
from inrtomo.errors import InputError
from inrtomo.reconstruct.filters import FILTERS, RadialFilter

METHODS = ("fbp", "sirt", "sart-tv", "field")
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
    "support": ("sirt",),
    "ctf_mode": ("fbp", "sirt", "sart-tv"),
    "field_kind": ("field",),
    "prior": ("field",),
    "loss": ("field",),
    "average": ("field",),
    "refine": ("field",),
    "mask_gold": ("sirt", "sart-tv", "field"),
    "seed": ("field",),
    "resume": ("field",),
}
"""Options that mean nothing to other methods."""
MAY_DIFFER = {"stack", "alignment", "output", "memory", "device", "resume", "overwrite"}
"""Options of a run that goes on which need not be those it began with; what the files hold does."""


@command("inr-recon", context_settings={"show_default": True})
@tomogram_options(
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="fbp",
        help="fbp: weighted back-projection; sirt, sart-tv: iterations; field: a fitted non-negative density.",
    ),
    click.option(
        "--ctf-mode", type=click.Choice(CTF_MODES), default="flip", help="But for field, which has it in its fit."
    ),
    click.option(
        "--filter", "filter_name", type=click.Choice(FILTERS), default=RadialFilter().name, help="fbp: weighting."
    ),
    click.option(
        "--radial",
        nargs=2,
        type=float,
        metavar="CUTOFF FALLOFF",
        help="fbp: IMOD's RADIAL: above CUTOFF (cycles per pixel) exp(-((f - CUTOFF) / FALLOFF)^2), as tilt "
        "has it (IMOD's manual: a Gaussian of sd FALLOFF).  [default: no cutoff]",
    ),
    click.option(
        "--iterations",
        type=click.IntRange(1),
        help=f"Of sirt, of sart-tv, of the sirt-like filter.  [default: {SIRT_ITERATIONS}, {SART_TV_ITERATIONS}, "
        f"{RadialFilter().iterations}]",
    ),
    click.option("--subsets", type=click.IntRange(1), default=1, help="sirt: of tilts, one after the other."),
    click.option("--nonnegative", is_flag=True, help="sirt, sart-tv: no density below that of the surroundings."),
    click.option(
        "--support",
        type=click.Path(path_type=Path),
        metavar="MASK.mrc",
        help="sirt: density only where this volume, of the tomogram's size and orientation, is above 0.",
    ),
    click.option("--field", "field_kind", type=click.Choice(FIELDS), default=FIELDS[0], help="field: what holds it."),
    click.option(
        "--prior",
        metavar="NAME[=W],...",
        help="field: of " + ", ".join(PRIORS) + "; no density is negative in any case.  "
        f"[default: {','.join(f'{name}={weight:g}' for name, weight in PRIORS.items() if weight)}, "
        "a quarter of it with --loss l1 and huber]",
    ),
    click.option("--loss", type=click.Choice(LOSSES), default="l2", help="field: data term."),
    click.option("--average", type=click.IntRange(1), default=1, help="field: mean of so many fits; sd in OUT_sd.mrc."),
    click.option("--refine", is_flag=True, help="field: polish the alignment first; kept if held-out pixels agree."),
    click.option("--mask-gold", is_flag=True, help="Rays through gold beads do not count."),
    click.option("--seed", type=int, default=0, help="field: of everything random."),
    click.option("--resume", is_flag=True, help="field: go on with an interrupted run."),
    device_option(more="; field: cuda:0,cuda:1 share the fits"),
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Reconstruct a tomogram from STACK along the rays that ALIGNMENT gives, local motion included.

    STACK is the raw stack (all frames, odd or even) and ALIGNMENT an inr-align folder, a .xf with its .tlt (and
    .xtilt, _warp.xf), an Etomo folder, an .aln or BASE_align.json; or STACK is aligned and ALIGNMENT its .tlt.
    The tomogram is as wide as the raw images, their sides turned where the tilt axis lies nearer to x, and keeps their
    contrast. Beside OUT.mrc, OUT.json says how it was made and OUT_live.png shows its central slices, while field fits
    and at the end. Ctrl-C, a full disk or a crash while it fits leave OUT_checkpoint.npz, from which --resume goes on.
    """
    chosen = Options(**options)
    _check_combination(chosen, typed_options(context))
    if chosen.resume and chosen.output.exists() and not (chosen.checkpoint.exists() or chosen.overwrite):
        names = {option.name: option.opts[-1] for option in context.command.params if option.name}
        _check_complete(chosen, names)
        click.echo(f"{chosen.output}: complete already; nothing to do")
        return
    from inrtomo.commands._recon_run import Run  # takes seconds to load: not for --help

    Run(chosen).run()


@dataclass(frozen=True, kw_only=True)
class Options(TomogramOptions):
    """The command line."""

    method: str
    ctf_mode: str
    filter_name: str
    radial: tuple[float, float] | None
    iterations: int | None
    subsets: int
    nonnegative: bool
    support: Path | None
    field_kind: str
    prior: str | None
    loss: str
    average: int
    refine: bool
    mask_gold: bool
    seed: int
    resume: bool

    @property
    def used(self) -> dict[str, Any]:
        others = {name for name, methods in OWN_OPTIONS.items() if self.method not in methods}
        if self.method == "fbp" and self.filter_name != "sirt-like":
            others.add("iterations")
        if self.ctf is None:
            others.add("ctf_mode")
        return {name: value for name, value in super().used.items() if name not in others}

    @property
    def outputs(self) -> list[Path]:
        return super().outputs + ([self.beside("_sd")] if self.average > 1 else [])

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished run."""
        return self.beside("_checkpoint.npz")

    @property
    def goes_on(self) -> bool:
        """Whether an unfinished run is there to be gone on with, and that is wanted."""
        return self.resume and self.checkpoint.exists()


def _check_combination(o: Options, typed: set[str]) -> None:
    """Refuse options that the method would ignore."""
    names = {"filter_name": "filter", "field_kind": "field"}
    for name, methods in OWN_OPTIONS.items():
        if name in typed and o.method not in methods:
            option = "--" + names.get(name, name).replace("_", "-")
            raise InputError(f"{option}: means nothing to --method {o.method}; it is for {' and '.join(methods)}")
    if "iterations" in typed and o.method == "fbp" and o.filter_name != "sirt-like":
        raise InputError(f"--iterations: means nothing to --filter {o.filter_name}; of fbp it is for sirt-like alone")
    if "ctf_mode" in typed and o.ctf is None:
        raise InputError("--ctf-mode: needs --ctf FILE or --ctf UM")
    if o.method != "field":  # which looks for signs of a transfer function where none is given
        refuse_voltage(o, typed)


def _check_complete(o: Options, names: dict[str, str]) -> None:
    """Refuse to take a tomogram that was made in another way for the one that is asked for.

    Args:
        names: what every option is called on the command line.

    Raises:
        InputError: it was, or nothing says how it was made.
    """
    path = o.beside(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        before = dict(record["settings"])
        inputs = {name: Path(record[name]).name for name in ("stack", "alignment")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{o.output}: exists, and no {path.name} says how it was made; give another name or --overwrite"
        ) from None
    now = json.loads(json.dumps(o.used, default=str))
    changed = [names[name] for name in now if name not in MAY_DIFFER and before.get(name) != now[name]]
    changed += [name.upper() for name, was in inputs.items() if getattr(o, name).name != was]
    if changed:
        raise InputError(
            f"{o.output}: is complete already, but {path.name} says that it was made with other {', '.join(changed)}; "
            "give the same ones, another name, or --overwrite"
        )
