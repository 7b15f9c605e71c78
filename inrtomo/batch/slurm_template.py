"""How a site wants its SLURM jobs: a batch script that people edit, read into parameters for submitit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from inrtomo.errors import InputError
from inrtomo.io.files import read_text

MOST_TASKS = 1000
"""In one array: clusters allow 1001 unless told otherwise. Of more series every task gets several."""
MOST_TIMEOUTS = 10
WARNING_S = 120
"""Before its time is over a task is told, so that the command can write its checkpoint."""
OURS = ("output", "error", "signal", "open-mode", "requeue")
TEMPLATE = f"""\
#!/bin/bash
# How inr-batch asks SLURM for a task, which runs one series (of more than {MOST_TASKS} series, several one after the
# other). Edit a copy: every #SBATCH line goes to sbatch, every other line is run on the node before the task.
# At the end of its time a task stops the command at a checkpoint and is requeued, {MOST_TIMEOUTS} times at most.
#SBATCH --job-name=inrtomo
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
# tasks that may run at the same time:
#SBATCH --array=%16
##SBATCH --partition=gpu
##SBATCH --gres=gpu:1
##SBATCH --account=

# module load inrtomo
"""


def read_template(path: Path) -> dict[str, Any]:
    """Parameters for submitit from a batch script: ``#SBATCH`` lines, and lines to run before the task."""
    options: dict[str, Any] = {}
    setup = []
    for line in read_text(path).splitlines():
        if line.startswith("#SBATCH"):
            for word in _words(line, path):
                key, equals, value = word.removeprefix("--").partition("=")
                if not word.startswith("--") or key in OURS:
                    why = "is inr-batch's to say; remove it" if key in OURS else "write it as --option=value"
                    raise InputError(f"{path}: #SBATCH {word}: {why}")
                options[key] = value if equals else True
        elif line.strip() and not line.startswith("#"):
            setup.append(line)
    minutes = _minutes(str(options.pop("time", "04:00:00")), path)
    throttle = str(options.pop("array", "%16")).rpartition("%")[2]
    if not throttle.isdecimal() or int(throttle) < 1:
        raise InputError(f"{path}: #SBATCH --array={throttle}: give how many tasks may run at a time, as %16")
    # since SLURM 22.05 srun no longer takes this over from sbatch by itself
    setup.insert(0, 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"')
    return {
        "job_name": options.pop("job-name", "inrtomo"),
        "time": minutes,
        "array_parallelism": int(throttle),
        "signal_delay_s": min(WARNING_S, 15 * minutes),
        "setup": setup,
        "additional_parameters": {"requeue": True, **options},
    }


def _words(line: str, path: Path) -> list[str]:
    """Options of a ``#SBATCH`` line."""
    try:
        return shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError as error:
        raise InputError(f"{path}: {line}: {str(error).lower()}; correct the line") from None


def _minutes(text: str, path: Path) -> int:
    """SLURM's times: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise InputError(f"{path}: #SBATCH --time={text}: is no time; write it as 04:00:00")
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return max(1, 1440 * int(days or 0) + 60 * hours + minutes + (seconds > 0))
