"""What ``inr-train --pairs`` learns from: a list's series as inference sees them, within bounded memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.localized import samples
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.inference import MAPS_SHARE
from inrtomo.localized.pairs import Pair
from inrtomo.localized.samples import Samples, pair_samples
from inrtomo.localized.tilts import FilteredTilts


def noise_pair(x_tilt_deg: float) -> Pair:
    """Of 128 rows."""
    random, n = np.random.default_rng(1), 5
    images = random.standard_normal((n, 128, 40)).astype(np.float32)
    alignment = Alignment.identity(np.linspace(-50, 50, n), (40, 128))
    alignment = replace(alignment, x_tilt_deg=np.full(n, x_tilt_deg), shift_px=random.normal(size=(n, 2)))
    return Pair(images, alignment, random.standard_normal((12, 128, 40)).astype(np.float32), 10.0, {})


def taken(pair: Pair) -> Samples:
    return pair_samples(pair, Blocks.of("haar"), np.random.default_rng(2), 700)


@pytest.mark.parametrize("x_tilt_deg", [0.0, 8.0])
def test_samples_are_the_same_within_any_memory(x_tilt_deg: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    maps = FilteredTilts.maps

    def counted(*given: Any) -> list[Any]:
        found = maps(*given)
        made.append(sum(m.values.nbytes for m in found))
        return found

    pair = noise_pair(x_tilt_deg)
    monkeypatch.setattr(FilteredTilts, "maps", counted)
    whole, all_at_once = taken(pair), max(made)
    made.clear()
    monkeypatch.setattr(samples, "MEMORY_BYTES", all_at_once / MAPS_SHARE / 1.8)
    banded = taken(pair)
    assert len(made) > 2 and max(made) < all_at_once / 1.8
    np.testing.assert_array_equal(banded.target, whole.target)
    np.testing.assert_array_equal(banded.condition, whole.condition)
    assert banded.variance == whole.variance
    # half floats of values that vectorised code may round otherwise in another place
    np.testing.assert_allclose(banded.features.astype(float), whole.features.astype(float), rtol=2e-3, atol=1e-4)
