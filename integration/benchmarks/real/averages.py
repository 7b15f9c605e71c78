"""The average of particles at given places, and how well that of one half of them agrees with that of the other."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.metrics.shells import FourierShells, ShellCorrelation
from inrtomo.reconstruct.wedge import beyond_slices, soft_limit
from integration.benchmarks.real.matching import Places, Template, box_at

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

LEAST_WEIGHT = 0.1  # of the mean weight of a component: what hardly any particle has measured is left out
EDGE = 2.0  # voxels of the soft edge of the sphere


def average(volume: F32, template: Template, places: Places, rotations: Array) -> F32:
    """The mean of the particles, turned into one orientation, of every component what the tilts have measured.

    Args:
        volume: ``[z, y, x]``.
        places: ``(n, 3)`` index z, y, x; rotations: ``(n, 3, 3)``.
    """
    size = template.size
    total = np.zeros((size, size, size // 2 + 1), dtype=np.complex128)
    weight = np.zeros(total.shape)
    for place, rotation in zip(places, rotations, strict=True):
        box = box_at(volume, place, size, rotation)
        seen = turned_region(template, rotation)
        total += seen * scipy.fft.rfftn(box - box.mean())
        weight += seen**2
    known = weight > LEAST_WEIGHT * weight.mean()
    return np.asarray(scipy.fft.irfftn(np.where(known, total / np.maximum(weight, 1e-9), 0), s=(size,) * 3), np.float32)


def turned_region(template: Template, rotation: Array) -> Array:
    """`Template.region` for ``rfftn`` of a box in the molecule's own frame."""
    size = template.size
    z, y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    kx, ky, kz = np.einsum("ij,jzyx->izyx", rotation.T, np.stack([x, y, z]))
    if template.x_tilt_deg:
        a = np.deg2rad(template.x_tilt_deg)
        kz = np.cos(a) * kz - np.sin(a) * ky
    return np.asarray(soft_limit(beyond_slices(kx, kz, template.tilt_deg), 2 * template.radius), dtype=np.float64)


def half_averages_fsc(volume: F32, template: Template, places: Places, rotations: Array) -> ShellCorrelation:
    """FSC, under a soft sphere, of the averages of every second particle and of the others."""
    halves = (average(volume, template, places[k::2], rotations[k::2]) for k in (0, 1))
    return fsc_under_sphere(template, *halves)


def template_fsc(volume: F32, template: Template, places: Places, rotations: Array) -> ShellCorrelation:
    """FSC, under a soft sphere, of the average of all particles and the template's own density."""
    return fsc_under_sphere(template, average(volume, template, places, rotations), template.turned(np.eye(3)))


def fsc_under_sphere(template: Template, a: F32, b: F32) -> ShellCorrelation:
    """FSC of two boxes of the template's size under a soft sphere of its radius."""
    size = template.size
    distance = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij")), axis=0)
    sphere = 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - template.radius) / EDGE + 0.5, 0, 1))
    x, y = (scipy.fft.rfftn((box - (box * sphere).sum() / sphere.sum()) * sphere) for box in (a, b))
    return FourierShells((size,) * 3).correlation(x, y, template.voxel_A)[0]
