"""The contrast transfer function of tilted specimens: undone in raw images, or applied to projections in a fit.

A tilted specimen has another defocus at every distance from the tilt axis. Each image is cut into overlapping strips
of equal defocus (parallel to the tilt axis, wherever that lies in the raw image), every strip is filtered with its
own CTF, and neighbours are interpolated linearly (Xiong et al. 2009; IMOD's ``ctfphaseflip``). Strips are as narrow
as the defocus error asks for: at most ``PHASE_STEP / 2`` of the CTF's phase at the Nyquist frequency, less below.
Smooth filters are interpolated all the way from centre to centre; phase flips, which are wrong or right and lose noise
power where neighbours disagree, over `FLIP_FADE` of it.

Sign. The specimen's mid-plane under an aligned pixel (x, y) at tilt t (and x-tilt a) lies
``-x tan t - y tan a / cos t`` towards +z of the microscope. With z up to the electron source, the higher parts are
nearer to focus (underfocus weakens the lens, whose focal plane lies above the specimen), so underfocus is
``defocus + x tan t + y tan a / cos t``: it grows to the right at positive tilt, as in IMOD. ``Defoci.hand`` = -1
turns that round. The height of a particle within the slab is not corrected for.

Contrast. `inrtomo.ctf` is positive at low frequency in underfocus: it makes an image with protein bright of a
density, and a camera records the negative. Correcting keeps the polarity of the images, dark protein stays dark; the
operator for a fit expects images that were turned to protein bright.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci, ctf_phase, electron_wavelength_A
from inrtomo.geometry import centred_coordinates

F32 = NDArray[np.float32]
Array = NDArray[np.float64]
Ints = NDArray[np.int64]
ImageReader = Callable[[int], NDArray]
Gain = Callable[[F32, F32], F32]  # CTF and frequency (1/Å) -> filter

MODES = ("flip", "wiener")
PHASE_STEP = 0.25  # rad at the Nyquist frequency between neighbouring strips: sin is wrong by 0.8 % in the middle
FLIP_FADE = 0.25
LEAST_MARGIN = 32
REACHES = 3.0  # margin in units of how far the CTF moves the highest frequency: a flip has sharp edges
PERIODS = 3.0  # and in periods of the lowest frequency that phase contrast passes
LOWEST_PHASE = 0.2  # rad of defocus phase that make that frequency

SNR_IMAGES = 5
SNR_LOWEST = 3  # periods per image side
SNR_SHELLS = 48
SNR_RANGE = (1e-2, 1e3)
SNR_EXPONENTS = np.arange(0.0, 6.01, 0.25)
OUTLIER_SD = 5.0


def ctf_corrected(
    image: ImageReader,
    alignment: Alignment,
    defoci: Defoci | ArrayLike,
    mode: str = "flip",
    voltage_kV: float = 300.0,
    cs_mm: float = 2.7,
    amplitude_contrast: float = 0.07,
    pixel_size_A: float | None = None,
    device: str = "cpu",
) -> ImageReader:
    """A reader of CTF-corrected raw images ``(ny, nx)``, for any method that reads raw images.

    Args:
        image: gives the raw image of a stack index; its polarity and mean are kept.
        alignment: says where the tilt axis lies and how far every image is tilted.
        defoci: of every image (`inrtomo.io.ctf.read_ctf`), or underfocus in Å, one or one per image.
        mode: ``"flip"`` turns the sign of the frequencies that the CTF inverted and leaves noise as it is;
            ``"wiener"`` also evens out amplitudes, ``H / (H^2 + 1 / SNR(k))`` with the power law `SpectralSnr` that
            the images with least tilt follow; it restores low frequencies and damps what is mostly noise.
        pixel_size_A: of the raw images; the alignment's if None.
        device: where images are filtered.
    """
    if mode not in MODES:
        raise ValueError(f"unknown CTF correction {mode!r}; use one of {', '.join(MODES)}")
    series = _Series.of(alignment, defoci, 1, pixel_size_A, voltage_kV, cs_mm, amplitude_contrast)
    found: list[SpectralSnr] = []
    fade = FLIP_FADE if mode == "flip" else 1.0

    def noise(frequency: F32) -> F32 | None:
        return None if mode == "flip" else np.asarray(1 / found[0](frequency), dtype=np.float32)

    def gain(ctf: F32, frequency: F32) -> F32:
        if (per_signal := noise(frequency)) is None:
            return np.where(ctf < 0, np.float32(-1), np.float32(1))
        return np.asarray(ctf / (ctf * ctf + per_signal), dtype=np.float32)

    def corrected(tilt: int) -> F32:
        if mode == "wiener" and not found:
            least = np.argsort(np.abs(alignment.tilt_deg[alignment.included]), kind="stable")[:SNR_IMAGES]
            found.append(series.snr(image, [int(m) for m in alignment.included[least]]))
        raw = np.asarray(image(tilt), dtype=np.float32)
        mean = raw.mean(dtype=np.float64).astype(np.float32)
        view = series.view(tilt, fade)
        filtered = view.gather(raw - mean, gain) if device == "cpu" else _gathered_on(device, view, raw - mean, noise)
        return filtered + mean

    return corrected


def _gathered_on(device: str, view: TiltedView, image: F32, noise: Callable[[F32], F32 | None]) -> F32:
    from inrtomo.gpu.ctf import gathered

    return gathered(view, image, noise, device)


class CtfOperator:
    """What the microscope does to the projections of a tilt series, and its exact adjoint, for fits.

    ``image = CTF * projection``: every source point is spread with the CTF of its own defocus. Images are the raw
    ones or binned in Fourier space (`bin` raw px a pixel, centred on the raw image to within half a pixel), protein
    positive, finite everywhere (0 where nothing is seen).

    Args:
        alignment: of the images; says where the tilt axis lies.
        defoci, voltage_kV, cs_mm, amplitude_contrast, pixel_size_A: as for `ctf_corrected`.
    """

    def __init__(
        self,
        alignment: Alignment,
        defoci: Defoci | ArrayLike,
        bin: int = 1,
        pixel_size_A: float | None = None,
        voltage_kV: float = 300.0,
        cs_mm: float = 2.7,
        amplitude_contrast: float = 0.07,
    ) -> None:
        self._series = _Series.of(alignment, defoci, bin, pixel_size_A, voltage_kV, cs_mm, amplitude_contrast)

    def apply(self, images: F32, tilts: Sequence[int] | Ints) -> F32:
        """Images ``(n, rows, cols)`` that the microscope makes of the projections at stack indices ``tilts``."""
        views = (self._series.view(int(m)) for m in tilts)
        return np.stack([view.scatter(image, _ctf) for view, image in zip(views, images, strict=True)])

    def adjoint(self, images: F32, tilts: Sequence[int] | Ints) -> F32:
        """The transpose of `apply`: the gradient of a loss by the projections from its gradient by the images."""
        views = (self._series.view(int(m)) for m in tilts)
        return np.stack([view.gather(image, _ctf) for view, image in zip(views, images, strict=True)])

    def view(self, tilt: int) -> TiltedView:
        """The strips of an image, which `apply` scatters and `adjoint` gathers."""
        return self._series.view(tilt)


def _ctf(ctf: F32, frequency: F32) -> F32:
    return ctf


@dataclass(frozen=True)
class SpectralSnr:
    """Power of signal over power of noise, before the CTF, at spatial frequencies (1/Å): a falling power law.

    Attributes:
        at_lowest: at ``lowest_per_A`` and below.
        exponent: of the fall.
    """

    at_lowest: float
    exponent: float
    lowest_per_A: float

    def __call__(self, frequency: ArrayLike) -> F32:
        ratio = np.maximum(np.asarray(frequency, dtype=np.float32) / np.float32(self.lowest_per_A), np.float32(1))
        return np.asarray(np.clip(self.at_lowest * ratio ** np.float32(-self.exponent), *SNR_RANGE), dtype=np.float32)


def spectral_snr(power: Array, transfer: Array, frequency: Array) -> SpectralSnr:
    """The law ``power = (a k^-p) transfer + noise`` that fits mean power spectra best in relative terms.

    Args:
        power: in shells; transfer: mean CTF^2 in them; frequency: 1/Å, rising.
    """
    best: tuple[float, float, float, float] | None = None
    ratio = frequency / frequency[0]
    for exponent in SNR_EXPONENTS:
        design = np.stack([ratio**-exponent * transfer, np.ones_like(power)], axis=1) / power[:, None]
        (signal, noise), misfit = nnls(design, np.ones_like(power))
        if best is None or misfit < best[0]:
            best = misfit, signal, noise, float(exponent)
    assert best is not None
    _, signal, noise, exponent = best
    snr = signal / max(noise, signal / SNR_RANGE[1], np.finfo(float).tiny)
    return SpectralSnr(float(snr), exponent, float(frequency[0]))


@dataclass(frozen=True)
class _Series:
    """The CTF of every image of a series at one binning; lengths in pixels of the images."""

    alignment: Alignment
    defoci: Defoci
    shape: tuple[int, int]
    bin: int
    pixel_size_A: float
    optics: tuple[float, float, float]

    @classmethod
    def of(
        cls,
        alignment: Alignment,
        defoci: Defoci | ArrayLike,
        bin: int,
        raw_pixel_size_A: float | None,
        voltage_kV: float,
        cs_mm: float,
        amplitude_contrast: float,
    ) -> _Series:
        raw_pixel = alignment.pixel_size_A if raw_pixel_size_A is None else raw_pixel_size_A
        if raw_pixel is None:
            raise ValueError("the CTF needs a pixel size")
        if not isinstance(defoci, Defoci):
            defoci = Defoci.of(defoci, alignment.n_tilts)
        if len(defoci.defocus_A) != alignment.n_tilts:
            raise ValueError(f"{len(defoci.defocus_A)} defoci for {alignment.n_tilts} images; give one for each")
        nx, ny = alignment.image_size
        optics = voltage_kV, cs_mm, amplitude_contrast
        return cls(alignment, defoci, (ny // bin, nx // bin), bin, raw_pixel * bin, optics)

    def view(self, tilt: int, fade: float = 1.0) -> TiltedView:
        d = self.defoci
        return TiltedView(
            self.shape,
            self.pixel_size_A,
            float(d.defocus_A[tilt]),
            self.gradient(tilt),
            (float(d.astigmatism_A[tilt]), float(d.astigmatism_deg[tilt])),
            float(d.phase_shift_deg[tilt]),
            self.optics,
            fade,
        )

    def gradient(self, tilt: int) -> tuple[float, float]:
        """Change of underfocus (Å) per pixel along raw x and y."""
        t, a = np.deg2rad(self.alignment.tilt_deg[tilt]), np.deg2rad(self.alignment.x_tilt_deg[tilt])
        along = np.array([np.tan(t), np.tan(a) / np.cos(t)]) @ self.alignment.linear[tilt]
        along = along * (self.defoci.hand * self.pixel_size_A)
        return float(along[0]), float(along[1])

    def snr(self, image: ImageReader, tilts: Sequence[int]) -> SpectralSnr:
        """The law that the power spectra of some images follow, gold and hot pixels clipped."""
        ny, nx = self.shape
        frequency = frequencies(self.shape, self.pixel_size_A)
        lowest, highest = SNR_LOWEST / (min(ny, nx) * self.pixel_size_A), 0.5 / self.pixel_size_A
        n_shells = min(SNR_SHELLS, min(ny, nx) // 4)
        shell = np.floor((frequency - lowest) / (highest - lowest) * n_shells).astype(int)
        used = (shell >= 0) & (shell < n_shells)
        index = shell[used]
        count = np.maximum(np.bincount(index, minlength=n_shells), 1)
        window = np.hanning(ny + 2)[1:-1, None] * np.hanning(nx + 2)[1:-1]
        power, transfer = np.zeros(n_shells), np.zeros(n_shells)
        for m in tilts:
            raw = np.asarray(image(m), dtype=np.float32)
            median = np.median(raw)
            sd = float(np.median(np.abs(raw - median))) / 0.6745 or float(raw.std()) or 1.0
            clipped = np.clip((raw - median) / sd, -OUTLIER_SD, OUTLIER_SD)
            spectrum = np.abs(scipy.fft.rfft2((clipped - clipped.mean()) * window)) ** 2
            view = self.view(m)
            offset, slope = view.phase(self.shape)
            ctf2 = np.sin(offset + slope * np.float32(view.defocus_A)) ** 2
            power += np.bincount(index, spectrum[used], n_shells) / count
            transfer += np.bincount(index, ctf2[used], n_shells) / count
        middle = np.bincount(index, frequency[used], n_shells) / count
        some = (power > 0) & (np.bincount(index, minlength=n_shells) > 0)
        if not some.any():  # images without any contrast: nothing to restore
            return SpectralSnr(SNR_RANGE[0], 0.0, lowest)
        return spectral_snr(power[some], transfer[some] / len(tilts), middle[some])


@dataclass(frozen=True)
class TiltedView:
    """The strips of one image.

    ``gather`` filters the whole image with each strip's CTF and takes the strip out of it, ``scatter`` filters each
    strip and adds them: transposes of each other, as filters are real and even.

    Attributes:
        defocus_A: in the middle; gradient: Å per pixel (x, y); astigmatism: Å and degrees; optics: kV, mm, contrast;
            fade: part of the way between centres over which neighbours are interpolated.
    """

    shape: tuple[int, int]
    pixel_size_A: float
    defocus_A: float
    gradient: tuple[float, float]
    astigmatism: tuple[float, float]
    phase_shift_deg: float
    optics: tuple[float, float, float]
    fade: float

    def gather(self, image: F32, gain: Gain) -> F32:
        rows, columns = self.mirror
        padded = np.asarray(image, dtype=np.float32)[rows][:, columns]
        out = np.zeros(self.shape, dtype=np.float32)
        height, width = self.box
        last, spectrum, threads = None, np.zeros(0), nb.get_num_threads()
        for (y, x), weight, filtering in self._strips(gain):
            box = (slice(y.start, y.start + height), slice(x.start, x.start + width))
            if box != last:  # strips of an oblique axis may share a box
                last, spectrum = box, scipy.fft.rfft2(padded[box], workers=threads)
            filtered = scipy.fft.irfft2(spectrum * filtering, s=self.box, workers=threads)
            out[y, x] += weight * filtered[self.inside(y, x)]
        return out

    def scatter(self, image: F32, gain: Gain) -> F32:
        rows, columns = self.mirror
        total = np.zeros((len(rows), len(columns)), dtype=np.float32)
        (height, width), threads = self.box, nb.get_num_threads()
        for (y, x), weight, filtering in self._strips(gain):
            box = np.zeros(self.box, dtype=np.float32)
            box[self.inside(y, x)] = weight * image[y, x]
            spectrum = scipy.fft.rfft2(box, workers=threads) * filtering
            filtered = scipy.fft.irfft2(spectrum, s=self.box, workers=threads)
            total[y.start : y.start + height, x.start : x.start + width] += filtered
        folded = np.zeros((self.shape[0], len(columns)), dtype=np.float32)
        np.add.at(folded, rows, total)
        out = np.zeros(self.shape[::-1], dtype=np.float32)
        np.add.at(out, columns, folded.T)
        return np.ascontiguousarray(out.T)

    def phase(self, shape: tuple[int, int]) -> tuple[F32, F32]:
        """Offset and slope of the CTF's phase for ``rfft2`` of an array of a shape, ``(ny, nx // 2 + 1)``."""
        frequency = frequencies(shape, self.pixel_size_A)
        offset, slope = ctf_phase(frequency, *self.optics, self.phase_shift_deg)
        size, direction = self.astigmatism
        if size:
            fy = np.fft.fftfreq(shape[0])[:, None]
            angle = np.arctan2(fy, np.fft.rfftfreq(shape[1])) - np.deg2rad(direction)
            offset = offset + slope * (0.5 * size * np.cos(2 * angle))
        return offset.astype(np.float32), slope.astype(np.float32)

    @cached_property
    def nodes(self) -> tuple[Array, float]:
        """Underfocus less that of the middle (Å) of every strip's centre, and their spacing."""
        ny, nx = self.shape
        farthest = (abs(self.gradient[0]) * (nx - 1) + abs(self.gradient[1]) * (ny - 1)) / 2
        step = PHASE_STEP / (np.pi * electron_wavelength_A(self.optics[0])) * (2 * self.pixel_size_A) ** 2
        if 2 * farthest <= step:
            return np.zeros(1), np.inf
        intervals = int(np.ceil(2 * farthest / step))
        return np.linspace(-farthest, farthest, intervals + 1), 2 * farthest / intervals

    @cached_property
    def windows(self) -> list[tuple[slice, slice]]:
        """Rows and columns in which each strip has weight."""
        nodes, spacing = self.nodes
        half = [(n - 1) / 2 for n in self.shape[::-1]]
        windows = []
        for node in nodes:
            spans = []
            for axis in (1, 0):
                slope, centre = self.gradient[axis], half[axis]
                elsewhere = abs(self.gradient[1 - axis]) * half[1 - axis]
                reach = ((0.5 + self.fade / 2) * spacing + elsewhere) / abs(slope) if slope else np.inf
                middle = node / slope if slope else 0.0
                low = int(np.ceil(max(middle - reach, -centre) + centre))
                high = int(np.floor(min(middle + reach, centre) + centre))
                spans.append(slice(low, high + 1))
            windows.append((spans[0], spans[1]))
        return windows

    @cached_property
    def margin(self) -> int:
        """Pixels around a strip that reach into it through the CTF."""
        wavelength = electron_wavelength_A(self.optics[0])
        defocus = abs(self.defocus_A)
        reach = wavelength * defocus * 0.5 / self.pixel_size_A**2
        period = np.sqrt(np.pi * wavelength * defocus / LOWEST_PHASE) / self.pixel_size_A
        return LEAST_MARGIN + int(np.ceil(max(REACHES * reach, PERIODS * period)))

    @cached_property
    def box(self) -> tuple[int, int]:
        """What is transformed for each strip: the largest strip and its margins, to a length that is fast."""
        height, width = (max(w[axis].stop - w[axis].start for w in self.windows) for axis in (0, 1))
        margins = 2 * self.margin
        return scipy.fft.next_fast_len(height + margins, real=True), scipy.fft.next_fast_len(width + margins, real=True)

    @cached_property
    def mirror(self) -> tuple[Ints, Ints]:
        """Rows and columns of the image that the padded image, which holds every box, is made of."""
        rows, columns = (
            np.pad(
                np.arange(n),
                (self.margin, max(w[axis].start for w in self.windows) + self.box[axis] - n - self.margin),
                mode="symmetric",
            )
            for axis, n in enumerate(self.shape)
        )
        return rows, columns

    def inside(self, y: slice, x: slice) -> tuple[slice, slice]:
        """A strip in its box."""
        m = self.margin
        return slice(m, m + y.stop - y.start), slice(m, m + x.stop - x.start)

    def _strips(self, gain: Gain) -> Iterator[tuple[tuple[slice, slice], F32, F32]]:
        """Window, interpolation weights within it, and filter of every strip."""
        offset, slope = self.phase(self.box)
        frequency = frequencies(self.box, self.pixel_size_A).astype(np.float32)
        nodes, spacing = self.nodes
        y, x = (centred_coordinates(n) for n in self.shape)
        for node, window in zip(nodes, self.windows, strict=True):
            filtering = gain(np.sin(offset + slope * np.float32(self.defocus_A + node)), frequency)
            change = self.gradient[1] * y[window[0], None] + self.gradient[0] * x[window[1]]
            weight = np.clip(0.5 + (0.5 - np.abs(change - node) / spacing) / self.fade, 0, 1).astype(np.float32)
            yield window, weight, filtering


def frequencies(shape: tuple[int, int], pixel_size_A: float) -> Array:
    """Spatial frequency (1/Å) of ``rfft2`` of an array of a shape."""
    return np.hypot(np.fft.fftfreq(shape[0], pixel_size_A)[:, None], np.fft.rfftfreq(shape[1], pixel_size_A))
