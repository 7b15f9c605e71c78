"""Fourier shell correlation (FSC) of two volumes and Fourier ring correlation (FRC) of images, and what masks do to it.

Two conventions: two half maps, made from separate data, are resolved to where their FSC crosses 0.143; a map against
the truth or a model, which has no noise, to where it crosses 0.5. Both are the same signal-to-noise ratio (Rosenthal &
Henderson 2003): with a signal S and noise N in each half, the halves correlate as S / (S + N) and their mean with the
truth as sqrt(S / (S + N / 2)).

Frequencies are physical on boxes of any sides (`inrtomo.metrics.shells`). Volumes are ``[z, y, x]``, images
``(n, y, x)``; voxels are cubes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft as sfft

from inrtomo.metrics.conventions import CONE_DEG
from inrtomo.metrics.masks import soft_box
from inrtomo.metrics.registration import centred, same_shape
from inrtomo.metrics.shells import FourierShells, ShellCorrelation, correlation_of_sums
from inrtomo.reconstruct.wedge import beyond_tilt_range, measured_region, soft_limit

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Complex = NDArray[Any]
Volume = NDArray[Any]

RANDOMISE_BELOW = 0.8
"""Phases are randomised from where the unmasked curve falls below this on."""
SHELLS_LEFT = 2
"""So many shells from there are left uncorrected: the mask mixes them with those before (as RELION does)."""


@dataclass(frozen=True)
class VolumeFsc:
    """Everything the Fourier shells of two volumes say.

    Attributes:
        unmasked: FSC of the whole boxes.
        masked: FSC under the mask.
        randomised: FSC under the mask of the same volumes with random phases: what the mask alone makes agree.
        corrected: ``(masked - randomised) / (1 - randomised)`` where phases were randomised (Chen et al. 2013).
        randomised_from_A: Å from which phases were randomised; None where the volumes agree to Nyquist.
        parts: FSC under the mask over parts of Fourier space: ``x``, ``y`` and ``z`` are cones about these axes,
            ``measured`` and ``wedge`` what the tilts have seen and have not.
    """

    unmasked: ShellCorrelation
    masked: ShellCorrelation
    randomised: ShellCorrelation
    corrected: ShellCorrelation
    randomised_from_A: float | None
    parts: dict[str, ShellCorrelation] = field(default_factory=dict)

    def curves(self) -> dict[str, ShellCorrelation]:
        """Every curve by name, in the order of the attributes."""
        named = {name: getattr(self, name) for name in ("unmasked", "masked", "randomised", "corrected")}
        return {**named, **self.parts}


class FourierWork:
    """Fourier transforms of boxes of one shape and sums over their shells, on the CPU.

    `inrtomo.gpu.fsc` does the same on a device: transforms are arrays wherever the work is done, and so are parts of
    them and volumes made of them.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.shells = FourierShells(shape)

    def transform(self, values: Volume, window: F32 | None = None) -> Any:
        """Of values less their mean, under a window."""
        return sfft.rfftn(centred(values) if window is None else centred(values) * window)

    def masked_transform(self, volume: Any, mask: Volume) -> Any:
        """Of a volume less its mean under a mask, times the mask."""
        return sfft.rfftn(_masked(volume, mask))

    def random_phases(self, transform: Any, first: int, noise: F32) -> Any:
        """The volume with the phases of white noise from shell ``first`` on; amplitudes stay, and it stays real."""
        return _random_phases(transform, self.shells, first, noise)

    def cone(self, axis: int, half_angle_deg: float) -> Any:
        """Part of the components: see `FourierShells.cone`."""
        return self.shells.cone(axis, half_angle_deg)

    def region(self, components: Bools) -> Any:
        """Part of the components that is given."""
        return components

    def sums(self, x: Any, y: Any, parts: Sequence[Any] = (None,)) -> list[tuple[list[F64], F64]]:
        """For each part what `correlation_of_sums` takes: three sums over each shell, and how many components."""
        values = self.shells.products(x, y)
        return [([self.shells.total(v, part) for v in values], self.shells.count(part)) for part in parts]

    def correlations(
        self, x: Any, y: Any, pixel_size_A: float, parts: Sequence[Any] = (None,)
    ) -> list[ShellCorrelation]:
        """Of two transforms over each part of every shell."""
        frequency = self.shells.frequency / pixel_size_A
        return [correlation_of_sums(sums, count, frequency) for sums, count in self.sums(x, y, parts)]


