"""Slopes of a density's priors in torch, as of `inrtomo.priors`.

Those of Fourier priors are for densities of one shape: their constants stay on the device, and nothing waits for the
host, so that steps can be recorded as a CUDA graph. Plans of transforms are made when a step first runs, unrecorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.priors import rings_of, soft_profile, wedge_weights

Array = NDArray[np.floating[Any]]
Tensor = torch.Tensor


class WedgeSlope:
    """Gradient of `inrtomo.priors.wedge_penalty`; arguments as there, ``shape`` that of the densities."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_px: float,
        tilt_deg: Array,
        thickness_px: float,
        rounding: float,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weights = wedge_weights(shape, tilt_deg, thickness_px / spacing_px)
        self._weights = torch.tensor(weights, dtype=dtype, device=device)
        self._edge, self._rounding = SoftEdge(shape, (0, 1, 2), device, dtype), rounding

    def __call__(self, density: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(self._edge(density), norm="ortho")
        amplitude = (spectrum.real**2 + spectrum.imag**2 + self._rounding**2).sqrt()
        spectrum *= self._weights / amplitude
        return self._edge(torch.fft.irfftn(spectrum, density.shape, norm="ortho"))


class IsotropicSlope:
    """Gradient of `inrtomo.priors.isotropic_prior`. Sums over rings add with atomics on a GPU."""

    def __init__(self, shape: tuple[int, int, int], device: str, dtype: torch.dtype = torch.float32) -> None:
        nz, nx, ny = shape
        ring, share, twice, weight = rings_of((nx, ny))
        self._share, self._weight, self._twice = (
            torch.tensor(values.ravel(), dtype=dtype, device=device) for values in (share, weight, twice)
        )
        self._ring, self._count = torch.tensor(ring.ravel(), device=device), int(ring.max()) + 1
        self._edge = SoftEdge(shape, (1, 2), device, dtype)

    def __call__(self, density: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(self._edge(density), norm="ortho").flatten(1)
        amplitude = spectrum.abs()
        above = amplitude > self._over_rings(amplitude * self._share)
        pull = self._weight * above
        pull = pull - self._share * self._over_rings(pull)
        spectrum = spectrum * (pull / self._twice / torch.where(amplitude > 0, amplitude, 1))
        nz, nx, ny = density.shape
        return self._edge(torch.fft.irfft2(spectrum.view(nz, nx, -1), (nx, ny), norm="ortho"))

    def _over_rings(self, values: Tensor) -> Tensor:
        """Sum over the ring of each component, in every slice."""
        sums = torch.zeros((len(values), self._count), dtype=values.dtype, device=values.device)
        return sums.index_add_(1, self._ring, values)[:, self._ring]


def boundary_slope(values_a: Tensor, values_b: Tensor, rounding: float) -> Tensor:
    """Gradient of `inrtomo.priors.boundary_consistency` by the one values; that by the others is its negative."""
    difference = values_a - values_b
    return difference / (difference**2 + rounding**2).sqrt()


class SoftEdge:
    """A density less its mean, falling to 0 at the faces; its own transpose. See `inrtomo.priors.soft_profile`."""

    def __init__(self, shape: Sequence[int], axes: Sequence[int], device: str, dtype: torch.dtype) -> None:
        self._axes, self._window = tuple(axes), torch.ones((1,) * len(shape), dtype=dtype, device=device)
        for axis in axes:
            profile = torch.tensor(soft_profile(shape[axis]), dtype=dtype, device=device)
            self._window = self._window * profile.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        self._total = self._window.sum(dim=self._axes, keepdim=True)

    def __call__(self, density: Tensor) -> Tensor:
        seen = density * self._window
        return seen - self._window * (seen.sum(dim=self._axes, keepdim=True) / self._total)
