"""Back-projection and SIRT against ASTRA's CPU code on the same slices, and whole commands against IMOD's ``tilt``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.reconstruct.rays import Rays
from inrtomo.reconstruct.sweeps import Sweeps
from integration.benchmarks.alignment.measured import run_measured
from integration.benchmarks.reconstruction.command import environment, recon, write_alignment
from integration.benchmarks.reconstruction.ellipsoids import hollow_spheres
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

SIZE = 256
TILT_DEG = np.linspace(-60, 60, 61)
ROWS = 64
SWEEPS = 5
PIXEL_A = 10.0

COLUMNS: tuple[Column, ...] = (
    ("time (s)", "wall_s", "{:.3f}"),
    ("times the first row", "ratio", "{:.2f}"),
    ("CC with the truth", "cc", "{:.3f}"),
)


def jobs(options: Options) -> Iterator[Job]:
    """Each comparison is one job, so that its rows ran one after the other."""
    size = options.size or SIZE
    for seed in options.seeds:
        if find_spec("astra") is not None:
            yield Job(f"{size} px, FBP, ASTRA", seed, _compared(_fbp_rows, size, seed, options))
            yield Job(f"{size} px, SIRT, ASTRA", seed, _compared(_sirt_rows, size, seed, options))
        if os.environ.get("IMOD_DIR"):
            yield Job(f"{size} px, tilt, IMOD", seed, _compared(_tilt_rows, size, seed, options))


Rows = list[tuple[str, float, F32]]
"""Name, seconds, and the volume ``[z, y, x]`` to see that it is the same thing."""
Comparison = Callable[[F32, int, Options], tuple[str, Rows]]
"""From images and a height: what is compared, and its rows."""


def _compared(compare: Comparison, size: int, seed: int, options: Options) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        shape = size // 4, ROWS, size
        spheres = hollow_spheres(seed, shape)
        truth, images = spheres.volume(shape), spheres.images(TILT_DEG, (size, ROWS))
        what, found = compare(images, shape[0], options)
        table = f"{what}, {ROWS} slices of {size} x {shape[0]}, {len(TILT_DEG)} tilts"
        return [
            {"table": table, "row": name, "wall_s": wall, "ratio": wall / found[0][1], "cc": _cc(volume, truth)}
            for name, wall, volume in found
        ]

    return run


def _fbp_rows(images: F32, height: int, options: Options) -> tuple[str, Rows]:
    alignment = _untilted_axis(images)
    rows: Rows = []
    wall, volume = _best_of(lambda: _astra(images, height, images.shape[2], "FBP", 1))
    rows.append(("ASTRA (one thread)", wall, volume))
    for threads in _threads(options):
        wall, volume = _best_of(lambda: fbp_volume(images, alignment, height, "ramp"))
        rows.append((f"ours, {threads} threads", wall, volume))
    return "FBP", rows


def _sirt_rows(images: F32, height: int, options: Options) -> tuple[str, Rows]:
    """An iteration: of `SWEEPS`, without what comes before the first. ASTRA is given the lattice that ours has."""
    rays = Rays(_untilted_axis(images), (images.shape[2], images.shape[1]), 1, float(height))
    width = rays.lattice.shape[1]
    beyond = (width - images.shape[2]) // 2
    view = slice(beyond, beyond + images.shape[2])
    once, _ = _best_of(lambda: _astra(images, height, width, "SIRT", 1))
    more, volume = _best_of(lambda: _astra(images, height, width, "SIRT", 1 + SWEEPS))
    rows: Rows = [("ASTRA (one thread)", (more - once) / SWEEPS, volume[:, :, view])]
    for threads in _threads(options):
        sweeps = Sweeps(rays, images, np.ones_like(images), np.zeros(len(images)), 1)
        sweeps.sweep()
        start = time.monotonic()
        for _ in range(SWEEPS):
            sweeps.sweep()
        wall = (time.monotonic() - start) / SWEEPS
        first = (sweeps.density.shape[2] - images.shape[1]) // 2
        density = sweeps.density[:, view, first : first + images.shape[1]]
        rows.append((f"ours, {threads} threads", wall, density.transpose(0, 2, 1)))
    return "SIRT, one iteration", rows


def _tilt_rows(images: F32, height: int, options: Options) -> tuple[str, Rows]:
    """From an aligned stack on disk to a tomogram on disk; in between ours without start, files and pictures."""
    folder = options.work / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    stack, angles = folder / "b.mrc", folder / "b.tlt"
    write_stack(stack, images, PIXEL_A, overwrite=True)
    np.savetxt(angles, TILT_DEG, fmt="%.2f")
    words: list[object] = [Path(os.environ["IMOD_DIR"]) / "bin" / "tilt", "-InputProjections", stack]
    words += ["-OutputFile", folder / "tilt.mrc", "-TILTFILE", angles, "-THICKNESS", height, "-RADIAL", "0.5,0.05"]
    ran = run_measured([str(w) for w in words], folder / "tilt.log", environment(options.threads))
    if ran.status != 0:
        raise RuntimeError(f"tilt ended with status {ran.status}: {ran.said.strip().splitlines()[-1:]}")
    rows: Rows = [("IMOD tilt", ran.wall_s, _level(folder / "tilt.mrc"))]
    alignment = _untilted_axis(images)
    for threads in _threads(options):
        wall, volume = _best_of(lambda: fbp_volume(images, alignment, height))
        rows.append((f"ours in memory, {threads} threads", wall, volume))
    given = write_alignment(alignment, folder / "b_align.json")
    out = folder / "ours.mrc"
    ours = recon(stack, given, out, "FBP", options.threads, height * PIXEL_A / 10)
    rows.append((f"inr-recon, {options.threads} threads", ours.wall_s, read_volume(out)[0]))
    return "IMOD's tilt", rows


def _astra(images: F32, height: int, width: int, method: str, iterations: int) -> F32:
    """ASTRA's CPU code, slice by slice, volume ``[z, y, x]``."""
    import astra

    n, rows, nu = images.shape
    volume = np.empty((height, rows, width), dtype=np.float32)
    geometry = astra.create_vol_geom(height, width)
    projections = astra.create_proj_geom("parallel", 1.0, nu, np.deg2rad(TILT_DEG))
    projector = astra.create_projector("linear", projections, geometry)
    sinogram = astra.data2d.create("-sino", projections)
    plane = astra.data2d.create("-vol", geometry)
    config: dict[str, Any] = astra.astra_dict(method)
    config |= {"ProjectorId": projector, "ProjectionDataId": sinogram, "ReconstructionDataId": plane}
    algorithm = astra.algorithm.create(config)
    for row in range(rows):
        astra.data2d.store(sinogram, np.ascontiguousarray(images[:, row]))
        astra.data2d.store(plane, 0)
        astra.algorithm.run(algorithm, iterations)
        volume[:, row] = astra.data2d.get(plane)[::-1]  # its rows run against its y, our z
    astra.algorithm.delete(algorithm)
    astra.data2d.delete([sinogram, plane])
    astra.projector.delete(projector)
    return volume


def _best_of(work: Callable[[], F32], times: int = 2) -> tuple[float, F32]:
    """The shortest of some runs (the first may compile) and the last result."""
    walls = []
    for _ in range(times):
        start = time.monotonic()
        result = work()
        walls.append(time.monotonic() - start)
    return min(walls), result


def _threads(options: Options) -> Iterator[int]:
    """One thread and then as many as the command line allows, set for what follows."""
    before = nb.get_num_threads()
    for threads in sorted({1, min(options.threads, before)}):
        nb.set_num_threads(threads)
        yield threads
    nb.set_num_threads(before)


def _untilted_axis(images: F32) -> Alignment:
    return Alignment.identity(TILT_DEG, (images.shape[2], images.shape[1]), 0.0, PIXEL_A)


def _cc(a: F32, b: F32) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _level(path: Path) -> F32:
    """What ``tilt`` writes, as ``[z, y, x]``."""
    return np.ascontiguousarray(read_volume(path)[0].transpose(1, 0, 2)[::-1])
