"""Feature tracks: small pieces of the specimen followed through all tilts at once.

A track is a specimen point with a window around it; `windows` says what its views tell of their displacements, and
`bundle` puts all tracks together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align import bundle
from inrtomo.align.prepare import Prepared
from inrtomo.align.windows import ON_CPU, Band, Likelihood, TrackWork, Window, estimate_spectra, overlap, strengths
from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError

Array = NDArray[Any]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Progress = Callable[[str, float], None]

SLAB_BIAS = 1.2  # see `_Followed.best_slab`
OUTLIER_SD = 5.0
MOST_OUTLIERS = 0.25  # of a tilt's views: beyond that it is the tilt that is wrong


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
