"""A macromolecule's density sought in a volume: template matching, and correlations at given places.

Correlations are of the voxels of a sphere around a place, the template's mean under the sphere taken away, both sides
of unit norm (Pearson's). The template holds only what the tilts have measured at its orientation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from inrtomo.geometry import centre_index, centred_coordinates
from inrtomo.io.mrc import read_volume
from inrtomo.metrics.registration import resampled
from inrtomo.reconstruct.wedge import measured_region

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Places = NDArray[np.floating[Any]] | NDArray[np.int64]
Ints = NDArray[np.int64]

ORIENTATIONS = 220
MASS = 0.98  # of the molecule within the sphere, but for a margin
MARGIN_A = 10.0


def orientations(number: int = ORIENTATIONS) -> Array:
    """Rotation matrices ``(n, 3, 3)`` spread evenly over all: super-Fibonacci spirals (Alexa, CVPR 2022)."""
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(number) + 0.5
    r, big_r = np.sqrt(s / number), np.sqrt(1 - s / number)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    quaternions = np.stack([r * np.sin(alpha), r * np.cos(alpha), big_r * np.sin(beta), big_r * np.cos(beta)], axis=1)
    return np.asarray(Rotation.from_quat(quaternions).as_matrix())


@dataclass(frozen=True)
class Template:
    """A density to be sought.

    Attributes:
        density: cube ``[z, y, x]`` as it was read, protein positive, low-pass filtered.
        density_A: its voxel size; voxel_A: of the volumes it is sought in.
        radius: of the sphere that holds it, voxels of the volumes.
        tilt_deg: of the volumes' tilts; x_tilt_deg: mean rotation that levelled them.
    """

    density: F32
    density_A: float
    voxel_A: float
    radius: float
    tilt_deg: Array
    x_tilt_deg: float = 0.0

    @property
    def size(self) -> int:
        """Voxels of the side of the boxes in which it is compared: odd, so that their middle is a voxel."""
        return 2 * int(np.ceil(self.radius + 2)) + 1

    @cached_property
    def sphere(self) -> NDArray[np.bool_]:
        """Voxels of a box within the radius."""
        z, y, x = np.meshgrid(*[centred_coordinates(self.size)] * 3, indexing="ij", sparse=True)
        return np.asarray(x * x + y * y + z * z <= self.radius**2)

    @cached_property
    def region(self) -> F32:
        """What the tilts measure of a box's transform (`measured_region` of a specimen as thick as the molecule)."""
        box = (self.size,) * 3
        return measured_region(box, self.tilt_deg, 1.0, 2 * self.radius, self.x_tilt_deg)

    def turned(self, rotation: Array) -> F32:
        """The density in a box, its point X at the molecule's ``rotation @ X``."""
        return resampled(self.density, self.density_A / self.voxel_A, (self.size,) * 3, rotation, np.zeros(3))

    def measured(self, box: F32) -> F32:
        """What is left of a box without the missing wedge."""
        return np.asarray(scipy.fft.irfftn(scipy.fft.rfftn(box) * self.region, s=box.shape), dtype=np.float32)

    def normalised(self, box: F32) -> F32:
        """A box with mean 0 and norm 1 under the sphere, 0 outside."""
        inside = self.sphere
        values = np.where(inside, box - box[inside].mean(), 0)
        return np.asarray(values / max(float(np.sqrt((values**2).sum())), 1e-20), dtype=np.float32)


def read_template(path: Path, voxel_A: float, low_pass_A: float, tilt_deg: Array, x_tilt_deg: float = 0.0) -> Template:
    """A density file as a template for volumes of some voxel size, without what is finer than ``low_pass_A``."""
    density, own_A = read_volume(path)
    if own_A is None:
        raise ValueError(f"{path}: no pixel size in its header")
    density = np.maximum(density, 0)
    middle = ndimage.center_of_mass(density)
    density = ndimage.shift(density, [centre_index(n) - c for n, c in zip(density.shape, middle, strict=True)], order=1)
    away = np.linalg.norm(np.moveaxis(np.indices(density.shape), 0, -1) - centre_index(density.shape[0]), axis=-1)
    order = np.argsort(away, axis=None)
    running = np.cumsum(density.ravel()[order])
    reach = float(away.ravel()[order][np.searchsorted(running, MASS * running[-1])]) * own_A
    # half the amplitude at the limit, and no finer than the voxels can hold
    sigma_A = np.sqrt(np.log(2) / 2) / np.pi * max(low_pass_A, 2 * voxel_A)
    smooth = np.asarray(ndimage.gaussian_filter(density, sigma_A / own_A), dtype=np.float32)
    return Template(smooth, own_A, voxel_A, (reach + MARGIN_A) / voxel_A, np.asarray(tilt_deg, np.float64), x_tilt_deg)


