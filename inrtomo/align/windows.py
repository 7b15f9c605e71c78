"""What windows of the images say of displacements: jointly Gaussian views of one piece of specimen.

Views of a window, read along the current alignment and stretched by ``1 / cos(tilt)``, are slices of one 3-D Fourier
transform. For a density of known power spectrum inside a slab of thickness T (or inside a bead, T small) and
white-in-space noise they are jointly Gaussian with the covariance

    K_ij(k) = sqrt(S_i S_j) * kappa(k_x, tan a_i - tan a_j) + N_i delta_ij,

``kappa`` the overlap of the slab as the two windows see it. The log-likelihood of the views is then a function of
their displacements alone: its gradient is what sub-pixel correlation of every view with the prediction from *all*
the others gives, and its expected curvature (the Fisher information) says how well each displacement, and each
combination of displacements over tilts, is determined. Smooth-in-tilt errors, which pairwise tracking lets
drift, are seen by it as far as the data hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.align import bundle
from inrtomo.align.prepare import PixelWork
from inrtomo.align.sampling import read_spline

Array = NDArray[Any]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

SHELLS = 24  # radial bins of the spectra between 0 and the band limit
SEEN_FRACTION = 0.85  # of the (tapered) window that has to lie in the image
MODEL_ERROR = 0.02  # share of the power that a slab of stationary density does not describe


@dataclass(frozen=True)
class Window:
    """How a track looks at the images: ``size`` samples ``spacing`` px apart in both directions, Hann-weighted."""

    size: int
    spacing: float

    @property
    def width(self) -> float:
        return self.size * self.spacing

    @property
    def taper(self) -> Array:
        """1-D weights ``(size,)``."""
        offset = np.arange(self.size) - (self.size - 1) / 2
        return np.asarray(np.cos(np.pi * offset / self.size) ** 2)

    @property
    def information(self) -> float:
        """Independent values per Fourier term of the tapered window (the terms next to each other are related)."""
        taper = self.taper
        return float((np.sum(taper**2) ** 2 / (np.sum(taper**4) * self.size)) ** 2)


@dataclass(frozen=True)
class Band:
    """The Fourier terms in use: one half-plane, ``k_x >= 0``, cycles per px of specimen x and y."""

    kx: Array
    ky: Array
    row: NDArray[np.int64]
    column: NDArray[np.int64]

    @classmethod
    def of(cls, window: Window, longest_px: float, shortest_px: float) -> Band:
        kx, ky = np.meshgrid(np.fft.rfftfreq(window.size, window.spacing), np.fft.fftfreq(window.size, window.spacing))
        radius = np.hypot(kx, ky)
        keep = (radius >= 1 / longest_px) & (radius <= 1 / shortest_px) & ((kx > 0) | (ky > 0))
        keep &= (kx < 0.5 / window.spacing) & (np.abs(ky) < 0.5 / window.spacing)
        row, column = np.nonzero(keep)
        return cls(kx[keep], ky[keep], row, column)

    def radius_in(self, tilt_deg: Array) -> Array:
        """Frequency in the image of every tilt, ``(n_terms, n_tilts)``."""
        return np.hypot(self.kx[:, None] / np.cos(np.deg2rad(tilt_deg))[None], self.ky[:, None])


@nb.njit(parallel=True, fastmath=True, cache=True)
def _read_windows(coefficients, inverse, centre_u, shift_less, cosines, size, spacing, taper, out, valid):  # type: ignore[no-untyped-def]
    n_tilts, ny, nx = coefficients.shape
    n_tracks = centre_u.shape[0]
    for m in nb.prange(n_tilts):
        x = np.empty(size * size)
        y = np.empty(size * size)
        value = np.empty(size * size, np.float32)
        inside = np.empty(size * size, np.float32)
        for p in range(n_tracks):
            u0, v0 = centre_u[p, m, 0] + shift_less[m, 0], centre_u[p, m, 1] + shift_less[m, 1]
            for b in range(size):
                v = v0 + (b - (size - 1) / 2) * spacing
                for a in range(size):
                    u = u0 + (a - (size - 1) / 2) * spacing * cosines[m]
                    x[b * size + a] = inverse[m, 0, 0] * u + inverse[m, 0, 1] * v + (nx - 1) / 2
                    y[b * size + a] = inverse[m, 1, 0] * u + inverse[m, 1, 1] * v + (ny - 1) / 2
            read_spline(coefficients[m], x, y, value, inside)
            total, weight, seen = 0.0, 0.0, 0.0
            for b in range(size):
                for a in range(size):
                    w = taper[a] * taper[b]
                    weight += w
                    seen += w * inside[b * size + a]
                    total += w * value[b * size + a]
            valid[p, m] = seen / weight
            mean = np.float32(total / max(seen, 1e-6))
            for b in range(size):
                for a in range(size):
                    out[p, m, b, a] = (
                        (value[b * size + a] - mean) * inside[b * size + a] * taper[a] * taper[b] * cosines[m]
                    )


def read_views(
    coefficients: F32, inverse: Array, shift_px: Array, tilt_deg: Array, centre_u: Array, window: Window, band: Band
) -> tuple[NDArray[np.complex128], Bool]:
    """Fourier terms ``(n_tracks, n_tilts, n_terms)`` of the views and which of them lie in their image.

    Args:
        coefficients: spline coefficients of the images ``(n_tilts, ny, nx)``.
        inverse: aligned -> raw matrices ``(n_tilts, 2, 2)``.
        shift_px: ``(n_tilts, 2)`` in px of the images.
        centre_u: aligned positions of the tracks, local motion included, ``(n_tracks, n_tilts, 2)``.
    """
    n_tracks, n_tilts = centre_u.shape[:2]
    out = np.empty((n_tracks, n_tilts, window.size, window.size), dtype=np.float32)
    seen = np.empty((n_tracks, n_tilts))
    _read_windows(
        coefficients,
        inverse,
        centre_u,
        -shift_px,
        np.cos(np.deg2rad(tilt_deg)),
        window.size,
        window.spacing,
        window.taper,
        out,
        seen,
    )
    spectra = scipy.fft.rfft2(out, axes=(2, 3))[:, :, band.row, band.column]
    spectra = spectra * np.conj(phase_of_corner(window, band))
    return spectra.astype(np.complex128), seen > SEEN_FRACTION


def phase_of_corner(window: Window, band: Band) -> NDArray[np.complex64]:
    """Phase that refers the transform to the window's centre (the same for all views; only for tidiness)."""
    offset = (window.size - 1) / 2 * window.spacing
    return np.exp(-2j * np.pi * (band.kx + band.ky) * offset).astype(np.complex64)


