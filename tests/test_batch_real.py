"""``inr-batch`` with the real commands: one series fails, a worker is killed, the rest goes on; here and by SLURM."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from inrtomo.batch.state import DONE, FAILED, Batch
from inrtomo.io.mrc import read_header
from tests.running import ROOT, Inr, start_command
from tests.slurm_here import slurm_here

pytestmark = pytest.mark.slow
PATIENCE_S = 600.0


@pytest.fixture
def raw(tmp_path: Path, tiny_series: Path) -> Path:
    """Two good series, and between them one whose angles are those of another."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("ts1", "ts2", "ts3"):
        for ending in (".mrc", ".rawtlt"):
            (folder / f"{name}{ending}").write_bytes((tiny_series / f"ts{ending}").read_bytes())
    (folder / "ts2.rawtlt").write_text("-60\n-57\n-54\n")
    return folder


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check(out: Path, killed: str) -> None:
    """Everything is as it should be after ``killed`` was stopped half-way and gone on with."""
    batch = Batch.open(out)
    assert batch.states() == {"ts1": DONE, "ts2": FAILED, "ts3": DONE}
    record = {name: batch.record(name) or {} for name in batch.states()}
    assert {name: values["attempts"] for name, values in record.items()} == {"ts1": 1, "ts2": 1, "ts3": 1} | {killed: 2}
    assert "3 angles for 21 images" in record["ts2"]["message"]
    for name in ("ts1", "ts3"):
        assert (out / name / f"{name}.xf").exists()
        assert 0 < record[name]["measured"]["residual_px"] < 1.5
        assert abs(record[name]["measured"]["axis_deg"]) < 3
    assert "3 angles for 21 images" in (out / "summary.html").read_text()
    assert not list(batch.state.glob("*.claimed*"))


def test_killed_and_gone_on_with(raw: Path, tmp_path: Path, inr: Inr) -> None:
    out = tmp_path / "ali"
    options = ("align", raw, "-o", out, "--workers", 1, "--", "--fast", "--tilt-axis", 0)
    process = start_command("batch", *options)
    until(lambda: (out / "state" / "ts3.claimed").exists(), process)
    time.sleep(1.0)
    process.kill()
    process.communicate(timeout=60)
    went_on = inr("batch", *options)
    assert went_on.exit_code == 1, went_on.output
    check(out, "ts3")

    rec = tmp_path / "rec"
    made = inr("batch", "recon", "--from", out, "-o", rec, "--workers", 1, "--", "--halves", "--bin", 2)
    assert made.exit_code == 0, made.output
    assert Batch.open(rec).states() == {"ts1": DONE, "ts3": DONE}, "only what was aligned"
    assert read_header(rec / "ts1" / "ts1_rec.mrc").shape[2] == 48
    fsc = tmp_path / "fsc"
    assert inr("batch", "fsc", "--from", rec, "-o", fsc, "--workers", 1).exit_code == 0
    assert "resolution_A" in (Batch.open(fsc).record("ts1") or {})["measured"]


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit (inrtomo[slurm])")
@pytest.mark.skipif("INR_TEST_SLURM" not in os.environ, reason="takes over ten minutes yet: INR_TEST_SLURM=1 runs it")
def test_slurm(raw: Path, tmp_path: Path) -> None:
    """A job array of which a task fails, and one is told that its time is over, requeued, and goes on."""
    out, template = tmp_path / "ali", tmp_path / "site.sh"
    template.write_text("#SBATCH --time=20 --cpus-per-task=1 --mem=500M --array=%2 --job-name=t\nexport CAME=through\n")
    (tmp_path / "slurm").mkdir()
    with slurm_here(tmp_path / "slurm") as environment:
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with pytest.MonkeyPatch.context() as patch, ExitStack() as killing:
            for key, value in environment.items():
                patch.setenv(key, value)
            process = start_command(
                "batch", "align", raw, "-o", out, "--slurm", template, "--wait", "--", "--fast", "--tilt-axis", 0
            )
            killing.callback(process.kill)
            log = out / "state" / "ts1.log"
            until(lambda: log.exists() and "tilt angles" in log.read_text(), process)
            array, task, _ = json.loads((out / "state" / "ts1.claimed").read_text())["job"].split("_")
            # what SLURM sends some time before the limit; for a job of minutes there is no waiting for it
            subprocess.run(["scancel", f"--signal={signal.SIGUSR2.name[3:]}", f"{array}_{task}"], check=True)
            said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1, said
    assert "submitted 3 tasks" in said[0]
    (script,) = (out / "state" / "slurm").glob("*submission.sh")
    assert "--array=0-2%2" in script.read_text() and "CAME=through" in script.read_text()
    check(out, "ts1")
