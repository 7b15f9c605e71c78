"""Correlations and Fourier shells of volumes whose answer is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from inrtomo.metrics.volume import (
    best_isotropic_filter_cc,
    cc,
    central_region,
    fsc,
    resampled,
    translated,
    translation_between,
)

SHAPE = (24, 50, 61)
WHOLE = (slice(None),) * 3


def noise(seed: int, sigma: float = 0.0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape)
    return gaussian_filter(values, sigma, mode="wrap") if sigma else values


def test_cc_of_signal_and_noise() -> None:
    signal = noise(0)
    assert cc(signal, 3 * signal + 5) == pytest.approx(1)
    assert cc(signal, -signal) == pytest.approx(-1)
    assert cc(signal, signal + noise(1)) == pytest.approx(np.sqrt(0.5), abs=0.02)
    assert cc(signal, np.zeros(SHAPE)) == 0


def test_cc_sees_its_region_only() -> None:
    a, b = noise(0), noise(0)
    b[:, :4] = 100.0
    assert cc(a, b) == pytest.approx(1)
    assert cc(a, b, WHOLE) < 0.9
    assert central_region((90, 256, 200)) == (slice(0, 90), slice(26, 230), slice(20, 180))


def test_fsc_of_signal_and_equal_noise_is_half_in_every_shell() -> None:
    curve = fsc(noise(0), noise(0) + noise(1), 10.0)
    many = curve.count > 300
    assert np.abs(curve.correlation[many] - np.sqrt(0.5)).max() < 0.12
    assert curve.count @ curve.correlation / curve.count.sum() == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_fsc_shells_are_physical_frequency_on_a_box_of_any_shape() -> None:
    # a wave of period 8 px counts in the same shell whatever axis it runs along
    for axis in range(3):
        wave = np.cos(2 * np.pi / 8 * np.arange(SHAPE[axis])).reshape([-1 if k == axis else 1 for k in range(3)])
        other = noise(2)
        curve = fsc(other + wave, noise(3) + wave, 10.0, WHOLE)
        peak = curve.frequency_per_A[np.argmax(curve.correlation)]
        assert peak == pytest.approx(1 / 80, abs=0.5 / 10 / SHAPE[0])
        far = np.abs(curve.frequency_per_A - 1 / 80) > 0.012
        assert np.abs(curve.correlation[far]).mean() < 0.3
    assert curve.frequency_per_A[-1] == pytest.approx(1 / 20)


def test_resolution_is_where_the_signal_ends() -> None:
    shape = (40, 64, 48)
    signal = noise(0, shape=shape)
    spectrum = np.fft.rfftn(signal)
    radius = np.sqrt(
        np.fft.fftfreq(shape[0])[:, None, None] ** 2
        + np.fft.fftfreq(shape[1])[:, None] ** 2
        + np.fft.rfftfreq(shape[2]) ** 2
    )
    smooth = np.fft.irfftn(spectrum * (radius < 0.25), s=shape, axes=(0, 1, 2))
    curve = fsc(smooth + 0.3 * noise(1, shape=shape), smooth + 0.3 * noise(2, shape=shape), 5.0)
    assert curve.resolution_A(0.5) == pytest.approx(5 / 0.25, rel=0.12)
    assert fsc(signal, signal, 5.0).resolution_A(0.5) == pytest.approx(10.0)
    assert fsc(signal, -signal, 5.0).resolution_A(0.5) == np.inf


def test_best_filter_lifts_a_smooth_signal_out_of_white_noise() -> None:
    signal = noise(0, 2.0)
    measured = signal + 2 * signal.std() * noise(1)
    plain, best = cc(measured, signal), best_isotropic_filter_cc(measured, signal)
    by_hand = max(cc(gaussian_filter(measured, s, mode="wrap"), signal) for s in (1.0, 1.5, 2.0, 2.5))
    assert plain < 0.5 < best <= 1
    assert best > by_hand - 0.02
    assert best_isotropic_filter_cc(signal, signal) == pytest.approx(1)


@pytest.mark.parametrize("shift", [(2.0, -5.0, 7.0), (0.37, -1.62, 3.25), (0.0, 0.0, 0.0)])
def test_translation_is_found_and_undone(shift: tuple[float, float, float]) -> None:
    fixed = noise(0, 1.5)
    moving = translated(fixed, -np.array(shift)) + 0.3 * fixed.std() * noise(1)
    found = translation_between(moving, fixed)
    np.testing.assert_allclose(found, shift, atol=0.06)
    assert cc(translated(moving, found), fixed) > 0.93


def test_translated_by_whole_voxels_is_a_roll() -> None:
    volume = noise(0, 1.0).astype(np.float32)
    np.testing.assert_allclose(translated(volume, (1, -2, 3)), np.roll(volume, (1, -2, 3), (0, 1, 2)), atol=1e-5)


def test_resampled_by_a_known_motion() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (30, 40, 50)), indexing="ij")
    place = np.array([5.0, -6.0, 3.0])  # x, y, z

    def blob(at: np.ndarray, scale: float = 1.0) -> np.ndarray:
        return np.exp(-((x * scale - at[0]) ** 2 + (y * scale - at[1]) ** 2 + (z * scale - at[2]) ** 2) / 18)

    rotation = Rotation.from_euler("zy", [20, 10], degrees=True).as_matrix()
    translation = np.array([2.0, 1.0, -3.0])
    moved = resampled(blob(rotation @ place + translation), 1.0, x.shape, rotation, translation)
    np.testing.assert_allclose(moved, blob(place), atol=0.01)
    np.testing.assert_allclose(
        resampled(blob(place, 2.0), 2.0, x.shape, np.eye(3), np.zeros(3)), blob(place), atol=0.02
    )


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shape"):
        cc(noise(0), np.zeros((2, 3, 4)))
