"""What a method gets, a simulated series on disk, and what it gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inrtomo.alignment import Alignment
from inrtomo.truth import TruePoints
from integration.benchmarks.alignment.measured import Measured, run_measured

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Case:
    """A simulated series on disk.

    Attributes:
        name, seed: which one; folder: where its files are, ``NAME.mrc`` and so on; work: where methods may write.
        truth: the true alignment, or the nearest there is; known: points of the specimen and their true images, by
            which alignments are scored; meta: the rest of the truth file.
        axis_deg: the tilt axis a method is told.
        blanks: tilts without a specimen. Peers are told of them, inr-align is not.
        threads: for every program that can be told.
    """

    name: str
    seed: int
    folder: Path
    work: Path
    truth: Alignment
    known: TruePoints
    meta: dict[str, Any]
    axis_deg: float
    blanks: tuple[int, ...]
    threads: int
    align_options: tuple[str, ...] = ()

    @property
    def stack(self) -> Path:
        return self.folder / f"{self.name}.mrc"

    @property
    def angles(self) -> Path:
        return self.folder / f"{self.name}.rawtlt"

    @property
    def thickness_px(self) -> float:
        return float(self.meta["thickness_px"])

    @property
    def nominal(self) -> Alignment:
        """What is known before any alignment: angles and the tilt axis."""
        tilt_deg = np.loadtxt(self.angles, ndmin=1)
        return Alignment.identity(tilt_deg, self.truth.image_size, self.axis_deg, self.truth.pixel_size_A)

    def run(self, command: Sequence[object], name: str, folder: Path | None = None) -> Measured:
        """Run a program; RuntimeError with its last words if it fails."""
        threads = str(self.threads)
        environment = {f"{library}_NUM_THREADS": threads for library in ("OMP", "NUMBA", "MKL", "OPENBLAS")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [str(word) for word in command]
        result = run_measured(words, self.work / f"{name}.log", environment, folder)
        if result.status != 0:
            last = result.said.strip().splitlines()[-1:] or ["no message"]
            raise RuntimeError(f"{Path(words[0]).name} ended with status {result.status}: {last[0]}")
        return result


@dataclass(frozen=True)
class Outcome:
    """What a method made of a case.

    ``volume`` is the file of its own density, where it has one; ``thickness_px`` what it holds the specimen's thickness
    for, given by methods that make the specimen level.
    """

    method: str
    alignment: Alignment
    wall_s: float | None = None
    peak_MB: float | None = None
    volume: Path | None = None
    sigma_shift_px: Any = None
    thickness_px: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
