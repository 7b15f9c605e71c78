"""The alignment benchmark's series S1w-S5w with inr-align's alignment: what each method makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.mrc import open_stack, read_volume
from inrtomo.metrics.alignment import compare_alignments, in_frame_of
from inrtomo.reconstruct.fbp import fbp_volume
from integration.benchmarks.alignment import methods
from integration.benchmarks.alignment.case import Case
from integration.benchmarks.alignment.run import simulated_case
from integration.benchmarks.alignment.volumes import protein_positive
from integration.benchmarks.reconstruction.command import recon, write_alignment
from integration.benchmarks.reconstruction.jobs import Column, Job, Options, Record
from integration.benchmarks.reconstruction.scores import volume_scores

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

METHODS = ("FBP", "SIRT", "hash", "tensor")
TRUTH = "true alignment"

COLUMNS: tuple[Column, ...] = (
    ("CC", "cc", "{:.3f}"),
    ("best-filter CC", "best_filter_cc", "{:.3f}"),
    ("mean FSC", "fsc_mean", "{:.3f}"),
    ("above the bar", "shells_above", "{:.0%}"),
    ("worst shell", "worst_shell", "{:+.3f}"),
    ("FSC measured", "fsc_measured", "{:.3f}"),
    ("in the wedge", "fsc_wedge", "{:.3f}"),
    ("FSC 0.5 (Å)", "resolution_A", "{:.1f}"),
    ("time (s)", "wall_s", "{:.0f}"),
    ("processor time (s)", "cpu_s", "{:.0f}"),
    ("memory (MB)", "peak_MB", "{:.0f}"),
)


def jobs(options: Options) -> Iterator[Job]:
    """Every method with our alignment, and FBP and the hash field with the true one."""
    chosen = options.methods or METHODS
    rows = [(name, "ours") for name in chosen] + [(name, TRUTH) for name in chosen if name in ("FBP", "hash")]
    for series in options.series:
        for seed in options.seeds:
            known = Known(options, series, seed)
            for name, which in rows:
                yield Job(f"{series}, {name}, {which}", seed, _job(known, name, which))


def _job(known: Known, name: str, which: str) -> Callable[[], list[Record]]:
    return lambda: [{"table": known.series, "row": f"{name}, {which}", **known.scored(name, which)}]


class Known:
    """A simulated series, and what is needed to score a reconstruction of it."""

    def __init__(self, options: Options, series: str, seed: int) -> None:
        self.options, self.series, self.seed = options, series, seed

    def scored(self, name: str, which: str) -> Record:
        """A method's volume with an alignment, ``ours`` or `TRUTH`, against the specimen."""
        truth, pixel_A = self.truth
        alignment = self.alignment(which)
        folder = self.options.work / "series" / f"{self.series}_{self.seed}"
        given = write_alignment(alignment, folder / f"{which.split()[0]}_align.json")
        out = folder / f"{name}_{which.split()[0]}.mrc"
        defocus_um = self.case.meta["settings"]["defocus_um"]
        more = () if defocus_um is None else ("--ctf", f"{defocus_um:g}")
        ran = recon(self.case.stack, given, out, name, self.options.threads, truth.shape[0] * pixel_A / 10, more)
        volume, _ = read_volume(out)
        scores = volume_scores(volume, truth, pixel_A, alignment.tilt_deg[alignment.included], self.bar)
        out.unlink()
        return {**scores, "wall_s": ran.wall_s, "cpu_s": ran.cpu_s, "peak_MB": ran.peak_MB}

    def alignment(self, which: str) -> Alignment:
        """In the frame of the true specimen, blank tilts excluded; ours is made if the benchmark has not yet."""
        case = self.case
        found = case.truth
        if which != TRUTH:
            there = case.work / "ours" / f"{case.name}_align.json"
            found = read_alignment(there) if there.exists() else methods.METHODS["ours"](case)[0].alignment
            motion = compare_alignments(found, case.truth, case.thickness_px, exclude=case.blanks).motion
            found = in_frame_of(found, motion)
        return replace(found, excluded={**found.excluded, **dict.fromkeys(case.blanks, "blank")})

    @cached_property
    def case(self) -> Case:
        o = self.options
        return simulated_case(self.series, self.seed, o.densities, o.aligned, o.threads, ())

    @cached_property
    def truth(self) -> tuple[F32, float]:
        """The specimen ``[z, y, x]`` and Å per voxel."""
        volume, pixel_A = read_volume(self.case.folder / f"{self.series}_truth.mrc")
        return volume, pixel_A or 1.0

    @cached_property
    def bar(self) -> Array:
        """FSC of the back-projection with the true alignment; no filter of frequency alone changes it."""
        truth, pixel_A = self.truth
        alignment = self.alignment(TRUTH)
        images = protein_positive(open_stack(self.case.stack).read(), bool(self.case.meta["settings"]["counts"]))
        volume = fbp_volume(images, alignment, truth.shape[0])
        tilts = alignment.tilt_deg[alignment.included]
        return np.array(volume_scores(volume, truth, pixel_A, tilts)["fsc"])
