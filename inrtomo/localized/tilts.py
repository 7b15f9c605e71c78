"""The filtered tilts: aligned once, then for any range of rows their maps of Gaussian derivatives.

Rows are made on demand, so that memory is bounded by the rows asked for; a map's row is the same number whichever
rows it is made with, so that no seam can be seen where one slab ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from torch import Tensor

from inrtomo.align.prepare import noise_sd
from inrtomo.alignment import Alignment
from inrtomo.geometry import centre_index
from inrtomo.localized.bank import SCALES, Scale
from inrtomo.localized.by_torch import maps_by_torch
from inrtomo.reconstruct.filters import angular_weights, ramp_of_line
from inrtomo.reconstruct.slabs import scratch_array
from inrtomo.resample import aligned_image, fill_invalid, settle_border

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Report = Callable[[float], None]

LENGTH_UNIT = 8  # px: lines have so many or a multiple, so that the coarsest maps divide them
LEAST_NOISE = 1e-6  # of an image without any, so that it can be divided by


@dataclass(frozen=True)
class Maps:
    """A scale's derivatives of every tilt over a range of rows.

    Attributes:
        values: ``(n_tilts, rows, columns, channels)``, a tensor if they were made by torch.
        u0, v0: position of the first sample, px from the centre; samples are the scale's `step` apart.
    """

    scale: Scale
    values: F32 | Tensor
    u0: float
    v0: float


@dataclass(frozen=True)
class Plan:
    """How a scale's maps are made for some rows.

    Attributes:
        rows: of the images, from `reach` before the first to as much after the last.
        first: position of the first row of the maps, px from the first row of the images.
        across: for each order, factors of the lines' spectra.
        taps: for every row of the maps, the first of ``rows`` that it is made from.
        kernels: what with: ``(orders, rows, taps)``.
        n_u: columns of the maps.
    """

    scale: Scale
    rows: range
    first: float
    across: list[NDArray[np.complex64]]
    taps: NDArray[np.int64]
    kernels: F32
    n_u: int

    @classmethod
    def of(cls, scale: Scale, v_range: tuple[float, float], first_v: float, length: int, ramp: Array) -> Plan:
        # rows of maps are at multiples of the step from the first row of the images, wherever a slab begins
        low = int(np.floor((v_range[0] - first_v) / scale.step)) - 1
        high = int(np.ceil((v_range[1] - first_v) / scale.step)) + 2
        at = np.arange(low, high) * scale.step
        start = np.floor(at).astype(np.int64) - scale.reach
        count = 2 * scale.reach + 2
        n_u = round(length / scale.step)
        kept = min(n_u, length) // 2 + 1
        frequency = np.fft.rfftfreq(length)[:kept].astype(np.float64)
        weight = (ramp[:kept] if scale.ramp else np.ones(kept)) * (n_u / length)
        if n_u > length and length % 2 == 0:
            weight[-1] /= 2  # the Nyquist term stands for both signs once the line is longer
        across = [(scale.transfer(frequency, a) * weight).astype(np.complex64) for a in range(scale.order + 1)]
        kernels = _kernels(scale, np.round(at - start, 9), count)
        return cls(
            scale, range(int(start[0]), int(start[-1]) + count), float(at[0]), across, start - start[0], kernels, n_u
        )


def _kernels(scale: Scale, offset: Array, count: int) -> F32:
    """Kernels ``(orders, rows, taps)`` of rows that lie ``offset`` px after their first tap."""
    different, place = np.unique(offset, return_inverse=True)
    distance = different[:, None] - np.arange(count)
    near = np.abs(distance) <= scale.reach
    each = [np.where(near, scale.kernel(distance, b), 0.0)[place] for b in range(scale.order + 1)]
    return np.stack(each).astype(np.float32)


@nb.njit(fastmath=True, cache=True)
def _filter_rows(seen, taps, kernels, columns, out):  # type: ignore[no-untyped-def]
    """Set channels ``columns`` of ``out`` ``(rows, n_u, channels)`` to lines filtered along the axis."""
    n_u = seen.shape[1]
    total = np.empty(n_u, dtype=np.float32)
    for r in range(len(taps)):
        for b in range(len(columns)):
            total[:] = 0.0
            for k in range(kernels.shape[2]):
                weight, line = kernels[b, r, k], seen[taps[r] + k]
                for u in range(n_u):
                    total[u] += weight * line[u]
            for u in range(n_u):
                out[r, u, columns[b]] = total[u]


class FilteredTilts:
    """Aligned tilts of a series, edges filled, and what the sums over them need.

    Args:
        images: aligned images ``(n_tilts, rows, columns)`` with borders, zero background.
        valid: which of their pixels were seen.
        first: position (u, v) of the first pixel, px from the centre.
        tilt_deg, x_tilt_deg: of every tilt.
        noise: sd of the noise of every tilt.

    Attributes:
        tilt, x_tilt: radians.
        weight: part of the half circle that each tilt stands for, radians.
    """

    def __init__(
        self, images: F32, valid: NDArray[np.bool_], first: tuple[float, float], tilt_deg: Array, x_tilt_deg: Array,
        noise: Array,
    ) -> None:  # fmt: skip
        self.images, self.valid, self.first, self.noise = images, valid, first, noise
        self.tilt, self.x_tilt = np.deg2rad(tilt_deg), np.deg2rad(x_tilt_deg)
        self.weight = angular_weights(tilt_deg)
        self._ramp = ramp_of_line(images.shape[2])

    @property
    def n_tilts(self) -> int:
        return len(self.images)

    def maps(self, scales: Sequence[Scale], v_range: tuple[float, float], device: str = "cpu") -> list[Maps]:
        """Maps of some scales whose rows reach over ``v_range`` (px from the centre), and one sample further.

        Args:
            device: ``cpu`` for compiled code; any other device is torch's.
        """
        n_rows, length = self.images.shape[1:]
        u0, first_v = self.first
        plans = [Plan.of(scale, v_range, first_v, length, self._ramp) for scale in scales]
        low, high = min(p.rows.start for p in plans), max(p.rows.stop for p in plans)
        inside = np.clip(np.arange(low, high), 0, n_rows - 1)
        values: list[F32 | Tensor] = []
        if device == "cpu":
            values += self._maps_by_numba(inside, low, plans)
        else:
            values += maps_by_torch(self.images, self.valid, inside, low, plans, device)
        return [Maps(p.scale, v, u0, first_v + p.first) for p, v in zip(plans, values, strict=True)]

    def _maps_by_numba(self, rows: NDArray[np.int64], low: int, plans: Sequence[Plan]) -> list[F32]:
        """As `by_torch.maps_by_torch`."""
        values = [np.empty((self.n_tilts, len(p.taps), p.n_u, len(p.scale.channels)), dtype=np.float32) for p in plans]
        for m in range(self.n_tilts):
            spectra = {
                ramp: scipy.fft.rfft(np.asarray(source[m, rows], dtype=np.float32), axis=1)
                for ramp, source in ((True, self.images), (False, self.valid))
                if any(p.scale.ramp == ramp for p in plans)
            }
            for p, out in zip(plans, values, strict=True):
                lines = spectra[p.scale.ramp][p.rows.start - low : p.rows.stop - low, : len(p.across[0])]
                for a in range(p.scale.order + 1):
                    seen = scipy.fft.irfft(lines * p.across[a], n=p.n_u, axis=1)
                    _filter_rows(seen, p.taps, p.kernels, p.scale.columns(a), out[m])
        return values

    def noise_of(self, scale: Scale) -> float:
        """Sd of the noise in the scale's first feature, the noise of the images being white."""
        return scale.noise_gain() * float(np.sqrt(((self.weight * self.noise) ** 2).sum()))


