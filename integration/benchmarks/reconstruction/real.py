"""A real series: odd against even tilts for every method, and their slices side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inrtomo.io.files import read_text
from inrtomo.io.mrc import read_volume
from inrtomo.metrics.conventions import HALF_MAPS, REFERENCE
from inrtomo.report.figures import CONTRAST_PERCENTILES, DPI, SLAB_PX
from integration.benchmarks.reconstruction.command import recon
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record
from integration.benchmarks.reconstruction.scores import finite, half_fsc

F32 = NDArray[np.float32]

METHODS = ("FBP", "SIRT", "hash", "tensor")

COLUMNS: tuple[Column, ...] = (
    ("odd/even tilts: mean FSC", "fsc_mean", "{:.3f}"),
    ("FSC 0.143 (Å)", "half_A", "{:.1f}"),
    ("FSC 0.5 (Å)", "resolution_A", "{:.1f}"),
    ("variance in the wedge", "wedge_energy", "{:.3f}"),
    ("time (s)", "wall_s", "{:.0f}"),
    ("memory (MB)", "peak_MB", "{:.0f}"),
)


def jobs(options: Options) -> Iterator[Job]:
    """A job per method, then the picture of all."""
    if options.stack is None or options.alignment is None:
        raise click.UsageError("--part real: needs --stack and --alignment")
    chosen = options.methods or METHODS
    what = f"{options.stack.stem}, bin {options.bin}"
    folder = options.work / "real" / f"{options.stack.stem}_bin{options.bin}"
    for name in chosen:
        yield Job(f"{what}, {name}", 0, _job(options, options.stack, options.alignment, folder / f"{name}.mrc", what))
    volumes = {name: folder / f"{name}.mrc" for name in chosen}
    if all(path.exists() for path in volumes.values()):
        side_by_side({name: read_volume(path)[0] for name, path in volumes.items()}, folder / "methods.png")


def _job(options: Options, stack: Path, alignment: Path, out: Path, what: str) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        more = ["--halves", "--bin", str(options.bin)]
        ran = recon(stack, alignment, out, out.stem, options.threads, more=more)
        (odd, voxel_A), (even, _) = (read_volume(out.with_name(f"{out.stem}_{half}.mrc")) for half in ("odd", "even"))
        curve = half_fsc(odd, even, voxel_A or 1.0)
        record = json.loads(read_text(out.with_suffix(".json")))
        scores = {
            "fsc_mean": curve.mean(),
            "half_A": finite(curve.resolution_A(HALF_MAPS)),
            "resolution_A": finite(curve.resolution_A(REFERENCE)),
            "fsc": np.round(curve.correlation, 4).tolist(),
            "wedge_energy": record["all"]["wedge_energy"],
            "halves": record["halves"],
        }
        return [{"table": what, "row": out.stem, **scores, "wall_s": ran.wall_s, "peak_MB": ran.peak_MB}]

    return run


def side_by_side(volumes: dict[str, F32], path: Path) -> Path:
    """Central slices from above and from the front, a column a method; black and white by one rule for all.

    The rule: the 0.5th and 99.5th percentile of the slice from above, which for densities of different noise is what
    a viewer does; both slices are means of a few planes.
    """
    nz, ny, nx = next(iter(volumes.values())).shape
    width = 3.2
    figure = Figure(figsize=(width * len(volumes), width * (ny + nz) / nx + 0.4), layout="constrained")
    grid = figure.subplots(2, len(volumes), squeeze=False, gridspec_kw={"height_ratios": [ny, nz]})
    for column, (name, volume) in zip(grid.T, volumes.items(), strict=True):
        top = volume[middle(nz)].mean(axis=0)
        low, high = np.percentile(top, CONTRAST_PERCENTILES)
        for axes, image in zip(column, (top, volume[:, middle(ny)].mean(axis=1)), strict=True):
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", interpolation="nearest")
            axes.axis("off")
        column[0].set_title(name)
    figure.savefig(path, dpi=DPI)
    return path


def middle(size: int) -> slice:
    """The middle `SLAB_PX` planes."""
    return slice(max(0, (size - SLAB_PX) // 2), (size + SLAB_PX) // 2)
