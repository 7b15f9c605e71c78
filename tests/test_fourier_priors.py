"""Fourier penalties of a density: exact gradients, and that they see what they are for and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo import priors
from inrtomo.reconstruct.wedge import crowther_frequency
from tests.test_losses_priors import slope_along

TILTS = np.array([-50.0, -20.0, 0.0, 10.0, 40.0, 55.0])
SHAPES = [(12, 17, 22), (13, 16, 20), (10, 24, 15)]


def wedge(rho: np.ndarray) -> tuple[float, np.ndarray]:
    return priors.wedge_penalty(rho, 2.0, TILTS, thickness_px=60.0, rounding=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [wedge, priors.isotropic_prior], ids=["wedge", "isotropic"])
def test_slope(penalty, shape):
    rng = np.random.default_rng(0)
    rho, direction = rng.random(shape), rng.normal(size=shape)
    value, slope = penalty(rho)
    numeric = slope_along(lambda r: penalty(r)[0], rho, direction, 1e-6)
    assert numeric == pytest.approx(float((slope * direction).sum()), rel=1e-5, abs=1e-6)
    single = penalty(rho.astype(np.float32))
    assert single[1].dtype == np.float32 and single[0] == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(single[1], slope, atol=2e-3)


def ripple(shape: tuple[int, int, int], cycles: tuple[float, float, float]) -> np.ndarray:
    """A wave with ``cycles`` along (z, x, y) of the lattice."""
    z, x, y = (np.arange(n) / n for n in shape)
    phase = cycles[0] * z[:, None, None] + cycles[1] * x[:, None] + cycles[2] * y
    return np.cos(2 * np.pi * phase)


@pytest.mark.parametrize(
    ("cycles", "low", "high"),  # the penalty relative to that of a wave along the beam, which no tilt sees
    [
        ((10, 6, 0), 0.9, 1.2),  # 17 deg from the beam
        ((10, -6, 6), 0.9, 1.2),
        ((6, 12, 0), 0.0, 0.02),  # 45 deg: between the tilts
        ((0, 0, 12), 0.0, 0.2),  # along the axis: seen by all; the soft edge blurs it along kz
        ((2, 0, 0), 0.0, 0.02),  # below the Crowther frequency
    ],
)
def test_wedge_penalty_sees_the_missing_wedge_beyond_the_crowther_frequency(cycles, low, high):
    shape, tilts = (32, 64, 32), np.arange(-60.0, 61.0, 5.0)
    # cos 60 deg / (32 * 5 deg) = 0.18 cycles per voxel; 10 cycles in 32 are 0.31
    assert 0.1 < crowther_frequency(tilts, 32) < 0.25
    value, slope = priors.wedge_penalty(ripple(shape, cycles), 1.0, tilts, 32.0, 0.01)
    reference, _ = priors.wedge_penalty(ripple(shape, (10, 0, 0)), 1.0, tilts, 32.0, 0.01)
    assert low * reference <= value <= high * reference
    assert np.abs(slope).max() > 0


def test_wedge_penalty_rises_linearly_with_frequency():
    shape, tilts = (64, 32, 16), np.arange(-60.0, 61.0, 5.0)
    low, high = (priors.wedge_penalty(ripple(shape, (c, 0, 0)), 1.0, tilts, 64.0, 1e-3)[0] for c in (14, 28))
    assert high / low == pytest.approx(2, rel=0.1)


def test_wedge_penalty_does_not_see_the_faces_of_the_slab(monkeypatch):
    """A density whose two faces differ: periodic, it has a step along z; a constant one costs nothing."""
    tilts = np.arange(-60.0, 61.0, 3.0)
    slope = np.broadcast_to(np.linspace(0, 1, 32)[:, None, None], (32, 32, 32))
    soft, _ = priors.wedge_penalty(slope, 1.0, tilts, 32.0, 0.01)
    level, gradient = priors.wedge_penalty(np.full((32, 32, 32), 5.0), 1.0, tilts, 32.0, 0.01)
    assert level == pytest.approx(0, abs=1e-6) and np.abs(gradient).max() < 1e-9
    monkeypatch.setattr(priors, "TAPER", 1e-6)
    assert soft < 0.03 * priors.wedge_penalty(slope, 1.0, tilts, 32.0, 0.01)[0]


def test_descending_the_wedge_penalty_keeps_what_was_measured():
    rng = np.random.default_rng(1)
    shape, tilts = (32, 48, 16), np.arange(-60.0, 61.0, 3.0)
    seen, hidden = ripple(shape, (3, 18, 2)), ripple(shape, (12, 4, 0))
    rho = seen + hidden + 0.1 * rng.normal(size=shape)
    for _ in range(200):
        rho -= 0.3 * priors.wedge_penalty(rho, 1.0, tilts, 32.0, 0.1)[1]
    inner = (slice(8, -8), slice(12, -12), slice(4, -4))

    def part(wave: np.ndarray) -> float:
        return float((rho[inner] * wave[inner]).sum() / (wave[inner] ** 2).sum())

    assert part(seen) == pytest.approx(1, abs=0.1)
    assert abs(part(hidden)) < 0.2


def test_isotropic_prior_sees_streaks_along_the_axes_only():
    shape = (4, 48, 48)
    streaks = [ripple(shape, (0, 15, 0)), ripple(shape, (0, 0, 15))]
    oblique = ripple(shape, (0, 12, 9))  # the same frequency, 15 cycles
    noise = 0.1 * np.random.default_rng(2).normal(size=shape)
    base, _ = priors.isotropic_prior(noise)
    for streak in streaks:
        assert priors.isotropic_prior(noise + streak)[0] > 3 * base
    assert priors.isotropic_prior(noise + oblique)[0] < base  # a stronger ring: less excess
    low = priors.isotropic_prior(noise + ripple(shape, (0, 2, 0)))[0]  # below zeta0 of Nyquist
    assert low - base < 0.2 * (priors.isotropic_prior(noise + streaks[0])[0] - base)


def test_isotropic_prior_knows_rings_of_frequency_not_of_index():
    """On a 32 x 96 slice the axis component 10 / 32 shares its ring with 30 / 96."""
    shape = (1, 32, 96)
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.normal(size=shape)
    axis = ripple(shape, (0, 10, 0))
    ring = sum(ripple(shape, (0, 10 * np.cos(a), 30 * np.sin(a))) for a in np.linspace(0.2, np.pi - 0.2, 12))
    alone = priors.isotropic_prior(axis + noise)[0]
    assert priors.isotropic_prior(axis + 2 * ring + noise)[0] < 0.8 * alone


def test_isotropic_prior_by_hand():
    """Against its equation, summed over components one by one."""
    n = 16
    rho = np.random.default_rng(4).normal(size=(1, n, n))
    inward = np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5)
    edge = 0.5 - 0.5 * np.cos(np.pi * np.clip(inward / (priors.TAPER * n), 0, 1))
    window = edge[:, None] * edge
    seen = window * (rho[0] - (window * rho[0]).sum() / window.sum())
    amplitude = np.abs(np.fft.fft2(seen)) / n
    f = np.fft.fftfreq(n) * n
    radius = np.hypot(f[:, None], f)
    value = 0.0
    for i in range(n):
        for j in range(n):
            ring = round(radius[i, j])
            if (i and j) or not 0 < ring <= n // 2:
                continue
            mean = amplitude[np.rint(radius) == ring].mean()
            value += max(amplitude[i, j] - mean, 0) / (np.exp(0.2 * n / 2 - radius[i, j]) + 1)
    assert priors.isotropic_prior(rho)[0] == pytest.approx(value, rel=1e-9)


def test_boundary_consistency():
    rng = np.random.default_rng(5)
    a, b, da, db = rng.normal(size=(4, 40))
    assert priors.boundary_consistency(a, a)[0] == 0
    assert priors.boundary_consistency(a, b)[0] == pytest.approx(np.abs(a - b).sum())
    value, slope_a, slope_b = priors.boundary_consistency(a, b, 0.1)
    assert value < np.abs(a - b).sum()
    h = 1e-6
    numeric = [priors.boundary_consistency(a + s * h * da, b + s * h * db, 0.1)[0] for s in (1, -1)]
    assert (numeric[0] - numeric[1]) / (2 * h) == pytest.approx(float((slope_a * da + slope_b * db).sum()), rel=1e-6)
    same = priors.boundary_consistency(np.ones(3, np.float32), np.ones(3, np.float32))
    assert same[1].dtype == np.float32 and not np.any(same[1])
