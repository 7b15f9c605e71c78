"""How far a batch is, as files that any number of processes on any number of machines share.

In ``DIR/state`` a series NAME has, at any time, at most

    NAME.claimed        somebody works on it: who, and since when; its time of change is their last sign of life
    NAME.done           its record (JSON): a complete result
    NAME.failed         its record: the result that cannot be had, and why; only --retry touches it again
    NAME.interrupted    its record: stopped on the way, or to be tried again; goes on where it was
    NAME.log            what the command said, attempt after attempt

so that one listing of the folder tells everything. A claim is made by creating a file that must not exist (O_EXCL).
The claim of somebody who is gone is taken over by creating ``NAME.claimed-TOKEN``, TOKEN being that of the claim taken
over: only one can. Who finds then that the first claim is no longer the one that was looked at came too late, and lets
go.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inrtomo.batch.manifest import STATE, Series, check_name
from inrtomo.errors import InputError
from inrtomo.io.files import make_folder, put_in_place, sync, write_text

DONE, FAILED, INTERRUPTED, CLAIMED, WAITING = "done", "failed", "interrupted", "claimed", "waiting"
RECORDS = (DONE, FAILED, INTERRUPTED)
ORDER = (WAITING, INTERRUPTED, CLAIMED, FAILED, DONE)
"""What a series is that shows signs of several: the last of these."""
HEARTBEAT_S = 20.0
STALE_S = 300.0
"""Without a sign of life for so long, somebody on another machine is gone."""
UNWRITTEN = "00"
"""Token of a claim whose maker went between creating and writing it."""


@dataclass(frozen=True)
class Batch:
    """What a batch does: one command with its options to every series, started from one working directory."""

    path: Path
    step: str
    options: tuple[str, ...] = ()
    source: Path | None = None
    cwd: Path = Path("/")

    @property
    def state(self) -> Path:
        return self.path / STATE

    def folder(self, name: str) -> Path:
        """Where the results of a series go."""
        return self.path / name

    def log(self, name: str) -> Path:
        return self.state / f"{name}.log"

    # --- what is to be done ----------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path) -> Batch:
        """The batch of a folder, as it was last started."""
        try:
            values = json.loads((path / STATE / "batch.json").read_text(encoding="utf-8"))
            source, command, options = values["from"], str(values["command"]), tuple(map(str, values["options"]))
            return cls(path.absolute(), command, options, Path(source) if source else None, Path(values["cwd"]))
        except FileNotFoundError:
            raise InputError(f"{path}: no batch was started here; give the -o of an inr-batch run") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged = path / STATE / "batch.json"
            raise InputError(f"{damaged}: is damaged; remove it and give command, series and options again") from None

    def save(self) -> None:
        """Say in the folder what is done here; InputError where it is something else."""
        make_folder(self.state)
        if (self.state / "batch.json").exists() and (other := Batch.open(self.path)).step != self.step:
            raise InputError(f"{self.path}: holds the results of inr-{other.step}; give another folder")
        values = {
            "command": self.step, "options": list(self.options), "from": self.source and str(self.source),
            "cwd": str(self.cwd),
        }  # fmt: skip
        write_text(self.state / "batch.json", json.dumps(values, indent=1), overwrite=True)

    def series(self) -> dict[str, Series]:
        """Every series the batch was ever given, by name; a line each, so that several processes can add to it."""
        try:
            lines = (self.state / "series.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        rows = [row for row in map(_series_of, lines) if row is not None]
        for row in rows:
            check_name(row.name, self.state / "series.jsonl")
        return {row.name: row for row in rows}

    def add(self, series: Iterable[Series]) -> None:
        """Note series that are not known yet, or are known with other options."""
        known = self.series()
        # the line break comes first: the last line may be what a full disk left of one
        text = "".join("\n" + json.dumps(one.as_dict()) for one in series if known.get(one.name) != one)
        with open(self.state / "series.jsonl", "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            sync(self.state / "series.jsonl")
        sync(self.state)

    # --- how far it is ---------------------------------------------------------------------------------------------

    def states(self) -> dict[str, str]:
        """State of every series that has one: one listing of the folder, no file opened."""
        found: dict[str, str] = {}
        for entry in os.scandir(self.state):
            name, _, ending = entry.name.rpartition(".")
            state = ending.partition("-")[0]
            if name and state in ORDER and ORDER.index(state) > ORDER.index(found.get(name, WAITING)):
                found[name] = state
        return found

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a series, or None where there is none yet; what a power cut left of one is one that says so."""
        for ending in RECORDS:
            try:
                text = (self.state / f"{name}.{ending}").read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue
            return _record_of(text) | {"state": ending}
        return None

    def is_settled(self, name: str) -> bool:
        """Done, or failed."""
        return (self.state / f"{name}.{DONE}").exists() or (self.state / f"{name}.{FAILED}").exists()

    def settle(self, name: str, state: str, record: Mapping[str, Any]) -> None:
        """Write the record of a series; for who holds its claim."""
        text = json.dumps(dict(record), indent=1)
        write_text(self.state / f"{name}.{state}", text, overwrite=True)
        for other in RECORDS:
            if other != state:
                (self.state / f"{name}.{other}").unlink(missing_ok=True)

    def retry(self, names: Iterable[str]) -> list[str]:
        """Make failed series ones to go on with; returns them. A rename: of two processes one does it."""
        again = []
        for name in names:
            try:
                put_in_place(self.state / f"{name}.{FAILED}", self.state / f"{name}.{INTERRUPTED}")
            except FileNotFoundError:
                continue
            again.append(name)
        return again

    # --- who has what ----------------------------------------------------------------------------------------------

    def claim(self, name: str) -> Claim | None:
        """Take a series that is neither done nor failed; None where somebody has it or it needs no more work."""
        if self.is_settled(name):
            return None
        record = self.record(name)
        claim = _make_claim(self.state, name, int(record["attempts"]) if record else 0)
        if claim is not None and self.is_settled(name):  # by somebody who was faster from beginning to end
            claim.release()
            return None
        return claim

    def is_lost(self, name: str) -> bool:
        """Whether a series is claimed by somebody who is gone."""
        holders = _chain(self.state, name)
        return bool(holders) and _is_gone(*holders[-1])