def overlap(band: Band, tilt_deg: Array, window: Window, slab_px: float) -> Array:
    """``kappa``: what the views of a slab share, ``(n_terms, n_tilts, n_tilts)``, 1 on the diagonal."""
    tangent = np.tan(np.deg2rad(tilt_deg))
    delta = tangent[:, None] - tangent[None]
    n_z = int(np.clip(slab_px / 2, 9, 65))
    z = (np.arange(n_z) - (n_z - 1) / 2) * (slab_px / n_z)
    lag = np.abs(delta[None] * z[:, None, None])
    taper = window.taper
    correlation = np.correlate(taper, taper, mode="full")[window.size - 1 :]
    shared = np.interp(lag, np.arange(window.size) * window.spacing, correlation / correlation[0], right=0.0)
    columns, where = np.unique(band.kx, return_inverse=True)
    out = np.empty((len(columns), len(tilt_deg), len(tilt_deg)))
    for i, kx in enumerate(columns):
        out[i] = (np.cos(2 * np.pi * kx * z[:, None, None] * delta[None]) * shared).mean(axis=0)
    return out[where]


@dataclass(frozen=True)
class Spectra:
    """Power of signal (stretched views) and noise in the windows' units by image frequency, per tilt.

    Attributes:
        signal: ``(n_terms, n_tilts)``.
        noise: ``(n_terms, n_tilts)``, infinite where an image has nothing to say.
    """

    signal: Array
    noise: Array


