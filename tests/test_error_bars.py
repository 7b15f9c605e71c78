"""Error bars of shifts, where the right answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.align.error_bars import half_data_masks, half_settings, jittered, sigma_of_shifts, without_gauge
from inrtomo.align.joint import JointSettings
from inrtomo.alignment import Alignment

NOISE_PX = 0.2


def halves(tilt_deg: np.ndarray, sd_px: np.ndarray | float, seed: int = 1) -> tuple[Alignment, Alignment]:
    """Two alignments whose shifts are off by independent errors of a known sd."""
    base = Alignment.identity(tilt_deg, (100, 100))
    noise = np.random.default_rng(seed).normal(size=(2, len(tilt_deg), 2)) * sd_px
    return replace(base, shift_px=noise[0]), replace(base, shift_px=noise[1])


def test_sigma_of_halves_of_a_known_error() -> None:
    """The mean of two halves of sd s has s / sqrt(2). What halves share (priors, local motion) comes on top of that, so
    bars are never shorter; on the benchmark they are 1.5 times as long, in no case twice."""
    first, second = halves(np.linspace(-60, 60, 401), NOISE_PX)
    sigma = sigma_of_shifts(first, second)
    independent = NOISE_PX / np.sqrt(2)
    assert 1.2 * independent < np.median(sigma) < 2 * independent
    assert sigma.shape == (401, 2) and sigma.min() > 0.8 * independent


def test_sigma_is_in_units_of_the_error() -> None:
    """Ten times the error, ten times the bar; halves that agree leave only what is never known better, 0.01 px."""
    tilt = np.linspace(-60, 60, 101)
    small, large = (sigma_of_shifts(*halves(tilt, sd)) for sd in (0.5, 5.0))
    np.testing.assert_allclose(large / small, 10, rtol=0.01)
    same, _ = halves(tilt, NOISE_PX)
    assert 0.005 < sigma_of_shifts(same, same).min() == sigma_of_shifts(same, same).max() < 0.03


def test_motions_of_the_specimen_are_no_error() -> None:
    first, second = halves(np.linspace(-60, 60, 61), NOISE_PX)
    moved = second.translated((3.0, -2.0, 5.0))
    np.testing.assert_allclose(sigma_of_shifts(first, moved), sigma_of_shifts(first, second), rtol=1e-6)
    tilt = np.deg2rad(first.tilt_deg)
    rigid = np.stack([2 * np.cos(tilt) - 3 * np.sin(tilt), np.full(61, 1.5)], axis=1)
    np.testing.assert_allclose(without_gauge(rigid, first.tilt_deg), 0, atol=1e-12)


def test_bars_stand_at_the_tilts_whose_error_they_are() -> None:
    """High tilts are worse here, in a stack of any order."""
    tilt = np.linspace(-60, 60, 121)
    sd = 0.1 + 0.9 * (np.abs(tilt) > 40)
    first, second = halves(tilt, sd[:, None])
    order = np.random.default_rng(7).permutation(len(tilt))

    def mixed(a: Alignment) -> Alignment:
        return replace(a, tilt_deg=a.tilt_deg[order], shift_px=a.shift_px[order])

    sigma = sigma_of_shifts(mixed(first), mixed(second))
    steep = np.abs(tilt[order]) > 45
    flat = np.abs(tilt[order]) < 25
    assert sigma[steep].min() > 1.3 * sigma[flat].max()
    np.testing.assert_allclose(sigma, sigma_of_shifts(first, second)[order], rtol=1e-9)


def test_halves_do_not_start_from_the_answer() -> None:
    """Left where the full fit ended, halves stay nearer to each other than noise alone would have them."""
    start = Alignment.identity(np.linspace(-60, 60, 201), (100, 100))
    first, second = (jittered(start, seed).shift_px for seed in (1, 2))
    for shift in (first, second):
        assert 0.2 < shift.std() < 0.5 and abs(shift.mean()) < 0.1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.2


def test_halves_fit_every_pixel_and_keep_the_local_motion() -> None:
    settings = half_settings(JointSettings())
    assert settings.held_out == 0 and all(scale.warp_from is None for scale in settings.schedule)
    assert [scale.steps for scale in settings.schedule] == [scale.steps for scale in JointSettings().schedule]


def test_masks_of_halves_share_no_pixel_and_miss_none() -> None:
    first, second = half_data_masks((3, 100, 80))
    np.testing.assert_array_equal(first + second, 1)
    np.testing.assert_array_equal(first * second, 0)
    assert 0.4 < first.mean() < 0.6
    assert (first[0] == second[1]).all()  # a place that one tilt gives to one half, the next gives to the other


def test_masks_of_halves_are_of_blocks() -> None:
    """Noise of neighbouring pixels is not independent: whole squares of 32 px, like a chessboard, go to one half."""
    first, _ = half_data_masks((2, 100, 80))
    for tilt, row, column in np.ndindex(2, 3, 2):
        square = first[tilt, 32 * row : 32 * (row + 1), 32 * column : 32 * (column + 1)]
        assert (square == (tilt + row + column) % 2).all()
    assert half_data_masks((5, 3, 4))[0].shape == (5, 3, 4)


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbouring_tilts_are_pooled(axis: int) -> None:
    """One tilt's difference says little of its own error: it is shared by its neighbours, half of it within a few."""
    tilt = np.linspace(-60, 60, 61)
    base = Alignment.identity(tilt, (100, 100))
    shift = np.zeros((61, 2))
    shift[30, axis] = 3.0
    variance = sigma_of_shifts(replace(base, shift_px=shift), base)[:, axis] ** 2
    assert np.argmax(variance) == 30
    assert variance[28] > 0.6 * variance[30] and variance[20] < 0.5 * variance[30]
    assert variance[0] > 0.05 * variance[30]  # and all have a share of the mean over the series