class TiltAligner:
    """Reads images on an aligned lattice with its edges filled, on the CPU; `inrtomo.gpu.aligned_tilts` on a device.

    Args:
        alignment: of the images, in their px.
        x, y: of the lattice, px from the centre.
        settled_px: over so much at either end lines go over to the image's mean.
    """

    def __init__(self, alignment: Alignment, x: Array, y: Array, settled_px: int) -> None:
        self.alignment, self.x, self.y, self.settled_px = alignment, x, y, settled_px

    def aligned(self, image: F32, tilt: int) -> tuple[F32, NDArray[np.bool_]]:
        """Values ``(rows, columns)``, and which of them were seen."""
        values, seen = aligned_image(image, self.alignment, tilt, self.x, self.y)
        return settle_border(fill_invalid(values, seen), (self.settled_px, 0)), seen

    def noise_sd(self, image: F32) -> float:
        """Of an image as it is."""
        return noise_sd(image)


def tilt_aligner_on(device: str, alignment: Alignment, x: Array, y: Array, settled_px: int) -> TiltAligner:
    """What aligns tilts on a device."""
    if device == "cpu":
        return TiltAligner(alignment, x, y, settled_px)
    from inrtomo.gpu.aligned_tilts import DeviceTiltAligner

    return DeviceTiltAligner(alignment, x, y, settled_px, device)


