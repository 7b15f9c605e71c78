"""Coarse alignment: cosine-stretched correlation outwards from the lowest tilt, and the tilt axis from nothing.

Every tilt is compared with the sum of its already aligned neighbours, each stretched to the specimen's
coordinate ``x' = u / cos(tilt)`` and stripped of what a slab of finite thickness does not share between the two
tilts: in Fourier space ``sinc(T k_x (tan a - tan b))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.align.prepare import PixelWork, Prepared
from inrtomo.align.sampling import read
from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation

Array = NDArray[Any]
F32 = NDArray[np.float32]
Complex = NDArray[Any]
Progress = Callable[[str, float], None]

WORKING_SIZE = 160  # px: images are binned until the smaller side is at most this
LONGEST_PX, SHORTEST_PX = 40.0, 5.0  # pass band, binned px
SLAB_OF_SIZE = 0.3  # thickness assumed for the correlation, of the smaller image side
REACH = 0.3  # of the smaller image side: largest shift between neighbours
FAR_REACH = 0.45  # for a tilt whose peak says that it was not found
NOT_FOUND = 0.5  # of the median height of peaks (a false peak: 0.1)


class CorrelationWork(PixelWork):
    """What takes time in a correlation, on the CPU; `inrtomo.gpu.correlation` does the same on a device.

    Spectra are arrays wherever the work is done.
    """

    def view(self, coefficients: Any, tilt_deg: float, shift: Array, matrix: Array, size: int) -> Any:
        """Spectrum of one tilt read on a ``size`` x ``size`` grid of (x', y), tapered at the ends."""
        return _view(coefficients, tilt_deg, shift, matrix, size)

    def weighted_sum(self, weights: Sequence[Array], spectra: Sequence[Any]) -> Any:
        """Spectra ``(size, size // 2 + 1)`` times weights that broadcast to them, summed."""
        return sum(weight * spectrum for weight, spectrum in zip(weights, spectra, strict=True))

    def peak(self, reference: Any, view: Any, reach: float, cosine: float) -> tuple[Array, float]:
        """How far a tilt has to move (u, y) for its view to fit the reference, and the height of the peak in sd."""
        return _peak(reference, view, reach, cosine)

    def axis_scores(self, images: F32, tilt_deg: Array, angles_deg: Array, size: int) -> Array:
        """How alike the profiles of the tilts are along every direction."""
        return _axis_scores(images, tilt_deg, angles_deg, size)


ON_CPU = CorrelationWork()


def coarse_alignment(
    prepared: Prepared,
    tilt_deg: Array,
    axis_deg: float | None,
    pixel_size_A: float | None = None,
    progress: Progress | None = None,
    work: CorrelationWork = ON_CPU,
    working: tuple[F32, int] | None = None,
) -> Alignment:
    """Shifts by correlation; the axis angle is searched over 180 degrees when None.

    The two directions of an axis give mirrored specimens that fit the images equally well: with ``axis_deg``
    None the result lies in (-90, 90], and which of the two it is stays for the caller to say. ``working`` are the
    `working_images` of ``prepared``, where they have been made already.
    """
    tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
    images, factor = working or working_images(prepared, work)
    if axis_deg is None:
        axis_deg = find_axis(images[prepared.included], tilt_deg[prepared.included], work)
        if progress:
            progress("axis", 1.0)
    shifts, _ = correlate_outwards(images, tilt_deg, prepared.included, axis_deg, progress, work)
    start = Alignment.identity(tilt_deg, prepared.raw_size, axis_deg, pixel_size_A)
    # tilts left out get the shift of their nearest used neighbour: a harmless line in the .xf
    for i in prepared.excluded:
        shifts[i] = shifts[prepared.included[np.argmin(np.abs(tilt_deg[prepared.included] - tilt_deg[i]))]]
    return replace(start, shift_px=shifts * factor, excluded=dict(prepared.excluded))


def working_images(prepared: Prepared, work: PixelWork = ON_CPU) -> tuple[F32, int]:
    """Band-passed images binned to about `WORKING_SIZE`, and raw px per pixel of them."""
    factor = max(1, int(np.ceil(min(prepared.images.shape[1:]) / WORKING_SIZE)))
    images = prepared.images
    if factor > 1:
        images = np.stack([work.fourier_crop(image, factor) for image in images])
    return work.band_pass(images, LONGEST_PX, SHORTEST_PX), factor * prepared.bin


def correlate_outwards(
    images: F32,
    tilt_deg: Array,
    included: NDArray[np.int64],
    axis_deg: float,
    progress: Progress | None = None,
    work: CorrelationWork = ON_CPU,
) -> tuple[Array, Array]:
    """Shifts ``(n, 2)`` (aligned = A raw + shift, px of ``images``) and correlation peaks ``(n,)`` in sd."""
    n = len(images)
    size = int(min(images.shape[1:]))
    slab = SLAB_OF_SIZE * size
    matrix = np.linalg.inv(axis_rotation(axis_deg))
    coefficients = work.coefficients(images)
    tangent = np.tan(np.deg2rad(tilt_deg))
    shifts, peaks = np.zeros((n, 2)), np.zeros(n)
    spectra: dict[int, Any] = {}
    order = sorted(included, key=lambda i: (abs(tilt_deg[i]), i))
    for pass_number in range(2):
        for rank, i in enumerate(order):
            known = [j for j in spectra if j != i]
            if pass_number == 0 and not known:
                spectra[i] = work.view(coefficients[i], tilt_deg[i], shifts[i], matrix, size)
                continue
            near = sorted(known, key=lambda j: abs(tilt_deg[j] - tilt_deg[i]))[: 4 if pass_number == 0 else 8]
            lost = pass_number == 1 and peaks[i] < NOT_FOUND * np.median([peaks[j] for j in order[1:]])
            if pass_number == 0 or lost:
                shifts[i] = shifts[near[0]]
            kx = np.fft.rfftfreq(size)[None, :]
            shared = [np.sinc(slab * kx * (tangent[j] - tangent[i])) for j in near]
            reference = work.weighted_sum(shared, [spectra[j] for j in near])
            reach = (FAR_REACH if lost else REACH if pass_number == 0 else 0.06) * size
            cosine = float(np.cos(np.deg2rad(tilt_deg[i])))
            for _ in range(2):
                # the second look reads the tilt where the first one found it, so that the views overlap fully
                view = work.view(coefficients[i], tilt_deg[i], shifts[i], matrix, size)
                move, peaks[i] = work.peak(reference, view, reach, cosine)
                shifts[i] = shifts[i] + move
                if np.abs(move).max() < 1.0:
                    break
                reach = 0.1 * size
            spectra[i] = work.view(coefficients[i], tilt_deg[i], shifts[i], matrix, size)
            if progress:
                progress("coarse", (pass_number * len(order) + rank + 1) / (2 * len(order)))
    shifts -= shifts[order[0]]
    return shifts, peaks


def _view(coefficients: F32, tilt_deg: float, shift: Array, matrix: Array, size: int) -> Complex:
    """Spectrum of one tilt read on a ``size`` x ``size`` grid of (x', y), tapered at the ends."""
    ny, nx = coefficients.shape
    grid = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(grid * np.cos(np.deg2rad(tilt_deg)) - shift[0], grid - shift[1])
    px = matrix[0, 0] * x + matrix[0, 1] * y + (nx - 1) / 2
    py = matrix[1, 0] * x + matrix[1, 1] * y + (ny - 1) / 2
    values, inside = read(coefficients, px, py)
    weight = inside * view_taper(size)
    total = float(weight.sum())
    if total > 0:
        values = (values - float((values * weight).sum()) / total) * weight
    return np.asarray(scipy.fft.rfft2(values, s=(size, size)), dtype=np.complex64)


def view_taper(size: int) -> F32:
    """Weights ``(size, size)`` that fall to 0 at the ends of a view."""
    grid = np.arange(size) - (size - 1) / 2
    edge = np.clip((size / 2 - np.abs(grid)) / (0.12 * size), 0, 1)
    taper = np.sin(0.5 * np.pi * edge) ** 2
    return np.asarray((taper[:, None] * taper[None]).astype(np.float32))


def _peak(reference: Complex, view: Complex, reach: float, cosine: float) -> tuple[Array, float]:
    """How far a tilt has to move (u, y) for its view to fit the reference, and the height of the peak in sd."""
    cross = reference * np.conj(view)
    # half-way to phase correlation: strong low frequencies do not rule, noise is not blown up
    cross = cross / np.sqrt(np.abs(cross) + 1e-6 * float(np.abs(cross).max()) + 1e-30)
    size = view.shape[0]
    surface = scipy.fft.irfft2(cross, s=(size, size))
    distance = np.fft.fftfreq(size) * size
    allowed = np.hypot(distance[:, None], distance[None] * cosine) <= reach
    row, column = np.unravel_index(int(np.argmax(np.where(allowed, surface, -np.inf))), surface.shape)
    height = float(surface[row, column] / surface.std())
    dy = parabola_top(surface[row - 1, column], surface[row, column], surface[(row + 1) % size, column])
    dx = parabola_top(surface[row, column - 1], surface[row, column], surface[row, (column + 1) % size])
    return np.array([(distance[column] + dx) * cosine, distance[row] + dy]), height


def parabola_top(before: float, middle: float, after: float) -> float:
    """Where between neighbours the parabola through three samples is highest, samples from the middle one."""
    curvature = before - 2 * middle + after
    return 0.0 if curvature >= 0 else float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5))


