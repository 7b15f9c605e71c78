"""The alignment benchmark's series with inr-align's alignment and with the true one: what our alignment costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from inrtomo.io.mrc import open_stack
from integration.benchmarks.alignment.volumes import protein_positive
from integration.benchmarks.localized.methods import NAMES, OURS, scored
from integration.benchmarks.localized.options import LocalizedOptions
from integration.benchmarks.reconstruction.jobs import Column, Job, Record
from integration.benchmarks.reconstruction.known import TRUTH, Known
from integration.benchmarks.reconstruction.methods import Imaged

COLUMNS: tuple[Column, ...] = (
    ("CC", "cc", "{:.3f}"),
    ("CC after the best isotropic filter", "best_filter_cc", "{:.3f}"),
    ("mean FSC", "fsc_mean", "{:.3f}"),
    ("time (s)", "wall_s", "{:.0f}"),
    ("processor time (s)", "cpu_s", "{:.0f}"),
)


def jobs(options: LocalizedOptions) -> Iterator[Job]:
    """FBP and ours with either alignment."""
    for name in options.series:
        for seed in options.seeds:
            known = Known(options, name, seed)
            for method in options.methods or ("FBP", OURS):
                for which in (TRUTH, "ours"):
                    yield Job(f"{name}, {method}, {which}", seed, _job(options, known, method, which))


def _job(options: LocalizedOptions, known: Known, method: str, which: str) -> Callable[[], list[Record]]:
    def run() -> list[Record]:
        truth, pixel_A = known.truth
        alignment = known.alignment(which)
        used = alignment.included
        images = protein_positive(open_stack(known.case.stack).read(), bool(known.case.meta["settings"]["counts"]))
        series = Imaged(np.ascontiguousarray(images[used]), alignment.subset(used), truth.shape[0])
        scores = scored(method, series, truth, pixel_A, options.weights)
        said = "true alignment" if which == TRUTH else "inr-align's"
        return [{"table": known.series, "row": f"{NAMES.get(method, method)}, {said}", **scores}]

    return run
