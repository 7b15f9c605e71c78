"""Data terms and penalties: values by hand, gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo import priors
from inrtomo.losses import CountLoss, Loss, read_noise


def slope_along(function, point, direction, step):
    """Central difference in float64 of a function of one array."""
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_loss_slope(kind):
    rng = np.random.default_rng(0)
    residual = rng.normal(scale=3, size=(3, 4, 50)).astype(np.float32)
    weight = rng.random(residual.shape).astype(np.float32)
    noise = np.array([0.5, 1.0, 2.0])
    loss = Loss(kind, delta=1.0)
    _, slope = loss(residual, weight, noise)
    direction = rng.normal(size=residual.shape).astype(np.float32)
    numeric = slope_along(lambda r: loss(r, weight, noise)[0], residual, direction, 1e-3)
    assert numeric == pytest.approx(float((slope * direction).sum()), rel=1e-2)


def test_loss_values():
    residual = np.array([[1.0, -4.0]], dtype=np.float32)
    assert Loss("l1")(residual, noise_sd=2.0)[0] == pytest.approx(1.25)
    assert Loss("l2")(residual, noise_sd=2.0)[0] == pytest.approx((0.125 + 2.0) / 2)
    assert Loss("huber", delta=1.0)(residual, noise_sd=2.0)[0] == pytest.approx((0.125 + 1.5) / 2)


def test_pixels_of_no_weight_may_be_anything():
    residual = np.array([[1.0, np.nan, np.inf]], dtype=np.float32)
    value, slope = Loss("l2")(residual, np.array([[1.0, 0.0, 0.0]], dtype=np.float32))
    assert value == pytest.approx(0.5)
    np.testing.assert_array_equal(slope, [[1.0, 0.0, 0.0]])
    assert Loss("l2")(residual, np.zeros_like(residual))[0] == 0.0


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss"):
        Loss("l3")


def test_size_penalty_of_ice_tide():
    rng = np.random.default_rng(1)
    rotation, shift, vectors = rng.normal(size=4), rng.normal(size=(4, 2)), rng.normal(size=(4, 3, 3, 2))
    weights = (0.3, 0.7, 1.1)
    value, *slopes = priors.deformation_size(rotation, shift, vectors, weights)
    by_hand = 0.3 * abs(rotation).sum() + sum(0.7 * np.hypot(*s) for s in shift)
    assert value == pytest.approx(by_hand + sum(1.1 * np.sqrt((v**2).sum()) for v in vectors))
    turned = priors.deformation_size(rotation + 360, shift, vectors, weights)
    assert turned[0] == pytest.approx(value)
    arguments = [rotation, shift, vectors]
    for k, slope in enumerate(slopes):
        direction = rng.normal(size=arguments[k].shape)

        def moved(a, k=k):
            r, s, v = [a if j == k else b for j, b in enumerate(arguments)]
            return priors.deformation_size(r, s, v, weights)[0]

        assert slope_along(moved, arguments[k], direction, 1e-6) == pytest.approx((slope * direction).sum())
    still = priors.deformation_size(np.zeros(2), np.zeros((2, 2)), np.zeros((2, 3, 3, 2)), weights)
    assert still[0] == 0 and all(np.all(s == 0) for s in still[1:])


@pytest.mark.parametrize(
    "penalty",
    [
        priors.warp_energy,
        priors.warp_curvature,
        lambda v: priors.dose_ordered_change(v, np.array([3, 0, 2, 1])),
    ],
    ids=["energy", "curvature", "dose order"],
)
def test_warp_penalty_slope(penalty):
    rng = np.random.default_rng(2)
    vectors, direction = rng.normal(size=(2, 4, 5, 4, 2))
    slope = penalty(vectors)[1]
    numeric = slope_along(lambda v: penalty(v)[0], vectors, direction, 1e-5)
    assert numeric == pytest.approx((slope * direction).sum(), rel=1e-6)


def test_affine_motion_does_not_bend():
    y, x = np.meshgrid(np.arange(5.0), np.arange(4.0), indexing="ij")
    affine = np.stack([1 + 0.3 * x - 0.2 * y, 0.1 * x + 0.5 * y], axis=-1)[None]
    assert priors.warp_curvature(affine)[0] == pytest.approx(0, abs=1e-20)
    assert priors.warp_curvature(affine**2)[0] > 1


def test_change_follows_the_acquisition():
    values = np.array([[2.0], [0.0], [1.0]])
    assert priors.dose_ordered_change(values, np.array([2, 0, 1]))[0] == pytest.approx(1.0)


def test_total_variation_of_a_step_and_its_slope():
    step = np.zeros((4, 6, 8), dtype=np.float32)
    step[:, 3:] = 2.0
    assert priors.total_variation(step, 1e-4)[0] == pytest.approx(2 * 4 * 8, rel=1e-3)
    rng = np.random.default_rng(0)
    rho, direction = rng.random((2, 4, 5, 9)).astype(np.float32)
    slope = priors.total_variation(rho, 0.1)[1]
    numeric = slope_along(lambda v: priors.total_variation(v, 0.1)[0], rho, direction, 1e-2)
    assert numeric == pytest.approx(float((slope * direction).sum()), rel=1e-3)


@pytest.mark.parametrize("kind", ["poisson", "heteroscedastic"])
@pytest.mark.parametrize("gain", [-3.0, 2.0])
def test_count_loss_slope(kind, gain):
    rng = np.random.default_rng(0)
    images, residual, direction = rng.normal(size=(3, 3, 4, 30)).astype(np.float32)
    images *= 4  # some expected counts are negative, some counts too
    weight = rng.random(images.shape).astype(np.float32)
    noise = np.array([0.5, 1.0, 2.0])
    loss = CountLoss(kind, np.array([9.0, 12.0, 20.0]), np.full(3, gain), read=np.array([0.1, 0.5, 0.0]))
    assert (9.0 + gain * (images + residual) < 0).any()
    _, slope = loss(residual, images, weight, noise)
    numeric = slope_along(lambda r: loss(r, images, weight, noise)[0], residual, direction, 1e-3)
    assert numeric == pytest.approx(float((slope * direction).sum()), rel=1e-2)


def test_count_losses_by_hand():
    images, residual = np.array([[-2.0]], dtype=np.float32), np.array([[0.5]], dtype=np.float32)
    seen, expected, variance = 10 - 3 * -2.0, 10 - 3 * -1.5, (0.7 * 3) ** 2
    half_deviance = 10 / variance * (expected - seen + seen * np.log(seen / expected))
    camera = (np.array([10.0]), np.array([-3.0]))
    assert CountLoss("poisson", *camera)(residual, images, noise_sd=0.7)[0] == pytest.approx(half_deviance, rel=1e-5)
    v = 0.25 + 0.75 * expected / 10
    gaussian = (0.5 / 0.7) ** 2 / (2 * v) + np.log(v) / 2
    loss = CountLoss("heteroscedastic", *camera, read=0.25)
    assert loss(residual, images, noise_sd=0.7)[0] == pytest.approx(gaussian, rel=1e-5)


@pytest.mark.parametrize("kind", ["poisson", "heteroscedastic"])
def test_count_losses_are_l2_without_contrast(kind):
    rng = np.random.default_rng(1)
    residual, images = rng.normal(size=(2, 2, 50)).astype(np.float32)
    noise = np.array([0.5, 2.0])
    value, slope = CountLoss(kind, np.full(2, 1e3), np.full(2, -1.0), read=0.3)(residual, images, noise_sd=noise)
    expected, expected_slope = Loss("l2")(residual, noise_sd=noise)
    assert value == pytest.approx(expected, rel=5e-3)
    # the logarithm of the variance has a slope of its own, a noise unit in a thousand
    np.testing.assert_allclose(slope, expected_slope, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("kind", ["poisson", "heteroscedastic"])
def test_count_losses_recover_the_mean_of_counts(kind):
    """Where the mean has zero slope is the mean of the counts: weighting by what is expected makes no bias."""
    rng = np.random.default_rng(2)
    truth, background, gain = 1.2, 8.0, -4.0
    counts = rng.poisson(background + gain * truth, size=(1, 40000))
    images = ((counts - background) / gain).astype(np.float32)
    loss = CountLoss(kind, np.array([background]), np.array([gain]))
    noise = np.sqrt(background) / abs(gain)
    models = np.linspace(0.9, 1.5, 61)
    values = [loss((m - images).astype(np.float32), images, noise_sd=noise)[0] for m in models]
    assert models[int(np.argmin(values))] == pytest.approx(truth, abs=0.02)


def test_count_losses_ignore_pixels_of_no_weight():
    images, residual = np.array([[0.0, np.nan]], np.float32), np.array([[1.0, np.inf]], np.float32)
    weight = np.array([[1.0, 0.0]], np.float32)
    for kind in ("poisson", "heteroscedastic"):
        value, slope = CountLoss(kind, np.array([9.0]), np.array([1.0]))(residual, images, weight)
        assert np.isfinite(value) and slope[0, 0] > 0 and slope[0, 1] == 0
    with pytest.raises(ValueError, match="positive background"):
        CountLoss("poisson", np.array([0.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="unknown loss"):
        CountLoss("l2", np.array([1.0]), np.array([1.0]))


def test_read_noise_from_the_tilts():
    background = np.linspace(40, 10, 31)
    read, gain = read_noise(25 + 1.5 * background, background)
    assert (read, gain) == (pytest.approx(25), pytest.approx(1.5))
    rng = np.random.default_rng(3)
    read, gain = read_noise(1.5 * background * rng.uniform(0.97, 1.03, 31), background)
    assert read < 2 and gain == pytest.approx(1.5, rel=0.06)