MakeFourierWork = Callable[[Sequence[int]], FourierWork]


def central_region(shape: Sequence[int], margin: Sequence[float] = (0.0, 0.1, 0.1)) -> tuple[slice, ...]:
    """Slices of the middle of a volume, leaving out ``margin`` (part of each side, z y x) at either end."""
    edges = [round(size * part) for size, part in zip(shape, margin, strict=True)]
    return tuple(slice(edge, size - edge) for edge, size in zip(edges, shape, strict=True))


def fsc(a: Volume, b: Volume, pixel_size_A: float, region: tuple[slice, ...] | None = None) -> ShellCorrelation:
    """FSC of two volumes in a region (`central_region` by default), under a soft edge.

    Raises ValueError for different shapes.
    """
    shells, x, y = transforms(a, b, region)
    return shells.correlation(x, y, pixel_size_A)[0]


def transforms(a: Volume, b: Volume, region: tuple[slice, ...] | None = None) -> tuple[FourierShells, Complex, Complex]:
    """Shells and Fourier transforms of two volumes in a region (`central_region` by default), under a soft edge.

    Raises ValueError for different shapes.
    """
    same_shape(a, b)
    where = central_region(np.shape(a)) if region is None else region
    one, two = np.asarray(a[where]), np.asarray(b[where])
    window = soft_box(one.shape)
    return FourierShells(one.shape), sfft.rfftn(centred(one) * window), sfft.rfftn(centred(two) * window)


def frc(
    a: Volume, b: Volume, pixel_size_A: float, make_work: MakeFourierWork = FourierWork
) -> tuple[ShellCorrelation, list[ShellCorrelation]]:
    """FRC of images ``(n, y, x)`` under a soft edge: over all of them together, and of every image.

    Raises ValueError for different shapes.
    """
    same_shape(a, b)
    work = make_work(np.shape(a)[1:])
    window = soft_box(np.shape(a)[1:])
    frequency = work.shells.frequency / pixel_size_A
    single, sums = [], np.zeros((3, len(frequency)))
    for one, two in zip(a, b, strict=True):
        x, y = (work.transform(image, window) for image in (one, two))
        [(of_image, count)] = work.sums(x, y)
        single.append(correlation_of_sums(of_image, count, frequency))
        sums += of_image
    size = np.sqrt(sums[1] * sums[2])
    together = np.divide(sums[0], size, out=np.zeros_like(size), where=size > 0)
    return ShellCorrelation(single[0].frequency_per_A, together, len(single) * single[0].count), single


