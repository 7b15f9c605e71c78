"""Backends of fields. Each module has a class ``Kernels`` with the same methods, checked by the same tests.

``cpu``: numba, float32, what fits use. ``reference``: plain torch, float64, what tests compare with. Those of
vector-matrix factors have ``factor_`` before their names. What fits on a GPU are made of (`inrtomo.gpu`): ``plain``
(torch, float32) and, of hash grids alone, ``triton``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

BACKENDS = ("cpu", "reference", "triton", "plain")


def load(name: str, prefix: str = "") -> Any:
    """The ``Kernels`` class of a backend."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; use one of {', '.join(BACKENDS)}")
    return import_module(f"inrtomo.fields.kernels.{prefix}{name}").Kernels
