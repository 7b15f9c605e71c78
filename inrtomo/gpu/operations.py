"""Which implementation of the operations a device has."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from inrtomo.fields.decoders import Decoder
from inrtomo.fields.encodings import HashGrid


def has_triton(device: str) -> bool:
    """Whether Triton runs on a device: on a GPU, or in its interpreter on the CPU with ``TRITON_INTERPRET=1``."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device != "cpu" or os.environ.get("TRITON_INTERPRET") == "1"


def of(device: str) -> ModuleType:
    """The module `compiled` (Triton) or `plain` (torch): same functions."""
    return importlib.import_module(f"inrtomo.gpu.{'compiled' if has_triton(device) else 'plain'}")


def hash_field(grid: HashGrid, decoder: Decoder, scale: float, device: str, backend: str | None = None) -> Any:
    """A hash grid with its decoder on a device: ``"triton"``, ``"plain"`` or ``"tinycudann"`` (None: the best here)."""
    backend = backend or ("triton" if has_triton(device) else "plain")
    module, name = {
        "triton": ("hash_field", "HashField"),
        "plain": ("plain_field", "PlainField"),
        "tinycudann": ("tinycudann_field", "TinyCudaField"),  # with parameters of its own
    }[backend]
    made: Any = getattr(importlib.import_module(f"inrtomo.gpu.{module}"), name)(grid, decoder, scale, device)
    return made
