"""What whole commands hold on a GPU that need not be there: ``python -m integration.benchmarks.gpu.memory``.

The commands run at their full size on the GPU of `tests.fake_gpu`, which counts the bytes of its tensors. Whatever is
torch is computed; Triton's kernels are not run (their outputs stay zero) but everything is allocated that they are
given, by the code that starts them. Fits are cut to some steps of every scale, of which each holds what the others do.
Nothing is learned of speed, of results, or of an allocator's fragments and CUDA graphs' pools.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch

from integration.benchmarks.gpu.commands import SIZES, made_series
from tests import fake_gpu

STEPS = 3


def without_kernels() -> None:
    """Have Triton's kernels start nothing, and what they would have written be zero."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime.interpreter import GridExecutor

    from inrtomo.gpu import compiled, hash_field

    GridExecutor.__call__ = lambda *given, **named: None
    zeros = SimpleNamespace(**vars(torch))
    zeros.empty, zeros.empty_like = torch.zeros, torch.zeros_like
    module: Any
    for module in (compiled, hash_field):
        module.torch = zeros


def shortened() -> None:
    """Few steps of every scale, none of them recorded: a recorded step of the tests' GPU keeps all it made."""
    from inrtomo.align.joint import JointSettings, Scale
    from inrtomo.gpu.fit import Replayed
    from inrtomo.reconstruct import field

    def few(scale: Scale) -> Scale:
        moves, warps = min(scale.motion_from, 1), None if scale.warp_from is None else min(scale.warp_from, 2)
        return replace(scale, steps=min(scale.steps, STEPS), motion_from=moves, warp_from=warps)

    made = JointSettings.__init__

    def make(self: JointSettings, *given: object, **named: object) -> None:
        made(self, *given, **named)  # type: ignore[arg-type]
        object.__setattr__(self, "schedule", tuple(map(few, self.schedule)))

    JointSettings.__init__ = make  # type: ignore[method-assign]
    Replayed.__call__ = lambda self, key, function: function()  # type: ignore[method-assign]
    field.LEAST_GAIN = -np.inf


@click.command()
@click.argument("name", type=click.Choice(list(SIZES)), default="4096")
@click.argument("lines", nargs=-1)
def main(name: str, lines: tuple[str, ...]) -> None:
    """Run the lines of a size of `commands.SIZES`, or others such as "recon --bin 2", and say what each held."""
    why = fake_gpu.unavailable()
    if why:
        raise click.ClickException(f"the tests' GPU cannot be had: {why}")
    fake_gpu.FREE_BYTES = 140 << 30
    fake_gpu.install()
    without_kernels()
    shortened()
    with tempfile.TemporaryDirectory() as folder:
        stack, truth = made_series(SIZES[name], Path(folder))
        for line in lines or SIZES[name].lines:
            command, *options = line.split()
            out = Path(folder) / line.replace(" ", "_")
            target = out if command == "align" else out.with_suffix(".mrc")
            given = [stack, "--tilt-axis", 0] if command == "align" else [stack, truth]
            torch.ops.fake_gpu.forget_most()
            words = map(str, [*given, "-o", target, *options, "--device", "cuda:0"])
            program: Any = __import__(f"inrtomo.commands.{command}", fromlist=["main"]).main
            program(list(words), standalone_mode=False)
            written = out / f"{stack.stem}_align.json" if command == "align" else out.with_suffix(".json")
            held = json.loads(written.read_text(encoding="utf-8"))["peak_device_bytes"]
            click.echo(f"inr-{line}, {name}: {held / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
