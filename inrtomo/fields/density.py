"""The interface of density fields: encoding + decoder + softplus, whatever they are made of.

A field holds its parameters as one flat float32 array, its gradient as another of the same layout, and `groups`
naming the parts that an optimiser may treat apart. The density is ``scale * softplus(.)``: never negative; the
solvent level belongs to whoever projects it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inrtomo.io.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Box = tuple[float, float, float, float, float, float]

DECODER_RATE = 0.02


class LatticeSpec(Protocol):
    """A regular lattice ``[z, x, y]``: spacing in raw px, shape, and position (z, x, y) of its first element."""

    @property
    def spacing(self) -> float: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def origin(self) -> tuple[float, float, float]: ...


class FieldOnDevice(Protocol):
    """A field as a function of its flat parameters ``(P,)``, a tensor on a device: what the steps of a fit there use.

    But for `plan` nothing here waits for the device or sends it anything: steps are recorded as a CUDA graph.
    """

    def plan(self, spec: LatticeSpec, caps: NDArray[np.integer[Any]]) -> Any:
        """What the others need to know of a lattice; ``caps`` as ``level_cap`` of `DensityField.lattice`."""
        ...

    def lattice(self, parameters: Tensor, plan: Any) -> Tensor:
        """Density ``(nz, nx, ny)``."""
        ...

    def add_gradient(self, parameters: Tensor, plan: Any, grad_rho: Tensor, grad: Tensor) -> None:
        """Add the gradient of ``sum(grad_rho * rho)`` by the parameters to ``grad``."""
        ...

    def backward_bytes(self, plan: Any) -> int:
        """The most that either holds for a while, beside its arguments and the density."""
        ...


class DensityField:
    """What all fields share: flat parameters and gradient, named groups, saving and loading."""

    def __init__(self, config: dict[str, Any], parameters: F32, groups: dict[str, slice]) -> None:
        self.config = config
        self._parameters = parameters
        self.grad: F32 = np.zeros_like(parameters)
        self.groups = groups

    def parameters(self) -> F32:
        """The flat parameters ``(P,)`` themselves, to be changed in place."""
        return self._parameters

    def zero_grad(self) -> None:
        self.grad[:] = 0.0

    def active_groups(self, active_levels: float | None = None) -> list[str]:
        """Names of the parameter groups that ``active_levels`` levels make use of."""
        raise NotImplementedError

    def rates(self, rate: float, active_levels: float | None = None) -> dict[str, float]:
        """Step sizes for `Adam`, given that of the finest active level.

        Good are: hash 0.03, voxel 0.1, mlp 0.001, siren 0.0003, tensor 0.03.
        """
        raise NotImplementedError

    def lattice(
        self,
        spec: LatticeSpec,
        active_levels: float | None = None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        level_cap: NDArray[np.integer[Any]] | None = None,
    ) -> F32:
        """Density ``(nz, nx, ny)`` on a lattice.

        Args:
            spec: the lattice.
            active_levels: how many levels are on, coarsest first; a fraction fades the next one in. None: all.
            offset: moves the lattice by (z, x, y) raw px, for sub-voxel jitter.
            level_cap: ``(nz, nx)``, the most levels to use in each row along y; 0 leaves the row at zero. For
                material outside the region of interest (few levels) and space that no ray crosses (none).
        """
        raise NotImplementedError

    def backward_lattice(self, grad_rho: F32) -> None:
        """Add to `grad` the gradient of ``sum(grad_rho * rho)`` for the last `lattice` call; once per call."""
        raise NotImplementedError

    def points(self, xyz: NDArray[np.floating[Any]], active_levels: float | None = None) -> F32:
        """Density ``(N,)`` at points ``(N, 3)`` (x, y, z), raw px; outside the box that of its surface."""
        raise NotImplementedError

    def backward_points(self, grad: F32) -> F32:
        """Add to `grad` for the last `points` call; returns the gradient ``(N, 3)`` of the points (x, y, z)."""
        raise NotImplementedError

    def use_device(self, device: str) -> None:
        """Evaluate on a device from now on; parameters stay where they are and what is saved does not change."""
        raise NotImplementedError

    def on_device(self, device: str, active_levels: float | None = None) -> FieldOnDevice:
        """The same density of parameters on a device."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: ``parameters`` and ``config`` (JSON text)."""
        return {"parameters": self._parameters.copy(), "config": np.array(json.dumps(self.config))}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Take the parameters of a field of the same configuration."""
        if json.loads(str(state["config"])) != self.config:
            raise ValueError("the state belongs to a field of another configuration")
        self._parameters[:] = state["parameters"]

    def save(self, path: Path) -> None:
        """Write the state as an ``.npz`` file without pickled objects; an older one is replaced."""
        with atomic_path(path, overwrite=True) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, allow_pickle=False, **self.state_dict())


def lattice_axes(spec: LatticeSpec, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[F64, F64, F64]:
    """Positions along z, x and y of a lattice's elements, raw px."""
    z, x, y = (
        (o + d + spec.spacing * np.arange(n)).astype(np.float64)
        for o, d, n in zip(spec.origin, offset, spec.shape, strict=True)
    )
    return z, x, y


def inverse_softplus(value: float) -> float:
    """The argument at which the softplus has a value."""
    return float(value + np.log(-np.expm1(-max(value, 1e-12))))