def match(
    volume: F32, template: Template, rotations: Array, report: Callable[[float], None] = lambda fraction: None
) -> tuple[F32, NDArray[np.uint16]]:
    """Highest correlation over the orientations at every voxel of a volume, and which orientation gave it.

    Voxels around which the box is not wholly inside get -1.
    """
    shape = tuple(scipy.fft.next_fast_len(n + template.size, real=True) for n in volume.shape)
    values = np.asarray(volume - volume.mean(dtype=np.float64), dtype=np.float32)
    transform = scipy.fft.rfftn(values, shape)
    count = int(template.sphere.sum())

    def correlated(box: F32, other: NDArray[np.complex64]) -> F32:
        return np.asarray(scipy.fft.irfftn(other * np.conj(scipy.fft.rfftn(box, shape)), shape), dtype=np.float32)

    ball = template.sphere.astype(np.float32)
    mean = correlated(ball, transform) / count
    spread = correlated(ball, scipy.fft.rfftn(values**2, shape)) / count - mean**2
    norm = np.sqrt(np.maximum(spread, 1e-6 * float(values.var())) * count)
    best = np.full(shape, -1, dtype=np.float32)
    which = np.zeros(shape, dtype=np.uint16)
    for k, rotation in enumerate(rotations):
        score = correlated(template.normalised(template.measured(template.turned(rotation))), transform)
        score /= norm
        better = score > best
        best[better], which[better] = score[better], k
        report((k + 1) / len(rotations))
    out = np.full(volume.shape, -1, dtype=np.float32)
    index = np.zeros(volume.shape, dtype=np.uint16)
    half = template.size // 2
    inner = tuple(slice(half, n - half) for n in volume.shape)
    corner = tuple(slice(0, n - 2 * half) for n in volume.shape)
    out[inner], index[inner] = best[corner], which[corner]
    return out, index


def peaks(scores: F32, distance: float, number: int) -> Ints:
    """Indices (z, y, x) of the highest local maxima, best first, no two within ``distance`` voxels; ``(n, 3)``."""
    reach = int(np.ceil(distance))
    high = np.argwhere((scores == ndimage.maximum_filter(scores, 2 * (reach // 2) + 1)) & (scores > 0))
    high = high[np.argsort(-scores[tuple(high.T)], kind="stable")]
    kept: list[NDArray[np.int64]] = []
    for place in high:
        if all(((place - other) ** 2).sum() >= distance**2 for other in kept):
            kept.append(place)
            if len(kept) == number:
                break
    return np.array(kept, dtype=np.int64).reshape(-1, 3)


def box_at(volume: F32, place: Places, size: int, rotation: Array | None = None) -> F32:
    """A box ``[z, y, x]`` whose middle lies at a place (index z, y, x; fractions allowed) of a volume.

    With a rotation it is the molecule's own frame: its point X is read at ``rotation.T @ X`` from the place, so that
    every copy of a template that was turned by `Template.turned` looks the same. Zero outside the volume.
    """
    turn = np.eye(3) if rotation is None else rotation.T
    matrix = np.asarray(turn)[::-1, ::-1]
    reach = size + 4  # boxes alone are filtered for their splines
    low = np.floor(np.asarray(place, dtype=np.float64)).astype(int) - reach
    cut = np.zeros((2 * reach + 1,) * 3, dtype=np.float32)
    inside = tuple(slice(max(0, a), min(n, a + 2 * reach + 1)) for a, n in zip(low, volume.shape, strict=True))
    target = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, low, strict=True))
    cut[target] = volume[inside]
    middle = np.full(3, centre_index(size))
    offset = np.asarray(place, dtype=np.float64) - low - matrix @ middle
    return np.asarray(ndimage.affine_transform(cut, matrix, offset, (size,) * 3, order=3), dtype=np.float32)


def correlation_at(
    volume: F32, template: Template, places: Places, rotations: Array, *, measured: bool = True
) -> Array:
    """Correlation with the template at places ``(n, 3)`` (index z, y, x), each in an orientation ``(n, 3, 3)``.

    Args:
        measured: compare only what the tilts measure, of volume and template; else all of both.
    """
    seen = template.measured if measured else np.asarray
    out = np.empty(len(places))
    for k, (place, rotation) in enumerate(zip(places, rotations, strict=True)):
        box = template.normalised(seen(box_at(volume, place, template.size)))
        out[k] = float((box * template.normalised(seen(template.turned(rotation)))).sum())
    return out
