"""Weights on disk: a safetensors file and, beside it, a JSON card that says what they are and vouches for them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from inrtomo.errors import InputError
from inrtomo.io.files import atomic_path, write_text
from inrtomo.localized.bank import BANK_VERSION
from inrtomo.localized.network import Architecture, LocalizedMlp
from inrtomo.localized.scaling import CONDITIONS

FORMAT = "inrtomo localized MLP"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
SHIPPED = "localized" + SUFFIX
BUFFERS = ("feature_sd", "condition_mean", "condition_sd")  # tensors that are no parameters
MOST = 1e9  # of the ends of a range: no logarithm, no number of px is beyond


@dataclass(frozen=True)
class Card:
    """What is known of weights.

    Attributes:
        architecture: of the network.
        data: what they were trained on.
        training: seed, steps, pairs seen, time, command: how far it went.
        metrics: on pairs held out from training.
        range: lowest and highest of each condition and of the thickness (px) that training saw.
        versions: of the programs.
    """

    architecture: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    range: dict[str, list[float]]
    versions: dict[str, str]


CARD_FIELDS = tuple(f.name for f in fields(Card))


def shipped_weights() -> Path:
    """The weights that come with the package."""
    return Path(str(files("inrtomo") / "weights" / SHIPPED))


def card_of(path: Path) -> Path:
    """Where the card of a weights file lies."""
    return path.with_suffix(".json")


def save_weights(model: LocalizedMlp, card: Card, path: Path, overwrite: bool = False) -> None:
    """Write both files; the card last, since weights without one are refused."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    data = safetensors.torch.save(tensors, {"format": FORMAT, "version": str(FORMAT_VERSION)})
    if overwrite:
        card_of(path).unlink(missing_ok=True)
    with atomic_path(path, overwrite) as temporary:
        temporary.write_bytes(data)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "parameters": sum(p.numel() for p in model.parameters()),
        "shapes": {name: list(value.shape) for name, value in tensors.items()},
        **{name: getattr(card, name) for name in CARD_FIELDS},
    }
    write_text(card_of(path), json.dumps(record, indent=1, allow_nan=False), overwrite)


def load_weights(path: Path) -> tuple[LocalizedMlp, Card]:
    """Read weights and their card.

    Raises:
        InputError: anything that shows that they are not what the card says, or not for this version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights; give a {SUFFIX} file that inr-train wrote")
    record = _read_card(card_of(path), path)
    data = path.read_bytes()
    if len(data) != record["bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise InputError(f"{path}: is not the file that {card_of(path).name} describes (checksum); copy both again")
    try:
        tensors = safetensors.torch.load(data)
        architecture = Architecture(**record["architecture"])
        _check_tensors(tensors, architecture, record)
        model = LocalizedMlp(architecture)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: holds no network of the kind its card names ({reason}); train it again") from error
    model.eval()
    return model, Card(**{name: record[name] for name in CARD_FIELDS})


def _check_tensors(tensors: dict[str, Tensor], architecture: Architecture, record: dict[str, Any]) -> None:
    """Before a network of that size is made.

    Raises:
        KeyError, ValueError: why they are not those of such a network.
    """
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    if shapes != record["shapes"]:
        raise ValueError("its tensors have other shapes than the card says")
    if sum(value.numel() for name, value in tensors.items() if name not in BUFFERS) != record["parameters"]:
        raise ValueError("it has another number of parameters than the card says")
    depth = 1 + sum(name.startswith("hidden.") and name.endswith(".weight") for name in tensors)
    sizes = [*shapes["first.weight"][:1], depth, *shapes["filters"][:1]]
    if sizes != [architecture.width, architecture.depth, architecture.filters]:
        raise ValueError("its width, depth or number of filters is another")
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise ValueError(f"{name} is of {value.dtype}, not of torch.float32")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity")
    for name in ("feature_sd", "condition_sd"):  # the network divides by them
        if not (tensors[name] > 0).all():
            raise ValueError(f"{name} is not above 0 everywhere")


def _read_card(path: Path, weights: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{weights}: its card {path.name} is not beside it, so it cannot be verified; copy that too")
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); copy it again, or train the weights again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: is not the card of weights of inr-train; give another file")
    architecture = record.get("architecture")
    bank = architecture.get("bank", BANK_VERSION) if isinstance(architecture, dict) else BANK_VERSION
    if record.get("format_version") != FORMAT_VERSION or bank != BANK_VERSION:
        raise InputError(f"{path}: weights of another version of inrtomo; use that version, or train them again")
    kinds = {"sha256": str, "bytes": int, "parameters": int, "shapes": dict, **dict.fromkeys(CARD_FIELDS, dict)}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path}: the card says no {key}; copy it again")
    of = {f.name: type(f.default) for f in fields(Architecture)}
    if {name: type(value) for name, value in record["architecture"].items()} != of:
        raise InputError(f"{path}: its architecture is not {', '.join(of)}; copy it again")
    for name in (*CONDITIONS, "thickness"):
        if not _is_span(record["range"].get(name)):
            raise InputError(f"{path}: its range of {name} is not two numbers, the lowest first; copy it again")
    return record


def _is_span(value: object) -> bool:
    """Whether it is a lowest and a highest number."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) in (int, float) for end in value):
        return False
    low, high = value
    return abs(low) < MOST and abs(high) < MOST and low <= high


def _not_json(constant: str) -> float:
    """What Python's reader makes of NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{constant} is none of its numbers")