class TrackWork(PixelWork):
    """What takes time in following tracks, on the CPU; `inrtomo.gpu.tracks` does the same on a device.

    Views ``(n_tracks, n_tilts, n_terms)`` are an array wherever the work is done.
    """

    def read_views(
        self,
        coefficients: Any,
        inverse: Array,
        shift_px: Array,
        tilt_deg: Array,
        centre_u: Array,
        window: Window,
        band: Band,
    ) -> tuple[Any, Bool]:
        """See `read_views`."""
        return read_views(coefficients, inverse, shift_px, tilt_deg, centre_u, window, band)

    def shared(self, views: Any, valid: Bool, pairs: Sequence[tuple[int, int]]) -> list[Array]:
        """Real part of ``conj(view i) view j``, summed over the tracks seen in both, ``(n_terms,)`` for each pair."""
        return [
            (np.conj(views[both, i]) * views[both, j]).real.sum(axis=0)
            for i, j in pairs
            for both in [valid[:, i] & valid[:, j]]
        ]

    def power(self, views: Any, valid: Bool) -> list[Array]:
        """``|view|^2`` summed over the tracks seen, ``(n_terms,)`` for each tilt."""
        return [(np.abs(views[valid[:, i], i]) ** 2).sum(axis=0) for i in range(valid.shape[1])]

    def weighted_power(self, views: Any, weight: Array) -> Array:
        """``|view|^2`` summed over the terms with weights ``(n_tilts, n_terms)``: ``(n_tracks, n_tilts)``."""
        return np.asarray(np.einsum("pif,if->pi", np.abs(views) ** 2, weight))

    def likelihood(
        self,
        views: Any,
        valid: Bool,
        band: Band,
        tilt_deg: Array,
        kappa: Array,
        spectra: Spectra,
        window: Window,
        strength: Array | None = None,
        with_determinant: bool = False,
    ) -> Likelihood:
        """See `likelihood`."""
        return likelihood(views, valid, band, tilt_deg, kappa, spectra, window, strength, with_determinant)

    def solve(
        self,
        gradient: Array,
        information: Array,
        u: Array,
        tilt_deg: Array,
        motion: bundle.Motion,
        model: bundle.MotionModel,
        height_sd: Array,
        largest_px: float,
    ) -> bundle.Motion:
        """See `inrtomo.align.bundle.solve`."""
        return bundle.solve(gradient, information, u, tilt_deg, motion, model, height_sd, largest_px)


ON_CPU = TrackWork()


