"""Simultaneous iterative reconstruction along the deformed rays, straight from the raw images.

Sweeps of `inrtomo.reconstruct.sweeps` from an empty density. Few iterations give the low frequencies, more of them
finer detail and its noise; n ordered subsets get there about n times as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates
from inrtomo.reconstruct.joseph import NO_BOUND
from inrtomo.reconstruct.rays import Rays, bin_images
from inrtomo.reconstruct.slabs import Slab, joined, volume_shape
from inrtomo.reconstruct.sweeps import DEFAULT_MEMORY, Report, image_levels, solved_in_slabs, sweeps_on

F32 = NDArray[np.float32]

OVERLAP = 4  # rows; slabs differ from the whole volume by less than 1e-4 of its sd (tested)


@dataclass(frozen=True)
class SirtSettings:
    """How to iterate.

    Attributes:
        iterations: sweeps over all tilts.
        subsets: of tilts, corrected for one after the other within a sweep; 1 is plain SIRT.
        nonnegative: no density below zero; for images in which protein is bright.
        support: where density may be within the volume, ``[z, y, x]``; everywhere if None.
        free_level: every image has a constant of its own (see `inrtomo.reconstruct.sweeps`). False for images whose
            zero is that of empty rays: then densities are absolute.
        bin: raw px per voxel; images are cut in Fourier space.
        memory_bytes: for everything but the images given and the volume returned.
        device: ``"cpu"``, or a GPU as torch calls it.
    """

    iterations: int = 30
    subsets: int = 1
    nonnegative: bool = False
    support: NDArray[np.bool_] | None = None
    free_level: bool = True
    bin: int = 1
    memory_bytes: float = DEFAULT_MEMORY
    device: str = "cpu"


def sirt_volume(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: SirtSettings | None = None,
    report: Report = lambda fraction: None,
) -> F32:
    """Volume ``[z, y, x]`` of a tilt series, density per raw px.

    Args:
        images: raw images ``(n_tilts, ny, nx)``, projections in density x raw px.
        weight: same shape, validity 0..1.
        alignment: of these images and no others, one x-tilt for all.
        thickness_px: height of the volume, raw px.
        settings: see `SirtSettings`.
        report: called with the fraction of the work done.

    Raises:
        InputError: memory too small, or an x-tilt that varies.
    """
    settings = settings or SirtSettings()
    shape = volume_shape(alignment.aligned_size, thickness_px, settings.bin)
    return joined(sirt_slabs(images, weight, alignment, thickness_px, settings, report), shape)


def sirt_slabs(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: SirtSettings,
    report: Report = lambda fraction: None,
) -> Iterator[Slab]:
    """As `sirt_volume`, slab by slab of its rows; for `inrtomo.reconstruct.slabs.sections`."""
    images, weight = bin_images(images, weight, settings.bin)
    level = np.zeros(len(images))
    if settings.free_level:
        level = image_levels(images, weight, alignment, thickness_px, settings.bin, settings.nonnegative)
    lowest = 0.0 if settings.nonnegative else NO_BOUND

    def solve(rays: Rays, images: F32, weight: F32, partly: Report) -> F32:
        allowed = None if settings.support is None else _on_lattice(settings.support, rays)
        sweeps = sweeps_on(settings.device, rays, images, weight, level, settings.subsets, allowed)
        for done in range(settings.iterations):
            sweeps.sweep(lowest=lowest)
            partly((done + 1) / settings.iterations)
        return sweeps.density

    n_volumes = (2 if settings.subsets == 1 else 1) + (settings.support is not None)
    yield from solved_in_slabs(
        solve, images, weight, alignment, thickness_px, settings.bin, settings.memory_bytes, n_volumes, OVERLAP, report,
        settings.device,
    )  # fmt: skip


def _on_lattice(support: NDArray[np.bool_], rays: Rays) -> NDArray[np.bool_]:
    """A mask ``[z, y, x]`` of the level volume as one of the lattice; outside the view density may always be."""
    if support.shape != rays.shape:
        raise ValueError(f"support is {support.shape}, the volume {rays.shape}")
    lattice, a = rays.lattice, np.deg2rad(rays.x_tilt_deg)
    z, x, v = (o + lattice.spacing * np.arange(n) for o, n in zip(lattice.origin, lattice.shape, strict=True))
    nz, ny, nx = support.shape
    level_z = z * np.cos(a)
    level_y = (v - level_z[:, None] * np.sin(a)) / np.cos(a)
    at_z = np.clip(np.round(level_z / lattice.spacing + (nz - 1) / 2).astype(int), 0, nz - 1)
    at_y = np.clip(np.round(level_y / lattice.spacing + (ny - 1) / 2).astype(int), 0, ny - 1)
    first = int(round((centred_coordinates(nx)[0] * lattice.spacing - x[0]) / lattice.spacing))
    allowed = np.ones(lattice.shape, dtype=np.bool_)
    allowed[:, first : first + nx] = support[at_z[:, None], at_y].transpose(0, 2, 1)
    return allowed
