"""Data terms and penalties: values by hand, gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo import priors
from inrtomo.losses import Loss


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
