"""CTF correction of tilted specimens against simulations and exact filters, and the operator for fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci, ctf_2d
from inrtomo.geometry import centred_coordinates, specimen_to_aligned
from inrtomo.reconstruct import ctf_correction
from inrtomo.reconstruct.ctf_correction import CtfOperator, ctf_corrected, spectral_snr

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

PIXEL_A = 2.0
DEFOCUS_A = 12_000.0
SIZE = (272, 240)  # nx, ny
ZONES = 4


def alignment(
    tilt_deg: float, axis_deg: float = 0.0, size: tuple[int, int] = SIZE, pixel: float = PIXEL_A
) -> Alignment:
    return Alignment.identity(np.array([tilt_deg]), size, axis_deg, pixel)


def correlation(a: Array | F32, b: Array | F32) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def microscope(given: Alignment, points: Array, up: int) -> tuple[F32, F32, F32]:
    """Image of point scatterers, that with the absolute CTF, and where the points are along the aligned x.

    Each point is imaged with the CTF at its own height along the beam, which ``up`` turns round.
    """
    nx, ny = given.image_size
    fy, fx = np.fft.fftfreq(2 * ny)[:, None], np.fft.rfftfreq(2 * nx)
    soft = np.exp(-2 * np.pi**2 * 0.6**2 * (fx**2 + fy**2))
    image, ideal = np.zeros((2 * ny, nx + 1), complex), np.zeros((2 * ny, nx + 1), complex)
    angle = np.deg2rad(given.tilt_deg[0])
    for point in points:
        height = -point[0] * np.sin(angle) + point[2] * np.cos(angle)
        x, y = given.aligned_to_raw(0, specimen_to_aligned(point, float(given.tilt_deg[0])))
        where = soft * np.exp(-2j * np.pi * (fx * (x + nx - 0.5) + fy * (y + ny - 0.5)))
        ctf = ctf_2d((2 * ny, 2 * nx), PIXEL_A, DEFOCUS_A - up * height * PIXEL_A)
        image += where * ctf
        ideal += where * np.abs(ctf)
    pictures = [np.fft.irfft2(a, s=(2 * ny, 2 * nx)) for a in (image, ideal)]
    cut = [p[ny // 2 : ny // 2 + ny, nx // 2 : nx // 2 + nx].astype(np.float32) for p in pictures]
    yy, xx = np.meshgrid(centred_coordinates(ny), centred_coordinates(nx), indexing="ij")
    along = given.raw_to_aligned(0, np.stack([xx, yy], axis=-1))[..., 0]
    return cut[0], cut[1], along.astype(np.float32)


def scatterers(given: Alignment, count: int = 60) -> Array:
    """Points of the specimen's mid-plane that the image shows, away from its edges."""
    rng = np.random.default_rng(1)
    raw = rng.uniform(-0.36, 0.36, (count, 2)) * given.image_size
    seen = given.raw_to_aligned(0, raw)
    return np.stack([seen[:, 0] / np.cos(np.deg2rad(given.tilt_deg[0])), seen[:, 1], np.zeros(count)], axis=1)


@pytest.mark.parametrize(("axis_deg", "hand"), [(0.0, 1), (85.0, 1), (85.0, -1), (-37.0, 1)])
def test_flipping_restores_every_zone_of_a_tilted_specimen(axis_deg: float, hand: int) -> None:
    given = alignment(58, axis_deg)
    image, ideal, along = microscope(given, scatterers(given), hand)
    defoci = Defoci.of(DEFOCUS_A, 1, hand)
    right = ctf_corrected(lambda m: image, given, defoci)(0)
    wrong = ctf_corrected(lambda m: image, given, replace(defoci, hand=-hand))(0)
    inner = np.zeros(image.shape, dtype=bool)
    inner[36:-36, 36:-36] = True  # images of points nearer to the border are not whole
    edges = np.quantile(along[inner], np.linspace(0, 1, ZONES + 1))
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        zone = inner & (along >= low) & (along <= high)
        assert correlation(right[zone], ideal[zone]) > 0.98
        assert correlation(image[zone], ideal[zone]) < 0.3
        if k in (0, ZONES - 1):
            assert correlation(wrong[zone], ideal[zone]) < 0.95


