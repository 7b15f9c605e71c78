"""What all witnesses look at: the series, its beads, and the alignments in question, in one frame of one height."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.io.mrc import write_stack
from inrtomo.reconstruct.fbp import fbp_volume
from integration.benchmarks.real.bead_fits import BeadPlanes, bead_planes, fit_points
from integration.benchmarks.real.bead_tracks import BeadTracks, find_beads
from integration.benchmarks.real.cache import cached, digest
from integration.benchmarks.real.frame import Placed, levelled_by_beads, placed_like
from integration.benchmarks.real.series import RealSeries, read_series

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

HEIGHT_OF_SEPARATION = 1.4
"""Height of all volumes, of the distance of the beads' planes."""


@dataclass(frozen=True)
class Case:
    """A real series and alignments of it.

    Attributes:
        stack: the raw stack; axis_deg: its nominal tilt axis, IMOD's sense.
        alignments: name and alignment as it was found, with its warp; the first is the reference for the frame.
        template: density file; template_low_pass_A: of it.
        defocus_A: for which low frequencies are restored before volumes are made; None: not at all.
        bin: raw px per voxel of volumes.
        work: folder of intermediate results; threads: for programs.
        methods: of tomograms, names of `volumes.METHODS`.
        say: told of progress.
    """

    stack: Path
    axis_deg: float
    alignments: list[tuple[str, Alignment]]
    template: Path
    template_low_pass_A: float
    defocus_A: float | None
    bin: int
    work: Path
    threads: int
    methods: list[str]
    say: Callable[[str], None]

    @cached_property
    def series(self) -> RealSeries:
        return read_series(self.stack)

    @cached_property
    def beads(self) -> BeadTracks:
        """Beads found in every image."""
        return self.all_beads.only(self.all_beads.complete)

    @cached_property
    def all_beads(self) -> BeadTracks:
        """Every bead that was followed."""

        def make() -> dict[str, Array]:
            self.say("following beads through the raw images")
            tracks = find_beads(self.series.images, self.series.tilt_deg, self.axis_deg)
            return {"raw_px": tracks.raw_px, "radius_px": tracks.radius_px}

        return BeadTracks(**cached(self.work, "beads", digest(self.stack, self.axis_deg), make))

    @cached_property
    def reference(self) -> Alignment:
        """The first alignment, level between its beads' planes."""
        return levelled_by_beads(self.alignments[0][1], self.beads)

    @cached_property
    def planes(self) -> BeadPlanes:
        """The beads' planes in the common frame."""
        planes = bead_planes(fit_points(self.reference, self.beads).points_px)
        if planes is None:
            raise InputError(f"{self.stack}: {len(self.beads.raw_px)} beads in all images show no faces; 8 are needed")
        return planes

    @cached_property
    def thickness_px(self) -> int:
        """Height of all volumes, raw px, whole voxels."""
        return self.bin * round(HEIGHT_OF_SEPARATION * self.planes.separation_px / self.bin)

    @property
    def voxel_A(self) -> float:
        return self.bin * self.series.pixel_A

    def variants(self) -> Iterator[tuple[str, str, Alignment]]:
        """Name of an alignment, ``with warp`` or ``.xf alone``, and the map as it was found."""
        for name, alignment in self.alignments:
            if alignment.warp is not None:
                yield name, "with warp", alignment
            yield name, ".xf alone", alignment.without_warp()

    def placed(self, alignment: Alignment) -> Placed:
        """An alignment in the common frame."""
        points = fit_points(self.reference, self.beads).points_px
        return placed_like(points, alignment, self.beads)

    @cached_property
    def images(self) -> F32:
        """Images for volumes ``(n, ny, nx)``: protein bright, gold painted over, low frequencies restored."""
        return self.series.without_gold(self.all_beads, self.defocus_A)

    def image_file(self) -> Path:
        """`images` as a stack that the commands read."""
        path = self.work / "images" / f"{digest(self.stack, self.axis_deg, self.defocus_A)}.mrc"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path.with_suffix(".rawtlt"), self.series.tilt_deg, fmt="%.3f")
            write_stack(path, self.images, self.series.pixel_A)
        return path

    def back_projection(self, alignment: Alignment) -> F32:
        """Of `images` along an alignment of the common frame, ``[z, y, x]``."""
        return fbp_volume(self.images, alignment, self.thickness_px, bin=self.bin)
