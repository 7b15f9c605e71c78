"""Who has which series: claims under competition, claims of the dead, and listings of ten thousand."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from inrtomo.batch import state
from inrtomo.batch.manifest import Series
from inrtomo.batch.state import CLAIMED, DONE, FAILED, INTERRUPTED, STALE_S, Batch
from inrtomo.batch.summary import summarise, write_summary
from inrtomo.errors import InputError

RECORD = {"attempts": 1, "message": "", "seconds": 1.0, "measured": {"residual_px": 0.4}, "tail": []}
WORKERS = 4
fork = multiprocessing.get_context("fork")


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    made = Batch(tmp_path, "align")
    made.save()
    return made


def in_processes(task: Callable[..., None], *args: Any, count: int = WORKERS) -> None:
    """Run a task so many times at once, and wait."""
    processes = [fork.Process(target=task, args=args) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def abandon(batch: Batch, names: list[str]) -> None:
    for name in names:
        assert batch.claim(name)


def test_one_at_a_time(batch: Batch) -> None:
    first = batch.claim("ts")
    assert first and first.attempt == 1
    assert batch.claim("ts") is None and batch.states() == {"ts": CLAIMED}
    assert first.beat()
    first.release()
    assert batch.states() == {}
    assert batch.claim("ts")


def test_what_is_settled_is_not_claimed_again(batch: Batch) -> None:
    for name, end in (("a", DONE), ("b", FAILED)):
        claim = batch.claim(name)
        assert claim
        batch.settle(name, end, RECORD)
        claim.release()
        assert batch.claim(name) is None
    assert batch.states() == {"a": DONE, "b": FAILED}
    assert batch.retry(["a", "b", "c"]) == ["b"] and batch.retry(["b"]) == []
    assert batch.states() == {"a": DONE, "b": INTERRUPTED}
    again = batch.claim("b")
    assert again and again.attempt == 2
    batch.settle("b", DONE, RECORD)
    assert sorted(p.name for p in batch.state.iterdir() if p.suffix != ".json") == ["a.done", "b.claimed", "b.done"]


def claim_all(batch: Batch, names: list[str], how: str, together: Barrier) -> None:
    """Work like an impatient worker: claim, note it, settle, let go; or keep what was claimed until all are through."""
    together.wait(60)
    kept = []
    for name in names:
        claim = batch.claim(name)
        if claim is None:
            continue
        with open(batch.path / "claimed", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        if how == "keep":
            kept.append(claim)
        else:
            batch.settle(name, DONE, RECORD)
            claim.release()
    together.wait(60)


@pytest.mark.parametrize("how", ["keep", "finish"])
@pytest.mark.parametrize("abandoned", [False, True])
def test_many_workers_never_share_a_series(batch: Batch, how: str, abandoned: bool) -> None:
    names = [f"ts{k:03d}" for k in range(60)]
    if abandoned:  # twice over: a worker that died after it took over from a dead one
        in_processes(abandon, batch, names, count=1)
        in_processes(abandon, batch, names[::2], count=1)
        assert all(batch.is_lost(name) for name in names)
    in_processes(claim_all, batch, names, how, fork.Barrier(WORKERS))
    times = Counter((batch.path / "claimed").read_text().split())
    assert times == dict.fromkeys(names, 1)


def test_attempts_of_the_dead_count(batch: Batch) -> None:
    in_processes(abandon, batch, ["ts"], count=1)
    in_processes(abandon, batch, ["ts"], count=1)
    claim = batch.claim("ts")
    assert claim and claim.attempt == 3
    claim.release()
    assert list(batch.state.glob("ts*")) == []


def test_who_comes_too_late_lets_go(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker finds a claim of the dead, and before it acts another has taken over, finished and let go."""
    in_processes(abandon, batch, ["ts"], count=1)
    create = state._create

    def slow(path: Path, values: dict[str, Any]) -> bool:
        monkeypatch.setattr(state, "_create", create)
        other = batch.claim("ts")
        assert other
        other.release()
        assert batch.claim("ts")  # somebody new, who lives
        return create(path, values)

    monkeypatch.setattr(state, "_create", slow)
    assert batch.claim("ts") is None
    assert [p.name for p in batch.state.glob("ts*")] == ["ts.claimed"]


def test_silence_on_another_machine(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(state, "_place", lambda: "another machine")
        theirs = batch.claim("ts")
    assert theirs
    path = batch.state / "ts.claimed"
    assert not batch.is_lost("ts") and batch.claim("ts") is None
    os.utime(path, (time.time() - 0.9 * STALE_S,) * 2)
    assert batch.claim("ts") is None
    os.utime(path, (time.time() - 1.1 * STALE_S,) * 2)
    assert batch.is_lost("ts")
    ours = batch.claim("ts")
    assert ours and ours.beat()
    assert not theirs.beat(), "who comes back is to find that the series is somebody else's now"


def test_a_claim_without_a_word_in_it(batch: Batch) -> None:
    """Its maker was killed between creating and writing it: nobody's, once it is old."""
    path = batch.state / "ts.claimed"
    path.touch()
    assert batch.claim("ts") is None
    os.utime(path, (time.time() - 2 * STALE_S,) * 2)
    assert batch.claim("ts")


def test_a_task_that_slurm_started_again(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the same task claimed before, on whatever node, is its own."""
    for key, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(key, value)
    with monkeypatch.context() as other_node:
        other_node.setattr(state, "_place", lambda: "node 1")
        other_node.setattr(state.os, "getpid", lambda: 4)
        assert batch.claim("ts")
    assert batch.claim("ts")


def test_a_folder_is_of_one_command(batch: Batch) -> None:
    with pytest.raises(InputError, match="inr-align"):
        Batch(batch.path, "recon").save()
    with pytest.raises(InputError, match="no batch"):
        Batch.open(batch.path / "elsewhere")
    assert Batch.open(batch.path) == batch


def test_ten_thousand_series(batch: Batch) -> None:
    """Everything that happens before the first series starts is a matter of a second (of this process's own time)."""
    names = [f"Position_{k:05d}" for k in range(10_000)]
    start = time.process_time()
    batch.add([Series(name, f"/raw/{name}.mrc") for name in names])
    assert list(batch.series()) == names
    noted = time.process_time()
    for name in names[:9000]:
        (batch.state / f"{name}.done").write_text('{"attempts": 1, "message": "", "seconds": 1.0, "measured": '
                                                  '{"residual_px": 0.4, "axis_deg": 85.0}, "tail": []}')  # fmt: skip
    made = time.process_time()
    states = batch.states()
    listed = time.process_time()
    assert len(states) == 9000 and set(states.values()) == {DONE}
    claim = batch.claim(names[-1])
    claimed = time.process_time()
    summary = write_summary(batch)
    written = time.process_time()
    assert claim and summary.count[DONE] == 9000 and len(summary.rows) == 10_000
    seconds = {"note": noted - start, "list": listed - made, "claim": claimed - listed, "summary": written - claimed}
    assert seconds["note"] < 1 and seconds["list"] < 0.2 and seconds["claim"] < 0.05 and seconds["summary"] < 5, seconds


def test_what_a_batch_says_of_claims(batch: Batch) -> None:
    batch.add([Series("a", "/a.mrc"), Series("b", "/b.mrc"), Series("c", "/c.mrc")])
    in_processes(abandon, batch, ["a"], count=1)
    assert batch.claim("b")
    rows = summarise(batch).rows
    assert [(row.name, row.state) for row in rows] == [("a", CLAIMED), ("b", CLAIMED), ("c", "waiting")]
    assert "gone" in rows[0].message and rows[1].message == "running"
