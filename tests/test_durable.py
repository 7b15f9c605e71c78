"""What has its name is on the disk: files before they are renamed, names before the call returns."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from inrtomo.align.checkpoint import Checkpoint
from inrtomo.align.placed_field import PlacedField
from inrtomo.batch.manifest import Series
from inrtomo.batch.state import DONE, FAILED, Batch
from inrtomo.commands.align import _Outputs
from inrtomo.fields import make_field
from inrtomo.io.files import atomic_path, put_in_place, write_text
from inrtomo.io.mrc import write_stack
from inrtomo.report.figures import save

Events = list[tuple[str, str]]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What is asked of the disk, in order: ``("sync", path)`` and ``("rename", "made -> path")``."""
    seen: Events = []
    sync, replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def renamed(made: str | Path, path: str | Path) -> None:
        seen.append(("rename", f"{made} -> {path}"))
        replace(made, path)

    def not_this(*args: object) -> None:
        raise AssertionError("renamed past put_in_place")

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is synced")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "rename", not_this)
    return seen


def check(events: Events, path: Path) -> None:
    """A path was renamed to once, its contents synced before, its folder after."""
    (at,) = [k for k, (what, words) in enumerate(events) if what == "rename" and words.endswith(f" -> {path}")]
    made = events[at][1].partition(" -> ")[0]
    assert ("sync", made) in events[:at], f"{made} was not synced before its rename"
    assert ("sync", str(path.parent)) in events[at:], f"the folder of {path} was not synced after its rename"


def write_npz(path: Path) -> None:
    field = make_field("voxel", (-4.0, 4.0, -4.0, 4.0, -4.0, 4.0), finest_px=2.0, levels=2, seed=0)
    PlacedField(field, np.eye(3), np.zeros(3), 1).save(path)


WRITERS = {
    "text": lambda path: write_text(path, "x"),
    "stack": lambda path: write_stack(path, np.zeros((2, 4, 4), np.float32), 1.0),
    "checkpoint": lambda path: Checkpoint(path, {}, {}, {"a": np.zeros(3)}).save(),
    "picture.png": lambda path: save(Figure(figsize=(1, 1)), path),
    "field.npz": write_npz,
}


@pytest.mark.parametrize("what", WRITERS)
def test_contents_are_on_the_disk_before_the_name(what: str, events: Events, tmp_path: Path) -> None:
    path = tmp_path / what
    WRITERS[what](path)  # type: ignore[no-untyped-call]
    assert path.stat().st_size > 0
    check(events, path)


def test_samples_of_a_training(events: Events, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from inrtomo.localized.samples import Samples

    Samples(np.zeros((2, 3), np.float16), np.zeros((2, 1), np.float16), np.zeros(2, np.float32), 1.0, 20).save(
        tmp_path / "000000_000001.npz"
    )
    check(events, tmp_path / "000000_000001.npz")


def test_a_folder_is_there_with_all_that_is_in_it(events: Events, tmp_path: Path) -> None:
    made = tmp_path / "making" / "deep"
    made.mkdir(parents=True)
    (made / "a").write_text("1")
    (made.parent / "b").write_text("2")
    put_in_place(tmp_path / "making", tmp_path / "made")
    check(events, tmp_path / "made")
    before = events[: next(k for k, (what, _) in enumerate(events) if what == "rename")]
    for path in (made / "a", made.parent / "b", made):
        assert ("sync", str(path)) in before
    assert (tmp_path / "made" / "deep" / "a").read_text() == "1"


def test_results_of_an_alignment_come_one_by_one_and_the_record_last(events: Events, tmp_path: Path) -> None:
    """The JSON says that a run is complete, so everything else has its name on the disk before."""
    outputs = _Outputs(tmp_path, "ts", recon=False)
    with outputs.staged() as staging:
        for name in ("ts_align.json", "ts.xf", "ts.tlt"):
            (staging / name).write_text(name)
    for name in ("ts_align.json", "ts.xf", "ts.tlt"):
        check(events, tmp_path / name)
    renames = [(k, words) for k, (what, words) in enumerate(events) if what == "rename"]
    assert renames[-1][1].endswith("ts_align.json")
    between = events[renames[-2][0] : renames[-1][0]]
    assert ("sync", str(tmp_path)) in between


def test_claims_and_records_of_a_batch(events: Events, tmp_path: Path) -> None:
    batch = Batch(tmp_path, "align")
    batch.save()
    batch.add([Series("ts", "/ts.mrc")])
    assert ("sync", str(batch.state / "series.jsonl")) in events
    claim = batch.claim("ts")
    assert claim is not None
    at = events.index(("sync", str(batch.state / "ts.claimed")))
    assert ("sync", str(batch.state)) in events[at:]
    batch.settle("ts", FAILED, {"attempts": 1, "message": "", "seconds": 0.0, "measured": {}, "tail": []})
    check(events, batch.state / f"ts.{FAILED}")
    claim.release()
    assert batch.retry(["ts", "other"]) == ["ts"]
    check(events, batch.state / "ts.interrupted")
    batch.settle("ts", DONE, {})
    check(events, batch.state / f"ts.{DONE}")


def test_a_disk_that_does_not_take_it_is_an_error_and_the_old_file_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some file systems (of the network) say only now that they are full."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new", overwrite=True)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_file_systems_that_cannot_wait_lose_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").read_text() == "x"


def test_there_is_one_rename_in_the_code() -> None:
    """Whoever renames elsewhere promises something that is not kept."""
    code = Path(__file__).parents[1] / "inrtomo"
    for path in sorted(code.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path != code / "io" / "files.py":
            assert not any(word in text for word in ("os.replace(", "os.rename(", ".rename(", "shutil.move(")), path