def test_dark_protein_stays_dark() -> None:
    given = alignment(50)
    image, ideal, _ = microscope(given, scatterers(given), 1)
    for mode in ctf_correction.MODES:
        corrected = ctf_corrected(lambda m: 100 - image, given, DEFOCUS_A, mode)(0)
        assert correlation(corrected, ideal) < -0.8
        assert corrected.mean() == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("axis_deg", [0.0, 90.0])
def test_strips_agree_with_a_filter_for_every_line(axis_deg: float) -> None:
    size, tilt, pixel = (80, 80), 70.0, 4.0
    given = alignment(tilt, axis_deg, size, pixel)
    image = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    pad = 240
    spectrum = np.fft.rfft2(np.pad(image, pad, mode="symmetric"))
    shape = (size[1] + 2 * pad, size[0] + 2 * pad)

    def lines(gain: Callable[[Array], Array]) -> Array:
        out = np.zeros(size)
        for k, along in enumerate(centred_coordinates(size[0])):
            ctf = ctf_2d(shape, pixel, DEFOCUS_A + along * pixel * np.tan(np.deg2rad(tilt)))
            # the axis lies along -x where it is turned by 90 degrees: aligned x is raw y
            line = (slice(None), k) if axis_deg == 0 else (k, slice(None))
            out[line] = np.fft.irfft2(spectrum * gain(ctf), s=shape)[pad:-pad, pad:-pad][line]
        return out

    exact = lines(lambda ctf: ctf)
    ours = CtfOperator(given, DEFOCUS_A).adjoint(image[None], [0])[0]
    assert np.std(ours - exact) < 0.01 * np.std(exact)
    # an image of something, in which what neighbouring strips disagree on is nearly extinguished; the rest of the
    # difference is the endless kernel of a filter with sharp edges, cut by the margins
    seen = ours
    spectrum = np.fft.rfft2(np.pad(seen, pad, mode="symmetric"))
    exact = lines(lambda ctf: np.where(ctf < 0, -1, 1))
    flipped = ctf_corrected(lambda m: seen, given, DEFOCUS_A)(0)
    assert np.std(flipped - exact) < 0.12 * np.std(exact)