def find_axis(images: F32, tilt_deg: Array, work: CorrelationWork = ON_CPU) -> float:
    """Tilt-axis angle in (-90, 90], IMOD's sense, by common lines.

    Summed at right angles to the axis, all tilts give the same profile along it, shifted; along any other
    direction the profiles change with tilt. Scores, for every direction, the correlation of profiles of tilts
    some 10-25 degrees apart, best over their relative shift.
    """
    size = int(min(images.shape[1:]))
    coarse = np.arange(-90.0, 90.0, 1.0)
    scores = work.axis_scores(images, tilt_deg, coarse, size)
    best = float(coarse[int(np.argmax(scores))])
    fine = best + np.arange(-3.0, 3.01, 0.25)
    scores = work.axis_scores(images, tilt_deg, fine, size)
    # the top is broad and a little rugged: its parabola, not its highest sample
    fit = np.polyfit(fine - best, scores, 2)
    angle = best + float(np.clip(-fit[1] / (2 * fit[0]), -3, 3)) if fit[0] < 0 else float(fine[int(np.argmax(scores))])
    return angle - 180.0 if angle > 90.0 else angle + 180.0 if angle <= -90.0 else angle


def _axis_scores(images: F32, tilt_deg: Array, angles_deg: Array, size: int) -> Array:
    n = len(images)
    flat, x, y = in_circle(images, size)
    first, second = pairs_to_compare(tilt_deg)
    scores = np.empty(len(angles_deg))
    for a, angle in enumerate(angles_deg):
        rotation = axis_rotation(float(angle))
        along = rotation[1, 0] * x + rotation[1, 1] * y + size / 2
        cell = np.floor(along).astype(int)
        fraction = (along - cell).astype(np.float32)
        profiles = np.zeros((n, size + 2))
        for m in range(n):
            profiles[m] = np.bincount(cell, flat[m] * (1 - fraction), size + 2) + np.bincount(
                cell + 1, flat[m] * fraction, size + 2
            )
        spectrum = scipy.fft.rfft(profiles, 2 * size, axis=1)
        spectrum = spectrum * profile_band(size)
        spectrum /= np.sqrt(np.abs(spectrum) + 1e-9)
        norm = np.sqrt((np.abs(spectrum) ** 2).sum(axis=1))
        correlation = scipy.fft.irfft(spectrum[first] * np.conj(spectrum[second]), axis=1) * spectrum.shape[1]
        scores[a] = float(np.mean(correlation.max(axis=1) / (norm[first] * norm[second])))
    return scores


