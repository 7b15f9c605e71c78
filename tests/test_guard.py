"""The guard keeps what predicts held-out pixels best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.align.guard import choose, held_out_blocks, paired_difference
from inrtomo.align.joint import JointSettings
from inrtomo.simulate import Simulation, SimulationSettings, simulate

SHAPE = (20, 6, 6)


def blocks(loss: float, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """A map of held-out blocks ``(n, n_by, n_bx, 2)``: common scatter of the blocks plus some of its own."""
    common = np.random.default_rng(99).normal(size=SHAPE) * 0.5
    weight = np.full(SHAPE, 16.0)
    weight[:, 0] = 0.0
    own = np.random.default_rng(seed).normal(size=SHAPE) * noise
    return np.stack([(loss + common + own) * weight, weight], axis=-1)


def test_pairing_takes_the_common_scatter_out() -> None:
    difference, error = paired_difference(blocks(1.02, 1), blocks(1.0, 2))
    assert difference == pytest.approx(0.02, abs=3 * error)
    assert error == pytest.approx(0.05 * np.sqrt(2) / np.sqrt(20 * 30), rel=0.15)


def test_blocks_count_by_their_pixels() -> None:
    """Half of the blocks have 30 pixels each and are worse by 1, the others 10 and are equal: 0.75 on the whole."""
    weight = np.where(np.arange(100) % 2, 30.0, 10.0).reshape(4, 5, 5)
    equal = np.stack([weight, weight], axis=-1)
    worse = np.stack([weight * np.where(weight > 20, 2.0, 1.0), weight], axis=-1)
    difference, error = paired_difference(worse, equal)
    assert difference == pytest.approx(0.75)
    # sum of w^2 (d - mean)^2 with w = 0.015 and 0.005: 50 (0.015 * 0.25)^2 + 50 (0.005 * 0.75)^2
    assert error == pytest.approx(np.sqrt(50 * 0.00375**2 + 50 * 0.00375**2) * np.sqrt(100 / 99))
    assert paired_difference(equal, worse)[0] == pytest.approx(-0.75)


def test_only_blocks_that_both_see_are_compared() -> None:
    weight = np.full((4, 5, 5), 16.0)
    first, second = np.stack([weight, weight], axis=-1), np.stack([weight, weight], axis=-1)
    first[0] = 0.0
    second[1] = (1e6, 0.0)
    first[2, ..., 0] += 8.0  # half a unit a pixel, in 25 of the 50 blocks left
    assert paired_difference(first, second)[0] == pytest.approx(0.25)
    assert paired_difference(np.zeros((4, 5, 5, 2)), second) == (0.0, np.inf)


def test_two_blocks_are_the_fewest_that_tell_an_error() -> None:
    """Differences 1 and 3 of equal weight: 2, and the standard error of a mean of two, 1."""
    first = np.array([[2.0, 1.0], [4.0, 1.0]]).reshape(2, 1, 1, 2)
    second = np.array([[1.0, 1.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    assert paired_difference(first, second) == pytest.approx((2.0, 1.0))
    assert paired_difference(first[:1], second[:1]) == (0.0, np.inf)


def test_the_best_is_kept() -> None:
    verdict = choose({"start": blocks(1.10, 1), "linear": blocks(1.05, 2), "warp": blocks(1.0, 3)})
    assert verdict.chosen == "warp"
    assert verdict.difference["linear"] > 0
    assert verdict.held_out_loss["warp"] < verdict.held_out_loss["linear"] < verdict.held_out_loss["start"]


def test_a_warp_that_fits_noise_is_refused() -> None:
    assert choose({"start": blocks(1.1, 1), "linear": blocks(1.0, 2), "warp": blocks(1.01, 3)}).chosen == "linear"


def test_a_result_worse_than_its_start_is_refused() -> None:
    verdict = choose({"start": blocks(1.0, 1), "linear": blocks(1.2, 2), "warp": blocks(1.1, 3)})
    assert verdict.chosen == "start"
    assert "worse" in verdict.reason


def test_without_a_warp() -> None:
    assert choose({"start": blocks(1.1, 1), "linear": blocks(1.0, 2)}).chosen == "linear"


@pytest.fixture(scope="module")
def series() -> Simulation:
    return simulate(
        SimulationSettings(
            size=(96, 96),
            thickness_px=32,
            tilt_step_deg=6.0,
            snr_db=5.0,
            warp_max_px=1.5,
            shift_px=3.0,
            beads=3,
            seed=2,
        )
    )


def test_held_out_pixels_know_the_true_alignment(series: Simulation) -> None:
    """The truth predicts held-out pixels better than itself without warp, and that better than shifts 1 px off."""
    truth = series.alignment
    off = np.random.default_rng(0).normal(size=truth.shift_px.shape)
    wrong = replace(truth.without_warp(), shift_px=truth.shift_px + off)
    settings = JointSettings(held_out=0.2)
    weight = np.ones_like(series.images)
    maps = {
        name: held_out_blocks(series.images, weight, alignment, 40.0, settings)
        for name, alignment in (("start", wrong), ("linear", truth.folded().without_warp()), ("warp", truth))
    }
    for one in maps.values():
        np.testing.assert_array_equal(one[..., 1] > 0, maps["warp"][..., 1] > 0)
    verdict = choose(maps)
    assert verdict.chosen == "warp"
    assert verdict.difference["start"] > 3 * verdict.standard_error["start"]
    assert choose({"start": maps["linear"], "linear": maps["start"]}).chosen == "start"
