"""IMOD's own programs on our files, where IMOD is installed: its tomograms say whether ours mean what they should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.io.mrc import read_header, read_volume, write_stack
from inrtomo.reconstruct.filters import RadialFilter
from tests.running import ROOT, Inr, run_command

F32 = NDArray[np.float32]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("IMOD_DIR"), reason="IMOD_DIR is not set: IMOD's own programs are not run"),
]

SERIES = "--size 128 128 --thickness 40 --tilt-step 4 --snr 15 --shifts 6 --warp 3 --tilt-axis -5 --slab-tilt 3 -2"
HEIGHT_PX = 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series with local motion of 3 px, and its true alignment in files of IMOD."""
    folder = tmp_path_factory.mktemp("imod")
    assert run_command("simulate", "-o", folder, "--base", "ts", "--seed", 3, *SERIES.split()).exit_code == 0
    done = run_command("convert", folder / "ts_truth.json", folder / "true" / "ts.xf", "--stack", folder / "ts.mrc")
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def tomogram(folder: Path) -> Callable[[str], F32]:
    """The tomogram ``[z, y, x]`` by IMOD along ``linear``, ``warp`` or ``local``."""
    made: dict[str, F32] = {}

    def make(kind: str) -> F32:
        if kind not in made:
            made[kind] = _by_imod(folder, kind)
        return made[kind]

    return make


def _by_imod(folder: Path, kind: str) -> F32:
    here = folder / kind
    shutil.copytree(folder / "true", here)
    newst, tilt = here / "newst.com", here / "tilt.com"
    if kind != "warp":
        newst.write_text(newst.read_text().replace("ts_warp.xf", "ts.xf"))
    lines = [line for line in tilt.read_text().splitlines() if not line.startswith("THICKNESS")]
    lines += [f"THICKNESS {HEIGHT_PX}"] + ["LOCALFILE tslocal.xf"] * (kind == "local")
    tilt.write_text("\n".join([*lines, ""]))
    _imod(here, "submfg", "newst.com", "tilt.com")
    found = read_volume(here / "ts_full_rec.mrc")[0]  # [y, z, x], z downwards
    return np.ascontiguousarray(np.moveaxis(found, 1, 0)[::-1])


def _imod(folder: Path, program: str, *args: str) -> None:
    programs = Path(os.environ["IMOD_DIR"]) / "bin"
    environment = {**os.environ, "PATH": os.pathsep.join([str(programs), os.environ["PATH"]])}
    done = subprocess.run([programs / program, *args], cwd=folder, env=environment, capture_output=True, text=True)
    logs = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs


