"""Run a command and know its own time and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True)
class Measured:
    """How a command ended: wall and processor time, highest resident memory of its processes, its last words."""

    status: int
    wall_s: float
    cpu_s: float
    peak_MB: float
    said: str


def run_measured(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Measured:
    """Run a command in ``folder``, its output appended to ``log``.

    Memory is the sum over the process and its descendants of what Linux calls VmHWM, polled: a child's ``ru_maxrss``
    starts at what its parent had when it forked, so it would tell the benchmark's size instead. 0 elsewhere.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        output.write(f"$ {' '.join(map(str, command))}\n".encode())
        output.flush()
        start_of_output = output.tell()
        start, spent = time.monotonic(), _cpu_of_children_s()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        peaks: dict[int, float] = {}
        try:
            while process.poll() is None:
                for pid in _family(process.pid):
                    peaks[pid] = max(peaks.get(pid, 0.0), _high_water_MB(pid))
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        wall, cpu = time.monotonic() - start, _cpu_of_children_s() - spent
    with open(log, "rb") as written:
        written.seek(start_of_output)
        said = written.read().decode(errors="replace")
    return Measured(process.returncode, wall, cpu, sum(peaks.values()), said[-2000:])


def _cpu_of_children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    """A process and its descendants, as far as they can be seen."""
    family = [pid]
    for parent in family:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return family


def _high_water_MB(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
