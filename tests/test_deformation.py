"""Deformation models: what they draw, their gradients, and that what is exported is what was fitted."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.deformation import ControlPoints, make_deformation

KINDS = ("bicubic", "bilinear", "network")
X, Y = np.linspace(-130, 130, 5), np.linspace(-100, 100, 4)


def shaken(kind, n_tilts=3):
    model = make_deformation(kind, n_tilts, X, Y, seed=1)
    rng = np.random.default_rng(0)
    model.parameters()[:] += rng.normal(scale=0.3, size=model.parameters().size).astype(np.float32)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_starts_still(kind):
    assert not np.any(make_deformation(kind, 2, X, Y).vectors())


@pytest.mark.parametrize("kind", KINDS)
def test_lattice_equals_the_exported_warp(kind):
    model = shaken(kind)
    x, y = np.linspace(-140, 140, 21), np.linspace(-90, 90, 13)
    model.set_lattice(x, y)
    drawn = model.displacement(np.array([2, 0]))
    warp = model.to_warp()
    for row, tilt in enumerate((2, 0)):
        np.testing.assert_allclose(np.moveaxis(drawn[row], 0, -1), warp.on_lattice(tilt, x, y), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_finite_differences(kind):
    model = shaken(kind)
    model.set_lattice(np.linspace(-120, 120, 9), np.linspace(-90, 90, 7))
    rng = np.random.default_rng(3)
    tilts = np.array([0, 2])
    grad = rng.normal(size=model.displacement(tilts).shape).astype(np.float32)
    model.backward(grad, tilts)
    assert not np.any(model.grad[model.tilt_group(1)])
    direction = rng.normal(size=model.parameters().size).astype(np.float32)
    start, step, values = model.parameters().copy(), 1e-2, []
    for sign in (1, -1):
        model.parameters()[:] = start + sign * step * direction
        values.append(float((model.displacement(tilts).astype(np.float64) * grad).sum()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(model.grad @ direction), rel=2e-3)


def test_control_points_take_a_warp_over():
    model = shaken("bicubic")
    np.testing.assert_allclose(ControlPoints.from_warp(model.to_warp()).vectors(), model.vectors(), atol=1e-7)


def test_network_can_follow_a_smooth_motion():
    from inrtomo.fields import Adam

    model = make_deformation("network", 2, X, Y, seed=0)
    target = np.stack([np.sin(X[None] / 90 + 1) * np.cos(Y[:, None] / 70), X[None] * Y[:, None] / 1e4], axis=-1)
    adam = Adam({"all": slice(0, model.parameters().size)}, 1e-2)
    for _ in range(200):
        model.zero_grad()
        model.backward_vectors((model.vectors() - target).astype(np.float32))
        adam.step(model.parameters(), model.grad)
    assert np.abs(model.vectors() - target).max() < 0.1
