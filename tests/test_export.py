"""Aligned stacks: where things land, what fills the edges, how they are binned and dose weighted."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.dose import critical_exposure, dose_filter
from inrtomo.export import export_images
from inrtomo.geometry import axis_rotation, centred_coordinates
from inrtomo.resample import aligned_image, fill_invalid, fourier_bin


def smooth_noise(shape: tuple[int, int], seed: int = 0, cutoff: float = 0.2) -> np.ndarray:
    """Noise without frequencies above ``cutoff`` cycles per pixel."""
    white = np.fft.rfft2(np.random.default_rng(seed).normal(size=shape))
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    return np.fft.irfft2(white * (radius < cutoff), s=shape).astype(np.float32)


def blob(alignment: Alignment, tilt: int, at: tuple[float, float], sigma: float) -> np.ndarray:
    """Raw image of a Gaussian that lies at ``at`` in the aligned image."""
    nx, ny = alignment.image_size
    p = np.stack(np.meshgrid(centred_coordinates(nx), centred_coordinates(ny)), axis=-1)
    u = alignment.raw_to_aligned(tilt, p)
    return np.exp(-((u - np.array(at)) ** 2).sum(axis=-1) / (2 * sigma**2)).astype(np.float32)


def expected_blob(size: tuple[int, int], at: tuple[float, float], sigma: float, bin: int = 1) -> np.ndarray:
    x, y = (centred_coordinates(n // bin) * bin for n in size)
    return np.exp(-((x - at[0]) ** 2 + (y[:, None] - at[1]) ** 2) / (2 * sigma**2))


def alignment_with(
    interpolation: str = "bicubic", size: tuple[int, int] = (80, 72), axis_deg: float = 4.0
) -> Alignment:
    rng = np.random.default_rng(2)
    x, y = np.linspace(-45, 45, 5), np.linspace(-33, 33, 4)
    warp = LocalWarp(x, y, rng.uniform(-1.5, 1.5, (1, 4, 5, 2)), interpolation)
    linear = axis_rotation(axis_deg)[None] @ np.array([[1.01, 0.004], [0.0, 0.99]])
    return Alignment(np.array([20.0]), linear, np.array([[3.3, -2.6]]), size, 10.0, warp)


@pytest.mark.parametrize("axis_deg", [4.0, -93.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("bin", [1, 2])
def test_features_land_where_the_full_map_puts_them(interpolation: str, bin: int, axis_deg: float) -> None:
    alignment = alignment_with(interpolation, axis_deg=axis_deg)
    # a bilinear map has kinks, which no spline follows; a cut transform rings a little on the filled edge
    tolerance = 5e-4 if interpolation == "bicubic" and bin == 1 else 5e-3
    for at in ((10.4, -7.7), (-18.2, 12.1)):
        raw = blob(alignment, 0, at, sigma=3.5)
        image = next(export_images([raw].__getitem__, alignment, bin))
        size = (80, 72) if axis_deg > -45 else (72, 80)
        assert image.values.shape == (size[1] // bin, size[0] // bin)
        assert image.valid.mean() > 0.85
        expected = expected_blob(size, at, 3.5, bin)
        core = expected > 1e-3
        assert image.valid[core].all()
        np.testing.assert_allclose(image.values[core], expected[core], atol=tolerance)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_position_is_that_of_the_alignment(interpolation: str) -> None:
    """A linear ramp read at the mapped positions gives the positions themselves, also beyond the warp's grid."""
    alignment = alignment_with(interpolation, size=(120, 110))
    ramp_x, ramp_y = np.meshgrid(centred_coordinates(120), centred_coordinates(110))
    x, y = np.arange(-50, 50, 3.0), np.arange(-45, 46, 5.0)
    shear = 0.05
    u = np.stack(np.meshgrid(x, y), axis=-1)
    u[..., 0] += shear * u[..., 1]
    expected = alignment.aligned_to_raw(0, u)
    inside = (np.abs(expected) < np.array([50, 45])).all(axis=-1)  # a mirrored ramp bends at its ends
    for ramp, component in ((ramp_x, 0), (ramp_y, 1)):
        values, valid = aligned_image(ramp.astype(np.float32), alignment, 0, x, y, shear)
        assert valid[inside].all()
        np.testing.assert_allclose(values[inside], expected[inside, component], atol=1e-3)


