"""One scale of a joint fit or of a field reconstruction on a device: the steps of `Stage`, on tensors that stay there.

Images, weights, motion, field and moments are copied to the device when a scale begins and back when somebody asks.
A step is recorded once as a CUDA graph and replayed; nothing within it waits for the host, and only what `prepare`
hands in differs. Losses are read a step late, every `STEPS_BETWEEN_READS` steps or, where they decide on the next (the
last scale of a field reconstruction), at every one; the field is read when it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inrtomo.align.joint import HELD_BLOCK_PX, JointFit, Scale, Stage, motion_block
from inrtomo.gpu import operations
from inrtomo.gpu.geometry import TiltGeometry
from inrtomo.gpu.judging import Judge, judge_of
from inrtomo.gpu.motion import DeviceMotion, inverse
from inrtomo.gpu.on_its_way import OnItsWay
from inrtomo.gpu.room import Room
from inrtomo.gpu.share import Share
from inrtomo.projection import Lattice

Tensor = torch.Tensor
F32 = NDArray[np.float32]
Array = NDArray[np.float64]

STEPS_BETWEEN_READS = 8


class Replayed:
    """Runs a function of the device's tensors: recorded as a CUDA graph when it is run for the second time in a row.

    The first time compiles the kernels and works out what the host has to know. What was recorded under another key
    goes before that: a graph keeps the memory of its step, which nothing else may use. On a CPU it is simply called.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._key: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, key: Any, function: Callable[[], None]) -> None:
        if self.device == "cpu":
            function()
        elif key != self._key:
            if self._graph is not None:
                torch.cuda.synchronize(self.device)  # it may still be at work
            self._key, self._graph = key, None
            function()
        else:
            if self._graph is None:
                graph = torch.cuda.CUDAGraph()
                # NCCL's own thread, and any other of the process, may ask the device something meanwhile
                with torch.cuda.device(self.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    function()
                self._graph = graph
            self._graph.replay()


class DeviceField:
    """A field's parameters with their gradient and their Adam moments on a device."""

    def __init__(self, fit: JointFit, active: float, device: str) -> None:
        self.fit, self.source, self.device = fit, fit.field, device
        self.form = fit.field.on_device(device, active)
        adam = fit.adam
        self.parameters = torch.tensor(self.source.parameters(), device=device)
        self.grad = torch.zeros_like(self.parameters)
        state = adam.state_dict()
        self.first, self.second = (torch.tensor(state[name], device=device) for name in ("first", "second"))
        self.names = self.source.active_groups(active)
        every = list(adam.groups)
        self.at = [every.index(name) for name in self.names]
        self.counts = torch.tensor(state["count"][self.at], dtype=torch.float64, device=device)
        self.rates = torch.tensor([adam.rates[name] for name in self.names], dtype=torch.float64, device=device)

    def lattice(self, plan: Any) -> Tensor:
        """Density on a planned lattice."""
        return self.form.lattice(self.parameters, plan)

    def backward(self, plan: Any, grad_rho: Tensor) -> None:
        """Add to the gradient."""
        self.form.add_gradient(self.parameters, plan, grad_rho, self.grad)

    def plan(self, lattice: Lattice, caps: NDArray[np.int64]) -> Any:
        """What `lattice` needs to know of one."""
        return self.form.plan(lattice, caps)

    def step(self, rate: Tensor) -> None:
        """One Adam step; see `inrtomo.fields.Adam`."""
        adam = self.fit.adam
        self.counts += 1
        size = self.rates * rate / (1 - adam.beta1**self.counts)
        steps = torch.stack([size, (1 - adam.beta2**self.counts).rsqrt()], dim=1).float()
        update = operations.of(self.device).adam
        for name, row in zip(self.names, steps, strict=True):
            part = adam.groups[name]
            update(
                self.parameters[part], self.grad[part], self.first[part], self.second[part], row,
                adam.beta1, adam.beta2, adam.epsilon,
            )  # fmt: skip

    def pull(self, moments: bool = True) -> None:
        """Write parameters and moments back."""
        self.source.parameters()[:] = self.parameters.cpu().numpy()
        if not moments:
            return
        state = self.fit.adam.state_dict()
        state["first"], state["second"] = self.first.cpu().numpy(), self.second.cpu().numpy()
        state["count"][self.at] = self.counts.cpu().numpy().astype(np.int64)
        self.fit.adam.load_state_dict(state)


@dataclass(frozen=True)
class Explained:
    """A batch of images as its projections explain them.

    Attributes:
        u, v, slope_u, slope_v: where they are read, and their derivatives there.
        weight, held: validity of fitted and of held-out pixels that are seen.
        scale: of the projections; predicted: what they make of the pixels; rest: the background beside it.
    """

    u: Tensor
    v: Tensor
    slope_u: Tensor
    slope_v: Tensor
    weight: Tensor
    held: Tensor
    scale: Tensor
    predicted: Tensor
    rest: Tensor


class OnDevice(Stage):
    """What the scales of alignment and reconstruction share; mixed into `Stage` or a class made of it."""

    device: str
    judge: Judge

    def begin(self) -> None:
        """Copy everything to the device."""
        fit, data = self.fit, self.data
        self.device = fit.settings.device
        self.ops = operations.of(self.device)
        fit.field.use_device(self.device)
        self.replayed, self.share = Replayed(self.device), Share.of(len(fit.tilts))
        self.judge = judge_of(fit.settings.loss)
        self.field = DeviceField(fit, self.active, self.device)

        def tensor(values: Any) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=self.device)

        self.images, self.fitted, self.held = tensor(data.images), tensor(data.fit), tensor(data.held)
        self.basis, self.gain = tensor(self.background), tensor(fit.gain)
        self.motion = DeviceMotion(fit.motion, data.x, data.y, motion_block(data.bin), self.device)
        self.rate_now = torch.ones((), dtype=torch.float64, device=self.device)
        self.totals = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._unread: list[tuple[int, OnItsWay]] = []

    def mine(self) -> list[slice]:
        """Batches of the tilts of this process."""
        return self.share.within(self.batches())

    def step(self, step: int) -> None:
        """As `Stage.step`; losses appear when they are read, a step late, so that the device never waits for it."""
        s, scale = self.fit.settings, self.scale
        with_motion = s.fit_motion and step >= scale.motion_from
        with_warp = with_motion and s.warp != "none" and scale.warp_from is not None and step >= scale.warp_from
        with_gain = with_motion or self.frees_gain()
        self.motion.has_warp = self.motion.has_warp or with_warp
        self.prepare(step)
        # an unlocked warp is first seen in the coordinates of the step after
        key = with_motion, with_warp, with_gain, self.motion.has_warp

        def work() -> None:
            self.field.grad.zero_()
            self.totals.zero_()
            sums = self.gradients(with_motion, with_gain)
            self.share.add_up(self.field.grad, self.totals)
            self.share.gather(self.gain)
            self.settle_gain(with_motion)
            self.field.step(self.rate_now)
            if sums is not None:
                self.share.gather(sums)
                self.motion.step(sums, s.motion_rate * self.rate_now, with_warp)

        self.replayed(key, work)
        self._unread.append((step, OnItsWay(self.totals)))
        if step == scale.steps - 1:
            self.read()
        elif step % STEPS_BETWEEN_READS == 0 or self.is_watched:
            self._take_losses(but=min(step, 1))

    is_watched = False
    """Whether the losses of every step are wanted soon."""

    def prepare(self, step: int) -> None:
        """Hand in what the host knows of a step; the recorded step finds it in tensors that stay where they are."""
        self.rate_now.fill_(self.rate(step))

    def frees_gain(self) -> bool:
        """Whether gains change without motion."""
        return False

    def read(self) -> None:
        """Wait for the device and take over everything."""
        self._take_losses()
        self.field.pull()
        self.motion.pull()
        self.fit.gain[:] = self.gain.cpu().numpy()

    def fetch_field(self) -> None:
        self.field.pull(moments=False)

    def _take_losses(self, but: int = 0) -> None:
        """Note the losses of all steps but so many of the last."""
        while len(self._unread) > but:
            step, totals = self._unread.pop(0)
            loss, weight, held, held_weight = totals.numbers()
            self.fit.losses.append((self.scale.bin, step, loss / max(weight, 1), held / max(held_weight, 1)))

    def gradients(self, with_motion: bool, with_gain: bool) -> Tensor | None:
        """Add the gradient of data term and priors to the field's; block sums ``(n_tilts, ...)`` for the motion."""
        raise NotImplementedError

    def settle_gain(self, with_motion: bool) -> None:
        """Keep the gains' mean."""
        raise NotImplementedError

    def where(self, part: slice) -> tuple[Tensor, Tensor]:
        """Indices (u, v) at which a batch's pixels read its projections."""
        return self.motion.coordinates(
            part, self.lattice.spacing, self.n_u, self.lattice.shape[2], self.motion.has_warp
        )  # fmt: skip

    def data_gradient(self, ideal: Tensor, part: slice, with_gain: bool, sums: Tensor | None) -> Tensor:
        """Gradient of the loss by a batch's ideal projections; `Stage.data_term` on the device."""
        found, image = self._explained(ideal, part), self.images[part]
        weight, held, scale, predicted, rest = found.weight, found.held, found.scale, found.predicted, found.rest
        if with_gain:
            signal, total = weight * predicted, weight.sum((1, 2)).clamp_min(1)
            mean = signal.sum((1, 2)) / total
            norm = (signal * predicted).sum((1, 2)) - mean**2 * total
            correction = ((signal - mean[:, None, None] * weight) * (image - rest)).sum((1, 2)) / norm.clamp_min(1e-6)
            self.gain[part] *= correction.clamp(0.8, 1.25)
        residual = predicted + rest - image
        loss, slope = self.judge(residual, part)
        self.totals += torch.stack([
            (weight * loss).sum(dtype=torch.float64), weight.sum(dtype=torch.float64),
            (held * self.judge(self.judged_on_device(residual, part), part)[0]).sum(dtype=torch.float64),
            held.sum(dtype=torch.float64),
        ])  # fmt: skip
        weighted = weight * slope
        if sums is not None:
            per_px = scale * (weight > 0) / self.lattice.spacing
            sums[part] = self.motion.block_sums(weighted, found.slope_u * per_px, found.slope_v * per_px)
        slopes = self.imaged_adjoint_on_device(weighted * scale, part)
        by_ideal: Tensor = self.ops.spread_at(slopes, found.u, found.v, tuple(ideal.shape))
        return by_ideal

    def _explained(self, ideal: Tensor, part: slice) -> Explained:
        """What a batch's ideal projections say of its pixels."""
        u, v = self.where(part)
        value, slope_u, slope_v = self.ops.read_at(ideal, u, v)
        seen = value.isfinite()
        value = self.imaged_on_device(torch.where(seen, value, 0), part)
        weight, held = self.fitted[part] * seen, self.held[part] * seen
        scale = (self.amplitude * self.gain[part])[:, None, None]
        predicted = scale * value
        rest = self._smooth(self.images[part] - predicted, weight)
        return Explained(u, v, slope_u, slope_v, weight, held, scale, predicted, rest)

    def imaged_on_device(self, values: Tensor, part: slice) -> Tensor:
        """`Stage.imaged` of tensors."""
        return values

    def imaged_adjoint_on_device(self, slopes: Tensor, part: slice) -> Tensor:
        """Transpose of `imaged_on_device`."""
        return slopes

    def judged_on_device(self, residual: Tensor, part: slice) -> Tensor:
        """What the held-out loss is of."""
        return residual

    def _smooth(self, difference: Tensor, weight: Tensor) -> Tensor:
        """The free polynomial of every image that best explains a difference; see `Stage._background`."""
        n, rows, cols = difference.shape
        weights, basis = weight.reshape(n, -1), self.basis
        right = (weights * difference.reshape(n, -1)) @ basis
        normal = ((weights[:, None, :] * basis.T) @ basis).double()
        diagonal = normal.diagonal(dim1=1, dim2=2)
        diagonal += 1e-6 * max(1.0, float(rows * cols))
        solved = (inverse(normal) @ right.double()[..., None])[..., 0]
        return (solved.float() @ basis.T).reshape(n, rows, cols)


