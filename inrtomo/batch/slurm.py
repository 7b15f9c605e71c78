"""Series on a SLURM cluster, by submitit: a job array, a task a series; what runs out of time is requeued."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import Job, SlurmExecutor
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.helpers import Checkpointable, DelayedSubmission

from inrtomo.batch.manifest import Series
from inrtomo.batch.runner import ELSEWHERE_S, Runner, places
from inrtomo.batch.slurm_template import MOST_TASKS, MOST_TIMEOUTS, read_template
from inrtomo.batch.state import FAILED, STALE_S, Batch
from inrtomo.batch.summary import write_summary
from inrtomo.errors import InputError
from inrtomo.io.files import make_folder
from inrtomo.io.names import one_line

PATIENCE_S = STALE_S + 2 * ELSEWHERE_S
"""For a series that another task has: as long as it takes to know that this one died, and no longer."""


class Task(Checkpointable):
    """What runs on the node: some series of a batch, one after the other."""

    def __init__(self, batch: Batch, series: Sequence[Series]) -> None:
        self.batch, self.series = batch, tuple(series)

    def __call__(self) -> None:
        # submitit passes SIGTERM over; it is how SLURM says that somebody cancelled the job
        signal.signal(signal.SIGTERM, _terminate)
        self._runner = Runner(self.batch, places(1), _say, PATIENCE_S)
        self._runner.add(self.series)
        try:
            self._runner.work()
        except UncompletedJobError:
            self._give_up()
            raise
        finally:
            if all(state in ("done", "failed") for state in self.batch.states().values()):
                write_summary(self.batch)
        failed = [one.name for one in self.series if (self.batch.state / f"{one.name}.{FAILED}").exists()]
        if failed:
            raise FailedJobError(f"{', '.join(failed)}: see {self.batch.log(failed[0])}")

    def checkpoint(self) -> DelayedSubmission:
        """The time is over: stop the command so that it can be gone on with, and be called again."""
        self._runner.stop()
        return DelayedSubmission(Task(self.batch, self.series))

    def _give_up(self) -> None:
        """No further requeue: what has not ended has failed."""
        for one in self.series:
            record = self.batch.record(one.name)
            if record is None or record["state"] != "interrupted":
                continue
            claim = self.batch.claim(one.name)
            if claim is not None:
                said = f"its time was over {MOST_TIMEOUTS + 1} times; ask for more, then --retry goes on with it"
                self.batch.settle(one.name, FAILED, {**record, "state": FAILED, "message": said})
                claim.release()


def _say(name: str, record: dict[str, Any]) -> None:
    print(name, record["state"], record["message"], flush=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def submit(batch: Batch, series: Sequence[Series], template: Path) -> list[Job[Any]]:
    """Hand series to SLURM; returns submitit's jobs."""
    parameters = read_template(template)
    for path in (batch.path, Path(sys.executable)):
        # they stand in the script that sbatch runs, and in names in which it replaces what follows a %
        one_line(str(path), "--slurm")
        if "%" in str(path):
            raise InputError(f"{path}: has a % in it, which SLURM would replace; take a folder of another name")
    folder = make_folder(batch.state / "slurm")
    try:
        executor = SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
    except RuntimeError:
        raise InputError("--slurm: there is no srun here; call inr-batch where jobs are submitted") from None
    executor.update_parameters(**parameters)
    share = -(-len(series) // MOST_TASKS)
    parts = [series[k : k + share] for k in range(0, len(series), share)]
    try:
        with executor.batch():
            return [executor.submit(Task(batch, part)) for part in parts]
    except FailedJobError as error:
        said = " ".join(str(error).split())
        raise InputError(f"{template}: sbatch refused the job ({said}); correct the #SBATCH lines") from None


def in_queue(jobs: Sequence[Job[Any]]) -> bool:
    """Whether any of the jobs waits or runs still.

    submitit's own answer comes from sacct, which many sites do without; a task that was killed then never ends.
    """
    arrays = sorted({job.job_id.partition("_")[0] for job in jobs})
    if not arrays:
        return False
    asked = subprocess.run(
        ["squeue", "--noheader", f"--jobs={','.join(arrays)}", "--format=%i"], capture_output=True, text=True
    )
    if asked.returncode:  # one that is forgotten has ended; a controller that does not answer now will do so later
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())
