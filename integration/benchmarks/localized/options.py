"""Of the command line, for all parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from integration.benchmarks.reconstruction.jobs import Options


@dataclass(frozen=True)
class LocalizedOptions(Options):
    """Attributes:
    weights: of `inr-train`; None for those that come with the package.
    """

    weights: Path | None = None