class Claim:
    """A series taken; keep it alive with `beat`."""

    def __init__(self, chain: list[Path], token: str, attempt: int) -> None:
        self.attempt = attempt
        self._chain, self._token = chain, token

    def beat(self) -> bool:
        """Show that we are here; False where the claim was taken over meanwhile, and the series is no longer ours."""
        try:
            os.utime(self._chain[-1])
        except FileNotFoundError:
            return False
        return not _successor(self._chain[0], self._token).exists()

    def release(self) -> None:
        """Let go. The first claim of the chain goes first: takers-over look at that one last."""
        for path in self._chain:
            path.unlink(missing_ok=True)


def _record_of(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
        kinds = ((record["measured"], dict), (record["message"], str), (record["tail"], list))
        if all(isinstance(value, kind) for value, kind in kinds):
            return dict(record) | {"attempts": int(record["attempts"]), "seconds": float(record["seconds"])}
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        pass
    return {"attempts": 1, "message": "its record is damaged", "seconds": 0.0, "measured": {}, "tail": []}


def _series_of(line: str) -> Series | None:
    try:
        return Series.from_dict(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _make_claim(folder: Path, name: str, attempts: int) -> Claim | None:
    holders = _chain(folder, name)
    if holders and not _is_gone(*holders[-1]):
        return None
    root, token = folder / f"{name}.claimed", secrets.token_hex(8)
    path = root if not holders else _successor(root, holders[-1][1]["token"])
    attempt = 1 + max([attempts, *(int(holder.get("attempt", 0)) for _, holder in holders)])
    if not _create(path, {**_identity(), "token": token, "attempt": attempt}):
        return None
    if holders and _read(root)["token"] != holders[0][1]["token"]:
        path.unlink(missing_ok=True)
        return None
    return Claim([*(p for p, _ in holders), path], token, attempt)


def _chain(folder: Path, name: str) -> list[tuple[Path, dict[str, Any]]]:
    """The claim of a series, and those who took it over, one after the other; the last one holds it."""
    root = folder / f"{name}.claimed"
    path, holders = root, []
    while path.exists():
        holder = _read(path)
        holders.append((path, holder))
        path = _successor(root, holder["token"])
    return holders


def _successor(root: Path, token: Any) -> Path:
    return root.with_name(f"{root.name}-{token}")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) and "token" in values else {"token": UNWRITTEN}
    except (OSError, ValueError):
        return {"token": UNWRITTEN}


def _create(path: Path, values: Mapping[str, Any]) -> bool:
    """Write a file that must not exist; False where it does."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)))
            file.flush()
            sync(path)
    except FileExistsError:
        return False
    sync(path.parent)
    return True


def _is_gone(path: Path, holder: Mapping[str, Any]) -> bool:
    """Whether the holder of a claim is no longer there."""
    me = _identity()
    if me["job"] and holder.get("job") == me["job"]:
        return holder.get("pid") != me["pid"]  # SLURM started this job anew: the one before has ended
    if holder.get("place") == me["place"]:
        return _started(int(holder["pid"])) != holder["began"]
    try:
        return _clock(path.parent) - path.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False


def _identity() -> dict[str, Any]:
    """This process, and the task that submitit runs in it: of one task there is one process at a time."""
    job = ""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        job = "_".join(os.environ.get(f"SLURM_{key}", "") for key in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    pid = os.getpid()
    return {"host": socket.gethostname(), "place": _place(), "pid": pid, "began": _started(pid), "job": job}


@cache
def _place() -> str:
    """Where process numbers mean the same: this boot of this machine, this name space of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine was started (numbers are used again), or None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _clock(folder: Path) -> float:
    """The time by the clock that stamps the files, which may be a file server's."""
    probe = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)
