"""Running series here: claim one, start its command, watch it, write what became of it."""

from __future__ import annotations

import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import inrtomo
from inrtomo.batch.manifest import Series
from inrtomo.batch.state import DONE, FAILED, HEARTBEAT_S, INTERRUPTED, Batch, Claim
from inrtomo.batch.steps import STEPS, command_line
from inrtomo.errors import InputError

POLL_S = 0.1
ELSEWHERE_S = 10.0
"""Between looks at series that other workers have."""
GRACE_S = 45.0
"""For a command to write its checkpoint after Ctrl-C; then it is killed."""
CORES_A_WORKER = 4
TAIL_BYTES = 4096
TAIL_LINES = 15
CHILD = f"""import sys
sys.path = [folder for folder in sys.path if folder] + [{str(Path(inrtomo.__file__).parent.parent)!r}]
from inrtomo.batch.child import main
main()"""
"""Not -m: Python would look for modules in the working directory first."""
ENDED_BY = {2: "bad input", 130: "interrupted (SIGINT)", 143: "terminated (SIGTERM)"}
Say = Callable[[str, dict[str, Any]], None]
"""``say(name, record)`` is told of every series that ends."""


class Attempt:
    """One series being run: the claim on it and its process."""

    def __init__(self, batch: Batch, series: Series, claim: Claim, environment: Mapping[str, str]) -> None:
        self.batch, self.series, self.claim = batch, series, claim
        self.step, self.out = STEPS[batch.step], batch.folder(series.name)
        self.started = time.time()
        self.line: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.problem = ""
        self.log: BinaryIO = open(batch.log(series.name), "ab")
        try:
            self._start(environment)
        except (InputError, OSError) as error:
            self.problem = f"{self.step.program}: {error}"
            self.log.write(f"{self.problem}\n".encode())

    def _start(self, environment: Mapping[str, str]) -> None:
        self.line = command_line(self.step, self.series, self.batch.source, self.out, self.batch.options)
        self.out.mkdir(exist_ok=True)
        for left_over in self.out.glob(".*.part"):  # by a command that was killed; this one is the only one here
            if left_over.is_file():
                left_over.unlink(missing_ok=True)
        when = datetime.fromtimestamp(self.started).astimezone().isoformat(timespec="seconds")
        said = shlex.join([self.step.program, *self.line])
        self.log.write(f"--- attempt {self.claim.attempt}, {when}, {socket.gethostname()}\n{said}\n".encode())
        self.log.flush()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(os.getpid()), self.step.name, *self.line],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, cwd=self.batch.cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, start_new_session=True,
        )  # fmt: skip

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def interrupt(self) -> None:
        """As by Ctrl-C: the command cleans up and leaves what it can go on from."""
        self._signal(signal.SIGINT)

    def wait(self, deadline: float) -> None:
        """Until the process ended, killing it when the deadline (monotonic) is over."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def finish(self, stopped: bool = False) -> dict[str, Any]:
        """Write what became of the series and let go of it; ``stopped``: it was we who ended it."""
        self.log.close()
        status = None if self.process is None else self.process.returncode
        measured: Mapping[str, Any] = {}
        message = self.problem
        if status == 0:
            state = DONE
            try:
                measured = self.step.measured(self.series, self.out)
            except (OSError, ValueError, KeyError, TypeError) as error:
                state, message = FAILED, f"{self.step.program} ended well, but its results cannot be read: {error!r}"
        elif stopped:
            state, message = INTERRUPTED, "interrupted; goes on when inr-batch is called again"
        else:
            state, message = FAILED, message or what_went_wrong(self.step.program, status, self._tail())
        record = {
            "name": self.series.name, "stack": self.series.stack, "state": state, "message": message,
            "exit_status": status, "attempts": self.claim.attempt, "started": self.started, "ended": time.time(),
            "seconds": time.time() - self.started, "host": socket.gethostname(),
            "command": shlex.join([self.step.program, *self.line]), "measured": dict(measured),
            "tail": [] if state == DONE else self._tail(),
        }  # fmt: skip
        self.batch.settle(self.series.name, state, record)
        self.claim.release()
        return record

    def _tail(self) -> list[str]:
        with open(self.batch.log(self.series.name), "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]


def what_went_wrong(program: str, status: int | None, tail: Sequence[str]) -> str:
    """One sentence: the command's own, or what its exit status tells."""
    sentence = next((line for line in reversed(tail) if line.startswith(f"{program}: ")), None)
    if status == 2 and sentence:
        return sentence.removeprefix(f"{program}: ")
    if status is not None and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}" + ("; was there enough memory?" if -status == signal.SIGKILL else "")
    what = ENDED_BY.get(status or 0, f"exit status {status}")
    last = next((line for line in reversed(tail) if line.strip()), "nothing in its log")
    return f"{what}: {(sentence or last).removeprefix(f'{program}: ').strip()}"


