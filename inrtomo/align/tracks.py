"""Feature tracks: small pieces of the specimen followed through all tilts at once.

A track is a specimen point with a window around it. Its views, read along the current alignment and stretched
by ``1 / cos(tilt)``, are slices of one 3-D Fourier transform. For a density of known power spectrum inside a slab
of thickness T (or inside a bead, T small) and white-in-space noise they are jointly Gaussian with the covariance

    K_ij(k) = sqrt(S_i S_j) * kappa(k_x, tan a_i - tan a_j) + N_i delta_ij,

``kappa`` the overlap of the slab as the two windows see it. The log-likelihood of the views is then a function of
their displacements alone: its gradient is what sub-pixel correlation of every view with the prediction from *all*
the others gives, and its expected curvature (the Fisher information) says how well each displacement, and each
combination of displacements over tilts, is determined. Smooth-in-tilt errors, which pairwise tracking lets
drift, are seen by it as far as the data hold them. `bundle` puts all tracks together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.align import bundle
from inrtomo.align.prepare import PixelWork, Prepared
from inrtomo.align.sampling import read_spline
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError

Array = NDArray[Any]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Progress = Callable[[str, float], None]

SHELLS = 24  # radial bins of the spectra between 0 and the band limit
SEEN_FRACTION = 0.85  # of the (tapered) window that has to lie in the image
SLAB_BIAS = 1.2  # see `_Followed.best_slab`
OUTLIER_SD = 5.0
MOST_OUTLIERS = 0.25  # of a tilt's views: beyond that it is the tilt that is wrong
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


@dataclass(frozen=True)
class TrackSettings:
    """How tracks are laid out and followed.

    Attributes:
        working_size: images are binned until their smaller side is at most this many px.
        window: samples along a side of a track's window (working px x `spacing`).
        spacing: working px between samples.
        step: working px between the centres of neighbouring tracks.
        shortest_px: finest wavelength of every round, working px, coarse to fine.
        slab_px: thickness of the specimen, raw px; None estimates it from the likelihood.
        nodes: control points per side for local motion (0: none).
        local_sd_px: width of the prior on them, raw px; affine_sd_px: on per-tilt strain (at the border);
            rotation_sd_deg: on per-tilt rotation; shift_sd_px: on shifts, working px.
        longest_px: longest wavelength used, working px.
    """

    working_size: int = 340
    window: int = 32
    spacing: float = 2.0
    step: float = 24.0
    shortest_px: tuple[float, ...] = (16.0, 10.0, 7.0, 6.0, 6.0, 6.0)
    slab_px: float | None = None
    nodes: int = 5
    local_sd_px: float = 0.45
    shift_sd_px: float = 30.0
    affine_sd_px: float = 0.2
    rotation_sd_deg: float = 0.4
    longest_px: float = 48.0


TRACK_DEFAULTS = TrackSettings()


@dataclass(frozen=True)
class TrackResult:
    """A bundle-adjusted alignment and what it rests on.

    Attributes:
        alignment: shifts, common axis, per-tilt affine part, and local motion as a smooth warp.
        points: specimen positions (x, y, z) of the tracks, raw px, ``(n_tracks, 3)``.
        residual_px: how far every view lies from the prediction of all others, aligned px,
            ``(n_tracks, n_tilts, 2)``, NaN where unseen or left out.
        sigma_px: what noise alone lets expect of it, same shape.
        used: ``(n_tracks, n_tilts)``.
        slab_px: thickness used, raw px.
        axis_deg: common tilt axis.
        notes: what was decided, to be printed.
    """

    alignment: Alignment
    points: Array
    residual_px: Array
    sigma_px: Array
    used: Bool
    slab_px: float
    axis_deg: float
    notes: list[str]

    @property
    def residual_per_tilt(self) -> Array:
        """Weighted RMS residual of every tilt, px (NaN where nothing was seen)."""
        return _weighted_rms(self.residual_px, self.sigma_px, axis=0)

    @property
    def residual_per_track(self) -> Array:
        """Weighted RMS residual of every track, px."""
        return _weighted_rms(self.residual_px, self.sigma_px, axis=1)

    @property
    def residual_rms(self) -> float:
        """Weighted RMS residual of all views, px."""
        return float(_weighted_rms(self.residual_px.reshape(-1, 2), self.sigma_px.reshape(-1, 2), axis=0))


def _weighted_rms(residual: Array, sigma: Array, axis: int) -> Array:
    weight = np.where(np.isfinite(residual) & np.isfinite(sigma), 1 / np.maximum(sigma, 1e-3) ** 2, 0.0)
    squares = (np.nan_to_num(residual) ** 2 * weight).sum(axis=(axis, -1))
    total = weight.sum(axis=(axis, -1)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(np.where(total > 0, squares / total, np.nan)))


def track_and_bundle(
    prepared: Prepared,
    alignment: Alignment,
    settings: TrackSettings = TRACK_DEFAULTS,
    progress: Progress | None = None,
    work: TrackWork = ON_CPU,
) -> TrackResult:
    """Follow tracks through all usable tilts from a coarse alignment, and solve for the alignment they agree on.

    Raises:
        InputError: when fewer than three tilts are usable.
    """
    used = np.array([i for i in prepared.included if i not in alignment.excluded], dtype=np.int64)
    if len(used) < 3:
        raise InputError(f"tilt series: only {len(used)} usable tilts; tracking needs at least 3")
    followed = _Followed.start(prepared, alignment, used, settings, work)
    notes: list[str] = []
    slab = settings.slab_px or 0.27 * min(prepared.raw_size)
    rounds = settings.shortest_px
    for number, shortest in enumerate(rounds):
        if settings.slab_px is None and number == 2:
            slab = followed.best_slab(slab, shortest)
        followed.improve(slab, shortest, reject=2 <= number < len(rounds) - 1)
        if progress:
            progress("tracks", (number + 1) / len(rounds))
    residual, sigma, seen = followed.residuals(slab, rounds[-1])
    result = followed.alignment()
    axis = float(np.median(result.rotation_deg[used]))
    notes.append(f"{len(followed.points)} tracks; tilt axis {axis:.2f} deg; specimen about {slab:.0f} px thick")
    tilt_rms = _weighted_rms(residual, sigma, axis=0)
    if followed.rejected.any():
        notes.append(f"{int(followed.rejected.sum())} of {int(seen.sum())} views left out as outliers")
    for k in np.flatnonzero(tilt_rms > 4 * np.nanmedian(tilt_rms)):
        notes.append(
            f"tilt {used[k]} ({alignment.tilt_deg[used[k]]:.1f} deg) fits badly: residual {tilt_rms[k]:.1f} px"
        )
    n = alignment.n_tilts
    full_residual, full_sigma = np.full((2, len(followed.points), n, 2), np.nan)
    full_seen = np.zeros((len(followed.points), n), dtype=bool)
    full_residual[:, used], full_sigma[:, used], full_seen[:, used] = residual, sigma, seen
    points = np.concatenate([followed.points, followed.motion.height[:, None]], axis=1)
    return TrackResult(result, points, full_residual, full_sigma, full_seen, slab, axis, notes)


AXIS_SETTINGS = TrackSettings(
    step=40.0, shortest_px=(16.0, 14.0, 12.0, 10.0), nodes=0, affine_sd_px=0.05, rotation_sd_deg=0.02
)


def refined_axis(
    prepared: Prepared, alignment: Alignment, settings: TrackSettings = AXIS_SETTINGS, work: TrackWork = ON_CPU
) -> float:
    """Tilt axis (degrees, IMOD's sense) that tracks agree on when the specimen is taken to be rigid.

    For starts that are several degrees off: local motion is not allowed, or it would explain part of the error.
    """
    used = np.array([i for i in prepared.included if i not in alignment.excluded], dtype=np.int64)
    followed = _Followed.start(prepared, alignment, used, settings, work)
    for shortest in settings.shortest_px:
        followed.improve(0.27 * min(prepared.raw_size), shortest)
    return float(np.median(followed.alignment().rotation_deg[used]))


class _Followed:
    """The state of tracking: images at working size, track positions, and the motion found so far (raw px)."""

    def __init__(
        self,
        images: F32,
        factor: float,
        start: Alignment,
        used: NDArray[np.int64],
        settings: TrackSettings,
        work: TrackWork,
    ) -> None:
        self.work = work
        self.settings, self.start_alignment, self.used, self.factor = settings, start, used, factor
        self.tilt_deg = start.tilt_deg[used]
        self.window = Window(settings.window, settings.spacing * factor)
        self.coefficients = work.coefficients(images)
        nx, ny = start.image_size
        turn = start.linear[used].mean(axis=0)
        self.half_size = (
            (abs(turn[0, 0]) * nx + abs(turn[0, 1]) * ny) / 2,
            (abs(turn[1, 0]) * nx + abs(turn[1, 1]) * ny) / 2,
        )
        step = settings.step * factor
        x = _grid(1.24 * self.half_size[0], step)
        y = _grid(self.half_size[1] - 0.3 * self.window.width, step)
        self.points = np.stack([v.ravel() for v in np.meshgrid(x, y)], axis=1)
        self.model = bundle.MotionModel(
            self.half_size,
            settings.nodes,
            shift_sd=settings.shift_sd_px * factor,
            affine_sd=settings.affine_sd_px,
            rotation_sd=float(np.deg2rad(settings.rotation_sd_deg) * np.mean(self.half_size)),
            local_sd=settings.local_sd_px,
        )
        self.motion = bundle.Motion(np.zeros((len(used), 2, self.model.n_basis)), 0.0, np.zeros(len(self.points)))
        # windows overlap: neighbouring tracks share information
        self.share = min(1.0, (settings.step / (settings.window * settings.spacing * 0.375)) ** 2)
        self.rejected = np.zeros((len(self.points), len(used)), dtype=bool)

    @classmethod
    def start(
        cls,
        prepared: Prepared,
        alignment: Alignment,
        used: NDArray[np.int64],
        settings: TrackSettings,
        work: TrackWork,
    ) -> _Followed:
        extra = max(1, int(np.ceil(min(prepared.images.shape[1:]) / settings.working_size)))
        images = prepared.images[used]
        if extra > 1:
            images = np.stack([work.fourier_crop(image, extra) for image in images])
        images = work.band_pass(images, 120.0, 4.0)
        return cls(images, float(extra * prepared.bin), alignment, used, settings, work)

    def positions(self) -> Array:
        """Ideal aligned positions ``(n_tracks, n_tilts, 2)``, without motion."""
        cosine, sine = np.cos(np.deg2rad(self.tilt_deg)), np.sin(np.deg2rad(self.tilt_deg))
        u = self.points[:, :1] * cosine + self.motion.height[:, None] * sine
        return np.stack([u, np.repeat(self.points[:, 1:], len(self.used), axis=1)], axis=-1)

    def moved(self, u: Array) -> Array:
        """Where the content expected at ``u`` ``(n, n_tilts, 2)`` really is, aligned px of the start."""
        out = u + self.motion.displacement(self.model, u)
        warp = self.start_alignment.warp
        if warp is not None:
            out = out + np.stack([warp(int(m), u[:, k]) for k, m in enumerate(self.used)], axis=1)
        return np.asarray(out)

    def _views(self, shortest_px: float) -> tuple[Band, Any, Bool]:
        band = Band.of(self.window, self.settings.longest_px * self.factor, shortest_px * self.factor)
        inverse = np.linalg.inv(self.start_alignment.linear[self.used]) / self.factor
        views, seen = self.work.read_views(
            self.coefficients, inverse, self.start_alignment.shift_px[self.used], self.tilt_deg,
            self.moved(self.positions()), self.window, band,
        )  # fmt: skip
        seen &= ~self.rejected
        seen &= seen.sum(axis=1, keepdims=True) >= 5
        return band, views, seen

    def _likelihood(self, slab_px: float, shortest_px: float) -> tuple[Likelihood, Bool]:
        return self._likelihood_of(self._views(shortest_px), slab_px, shortest_px)

    def _likelihood_of(
        self,
        read: tuple[Band, Any, Bool],
        slab_px: float,
        shortest_px: float,
        subset: slice = slice(None),
        with_determinant: bool = False,
    ) -> tuple[Likelihood, Bool]:
        band, views, seen = read
        kappa = overlap(band, self.tilt_deg, self.window, slab_px)
        spectra = estimate_spectra(views, seen, band, self.tilt_deg, kappa, shortest_px * self.factor, self.work)
        views, seen = views[subset], seen[subset]
        strength = strengths(views, seen, spectra, self.work)
        found = self.work.likelihood(
            views, seen, band, self.tilt_deg, kappa, spectra, self.window, strength, with_determinant
        )
        # a track the model describes badly (a bead, a strong edge) says less than it seems to
        with np.errstate(invalid="ignore"):
            misfit = np.array(
                [np.mean(row[ok]) if ok.any() else 1.0 for row, ok in zip(found.misfit, seen, strict=True)]
            )
        excess = np.maximum(misfit, 0.5)
        found.gradient /= excess[:, None, None]
        found.information /= excess[:, None, None, None]
        found.gradient *= self.share
        found.information *= self.share
        return found, seen

    def improve(self, slab_px: float, shortest_px: float, reject: bool = False) -> None:
        """One round: read, correlate, leave out outliers, solve."""
        found, seen = self._likelihood(slab_px, shortest_px)
        if reject:
            self.reject_outliers(found, seen)
            gone = self.rejected & seen
            found.gradient[gone] = 0.0
            for c in range(2):
                keep = ~gone
                found.information[:, c] *= keep[:, :, None] & keep[:, None, :]
        self.motion = self.work.solve(
            found.gradient,
            found.information,
            self.positions(),
            self.tilt_deg,
            self.motion,
            self.model,
            np.full(len(self.points), slab_px / 6),
            largest_px=2.0 * self.factor,
        )

    def best_slab(self, slab_px: float, shortest_px: float) -> float:
        """Thickness (raw px) that makes the views most likely, within a factor of about two of ``slab_px``.

        A density that is not the same everywhere shares more between tilts than a uniform slab, so the likelihood
        prefers a slab that is too thin; on series of known thickness by `SLAB_BIAS`.
        """
        factors = np.geomspace(0.5, 2.0, 6)
        read, subset = self._views(shortest_px), slice(None, None, 4)
        likelihoods = (
            self._likelihood_of(read, slab_px * f, shortest_px, subset, with_determinant=True)[0] for f in factors
        )
        values = np.array([found.value.sum() for found in likelihoods])
        best = int(np.clip(np.argmax(values), 1, len(factors) - 2))
        # the top of the parabola through the best three
        before, middle, after = values[best - 1 : best + 2]
        curvature = before - 2 * middle + after
        offset = float(np.clip(0.5 * (before - after) / curvature, -1, 1)) if curvature < 0 else 0.0
        return float(slab_px * factors[best] * (factors[1] / factors[0]) ** offset * SLAB_BIAS)

    def residuals(self, slab_px: float, shortest_px: float) -> tuple[Array, Array, Bool]:
        """Displacement of every view against the prediction from all others, and its expected sd."""
        found, seen = self._likelihood(slab_px, shortest_px)
        residual, sigma = self._displacements(found, seen)
        return residual, sigma, seen

    def _displacements(self, found: Likelihood, seen: Bool) -> tuple[Array, Array]:
        """What each view alone says about its displacement ``(n_tracks, n_tilts, 2)``, and its sd; NaN if nothing."""
        diagonal = np.einsum("pcii->pic", found.information) / self.share
        known = seen[:, :, None] & (diagonal > 0)
        safe = np.where(known, diagonal, 1.0)
        return (
            np.where(known, found.gradient / self.share / safe, np.nan),
            np.where(known, 1 / np.sqrt(safe), np.nan),
        )

    def reject_outliers(self, found: Likelihood, seen: Bool) -> None:
        """Leave out views that disagree with the rest far beyond noise and beyond what their tilt usually does."""
        residual, sigma = self._displacements(found, seen)
        out = np.zeros_like(self.rejected)
        for m in range(len(self.used)):
            size, usual = np.abs(residual[:, m]), sigma[:, m]
            some = np.isfinite(size).all(axis=1)
            if some.sum() < 8:
                continue
            spread = 1.4826 * np.median(size[some], axis=0)
            far = some & (size > OUTLIER_SD * np.maximum(spread, usual)).any(axis=1)
            if far.sum() <= MOST_OUTLIERS * some.sum():
                out[:, m] = far
        self.rejected |= out

    def alignment(self) -> Alignment:
        """The start with the motion found: affine part in the matrices, the rest as a warp."""
        start = self.start_alignment
        nodes_x = np.linspace(-1.2, 1.2, 7) * self.half_size[0]
        nodes_y = np.linspace(-1.2, 1.2, 7) * self.half_size[1]
        grid = np.stack(np.meshgrid(nodes_x, nodes_y), axis=-1).reshape(-1, 1, 2)
        grid = np.repeat(grid, len(self.used), axis=1)
        vectors = np.zeros((start.n_tilts, 7, 7, 2))
        vectors[self.used] = (self.moved(grid) - grid).transpose(1, 0, 2).reshape(len(self.used), 7, 7, 2)
        for i in range(start.n_tilts):
            if i not in self.used:
                nearest = self.used[np.argmin(np.abs(self.tilt_deg - start.tilt_deg[i]))]
                vectors[i] = vectors[nearest]
        return replace(start, warp=LocalWarp(nodes_x, nodes_y, vectors)).folded()


def _grid(half: float, step: float) -> Array:
    n = max(1, int(np.floor(half / step)))
    return np.arange(-n, n + 1) * step if half > 0 else np.zeros(1)
