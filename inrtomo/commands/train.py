"""``inr-train``: weights for ``inr-infer``, from simulated tilt series or from pairs of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from inrtomo.commands._common import command, device_option, typed_options
from inrtomo.errors import InputError

OUTPUTS = ("haar", "pixel")
STEPS, BATCH, RATE, FINE_RATE, WIDTH, DEPTH = 20000, 4096, 2e-3, 3e-4, 160, 2
"""What --help says of things that would take seconds to load; a test holds it against them."""
SIMULATED_ALONE, LISTED_ALONE = ("densities", "held_out", "cache_pairs", "workers"), ("orientation",)
"""Options that mean nothing to listed pairs, and to simulated ones."""
FRESH_ALONE = ("form", "width", "depth")
"""Options that mean nothing to weights that are gone on with."""


@command("inr-train", context_settings={"show_default": True})
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the results.")
@click.option("--simulate", is_flag=True, help="Learn from simulated series, made while training goes on.")
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    metavar="LIST.star",
    help="Learn from these: columns inrStack, inrAlignment, inrReference (an MRC volume over the view), and where "
    "needed inrPixelSize (Å) and, as --ctf and --voltage of inr-infer, inrCtf and inrVoltage; none: not given. "
    "A fifth of the stacks, the last ones, are for validation.",
)
@click.option("--densities", type=click.Path(path_type=Path), help="--simulate: folder of molecules, MRC files.")
@click.option(
    "--orientation",
    type=click.Choice(["imod", "xyz"]),
    default="imod",
    help="--pairs: of the reference volumes: sections are rows y (as tilt writes them) or planes z.",
)
@click.option(
    "--start",
    metavar="FILE|shipped",
    help="Fine-tune these weights; shipped: those that came with the package.",
)
@click.option("--form", type=click.Choice(OUTPUTS), default="haar", help="Blocks of voxels by wavelets, or voxels.")
@click.option("--width", type=click.IntRange(8), default=WIDTH, help="Of the network's hidden layers.")
@click.option("--depth", type=click.IntRange(1, 8), default=DEPTH, help="Hidden layers.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, help="Of the optimiser.")
@click.option("--batch", type=click.IntRange(16), default=BATCH, help="Blocks in a step.")
@click.option("--rate", type=float, help=f"Highest learning rate.  [default: {RATE:g}, with --start {FINE_RATE:g}]")
@click.option("--held-out", type=click.IntRange(1), default=40, help="--simulate: pairs kept for validation.")
@click.option(
    "--cache-pairs",
    type=click.IntRange(8),
    default=600,
    help="--simulate: pairs kept on disk (2 MB each) and in memory.",
)
@click.option("--workers", type=click.IntRange(1), default=1, help="--simulate: processes that make pairs.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of specimens, noise, batches and first weights.")
@device_option("auto")
@click.option("--resume", is_flag=True, help="Go on with what is in the folder, if anything is.")
@click.option("--overwrite", is_flag=True, help="Start anew in a folder that holds results.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Train the network of inr-infer.

    In the folder: weights.safetensors and their card weights.json (the best on held-out pairs so far),
    learning_curve.csv and .png, and checkpoint.pt, which --resume goes on from after Ctrl-C or a kill.
    Half an hour on one core makes weights that are of use; a GPU is used if there is one.
    """
    o = Options(**options)
    if o.simulate == (o.pairs is not None):
        raise InputError("give either --simulate or --pairs LIST.star")
    typed = typed_options(context)
    needless = [
        (SIMULATED_ALONE, o.pairs is not None, "is for --simulate"),
        (LISTED_ALONE, o.simulate, "is for --pairs"),
        (FRESH_ALONE, o.start is not None, "is that of the weights of --start"),
    ]
    for names, given, why in needless:
        for name in names if given else ():
            if name in typed:
                raise InputError(f"--{name.replace('_', '-')}: {why}; leave it out")
    if o.rate is not None and not 0 < o.rate < 1:
        raise InputError(f"--rate {o.rate:g}: must be above 0 and below 1; {RATE:g} is usual")
    from inrtomo.commands._train_run import Run

    Run(o).run()


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: Path
    simulate: bool
    pairs: Path | None
    densities: Path | None
    orientation: str
    start: str | None
    form: str
    width: int
    depth: int
    steps: int
    batch: int
    rate: float | None
    held_out: int
    cache_pairs: int
    workers: int
    seed: int
    device: str
    resume: bool
    overwrite: bool
