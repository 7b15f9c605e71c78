"""Turn recorded images into comparable projections: protein positive, zero background, common gain, unit noise.

What is decided here is decided from the data unless the caller says otherwise: contrast polarity, whether images
are camera counts, which tilts cannot be used, and whether low frequencies have to be restored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from inrtomo.align.sampling import band_pass, spline_coefficients
from inrtomo.ctf import ctf_1d, ctf_2d
from inrtomo.errors import InputError

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Progress = Callable[[str, float], None]

MAD_TO_SD = 1.4826
HOT_PIXEL_SD = 4.0
USUAL_DEFOCUS_A = 20000.0
DARK_FRACTION = 0.35  # of the counts its neighbours lead to expect
FALL_TO_A = 120.0
FEW_COUNTS = 1e-4  # of the root mean square: a median below is zero but for rounding, as of images with few counts
LEAST_SHELLS = 11  # of the power spectrum: fewer leave none for the white floor
UNTOUCHED_FALL = 2.0  # of log signal power from the lowest frequency to 1 / FALL_TO_A: 3.2 and more on simulations
# without a transfer function, 0.8 and less on those with one and on a real series
GOLD_WIDTHS_PX = (2.0, 16.0)  # of the Gaussians between whose blurs beads stand out
GOLD_SD, GOLD_OF_TOP, GOLD_TOP_PERCENT = 8.0, 0.45, 99.95
GOLD_GROWN_PX = 3
TEXTURE_WIDTHS_PX = (2.0, 5.0)  # blurred by the first, every other pixel less blurred by the second
EMPTY_FRACTION = 0.4  # of the texture its neighbours lead to expect


@dataclass(frozen=True)
class PrepareSettings:
    """What the caller knows or wants.

    Attributes:
        polarity: +1 protein bright in the input, -1 protein dark, 0 decide from the data.
        defocus_A: underfocus in Å, one for all or one per tilt; None when unknown.
        restore: undo the transfer function: True, False, or None: when a defocus is given or the data look so.
        epsilon: regularisation of the restoration ``H / (H^2 + epsilon)``.
        bin: Fourier-crop binning of the prepared images (raw px per prepared px).
        mask_gold: give pixels of gold beads zero weight.
    """

    polarity: int = 0
    defocus_A: float | tuple[float, ...] | None = None
    restore: bool | None = None
    epsilon: float = 0.01
    voltage_kV: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.07
    bin: int = 1
    mask_gold: bool = True


PREPARE_DEFAULTS = PrepareSettings()


@dataclass(frozen=True)
class Prepared:
    """Images ready for alignment.

    Attributes:
        images: ``(n, ny, nx)`` float32, protein positive, zero background (median), common gain, in units of the
            median noise sd over tilts; excluded tilts are all zero.
        weight: ``(n, ny, nx)`` float32 validity 0..1: 0 on dead borders, gold (if masked) and excluded tilts.
        gold: ``(n, ny, nx)`` bool, pixels of gold beads.
        noise_sd: per-pixel noise sd of every tilt in the units of ``images``, ``(n,)``.
        background: what was taken off every input image (median, input units), ``(n,)``.
        gain: input units per unit of ``images``, signed, ``(n,)``: ``input = background + gain * images``
            before restoration.
        excluded: stack index -> reason.
        polarity: +1 if protein was bright in the input, -1 if dark.
        counts: whether the input looked like camera counts.
        restored_defocus_A: the defocus whose transfer function was undone, or None.
        bin: raw px per pixel of ``images``.
        raw_size: ``(nx, ny)`` of the input.
        notes: what was decided and why, to be printed.
    """

    images: F32
    weight: F32
    gold: NDArray[np.bool_]
    noise_sd: Array
    background: Array
    gain: Array
    excluded: dict[int, str]
    polarity: int
    counts: bool
    restored_defocus_A: float | None
    bin: int
    raw_size: tuple[int, int]
    notes: list[str] = field(default_factory=list)

    @property
    def density_weight(self) -> F32:
        """`weight` for fitting a density, which explains beads as matter and gains from them.

        Only where phase contrast had to be undone do beads stay masked: their fringes are no positive density.
        """
        if self.restored_defocus_A is not None:
            return self.weight
        weight = np.where(self.gold, np.float32(1), self.weight)
        weight[list(self.excluded)] = 0.0
        return weight

    @property
    def included(self) -> NDArray[np.int64]:
        """Stack indices of the usable tilts."""
        return np.array([i for i in range(len(self.images)) if i not in self.excluded], dtype=np.int64)


class PixelWork:
    """What is done to every pixel of an image, on the CPU; `inrtomo.gpu.pixels` does the same on a device.

    Images are ``(ny, nx)`` float32 unless an argument says otherwise.
    """

    def cleaned(self, image: F32) -> tuple[F32, NDArray[np.bool_]]:
        """Without hot and non-finite pixels, and which pixels are dead borders."""
        return _clean(image)

    def texture(self, image: F32) -> float:
        """Robust sd at medium scale."""
        return _texture(image)

    def noise_sd(self, image: F32) -> float:
        """Noise sd per pixel."""
        return noise_sd(image)

    def gold_mask(self, image: F32) -> NDArray[np.bool_]:
        """Pixels of gold beads."""
        return gold_mask(image)

    def blurred(self, image: F32, sigma_px: float) -> F32:
        """Under a Gaussian."""
        return np.asarray(ndimage.gaussian_filter(image, sigma_px))

    def between(self, image: F32, narrow_px: float, wide_px: float) -> F32:
        """Under a Gaussian less under a wider one."""
        return between_gaussians(image, narrow_px, wide_px)

    def fourier_crop(self, image: F32, factor: int) -> F32:
        """Binned by cutting the spectrum."""
        return fourier_crop(image, factor)

    def restore(self, image: F32, pixel_size_A: float, defocus_A: float, settings: PrepareSettings) -> F32:
        """With the transfer function undone."""
        return restore(image, pixel_size_A, defocus_A, settings)

    def mean_power(self, images: F32, window: Array) -> Array:
        """Mean over images ``(n, ny, nx)`` of the power spectrum (``rfft2``) under a window."""
        return np.asarray(np.mean(np.abs(scipy.fft.rfft2(images * window)) ** 2, axis=0))

    def band_pass(self, images: F32, longest_px: float, shortest_px: float) -> F32:
        """Images ``(n, ny, nx)`` between two wavelengths, limited."""
        return band_pass(images, longest_px, shortest_px)

    def coefficients(self, images: F32) -> Any:
        """Spline coefficients of images ``(n, ny, nx)``, where this work is done."""
        return spline_coefficients(images)


ON_CPU = PixelWork()


def prepare(
    images: F32,
    tilt_deg: Array,
    pixel_size_A: float | None = None,
    settings: PrepareSettings = PREPARE_DEFAULTS,
    excluded: dict[int, str] | None = None,
    progress: Progress | None = None,
    work: PixelWork = ON_CPU,
    unseen: NDArray[np.bool_] | None = None,
) -> Prepared:
    """Prepare raw images ``(n, ny, nx)``; ``excluded`` are tilts the user left out, ``unseen`` pixels without weight.

    Raises:
        InputError: if no usable image is left, or a restoration is asked without a pixel size.
    """
    tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
    n, ny, nx = images.shape
    notes: list[str] = []
    clean = np.empty((n, ny, nx), dtype=np.float32)
    dead = np.zeros((n, ny, nx), dtype=bool)
    for i in range(n):
        clean[i], dead[i] = work.cleaned(np.asarray(images[i], dtype=np.float32))
        if progress:
            progress("prepare", (i + 1) / (2 * n))
    median = np.array([_sampled_median(image) for image in clean])
    texture = np.array([work.texture(image) for image in clean])
    counts = _looks_like_counts(clean, median, tilt_deg)
    bad = dict(excluded or {})
    bad.update({i: why for i, why in unusable_tilts(median, texture, tilt_deg, counts).items() if i not in bad})
    good = np.array([i for i in range(n) if i not in bad], dtype=int)
    if len(good) < 3:
        raise InputError(f"tilt series: only {len(good)} of {n} images hold a signal; at least 3 are needed")

    scale = np.where(median > 0, median, 1.0) if counts else np.ones(n)
    flat = np.zeros_like(clean)
    for i in good:
        flat[i] = (clean[i] - median[i]) / scale[i]
        flat[i][dead[i]] = 0.0
    polarity, why = (settings.polarity, "given") if settings.polarity else _polarity(flat[good], counts, work)
    notes.append(f"protein is {'bright' if polarity > 0 else 'dark'} in the input ({why})")
    if polarity < 0:
        np.negative(flat, out=flat)
    if settings.bin > 1:
        flat = np.stack([work.fourier_crop(image, settings.bin) for image in flat])
        dead = np.stack([_bin_mask(mask, settings.bin) for mask in dead])
        unseen = None if unseen is None else np.stack([_bin_mask(mask, settings.bin) for mask in unseen])
    noise = np.ones(n)
    noise[good] = [max(work.noise_sd(flat[i]), 1e-12) for i in good]
    unit = float(np.median(noise[good]))
    flat /= np.float32(unit)
    noise /= unit

    gold = np.zeros(flat.shape, dtype=bool)
    if settings.mask_gold:
        for i in good:
            gold[i] = work.gold_mask(flat[i])
    defocus = _defocus_to_undo(flat[good], settings, pixel_size_A, polarity < 0, notes, work)
    if defocus is not None:
        assert pixel_size_A is not None
        for position, i in enumerate(good):
            flat[i] = work.restore(
                flat[i], pixel_size_A * settings.bin, float(defocus[i if len(defocus) == n else 0]), settings
            )
            flat[i] -= np.float32(_sampled_median(flat[i]))
            if progress:
                progress("prepare", 0.5 + (position + 1) / (2 * len(good)))
    for i, why in sorted(bad.items()):
        notes.append(f"tilt {i} ({tilt_deg[i]:.1f} deg) left out: {why}")

    if unseen is not None:
        dead |= unseen
        gold &= ~unseen
    weight = np.where(dead | (gold & settings.mask_gold), np.float32(0), np.float32(1))
    weight[list(bad)] = 0.0
    gain = polarity * unit * scale
    return Prepared(
        flat, weight, gold, noise, median, gain, bad, polarity, counts,
        None if defocus is None else float(np.median(defocus)), settings.bin, (nx, ny), notes,
    )  # fmt: skip


def _clean(image: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Replace non-finite and hot pixels by their local median; find dead borders (constant rows, columns)."""
    image = image.copy()
    finite = np.isfinite(image)
    if not finite.all():
        image[~finite] = np.median(image[finite]) if finite.any() else 0.0
    # a first sieve by the mean of the eight neighbours; the median only where it may matter
    around = (ndimage.uniform_filter(image, 3, mode="mirror") * 9 - image) / 8
    difference = np.abs(image - around)
    sd = MAD_TO_SD * float(np.median(difference[::2, ::2]))
    rows, columns = np.nonzero((difference > HOT_PIXEL_SD * sd) & (sd > 0) | ~finite)
    padded = np.pad(image, 1, mode="reflect")
    near = np.stack([padded[rows + j, columns + i] for j in range(3) for i in range(3) if (i, j) != (1, 1)], axis=-1)
    usual = np.median(near, axis=-1)
    # the peak of a bead or molecule also stands out, but there the neighbours differ as much among themselves
    low, high = near.min(axis=-1), near.max(axis=-1)
    excess = np.maximum(image[rows, columns] - high, low - image[rows, columns])
    hot = (excess > HOT_PIXEL_SD * sd + (high - low)) | ~finite[rows, columns]
    rows, columns, usual = rows[hot], columns[hot], usual[hot]
    image[rows, columns] = usual
    return image, dead_borders(np.ptp(image, axis=1) == 0, np.ptp(image, axis=0) == 0)


