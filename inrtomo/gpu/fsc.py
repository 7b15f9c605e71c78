"""Fourier shell correlations in torch: `inrtomo.metrics.fsc` and `local_resolution` on a device.

Transforms are single precision; which shell a component lies in, and the sums over shells, are double, as on the CPU.
Shells are worked out slab by slab, so that they take no memory to speak of beside the transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.metrics.fsc import FourierWork
from inrtomo.metrics.local_resolution import WindowWork

Array = NDArray[Any]
Tensor = torch.Tensor
Part = Callable[[slice], Tensor]
"""Whether each component of some planes of a transform belongs to it, shaped to broadcast."""

COMPONENTS_AT_ONCE = 2**22


class DeviceFourierWork(FourierWork):
    """As `FourierWork`; ``device`` as torch calls it."""

    def __init__(self, shape: Sequence[int], device: str) -> None:
        super().__init__(shape)
        self.device = device
        self.axes = [torch.tensor(f, device=device) for f in self.shells.axes]
        self.times = torch.tensor(self.shells.times, device=device)

    def transform(self, values: Array, window: Array | None = None) -> Tensor:
        given = self._sent(values)
        centred = given - given.mean(dtype=torch.float64).float()
        return torch.fft.rfftn(centred if window is None else centred * self._sent(window))

    def masked_transform(self, volume: Any, mask: Array) -> Tensor:
        values, weight = self._sent(volume), self._sent(mask)
        total = weight.sum(dtype=torch.float64)
        if not bool(total > 0):
            raise ValueError("the mask is 0 everywhere")
        mean = (values * weight).sum(dtype=torch.float64) / total
        return torch.fft.rfftn((values - mean.float()) * weight)

    def random_phases(self, transform: Any, first: int, noise: Array) -> Tensor:
        mixed = torch.fft.rfftn(self._sent(noise))
        start = self.shells.start(first)
        for some in self._slabs():
            other, own = mixed[some], transform[some]
            phase = other / other.abs().clamp_min(1e-12)
            mixed[some] = torch.where(self._radius(some) >= start, own.abs() * phase, own)
        return torch.fft.irfftn(mixed, s=self.shape)

    def cone(self, axis: int, half_angle_deg: float) -> Part:
        cosine = float(np.cos(np.deg2rad(half_angle_deg)))

        def part(some: slice) -> Tensor:
            along = self.axes[axis][some] if axis == 0 else self.axes[axis]
            return along.abs() >= self._radius(some) * cosine

        return part

    def region(self, components: Array) -> Part:
        given = torch.tensor(components, device=self.device)
        return lambda some: given[some]

    def sums(self, x: Any, y: Any, parts: Sequence[Any] = (None,)) -> list[tuple[list[Array], Array]]:
        number = len(self.shells.frequency)
        # for each part: Re(X Y*), |X|^2, |Y|^2, components
        totals = torch.zeros((len(parts), 4, number + 1), dtype=torch.float64, device=self.device)
        for some in self._slabs():
            index = (self._radius(some) * 2 * number).round().long() - 1
            index = torch.where((index < 0) | (index >= number), number, index)
            one, two, times = x[some], y[some], self.times.expand(index.shape)
            values = [(one * two.conj()).real, one.abs() ** 2, two.abs() ** 2]
            weighted = [*((v.double() * times).flatten() for v in values), times.flatten()]
            for k, part in enumerate(parts):
                inside = index if part is None else torch.where(part(some), index, number)
                for row, weights in enumerate(weighted):
                    totals[k, row] += torch.bincount(inside.flatten(), weights, number + 1)
        found = totals[:, :, :number].cpu().numpy()
        return [([*sums[:3]], sums[3] / 2) for sums in found]

    def _radius(self, some: slice) -> Tensor:
        first, *rest = self.axes
        squares: Tensor = sum((f**2 for f in rest), first[some] ** 2)
        return squares.sqrt()

    def _slabs(self) -> Iterator[slice]:
        """Planes of a transform along its first axis, some at a time."""
        plane = int(np.prod(self.shape[1:-1])) * len(self.times)
        planes = max(1, COMPONENTS_AT_ONCE // plane)
        return (slice(k, k + planes) for k in range(0, self.shape[0], planes))

    def _sent(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


class DeviceWindowWork(WindowWork):
    """As `WindowWork`; ``device`` as torch calls it."""

    def __init__(self, a: Array, b: Array, window_px: int, device: str) -> None:
        super().__init__(a, b, window_px)
        self.device, self.window_px = device, window_px
        self._volumes = [torch.tensor(v, dtype=torch.float32, device=device) for v in (a, b)]
        self._taper = torch.tensor(self.mask, device=device)
        self._sum_shells = torch.tensor(self._summing.toarray().T, device=device)

    def sums(self, corners: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        x, y = (self._transforms(volume, corners) for volume in self._volumes)
        values = (x * y.conj()).real, x.abs() ** 2, y.abs() ** 2
        cross, power_x, power_y = torch.stack([v.double() @ self._sum_shells for v in values]).cpu().numpy()
        return cross, power_x, power_y

    def _transforms(self, volume: Tensor, corners: NDArray[np.int64]) -> Tensor:
        """Transforms ``(windows, components)`` of windows less their mean under the mask."""
        first, along = torch.tensor(corners, device=self.device), torch.arange(self.window_px, device=self.device)
        z, y, x = (first[:, axis, None] + along for axis in range(3))
        windows = volume[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]]
        mean = (windows * self._taper).sum(dim=(1, 2, 3), keepdim=True) / self._taper.sum()
        return torch.fft.rfftn((windows - mean) * self._taper, dim=(1, 2, 3)).flatten(1)
