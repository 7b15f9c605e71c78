"""Rays through gold: `prepare` gives their pixels no weight, so that beads pull neither density nor motion."""

from __future__ import annotations

import numpy as np
import pytest

from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.losses import Loss

TILTS = np.arange(-50.0, 51.0, 10.0)
SIZE, RADIUS = 128, 5.0


@pytest.fixture(scope="module")
def series():
    """Noisy blobs with beads of known places ``(n, 4, 2)`` (x, y px), bright, as density."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    images = rng.normal(size=(len(TILTS), SIZE, SIZE)).astype(np.float32)
    beads = rng.uniform(15, SIZE - 15, (len(TILTS), 4, 2))
    for image, places in zip(images, beads, strict=True):
        for cx, cy in rng.uniform(0, SIZE, (40, 2)):
            image += 1.5 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 4.0**2))
        for cx, cy in places:
            image += 25 * np.sqrt(np.maximum(1 - ((x - cx) ** 2 + (y - cy) ** 2) / RADIUS**2, 0))
    return images, beads


@pytest.mark.parametrize("polarity", [1, -1])
def test_rays_through_gold_weigh_nothing(series, polarity):
    images, beads = series
    prepared = prepare(polarity * images, TILTS, settings=PrepareSettings(polarity=polarity, restore=False))
    y, x = np.mgrid[:SIZE, :SIZE]
    distance = np.min(np.hypot(x - beads[:, :, 0, None, None], y - beads[:, :, 1, None, None]), axis=1)
    np.testing.assert_array_equal(prepared.weight[distance < RADIUS], 0)
    np.testing.assert_array_equal(prepared.weight[distance > 2.5 * RADIUS], 1)  # protein keeps its weight
    loss = Loss("l2")
    slope = loss(-prepared.images, prepared.weight, prepared.noise_sd)[1]
    assert np.all(slope[distance < RADIUS] == 0) and np.any(slope[distance > 2.5 * RADIUS])


def test_gold_weighs_like_matter_where_it_is_asked_to(series):
    images, _ = series
    kept = prepare(images, TILTS, settings=PrepareSettings(polarity=1, restore=False, mask_gold=False))
    np.testing.assert_array_equal(kept.weight, 1)
    masked = prepare(images, TILTS, settings=PrepareSettings(polarity=1, restore=False))
    np.testing.assert_array_equal(masked.density_weight, 1)
    assert masked.gold.any() and np.all(masked.weight[masked.gold] == 0)
