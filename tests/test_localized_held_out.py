"""What scores weights on held-out pairs: the molecules asked for, one specimen a pair, the card's metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.io.mrc import write_volume
from inrtomo.localized import pairs
from inrtomo.localized.blocks import Blocks
from inrtomo.localized.weights import load_weights, shipped_weights
from integration.benchmarks.localized import held_out


def test_unseen_molecules_are_those_that_training_leaves_out(tmp_path: Path) -> None:
    for name in (*pairs.HELD_OUT, "1abc"):
        write_volume(tmp_path / f"{name}.mrc", np.ones((6, 6, 6), dtype=np.float32), 10.0)
    there = held_out.unseen_molecules(tmp_path, tmp_path / "unseen")
    assert len(pairs.density_files(there)) == len(pairs.HELD_OUT)
    assert {path.resolve().stem for path in pairs.density_files(there)} == set(pairs.HELD_OUT)
    with pytest.raises(InputError, match="holds none of 4cr2"):
        held_out.unseen_molecules(there, tmp_path / "again")


def test_every_pair_is_of_a_specimen_of_its_own_and_shipped_weights_are_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "VIEW_PX", 48)
    monkeypatch.setattr(pairs, "THICKNESS_PX", (18, 24))
    monkeypatch.setattr(pairs, "DENSE_STEP_DEG", 6.0)
    monkeypatch.setattr(pairs, "SNR_DB", (10.0, 10.0))
    model, _ = load_weights(shipped_weights())
    found = list(held_out.held_out_samples(2, None, Blocks.of("haar"), tmp_path))
    again = list(held_out.held_out_samples(1, None, Blocks.of("haar"), tmp_path))
    np.testing.assert_array_equal(again[0].features, found[0].features)
    assert (again[0].target != found[1].target).any()
    scores = held_out.scores(model, found)
    assert scores["pairs"] == 2 and sum(scores["pairs_by_noise"].values()) == 2
    assert set(scores["loss_by_noise"]) == set(scores["pairs_by_noise"])
    assert 0 < scores["loss"] < 0.9
