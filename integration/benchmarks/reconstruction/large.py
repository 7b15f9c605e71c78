"""Volumes as large as a camera's, within ``--memory``: what they take.

Fits are cut short, since all of their steps take the same. Images are noise with dots: nothing here is about quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.io.files import put_in_place
from inrtomo.io.mrc import read_header
from integration.benchmarks.reconstruction.command import RECON, recon, write_alignment
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record

CUT_STEPS = {8: 2, 4: 2, 2: 2, 1: 1}
CUT = f"import inrtomo.reconstruct.field as f; f.STEPS = {CUT_STEPS}; f.LEAST_GAIN = -float('inf'); {RECON}"
PIXEL_A = 5.0
DOT_SD_PX, DOT_HEIGHT, PX_PER_DOT = 2.0, 6.0, 2600

COLUMNS: tuple[Column, ...] = (
    ("memory (GiB)", "peak_GiB", "{:.2f}"),
    ("time (s)", "wall_s", "{:.0f}"),
)


@dataclass(frozen=True)
class Large:
    """Images ``(ny, nx)``, tilts over +-60 degrees, height of the volume (px), and what it has to do with."""

    shape: tuple[int, int]
    tilts: int
    height: int
    memory: str
    methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """For the table."""
        ny, nx = self.shape
        return f"{self.tilts} images of {nx} x {ny} px, {self.height} voxels high, --memory {self.memory}"


VOLUMES = (
    Large((1024, 1024), 61, 300, "6G", ("FBP", "SIRT", "hash")),
    Large((96, 4096), 41, 300, "4G", ("hash", "tensor")),
)


def jobs(options: Options) -> Iterator[Job]:
    """Every method with each of `VOLUMES`; ``--size`` is the longer side instead, all else in proportion."""
    for volume in VOLUMES:
        if options.size is not None:
            part = options.size / max(volume.shape)
            ny, nx, height = (max(round(part * n), 16) for n in (*volume.shape, volume.height))
            volume = replace(volume, shape=(ny, nx), height=height)
        for method in options.methods or volume.methods:
            yield Job(f"{volume.name}, {method}", 0, _job(options, volume, method))


def _job(options: Options, volume: Large, method: str) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        folder = options.work / "large" / "x".join(map(str, (*volume.shape, volume.height)))
        stack, alignment = _series(volume, folder)
        out = folder / f"{method}.mrc"
        more = ("--memory", volume.memory)
        height_nm = volume.height * PIXEL_A / 10
        ran = recon(stack, alignment, out, method, options.threads, height_nm, more, CUT)
        found = read_header(out).shape
        out.unlink()
        if found != (volume.height, *volume.shape):
            raise RuntimeError(f"a volume of {found} voxels came out")
        return [{"table": volume.name, "row": method, "peak_GiB": ran.peak_MB / 1024, "wall_s": ran.wall_s}]

    return run


def _series(volume: Large, folder: Path) -> tuple[Path, Path]:
    """The stack and its alignment, made once."""
    (ny, nx), tilt_deg = volume.shape, np.linspace(-60, 60, volume.tilts)
    stack = folder / "ts.mrc"
    aligned = write_alignment(
        replace(Alignment.identity(tilt_deg, (nx, ny)), pixel_size_A=PIXEL_A), folder / "ts_align.json"
    )
    np.savetxt(folder / "ts.rawtlt", tilt_deg, fmt="%.2f")
    if stack.exists():
        return stack, aligned
    random = np.random.default_rng(0)
    dots = (random.random((ny * nx // PX_PER_DOT, 3)) - 0.5) * (nx, ny, 0.8 * volume.height)
    at_y, at_x = np.arange(ny) - (ny - 1) / 2, np.arange(nx) - (nx - 1) / 2
    making = stack.with_suffix(".part")
    with mrcfile.new_mmap(making, (volume.tilts, ny, nx), mrc_mode=2, overwrite=True) as file:
        for k, tilt in enumerate(np.deg2rad(tilt_deg)):
            u = dots[:, :1] * np.cos(tilt) + dots[:, 2:] * np.sin(tilt)
            along_x, along_y = (
                np.exp(-((at - centre) ** 2) / (2 * DOT_SD_PX**2)) for at, centre in ((at_x, u), (at_y, dots[:, 1:2]))
            )
            noise = random.standard_normal((ny, nx), dtype=np.float32)
            file.data[k] = noise + (DOT_HEIGHT * along_y.T @ along_x).astype(np.float32)
        file.voxel_size = PIXEL_A
    put_in_place(making, stack)
    return stack, aligned
