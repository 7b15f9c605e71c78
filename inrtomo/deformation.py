"""Models of local motion: parameters in, displacement of every tilt out, and the way back for gradients.

Every model gives vectors at the nodes of one regular grid of aligned space, which is interpolated from there with
the basis of `LocalWarp`; what differs is where the node vectors come from:

* `ControlPoints`: they are the parameters themselves (ICE-TIDE 2024);
* `deformation_network.Network`: one small network ``2 -> 2`` per tilt is sampled at the nodes (2023 paper).

So a penalty on node vectors serves all models, a fit pays for the nodes and not for every pixel, and what is
exported is exactly what was fitted. Vectors are the inverse vectors ``w`` of `inrtomo.alignment`, raw px.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import LocalWarp, interpolation_matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Interpolation = Literal["bilinear", "bicubic"]


class Deformation:
    """Local motion of ``n_tilts`` images on nodes ``x`` (nx,) and ``y`` (ny,), aligned px from the centre."""

    def __init__(self, n_tilts: int, x: F64, y: F64, interpolation: Interpolation, parameters: F32) -> None:
        self.n_tilts = n_tilts
        self.x, self.y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self.interpolation: Interpolation = interpolation
        self._parameters = parameters
        self.grad: F32 = np.zeros_like(parameters)
        self._basis: tuple[F32, F32] | None = None

    def parameters(self) -> F32:
        """Flat parameters, tilt by tilt, to be changed in place."""
        return self._parameters

    def tilt_group(self, tilt: int) -> slice:
        """Where a tilt's parameters are."""
        size = self._parameters.size // self.n_tilts
        return slice(tilt * size, (tilt + 1) * size)

    def zero_grad(self) -> None:
        self.grad[:] = 0.0

    def vectors(self, tilts: NDArray[np.integer[Any]] | None = None) -> F32:
        """Node vectors ``(tilts, ny, nx, 2)`` (w_x, w_y), raw px; all tilts when none are named."""
        raise NotImplementedError

    def backward_vectors(self, grad: F32, tilts: NDArray[np.integer[Any]] | None = None) -> None:
        """Add to `grad` the gradient of ``sum(grad * vectors(tilts))``."""
        raise NotImplementedError

    def set_lattice(self, x: F64, y: F64) -> None:
        """Choose the lattice of aligned positions, raw px, that `displacement` is for; makes the basis once."""
        self._basis = (
            interpolation_matrix(self.x, x, self.interpolation).astype(np.float32),
            interpolation_matrix(self.y, y, self.interpolation).astype(np.float32),
        )

    def displacement(self, tilts: NDArray[np.integer[Any]] | None = None) -> F32:
        """Displacement ``(tilts, 2, len(y), len(x))`` on the lattice, raw px; components first."""
        along_x, along_y = self._chosen_basis()
        nodes = np.ascontiguousarray(np.moveaxis(self.vectors(tilts), -1, 1))
        return np.asarray(along_y @ nodes @ along_x.T, dtype=np.float32)

    def backward(self, grad: F32, tilts: NDArray[np.integer[Any]] | None = None) -> None:
        """Add to `grad` the gradient of ``sum(grad * displacement(tilts))``, ``grad`` of the same shape."""
        along_x, along_y = self._chosen_basis()
        nodes = along_y.T @ (grad @ along_x)
        self.backward_vectors(np.ascontiguousarray(np.moveaxis(nodes, 1, -1)), tilts)

    def to_warp(self) -> LocalWarp:
        """The same motion as part of an alignment."""
        return LocalWarp(self.x, self.y, self.vectors().astype(np.float64), self.interpolation)

    def _chosen_basis(self) -> tuple[F32, F32]:
        if self._basis is None:
            raise RuntimeError("call set_lattice first")
        return self._basis


class ControlPoints(Deformation):
    """Vectors at control points are the parameters, ``(n_tilts, ny, nx, 2)``; zero at the start."""

    def __init__(self, n_tilts: int, x: F64, y: F64, interpolation: Interpolation = "bicubic") -> None:
        parameters = np.zeros(n_tilts * len(y) * len(x) * 2, dtype=np.float32)
        super().__init__(n_tilts, x, y, interpolation, parameters)

    @classmethod
    def from_warp(cls, warp: LocalWarp) -> ControlPoints:
        """Start from a known warp."""
        interpolation: Interpolation = "bilinear" if warp.interpolation == "bilinear" else "bicubic"
        model = cls(len(warp.vectors), warp.x, warp.y, interpolation)
        model.parameters()[:] = warp.vectors.ravel()
        return model

    def vectors(self, tilts: NDArray[np.integer[Any]] | None = None) -> F32:
        every = self._parameters.reshape(self.n_tilts, len(self.y), len(self.x), 2)
        return every if tilts is None else every[tilts]

    def backward_vectors(self, grad: F32, tilts: NDArray[np.integer[Any]] | None = None) -> None:
        total = self.grad.reshape(self.n_tilts, len(self.y), len(self.x), 2)
        np.add.at(total, np.arange(self.n_tilts) if tilts is None else tilts, grad)


def make_deformation(kind: str, n_tilts: int, x: F64, y: F64, *, seed: int = 0) -> Deformation:
    """A model by name: ``"bicubic"`` or ``"bilinear"`` control points, or ``"network"``."""
    if kind == "bicubic":
        return ControlPoints(n_tilts, x, y, "bicubic")
    if kind == "bilinear":
        return ControlPoints(n_tilts, x, y, "bilinear")
    if kind == "network":
        from inrtomo.deformation_network import Network  # brings torch along, which nothing else here needs

        return Network(n_tilts, x, y, seed=seed)
    raise ValueError(f"unknown deformation {kind!r}; use 'bicubic', 'bilinear' or 'network'")