def correlation(a: F32, b: F32) -> float:
    """Of the middles of two volumes of one kind, which may differ in height."""
    height, rows, columns = min(len(a), len(b)), a.shape[1] // 8, a.shape[2] // 8
    a, b = (v[(len(v) - height) // 2 :][:height, rows:-rows, columns:-columns] for v in (a, b))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def apart_px(a: F32, b: F32) -> F32:
    """Shift (z, y, x) between two volumes of one shape: the top of their cross-correlation, by parabolas."""
    cross = np.fft.irfftn(np.fft.rfftn(a) * np.conj(np.fft.rfftn(b)), a.shape, axes=(0, 1, 2))
    top = np.unravel_index(int(cross.argmax()), a.shape)
    found = []
    for axis, n in enumerate(a.shape):
        before, middle, after = (
            cross[tuple((t + d * (k == axis)) % s for k, (t, s) in enumerate(zip(top, a.shape, strict=True)))]
            for d in (-1, 0, 1)
        )
        at = top[axis] + 0.5 * (before - after) / (before - 2 * middle + after)
        found.append(at - n * (at > n / 2))
    return np.array(found, dtype=np.float32)


def test_newstack_and_tilt_see_the_local_motion(folder: Path, tomogram: Callable[[str], F32]) -> None:
    """By the warp file, and as well by ``tilt``'s own local alignments: nearer the truth than without."""
    truth = read_volume(folder / "ts_truth.mrc")[0]
    linear, warp, local = (correlation(tomogram(kind), truth) for kind in ("linear", "warp", "local"))
    assert warp > linear + 0.05 and local > linear + 0.05, (linear, warp, local)
    assert abs(warp - local) < 0.02, (linear, warp, local)


def test_our_tomogram_lies_where_that_of_imod_does(
    folder: Path, tomogram: Callable[[str], F32], tmp_path: Path
) -> None:
    """Same place to a tenth of a voxel, same handedness, same file layout."""
    ours = tmp_path / "ours.mrc"
    height_nm = HEIGHT_PX * (read_header(folder / "ts.mrc").pixel_size_A or 10) / 10
    words = ("--method", "fbp", "--thickness", height_nm)
    done = run_command("recon", folder / "ts.mrc", folder / "true" / "ts.xf", "-o", ours, *words)
    assert done.exit_code == 0, done.stderr
    assert read_header(ours).shape == read_header(folder / "warp" / "ts_full_rec.mrc").shape
    found = np.ascontiguousarray(np.moveaxis(read_volume(ours)[0], 1, 0)[::-1])
    assert np.abs(apart_px(found, tomogram("warp"))).max() < 0.1
    assert correlation(found, tomogram("warp")) > 0.9


def test_etomo_folder_with_imod_itself(folder: Path, tmp_path: Path, inr: Inr) -> None:
    """``integration/pipelines/etomo-folder``: inr-align in the place of Etomo's alignment, then IMOD's tomogram."""
    shutil.copy(folder / "ts.mrc", tmp_path / "ts.st")
    shutil.copy(folder / "ts.rawtlt", tmp_path)
    (tmp_path / "xcorr.com").write_text("$tiltxcorr -StandardInput\nInputFile\tts.st\nRotationAngle\t-5.0\n")
    programs = [ROOT / "bin", Path(sys.executable).parent, Path(os.environ["IMOD_DIR"]) / "bin", os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, programs))}
    script = ROOT / "integration" / "pipelines" / "etomo-folder"
    done = subprocess.run([script, tmp_path], env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    made = np.moveaxis(read_volume(tmp_path / "ts_full_rec.mrc")[0], 1, 0)[::-1]
    ours = tmp_path / "ours.mrc"
    assert inr("recon", tmp_path / "ts.st", tmp_path, "-o", ours, "--method", "fbp").exit_code == 0
    found = np.moveaxis(read_volume(ours)[0], 1, 0)[::-1]
    assert correlation(np.ascontiguousarray(made), np.ascontiguousarray(found)) > 0.85


def test_the_radial_cutoff_falls_off_as_in_tilt(tmp_path: Path) -> None:
    """A point seen at one angle is back-projected to its filter; the filter cut over that not cut is the fall-off."""
    n, kept, cutoff, falloff = 256, 128, 0.2, 0.08  # what lies near the line's ends is left out
    point = np.zeros((1, 4, n), dtype=np.float32)
    point[:, :, n // 2] = 1000
    write_stack(tmp_path / "point.mrc", point, 10.0)
    (tmp_path / "point.tlt").write_text("0\n")
    found = []
    for radial in (f"{cutoff},{falloff}", "0.5,0.001"):
        words = f"-InputProjections point.mrc -OutputFile {radial}.mrc -TILTFILE point.tlt -THICKNESS 1 -MODE 2"
        _imod(tmp_path, "tilt", *words.split(), "-RADIAL", radial)
        line = read_volume(tmp_path / f"{radial}.mrc")[0][2, 0, (n - kept) // 2 : (n + kept) // 2]
        found.append(np.abs(np.fft.rfft(line)))
    some = slice(6, 50)
    frequency = np.fft.rfftfreq(kept)[some]
    ours = RadialFilter("ramp", cutoff, falloff).weights(np.array([-30.0, 30.0]), kept, 1.0)[0, some]
    ours /= RadialFilter("ramp").weights(np.array([-30.0, 30.0]), kept, 1.0)[0, some]
    np.testing.assert_allclose((found[0] / found[1])[some], ours, atol=0.06)  # a manual's sd would be 0.2 off
    assert np.ptp(ours[frequency > cutoff]) > 0.5
