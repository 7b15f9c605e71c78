"""``inr-infer``: a tomogram from a raw stack and its alignment by a trained network, in seconds to minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from inrtomo.commands._common import command, device_option, typed_options
from inrtomo.commands._tomogram_options import TomogramOptions, refuse_voltage, tomogram_options


@command("inr-infer", context_settings={"show_default": True})
@tomogram_options(
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Of inr-train, with its card beside it.  [default: those that came with the package]",
    ),
    device_option("auto"),
)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Denoised tomogram from STACK along the rays that ALIGNMENT gives, local motion included, by a trained network.

    STACK and ALIGNMENT are those of inr-recon; --ctf flips the phases. The network was trained on simulated specimens:
    what it shows in the missing wedge, and much of what it shows at low signal, is what such specimens look like, not
    a measurement. Beside OUT.mrc, OUT.json says how it was made and OUT_live.png shows its central slices.
    """
    chosen = Options(**options)
    refuse_voltage(chosen, typed_options(context))
    from inrtomo.commands._infer_run import Run  # takes seconds to load: not for --help

    Run(chosen).run()


@dataclass(frozen=True, kw_only=True)
class Options(TomogramOptions):
    """The command line."""

    weights: Path | None
