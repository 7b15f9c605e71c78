"""What ``inr-align`` found and Scipion's sets cannot hold - local motion, x-axis tilt - found again for a series.

A set of tilt series holds a matrix and an angle an image. Everything else stays in ``extra/ID`` of the protocol that
made it. Sets are filtered, binned and joined on their way to a reconstruction, so the run is not looked up by a name
that would have to travel along: it is the run of this project whose matrices, at the images' order of acquisition, are
those of the set. An alignment that another program has changed since has no run, and no local motion is added to it.
"""

from __future__ import annotations

import glob
import json
import os
from dataclasses import dataclass

import numpy as np

from .conventions import read_angles, read_xf, with_sampling, write_angles, write_xf
from .engine import modified
from .series_files import Series

RECORD = "scipion.json"
SAME_LINEAR = 2e-5
SAME_SHIFT_PX = 0.02
SAME_TILT_DEG = 0.02
WARP_VERSION = 3


@dataclass
class Run:
    """A finished run of ``inr-align`` in a protocol's ``extra/ID``.

    Attributes:
        folder: with ``ID.xf`` and so on; orders: of acquisition, of the images of the stack; sampling_A: of the stack;
        specimen_px: thickness of the specimen.
    """

    folder: str
    ts_id: str
    orders: list[int]
    sampling_A: float
    specimen_px: float

    @property
    def base(self) -> str:
        return os.path.join(self.folder, self.ts_id)


def write_record(series: Series, folder: str) -> None:
    """Keep what a run's stack was, beside its results."""
    record = {"orders": [view.order for view in series.views], "sampling_A": series.sampling_A}
    with open(os.path.join(folder, RECORD), "w") as file:
        json.dump(record, file)


def read_run(folder: str, ts_id: str) -> Run:
    """Read a run. Raises OSError, ValueError or KeyError where there is no finished one."""
    with open(os.path.join(folder, RECORD)) as file:
        record = json.load(file)
    with open(os.path.join(folder, f"{ts_id}_align.json")) as file:
        values = json.load(file)
    return Run(
        folder,
        ts_id,
        record["orders"],
        record["sampling_A"],
        values["thickness_px"],
    )


def find_run(series: Series, project: str = ".") -> Run | None:
    """The latest run of a project that made this series' alignment, or None."""
    name = glob.escape(series.ts_id)
    pattern = os.path.join(glob.escape(project), "Runs", "*", "extra", name, f"{name}_align.json")
    for path in sorted(glob.glob(pattern), key=lambda path: modified(path) or 0.0, reverse=True):
        try:
            run = read_run(os.path.dirname(path), series.ts_id)
            if made_by(series, run):
                return run
        except (OSError, ValueError, KeyError):
            continue  # unfinished or being deleted
    return None


def made_by(series: Series, run: Run) -> bool:
    """Whether the alignment of a series is that of a run, at every image in use."""
    matrices, tilts = read_xf(f"{run.base}.xf"), read_angles(f"{run.base}.tlt")
    place = {order: k for k, order in enumerate(run.orders)}
    for view in series.views:
        if not view.enabled:
            continue
        if view.matrix is None or view.order not in place:
            return False
        k = place[view.order]
        apart = np.abs(with_sampling(view.matrix, series.sampling_A, run.sampling_A) - matrices[k])
        if apart[:2, :2].max() > SAME_LINEAR or apart[:2, 2].max() > SAME_SHIFT_PX:
            return False
        if abs(view.tilt_deg - tilts[k]) > SAME_TILT_DEG:
            return False
    return True


def alignment_for(series: Series, run: Run, folder: str) -> str:
    """An alignment, local motion included, for the images that a series' stack now has.

    The run's own folder where these are the images it was made for. Otherwise, in ``folder``, its files with the lines
    of these images; the engine scales them to a binned stack by itself.
    """
    orders = [view.order for view in series.views]
    if orders == run.orders:
        return run.folder
    os.makedirs(folder, exist_ok=True)
    places = [run.orders.index(order) for order in orders]
    base = os.path.join(folder, series.ts_id)
    matrices = read_xf(f"{run.base}.xf")
    write_xf(f"{base}.xf", [matrices[k] for k in places])
    for ending in (".tlt", ".xtilt"):
        angles = read_angles(f"{run.base}{ending}")
        write_angles(f"{base}{ending}", [angles[k] for k in places])
    _write_sections(f"{run.base}_warp.xf", places, f"{base}_warp.xf")
    return f"{base}.xf"


def _write_sections(warp: str, places: list[int], target: str) -> None:
    """A warp file of version 3 with some of the sections of another.

    A section is a line ``x_start x_step columns y_start y_step rows``, a line of a linear transform, and ``columns *
    rows`` pairs of numbers, four pairs a line.
    """
    with open(warp) as file:
        lines = [line for line in file if line.strip()]
    if int(lines[0]) != WARP_VERSION:
        raise ValueError(f"{warp}: is not a warp file of version {WARP_VERSION}")
    nx, ny, count, *rest = lines[1].split()
    sections, at = [], 2
    for _ in range(int(count)):
        grid = lines[at].split()
        numbers, end = 2 * int(float(grid[2])) * int(float(grid[5])), at + 2
        while numbers > 0:
            numbers -= len(lines[end].split())
            end += 1
        sections.append(lines[at:end])
        at = end
    with open(target, "w") as file:
        file.write(lines[0])
        file.write(" ".join([nx, ny, str(len(places)), *rest]) + "\n")
        for k in places:
            file.writelines(sections[k])
