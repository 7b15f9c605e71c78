"""SART with total variation: what to beat among iterative methods that know that specimens are piecewise smooth.

Each iteration corrects the density for one tilt after the other (`inrtomo.reconstruct.sweeps`, a tilt a subset), then
takes a few steps down its total variation (as E. Sidky and X. Pan, Phys. Med. Biol. 53 (2008) 4777). Here the size of
those steps is in units of the noise that one tilt puts into a voxel, so that one weight serves all series, and does
not depend on the slab that is being solved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.joint import noise_sd
from inrtomo.alignment import Alignment
from inrtomo.priors import total_variation
from inrtomo.reconstruct.joseph import NO_BOUND
from inrtomo.reconstruct.rays import Rays, bin_images
from inrtomo.reconstruct.slabs import Slab, joined, volume_shape
from inrtomo.reconstruct.sweeps import DEFAULT_MEMORY, Report, Sweeps, image_levels, solved_in_slabs, sweeps_on

F32 = NDArray[np.float32]

OVERLAP = 16  # rows; variation reaches further than the rays' interpolation
VARIATION_STEPS = 5  # an iteration
ROUNDING = 1.5  # of the descent of an iteration: differences below this are smoothed like noise, and steps are stable
FIRST_RELAXATION = 0.5
N_VOLUMES = 3  # density and two of the variation's gradient


@dataclass(frozen=True)
class SartTvSettings:
    """How to iterate.

    Attributes:
        iterations: each over all tilts, with less and less weight.
        variation: how far an iteration descends, in units of the noise (sd) that one tilt gives a voxel.
        nonnegative: no density below zero; for images in which protein is bright.
        free_level: every image has a constant of its own; False for images whose zero is that of empty rays.
        bin: raw px per voxel.
        memory_bytes: for everything but the images given and the volume returned.
        device: ``"cpu"``, or a GPU as torch calls it.
    """

    iterations: int = 20
    variation: float = 1.0
    nonnegative: bool = False
    free_level: bool = True
    bin: int = 1
    memory_bytes: float = DEFAULT_MEMORY
    device: str = "cpu"


def sart_tv_volume(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: SartTvSettings | None = None,
    report: Report = lambda fraction: None,
) -> F32:
    """Volume ``[z, y, x]`` of a tilt series, density per raw px; arguments as for `sirt.sirt_volume`."""
    settings = settings or SartTvSettings()
    shape = volume_shape(alignment.aligned_size, thickness_px, settings.bin)
    return joined(sart_tv_slabs(images, weight, alignment, thickness_px, settings, report), shape)


def sart_tv_slabs(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: SartTvSettings,
    report: Report = lambda fraction: None,
) -> Iterator[Slab]:
    """As `sart_tv_volume`, slab by slab of its rows; for `inrtomo.reconstruct.slabs.sections`."""
    images, weight = bin_images(images, weight, settings.bin)
    level = np.zeros(len(images))
    if settings.free_level:
        level = image_levels(images, weight, alignment, thickness_px, settings.bin, settings.nonnegative)
    lowest = 0.0 if settings.nonnegative else NO_BOUND
    # a tilt's correction of a voxel is the error of a pixel over the length of its ray
    descent = settings.variation * float(np.median(noise_sd(images))) / thickness_px

    def solve(rays: Rays, images: F32, weight: F32, partly: Report) -> F32:
        sweeps = sweeps_on(settings.device, rays, images, weight, level, len(images))
        for done in range(settings.iterations):
            sweeps.sweep(FIRST_RELAXATION / np.sqrt(1 + done), lowest)
            if isinstance(sweeps, Sweeps):
                _lower_variation(sweeps.density, descent / np.sqrt(1 + done), lowest)
            elif descent > 0:
                now = descent / np.sqrt(1 + done)
                sweeps.lower_variation(now, ROUNDING * now, VARIATION_STEPS, lowest)
            partly((done + 1) / settings.iterations)
        return sweeps.density

    yield from solved_in_slabs(
        solve, images, weight, alignment, thickness_px, settings.bin, settings.memory_bytes, N_VOLUMES, OVERLAP, report,
        settings.device,
    )  # fmt: skip


def _lower_variation(density: F32, descent: float, lowest: float) -> None:
    """Move a density ``[z, x, y]`` down its total variation, in place, each voxel by ``descent`` times its slope."""
    if descent == 0:
        return
    for _ in range(VARIATION_STEPS):
        slope = total_variation(density, ROUNDING * descent)[1]
        slope *= np.float32(descent / VARIATION_STEPS)
        density -= slope
    np.maximum(density, np.float32(lowest), out=density)
