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

from inrtomo.batch.state import CLAIMED, DONE, FAILED, Batch
from inrtomo.io.mrc import read_header
from tests.running import ROOT, Inr, run_command, start_command
from tests.slurm_here import slurm_here

pytestmark = pytest.mark.slow
PATIENCE_S = 600.0
WEIGHTS = ROOT / "inrtomo" / "weights" / "localized.safetensors"
TINY = "--size 48 48 --thickness 15 --tilt-step 12 --snr 10 --shifts 3 --warp 0 --beads 4 --seed 1"
"""A series that is aligned in less than half a minute."""


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

    pages = tmp_path / "pages"
    told = inr("batch", "report", "--from", out, "-o", pages, "--workers", 1)
    assert told.exit_code == 0, told.output
    for name in ("ts1", "ts3"):
        verdict = json.loads((pages / name / f"{name}_report.json").read_text())["verdict"]
        assert (Batch.open(pages).record(name) or {})["measured"]["verdict"] == verdict
        assert f"{name} done" in told.output and f"verdict {verdict}" in told.output
        assert f'href="{name}/{name}_report.html"' in (pages / "summary.html").read_text()


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs the weights of inr-infer, which are not here")
def test_inferred_by_the_network(raw: Path, tmp_path: Path, tiny_series: Path, inr: Inr) -> None:
    """From a table that names an alignment of each; the halves are where inr-batch fsc looks for them."""
    table = tmp_path / "series.csv"
    table.write_text(f"stack,alignment\nraw/ts1.mrc,{tiny_series / 'ts_truth.json'}\nraw/ts2.mrc,nowhere.xf\n")
    out = tmp_path / "inferred"
    made = inr("batch", "infer", table, "-o", out, "--workers", 1, "--", "--halves", "--bin", 2)
    assert made.exit_code == 1 and Batch.open(out).states() == {"ts1": DONE, "ts2": FAILED}, made.output
    assert read_header(out / "ts1" / "ts1_rec.mrc").shape[2] == 48
    assert (Batch.open(out).record("ts1") or {})["measured"]["outside_training"] in ("yes", "no")
    fsc = tmp_path / "fsc"
    assert inr("batch", "fsc", "--from", out, "-o", fsc, "--workers", 1).exit_code == 0


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A table of four series: one of them cut off in its second half, one for the whole of `inr-align`."""
    simulated = run_command("simulate", "-o", tmp_path / "raw", "--base", "fast", *TINY.split())
    assert simulated.exit_code == 0, simulated.output
    for name in ("bad", "late", "killed"):
        for ending in (".mrc", ".rawtlt"):
            (tmp_path / "raw" / f"{name}{ending}").write_bytes((tmp_path / "raw" / f"fast{ending}").read_bytes())
    os.truncate(tmp_path / "raw" / "bad.mrc", 60_000)
    table = tmp_path / "series.csv"
    table.write_text("stack, fast\nraw/fast.mrc, yes\nraw/bad.mrc, yes\nraw/late.mrc,\nraw/killed.mrc, yes\n")
    return table


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit (inrtomo[slurm])")
def test_slurm(four: Path, tmp_path: Path) -> None:
    """A job array of which a task fails, one is told that its time is over and requeued, and one is killed."""
    out, template = tmp_path / "ali", tmp_path / "site.sh"
    template.write_text("#SBATCH --time=20 --cpus-per-task=1 --mem=500M --array=%2 --job-name=t\nexport CAME=through\n")
    args = ("align", four, "-o", out, "--slurm", template, "--wait", "--", "--tilt-axis", 0)
    with slurm_here() as environment, pytest.MonkeyPatch.context() as patch, ExitStack() as killing:
        for key, value in (environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}).items():
            patch.setenv(key, value)
        process = start_command("batch", *args)
        killing.callback(process.kill)
        for name, sign in (("late", "M parameters"), ("killed", "tilt angles")):
            log = out / "state" / f"{name}.log"
            until(lambda log=log, sign=sign: log.exists() and sign in log.read_text(), process)  # type: ignore[misc]
            holder = json.loads((out / "state" / f"{name}.claimed").read_text())
            if name == "late":
                # what SLURM sends some time before the limit; for a job of minutes there is no waiting for it
                job = "_".join(holder["job"].split("_")[:2])
                subprocess.run(["scancel", f"--signal={signal.SIGUSR2.name[3:]}", job], check=True)
            else:
                os.kill(holder["pid"], signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1 and "1 of 4 series failed" in said[1], said
        assert "submitted 4 tasks," in said[0]
        batch = Batch.open(out)
        assert batch.states() == {"fast": DONE, "bad": FAILED, "late": DONE, "killed": CLAIMED}
        again = run_command("batch", *args)
        assert again.exit_code == 1 and "submitted 1 task," in again.output, again.output
    assert batch.states() == {"fast": DONE, "bad": FAILED, "late": DONE, "killed": DONE}
    first, second = sorted((out / "state" / "slurm").glob("*submission.sh"), key=lambda path: path.stat().st_mtime)
    assert "--array=0-3%2" in first.read_text() and "CAME=through" in second.read_text()
    record = {name: batch.record(name) or {} for name in batch.states()}
    assert {name: values["attempts"] for name, values in record.items()} == {
        "fast": 1, "bad": 1, "late": 2, "killed": 2,
    }  # fmt: skip
    assert "bad.mrc" in record["bad"]["message"] and "bad.mrc" in (out / "summary.html").read_text()
    for name in ("fast", "late", "killed"):
        assert (out / name / f"{name}.xf").exists() and record[name]["measured"]["thickness_nm"] > 0
    attempts = (out / "state" / "late.log").read_text().split("--- attempt")[1:]
    assert ["M parameters" in attempt for attempt in attempts] == [True, False], "its fit began anew"
    assert not list(batch.state.glob("*.claimed*"))
