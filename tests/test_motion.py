"""Motion: coordinates against the alignment they stand for, steps, gauge, saved state."""

import numpy as np
import pytest

from inrtomo.align.motion import BlockSums, Motion
from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation, centred_coordinates

TILTS = np.arange(-60.0, 61, 20)


def start(axis_deg=12.0):
    rng = np.random.default_rng(0)
    linear = np.stack([axis_rotation(axis_deg + e) for e in rng.normal(size=len(TILTS))])
    return Alignment(TILTS, linear, rng.normal(size=(len(TILTS), 2)) * 5, (64, 48), 10.0)


@pytest.mark.parametrize("warp", ["bicubic", "bilinear"])
def test_coordinates_are_those_of_the_alignment(warp):
    motion = Motion(start(), warp=warp)
    motion.nodes = 0.15 * np.random.default_rng(1).normal(size=motion.nodes.shape)  # slopes of a few %, as real ones
    x, y = centred_coordinates(64), centred_coordinates(48)
    u, v = motion.coordinates(slice(2, 4), x, y, 2.0, 51, 41)
    points = np.stack(np.meshgrid(x, y), axis=-1)
    for row, tilt in enumerate((2, 3)):
        exact = motion.alignment.raw_to_aligned(tilt, points)
        np.testing.assert_allclose((u[row] - 25) * 2, exact[..., 0], atol=1e-3)
        np.testing.assert_allclose((v[row] - 20) * 2, exact[..., 1], atol=1e-3)


def sums_for(motion, wanted):
    """Block sums whose data term is 200 |u(p) - wanted(p)|^2 / 2 in every block."""
    x, y = np.linspace(-28, 28, 8), np.linspace(-20, 20, 6)
    values = np.zeros((len(TILTS), 6, 8, 5))
    points = np.stack(np.meshgrid(x, y), axis=-1)
    for m in range(len(TILTS)):
        error = motion.alignment.raw_to_aligned(m, points) - wanted.raw_to_aligned(m, points)
        values[m, ..., :2] = 200 * error
    values[..., 2] = values[..., 4] = 200
    misfit = np.square(values[..., :2] / 200).sum(axis=-1).mean()
    return BlockSums(values, x, y), misfit


@pytest.mark.parametrize(("with_warp", "left"), [(False, 0.3), (True, 0.05)])
def test_steps_find_the_motion(with_warp, left):
    truth = Motion(start())
    rng = np.random.default_rng(2)
    truth.nodes = rng.normal(size=truth.nodes.shape) * 0.5
    truth.nodes -= truth.nodes.mean(axis=0)
    change = rng.normal(size=(len(TILTS), 2))
    modes = np.stack([np.cos(np.deg2rad(TILTS)), np.sin(np.deg2rad(TILTS))], axis=1)
    change[:, 0] -= modes @ np.linalg.lstsq(modes, change[:, 0], rcond=None)[0]
    change[:, 1] -= change[:, 1].mean()
    truth.shift = truth.shift + change
    motion = Motion(start())
    _, first = sums_for(motion, truth.alignment)
    for _ in range(40):
        sums, misfit = sums_for(motion, truth.alignment)
        motion.step(sums, 0.5, with_warp)
    assert misfit < left * first


def test_translations_of_the_specimen_do_not_move():
    motion = Motion(start())
    modes = np.stack([np.cos(np.deg2rad(TILTS)), np.sin(np.deg2rad(TILTS))], axis=1)
    wanted = Motion(start())
    wanted.shift = wanted.shift + np.stack([modes @ [1.0, -1.5], np.full(len(TILTS), 1.5)], axis=1)
    before = motion.shift.copy()
    for _ in range(5):
        motion.step(sums_for(motion, wanted.alignment)[0], 0.5, False)
    np.testing.assert_allclose(motion.shift, before, atol=1e-6)


@pytest.mark.parametrize("warp", ["bicubic", "bilinear"])
def test_local_motion_that_all_tilts_share_does_not_move(warp):
    """A deformation seen alike in every tilt is one of the specimen; the motion that remains sums to nothing."""
    rng = np.random.default_rng(3)
    wanted = Motion(start(), warp=warp)
    own = rng.normal(size=wanted.nodes.shape) * 0.3
    own -= own.mean(axis=0)
    wanted.nodes = own + rng.normal(size=wanted.nodes.shape[1:])
    motion = Motion(start(), warp=warp)
    for _ in range(10):
        motion.step(sums_for(motion, wanted.alignment)[0], 0.5, True)
    np.testing.assert_allclose(motion.nodes.mean(axis=0), 0, atol=1e-9)
    assert np.abs(motion.nodes).max() > 0.1


@pytest.mark.parametrize("warp", ["bicubic", "network"])
def test_goes_on_from_its_state(warp):
    wanted = Motion(start(11.0)).alignment
    motion, again = Motion(start(), warp=warp), Motion(start(), warp=warp, seed=5)
    motion.step(sums_for(motion, wanted)[0], 0.5, True)
    again.load_state_dict(motion.state_dict())
    for m in (motion, again):
        m.step(sums_for(m, wanted)[0], 0.5, True)
    np.testing.assert_allclose(again.shift, motion.shift, atol=1e-9)
    np.testing.assert_allclose(again.nodes, motion.nodes, atol=1e-6)
    assert np.abs(motion.nodes).max() > 0
