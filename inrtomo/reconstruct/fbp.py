"""Weighted back-projection along the deformed rays, straight from the raw images.

Two passes. *Filter*: every image is read once on the aligned lattice through the full map (so its columns are the
ideal projection's, local motion undone), its lines are weighted in Fourier space and kept at two samples a pixel,
pre-compensated for the linear interpolation that reads them. *Back-project*: tile by tile, any range of z and y, with
y contiguous in memory, so that memory is bounded by the tile and the filtered lines may live in a scratch file.

An x-tilted specimen (angle a) mixes rows: the point (x, y, z) is seen in row v = y cos a + z sin a at
u = x cos t + (z / cos a - v tan a) sin t. So lines are read sheared by -v tan a sin t, each row v is reconstructed on
its own at height z / cos a, and rows are then interpolated along v by the cubic B-spline. Exact for every tilt's own
angle: tilts are taken in groups of equal x-tilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

from inrtomo.alignment import Alignment
from inrtomo.geometry import centred_coordinates
from inrtomo.reconstruct.filters import RadialFilter
from inrtomo.reconstruct.slabs import ranges, scratch_array, volume_shape
from inrtomo.resample import Frame, aligned_image, fill_invalid, fourier_bin, settle_border

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
ImageReader = Callable[[int], NDArray]
Report = Callable[[float], None]

OVERSAMPLING = 2
ROWS_AT_A_TIME = 32  # a tile's rows: long enough for vector units, short enough that one tilt's lines stay in cache
Z_AT_A_TIME = 8
SPLINE_MARGIN = 8  # rows; a cubic B-spline's prefilter forgets an edge by 0.27 a row
BIN_MARGIN = 16  # rows around a Fourier-cropped image
DEFAULT_MEMORY = 2 * 2**30


@dataclass(frozen=True)
class FbpSettings:
    """How to back-project.

    Attributes:
        thickness_px: of the reconstructed slab, raw px.
        filter: the radial weighting.
        bin: raw px per voxel; images are cut in Fourier space.
        memory_bytes: filtered lines beyond half of this go to a scratch file, tiles take at most a quarter.
        device: ``"cpu"``, or a GPU as torch calls it: what makes the lines and projects them back.
    """

    thickness_px: int
    filter: RadialFilter = field(default_factory=RadialFilter)
    bin: int = 1
    memory_bytes: int = DEFAULT_MEMORY
    device: str = "cpu"

    def shape(self, aligned_size: tuple[int, int]) -> tuple[int, int, int]:
        """Voxels ``(nz, ny, nx)`` of the volume of a series with aligned images ``(nx, ny)``."""
        return volume_shape(aligned_size, self.thickness_px, self.bin)


def fbp_volume(
    images: NDArray | Sequence[NDArray],
    alignment: Alignment,
    thickness_px: int,
    filter: RadialFilter | str = "exact",
    bin: int = 1,
) -> F32:
    """Volume ``[z, y, x]`` of a tilt series held in memory.

    Args:
        images: raw images ``(n_tilts, ny, nx)``, projections in density x raw px; excluded ones are not read.
        alignment: the full map of every image.
        thickness_px: height of the volume, raw px.

    Returns:
        density per raw px; x, y size `Alignment.aligned_size` divided by ``bin``.
    """
    radial = RadialFilter(filter) if isinstance(filter, str) else filter
    settings = FbpSettings(thickness_px, radial, bin)
    nz, ny, nx = settings.shape(alignment.aligned_size)
    volume = np.empty((nz, ny, nx), dtype=np.float32)
    with filtered_lines(lambda i: np.asarray(images[i]), alignment, settings) as lines:
        for rows in ranges(0, ny, ROWS_AT_A_TIME):
            volume[:, rows.start : rows.stop] = lines.back_project(range(nz), rows).transpose(0, 2, 1)
    return volume


def fbp_sections(
    image: ImageReader,
    alignment: Alignment,
    settings: FbpSettings,
    orientation: str = "imod",
    scratch_folder: Path | None = None,
    report: Report = lambda fraction: None,
) -> Iterator[F32]:
    """The sections of the volume in the order of an MRC file, in bounded memory.

    Args:
        image: gives the raw image ``(ny, nx)`` of a stack index.
        orientation: ``imod``: sections are rows y, ``(thickness, nx)`` with the row index running against z, what
            IMOD's ``tilt`` writes; ``xyz``: sections are planes z, ``(ny, nx)``.
        scratch_folder: where filtered lines go that do not fit in memory (the system's temporary folder if None).
        report: called with the fraction of the work done.
    """
    nz, ny, nx = settings.shape(alignment.aligned_size)
    by_rows = orientation == "imod"
    across = ny if by_rows else nz
    section_bytes = 4 * nx * (nz if by_rows else ny)
    slab = int(np.clip(settings.memory_bytes / 4 / section_bytes, 1, across))
    if by_rows:
        slab = min(slab, ROWS_AT_A_TIME)
    with filtered_lines(image, alignment, settings, scratch_folder, lambda done: report(0.5 * done)) as lines:
        for part in ranges(0, across, slab):
            if by_rows:
                tile = lines.back_project(range(nz), part)
                yield from np.ascontiguousarray(tile[::-1].transpose(2, 0, 1))
            else:
                planes = np.empty((len(part), ny, nx), dtype=np.float32)
                for rows in ranges(0, ny, ROWS_AT_A_TIME):
                    planes[:, rows.start : rows.stop] = lines.back_project(part, rows).transpose(0, 2, 1)
                yield from planes
            report(0.5 + 0.5 * part.stop / across)


@contextmanager
def filtered_lines(
    image: ImageReader,
    alignment: Alignment,
    settings: FbpSettings,
    scratch_folder: Path | None = None,
    report: Report = lambda fraction: None,
) -> Iterator[FilteredLines]:
    """Weighted aligned lines of every tilt that is not excluded; the scratch file is gone when the block ends."""
    tilts = alignment.included
    bin = settings.bin
    nz, ny, nx = settings.shape(alignment.aligned_size)
    x_tilt = np.deg2rad(alignment.x_tilt_deg[tilts])
    rise = int(np.ceil(np.abs(np.sin(x_tilt)).max(initial=0) * nz / 2)) + SPLINE_MARGIN if x_tilt.any() else 0
    # lines reach as far as any voxel is seen and half as far again, where they have settled to the image's mean
    reach = int(np.ceil(np.hypot(nx, nz / np.cos(x_tilt).min(initial=1.0)) / 2)) + 2
    frame = Frame.of(alignment.aligned_size, bin, (reach - nx // 2 + nx // 4, rise + (BIN_MARGIN if bin > 1 else 0)))
    length = nx + 2 * frame.border[0]
    weights = settings.filter.weights(alignment.tilt_deg[tilts], length, nz) / bin
    weights = _compensated(weights, length).astype(np.float32)
    n_rows = ny + 2 * frame.border[1]
    n_kept = 2 * reach * OVERSAMPLING + 2
    first = (length - 1 - 2 * reach) * OVERSAMPLING // 2
    shape = (len(tilts), n_rows, n_kept)
    making = line_filter_on(settings.device, alignment, frame, slice(first, first + n_kept), bool(rise))
    with scratch_array(shape, settings.memory_bytes // 2, scratch_folder) as store:
        for k, m in enumerate(tilts):
            shear = -np.tan(x_tilt[k]) * np.sin(np.deg2rad(alignment.tilt_deg[m]))
            store[k] = making.lines(image(m), int(m), weights[k], float(shear))
            report((k + 1) / len(tilts))
        u0 = first / OVERSAMPLING - (length - 1) / 2
        tilt = np.deg2rad(alignment.tilt_deg[tilts])
        yield FilteredLines(store, tilt, x_tilt, u0, frame.border[1], (nz, ny, nx), settings.device)


class LineFilter:
    """Makes the weighted lines of a raw image, on the CPU; `inrtomo.gpu.resample` does the same on a device.

    Args:
        alignment: of the images.
        frame: what the lines are read on, borders included.
        kept: their samples, `OVERSAMPLING` a voxel, that are of use.
        splined: give B-spline coefficients along the rows.
    """

    def __init__(self, alignment: Alignment, frame: Frame, kept: slice, splined: bool) -> None:
        self.alignment, self.frame, self.kept, self.splined = alignment, frame, kept, splined

    @property
    def sides(self) -> tuple[int, int]:
        """Raw px along x over which lines settle (rows only where they are cut in Fourier space)."""
        frame = self.frame
        return frame.size[0] // 4 * frame.bin, (BIN_MARGIN * frame.bin if frame.bin > 1 else 0)

    def lines(self, raw: NDArray, tilt: int, weights: F32, shear: float) -> F32:
        """``(n_rows, n_u)`` of the image of a stack index, with the factors ``weights`` of its lines' transforms."""
        frame = self.frame
        values, valid = aligned_image(raw, self.alignment, tilt, frame.x, frame.y, shear)
        values = fourier_bin(settle_border(fill_invalid(values, valid), self.sides), frame.bin)
        values, workers = values - values.mean(dtype=np.float64).astype(np.float32), nb.get_num_threads()
        transform = scipy.fft.rfft(values, axis=1, workers=workers)
        transform *= weights
        dense: F32 = scipy.fft.irfft(transform, n=OVERSAMPLING * values.shape[1], axis=1, workers=workers)[:, self.kept]
        return spline_filter1d(dense, order=3, axis=0, output=np.float32) if self.splined else dense


def line_filter_on(device: str, alignment: Alignment, frame: Frame, kept: slice, splined: bool) -> LineFilter:
    """What makes the lines on a device."""
    if device == "cpu":
        return LineFilter(alignment, frame, kept, splined)
    from inrtomo.gpu.resample import DeviceLineFilter

    return DeviceLineFilter(alignment, frame, kept, splined, device)


@dataclass(frozen=True)
class FilteredLines:
    """Weighted lines ready for back-projection; lengths in voxels.

    Attributes:
        lines: ``(n_tilts, n_rows, n_u)``, ``OVERSAMPLING`` samples a voxel; B-spline coefficients along the rows if
            any tilt is x-tilted.
        tilt, x_tilt: radians, ``(n_tilts,)``.
        u0: position of the first sample of a line.
        border: rows before the volume's first row.
        shape: voxels of the volume (nz, ny, nx).
        device: what back-projects.
    """

    lines: F32
    tilt: Array
    x_tilt: Array
    u0: float
    border: int
    shape: tuple[int, int, int]
    device: str = "cpu"

    def back_project(self, z_range: range, y_range: range) -> F32:
        """The tile ``[z, x, y]`` of the volume with the given voxel indices."""
        nz, ny, nx = self.shape
        z = centred_coordinates(nz)[z_range.start : z_range.stop]
        x = centred_coordinates(nx)
        y = centred_coordinates(ny)[y_range.start : y_range.stop]
        tile = np.zeros((len(z), nx, len(y)), dtype=np.float32)
        groups, member = np.unique(np.round(self.x_tilt, 9), return_inverse=True)
        for g, x_tilt in enumerate(groups):
            tilts = np.flatnonzero(member == g)
            cosine, sine = np.cos(x_tilt), np.sin(x_tilt)
            row0 = (ny - 1) / 2 + self.border  # index of the row v = 0
            if self.x_tilt.any():
                v = (y[[0, 0, -1, -1]] * cosine + z[[0, -1, 0, -1]] * sine) + row0
                low, high = int(np.floor(v.min())) - 1, int(np.floor(v.max())) + 3
            else:
                low, high = y_range.start + self.border, y_range.stop + self.border
            rows = np.ascontiguousarray(self.lines[tilts, low:high].transpose(0, 2, 1))
            target = np.zeros((len(z), nx, high - low), dtype=np.float32) if self.x_tilt.any() else tile
            angles = np.cos(self.tilt[tilts]), np.sin(self.tilt[tilts])
            if self.device == "cpu":
                _back_project(rows, *angles, z / cosine, x, self.u0, Z_AT_A_TIME, target)
            else:
                _back_project_on(self.device, rows, *angles, z / cosine, x, self.u0, target)
            if self.x_tilt.any():
                _add_rows(target, z * sine + row0 - low, y * cosine, tile)
        return tile


@nb.njit(parallel=True, fastmath=True, cache=True)
def _back_project(lines, cosines, sines, z, x, u0, z_at_a_time, out):  # type: ignore[no-untyped-def]
    """Add lines ``(n_tilts, n_u, rows)`` along their rays to ``out`` ``(nz, nx, rows)``."""
    nz, nx, rows = out.shape
    n_u = lines.shape[1]
    for task in nb.prange((nz + z_at_a_time - 1) // z_at_a_time):
        for m in range(lines.shape[0]):
            for k in range(task * z_at_a_time, min(nz, (task + 1) * z_at_a_time)):
                for i in range(nx):
                    at = (x[i] * cosines[m] + z[k] * sines[m] - u0) * OVERSAMPLING
                    j = int(np.floor(at))
                    if j < 0 or j + 1 >= n_u:
                        continue
                    w1 = np.float32(at - j)
                    w0 = np.float32(1.0) - w1
                    a, b, target = lines[m, j], lines[m, j + 1], out[k, i]
                    for r in range(rows):
                        target[r] += w0 * a[r] + w1 * b[r]


def _back_project_on(
    device: str, lines: F32, cosines: Array, sines: Array, z: Array, x: Array, u0: float, out: F32
) -> None:
    """As `_back_project`, on a GPU."""
    import torch

    from inrtomo.gpu import operations

    given = (torch.tensor(v, dtype=torch.float32, device=device) for v in (lines, cosines, sines, z, x))
    tile = torch.tensor(out, device=device)
    operations.of(device).back_project_lines(*given, u0, OVERSAMPLING, tile)
    out[:] = tile.cpu().numpy()


@nb.njit(parallel=True, fastmath=True, cache=True)
def _add_rows(coefficients, start, y, out):  # type: ignore[no-untyped-def]
    """Add to ``out`` ``(nz, nx, ny)`` the B-spline ``coefficients`` read at rows ``start[k] + y``."""
    for k in nb.prange(out.shape[0]):
        for r in range(out.shape[2]):
            at = start[k] + y[r]
            j = int(np.floor(at))
            f = at - j
            g = 1.0 - f
            w0, w3 = np.float32(g * g * g / 6.0), np.float32(f * f * f / 6.0)
            w1 = np.float32(2.0 / 3.0 - 0.5 * f * f * (1.0 + g))
            w2 = np.float32(2.0 / 3.0 - 0.5 * g * g * (1.0 + f))
            for i in range(out.shape[1]):
                line = coefficients[k, i]
                out[k, i, r] += w0 * line[j - 1] + w1 * line[j] + w2 * line[j + 1] + w3 * line[j + 2]


def _compensated(weights: Array, length: int) -> Array:
    """Undo what linear interpolation between ``OVERSAMPLING`` samples a pixel takes; irfft's longer norm likewise."""
    weights = weights * OVERSAMPLING / np.sinc(np.fft.rfftfreq(length) / OVERSAMPLING) ** 2
    if length % 2 == 0:
        weights[:, -1] /= 2  # the Nyquist term stands for both signs once the line is longer
    return weights
