"""Fourier shells against closed forms: known signal-to-noise, what masks do, directions, wedges, local resolution."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from inrtomo.metrics.conventions import HALF_MAPS, REFERENCE
from inrtomo.metrics.fsc import frc, fsc, volume_fsc
from inrtomo.metrics.local_resolution import local_resolution, window_for
from inrtomo.metrics.masks import MASK_EDGE_PX, soft_box, soft_slab, softened
from inrtomo.metrics.shells import FourierShells, ShellCorrelation

SHAPE = (24, 50, 61)
PIXEL_A = 4.0


def noise(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def filtered(volume: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Volume with its real transform times a factor."""
    axes = tuple(range(volume.ndim))
    return np.fft.irfftn(np.fft.rfftn(volume) * factor, s=volume.shape, axes=axes)


def whole(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("shape", [SHAPE, (61, 24, 50), (32, 32, 32)])
def test_half_maps_of_known_snr(shape: tuple[int, int, int]) -> None:
    """Halves S + N correlate as SNR / (1 + SNR) in every shell, on a box of any sides."""
    shells = FourierShells(shape)
    amplitude = 2 * np.exp(-((shells.radius / 0.25) ** 2))
    signal = filtered(noise(0, shape), amplitude)
    curve = volume_fsc(signal + noise(1, shape), signal + noise(2, shape), PIXEL_A, whole(shape)).unmasked
    snr = shells.total(amplitude**2) / shells.total(np.ones_like(amplitude))
    assert (np.abs(curve.correlation - snr / (1 + snr)) < 4.5 / np.sqrt(curve.count)).all()
    assert np.abs(curve.correlation - snr / (1 + snr)).mean() < 1 / np.sqrt(np.median(curve.count))
    assert curve.frequency_per_A[-1] == pytest.approx(1 / (2 * PIXEL_A))


def test_map_against_truth_of_known_snr() -> None:
    """Their mean, with half the noise, correlates with the truth as sqrt(2 SNR / (1 + 2 SNR)): 0.5 where 0.143 was."""
    signal = noise(0)
    snr = HALF_MAPS / (1 - HALF_MAPS)
    halves = [signal + noise(k) / np.sqrt(snr) for k in (1, 2)]
    between = volume_fsc(halves[0], halves[1], PIXEL_A, whole()).unmasked
    with_truth = volume_fsc((halves[0] + halves[1]) / 2, signal, PIXEL_A, whole()).unmasked
    assert between.count @ between.correlation / between.count.sum() == pytest.approx(HALF_MAPS, abs=0.02)
    assert with_truth.count @ with_truth.correlation / with_truth.count.sum() == pytest.approx(REFERENCE, abs=0.02)


def test_a_volume_against_itself_is_one_everywhere() -> None:
    volume = noise(0) + 100
    result = volume_fsc(volume, 3 * volume - 7, PIXEL_A, soft_box(SHAPE), tilt_deg=np.arange(-60, 61, 3.0))
    for name in ("unmasked", "masked", "corrected", "x", "y", "z", "measured", "wedge"):
        values = result.curves()[name].correlation
        np.testing.assert_allclose(values[np.isfinite(values)], 1, atol=1e-4)
    assert result.randomised_from_A is None
    assert result.corrected.resolution_A(HALF_MAPS) == pytest.approx(2 * PIXEL_A)
    against = volume_fsc(volume, -volume, PIXEL_A, soft_box(SHAPE)).masked
    np.testing.assert_allclose(against.correlation, -1, atol=1e-4)


def test_components_are_counted_once() -> None:
    """Every component of the full transform is in one shell, up to Nyquist; conjugates count half."""
    for shape in ((8, 9), (6, 8, 10), (7, 9, 11)):
        shells = FourierShells(shape)
        radius = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")))
        number = len(shells.frequency)
        expected = [(np.rint(radius * 2 * number) == k + 1).sum() / 2 for k in range(number)]
        np.testing.assert_allclose(shells.count(), expected)
        values = np.random.default_rng(0).normal(size=shells.radius.shape)
        np.testing.assert_allclose(shells.summing_matrix() @ values.ravel(), shells.total(values))


def test_crossings_lie_between_shells() -> None:
    frequency = np.arange(1, 7) / 100
    curve = ShellCorrelation(frequency, np.array([1.0, 0.9, np.nan, 0.3, 0.05, 0.6]), np.ones(6))
    assert curve.resolution_A(0.5) == pytest.approx(1 / (0.02 + 0.02 * 0.4 / 0.6))  # across the empty shell
    assert curve.resolution_A(0.143) == pytest.approx(1 / (0.04 + 0.01 * (0.3 - 0.143) / 0.25))
    assert curve.resolution_A(0.01) == pytest.approx(1 / 0.06)
    assert curve.resolution_A(1.1) == np.inf
    assert curve.mean() == pytest.approx(2.85 / 5)


def ball(radius: float, edge: float, shape: tuple[int, ...]) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    return np.clip((radius + edge - np.sqrt(x**2 + y**2 + z**2)) / edge, 0, 1)


def test_masked_noise_corrects_to_zero() -> None:
    """A tight mask smears a shared low-resolution shape over noise that shares nothing; the correction takes it out."""
    shape = (36, 40, 44)
    shells = FourierShells(shape)
    corrected, masked = [], []
    near = slice(5, 8)  # shells beyond those left uncorrected, which the mask mixes with the first three
    for seed in range(0, 36, 3):
        shared = 12 * filtered(noise(seed, shape), shells.radius < 3.5 / 36)  # shells 1 to 3
        halves = [shared + noise(seed + k, shape) for k in (1, 2)]
        result = volume_fsc(halves[0], halves[1], PIXEL_A, ball(7, 1, shape), seed=seed)
        masked.append(result.masked.correlation[near].mean())
        corrected.append(result.corrected.correlation[near].mean())
        assert result.randomised_from_A is not None
        assert result.randomised_from_A == pytest.approx(PIXEL_A * 36 / 4)
        assert np.abs(result.unmasked.correlation[near]).mean() < 0.1
    assert np.mean(masked) > 0.35  # the mask makes noise agree
    assert abs(np.mean(corrected)) < 0.12


def test_correction_leaves_a_signal_alone() -> None:
    signal = noise(0)
    result = volume_fsc(signal + noise(1), signal + noise(2), PIXEL_A, soft_box(SHAPE))
    weight = result.masked.count / result.masked.count.sum()
    assert weight @ result.corrected.correlation == pytest.approx(0.5, abs=0.03)
    assert weight @ np.abs(result.randomised.correlation) < 0.05


def test_a_mean_under_the_mask_is_no_agreement() -> None:
    result = volume_fsc(noise(1) + 1000, noise(2) + 500, PIXEL_A, softened(ball(8, 1, SHAPE) > 0.5))
    assert np.abs(result.masked.correlation @ result.masked.count / result.masked.count.sum()) < 0.1


def test_cones_see_their_own_direction() -> None:
    """Volumes that share the components about one axis only."""
    shells = FourierShells(SHAPE)
    for axis, name in ((2, "x"), (1, "y"), (0, "z")):
        shared = filtered(noise(0), shells.cone(axis, 25.0))
        rest = [filtered(noise(k), ~shells.cone(axis, 25.0)) for k in (1, 2)]
        parts = volume_fsc(shared + rest[0], shared + rest[1], PIXEL_A, whole()).parts
        for other in "xyz":
            values = parts[other].correlation[3:]
            assert np.nanmean(values) == pytest.approx(float(other == name), abs=0.12)


@pytest.mark.parametrize("every_tilt", [True, False])
def test_wedge_is_where_no_tilt_looked(every_tilt: bool) -> None:
    """A wave along (cos t, sin t) in x, z is seen at tilt t: shared at +50 or at -50 degrees, tilts from -20 to 60."""
    shape = (48, 16, 48)
    z, _, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    tilts = np.arange(-20, 61, 1.0) if every_tilt else np.array([60.0, -20.0])
    for angle, inside, outside in ((50.0, "measured", "wedge"), (-50.0, "wedge", "measured")):
        direction = np.deg2rad(angle)
        wave = 5 * np.cos(2 * np.pi * 0.25 * (x * np.cos(direction) + z * np.sin(direction)))
        mask = soft_box(shape, 0.3)
        result = volume_fsc(
            wave + noise(1, shape), wave + noise(2, shape), PIXEL_A, mask, tilt_deg=tilts, every_tilt=every_tilt
        )
        shell = int(np.argmin(np.abs(result.masked.frequency_per_A - 0.25 / PIXEL_A)))
        assert result.parts[inside].correlation[shell] > 0.9
        assert abs(result.parts[outside].correlation[shell]) < 0.5
        total = result.parts["measured"].count + result.parts["wedge"].count
        np.testing.assert_allclose(total, result.masked.count)


def test_gaps_between_tilts_count_as_wedge_only_when_every_tilt_is_named() -> None:
    tilts = np.array([-60.0, 0.0, 60.0])
    every, ends = (
        volume_fsc(noise(1), noise(2), PIXEL_A, whole(), tilt_deg=tilts, every_tilt=k).parts["wedge"].count.sum()
        for k in (True, False)
    )
    assert every > 1.5 * ends


def test_rings_of_images() -> None:
    """White signal and noise of equal power in every image: 1/2 together, 1/2 on average; 2-D as well as physical."""
    signal, shape = noise(0, (7, 40, 56)), (7, 40, 56)
    together, single = frc(signal + noise(1, shape), signal + noise(2, shape), PIXEL_A)
    assert len(single) == 7 and together.frequency_per_A[-1] == pytest.approx(1 / (2 * PIXEL_A))
    assert (np.abs(together.correlation - 0.5) < 5 / np.sqrt(together.count))[2:].all()
    wave = np.cos(2 * np.pi * 0.125 * np.arange(56)) + np.zeros((40, 1))
    other = np.cos(2 * np.pi * 0.125 * np.arange(40))[:, None] + np.zeros(56)
    for image in (wave, other):
        curve = frc((image + noise(1, (40, 56)))[None], (image + noise(2, (40, 56)))[None], PIXEL_A)[0]
        assert curve.frequency_per_A[np.argmax(curve.correlation)] * PIXEL_A == pytest.approx(0.125, abs=0.02)


def test_masks() -> None:
    box = soft_box((20, 30))
    assert box.max() == 1 and box[0].max() < 0.5 and box[10, 15] == 1
    hard = ball(6, 1e-6, SHAPE) > 0.5
    soft = softened(hard)
    assert (soft[hard] == 1).all() and soft.min() == 0
    assert 0 < soft[(SHAPE[0] - 1) // 2, 25, 30 + 6 + MASK_EDGE_PX // 2] < 1
    np.testing.assert_array_equal(softened(soft), soft)
    with pytest.raises(ValueError, match="0 everywhere"):
        volume_fsc(noise(0), noise(1), PIXEL_A, np.zeros(SHAPE))


def test_slab_is_found_in_empty_ice() -> None:
    shape = (48, 40, 40)
    specimen = gaussian_filter(noise(0, shape), 2)
    specimen *= ((np.arange(48) >= 14) & (np.arange(48) <= 30))[:, None, None] / specimen.std()
    height = soft_slab(specimen + noise(1, shape), specimen + noise(2, shape)).max(axis=(1, 2))
    inside = np.flatnonzero(height > 0.5)
    assert inside[0] == pytest.approx(14 - 2, abs=4) and inside[-1] == pytest.approx(30 + 2, abs=4)
    assert height[:4].max() == 0 and height[-8:].max() == 0


def test_local_resolution_tells_two_halves_apart() -> None:
    """Left all frequencies are shared, right only those below an eighth of a cycle per voxel."""
    shape = (24, 32, 64)
    shells = FourierShells(shape)
    sharp, blurred = noise(0, shape), filtered(noise(0, shape), shells.radius < 0.125)
    left = np.arange(64) < 32
    halves = [np.where(left, sharp, blurred) + 0.3 * noise(k, shape) for k in (1, 2)]
    values = local_resolution(halves[0], halves[1], PIXEL_A, 16, REFERENCE)
    assert values.shape == shape
    assert np.median(values[:, :, :16]) == pytest.approx(2 * PIXEL_A, rel=0.05)
    assert np.median(values[:, :, 48:]) == pytest.approx(8 * PIXEL_A, rel=0.25)
    unrelated = local_resolution(noise(1, shape), noise(2, shape), PIXEL_A, 16, REFERENCE)
    assert np.median(unrelated) == pytest.approx(16 * PIXEL_A)
    with pytest.raises(ValueError, match="window"):
        local_resolution(noise(1), noise(2), PIXEL_A, 30, REFERENCE)


def test_windows_fit_resolution_and_volume() -> None:
    assert window_for(20.0, 4.0, (90, 256, 256)) == 24
    assert window_for(np.inf, 4.0, (90, 256, 256)) == 48
    assert window_for(8.0, 4.0, (90, 256, 256)) == 16
    assert window_for(80.0, 4.0, (31, 256, 256)) == 30


def test_different_shapes_are_refused() -> None:
    other = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="different shape"):
        fsc(noise(0), other, PIXEL_A)
    with pytest.raises(ValueError, match="different shape"):
        volume_fsc(noise(0), noise(1), PIXEL_A, other)
    with pytest.raises(ValueError, match="different shape"):
        frc(noise(0), other, PIXEL_A)
