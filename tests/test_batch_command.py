"""``inr-batch`` from outside, with a stand-in for ``inr-align`` that does what its stack says."""

from __future__ import annotations

import csv
import html.parser
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inrtomo.batch import runner
from inrtomo.batch.manifest import Series
from inrtomo.batch.page import page
from inrtomo.batch.slurm_template import TEMPLATE, read_template
from inrtomo.batch.state import DONE, FAILED, Batch
from inrtomo.batch.steps import STEPS
from inrtomo.batch.summary import COLUMNS, outlying, summarise, table
from inrtomo.batch.watch import Watch
from inrtomo.errors import InputError
from tests.fake_align import result
from tests.running import ROOT, Inr, assert_refused

STAND_IN_FILE = ROOT / "tests" / "fake_align.py"
STAND_IN = STAND_IN_FILE.read_text(encoding="utf-8")
PATIENCE_S = 300.0


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CHILD", STAND_IN)


def stacks(folder: Path, **what: str) -> Path:
    """A folder of stacks, each saying what is to happen to it."""
    raw = folder / "raw"
    raw.mkdir(exist_ok=True)
    for name, text in what.items():
        (raw / f"{name}.mrc").write_text(text)
    return raw


def starts(raw: Path) -> Counter[str]:
    return Counter((raw / "starts").read_text().split())


def states(out: Path) -> dict[str, str]:
    return Batch.open(out).states()


