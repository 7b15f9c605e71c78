"""Priors, losses of counts and the transfer function in torch, against their NumPy forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inrtomo import priors
from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci
from inrtomo.geometry import axis_rotation
from inrtomo.gpu import ctf as gpu_ctf
from inrtomo.gpu.ctf import TransferOnDevice
from inrtomo.gpu.judging import CountJudge, judge_of
from inrtomo.gpu.priors import IsotropicSlope, WedgeSlope, boundary_slope
from inrtomo.losses import COUNT_KINDS, KINDS, CountLoss, Loss
from inrtomo.reconstruct.ctf_correction import CtfOperator

TILTS = np.arange(-60.0, 61, 12)
SHAPES = [(8, 20, 17), (9, 15, 24)]  # [z, x, y]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-12), ("float32", 2e-5)])
def test_slopes_of_fourier_priors_are_the_same(shape, dtype, error):
    rho = np.random.default_rng(0).random(shape).astype(dtype)
    wedge = WedgeSlope(shape, 2.0, TILTS, 60.0, 0.1, "cpu", getattr(torch, dtype))
    isotropic = IsotropicSlope(shape, "cpu", getattr(torch, dtype))
    for wanted, slope in (
        (priors.wedge_penalty(rho, 2.0, TILTS, 60.0, 0.1)[1], wedge),
        (priors.isotropic_prior(rho)[1], isotropic),
    ):
        found = slope(torch.tensor(rho)).numpy()
        assert found.dtype == rho.dtype and np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(found, wanted, atol=error * np.abs(wanted).max())


def test_slopes_across_edges_are_the_same():
    one, other = np.random.default_rng(0).random((2, 50))
    _, wanted, negative = priors.boundary_consistency(one, other, 0.1)
    found = boundary_slope(torch.tensor(one), torch.tensor(other), 0.1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(-found, negative, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_cost_the_same(kind):
    residual = np.random.default_rng(0).normal(scale=2, size=(3, 8, 9)).astype(np.float32)
    mean, slope = Loss(kind)(residual)
    value, by_residual = judge_of(kind)(torch.tensor(residual), slice(0, 3))
    assert float(value.mean()) == pytest.approx(mean, rel=1e-5)
    np.testing.assert_allclose(by_residual.numpy(), slope * residual.size, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", COUNT_KINDS)
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-6), ("float32", 2e-5)])
def test_counts_cost_the_same(kind, dtype, error):
    rng = np.random.default_rng(0)
    background, gain = rng.uniform(5, 50, 6), rng.choice([-1, 1], 6) * rng.uniform(0.5, 8, 6)
    images = rng.normal(scale=2, size=(6, 12, 13))
    images[:, 0] = -1.2 * (background / gain)[:, None]  # no counts, and fewer than none
    residual, read = rng.normal(scale=3, size=images.shape), rng.uniform(0, 0.5, 6)
    expected = 1 + (gain / background)[:, None, None] * (images + residual)
    assert 0.02 < (expected < 0.05).mean() < 0.5  # tangents, too
    judge = CountJudge(kind, torch.tensor(images.astype(dtype)), gain / background, read)
    for part in (slice(0, 6), slice(2, 4)):
        loss = CountLoss(kind, background[part], gain[part], read[part])
        mean, slope = loss(residual[part].astype(np.float32), images[part].astype(np.float32))
        value, by_residual = judge(torch.tensor(residual[part].astype(np.float32)).to(judge._images.dtype), part)
        assert float(value.mean()) == pytest.approx(mean, rel=error)
        wanted = slope * residual[part].size
        np.testing.assert_allclose(by_residual.numpy(), wanted, atol=error * np.abs(wanted).max())


def transfer(angle: float) -> CtfOperator:
    n = len(TILTS)
    linear = np.tile(axis_rotation(angle), (n, 1, 1))
    given = Alignment(TILTS, linear, np.zeros((n, 2)), (44, 36), 3.0)
    defoci = Defoci(np.full(n, 1e4), np.full(n, 800.0), np.full(n, 20.0), np.zeros(n))
    return CtfOperator(given, defoci)


@pytest.mark.parametrize("angle", [0.0, 30.0, 85.0])
@pytest.mark.parametrize("points_at_once", [1, 2**22])
def test_the_transfer_function_of_a_fit_is_the_same(angle, points_at_once, monkeypatch):
    monkeypatch.setattr(gpu_ctf, "POINTS_AT_ONCE", points_at_once)
    operator, tilts = transfer(angle), (0, 5, 10)
    assert [len(operator.view(tilt).windows) > 2 for tilt in tilts] == [True, False, True]
    other = TransferOnDevice({tilt: operator.view(tilt) for tilt in tilts}, "cpu")
    images = np.random.default_rng(0).normal(size=(2, 3, 36, 44)).astype(np.float32)
    for ours, theirs in ((operator.apply, other.apply), (operator.adjoint, other.adjoint)):
        wanted, found = ours(images[0], np.array(tilts)), theirs(torch.tensor(images[0]), tilts).numpy()
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())
        assert wanted.std() > 0.1
    one, two = (torch.tensor(part) for part in images)
    there = float((other.apply(one, tilts).double() * two).sum())
    assert there == pytest.approx(float((one.double() * other.adjoint(two, tilts)).sum()), rel=1e-4)
