"""Density fields by name, and from the files they were saved in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.fields import decoders
from inrtomo.fields.density import Box, DensityField
from inrtomo.fields.encodings import FourierFeatures, HashGrid
from inrtomo.fields.factors import FactorGrid
from inrtomo.fields.grid import GridField
from inrtomo.fields.tensor import TensorField
from inrtomo.io.npz import read_npz

MOST = 2**16
"""Voxels of the finest level along a side of a field, and anything that is counted in its configuration."""


class _Sized(Protocol):
    @property
    def n_parameters(self) -> int: ...


Part = TypeVar("Part", bound=_Sized)


def make_field(
    kind: str,
    box: Box,
    finest_px: float,
    levels: int = 8,
    features: int | None = None,
    seed: int = 0,
    *,
    width: int | None = None,
    hidden: int | None = None,
    growth: float = 2.0,
    log2_table: int = 22,
    decoder: str = "mlp",
    scale: float = 1.0,
    initial: float = 0.1,
    backend: str = "cpu",
    plane: int = 22,
    tree: Sequence[Sequence[int]] | None = None,
    most: float = math.inf,
) -> DensityField:
    """A density field by name.

    Args:
        kind: ``"hash"`` (hash grid + decoder), ``"voxel"`` (pyramid of voxel grids, summed), ``"mlp"`` (Fourier
            features + ReLU network), ``"siren"`` (sinusoidal network) or ``"tensor"`` (quadtree of vector-matrix
            factors + one layer).
        box: ``(x0, x1, y0, y1, z0, z1)``, raw px from the specimen's centre. A finest grid whose vertices are a
            lattice's points has that lattice's first and last points as its box.
        finest_px: spacing of the finest level, raw px: one voxel of the finest scale of the fit.
        levels, features: numbers of levels and of features in each (hash 2, voxel 1, mlp 64 frequencies; tensor 16
            products of each kind in a node, and from ``levels`` on, ``level_cap`` means the tree).
        seed: of the initial parameters.
        width, hidden: of the decoder (hash 16 and 1, mlp and siren 128 and 3).
        growth: ratio of spacings of neighbouring levels.
        log2_table: levels with more vertices are hashed.
        decoder: ``"mlp"`` or ``"linear"``, for the hash grid.
        scale: factor of the softplus: typical density of the specimen.
        initial: density everywhere at the start.
        backend: of grid and tensor fields, ``"cpu"`` or ``"reference"``.
        plane, tree: of a tensor field: vertices of a node along x and y, and ``(level, i, j)`` of its nodes
            (None: a uniform tree with vertices four times ``finest_px`` apart, to be refined by `tensor.adapted`).
        most: parameters it may have (ValueError for more, before they are made).
    """
    config: dict[str, Any] = {
        "kind": kind, "box": [float(v) for v in box], "finest_px": float(finest_px), "levels": levels,
        "features": features, "seed": seed, "width": width, "hidden": hidden, "growth": growth,
        "log2_table": log2_table, "decoder": decoder, "scale": float(scale), "initial": float(initial),
        "backend": backend,
    }  # fmt: skip

    def limited(part: Part) -> Part:
        if part.n_parameters > most:
            raise ValueError(f"it would have {part.n_parameters} parameters, not {most:g}")
        return part

    if kind == "mlp":
        from inrtomo.fields.network import FourierField  # brings torch along, which the others do without

        fourier = FourierFeatures(box, finest_px, levels, features or 64, seed)
        return FourierField(
            config, fourier, limited(decoders.mlp(fourier.n_features, width or 128, hidden or 3, start="random"))
        )
    if kind == "hash":
        grid = limited(HashGrid(box, finest_px, levels, features or 2, growth, log2_table))
        makers = {
            "mlp": lambda: decoders.mlp(
                grid.n_features, width or 16, 1 if hidden is None else hidden, share=grid.features
            ),
            "linear": lambda: decoders.linear(grid.n_features, grid.features),
        }
        if decoder not in makers:
            raise ValueError(f"unknown decoder {decoder!r}; use one of {', '.join(makers)}")
        return GridField(config, grid, limited(makers[decoder]()))
    if kind == "voxel":
        grid = limited(HashGrid(box, finest_px, levels, features or 1, growth, log2_table=62))
        return GridField(config, grid, decoders.total(grid.n_features))
    if kind == "tensor":
        factors = FactorGrid.over(config["box"], finest_px, plane, features or 16)
        if tree is not None:
            leaves = tuple((int(level), int(i), int(j)) for level, i, j in tree)
            factors = factors.with_tree(replace(factors.tree, leaves=leaves))
        return TensorField(config | {"plane": plane}, limited(factors))
    if kind == "siren":
        from inrtomo.fields.network import SirenField

        return SirenField(config, limited(decoders.mlp(3, width or 128, hidden or 3)))
    raise ValueError(f"unknown field {kind!r}; use 'hash', 'voxel', 'mlp', 'siren' or 'tensor'")


def load_field(path: Path) -> DensityField:
    """A field from the file that `DensityField.save` wrote.

    Raises:
        InputError: another file, or one whose configuration does not go with its parameters.
    """
    try:
        return field_of(read_npz(path))
    except (KeyError, ValueError, TypeError, IndexError, ArithmeticError, MemoryError, OSError) as error:
        raise InputError(f"{path}: not a density field of this program ({error}); make it again") from error


def field_of(state: Mapping[str, NDArray[Any]]) -> DensityField:
    """The field that `DensityField.state_dict` gave the state of.

    Raises:
        ValueError, and what Python raises of itself: another state, or one whose parts do not go together.
    """
    config = json.loads(str(state["config"]))
    box, parameters = np.array(config["box"], dtype=np.float64), state["parameters"]
    sides = (box[1::2] - box[::2]) / config["finest_px"] + 1
    counts = [value for key, value in config.items() if isinstance(value, int) and key != "seed"]
    if not all(1 <= n <= MOST for n in sides) or not all(0 <= n <= MOST for n in counts):
        raise ValueError("its size is none")
    if not np.isfinite(parameters).all():
        raise ValueError("its parameters are no numbers")
    field = make_field(**{**config, "box": tuple(box)}, most=parameters.size)
    if field.parameters().shape != parameters.shape:
        raise ValueError(f"{parameters.size} parameters instead of {field.parameters().size}")
    field.load_state_dict(dict(state))
    return field
