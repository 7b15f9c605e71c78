"""A real tilt series: what can be measured of an alignment when nobody knows the true one.

    python -m integration.benchmarks.alignment.real ../shared/data/empiar10499_ts01/ts01.mrc --tilt-axis -4.3

Runs inr-align with two seeds and prints a table: how far the two are apart; held-out loss of the tracks and of what
followed; and, for both alignments in one frame, how well beads fit one specimen point each, the correlation of
back-projections of odd and of even tilts (beads painted over) and the width of beads in that of all tilts. Odd and even
tilts are neighbours and share every error that varies slowly with tilt, so their correlation sees jitter only.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.metrics.alignment import compare_alignments, in_frame_of
from inrtomo.metrics.volume import cc, fsc
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.resample import fill_invalid
from inrtomo.tiltseries import TiltSeries, open_tilt_series
from integration.benchmarks.alignment.beads import LEAST_SHARE, bead_tracks, residual_px
from integration.benchmarks.alignment.measured import Measured, run_measured

F32 = NDArray[np.float32]
HALF_BIN = 4  # raw px per voxel of the halves: finer ones are noise
BEAD_REACH_PX = 14
BEADS = 12


@click.command(context_settings={"show_default": True})
@click.argument("stack", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tilt-axis", type=float, required=True, help="Degrees, IMOD's sense.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmark-real"))
@click.option("--again", is_flag=True, help="Align anew even where results are there.")
def main(stack: Path, tilt_axis: float, work: Path, again: bool) -> None:
    """Align a real series with two seeds and measure what can be measured."""
    ran = [_align(stack, tilt_axis, work / f"seed{seed}", seed, again) for seed in (0, 1)]
    series = open_tilt_series(stack)
    values = [json.loads((work / f"seed{k}" / f"{series.name}_align.json").read_text()) for k in (0, 1)]
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
    tracks = in_frame_of(tracks, moved.motion)
    images, beadless = _images(series, tracks)
    beads = bead_tracks(images, tracks)
    click.echo(f"{len(beads)} beads followed through {LEAST_SHARE:.0%} or more of the tilts\n")
    click.echo("| | beads' residual (px) | odd/even tilts: CC | mean FSC | FSC 0.143 (Å) | beads' width x, y, z (px) |")
    click.echo("|---|---|---|---|---|---|")
    height = round(1.2 * thickness)
    for name, alignment in (("tracks", tracks), ("linear", ours.without_warp()), ("ours", ours)):
        a, b = (_half(beadless, alignment, height, parity) for parity in (0, 1))
        curve = fsc(a, b, HALF_BIN * (series.pixel_size_A or 1.0))
        width = np.median(_bead_widths(fbp_volume(images, alignment, height)), axis=0)
        cells = [f"{_rms(residual_px(alignment, beads)):.2f}", f"{cc(a, b):.4f}", f"{curve.correlation.mean():.4f}"]
        cells += [f"{curve.resolution_A(0.143):.0f}", f"{width[2]:.1f}, {width[1]:.1f}, {width[0]:.1f}"]
        click.echo(f"| {name} | " + " | ".join(cells) + " |")


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _align(stack: Path, axis: float, folder: Path, seed: int, again: bool) -> Measured | None:
    if not again and (folder / f"{stack.stem}_align.json").exists():
        return None
    start = "from inrtomo.commands.align import main; main()"
    words = [sys.executable, "-c", start, str(stack), f"--tilt-axis={axis}", "-o", str(folder)]
    ran = run_measured([*words, "--seed", str(seed), "--overwrite"], folder.with_suffix(".log"))
    if ran.status != 0:
        raise click.ClickException(f"inr-align ended with status {ran.status}: {ran.said}")
    return ran


def _images(series: TiltSeries, alignment: Alignment) -> tuple[F32, F32]:
    """Images with protein bright and mean 0; and the same with beads painted over."""
    prepared = prepare(
        np.asarray(series.read(), np.float32), alignment.tilt_deg, series.pixel_size_A, PrepareSettings(restore=False)
    )
    painted = [fill_invalid(image, ~gold) for image, gold in zip(prepared.images, prepared.gold, strict=True)]
    return prepared.images, np.stack(painted)


def _half(images: F32, alignment: Alignment, height: int, parity: int) -> F32:
    out = {int(tilt): "other half" for tilt in alignment.included[1 - parity :: 2]}
    return fbp_volume(images, replace(alignment, excluded=alignment.excluded | out), height, bin=HALF_BIN)


def _bead_widths(volume: F32) -> NDArray[np.float64]:
    """Full width at half maximum (z, y, x) in voxels through the brightest, well separated points."""
    left, widths = volume.copy(), []
    reach = BEAD_REACH_PX
    left[:reach], left[-reach:], left[:, :reach], left[:, -reach:], left[:, :, :reach], left[:, :, -reach:] = [0] * 6
    for _ in range(BEADS):
        at = np.unravel_index(int(np.argmax(left)), left.shape)
        lines = []
        for axis in range(3):
            index: list[int | slice] = [int(v) for v in at]
            index[axis] = slice(int(at[axis]) - reach, int(at[axis]) + reach + 1)
            lines.append(_full_width(volume[tuple(index)]))
        widths.append(lines)
        left[tuple(slice(max(0, int(v) - 2 * reach), int(v) + 2 * reach) for v in at)] = 0
    return np.array(widths)


def _full_width(line: F32) -> float:
    """Width at half of the middle's height, between samples; the reach where the line never falls so low."""
    middle = len(line) // 2
    half, width = line[middle] / 2, 0.0
    for side in (line[middle:], line[middle::-1]):
        below = np.flatnonzero(side < half)
        if len(below) == 0:
            width += len(side) - 1
        else:
            k = int(below[0])
            width += k - 1 + float((side[k - 1] - half) / (side[k - 1] - side[k]))
    return width


if __name__ == "__main__":
    main()