def estimate_spectra(
    views: Any,
    valid: Bool,
    band: Band,
    tilt_deg: Array,
    kappa: Array,
    shortest_px: float,
    work: TrackWork = ON_CPU,
) -> Spectra:
    """Signal from what neighbouring tilts share, noise from what is left of each tilt's power."""
    order = np.argsort(tilt_deg)
    limit = 1.0 / shortest_px
    radius = band.radius_in(tilt_deg)
    shell = np.minimum((radius / limit * SHELLS).astype(int), SHELLS - 1)
    shared, counted = np.zeros(SHELLS), np.zeros(SHELLS)
    neighbours = [pair for step in (1, 2) for pair in zip(order[:-step].tolist(), order[step:].tolist(), strict=True)]
    for (i, j), product in zip(neighbours, work.shared(views, valid, neighbours), strict=True):
        use = (kappa[:, i, j] > 0.5) & (radius[:, i] < limit) & (radius[:, j] < limit)
        np.add.at(shared, shell[use, i], product[use])
        np.add.at(counted, shell[use, i], kappa[use, i, j] * (valid[:, i] & valid[:, j]).sum())
    total, n_total = np.zeros((SHELLS, len(tilt_deg))), np.zeros((SHELLS, len(tilt_deg)))
    for i, power in enumerate(work.power(views, valid)):
        np.add.at(total[:, i], shell[:, i], power)
        np.add.at(n_total[:, i], shell[:, i], valid[:, i].sum())
    total = total / np.maximum(n_total, 1)
    usual = np.array(
        [np.median(row[some > 0]) if (some > 0).any() else 0.0 for row, some in zip(total, n_total, strict=True)]
    )
    signal = np.where(counted > 0, shared / np.maximum(counted, 1), 0)
    signal = np.convolve(np.pad(signal, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    signal = np.clip(signal, 1e-3 * usual, 0.98 * usual)
    noise = np.maximum(total - signal[:, None], MODEL_ERROR * total) + 1e-12
    out_signal = signal[shell]
    out_noise = np.take_along_axis(noise, shell, axis=0)
    out_noise[radius >= limit] = np.inf
    return Spectra(out_signal, out_noise)


def strengths(views: Any, valid: Bool, spectra: Spectra, work: TrackWork = ON_CPU) -> Array:
    """How strong every track's signal is compared with the average, rounded to powers of two, ``(n_tracks,)``.

    Empty places say less, and dense ones more, than the average piece of specimen.
    """
    heard = np.isfinite(spectra.noise)
    noise = np.where(heard, spectra.noise, 1.0)
    weight = np.where(heard, spectra.signal / (spectra.signal + noise) ** 2, 0.0).T
    above = work.weighted_power(views, weight) - (weight * noise.T).sum(axis=1)
    expected = (weight * spectra.signal.T).sum(axis=1)
    ratio = (above * valid).sum(axis=1) / np.maximum((expected * valid).sum(axis=1), 1e-30)
    return np.asarray(2.0 ** np.round(np.log2(np.clip(ratio, 1 / 8, 8))))


@dataclass
class Likelihood:
    """Gradient and information of all tracks about the current alignment, aligned px.

    Attributes:
        gradient: ``(n_tracks, n_tilts, 2)``.
        information: ``(n_tracks, 2, n_tilts, n_tilts)`` for x and y; the cross terms vanish on average.
        misfit: mean of ``|view - prediction|^2`` over its expectation, ``(n_tracks, n_tilts)``, NaN if unseen.
        value: log-likelihood up to a constant, per track.
    """

    gradient: Array
    information: Array
    misfit: Array
    value: Array


@dataclass(frozen=True)
class Groups:
    """What the likelihood needs before it looks at the views: Fourier terms that differ, and tracks that do not.

    Attributes:
        first: a term of every kind of them (a term and its mirror in k_y have the same covariance).
        same: the kind of every term; multiplicity: how many terms are of each kind.
        amplitude, noise: ``(n_kinds, n_tilts)`` root of the signal power, power of the noise (0 where not heard).
        heard: ``(n_kinds, n_tilts)`` whether an image has anything to say.
        k_image_x, k_image_y: angular frequencies in the images, ``(n_kinds, n_tilts)`` and ``(n_kinds,)``.
        kx_all, ky_all: the same of every term, with their signs.
        groups: strength and tracks, of tracks of one strength seen in the same tilts.
    """

    first: NDArray[np.int64]
    same: NDArray[np.int64]
    multiplicity: Array
    amplitude: Array
    noise: Array
    heard: Bool
    k_image_x: Array
    k_image_y: Array
    kx_all: Array
    ky_all: Array
    groups: list[tuple[float, NDArray[np.int64]]]

    @classmethod
    def of(cls, band: Band, tilt_deg: Array, spectra: Spectra, valid: Bool, strength: Array | None) -> Groups:
        """Of tracks seen in ``valid`` ``(n_tracks, n_tilts)``, all of strength 1 unless given."""
        cosine = np.cos(np.deg2rad(tilt_deg))
        half = np.stack([band.kx, np.abs(band.ky)], axis=1).round(9)
        _, first, same = np.unique(half, axis=0, return_index=True, return_inverse=True)
        same = same.ravel()
        noise = spectra.noise[first]
        heard = np.isfinite(noise)
        strength = np.ones(len(valid)) if strength is None else strength
        kinds, group = np.unique(np.column_stack([strength, valid]), axis=0, return_inverse=True)
        return cls(
            first,
            same,
            np.bincount(same).astype(float),
            np.sqrt(spectra.signal[first]),
            np.where(heard, noise, 0),
            heard,
            2 * np.pi * band.kx[first, None] / cosine[None],
            2 * np.pi * np.abs(band.ky[first]),
            2 * np.pi * band.kx[:, None] / cosine[None],
            2 * np.pi * band.ky,
            [(float(kind[0]), np.flatnonzero(group.ravel() == g)) for g, kind in enumerate(kinds)],
        )


def likelihood(
    views: NDArray[np.complex128],
    valid: Bool,
    band: Band,
    tilt_deg: Array,
    kappa: Array,
    spectra: Spectra,
    window: Window,
    strength: Array | None = None,
    with_determinant: bool = False,
) -> Likelihood:
    """See the module's text; tracks that are seen in the same tilts share one inverse.

    ``strength`` ``(n_tracks,)`` scales the signal power of every track (few different values: see `strengths`).
    ``value`` is comparable between models of the density (slab thickness) only ``with_determinant``.
    """
    n_tracks, n_tilts, _ = views.shape
    terms = Groups.of(band, tilt_deg, spectra, valid, strength)
    same, heard, noise, multiplicity = terms.same, terms.heard, terms.noise, terms.multiplicity
    amplitude = terms.amplitude
    covariance = kappa[terms.first] * amplitude[:, :, None] * amplitude[:, None, :]
    k_image_x, k_image_y = terms.k_image_x, terms.k_image_y

    out = Likelihood(
        np.zeros((n_tracks, n_tilts, 2)),
        np.zeros((n_tracks, 2, n_tilts, n_tilts)),
        np.full((n_tracks, n_tilts), np.nan),
        np.zeros(n_tracks),
    )
    diagonal = np.arange(n_tilts)
    for level, members in terms.groups:
        pattern = valid[members[0]]
        seen = heard & pattern[None]
        full = np.where(seen[:, :, None] & seen[:, None, :], level * covariance, 0.0)
        full[:, diagonal, diagonal] += np.where(seen, noise, 1.0)
        inverse = np.linalg.inv(full)
        determinant = float(multiplicity @ np.linalg.slogdet(full)[1]) if with_determinant else 0.0
        inverse *= seen[:, :, None] & seen[:, None, :]
        product = inverse * full
        product[:, diagonal, diagonal] -= 1.0 * seen
        info_x = 2 * np.einsum("f,fi,fj,fij->ij", multiplicity, k_image_x, k_image_x, product, optimize=True)
        info_y = 2 * np.einsum("f,fij->ij", multiplicity * k_image_y**2, product, optimize=True)
        y = views[members] * pattern[None, :, None]
        y = np.where(heard[same].T[None], y, 0)
        alpha = np.empty_like(y)
        stack = np.ascontiguousarray(y.transpose(2, 1, 0))
        for term in range(stack.shape[0]):
            alpha[:, :, term] = (inverse[same[term]] @ stack[term]).T
        slope = np.imag(np.conj(y) * alpha)
        out.gradient[members, :, 0] = -2 * np.einsum("pif,fi->pi", slope, terms.kx_all)
        out.gradient[members, :, 1] = -2 * np.einsum("pif,f->pi", slope, terms.ky_all)
        out.information[members, 0] = info_x
        out.information[members, 1] = info_y
        power = np.abs(alpha) ** 2
        expected = inverse[:, diagonal, diagonal][same].T  # E |alpha_i|^2 = Q_ii
        count = np.maximum((expected > 0).sum(axis=1), 1)
        ratio = np.where(expected > 0, power / np.where(expected > 0, expected, 1), 0).sum(axis=2) / count
        out.misfit[members] = np.where(pattern[None], ratio, np.nan)
        out.value[members] = -np.einsum("pif,pif->p", np.conj(y), alpha).real - determinant
    scale = window.information
    out.gradient *= scale
    out.information *= scale
    out.value *= scale
    return out
