"""A SLURM of one node on this machine, from Debian's packages, for as long as a test needs it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
PATIENCE_S = 120.0


@contextmanager
def slurm_here(folder: Path) -> Iterator[dict[str, str]]:
    """Start it, all its files in ``folder``; yields the environment to submit from. Skips where it cannot."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to start a SLURM")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if not all(shutil.which(program, path=path) for program in PROGRAMS):
        _install()
    cores, host = os.cpu_count() or 1, socket.gethostname().partition(".")[0]
    ports = [_free_port() for _ in range(2)]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
        f"SlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        # credentials that are soon old: a requeued job waits until they are, 120 s by default
        "AuthType=auth/munge\nAuthInfo=cred_expire=5\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n"
        "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\nMpiDefault=none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\nSchedulerParameters="
        "sched_interval=2,batch_sched_delay=0\nKillWait=10\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
        f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd.log\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN\n"
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        if not Path("/run/munge/munge.socket.2").exists():
            run = Path("/run/munge")
            run.mkdir(mode=0o755, exist_ok=True)
            shutil.chown(run, "munge", "munge")
            _start(stack, environment, "runuser", "-u", "munge", "--", "munged", "--foreground")
            _until(lambda: Path("/run/munge/munge.socket.2").exists(), "munged")
        _start(stack, environment, "slurmctld", "-D")
        _start(stack, environment, "slurmd", "-D")
        _until(lambda: "idle" in _says(environment, "sinfo", "-h", "-o", "%T"), "slurm")
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=60)


def _install() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no SLURM here, and no apt-get to install it with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    for command in (install, ["apt-get", "update"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if command is install and done.returncode == 0:
            return
    pytest.skip(f"apt-get could not install SLURM: {done.stderr.strip().splitlines()[-1:]}")


def _start(stack: ExitStack, environment: dict[str, str], *command: str) -> None:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _says(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not start"
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
