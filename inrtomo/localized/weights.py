"""Weights on disk: a safetensors file and, beside it, a JSON card that says what they are and vouches for them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from inrtomo.errors import InputError
from inrtomo.io.files import atomic_path, write_text
from inrtomo.localized.bank import BANK_VERSION
from inrtomo.localized.network import Architecture, LocalizedMlp

FORMAT = "inrtomo localized MLP"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
SHIPPED = "localized" + SUFFIX


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
        **{f.name: getattr(card, f.name) for f in fields(Card)},
    }
    write_text(card_of(path), json.dumps(record, indent=1), overwrite)


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
        architecture = Architecture(**record["architecture"])
        card = Card(**{f.name: record[f.name] for f in fields(Card)})
        model = LocalizedMlp(architecture)
        model.load_state_dict(safetensors.torch.load(data))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path}: holds no network of the kind its card names ({reason}); train it again") from error
    model.eval()
    return model, card


def _read_card(path: Path, weights: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{weights}: its card {path.name} is not beside it, so it cannot be verified; copy that too")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not JSON ({error}); copy it again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"{path}: is not the card of weights of inr-train; give another file")
    if record.get("format_version") != FORMAT_VERSION or record.get("architecture", {}).get("bank") != BANK_VERSION:
        raise InputError(f"{path}: weights of another version of inrtomo; use that version, or train them again")
    for key, kind in (("sha256", str), ("bytes", int), ("architecture", dict), ("range", dict)):
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path}: the card says no {key}; copy it again")
    return record
