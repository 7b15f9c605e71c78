"""Starting the engine's programs from a protocol's step, and saying why one failed.

A program runs in its own environment, through the protocol's ``runJob``, so that Scipion's host, queue and stop button
work. What it prints goes to a log of the series: several series run at the same time. A queue does not tell how a job
ended, so a program counts as failed when the file it was to write is not there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Sequence

import pyworkflow.protocol.constants as constants

from . import Plugin

NOT_FOUND = 127
CALL = "> "
"""What a command line begins with in a log."""


class EngineError(Exception):
    """A program of the engine did not do its work; the message is its own sentence."""


def run_program(protocol, program: str, arguments: Sequence[object], wanted: str, log: str) -> None:
    """Run ``program`` in the engine's environment and return when the file ``wanted`` is there.

    Args:
        protocol: whose step this is; its GPU slot and number of threads are passed on.
        arguments: words of the command line.
        wanted: file that a successful run has written.
        log: receives what the program prints; a program more is appended.

    Raises:
        EngineError: with the program's own words.
    """
    words = " ".join(shlex.quote(str(word)) for word in arguments)
    with open(log, "a") as file:
        file.write(f"{CALL}{program} {words}\n")
    before = modified(wanted)
    call = f"{Plugin.getActivation()} && {_settings(protocol)} {program}"
    redirected = f"{words} >> {shlex.quote(log)} 2>&1"
    try:
        protocol.runJob(call, redirected, env=Plugin.getEnviron(), numberOfMpi=1, executable="/bin/bash")
    except subprocess.CalledProcessError as error:
        if error.returncode == NOT_FOUND:
            raise EngineError(f"{program} is not in the engine's environment; install or update it") from None
        raise EngineError(reason(log, program)) from None
    if modified(wanted) is None or (before is not None and modified(wanted) == before and "--overwrite" in arguments):
        raise EngineError(reason(log, program))


def modified(path: str) -> float | None:
    """When a file was written last, or None where there is none."""
    return os.path.getmtime(path) if os.path.exists(path) else None


def reason(log: str, program: str) -> str:
    """The sentence with which a program refused, else the last line of its latest run."""
    with open(log, errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    begun = max(k for k, line in enumerate(lines) if line.startswith(f"{CALL}{program}"))
    lines = lines[begun + 1 :]
    said = [line for line in lines if line.startswith(f"{program}:")]
    if said:
        return said[-1]
    return f"{program}: {lines[-1] if lines else 'ended without a result'} (its log: {log})"


def _settings(protocol) -> str:
    """Variables of one run: its GPUs and its share of the cores."""
    threads = max(1, protocol.getBinThreads())
    settings = [f"OMP_NUM_THREADS={threads}", f"NUMBA_NUM_THREADS={threads}", "PYTHONUNBUFFERED=1"]
    gpus = visible_gpus(protocol)
    if gpus is not None:
        settings.append(f"CUDA_VISIBLE_DEVICES={gpus}")
    return " ".join(settings)


def visible_gpus(protocol) -> str | None:
    """What CUDA_VISIBLE_DEVICES should say: the step's slot of the GPU list, nothing without GPUs.

    None leaves the variable to the queue that will run the step. Where the queue that runs the whole protocol has set
    it already, the GPU list counts within what it allows.
    """
    if not protocol.usesGpu():
        return ""
    if protocol.useQueueForSteps():
        return None
    slot = [gpu for gpu in protocol._stepsExecutor.getGpuList() if gpu != constants.VOID_GPU]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if protocol.useQueue() and allowed:
        names = allowed.split(",")
        return ",".join(names[gpu] for gpu in slot if gpu < len(names))
    return ",".join(map(str, slot))
