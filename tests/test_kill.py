"""A run that is stopped in the middle, however rudely, goes on from its checkpoint and ends complete."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import Inr, assert_refused, start_command

PATIENCE_S = 300.0
RESULTS = ("ts.xf", "ts.tlt", "ts.xtilt", "newst.com", "tilt.com", "ts_align.json")

pytestmark = pytest.mark.slow


def align_args(series: Path, out: Path) -> tuple[object, ...]:
    return (series / "ts.mrc", "--tilt-angles", series / "ts.rawtlt", "--tilt-axis", 0, "--seed", 1, "-o", out)


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    """Until a checkpoint lies in the output folder and the run goes on."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(out.glob("[!.]*checkpoint*")):
        assert process.poll() is None, f"ended before any checkpoint: {process.communicate()}"
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    assert process.poll() is None, "ended at once after its first checkpoint"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed(tiny_series: Path, tmp_path: Path, inr: Inr, number: signal.Signals, status: int) -> None:
    out = tmp_path / "out"
    args = align_args(tiny_series, out)
    process = start_command("align", *args)
    wait_for_checkpoint(process, out)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert said.splitlines()[-1].startswith("inr-align: "), said
        assert not list(out.glob(".*.part")), "temporary files left"
    assert not any((out / name).exists() for name in RESULTS), "half a result"

    resumed = inr("align", *args, "--resume")
    assert resumed.exit_code == 0, resumed.output
    for name in RESULTS:
        assert (out / name).is_file(), name
    json.loads((out / "ts_align.json").read_text())

    uninterrupted = tmp_path / "whole"
    assert inr("align", *align_args(tiny_series, uninterrupted)).exit_code == 0
    compared = inr("compare", out, uninterrupted, "-o", tmp_path / "cmp")
    assert compared.exit_code == 0, compared.output
    error = json.loads((tmp_path / "cmp.json").read_text())["rms_px"]
    assert error < 0.1, "resuming led elsewhere than running through"


def test_resume_in_a_script_that_always_says_so(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    """With nothing to go on from the run starts; with a complete result there is nothing to do."""
    out = tmp_path / "out"
    args = (*align_args(tiny_series, out), "--fast", "--resume")
    assert inr("align", *args).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert set(RESULTS) <= {path.name for path in before}
    again = inr("align", *args)
    assert again.exit_code == 0 and "complete" in again.output
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_checkpoints_that_cannot_be_used(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    out = tmp_path / "out"
    args = align_args(tiny_series, out)
    process = start_command("align", *args)
    wait_for_checkpoint(process, out)
    process.kill()
    process.communicate(timeout=60)
    (checkpoint,) = out.glob("[!.]*checkpoint*")
    assert_refused(inr("align", *args), checkpoint.name, "--resume", "--overwrite")
    assert_refused(inr("align", *args, "--resume", "--warp", "none"), checkpoint.name, "warp")
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    for content in (whole[:100], b"", whole[:-1000], whole[:middle] + bytes(1000) + whole[middle + 1000 :]):
        checkpoint.write_bytes(content)
        assert_refused(inr("align", *args, "--resume"), checkpoint.name)
