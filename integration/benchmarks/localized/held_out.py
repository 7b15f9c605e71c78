"""What the metrics of a card would be for given weights, each pair of a specimen of its own.

    python -m integration.benchmarks.localized.held_out WEIGHTS.safetensors --pairs 64

The pairs that a training holds out are several of each specimen; these are as many specimens as pairs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from inrtomo.errors import InputError
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.network import LocalizedMlp
from inrtomo.localized.pairs import HELD_OUT, simulated_pairs
from inrtomo.localized.samples import Samples, pair_samples
from inrtomo.localized.training import by_noise, losses, noise_classes
from inrtomo.localized.weights import load_weights, shipped_weights
from integration.benchmarks.localized.run import DENSITIES

SEED = 777002  # no stream of training, of its held-out pairs or of the other parts has it


def held_out_samples(
    count: int, densities: Path | None, blocks: Blocks, work: Path, seed: int = SEED
) -> Iterator[Samples]:
    """Samples of so many specimens, one series of each; pair k is the same whatever the count.

    Args:
        densities: molecules to take, as training takes them; None for procedural ones alone.
        work: for densities at other pixel sizes.
    """
    for k in range(count):
        pair = next(simulated_pairs([seed, k], densities, work))
        yield pair_samples(pair, blocks, np.random.default_rng([seed, k, 1]))


def unseen_molecules(densities: Path, folder: Path) -> Path:
    """A folder of the molecules that training leaves out, under names by which it would take them.

    Raises:
        InputError: there are none.
    """
    found = [path for path in sorted(densities.glob("*.mrc")) if path.stem.lower() in HELD_OUT]
    if not found:
        raise InputError(f"{densities}: holds none of {', '.join(HELD_OUT)}; give a folder with their densities")
    folder.mkdir()
    for k, path in enumerate(found):
        (folder / f"unseen_{k}.mrc").symlink_to(path.resolve())
    return folder


def scores(model: LocalizedMlp, held_out: list[Samples]) -> dict[str, Any]:
    """The card's metrics."""
    found = losses(model, held_out)
    return {
        "pairs": len(held_out),
        "loss": float(found.mean()),
        "median_loss": float(np.median(found)),
        "loss_by_noise": by_noise(held_out, found),
        "pairs_by_noise": {name: int(here.sum()) for name, here in noise_classes(held_out).items()},
    }


@click.command(context_settings={"show_default": True})
@click.argument("weights", type=click.Path(path_type=Path), default=shipped_weights())
@click.option("--pairs", type=click.IntRange(1), default=64, help="Of which each has a specimen of its own.")
@click.option("--densities", type=click.Path(exists=True, file_okay=False, path_type=Path), default=DENSITIES)
@click.option("--unseen", is_flag=True, help="The molecules that no training sees, in place of those that it sees.")
def main(weights: Path, pairs: int, densities: Path, unseen: bool) -> None:
    """Score WEIGHTS; JSON on standard output."""
    torch.set_num_threads(1)
    model, _ = load_weights(weights)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = unseen_molecules(densities, work / "unseen") if unseen else densities
        made = held_out_samples(pairs, chosen, model.architecture.blocks, work)
        with click.progressbar(made, length=pairs, file=sys.stderr) as shown:
            held_out = list(shown)
    click.echo(json.dumps({"molecules": "unseen" if unseen else "of training", **scores(model, held_out)}, indent=1))


if __name__ == "__main__":
    main()
