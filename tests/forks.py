"""Commands run again and again, each ended after a time without a warning: by forking a process that has them loaded.

The end comes by the default action of a timer's signal, which no command can catch: as by ``kill -9``, but at a moment
counted in the command's own time on the processor (``PROF``), however busy the machine is, or by the clock (``REAL``).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.running import ROOT

SERVER = """
import importlib, json, os, signal, sys
name, timer, log, preparation, *modules = sys.argv[1:]
main = importlib.import_module(f"inrtomo.commands.{name}").main
for module in modules:
    importlib.import_module(module)
exec(preparation)
for line in sys.stdin:
    arguments, after = json.loads(line)
    child = os.fork()
    if not child:
        said = os.open(log, os.O_WRONLY | os.O_APPEND)
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), said, said)):
            os.dup2(file, number)
        signal.setitimer(getattr(signal, f"ITIMER_{timer}"), after)
        main(arguments)
    _, status, used = os.wait4(child, 0)
    print(json.dumps([status, used.ru_utime + used.ru_stime]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a run of a command ended: killed, or with an exit status; and its time on the processor, s."""

    killed: bool
    exit_code: int | None
    seconds: float


class Forks:
    """``with Forks("align", "PROF", log, modules=[...]) as run: run(arguments, after_s)``.

    Args:
        name: of the command; timer: ``"PROF"`` or ``"REAL"``; log: file for what the runs say.
        modules: to be loaded before, beside the command itself.
        preparation: Python code run once before the first run.
    """

    def __init__(
        self, name: str, timer: str, log: Path, modules: Sequence[str] = (), preparation: str = "pass"
    ) -> None:
        self.log = log
        log.touch()
        self._signal = {"PROF": signal.SIGPROF, "REAL": signal.SIGALRM}[timer]
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER, name, timer, str(log), preparation, *modules],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"},
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __call__(self, arguments: Sequence[object], after_s: float = 0.0) -> Ended:
        """Run the command with these arguments; ended after so long (0: never)."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps([[str(word) for word in arguments], after_s]) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, self.said()
        status, seconds = json.loads(answer)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == self._signal, f"ended by signal {os.WTERMSIG(status)}: {self.said()}"
            return Ended(True, None, seconds)
        return Ended(False, os.WEXITSTATUS(status), seconds)

    def said(self) -> str:
        """The end of what the runs said."""
        return self.log.read_text(errors="replace")[-3000:]

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._server.kill()
        self._server.communicate()
