"""Sweeps on a device, in plain torch on the CPU, against the compiled CPU path."""

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.gpu.sweeps import DeviceSweeps
from inrtomo.reconstruct.rays import Rays
from inrtomo.reconstruct.sart_tv import ROUNDING, VARIATION_STEPS, _lower_variation
from inrtomo.reconstruct.sweeps import Sweeps

SIZE, TILTS = 20, np.arange(-60.0, 61, 20)


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    """Not the interpreter, which would take hours."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("n_subsets", [1, 3])
def test_sweeps_end_at_the_same_density(n_subsets):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    weight = (rng.random(images.shape) > 0.1).astype(np.float32)
    alignment = Alignment.identity(TILTS, (SIZE, SIZE), 5.0, 10.0)
    alignment = replace(alignment, shift_px=rng.normal(size=(len(TILTS), 2)))
    rays = Rays(alignment, (SIZE, SIZE), 1, 6.0)
    level, allowed = rng.normal(size=len(TILTS)), rng.random(rays.lattice.shape) > 0.2
    ours = Sweeps(rays, images, weight, level, n_subsets, allowed)
    other = DeviceSweeps(rays, images, weight, level, n_subsets, "cpu", allowed)
    for relaxation in (1.0, 0.6):
        ours.sweep(relaxation, lowest=-0.2)
        other.sweep(relaxation, lowest=-0.2)
    assert ours.density.min() == pytest.approx(-0.2) and ours.density.std() > 0.01
    np.testing.assert_allclose(other.density, ours.density, atol=1e-4 * np.abs(ours.density).max())
    _lower_variation(ours.density, 0.05, -0.1)
    other.lower_variation(0.05, ROUNDING * 0.05, VARIATION_STEPS, -0.1)
    np.testing.assert_allclose(other.density, ours.density, atol=1e-3 * np.abs(ours.density).max())