def in_circle(images: F32, size: int) -> tuple[F32, Array, Array]:
    """Pixels ``(n, pixels)`` of images within the circle that fits into them, faded out, and their x and y."""
    ny, nx = images.shape[1:]
    x, y = np.meshgrid(np.arange(nx) - (nx - 1) / 2, np.arange(ny) - (ny - 1) / 2)
    radius = np.hypot(x, y)
    window = np.where(radius < size / 2, np.cos(np.pi * radius / size) ** 1.0, 0).astype(np.float32)
    flat = (images * window).reshape(len(images), -1)
    use = (window > 0).ravel()
    return flat[:, use], x.ravel()[use], y.ravel()[use]


def pairs_to_compare(tilt_deg: Array) -> tuple[Array, Array]:
    """Tilts whose profiles are compared: some 10-25 degrees apart, up to 50 degrees, where views share much."""
    low = np.flatnonzero(np.abs(tilt_deg) <= 50)
    pairs = [(int(i), int(j)) for i in low for j in low if 9 <= tilt_deg[j] - tilt_deg[i] <= 26]
    if not pairs:
        pairs = [(i, j) for i in range(len(tilt_deg)) for j in range(i + 1, len(tilt_deg))]
    first, second = np.array(pairs).T
    return first, second


def profile_band(size: int) -> NDArray[np.bool_]:
    """Frequencies that count in profiles padded to ``2 * size`` samples."""
    k = np.arange(size + 1) / (2 * size)
    return (k > 1 / 40) & (k < 1 / 6)