def test_an_identity_keeps_every_pixel() -> None:
    raw = np.random.default_rng(0).normal(size=(33, 40)).astype(np.float32)
    image = next(export_images(lambda i: raw, Alignment.identity(np.zeros(1), (40, 33))))
    assert image.valid.all()
    np.testing.assert_allclose(image.values, raw, atol=1e-5)


def test_edges_take_the_local_mean() -> None:
    x = np.linspace(0, 10, 200, dtype=np.float32)
    raw = np.tile(x, (160, 1)) + np.random.default_rng(0).normal(size=(160, 200)).astype(np.float32)
    alignment = Alignment(np.zeros(1), np.eye(2)[None], np.array([[40.0, -30.0]]), (200, 160))
    image = next(export_images(lambda i: raw, alignment))
    assert image.valid.mean() == pytest.approx((160 / 200) * (130 / 160))
    np.testing.assert_allclose(image.values[image.valid], raw[30:, :160].ravel(), atol=1e-4)
    assert np.abs(image.values[:120, :40] - 0).max() < 2.0  # left of the image: its left end
    filled_below = image.values[132:, 45:]
    assert np.abs(filled_below - np.tile(x[5:160], (28, 1))).max() < 2.0  # follows the image along its edge
    assert filled_below.std(axis=1).max() < 3.0  # without copying its noise
    assert np.abs(np.diff(filled_below[5:], axis=1)).max() < 0.3


def test_filling() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (50, 70)).astype(np.float32)
    np.testing.assert_array_equal(fill_invalid(values, np.ones_like(values, dtype=bool)), values)
    nothing = fill_invalid(values, np.zeros_like(values, dtype=bool))
    assert np.isfinite(nothing).all() and not nothing.any()
    valid = np.zeros(values.shape, dtype=bool)
    valid[:, :30] = True
    filled = fill_invalid(values, valid)
    np.testing.assert_array_equal(filled[valid], values[valid])
    np.testing.assert_allclose(filled[~valid], 5, atol=0.6)


@pytest.mark.parametrize("bin", [2, 3])
@pytest.mark.parametrize("shape", [(48, 60), (54, 66)])
def test_binning_cuts_the_transform_and_nothing_else(bin: int, shape: tuple[int, int]) -> None:
    image = smooth_noise(shape, cutoff=0.9 * 0.5 / bin) + 3
    binned = fourier_bin(image, bin)
    assert binned.shape == (shape[0] // bin, shape[1] // bin)
    assert binned.mean() == pytest.approx(image.mean(), abs=1e-5)
    if bin == 3:  # the middle of three pixels is a pixel
        np.testing.assert_allclose(binned, image[1::3, 1::3], atol=1e-5)
    else:
        assert binned.std() == pytest.approx(image.std(), rel=0.02)
    above = np.cos(2 * np.pi * 0.4 * np.arange(60))[None] * np.ones((60, 1))
    np.testing.assert_allclose(fourier_bin(above.astype(np.float32), bin), 0, atol=1e-5)


def test_critical_exposure_of_the_published_curve() -> None:
    # Grant & Grigorieff 2015, figure 3: about 14 e/Å2 at 10 Å, 4 e/Å2 at 3 Å and 300 kV
    np.testing.assert_allclose(critical_exposure([0.1, 1 / 3]), [14.14, 4.34], atol=0.02)
    np.testing.assert_allclose(critical_exposure(0.1, 200), 0.8 * critical_exposure(0.1, 300))
    assert dose_filter(0.0, 100.0) == 1
    assert dose_filter(0.1, 2 * float(critical_exposure(0.1))) == pytest.approx(np.exp(-1))
    with pytest.raises(ValueError, match="300 and 200"):
        critical_exposure(0.1, 120)


def test_dose_weighting_damps_each_frequency_by_its_own_factor() -> None:
    alignment = Alignment.identity(np.zeros(2), (128, 128), pixel_size_A=2.0)
    wave = np.tile(np.cos(2 * np.pi * np.arange(128) / 8), (128, 1)).astype(np.float32)  # 16 Å
    first, second = export_images(lambda i: wave, alignment, exposure_e_A2=np.array([0.0, 40.0]))
    inner = slice(40, 88)
    np.testing.assert_allclose(first.values[inner, inner], wave[inner, inner], atol=2e-3)
    np.testing.assert_allclose(second.values[inner, inner], dose_filter(1 / 16, 40.0) * wave[inner, inner], atol=5e-3)