class DeviceStage(OnDevice):
    """One scale of a `JointFit`."""

    def __init__(self, fit: JointFit, scale: Scale) -> None:
        super().__init__(fit, scale)
        self.begin()
        self.planned = self.field.plan(self.lattice, self.caps)
        self.geometries = [
            TiltGeometry(self.lattice, fit.tilts[part], self.n_u, self.device) for part in self.mine()
        ]  # fmt: skip

    def batches(self) -> list[slice]:
        """Tilts in batches with which all that is on the device stays within the memory bound.

        Raises:
            InputError: not even one tilt at a time does.
        """
        n = len(self.fit.tilts)
        room = Room.of(self.fit, self.data.bin, self.field.form, self.planned)
        batch = room.tilts_within(self.fit.settings.memory_bytes)
        return [slice(first, min(first + batch, n)) for first in range(0, n, batch)]

    def held_out_map(self, rho: F32) -> Array:
        """As `Stage.held_out_map`, whatever part of the tilts is this process's."""
        density, out = torch.tensor(rho, device=self.device), np.zeros((*self.fit.held_blocks.shape, 2))
        along_y, along_x = (
            torch.tensor(self._in_blocks(len(at), count), device=self.device)
            for at, count in zip((self.data.y, self.data.x), self.fit.held_blocks.shape[1:], strict=True)
        )
        for part in self.batches():
            ideal = self.ops.project(density, TiltGeometry(self.lattice, self.fit.tilts[part], self.n_u, self.device))
            found = self._explained(ideal, part)
            residual = (found.predicted + found.rest - self.images[part]).double()
            for k, values in enumerate((found.held * residual**2 / 2, found.held.double())):
                out[part, :, :, k] = (along_y @ values @ along_x.T).cpu().numpy()
        return out

    def _in_blocks(self, n: int, count: int) -> Array:
        """Which pixels lie in which held-out block along an axis, ``(blocks, pixels)``: 1 or 0."""
        block = np.arange(n) * self.data.bin // HELD_BLOCK_PX
        return (block == np.arange(count)[:, None]).astype(np.float64)

    def gradients(self, with_motion: bool, with_gain: bool) -> Tensor | None:
        s, sums = self.fit.settings, None
        if with_motion:
            shape = len(self.fit.tilts), len(self.motion.points), 5
            sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        rho = self.field.lattice(self.planned)
        grad = torch.zeros_like(rho)
        for part, geometry in zip(self.mine(), self.geometries, strict=True):
            ideal = self.ops.project(rho, geometry)
            by_ideal = self.data_gradient(ideal, part, with_gain, sums)
            self.ops.add_back_projection(grad, by_ideal, geometry)
        if self.share.rank == 0:
            grad += s.sparsity * self.noise
            self.ops.add_variation(grad, rho, s.variation * self.noise, 0.1 * self.fit.density_unit)
        self.field.backward(self.planned, grad)
        return sums

    def settle_gain(self, with_motion: bool) -> None:
        if with_motion:
            self.gain /= self.gain.log().mean().exp()