def start_batch(*args: object) -> subprocess.Popen[str]:
    """``inr-batch ARGS`` as a process of its own, with the stand-in."""
    code = (
        f"import inrtomo.batch.runner as r; r.CHILD = open({str(STAND_IN_FILE)!r}).read(); "
        "from inrtomo.commands.batch import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_batch_from_beginning_to_end(tmp_path: Path, inr: Inr) -> None:
    raw, out = stacks(tmp_path, a="ok", b="bad", c="crash", d="abort", e="ok"), tmp_path / "out"
    ran = inr("batch", "align", raw, "-o", out, "--workers", 2, "--", "--fast", "--tilt-axis", 3)
    assert_refused(ran, "3 of 5", "--retry", status=1)
    assert states(out) == {"a": DONE, "b": FAILED, "c": FAILED, "d": FAILED, "e": DONE}
    assert starts(raw) == dict.fromkeys("abcde", 1)
    made = json.loads((out / "a" / "a_align.json").read_text())
    assert made["argv"][1:] == [
        "align", str(raw / "a.mrc"), "-o", str(out / "a"), "--resume", "--fast", "--tilt-axis", "3",
    ]  # fmt: skip
    assert int(made["threads"]) == max(1, runner.usable_cores() // 2)
    record = {name: Batch.open(out).record(name) or {} for name in "abcd"}
    assert record["a"]["measured"]["residual_px"] == 0.4 and record["a"]["exit_status"] == 0
    assert record["b"]["message"] == f"{raw / 'b.mrc'}: no tilt angles found" and record["b"]["exit_status"] == 2
    assert record["c"]["message"] == "exit status 1: RuntimeError: the worst case"
    assert "SIGKILL" in record["d"]["message"] and "memory" in record["d"]["message"]
    assert "no tilt angles" in (out / "state" / "b.log").read_text()
    rows = {row["name"]: row for row in csv.DictReader((out / "summary.csv").open())}
    assert rows["a"]["thickness_nm"] == "150" and rows["b"]["state"] == "failed"

    again = inr("batch", "align", raw, "-o", out)
    assert again.exit_code == 1 and starts(raw) == dict.fromkeys("abcde", 1), "nothing is done twice"
    stacks(tmp_path, b="ok", c="ok", d="ok", f="ok")
    retried = inr("batch", "align", raw, "-o", out, "--retry")
    assert retried.exit_code == 0, retried.output
    assert starts(raw) == {"a": 1, "b": 2, "c": 2, "d": 2, "e": 1, "f": 1}
    assert (Batch.open(out).record("b") or {})["attempts"] == 2
    assert (out / "state" / "b.log").read_text().count("--- attempt") == 2
    shown = inr("batch", "status", "-o", out)
    assert shown.exit_code == 0 and "6 of 6 done" in shown.output


def test_ctrl_c_and_going_on(tmp_path: Path, inr: Inr) -> None:
    raw, out = stacks(tmp_path, a="ok", b="sleep 600", c="ok"), tmp_path / "out"
    process = start_batch("align", raw, "-o", out, "--workers", 1, "--", "--seed", 3)
    until(lambda: (raw / "starts").exists() and starts(raw)["b"] == 1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130 and said.splitlines()[-1] == "inr-batch: interrupted", said
    assert states(out) == {"a": DONE, "b": "interrupted"} and (out / "b" / "checkpoint").exists()
    went_on = inr("batch", "align", "-o", out)
    assert went_on.exit_code == 0, went_on.output
    assert states(out) == dict.fromkeys("abc", DONE) and starts(raw) == {"a": 1, "b": 2, "c": 1}
    made = json.loads((out / "b" / "b_align.json").read_text())
    assert made["argv"][-2:] == ["--seed", "3"], "the options are remembered"


@pytest.mark.skipif(sys.platform != "linux", reason="commands of a killed worker end by themselves only on Linux")
def test_a_killed_worker_leaves_nobody_behind(tmp_path: Path, inr: Inr) -> None:
    raw, out = stacks(tmp_path, a="sleep 600"), tmp_path / "out"
    process = start_batch("align", raw, "-o", out)
    until(lambda: (raw / "starts").exists())
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    assert states(out) == {"a": "claimed"} and Batch.open(out).is_lost("a")
    stacks(tmp_path, a="ok")
    taken_over = inr("batch", "align", "-o", out)
    assert taken_over.exit_code == 0, taken_over.output
    assert (Batch.open(out).record("a") or {})["attempts"] == 2


def test_two_batches_on_one_folder(tmp_path: Path) -> None:
    raw, out = stacks(tmp_path, **{f"ts{k:02d}": "sleep 0.05" for k in range(12)}), tmp_path / "out"
    both = [start_batch("align", raw, "-o", out, "--workers", 2) for _ in range(2)]
    for process in both:
        said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    assert set(starts(raw).values()) == {1} and len(starts(raw)) == 12


def test_what_cannot_be_run(tmp_path: Path, inr: Inr) -> None:
    raw, out = stacks(tmp_path, a="ok"), tmp_path / "out"
    assert_refused(inr("batch", "align", raw), "-o")
    assert_refused(inr("batch", "align", "-o", out), "SERIES")
    assert_refused(inr("batch", "align", raw / "no.mrc", "-o", out), "no.mrc")
    assert_refused(inr("batch", "align", raw, "-o", out, "--", "--no-such"), "--no-such")
    assert_refused(inr("batch", "recon", raw, "-o", out, "--from", tmp_path / "none"), "none")
    assert_refused(inr("batch", "recon", "-o", out, "--from", raw), "raw", "no batch was run there")
    assert_refused(inr("batch", "align", raw, "-o", out, "--slurm", tmp_path / "none.sh"), "none.sh")
    assert_refused(inr("batch", "status", "-o", tmp_path), "no batch")
    assert not out.exists()
    assert inr("batch", "align", raw, "-o", out).exit_code == 0
    assert_refused(inr("batch", "recon", raw, "-o", out), "inr-align")


def test_recon_without_an_alignment_says_so(tmp_path: Path, inr: Inr) -> None:
    raw, out = stacks(tmp_path, a="ok"), tmp_path / "out"
    assert inr("batch", "recon", raw, "-o", out).exit_code == 1
    assert "--from" in (Batch.open(out).record("a") or {})["message"]


# --- a running microscope ------------------------------------------------------------------------------------------


def test_a_stack_is_taken_when_it_is_complete(tmp_path: Path, tiny_series: Path) -> None:
    """Not while it grows, not without angles; and its frames' halves never."""
    whole = (tiny_series / "ts.mrc").read_bytes()
    settle = 0.2
    watch = Watch(tmp_path, {}, settle, None)

    def look() -> list[str]:
        time.sleep(settle + 0.05)
        return [one.name for one in watch() or ()]

    assert look() == []
    stack = tmp_path / "Position_1.mrc"
    stack.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "Position_1_odd.mrc").write_bytes(whole)
    (tmp_path / "Position_1.rawtlt").write_text((tiny_series / "ts.rawtlt").read_text())
    assert look() == [] and look() == [], "half a stack"
    stack.write_bytes(whole)
    (tmp_path / "Position_1.rawtlt").unlink()
    assert look() == [] and look() == [] and "angles" in watch.unready[stack]
    (tmp_path / "Position_1.rawtlt").write_text("-60\n-57\n")
    assert look() == [] and "2 angles" in watch.unready[stack]
    (tmp_path / "Position_1.rawtlt").write_text((tiny_series / "ts.rawtlt").read_text())
    assert look() == ["Position_1"] and watch.unready == {}
    assert look() == [], "once"


def test_watching_until_nothing_comes(tmp_path: Path, inr: Inr, tiny_series: Path) -> None:
    """Real stacks, as only these can be complete; the stand-in takes what it does not understand for ok."""
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "CHILD", STAND_IN.replace('stack.read_text(encoding="utf-8")', '"ok"'))
        for name in ("ts1", "ts2"):
            for ending in (".mrc", ".rawtlt"):
                (raw / f"{name}{ending}").write_bytes((tiny_series / f"ts{ending}").read_bytes())
        (raw / "ts3.mrc").write_bytes(b"")
        ran = inr("batch", "align", "-o", tmp_path / "out", "--watch", raw, "--settle", 0.1, "--idle-stop", 0.02)
    assert ran.exit_code == 0, ran.output
    assert states(tmp_path / "out") == {"ts1": DONE, "ts2": DONE}
    assert "not taken" in ran.output and "ts3.mrc" in ran.output


# --- summary -------------------------------------------------------------------------------------------------------


def test_what_stands_out() -> None:
    rng = np.random.default_rng(0)
    residual = rng.normal(0.5, 0.05, 200)
    residual[[7, 11]] = 1.5, 0.05
    assert np.flatnonzero(outlying(residual, COLUMNS["residual_px"])).tolist() == [7]
    axis = np.append(rng.normal(179.9, 0.3, 60) % 360, [175.0])
    axis[axis > 180] -= 360
    assert np.flatnonzero(outlying(axis, COLUMNS["axis_deg"])).tolist() == [60], "180 and -180 are neighbours"
    same = np.full(20, 85.0)
    same[3] = 85.4
    assert not outlying(same, COLUMNS["axis_deg"]).any(), "less than a degree is nothing"
    left_out = np.array([0.0, 0, 0, 0, 1, 2, 5, 0, 0])
    assert np.flatnonzero(outlying(left_out, COLUMNS["excluded_tilts"])).tolist() == [6]
    assert not outlying(np.array([1.0, np.nan, 100.0]), COLUMNS["residual_px"]).any(), "too few to say what is usual"


class Checker(html.parser.HTMLParser):
    """Collects text and tags, and what a page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.rows = "", 0
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.rows += tag == "tr"
        self.loaded += [v for k, v in attrs if k == "src" or (tag == "link" and k == "href")]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_verdict_that_is_not_good_is_worth_a_look_and_says_why(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "align", ())
    batch.save()
    why = {"good": [], "check": ["2 of 5 tilts are left out"], "failed": ["the tilt axis, 88.0°, does not fit <b>"]}
    batch.add([Series(name, f"/raw/{name}.mrc") for name in (*why, "old")])
    for name, reasons in why.items():
        (tmp_path / name).mkdir()
        values = result(verdict=name, reasons=reasons)
        (tmp_path / name / f"{name}_align.json").write_text(json.dumps(values))
        measured = STEPS["align"].measured(Series(name, f"/raw/{name}.mrc"), tmp_path / name)
        record = {"attempts": 1, "message": "", "seconds": 3.0, "measured": measured, "tail": []}
        batch.settle(name, DONE, record)
    old = {key: value for key, value in result().items() if key not in ("verdict", "reasons")}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old_align.json").write_text(json.dumps(old))  # of a version that gave no verdict
    assert "verdict" not in STEPS["align"].measured(Series("old", "/raw/old.mrc"), tmp_path / "old")
    summary = summarise(batch)
    found = summary.standing_out()
    assert list(found) == ["check", "failed"] and found["check"] == ["verdict check: 2 of 5 tilts are left out"]
    assert "does not fit" in table(summary) and "does not fit &lt;b&gt;" in page(summary, "today")


def test_the_page(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "align", ("--fast",))
    batch.save()
    names = [f"ts{k}" for k in range(12)]
    batch.add([Series(name, f"/raw/{name}.mrc") for name in names])
    for k, name in enumerate(names[:10]):
        measured = {"residual_px": 0.5 + 0.01 * (k % 3), "axis_deg": 85.0, "thickness_nm": 900.0 if k == 4 else 150.0}
        record = {"attempts": 1, "message": "", "seconds": 3.0, "measured": measured, "tail": []}
        batch.settle(name, DONE, record)
    failed = {"attempts": 1, "seconds": 1.0, "measured": {}, "message": "<script>alert(1)</script>", "tail": ["a & b"]}
    batch.settle("ts10", FAILED, failed)
    summary = summarise(batch)
    assert summary.line() == "10 of 12 done, 1 failed, 1 waiting"
    assert list(summary.standing_out()) == ["ts4"] and "900" in summary.standing_out()["ts4"][0]
    checker = Checker()
    text = page(summary, "today")
    checker.feed(text)
    assert checker.open == [] and checker.loaded == [] and "http" not in text
    assert "<script>alert" not in text and "<script>alert(1)</script>" in checker.text
    assert checker.rows == 1 + 12 + 1 and text.count("<svg") == 3 and "a & b" in checker.text


# --- SLURM's template ----------------------------------------------------------------------------------------------


def test_template(tmp_path: Path, inr: Inr) -> None:
    path = tmp_path / "site.sh"
    path.write_text(inr("batch", "template").output)
    assert path.read_text() == TEMPLATE
    parameters = read_template(path)
    assert parameters["time"] == 240 and parameters["array_parallelism"] == 16
    assert parameters["additional_parameters"] == {"requeue": True, "cpus-per-task": "8", "mem": "16G"}
    path.write_text("#!/bin/sh\n#SBATCH --time=1-2:30 --exclusive # all of it\nmodule load cuda\n")
    parameters = read_template(path)
    assert parameters["time"] == 1440 + 150 and parameters["additional_parameters"]["exclusive"] is True
    assert parameters["setup"][-1] == "module load cuda"
    for line in ("--output=x", "-p gpu", "--time=long", "--array=1-9", "--comment='ours"):
        path.write_text(f"#SBATCH {line}\n")
        with pytest.raises(InputError, match="SBATCH"):
            read_template(path)


@pytest.mark.parametrize(
    ("text", "minutes"), [("30", 30), ("90:30", 91), ("1:00:00", 60), ("2-0", 2880), ("1-1:01:01", 1502), ("0:10", 1)]
)
def test_times_of_slurm(tmp_path: Path, text: str, minutes: int) -> None:
    (tmp_path / "t.sh").write_text(f"#SBATCH --time={text}\n")
    assert read_template(tmp_path / "t.sh")["time"] == minutes
