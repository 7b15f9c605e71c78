"""Coarse alignment: shifts by correlation, and the axis from nothing."""

from __future__ import annotations

import numpy as np
import pytest
from alignment_phantom import blob_series, rigid_error  # type: ignore[import-not-found]

from inrtomo.align.coarse import coarse_alignment, find_axis, working_images
from inrtomo.align.prepare import PrepareSettings, prepare

PLAIN = PrepareSettings(restore=False)


@pytest.mark.parametrize("axis", [0.0, 85.0, -150.0])
def test_shifts_are_found(axis: float) -> None:
    images, truth = blob_series(axis_deg=axis, shift_px=12, noise_sd=1.0)
    prepared = prepare(images, truth.tilt_deg, settings=PLAIN)
    found = coarse_alignment(prepared, truth.tilt_deg, axis)
    assert rigid_error(found, truth) < 1.2
    np.testing.assert_allclose(found.rotation_deg, axis, atol=1e-9)


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