@contextmanager
def filtered_tilts(
    images: F32,
    alignment: Alignment,
    height: int,
    memory_bytes: float = 2**31,
    scratch_folder: Path | None = None,
    report: Report = lambda fraction: None,
    weight: F32 | None = None,
    device: str = "cpu",
) -> Iterator[FilteredTilts]:
    """Align the images of a series for a volume of ``height`` voxels over their view.

    Args:
        images: ``(n_tilts, ny, nx)``, protein positive, zero background.
        alignment: of these images, in their px.
        memory_bytes: aligned images beyond this go to a scratch file that is gone when the block ends.
        weight: ``(n_tilts, ny, nx)``: where 0, pixels say nothing (dead borders, masked gold); they are filled.
        device: what reads them.
    """
    nx, ny = alignment.aligned_size
    x_tilt = np.deg2rad(alignment.x_tilt_deg)
    rise = int(np.ceil(np.abs(np.sin(x_tilt)).max(initial=0) * height / 2))
    border_y = rise + max(s.reach for s in SCALES) // 2
    # as far as any voxel is seen, and on to where lines have settled to the image's mean
    reach = int(np.ceil(np.hypot(nx, height / np.cos(x_tilt).min(initial=1.0)) / 2)) + 2
    border_x = reach - nx // 2 + nx // 4 + max(s.reach for s in SCALES) // 2
    length = nx + 2 * border_x
    while length % LENGTH_UNIT or scipy.fft.next_fast_len(length // LENGTH_UNIT, real=True) != length // LENGTH_UNIT:
        length += 1
    border_x = (length - nx) // 2
    first = -centre_index(nx) - border_x, -centre_index(ny) - border_y
    x, y = (start + np.arange(n, dtype=np.float64) for start, n in zip(first, (length, ny + 2 * border_y), strict=True))
    shape = (len(images), len(y), length)
    aligner, noise = tilt_aligner_on(device, alignment, x, y, nx // 4), np.full(len(images), LEAST_NOISE)
    with (
        scratch_array(shape, int(memory_bytes), scratch_folder) as store,
        scratch_array((shape[0], shape[1], -(-length // 4)), int(memory_bytes), scratch_folder) as room,
    ):
        valid = room.reshape(-1).view(np.bool_)[: int(np.prod(shape))].reshape(shape)
        for m, image in enumerate(images):
            image = np.asarray(image, dtype=np.float32)
            noise[m] = max(noise[m], aligner.noise_sd(image))
            store[m], valid[m] = aligner.aligned(image if weight is None else fill_invalid(image, weight[m] > 0), m)
            report((m + 1) / len(images))
        yield FilteredTilts(store, valid, first, alignment.tilt_deg, alignment.x_tilt_deg, noise)
