"""A real tilt series aligned with two seeds: time, memory, held-out loss, and how far apart the two are.

    python -m integration.benchmarks.alignment.real ../shared/data/empiar10499_ts01/ts01.mrc --tilt-axis -4.3

What beads and particles say of the results: `integration.benchmarks.real`, with the two folders in ``--work``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.metrics.alignment import compare_alignments
from integration.benchmarks.alignment.measured import Measured, run_measured


@click.command(context_settings={"show_default": True})
@click.argument("stack", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tilt-axis", type=float, required=True, help="Degrees, IMOD's sense.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-real"))
@click.option("--again", is_flag=True, help="Align anew even where results are there.")
def main(stack: Path, tilt_axis: float, work: Path, again: bool) -> None:
    """Align a real series with two seeds and measure what can be measured."""
    ran = [_align(stack, tilt_axis, work / f"seed{seed}", seed, again) for seed in (0, 1)]
    values = [json.loads((work / f"seed{k}" / f"{stack.stem}_align.json").read_text()) for k in (0, 1)]
    ours, other = (alignment_from_dict(v["alignment"]) for v in values)
    tracks = alignment_from_dict(values[0]["start_alignment"])
    thickness = float(values[0]["thickness_px"])
    for measured, result in zip(ran, values, strict=True):
        loss, rms = result["guard"]["held_out_loss"], result["residual_rms_px"]
        text = ", ".join(f"{name} {value:.5f}" for name, value in loss.items())
        seconds, memory = result["seconds"]["total"], result["peak_memory_bytes"] / 1e9
        click.echo(f"{seconds:.0f} s, {memory:.2f} GB; tracks' residual {rms:.2f} px; held-out loss: {text}")
        click.echo(f"  {result['guard']['reason']}" + ("" if measured is None else f"  (wall {measured.wall_s:.0f} s)"))
    apart = compare_alignments(other, ours, thickness)
    click.echo(f"two seeds: median {apart.gauge_free.median_px:.3f} px apart, RMS {apart.gauge_free.rms_px:.3f}")
    moved = compare_alignments(tracks, ours, thickness)
    click.echo(
        f"tracks and result: median {moved.gauge_free.median_px:.2f} px apart, RMS {moved.gauge_free.rms_px:.2f}"
    )


def _align(stack: Path, axis: float, folder: Path, seed: int, again: bool) -> Measured | None:
    if not again and (folder / f"{stack.stem}_align.json").exists():
        return None
    start = "from inrtomo.commands.align import main; main()"
    words = [sys.executable, "-c", start, str(stack), f"--tilt-axis={axis}", "-o", str(folder)]
    ran = run_measured([*words, "--seed", str(seed), "--overwrite"], folder.with_suffix(".log"))
    if ran.status != 0:
        raise click.ClickException(f"inr-align ended with status {ran.status}: {ran.said}")
    return ran


if __name__ == "__main__":
    main()
