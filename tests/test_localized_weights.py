"""Weights and their card: they come back as they were, what is damaged is refused in a sentence, ranges are told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from inrtomo.errors import InputError
from inrtomo.localized import pairs
from inrtomo.localized.bank import n_features
from inrtomo.localized.inference import outside_range
from inrtomo.localized.network import Architecture, LocalizedMlp, densities
from inrtomo.localized.scaling import CONDITIONS, Scaling
from inrtomo.localized.weights import Card, card_of, load_weights, save_weights, shipped_weights

SMALL = Architecture(width=12, depth=2, filters=2)
MOST_BYTES = 8 * 10**6  # of shipped weights
RANGE = {**{name: [-0.5, 0.5] for name in CONDITIONS}, "thickness": [18.0, 80.0]}
CARD = Card(SMALL.as_dict(), {"kind": "none"}, {"best_step": 3}, {}, RANGE, {})


def saved(folder: Path) -> Path:
    torch.manual_seed(1)
    path = folder / "w.safetensors"
    save_weights(LocalizedMlp(SMALL), CARD, path)
    return path


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model, card = load_weights(path)
    torch.manual_seed(1)
    x = np.random.default_rng(0).standard_normal((5, n_features(8))).astype(np.float32)
    c = np.zeros(len(CONDITIONS), dtype=np.float32)
    np.testing.assert_array_equal(densities(model, x, c), densities(LocalizedMlp(SMALL), x, c))
    assert card == CARD


def test_a_card_that_would_not_be_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_weights(LocalizedMlp(SMALL), replace(CARD, metrics={"held_out_loss": np.inf}), tmp_path / "w.safetensors")
    assert not card_of(tmp_path / "w.safetensors").exists()


def _changed(**values: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        card = json.loads(card_of(path).read_text())
        card_of(path).write_text(json.dumps(card | values))

    return spoil


def _ranging(**values: object) -> Callable[[Path], None]:
    return _changed(range=RANGE | {name.replace("_", " "): value for name, value in values.items()})


def _built(**values: object) -> Callable[[Path], None]:
    return _changed(architecture={**SMALL.as_dict(), **values})


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x55"), "checksum"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "checksum"),
        (lambda p: card_of(p).unlink(), "card"),
        (lambda p: card_of(p).write_text("{"), "JSON"),
        (lambda p: card_of(p).write_text("[" * 10**5), "JSON"),
        (lambda p: card_of(p).write_text("[1]"), "not the card"),
        (lambda p: p.unlink(), "no such weights"),
        (_changed(format_version=99), "version"),
        (_changed(format_version=[1]), "version"),
        (_changed(sha256=3), "sha256"),
        (_changed(bytes="many"), "bytes"),
        (_changed(parameters=None), "parameters"),
        (_changed(parameters=3), "parameters"),
        (_changed(shapes=[1]), "shapes"),
        (_changed(shapes={"filters": [6, 8, 150]}), "shapes"),
        *[
            (_changed(**{key: [1]}), key)
            for key in ("architecture", "data", "training", "metrics", "versions", "range")
        ],
        (_built(bank=99), "version"),
        (_built(bank="1"), "version"),
        (_built(width=13), "width"),
        (_built(width=10**12), "width"),
        (_built(width="12"), "architecture"),
        (_built(depth=10**12), "depth"),
        (_built(depth=None), "architecture"),
        (_built(filters=[2]), "architecture"),
        (_built(output="cosine"), "cosine"),
        (_built(output=["haar"]), "architecture"),
        (_built(colour=3), "architecture"),
        (_ranging(pixel_size=3), "range of pixel size"),
        (_ranging(pixel_size=[1.0]), "range of pixel size"),
        (_ranging(pixel_size=["a", "b"]), "range of pixel size"),
        (_ranging(tilt_range=[1.0, -1.0]), "range of tilt range"),
        (_ranging(thickness=[np.inf, 0.0]), "JSON"),
        (_ranging(thickness=[0.0, 10**400]), "range of thickness"),
        (_changed(range={"pixel size": [-0.5, 0.5]}), "range of snr"),
        (_changed(metrics={"held_out_loss": np.nan}), "JSON"),
    ],
)
def test_a_damaged_card_is_refused_in_a_sentence(tmp_path: Path, spoil: Callable[[Path], None], word: str) -> None:
    path = saved(tmp_path)
    spoil(path)
    with pytest.raises(InputError, match=word) as refused:
        load_weights(path)
    said = str(refused.value)
    assert said.startswith(str(tmp_path)) and "\n" not in said and ";" in said  # the file, and what to do


def test_a_card_with_any_value_of_another_kind_is_refused_or_of_no_matter(tmp_path: Path) -> None:
    """Every value of the card, replaced by ones of every kind: no other error than a refusal."""
    path = saved(tmp_path)
    record = json.loads(card_of(path).read_text())
    refused = 0
    for place in _places(record):
        for value in (None, True, -1, 0.5, 10**30, "", [], [1], {}, {"a": [1]}):
            card_of(path).write_text(json.dumps(_replaced(record, place, value)))
            try:
                load_weights(path)
            except InputError:
                refused += 1
    assert refused > 200


def _places(value: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, v in inner for place in [(*so_far, key), *_places(v, (*so_far, key))]]


def _replaced(value: Any, place: tuple[Any, ...], by: object) -> Any:
    if not place:
        return by
    copy = value.copy()
    copy[place[0]] = _replaced(value[place[0]], place[1:], by)
    return copy


def _with(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return spoil


def _first(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(value: torch.Tensor) -> torch.Tensor:
        value.view(-1)[0] = number
        return value

    return change


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_with("first.weight", _first(float("nan"))), "first.weight holds NaN"),
        (_with("gain.bias", _first(float("inf"))), "gain.bias holds NaN or inf"),
        (_with("feature_sd", _first(0.0)), "feature_sd is not above 0"),
        (_with("condition_sd", _first(-1.0)), "condition_sd is not above 0"),
        (_with("filters", torch.Tensor.double), "float64"),
        (_with("last.bias", torch.Tensor.long), "int64"),
        (_with("gate.weight", torch.Tensor.half), "float16"),
        (_with("last.bias", lambda value: value[:3]), "parameters"),
        (_with("first.weight", lambda value: value.T), "first.weight|width"),
        (lambda tensors: tensors.pop("last.bias"), "parameters"),
        (lambda tensors: tensors.pop("feature_sd"), "feature_sd"),
        (lambda tensors: tensors.update(feature_sd=torch.tensor(1.0)), "feature_sd"),
    ],
)
def test_tensors_that_make_no_network_are_refused_though_the_checksum_is_right(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None], word: str
) -> None:
    path = saved(tmp_path)
    tensors = safetensors.torch.load(path.read_bytes())
    spoil(tensors)
    data = safetensors.torch.save(tensors)
    path.write_bytes(data)
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    _changed(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), shapes=shapes)(path)
    with pytest.raises(InputError, match=word):
        load_weights(path)


def test_shipped_weights_are_small_and_what_their_card_says() -> None:
    path = shipped_weights()
    model, card = load_weights(path)
    assert path.stat().st_size + card_of(path).stat().st_size <= MOST_BYTES
    assert set(card.range) == {*CONDITIONS, "thickness"}
    assert card.metrics["held_out_loss"] < card.metrics["held_out_loss_at_start"]
    assert not set(pairs.HELD_OUT) & set(card.data["molecules"]) and card.data["never_used"] == list(pairs.HELD_OUT)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def _said(known: dict[str, list[float]], thickness: float = 40.0, **condition: float) -> list[str]:
    values = [condition.get(name.replace(" ", "_"), 0.0) for name in CONDITIONS]
    return outside_range(Scaling(np.ones(4), np.array(values, dtype=np.float32)), thickness, known)


@pytest.mark.parametrize(
    ("pixel_A", "told"),
    [(4.5, True), (4.8, True), (4.95, False), (5.0, False), (20.0, False), (20.3, False), (22.5, True)],
)
def test_a_pixel_size_outside_that_of_training_is_told(pixel_A: float, told: bool) -> None:
    said = _said({"pixel size": [float(np.log(0.5)), float(np.log(2.0))]}, pixel_size=float(np.log(pixel_A / 10)))
    assert said == ([f"{pixel_A:.3g} Å/voxel (trained on 5 Å/voxel to 20 Å/voxel)"] if told else [])


def test_a_thickness_outside_that_of_training_is_told() -> None:
    known = {"thickness": [100.0, 300.0]}
    assert [bool(_said(known, height)) for height in (97, 99, 300, 305, 320)] == [True, False, False, False, True]


def test_weights_of_a_single_pair_are_for_its_like() -> None:
    """20 dB, 120 degrees in steps of 3, 10 Å, and what such a series may differ by."""
    db = np.log(10) / 20
    known = {name: [0.0, 0.0] for name in CONDITIONS}
    known |= {"snr 2 px": [20 * db, 20 * db], "tilt range": [1.0, 1.0]}
    assert not _said(known, snr_2_px=22.5 * db, tilt_range=1.05, tilt_step=float(np.log(1.1)))
    said = _said(known, snr_2_px=26 * db, tilt_range=0.8, tilt_step=float(np.log(2.0)))
    assert said[0] == "26 dB over the noise at 2 px (trained on 20 dB over the noise at 2 px)"
    assert said[1] == "96° from the first tilt to the last (trained on 120° from the first tilt to the last)"
    assert said[2] == "6° between tilts (trained on 3° between tilts)"
