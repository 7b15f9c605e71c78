"""A SLURM of one node on this machine, from Debian's packages, for as long as a test needs it.

It has its own key, sockets, ports, folders and configuration, so that one that is there is left alone, and its daemons
end with whoever started them.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
SYSTEM_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
PATIENCE_S = 60.0
INSTALLING_S = 300.0
PR_SET_PDEATHSIG = 1
CGROUPS_CAN_BE_DISABLED = (24, 5)
"""The first SLURM that says so in cgroup.conf; those before do without cgroups if no plugin asks for them."""


@contextmanager
def slurm_here() -> Iterator[dict[str, str]]:
    """Start it; yields the environment to submit from. Skips where it cannot be had."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to start a SLURM")
    if not all(shutil.which(program, path=SYSTEM_PATH) for program in PROGRAMS):
        _install()
    with ExitStack() as stack:
        # not the test's own folder: names of sockets have to be short, and munged wants no other to write above them
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True)))
        environment = {**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        _configure(folder, environment)
        options = {"socket": "munge", "key-file": "key", "pid-file": "munged.pid", "seed-file": "seed"}
        options |= {"log-file": "munged.log"}
        munged = [f"--{name}={folder / value}" for name, value in options.items()]
        _start(stack, environment, "munged", "--foreground", "--force", *munged)
        _until(lambda: (folder / "munge").exists(), "munged", folder)
        _start(stack, environment, "slurmctld", "-D")
        _start(stack, environment, "slurmd", "-D")
        _until(lambda: "idle" in _says(environment, "sinfo", "-h", "-o", "%T"), "slurm", folder)
        try:
            yield environment
        finally:
            # steps are children of daemons of their own, which end when their jobs do
            _says(environment, "scancel", "--user=root")
            _until(lambda: not _says(environment, "squeue", "-h"), "scancel", folder)


def _configure(folder: Path, environment: dict[str, str]) -> None:
    """Its key and its configuration: one node with the cores of this machine, and nothing that needs cgroups."""
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(os.urandom(128))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    cores, host = os.cpu_count() or 1, socket.gethostname().partition(".")[0]
    ports = _free_ports(2)
    (folder / "slurm.conf").write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n"
        f"SlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        # credentials that are soon old: a requeued job waits until they are, 120 s by default
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge,cred_expire=5\n"
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\n"
        "JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n"
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\nKillWait=5\n"
        "SchedulerParameters=sched_interval=2,batch_sched_delay=0\nMinJobAge=60\n"
        f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool\n"
        f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\n"
        f"SlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd.log\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN\n"
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
    version = re.search(r"(\d+)\.(\d+)", _says(environment, "sbatch", "--version"))
    if version and tuple(map(int, version.groups())) >= CGROUPS_CAN_BE_DISABLED:
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")


def _install() -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no SLURM here, and no apt-get to install it with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    said = ""
    for command in (install, ["apt-get", "update"], install):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALLING_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"SLURM could not be installed: {' '.join(command)} took over {INSTALLING_S:.0f} s")
        if command is install and done.returncode == 0:
            return
        said = " ".join(done.stderr.splitlines()[-1:])
    pytest.skip(f"SLURM could not be installed: {said}")


def _start(stack: ExitStack, environment: dict[str, str], *command: str) -> None:
    def end_with_us() -> None:  # and not by the Ctrl-C that ends us: what runs has to be cancelled before
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=end_with_us, start_new_session=True,
    )  # fmt: skip

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _says(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S).stdout


def _until(condition: Callable[[], bool], what: str, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            logs = {log.name: log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log")}
            raise AssertionError(f"{what}: nothing in {PATIENCE_S:.0f} s; {logs}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
