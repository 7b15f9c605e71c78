"""A disk that is full: a sentence that says so, nothing half-written, and what was there before is there still."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inrtomo.batch.state import DONE, Batch
from tests.running import ROOT, Inr, assert_refused, run_command

pytestmark = pytest.mark.slow
DISK_KB = 2048


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two MB, or a skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root on Linux, to mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "inrtomo-test", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave_kB: int) -> Path:
    """Leave so much room, in pages of 4 kB."""
    (disk / "filling").unlink(missing_ok=True)
    free = os.statvfs(disk)
    (disk / "filling").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 1024 * leave_kB)))
    return disk / "filling"


@pytest.fixture(scope="session")
def aligned(tiny_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aligned") / "ali"
    args = (tiny_series / "ts.mrc", "--tilt-axis", 0, "--fast", "-o", out)
    assert run_command("align", *args).exit_code == 0
    return out


Command = Callable[[Path, Path, Path], tuple[Any, ...]]
COMMANDS: dict[str, tuple[int, Command]] = {
    "align": (200, lambda s, a, to: ("align", s / "ts.mrc", "--tilt-axis", 0, "--fast", "-o", to)),
    "export": (400, lambda s, a, to: ("export", s / "ts.mrc", a, "-o", to / "ts_ali.mrc")),
    "recon": (400, lambda s, a, to: ("recon", s / "ts.mrc", a, "-o", to / "ts_rec.mrc", "--method", "fbp")),
    "sirt": (60, lambda s, a, to: ("recon", s / "ts.mrc", a, "-o", to / "r.mrc", "--method", "sirt", "--bin", 2)),
    "fsc": (20, lambda s, a, to: ("fsc", s / "ts_odd.mrc", s / "ts_even.mrc", "-o", to / "fsc")),
    "compare": (20, lambda s, a, to: ("compare", a, s / "ts_truth.json", "-o", to / "cmp")),
    "report": (100, lambda s, a, to: ("report", a, "-o", to / "ts")),
    "simulate": (100, lambda s, a, to: ("simulate", "--size", 48, 48, "--tilt-step", 12, "-o", to)),
    "imod": (12, lambda s, a, to: ("convert", a, to / "imod", "--to", "imod")),
    "relion5": (8, lambda s, a, to: ("convert", a, to / "relion", "--to", "relion5", "--stack", s / "ts.mrc")),
    "warp": (4, lambda s, a, to: ("convert", a, to / "ts.xml", "--stack", s / "ts.mrc")),
}
"""How much room (kB) to leave beside none: the first of several files may fit; and the call."""


@pytest.mark.parametrize("room", ["none", "some"])
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(disk: Path, tiny_series: Path, aligned: Path, inr: Inr, name: str, room: str) -> None:
    some_kB, command = COMMANDS[name]
    to = disk / "to"
    to.mkdir()
    filling = fill(disk, some_kB if room == "some" else 0)
    assert_refused(inr(*command(tiny_series, aligned, to)), "full")
    left = [path for path in to.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name.startswith(".")], "temporary files left"
    assert all(path.stat().st_size > 0 for path in left)
    for path in left:
        if path.suffix == ".json":
            json.loads(path.read_text())
    filling.unlink()
    again = inr(*command(tiny_series, aligned, to), "--overwrite")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("name", ["export", "recon", "fsc", "compare", "warp"])
def test_what_was_there_stays(disk: Path, tiny_series: Path, aligned: Path, inr: Inr, name: str) -> None:
    _, command = COMMANDS[name]
    to = disk / "to"
    to.mkdir()
    args = command(tiny_series, aligned, to)
    assert inr(*args).exit_code == 0
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    fill(disk, 0)
    assert_refused(inr(*args, "--overwrite"), "full")
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_batch(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inr: Inr) -> None:
    """Nothing is lost: with room again, the same call goes on."""
    from inrtomo.batch import runner

    monkeypatch.setattr(runner, "CHILD", (ROOT / "tests" / "fake_align.py").read_text(encoding="utf-8"))
    raw, out = tmp_path / "raw", disk / "out"
    raw.mkdir()
    for name in ("a", "b"):
        (raw / f"{name}.mrc").write_text("ok")
    filling = fill(disk, 0)
    assert_refused(inr("batch", "align", raw, "-o", out), "full")
    filling.unlink()
    assert inr("batch", "align", raw / "a.mrc", "-o", out).exit_code == 0
    filling = fill(disk, 0)
    assert_refused(inr("batch", "align", raw, "-o", out), "full")
    assert Batch.open(out).states()["a"] == DONE
    filling.unlink()
    went_on = inr("batch", "align", raw, "-o", out, "--retry")
    assert went_on.exit_code == 0, went_on.output
    assert Batch.open(out).states() == {"a": DONE, "b": DONE}
    assert set(Batch.open(out).series()) == {"a", "b"}