def test_untilted_transfer_is_the_textbook_one() -> None:
    given = alignment(0, 30)
    defoci = Defoci(np.array([6000.0]), np.array([900.0]), np.array([25.0]), np.array([40.0]))
    # a soft point: an astigmatic CTF is not even on the Nyquist frequency's own line
    x, y = (np.arange(n) - n // 2 for n in SIZE)
    point = np.exp(-(x**2 + y[:, None] ** 2) / 2).astype(np.float32)
    spread = CtfOperator(given, defoci).apply(point[None], [0])[0]
    shape = (4 * SIZE[1], 4 * SIZE[0])
    ctf = ctf_2d(shape, PIXEL_A, 6000, astigmatism_A=900, astigmatism_deg=25, phase_shift_deg=40)
    spectrum = np.fft.rfft2(point, s=shape)
    expected = np.fft.irfft2(spectrum * ctf, s=shape)[: SIZE[1], : SIZE[0]]
    assert np.abs(spread - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("bin", [1, 2, 3])
def test_operator_and_adjoint(bin: int) -> None:
    n, size = 3, (75, 62)
    given = Alignment.identity(np.array([-58.0, 3.0, 44.0]), size, 20.0, 4.0)
    given = replace(given, x_tilt_deg=np.array([0.0, 2.0, -3.0]))
    defocus, size_A, direction, phase = np.array([[9e3, 2e4, 3e4], [500, 0, 80], [30, 0, 70], [0, 90, 20]])
    defoci = Defoci(defocus, size_A, direction, phase, hand=-1)
    rng = np.random.default_rng(2)
    shape = (n, size[1] // bin, size[0] // bin)
    x, y = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    operator = CtfOperator(given, defoci, bin)
    tilts = [2, 0, 1]
    forward, back = operator.apply(x, tilts), operator.adjoint(y, tilts)
    left, right = (np.vdot(a.astype(np.float64), b) for a, b in ((forward, y), (x, back)))
    scale = np.linalg.norm(forward) * np.linalg.norm(y)
    assert abs(left - right) < 1e-5 * scale
    assert np.abs(operator.apply(y, tilts) - back).max() > 1e-3 * back.std()  # the gradient breaks the symmetry


def test_operator_is_the_microscope() -> None:
    given = alignment(50, 85.0)
    points = scatterers(given)
    image, _, _ = microscope(given, points, 1)
    nx, ny = SIZE
    fy, fx = np.fft.fftfreq(ny)[:, None], np.fft.rfftfreq(nx)
    projection = np.zeros((ny, nx // 2 + 1), complex)
    for x, y in given.aligned_to_raw(0, specimen_to_aligned(points, 50.0)):
        projection += np.exp(-2j * np.pi * (fx * (x + (nx - 1) / 2) + fy * (y + (ny - 1) / 2)))
    soft = np.exp(-2 * np.pi**2 * 0.6**2 * (fx**2 + fy**2))
    sharp = np.fft.irfft2(projection * soft, s=(ny, nx)).astype(np.float32)
    predicted = CtfOperator(given, DEFOCUS_A).apply(sharp[None], [0])[0]
    inner = (slice(30, -30), slice(30, -30))
    assert correlation(predicted[inner], image[inner]) > 0.995
    other = CtfOperator(given, Defoci.of(DEFOCUS_A, 1, hand=-1)).apply(predicted[None], [0])[0]
    assert correlation(other[inner], image[inner]) < 0.9


def test_defocus_grows_with_the_x_tilt_too() -> None:
    """A levelled plane, x-tilted: underfocus falls with the height that the geometry gives its points."""
    given = replace(alignment(35, 70.0), x_tilt_deg=np.array([8.0]))
    series = ctf_correction._Series.of(given, DEFOCUS_A, 1, None, 300.0, 2.7, 0.07)
    gradient = np.array(series.gradient(0))
    about_x = np.deg2rad(8.0)
    for point in np.random.default_rng(0).uniform(-50, 50, (5, 2)):
        level = np.array([*point, 0.0])
        y, z = level[1] * np.cos(about_x), -level[1] * np.sin(about_x)
        height = -level[0] * np.sin(np.deg2rad(35)) + z * np.cos(np.deg2rad(35))
        raw = given.specimen_to_raw(0, level)
        assert specimen_to_aligned(level, 35.0, 8.0)[1] == pytest.approx(y)
        assert raw @ gradient == pytest.approx(-height * PIXEL_A, abs=1e-6)


def test_flipping_keeps_the_noise() -> None:
    given = alignment(60, 85.0, (256, 256))
    noise = 5 + np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)
    flipped = ctf_corrected(lambda m: noise, given, DEFOCUS_A)(0)
    assert flipped.var() == pytest.approx(noise.var(), rel=0.015)
    assert flipped.mean() == pytest.approx(noise.mean(), abs=0.01)
    rows = flipped.var(axis=1)
    assert rows[:8].mean() == pytest.approx(1, abs=0.2)  # nothing fades at the borders
    assert rows[-8:].mean() == pytest.approx(1, abs=0.2)


def seam_energy(monkeypatch: pytest.MonkeyPatch, step: float, fade: float) -> float:
    """Energy of second differences across the strips' boundaries over that elsewhere."""
    monkeypatch.setattr(ctf_correction, "PHASE_STEP", step)
    monkeypatch.setattr(ctf_correction, "FLIP_FADE", fade)
    given = alignment(60, 0.0, (512, 256))
    rng = np.random.default_rng(4)
    spectrum = np.fft.rfft2(rng.standard_normal((256, 512)))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(512))
    smooth = np.fft.irfft2(spectrum * (frequency < 0.2), s=(256, 512)).astype(np.float32)
    corrected = ctf_corrected(lambda m: smooth, given, DEFOCUS_A)(0)
    bends = np.diff(corrected, n=2, axis=1).astype(np.float64) ** 2
    view = ctf_correction._Series.of(given, DEFOCUS_A, 1, None, 300.0, 2.7, 0.07).view(0)
    nodes, _ = view.nodes
    columns = (nodes[1:] + nodes[:-1]) / 2 / view.gradient[0] + (512 - 1) / 2
    boundary = np.zeros(510, dtype=bool)
    for column in columns:
        boundary[max(int(column) - 1, 0) : int(column) + 1] = True
    assert len(nodes) > 3
    return float(bends[:, boundary].mean() / bends[:, ~boundary].mean())


def test_no_seams_between_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    step, fade = ctf_correction.PHASE_STEP, ctf_correction.FLIP_FADE
    assert seam_energy(monkeypatch, step, fade) == pytest.approx(1, abs=0.06)
    assert seam_energy(monkeypatch, 3.0, 1e-3) > 1.3  # wide strips cut hard do show


def test_law_of_the_spectrum_is_found() -> None:
    frequency = np.linspace(0.002, 0.05, 40)
    transfer = np.sin(0.07 + np.pi * 0.0197 * 25_000 * frequency**2) ** 2
    rng = np.random.default_rng(5)
    power = 7 * (20 * (frequency / frequency[0]) ** -2.0 * transfer + 1) * rng.normal(1, 0.02, 40)
    law = spectral_snr(power, transfer, frequency)
    assert law.at_lowest == pytest.approx(20, rel=0.25)
    assert law.exponent == pytest.approx(2, abs=0.5)
    assert law(0.0) == law(0.002)


def test_wiener_restores_what_phase_contrast_took() -> None:
    """A low-pass specimen with noise: flipping leaves low frequencies out, Wiener brings them back."""
    size, pixel = (192, 192), 8.0
    given = alignment(40, 0.0, size, pixel)
    rng = np.random.default_rng(6)
    frequency = np.hypot(np.fft.fftfreq(192)[:, None], np.fft.rfftfreq(192))
    fall = np.maximum(frequency, 3 / 192) ** -1.5
    truth = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((192, 192))) * fall, s=(192, 192)).astype(np.float32)
    signal = CtfOperator(given, 20_000.0).apply(truth[None], [0])[0]
    image = signal + rng.normal(0, signal.std(), signal.shape).astype(np.float32)
    flip, wiener = (ctf_corrected(lambda m: image, given, 20_000.0, mode)(0) for mode in ("flip", "wiener"))
    assert correlation(wiener, truth) > 0.9
    assert correlation(wiener, truth) > correlation(flip, truth) + 0.15


def test_no_correction_of_nothing() -> None:
    flat = np.full(SIZE[::-1], 3.0, dtype=np.float32)
    for mode in ctf_correction.MODES:
        assert ctf_corrected(lambda m: flat, alignment(50), DEFOCUS_A, mode)(0) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="sharpen"):
        ctf_corrected(lambda m: flat, alignment(50), DEFOCUS_A, "sharpen")
    with pytest.raises(ValueError, match="pixel size"):
        CtfOperator(replace(alignment(0), pixel_size_A=None), DEFOCUS_A)
    with pytest.raises(ValueError, match="2 defoci for 1"):
        CtfOperator(alignment(0), Defoci.of([1e4, 2e4], 2))
