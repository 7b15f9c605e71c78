"""Registration of volumes against motions that are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from inrtomo.metrics.registration import rigid_between, rigidly_moved, translated, translation_between
from inrtomo.metrics.volume import cc, resampled

SHAPE = (32, 48, 40)


def blurred_noise(seed: int) -> np.ndarray:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.0)
    return values / values.std()


@pytest.mark.parametrize(
    ("angles", "shift"),
    [((2.0, -1.0, 3.0), (1.5, -2.3, 0.7)), ((0.0, 0.0, 8.0), (4.0, 0.0, 0.0)), ((0, 0, 0), (0, 0, 0))],
)
def test_a_known_motion_is_found(angles: tuple[float, ...], shift: tuple[float, ...]) -> None:
    moving = blurred_noise(0)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    fixed = 3 * resampled(moving, 1.0, SHAPE, rotation, np.array(shift)) + 5
    found = rigid_between(moving + 20, fixed + 0.3 * blurred_noise(1))
    turn = Rotation.from_matrix(found.rotation.T @ rotation).magnitude()
    assert np.rad2deg(turn) < 0.3
    np.testing.assert_allclose(found.translation_px, shift, atol=0.1)
    inside = (slice(8, -8),) * 3
    assert cc(rigidly_moved(moving + 20, found), fixed, inside) > 0.995
    assert cc(moving, fixed, inside) < 0.95 or not any(angles)


def test_a_translation_is_found_through_a_slab() -> None:
    """What leaves one face does not enter the other, and the slab is thin."""
    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values = gaussian_filter(rng.normal(size=(28, 56, 48)), 1.5)
        shift = rng.uniform(-3, 3, 3)
        moved = translated(values, -shift) + 0.2 * values.std() * rng.normal(size=values.shape)
        inside = (slice(4, -4),) * 3
        errors.append(translation_between(moved[inside], values[inside]) - shift)
    assert np.sqrt(np.mean(np.square(errors))) < 0.06


def test_unlike_volumes_do_not_wander_off() -> None:
    one, two = blurred_noise(0), -blurred_noise(0)
    found = rigid_between(one, two, max_px=2)
    np.testing.assert_array_equal(found.rotation, np.eye(3))
    np.testing.assert_array_equal(found.translation_px, -translation_between(one, two, max_px=2)[::-1])


def test_the_mean_fills_what_comes_from_outside() -> None:
    volume = blurred_noise(0) + 50
    motion = rigid_between(np.roll(volume, 10, axis=2), volume)
    moved = rigidly_moved(volume, motion)
    assert moved.min() > 40 and moved.mean() == pytest.approx(50, abs=1)
