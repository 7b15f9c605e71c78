"""One scale of a field reconstruction on a device: `reconstruct.field.FieldStage` on tensors that stay there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.joint import Scale
from inrtomo.fields.tensor import TensorField
from inrtomo.gpu.ctf import TransferOnDevice
from inrtomo.gpu.factors import TensorOnDevice
from inrtomo.gpu.fit import OnDevice
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.gpu.judging import CountJudge
from inrtomo.gpu.on_its_way import fill
from inrtomo.gpu.priors import IsotropicSlope, WedgeSlope, boundary_slope
from inrtomo.losses import COUNT_KINDS
from inrtomo.reconstruct.field import FieldFit
from inrtomo.reconstruct.field_stage import GAIN_FROM, LARGEST_GAIN, FieldStage, part_of

Tensor = torch.Tensor
F32 = NDArray[np.float32]
Slope = Callable[[Tensor], Tensor]

# measured with the counter of tests/test_gpu_memory.py
BLOCK_BYTES = {"mlp": 6.5e8, "siren": 6.5e8, "tensor": 3.5e8}  # of points and nodes that are evaluated together
BOUNDARY_BYTES = 7e7
STRIPS_BYTES, STRIPS_PER_PIXEL = 2e8, 12.0  # of a transfer function: filtered together; its phases, for each tilt


class DeviceFieldStage(OnDevice, FieldStage):
    """As `FieldStage`, slab by slab within the same bound on memory."""

    def __init__(self, fit: FieldFit, scale: Scale) -> None:
        FieldStage.__init__(self, fit, scale)
        self.begin()
        self.at_u, self.at_v = (torch.tensor(values, device=self.device) for values in (self._u, self._v))
        self.check_images = None if self.check is None else torch.tensor(self.check, device=self.device)
        own = fit.tilts[self.share.first : self.share.stop]
        self.geometry = TiltGeometry(self.lattice, own, self.n_u, self.device)
        n_rows, self.planned = self.lattice.shape[2], []
        for rows in self.slabs:
            # one row more on either side is what differences reach
            wide = range(max(rows.start - 1, 0), min(rows.stop + 1, n_rows)) if len(self.slabs) > 1 else rows
            plan = self.field.plan(part_of(self.lattice, rows), self.caps)
            around = plan if wide == rows else self.field.plan(part_of(self.lattice, wide), self.caps)
            self.planned.append((rows, wide, plan, around))
        self._begin_terms()

    def _begin_terms(self) -> None:
        """Hold on the device what transfer function, counts and priors need there."""
        fit, share = self.fit, self.share
        self.transfer_on_device = None
        if self.transfer is not None:
            views = {tilt: self.transfer.view(tilt) for tilt in range(share.first, share.stop)}
            self.transfer_on_device = TransferOnDevice(views, self.device)
        if fit.options.loss in COUNT_KINDS:
            counts = self.count_loss(slice(None))
            self.judge = CountJudge(counts.kind, self.images, counts.gain / counts.background, np.asarray(counts.read))
        self.pairs = None
        if share.rank == 0 and fit.options.priors.boundary and isinstance(fit.field, TensorField):
            pairs = self.boundary_pairs(fit.field)
            self.pairs = torch.tensor(pairs, device=self.device) if len(pairs) else None
        self.fourier = {len(wide): self._fourier_slopes(len(wide)) for _, wide, _, _ in self.planned}

    def _fourier_slopes(self, n_rows: int) -> list[tuple[float, Slope]]:
        """Weights and slopes of the Fourier priors in use, for a slab of so many rows."""
        fit, priors, found = self.fit, self.fit.options.priors, list[tuple[float, Slope]]()
        shape = self.lattice.shape[0], self.view.stop - self.view.start, n_rows
        if self.share.rank == 0 and priors.wedge:
            given = self.lattice.spacing, fit.tilts, float(fit.shape[0]), 0.1 * fit.density_unit
            found.append((priors.wedge * self.noise_of_voxel, WedgeSlope(shape, *given, self.device)))
        if self.share.rank == 0 and priors.isotropic:
            found.append((priors.isotropic * self.noise_of_voxel, IsotropicSlope(shape, self.device)))
        return found

    def prepare(self, step: int) -> None:
        super().prepare(step)
        if self.pairs is not None:
            assert isinstance(self.fit.field, TensorField)
            fill(self.pairs, torch.from_numpy(self.boundary_pairs(self.fit.field)))

    def more_bytes(self) -> float:
        fit = self.fit
        total = BLOCK_BYTES.get(fit.settings.field, 0.0) + (BOUNDARY_BYTES if fit.options.priors.boundary else 0.0)
        if self.transfer is not None:
            pixels = sum(float(np.prod(self.transfer.view(tilt).box)) for tilt in range(len(fit.tilts)))
            total += STRIPS_BYTES + STRIPS_PER_PIXEL * pixels
        return total

    @property
    def is_watched(self) -> bool:  # type: ignore[override]
        return self.pace is not None

    def frees_gain(self) -> bool:
        return self.fit.done_scales > 0 or self.fit.done_steps >= GAIN_FROM

    def where(self, part: slice) -> tuple[Tensor, Tensor]:
        return self.at_u[part], self.at_v[part]

    def imaged_on_device(self, values: Tensor, part: slice) -> Tensor:
        if self.transfer_on_device is None:
            return values
        return self.transfer_on_device.apply(values, range(part.start, part.stop))

    def imaged_adjoint_on_device(self, slopes: Tensor, part: slice) -> Tensor:
        if self.transfer_on_device is None:
            return slopes
        return self.transfer_on_device.adjoint(slopes, range(part.start, part.stop))

    def judged_on_device(self, residual: Tensor, part: slice) -> Tensor:
        return residual if self.check_images is None else residual + self.images[part] - self.check_images[part]

    def snapshot(self) -> Any:
        """A copy of the parameters."""
        return self.field.parameters.clone()

    def restore(self, parameters: Any) -> None:
        """Go back to a copy."""
        self.field.parameters.copy_(parameters)
        self.read()

    def laid_down(self, parameters: Any) -> F32:
        return np.asarray(parameters.cpu().numpy(), dtype=np.float32)

    def taken_up(self, parameters: Any) -> Any:
        return torch.as_tensor(parameters, device=self.device)

    def loss_of_nothing(self) -> float:
        self.totals.zero_()
        for part in self.mine():
            shape = part.stop - part.start, self.n_u, self.lattice.shape[2]
            self.data_gradient(torch.zeros(shape, device=self.device), part, False, None)
        self.share.add_up(self.totals)
        _, _, held, weight = self.totals.tolist()
        return float(held / max(weight, 1))

    def gradients(self, with_motion: bool, with_gain: bool) -> None:
        first = self.share.first
        ideal = torch.empty((self.geometry.n_tilts, self.n_u, self.lattice.shape[2]), device=self.device)
        rho = torch.empty(0)
        for rows, _, plan, _ in self.planned:
            rho = self.field.lattice(plan)
            ideal[:, :, rows.start : rows.stop] = self.ops.project(rho, self.geometry)
        for batch in self.mine():
            own = slice(batch.start - first, batch.stop - first)
            ideal[own] = self.data_gradient(ideal[own].contiguous(), batch, with_gain, None)
        for rows, wide, _, plan in self.planned:
            if wide != rows:
                rho = self.field.lattice(plan)
            grad = torch.zeros_like(rho)
            if self.share.rank == 0:
                self._add_priors(grad, rho)
            inside = slice(rows.start - wide.start, rows.stop - wide.start)
            by_ideal = ideal[:, :, rows.start : rows.stop].contiguous()
            if wide != rows:
                kept = grad[:, :, inside].contiguous()
                self.ops.add_back_projection(kept, by_ideal, self.geometry)
                grad.zero_()
                grad[:, :, inside] = kept
            else:
                self.ops.add_back_projection(grad, by_ideal, self.geometry)
            self.field.backward(plan, grad)
        if self.pairs is not None:
            self._add_boundary_slope(self.pairs)

    def _add_priors(self, grad: Tensor, rho: Tensor) -> None:
        """`FieldStage.add_priors` of tensors."""
        priors, view = self.fit.options.priors, self.view
        grad += priors.sparsity * self.noise_of_sum
        self.ops.add_variation(grad, rho, priors.variation * self.noise_of_voxel, 0.1 * self.fit.density_unit)
        for weight, slope in self.fourier[rho.shape[2]]:
            grad[:, view] += weight * slope(rho[:, view])

    def _add_boundary_slope(self, pairs: Tensor) -> None:
        """Add the gradient of differences across nodes' edges, as `FieldStage` does."""
        field, form = self.field, self.field.form
        assert isinstance(form, TensorOnDevice)
        one, other = form.points(field.parameters, pairs).chunk(2)
        slope = boundary_slope(one, other, 0.1 * self.fit.density_unit)
        slope = self.fit.options.priors.boundary * self.noise_of_voxel * slope
        form.add_gradient_at_points(field.parameters, pairs, torch.cat([slope, -slope]), field.grad)

    def settle_gain(self, with_motion: bool) -> None:
        self.gain /= self.gain.log().mean().exp()
        self.gain.clamp_(1 / LARGEST_GAIN, LARGEST_GAIN)