def volume_fsc(
    a: Volume,
    b: Volume,
    pixel_size_A: float,
    mask: Volume,
    *,
    tilt_deg: Sequence[float] | F64 | None = None,
    every_tilt: bool = True,
    cone_deg: float = CONE_DEG,
    seed: int = 0,
    make_work: MakeFourierWork = FourierWork,
) -> VolumeFsc:
    """FSC of two volumes without and with a soft mask, corrected for what the mask does, and by direction.

    Args:
        a, b: ``[z, y, x]``.
        mask: of the same shape, 0 to 1.
        tilt_deg: tilt angles, for ``measured`` and ``wedge`` (tilt axis along y); left out of the parts if None.
        every_tilt: whether ``tilt_deg`` names every tilt, so that gaps between tilts count as wedge, or its ends only.
        cone_deg: half angle of the cones about x, y and z.
        seed: of the random phases.
        make_work: what transforms and sums, `fourier_work_on` of a device.

    Raises:
        ValueError: different shapes, or a mask that is 0 everywhere.
    """
    same_shape(a, b)
    same_shape(a, mask)
    work = make_work(np.shape(a))
    shells = work.shells
    x, y = (work.transform(v) for v in (a, b))
    unmasked = work.correlations(x, y, pixel_size_A)[0]

    parts = {name: work.cone(axis, cone_deg) for axis, name in ((2, "x"), (1, "y"), (0, "z"))}
    if tilt_deg is not None:
        measured = _measured(shells, np.shape(a), np.asarray(tilt_deg, dtype=np.float64), every_tilt)
        parts.update(measured=work.region(measured), wedge=work.region(~measured))
    one, two = (work.masked_transform(v, mask) for v in (a, b))
    masked, *by_part = work.correlations(one, two, pixel_size_A, (None, *parts.values()))

    below = np.flatnonzero(unmasked.correlation < RANDOMISE_BELOW)
    first = int(below[0]) if len(below) else len(shells.frequency)
    generator = np.random.default_rng(seed)
    one, two = (
        work.masked_transform(
            work.random_phases(v, first, generator.standard_normal(np.shape(a), dtype=np.float32)), mask
        )
        for v in (x, y)
    )
    randomised = work.correlations(one, two, pixel_size_A)[0]
    return VolumeFsc(
        unmasked,
        masked,
        randomised,
        _corrected(masked, randomised, first + SHELLS_LEFT),
        float(1 / unmasked.frequency_per_A[first]) if len(below) else None,
        dict(zip(parts, by_part, strict=True)),
    )


def _masked(volume: Volume, mask: Volume) -> F32:
    """Volume less its mean under the mask, times the mask: a mean left in would be the mask's own transform."""
    weight = float(np.sum(mask, dtype=np.float64))
    if weight <= 0:
        raise ValueError("the mask is 0 everywhere")
    values = np.asarray(volume, dtype=np.float32)
    mean = float(np.sum(values * mask, dtype=np.float64)) / weight
    return np.asarray((values - np.float32(mean)) * mask, dtype=np.float32)


def _random_phases(transform: Complex, shells: FourierShells, first: int, noise: F32) -> F32:
    """The volume with the phases of white noise from shell ``first`` on; amplitudes stay, and it stays real."""
    other = sfft.rfftn(noise)
    far = shells.radius >= shells.start(first)
    mixed = np.where(far, np.abs(transform) * other / np.maximum(np.abs(other), 1e-12), transform)
    return np.asarray(sfft.irfftn(mixed, s=noise.shape), dtype=np.float32)


def _corrected(masked: ShellCorrelation, randomised: ShellCorrelation, first: int) -> ShellCorrelation:
    values = masked.correlation.copy()
    noise = np.minimum(randomised.correlation[first:], 1 - 1e-6)
    values[first:] = (values[first:] - noise) / (1 - noise)
    return ShellCorrelation(masked.frequency_per_A, values, masked.count)


def _measured(shells: FourierShells, shape: Sequence[int], tilt_deg: F64, every_tilt: bool) -> Bools:
    """Components within half a slice's thickness of what the tilts have seen, shaped to broadcast."""
    nz, ny, nx = shape
    if every_tilt:
        return np.asarray(measured_region((nz, ny, nx), tilt_deg) >= 0.5)
    return np.asarray(soft_limit(beyond_tilt_range(shells.axes[2], shells.axes[0], tilt_deg), nz) >= 0.5)


def fourier_work_on(device: str) -> MakeFourierWork:
    """What transforms and sums on ``"cpu"`` or a GPU as torch calls it."""
    if device == "cpu":
        return FourierWork
    from inrtomo.gpu.fsc import DeviceFourierWork

    return partial(DeviceFourierWork, device=device)
