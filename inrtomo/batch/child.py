"""What a worker starts, with arguments PARENT NAME ARGS…: runs ``inr-NAME ARGS``, and goes when the parent goes.

A worker that is killed cannot stop its command, and a command that nobody watches would write into a folder that the
next worker takes over.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def prepare(parent: int) -> None:
    """End this process at once when its parent, that process, ends; stop for it at a checkpoint, and for it alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("who started this is gone")
    # ignored in whatever a shell script runs in the background, and in what that starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # SLURM tells every process of a task that its time is nearly over; the worker stops the command in its own way
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def main() -> None:
    prepare(int(sys.argv[1]))
    name = sys.argv[2]
    sys.argv = [f"inr-{name}", *sys.argv[3:]]
    try:
        command = importlib.import_module(f"inrtomo.commands.{name}").main
    except KeyboardInterrupt:  # later it is the command's own matter
        sys.exit(f"inr-{name}: interrupted")
    command()