def dead_borders(constant_rows: NDArray[np.bool_], constant_columns: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels ``(ny, nx)`` of constant rows and columns; only runs of them that touch the border are dead."""
    dead = np.zeros((len(constant_rows), len(constant_columns)), dtype=bool)
    for axis, constant in enumerate((constant_rows, constant_columns)):
        if constant.all():
            continue
        index = np.arange(len(constant))
        inside = index[~constant]
        lines = (index < inside[0]) | (index > inside[-1])
        if axis == 0:
            dead[lines, :] = True
        else:
            dead[:, lines] = True
    return dead


def _sampled_median(image: F32) -> float:
    return float(np.median(image[::2, ::2]))


def noise_sd(image: F32) -> float:
    """Noise sd per pixel from the 2 x 2 checkerboard difference, which smooth signal does not reach."""
    a = image[:-1, :-1] - image[1:, :-1] - image[:-1, 1:] + image[1:, 1:]
    robust = MAD_TO_SD * float(np.median(np.abs(a[::2, ::2])))
    whole = float(np.sqrt(np.mean(a**2, dtype=np.float64)))
    return float(robust_sd(robust, whole)) / 2.0


def robust_sd(robust: float | Array, whole: float | Array) -> Array:
    """A robust sd of differences, or their root mean square where few counts leave most of them zero."""
    return np.where(np.greater(robust, FEW_COUNTS * np.asarray(whole)), robust, whole)


def _texture(image: F32) -> float:
    """Robust sd of the image at medium scale (blurred by 2 px, less blurred by 10 px), relative noise included."""
    narrow, wide = TEXTURE_WIDTHS_PX
    band = ndimage.gaussian_filter(image, narrow)[::2, ::2]
    band = band - ndimage.gaussian_filter(band, wide)
    return MAD_TO_SD * float(np.median(np.abs(band - np.median(band))))


def _looks_like_counts(images: F32, median: Array, tilt_deg: Array) -> bool:
    """Transmission images: all positive, far from zero compared with their spread, not brighter at high tilt."""
    spread = np.array([np.percentile(image[::3, ::3], 84) - np.percentile(image[::3, ::3], 16) for image in images]) / 2
    usable = median > 0.1 * np.percentile(median, 90)
    if np.percentile(median, 90) <= 0 or usable.sum() < 3:
        return False
    far_from_zero = np.median(median[usable] / np.maximum(spread[usable], 1e-20)) > 3
    low, high = (
        np.abs(tilt_deg) <= np.percentile(np.abs(tilt_deg), 40),
        np.abs(tilt_deg) >= np.percentile(np.abs(tilt_deg), 70),
    )
    falls = (
        np.median(median[usable & high]) <= 1.02 * np.median(median[usable & low]) if (usable & high).any() else True
    )
    return bool(far_from_zero and falls)


def unusable_tilts(median: Array, texture: Array, tilt_deg: Array, counts: bool) -> dict[int, str]:
    """Tilts that are dark or without structure, against a robust trend over neighbours (stack index -> reason)."""
    order = np.argsort(tilt_deg)
    bad: dict[int, str] = {}
    for name, values, limit, use in (
        ("dark", median, DARK_FRACTION, counts),
        ("blank", texture, EMPTY_FRACTION, True),
    ):
        if not use:
            continue
        trend = np.empty(len(values))
        padded = values[order]
        for rank, i in enumerate(order):
            near = np.concatenate([padded[max(0, rank - 4) : rank], padded[rank + 1 : rank + 5]])
            # the upper half: neighbours may be bad too
            trend[i] = np.percentile(near, 60)
        for i in np.flatnonzero(values < limit * trend):
            bad.setdefault(int(i), f"{name}: {values[i]:.3g} where its neighbours have {trend[i]:.3g}")
    for i in np.flatnonzero(texture <= 0):
        bad.setdefault(int(i), "blank: no structure at all")
    return bad


def _polarity(images: F32, counts: bool, work: PixelWork) -> tuple[int, str]:
    """Sign of protein: compact dense matter makes band-passed images skewed; counts are dark where matter is."""
    from scipy.stats import skew as skewness  # 0.7 s to load, for commands that do without it too

    skew = []
    for image in images[:: max(1, len(images) // 20)]:
        for sigma in (2.0, 3.5):
            band = work.between(image, sigma, 4 * sigma)
            skew.append(float(skewness(np.clip(band, *_robust_range(band, 8.0))[::2, ::2], axis=None)))
    middle = float(np.median(skew))
    error = MAD_TO_SD * float(np.median(np.abs(np.array(skew) - middle))) / np.sqrt(len(skew)) * 1.25 + 0.01
    if abs(middle) > 4 * error:
        return (1 if middle > 0 else -1), f"skewness of the band-passed images {middle:+.2f}"
    if counts:
        return -1, "camera counts; the skewness of the images does not tell"
    return 1, "assumed: neither counts nor skewness tell; override with the polarity setting"


def _robust_range(image: F32, n_sd: float) -> tuple[float, float]:
    middle = float(np.median(image[::3, ::3]))
    sd = MAD_TO_SD * float(np.median(np.abs(image[::3, ::3] - middle)))
    return middle - n_sd * sd, middle + n_sd * sd


def between_gaussians(image: F32, narrow_px: float, wide_px: float) -> F32:
    """An image under a Gaussian less under a wider one."""
    return np.asarray(ndimage.gaussian_filter(image, narrow_px) - ndimage.gaussian_filter(image, wide_px))


def gold_mask(image: F32) -> NDArray[np.bool_]:
    """Pixels of gold: far above anything protein makes (protein positive), grown by `GOLD_GROWN_PX`.

    The limit is robust in both directions: `GOLD_SD` robust sd of the blurred image and `GOLD_OF_TOP` of its brightest
    spots.
    """
    band = between_gaussians(image, *GOLD_WIDTHS_PX)
    _, high = _robust_range(band, GOLD_SD)
    top = float(np.percentile(band, GOLD_TOP_PERCENT))
    mask = band > max(high, GOLD_OF_TOP * top)
    return np.asarray(ndimage.binary_dilation(mask, iterations=GOLD_GROWN_PX))


def fourier_crop(image: F32, factor: int) -> F32:
    """Bin by an integer factor, cutting the spectrum; the centre of the field of view stays the centre.

    Sizes that do not divide are cut to ``size // factor`` pixels; pixel centres are shifted so that the image
    centre (index ``(n - 1) / 2``) maps onto the new one.
    """
    ny, nx = image.shape
    my, mx = ny // factor, nx // factor
    spectrum = scipy.fft.fft2(image)
    fy, fx = np.fft.fftfreq(ny), np.fft.fftfreq(nx)
    # keep |f| < 1 / (2 factor), resample at the wanted positions by an explicit inverse transform per axis
    y = (np.arange(my) - (my - 1) / 2) * factor + (ny - 1) / 2
    x = (np.arange(mx) - (mx - 1) / 2) * factor + (nx - 1) / 2
    keep_y, keep_x = np.abs(fy) < 0.5 / factor, np.abs(fx) < 0.5 / factor
    ey = np.exp(2j * np.pi * y[:, None] * fy[keep_y][None]) / ny
    ex = np.exp(2j * np.pi * x[:, None] * fx[keep_x][None]) / nx
    return np.asarray((ey @ spectrum[np.ix_(keep_y, keep_x)] @ ex.T).real, dtype=np.float32)


def _bin_mask(mask: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Binned pixels any of whose raw pixels is masked."""
    my, mx = mask.shape[0] // factor, mask.shape[1] // factor
    y0, x0 = (mask.shape[0] - my * factor) // 2, (mask.shape[1] - mx * factor) // 2
    block = mask[y0 : y0 + my * factor, x0 : x0 + mx * factor].reshape(my, factor, mx, factor)
    return np.asarray(block.any(axis=(1, 3)))


def restore(image: F32, pixel_size_A: float, defocus_A: float, settings: PrepareSettings = PREPARE_DEFAULTS) -> F32:
    """Undo the transfer function: multiply by ``H / (H^2 + epsilon)``, mirrored padding against wrap-around."""
    pad = restoring_pad(image.shape)
    padded = np.pad(image, pad, mode="reflect")
    gain = restoring_gain((padded.shape[0], padded.shape[1]), pixel_size_A, defocus_A, settings)
    out = scipy.fft.irfft2(scipy.fft.rfft2(padded) * gain, s=padded.shape)
    return np.asarray(out[pad:-pad, pad:-pad], dtype=np.float32)


def restoring_pad(shape: tuple[int, ...]) -> int:
    """Pixels by which an image ``(ny, nx)`` is mirrored on every side before it is restored."""
    return min(32, *(n // 2 for n in shape))


def restoring_gain(shape: tuple[int, int], pixel_size_A: float, defocus_A: float, settings: PrepareSettings) -> F32:
    """``H / (H^2 + epsilon)`` for ``rfft2`` of a padded image."""
    h = ctf_2d(shape, pixel_size_A, defocus_A, settings.voltage_kV, settings.cs_mm, settings.amplitude_contrast)
    return np.asarray((h / (h * h + settings.epsilon)).astype(np.float32))


def _defocus_to_undo(
    images: F32,
    settings: PrepareSettings,
    pixel_size_A: float | None,
    dark: bool,
    notes: list[str],
    work: PixelWork,
) -> Array | None:
    """Defocus to undo, one or per tilt: given, estimated, or the usual one where protein is dark in the input.

    Dark protein means a micrograph as recorded, and at the pixel sizes of tomograms that is phase contrast, whether
    or not the power spectrum of a specimen with large features shows it.
    """
    if settings.restore is False:
        return None
    if settings.defocus_A is not None:
        if pixel_size_A is None:
            raise InputError("defocus: it needs a pixel size to be of use; give --pixel-size in Å")
        notes.append("low frequencies restored with the given defocus")
        return np.atleast_1d(np.asarray(settings.defocus_A, dtype=np.float64))
    if pixel_size_A is None:
        return None
    found = find_defocus(images, pixel_size_A * settings.bin, settings, work)
    if found is None and settings.restore is None and not dark:
        notes.append("no sign of a transfer function: low frequencies left as they are")
        return None
    value = USUAL_DEFOCUS_A if found is None else found
    how = "assumed; --defocus says better" if found is None else "estimated"
    notes.append(f"looks like phase contrast: low frequencies restored for a defocus of {value / 1e4:.2f} um ({how})")
    return np.array([value])


def find_defocus(
    images: F32, pixel_size_A: float, settings: PrepareSettings = PREPARE_DEFAULTS, work: PixelWork = ON_CPU
) -> float | None:
    """Defocus (Å) whose transfer function explains the dip of signal power at low frequency, or None.

    Signal power is the mean power above the white floor. A projection of compact matter has its power fall
    steadily from the lowest frequencies; phase contrast holds back the low ones, so power peaks at
    ``lambda * defocus * k^2 = 1/2`` instead. Matches ``smooth falling curve x H^2`` in log power.
    """
    n = min(images.shape[1:]) // 2 * 2
    window = np.hanning(n)[:, None] * np.hanning(n)[None]
    y0, x0 = (images.shape[1] - n) // 2, (images.shape[2] - n) // 2
    used = images[:: max(1, len(images) // 12), y0 : y0 + n, x0 : x0 + n]
    low, high = _robust_range(used[0], 5.0)
    power = work.mean_power(np.clip(used, low, high), window)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    shells = np.minimum((k * n / 4).astype(int), n // 8)
    radial = np.bincount(shells.ravel(), power.ravel()) / np.maximum(np.bincount(shells.ravel()), 1)
    if len(radial) < LEAST_SHELLS:
        return None
    frequency = (np.arange(len(radial)) + 0.5) * 4 / n / pixel_size_A
    floor = float(np.median(radial[int(0.9 * len(radial)) : -1]))
    excess = radial[:-1] / floor - 1
    frequency = frequency[:-1]
    use = (frequency > 1 / 800) & (frequency < 0.42 / pixel_size_A) & (excess > 0.02)
    if use.sum() < 8:
        return None
    x, target = np.log(frequency[use]), np.log(excess[use])
    if target[:2].mean() - np.interp(np.log(1 / FALL_TO_A), x, target) > UNTOUCHED_FALL:
        return None

    def misfit(transfer: Array) -> float:
        rest = target - np.log(transfer)
        # falling and smooth: a parabola in log-log whose slope stays negative
        design = np.stack([np.ones_like(x), x - x.mean(), (x - x.mean()) ** 2], axis=1)
        fit, *_ = np.linalg.lstsq(design, rest, rcond=None)
        slope = fit[1] + 2 * fit[2] * (x - x.mean())
        return float(np.mean((rest - design @ fit) ** 2) + 0.3 * np.mean(np.maximum(slope, 0) ** 2))

    candidates = np.arange(8000.0, 60001.0, 1000.0)
    scores = []
    for defocus in candidates:
        transfer = (
            ctf_1d(frequency[use], defocus, settings.voltage_kV, settings.cs_mm, settings.amplitude_contrast) ** 2
        )
        scores.append(misfit(transfer + 0.02))
    best = int(np.argmin(scores))
    none = misfit(np.ones_like(x))
    if scores[best] < 0.5 * none:
        return float(candidates[best])
    return None
