"""Whole commands on a device, at the sizes that users have: wall time, highest memory, and errors beside the CPU's.

4096 px images are those of a 1024 px series, enlarged, so that no specimen of that size has to be made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from inrtomo.io.mrc import open_stack, write_stack
from integration.benchmarks.alignment.methods import METHODS
from integration.benchmarks.alignment.run import scored, simulated_case

QUALITY = ("S1w", "S2w", "S3w")
ENLARGED = 4
VOLUMES = "recon --method sirt", "recon --method field"
"""What `inr-fsc` is timed on."""


@dataclass(frozen=True)
class Size:
    """A series and what is timed on it, along its true alignment where an alignment is asked for.

    Attributes:
        side: of the images, px; thickness: of the slab, px; tilts: number of them, over +-60 degrees.
        lines: commands with their options.
        enlarged: factor by which images of a smaller series, ``side / enlarged``, are blown up.
    """

    side: int
    thickness: int
    tilts: int
    lines: tuple[str, ...]
    enlarged: int = 1


SIZES = {
    "256": Size(256, 90, 61, ("infer",)),
    "512": Size(512, 180, 61, ("align", "align --fast", "export", "recon --method fbp", *VOLUMES, "infer")),
    "1024": Size(1024, 180, 41, ("align",)),
    "1024-volume": Size(1024, 300, 61, ("recon --method field", "infer")),
    "4096": Size(4096, 720, 41, ("align --memory 16G", "align --memory 8G"), ENLARGED),
    "4096-volume": Size(4096, 720, 41, ("recon --method field", "recon --method field --field tensor"), ENLARGED),
}
PARTS = (*SIZES, "quality")


def timed(size: Size, device: str) -> Iterator[tuple[str, float]]:
    """Name and wall seconds of each line, and ``..., peak GB`` where the command reports memory of the device."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        stack, truth = made_series(size, made)
        for name in size.lines:
            command, *options = name.split()
            out = _output(made, name)
            target = out if command == "align" else out.with_suffix(".mrc")
            given = (stack, "--tilt-axis", 0) if command == "align" else (stack, truth)
            start = time.monotonic()
            run(command, *given, "-o", target, *options, "--device", device)
            what = f"inr-{name}, {size.side} x {size.side}, slab of {size.thickness} px, {size.tilts} tilts"
            yield what, time.monotonic() - start
            written = out / f"{stack.stem}_align.json" if command == "align" else out.with_suffix(".json")
            peak = _peak_bytes(written)
            if peak:
                yield f"{what}, peak GB", peak / 1e9
        volumes = [_output(made, name).with_suffix(".mrc") for name in VOLUMES]
        if all(path.exists() for path in volumes):
            start = time.monotonic()
            run("fsc", *volumes, "-o", made / "fsc", "--register", "rigid", "--device", device)
            yield "inr-fsc --register rigid of two of them", time.monotonic() - start


def quality(device: str) -> Iterator[tuple[str, float]]:
    """Alignment error and correlation of the field with the truth: on the device as a part of the CPU's, less 1."""
    with tempfile.TemporaryDirectory() as folder:
        for name in QUALITY:
            found = []
            for computing in ("cpu", device):
                case = simulated_case(name, 0, None, Path(folder), os.cpu_count() or 1, ("--device", computing))
                shutil.rmtree(case.work / "ours", ignore_errors=True)
                record = scored(case, METHODS["ours"](case)[0], volumes=True)
                found.append((record["gauge_free"]["rms_px"], record["field"]["cc"]))
            (error, cc), (other_error, other_cc) = found
            yield (
                f"{name}: alignment error {error:.3f} px on the CPU, on the device relatively",
                other_error / error - 1,
            )
            yield f"{name}: field's correlation {cc:.3f} on the CPU, on the device relatively", other_cc / cc - 1


def part(name: str, device: str) -> Iterator[tuple[str, float]]:
    """The lines of one of `PARTS`."""
    return quality(device) if name == "quality" else timed(SIZES[name], device)


def run(command: str, *words: object) -> None:
    """One of our commands, in a process of its own."""
    program = f"from inrtomo.commands.{command} import main; main()"
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _output(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "_")


def made_series(size: Size, folder: Path) -> tuple[Path, Path]:
    """The stack, and an alignment of it, in a folder."""
    side, step = size.side // size.enlarged, 120 / (size.tilts - 1)
    thickness_nm = size.thickness / size.enlarged  # at 10 Å/px
    options = ("--thickness", thickness_nm, "--tilt-range", 60, "--tilt-step", step)
    run("simulate", "-o", folder, "--base", "small", "--size", side, side, *options)
    small, truth = folder / "small.mrc", folder / "small_truth.json"
    if size.enlarged == 1:
        return small, truth
    large, angles = folder / "large.mrc", folder / "large.rawtlt"
    images, random = open_stack(small), np.random.default_rng(0)
    blown_up = np.empty((size.tilts, size.side, size.side), np.float32)
    for k in range(size.tilts):
        image = images.image(k)
        blown_up[k] = ndimage.zoom(image, size.enlarged, order=1, mode="nearest", grid_mode=True)
        blown_up[k] += random.standard_normal(blown_up[k].shape, np.float32) * image.std()
    write_stack(large, blown_up, 10 / size.enlarged)
    shutil.copy(folder / "small.rawtlt", angles)
    np.savetxt(folder / "large.xf", np.tile([1, 0, 0, 1, 0, 0], (size.tilts, 1)), fmt="%12.7f")
    shutil.copy(angles, folder / "large.tlt")
    return large, folder / "large.xf"


def _peak_bytes(path: Path) -> float:
    """Of the device, by a command's JSON; 0 where there was none."""
    return float(json.loads(path.read_text(encoding="utf-8")).get("peak_device_bytes", 0)) if path.exists() else 0.0
