"""Stand-ins for programs that are not installed: they do what the test of a script needs, and check what they get.

``python stand_ins.py PROGRAM ARGUMENTS``: IMOD's ``submfg``, ``newstack`` and ``tilt``, and ``WarpTools
ts_import_alignments``. They refuse what the real ones are known to refuse (numbers of lines, missing files, tabs), and
what they write has the right name and size but no more. Every call is noted in the file that ``CALLS`` names.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inrtomo.io.imod import is_warp_file, read_angles, read_xf
from inrtomo.io.mrc import open_stack, write_stack, write_volume

CUT_TOLERANCE_DEG = 0.2


def install(folder: Path, *programs: str) -> Path:
    """Executables of these names in a folder, to be put on the ``PATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in programs:
        path = folder / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {program} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def submfg(*com_files: str) -> None:
    """Run every ``$program -StandardInput`` of com files with the lines below it."""
    for com_file in com_files:
        command: list[str] = []
        lines: list[str] = []
        for line in Path(com_file).read_text().splitlines():
            if line.startswith("$"):
                assert not command, f"{com_file}: more than one program"
                command = line[1:].split()
            elif line.strip() and not line.startswith("#"):
                lines.append(line)
        subprocess.run(command, input="\n".join(lines), text=True, check=True)


def standard_input() -> dict[str, str]:
    """Options of IMOD's PIP input, keys in upper case."""
    pairs = (line.replace("\t", " ").partition(" ") for line in sys.stdin.read().splitlines())
    return {name.upper(): value.strip() for name, _, value in pairs}


def newstack(*arguments: str) -> None:
    """An aligned stack: the raw images as they are, once the transforms are found to be for them."""
    assert arguments == ("-StandardInput",)
    given = standard_input()
    stack, transforms = open_stack(given["INPUTFILE"]), Path(given["TRANSFORMFILE"])
    n, ny, nx = stack.shape
    if is_warp_file(transforms):
        words = transforms.read_text().split()
        assert [int(word) for word in words[1:4]] == [nx, ny, n], "newstack: the warp file is for another stack"
    else:
        assert len(read_xf(transforms)[0]) in (1, n), "newstack: not as many transforms as sections"
    images = np.stack([stack.image(k) for k in range(n)])
    write_stack(given["OUTPUTFILE"], images, stack.pixel_size_A, overwrite=True)


def tilt(*arguments: str) -> None:
    """An empty tomogram, once there is an angle for every section."""
    assert arguments == ("-StandardInput",)
    given = standard_input()
    n, ny, nx = open_stack(given["INPUTPROJECTIONS"]).shape
    for name in ("TILTFILE", "XTILTFILE"):
        assert len(read_angles(given[name])) == n, f"tilt: {given[name]} is for another number of sections"
    assert [int(size) for size in given["FULLIMAGE"].split()] == [nx, ny]
    thickness = int(given["THICKNESS"])
    write_volume(given["OUTPUTFILE"], np.zeros((ny, thickness, nx), np.float32), 10.0, overwrite=True)


def warptools(step: str, *arguments: str) -> None:
    """The rules by which ``ts_import_alignments`` takes a series, or does not."""
    assert step == "ts_import_alignments"
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert Path(given["--settings"]).is_file() and float(given["--alignment_angpix"]) > 0
    folders = [path for path in Path(given["--alignments"]).iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        root = folder.name
        recorded = read_angles(folder / f"{root}.rawtlt")
        text = (folder / f"{root}.xf").read_text()
        assert "\t" not in text, "WarpTools: splits at blanks only"
        angles = read_angles(folder / f"{root}.tlt")
        assert angles.any(), "WarpTools: refuses angles that are all 0"
        cut = folder / f"{root}_cutviews0.rawtlt"
        left_out = read_angles(cut) if cut.exists() else np.zeros(0)
        used = [a for a in recorded if not len(left_out) or np.abs(left_out - a).min() > CUT_TOLERANCE_DEG]
        assert len(text.splitlines()) == len(angles) == len(used), "WarpTools: not as many lines as tilts in use"


if __name__ == "__main__":
    program, *rest = sys.argv[1:]
    with open(os.environ["CALLS"], "a", encoding="utf-8") as calls:
        calls.write(" ".join([program, *rest]) + "\n")
    programs: dict[str, Callable[..., None]] = {
        "submfg": submfg, "newstack": newstack, "tilt": tilt, "WarpTools": warptools,
    }  # fmt: skip
    programs[program](*rest)
