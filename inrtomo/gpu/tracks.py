"""Following tracks in torch: `inrtomo.align.windows.TrackWork` on a device.

Views stay on the device in single precision; sums over them, the inverse covariances of the likelihood and the
bundle's conjugate gradients are in double, as on the CPU: a covariance is within a few per cent of singular. Only
what the stages put together from all tracks comes back, once per call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align import bundle
from inrtomo.align.windows import (
    SEEN_FRACTION,
    Band,
    Groups,
    Likelihood,
    Spectra,
    TrackWork,
    Window,
    phase_of_corner,
)
from inrtomo.gpu.bundle import solve
from inrtomo.gpu.pixels import DevicePixelWork
from inrtomo.gpu.sampling import read_spline

Array = NDArray[Any]
Bool = NDArray[np.bool_]
Tensor = torch.Tensor

BYTES_PER_SAMPLE = 160  # of a window that is being read: positions in double, indices, values, transforms


class DeviceTrackWork(DevicePixelWork, TrackWork):
    """As `TrackWork`; views are tensors.

    Args:
        device: as torch calls it.
        memory_bytes: bound for everything while windows are read.
    """

    def __init__(self, device: str, memory_bytes: float) -> None:
        super().__init__(device)
        self.memory_bytes = memory_bytes

    def read_views(
        self,
        coefficients: Any,
        inverse: Array,
        shift_px: Array,
        tilt_deg: Array,
        centre_u: Array,
        window: Window,
        band: Band,
    ) -> tuple[Any, Bool]:
        n_tracks, n_tilts = centre_u.shape[:2]
        ny, nx = coefficients.shape[-2:]
        size, steps = window.size, (np.arange(window.size) - (window.size - 1) / 2) * window.spacing
        cosine = self._double(np.cos(np.deg2rad(tilt_deg)))[:, None, None]
        offset_u, offset_v = self._double(steps) * cosine, self._double(steps)[:, None]
        (xx, xy), (yx, yy) = ([column[:, None, None] for column in self._double(inverse[:, row]).T] for row in range(2))
        tilt = torch.arange(n_tilts, device=self.device)[:, None, None]
        taper = self.sent(window.taper[:, None] * window.taper)
        phase = torch.tensor(phase_of_corner(window, band).conj(), device=self.device)
        row, column = (torch.tensor(v, device=self.device) for v in (band.row, band.column))
        views = torch.empty((n_tracks, n_tilts, len(band.kx)), dtype=torch.complex64, device=self.device)
        seen = torch.empty((n_tracks, n_tilts), device=self.device)
        left = self.memory_bytes - views.nbytes - coefficients.nbytes
        batch = max(1, int(left // (BYTES_PER_SAMPLE * n_tilts * size**2)))
        for first in range(0, n_tracks, batch):
            some = slice(first, first + batch)
            centre = self._double(centre_u[some] - shift_px)[..., None, None]
            u, v = centre[:, :, 0] + offset_u, centre[:, :, 1] + offset_v
            values, inside = read_spline(
                coefficients, tilt, xx * u + xy * v + (nx - 1) / 2, yx * u + yy * v + (ny - 1) / 2
            )
            weight = taper * inside
            total = weight.sum(dim=(2, 3), dtype=torch.float64)
            mean = (weight * values).sum(dim=(2, 3), dtype=torch.float64) / total.clamp_min(1e-6)
            tapered = (values - mean.float()[..., None, None]) * weight * cosine.float()
            seen[some] = (total / taper.sum(dtype=torch.float64)).float()
            views[some] = torch.fft.rfft2(tapered)[:, :, row, column] * phase
        return views, np.asarray(seen.cpu().numpy() > SEEN_FRACTION)

    def shared(self, views: Any, valid: Bool, pairs: Sequence[tuple[int, int]]) -> list[Array]:
        seen = self._double(valid)
        sums = [
            ((views[:, i].conj() * views[:, j]).real.double() * (seen[:, i] * seen[:, j])[:, None]).sum(dim=0)
            for i, j in pairs
        ]
        return list(torch.stack(sums).cpu().numpy())

    def power(self, views: Any, valid: Bool) -> list[Array]:
        seen = self._double(valid)
        sums = [(views[:, i].abs().double() ** 2 * seen[:, i, None]).sum(dim=0) for i in range(valid.shape[1])]
        return list(torch.stack(sums).cpu().numpy())

    def weighted_power(self, views: Any, weight: Array) -> Array:
        weights = self._double(weight)
        sums = [(views[:, i].abs().double() ** 2) @ weights[i] for i in range(views.shape[1])]
        return np.asarray(torch.stack(sums, dim=1).cpu().numpy())

    def likelihood(
        self,
        views: Any,
        valid: Bool,
        band: Band,
        tilt_deg: Array,
        kappa: Array,
        spectra: Spectra,
        window: Window,
        strength: Array | None = None,
        with_determinant: bool = False,
    ) -> Likelihood:
        n_tracks, n_tilts, _ = views.shape
        terms = Groups.of(band, tilt_deg, spectra, valid, strength)
        noise, amplitude = self._double(terms.noise), self._double(terms.amplitude)
        heard = torch.tensor(terms.heard, device=self.device)
        covariance = self._double(kappa[terms.first]) * amplitude[:, :, None] * amplitude[:, None, :]
        same = torch.tensor(terms.same, device=self.device)
        multiplicity = self._double(terms.multiplicity)
        k_image_x, k_image_y = self._double(terms.k_image_x), self._double(terms.k_image_y)
        kx_all, ky_all = self._double(terms.kx_all), self._double(terms.ky_all)[:, None, None]
        every_valid = torch.tensor(valid, device=self.device)

        def empty(*shape: int) -> Tensor:
            return torch.zeros((n_tracks, *shape), dtype=torch.float64, device=self.device)

        gradient, misfit, value = empty(n_tilts, 2), empty(n_tilts), empty()
        information = empty(2, n_tilts, n_tilts)
        for level, members in terms.groups:
            tracks = torch.tensor(members, device=self.device)
            pattern = every_valid[tracks[0]]
            seen = heard & pattern
            both = seen[:, :, None] & seen[:, None, :]
            full = torch.where(both, level * covariance, 0.0)
            full.diagonal(dim1=1, dim2=2).add_(torch.where(seen, noise, 1.0))
            inverse, _ = torch.linalg.inv_ex(full)
            inverse *= both
            product = inverse * full
            product.diagonal(dim1=1, dim2=2).sub_(seen.double())
            weighted_x, weighted_y = k_image_x * multiplicity[:, None], multiplicity * k_image_y**2
            information[tracks, 0] = 2 * (weighted_x[:, :, None] * k_image_x[:, None, :] * product).sum(dim=0)
            information[tracks, 1] = 2 * (weighted_y[:, None, None] * product).sum(dim=0)
            # terms first, real and imaginary parts side by side: (n_terms, n_tilts, 2 n_members)
            y = torch.where(seen[same][:, :, None], views[tracks].permute(2, 1, 0), 0).to(torch.complex128)
            alpha = inverse[same] @ torch.cat([y.real, y.imag], dim=2)
            real, imaginary = alpha.split(len(members), dim=2)
            slope = y.real * imaginary - y.imag * real
            gradient[tracks, :, 0] = -2 * (slope * kx_all[:, :, None]).sum(dim=0).T
            gradient[tracks, :, 1] = -2 * (slope * ky_all).sum(dim=0).T
            expected = inverse.diagonal(dim1=1, dim2=2)[same]
            count = (expected > 0).sum(dim=0).clamp_min(1)
            safe = torch.where(expected > 0, expected, torch.inf)[:, :, None]
            ratio = ((real**2 + imaginary**2) / safe).sum(dim=0).T / count
            misfit[tracks] = torch.where(pattern, ratio, torch.nan)
            value[tracks] = -(y.real * real + y.imag * imaginary).sum(dim=(0, 1))
            if with_determinant:
                value[tracks] -= multiplicity @ torch.linalg.slogdet(full)[1]
        scale = window.information
        return Likelihood(
            (gradient * scale).cpu().numpy(), (information * scale).cpu().numpy(), misfit.cpu().numpy(),
            (value * scale).cpu().numpy(),
        )  # fmt: skip

    def solve(
        self,
        gradient: Array,
        information: Array,
        u: Array,
        tilt_deg: Array,
        motion: bundle.Motion,
        model: bundle.MotionModel,
        height_sd: Array,
        largest_px: float,
    ) -> bundle.Motion:
        return solve(gradient, information, u, tilt_deg, motion, model, height_sd, largest_px, self.device)

    def _double(self, values: Array) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), device=self.device)
