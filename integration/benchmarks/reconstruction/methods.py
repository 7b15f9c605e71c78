"""Reconstruction methods by name, for series in memory; all are given the true alignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.fields import make_field
from inrtomo.priors import BOUNDARY_WEIGHT, ISOTROPIC_WEIGHT, WEDGE_WEIGHT
from inrtomo.reconstruct.fbp import fbp_volume
from inrtomo.reconstruct.field import FieldFit, FieldReconstruction, FieldSettings, Priors, Recording
from inrtomo.reconstruct.sart_tv import SartTvSettings, sart_tv_volume
from inrtomo.reconstruct.sirt import SirtSettings, sirt_volume

F32 = NDArray[np.float32]

ONE_NODE = 2**20
"""Vertices of a node's plane that are enough for any volume: the quadtree is then its undivided roots."""


@dataclass(frozen=True)
class Imaged:
    """A tilt series in memory: protein positive, empty rays zero, every pixel valid.

    Attributes:
        images: ``(n, ny, nx)``; alignment: the true one; thickness_px: of the volume to be made.
    """

    images: F32
    alignment: Alignment
    thickness_px: int

    @property
    def weight(self) -> F32:
        return np.ones_like(self.images)


@dataclass(frozen=True)
class Fitted:
    """A field and how it is fitted.

    Attributes:
        field: one of `inrtomo.reconstruct.field.FIELDS`.
        priors: weights.
        plane, features: of a tensor field; None for what it has by itself.
    """

    field: str
    priors: Priors = Priors()
    plane: int | None = None
    features: int | None = None


class BenchmarkFit(FieldFit):
    """A `FieldFit` whose tensor field has the sizes of a `Fitted`."""

    def __init__(self, series: Imaged, fitted: Fitted, seed: int) -> None:
        self.fitted = fitted
        # iterative methods are told that empty rays are zero; a field, that a constant is all there is behind it
        settings = FieldSettings(fitted.field, priors=fitted.priors, background_order=0, seed=seed)
        super().__init__(series.images, series.weight, series.alignment, series.thickness_px, settings, 0, Recording())

    def _new_density(self) -> None:
        super()._new_density()
        sizes = {"plane": self.fitted.plane, "features": self.fitted.features}
        given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
        if given:
            self._use(make_field(**(self.field.config | {"tree": None} | given)))


def fitted_volume(series: Imaged, fitted: Fitted, seed: int) -> F32:
    """The density of a field, density per px of path."""
    fit = BenchmarkFit(series, fitted, seed)
    fit.optimise()
    return FieldReconstruction([fit]).volume


def fbp(series: Imaged) -> F32:
    """Weighted back-projection, no filter beyond the exact weighting."""
    return fbp_volume(series.images, series.alignment, series.thickness_px)


def sirt(series: Imaged) -> F32:
    """SIRT told that densities are positive and empty rays zero."""
    settings = SirtSettings(nonnegative=True, free_level=False)
    return sirt_volume(series.images, series.weight, series.alignment, series.thickness_px, settings)


def sart_tv(series: Imaged, variation: float = SartTvSettings.variation) -> F32:
    """SART with total variation, told the same."""
    settings = SartTvSettings(variation=variation, nonnegative=True, free_level=False)
    return sart_tv_volume(series.images, series.weight, series.alignment, series.thickness_px, settings)


USUAL = Priors()
OF_TENSORS = replace(USUAL, isotropic=ISOTROPIC_WEIGHT, boundary=BOUNDARY_WEIGHT)
FIELDS: dict[str, Fitted] = {
    "hash": Fitted("hash"),
    "hash+wedge": Fitted("hash", replace(USUAL, wedge=WEDGE_WEIGHT)),
    "mlp": Fitted("mlp"),
    "mlp+wedge": Fitted("mlp", replace(USUAL, wedge=WEDGE_WEIGHT)),
    "siren": Fitted("siren"),
    "siren+wedge": Fitted("siren", replace(USUAL, wedge=WEDGE_WEIGHT)),
    "tensor": Fitted("tensor", OF_TENSORS),
}
DIRECT: dict[str, Callable[[Imaged], F32]] = {"FBP": fbp, "SIRT": sirt, "SART+TV": sart_tv}


def reconstruct(name: str, series: Imaged, seed: int) -> F32:
    """Volume ``[z, y, x]`` by the method of a name in `DIRECT` or `FIELDS`."""
    return DIRECT[name](series) if name in DIRECT else fitted_volume(series, FIELDS[name], seed)
