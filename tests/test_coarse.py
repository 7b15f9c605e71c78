"""Coarse alignment: shifts by correlation, and the axis from nothing."""

from __future__ import annotations

import numpy as np
import pytest
from alignment_phantom import blob_series, rigid_error  # type: ignore[import-not-found]

from inrtomo.align.coarse import coarse_alignment, find_axis, working_images
from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.simulate import SimulationSettings, simulate

PLAIN = PrepareSettings(restore=False)


@pytest.mark.parametrize("axis", [0.0, 85.0, -150.0])
def test_shifts_are_found(axis: float) -> None:
    images, truth = blob_series(axis_deg=axis, shift_px=12, noise_sd=1.0)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN)
    found = coarse_alignment(prepared, truth.tilt_deg, axis)
    assert rigid_error(found, truth) < 1.2
    np.testing.assert_allclose(found.rotation_deg, axis, atol=1e-9)


@pytest.mark.parametrize("seed", [4, 5, 11])
def test_a_far_shift_at_high_tilt_is_found(seed: int) -> None:
    """Stretched by 1 / cos(60 deg), a shift of a quarter of the image is one of half of it."""
    series = simulate(SimulationSettings(
        size=(96, 96), thickness_px=24, tilt_step_deg=6, snr_db=10, wide=True, warp_max_px=0, shift_px=12, seed=seed,
    ))  # fmt: skip
    found = coarse_alignment(prepare(series.images, series.tilt_deg, settings=PLAIN), series.tilt_deg, 0.0)
    error = found.shift_px - series.alignment.shift_px
    assert np.abs(error - np.median(error, axis=0)).max() < 6


def test_same_answer_twice() -> None:
    images, truth = blob_series(size=(96, 80), shift_px=4)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN)
    a, b = (coarse_alignment(prepared, truth.tilt_deg, 0.0).shift_px for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_excluded_tilt_gets_a_harmless_line() -> None:
    images, truth = blob_series(shift_px=3)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN, excluded={7: "by hand"})
    found = coarse_alignment(prepared, truth.tilt_deg, 0.0)
    assert found.excluded == {7: "by hand"}
    assert any(np.array_equal(found.shift_px[7], found.shift_px[i]) for i in (6, 8))


@pytest.mark.parametrize("axis", [0.0, 50.0, -80.0])
def test_axis_is_found_up_to_its_direction(axis: float) -> None:
    images, truth = blob_series(axis_deg=axis, shift_px=4, noise_sd=0.3, n_blobs=250)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN)
    found = find_axis(working_images(prepared)[0], truth.tilt_deg)
    assert -90 < found <= 90
    assert abs((found - axis + 90) % 180 - 90) < 8