class Runner:
    """Series one after the other, as many at a time as there are places.

    ``places`` are what is added to the environment of a command: its GPU, its share of the cores. The end waits so long
    (s) for series that other workers have, to take over those of a worker that dies.
    """

    def __init__(
        self, batch: Batch, places: Sequence[Mapping[str, str]], say: Say, patience_s: float = math.inf
    ) -> None:
        self.batch, self.say, self.patience_s = batch, say, patience_s
        self.waiting: deque[Series] = deque()
        self.elsewhere: list[Series] = []
        self._free = list(places)
        self._running: list[tuple[Attempt, Mapping[str, str]]] = []
        self._beaten = self._looked = self._busy = time.monotonic()

    def add(self, series: Iterable[Series]) -> None:
        self.waiting.extend(series)

    def work(self, more: Callable[[], Iterable[Series] | None] = lambda: None) -> None:
        """Until nothing is left and ``more()``, asked again and again for further series, answers None.

        Whatever ends it before (Ctrl-C, an error) stops the commands so that they can be gone on with.
        """
        try:
            while True:
                further = more()
                self.add(further or ())
                self._look_elsewhere()
                self._start()
                self._check()
                if self._running:
                    self._busy = time.monotonic()
                waits = self.elsewhere and time.monotonic() - self._busy < self.patience_s
                if not (self._running or self.waiting or waits) and further is None:
                    return
                time.sleep(POLL_S)
        finally:
            self.stop()

    def stop(self) -> None:
        """Interrupt everything that runs, wait for it, and leave it to be gone on with."""
        running, self._running = self._running, []
        for attempt, _ in running:
            attempt.interrupt()
        deadline = time.monotonic() + GRACE_S
        try:
            for attempt, _ in running:
                attempt.wait(deadline)
        finally:  # a second Ctrl-C: no more waiting
            for attempt, _ in running:
                attempt.wait(0.0)
                attempt.finish(stopped=True)

    def _start(self) -> None:
        while self._free and self.waiting:
            series = self.waiting.popleft()
            claim = self.batch.claim(series.name)
            if claim is None:
                if not self.batch.is_settled(series.name):
                    self.elsewhere.append(series)
                continue
            try:
                attempt = Attempt(self.batch, series, claim, self._free[-1])
            except BaseException:
                claim.release()
                raise
            self._running.append((attempt, self._free.pop()))

    def _check(self) -> None:
        now = time.monotonic()
        beat = now - self._beaten > HEARTBEAT_S
        if beat:
            self._beaten = now
        for attempt, place in list(self._running):
            if attempt.has_ended():
                self._running.remove((attempt, place))
                self._free.append(place)
                record = attempt.finish()
                self.say(attempt.series.name, record)
            elif beat and not attempt.claim.beat():
                # we were stopped or cut off for so long that somebody else has the series now
                self._running.remove((attempt, place))
                self._free.append(place)
                attempt.wait(0.0)
                attempt.log.close()

    def _look_elsewhere(self) -> None:
        if self.elsewhere and time.monotonic() - self._looked > ELSEWHERE_S:
            self._looked = time.monotonic()
            self.waiting.extend(self.elsewhere)
            self.elsewhere = []


def places(workers: int | None) -> list[dict[str, str]]:
    """One worker a GPU, or else one for every four cores; the cores are shared out."""
    gpus, cores = visible_gpus(), usable_cores()
    n = workers or len(gpus) or max(1, cores // CORES_A_WORKER)
    threads = str(max(1, cores // n))
    place = {name: threads for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
    return [place | ({"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} if gpus else {}) for k in range(n)]


def visible_gpus() -> list[str]:
    """NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(k) for k, line in enumerate(ln for ln in listed.splitlines() if ln.startswith("GPU "))]


def usable_cores() -> int:
    """Cores this process may use: SLURM's share, or what the system lets it run on."""
    told = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if told.isdecimal():
        return int(told)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
