"""Joint refinement: one non-negative density and the motion of every tilt, fitted to all raw pixels at once.

Each step evaluates the field on a lattice, projects it to all tilts, reads the projections at the deformed
coordinates of the raw pixels, and turns the residuals into a gradient of the density (an Adam step of the field's
parameters) and of the motion (a Gauss-Newton step). Coarse to fine: at each scale the images are Fourier-cropped,
the lattice follows, finer levels of the field are switched on, and the warp is unlocked last.

Why it works (each was measured): without ``density >= 0`` errors that vary smoothly with tilt never leave; without
the sparsity and total-variation priors the density fits the noise of each tilt at its present pose, and poses at
-5 dB stop 0.25 px earlier. Both priors are in units of the noise a voxel receives, so one weight serves all series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.motion import BlockSums, Motion, aligned_half_size
from inrtomo.align.prepare import robust_sd
from inrtomo.alignment import Alignment
from inrtomo.fields import Adam, DensityField, make_field
from inrtomo.geometry import centred_coordinates
from inrtomo.losses import Loss
from inrtomo.priors import total_variation
from inrtomo.projection import Lattice, back_project, project, read_at, spread_at
from inrtomo.resample import binned_stack

Array = NDArray[np.float64]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """One stage of the coarse-to-fine schedule.

    Attributes:
        bin: raw px per binned pixel and per lattice step.
        steps: optimisation steps.
        motion_from, warp_from: the step at which shift and rotation, and the warp, start to move (None: not here).
        fresh: begin with a new density; one fitted at the earlier, worse motion holds the motion where it was.
    """

    bin: int
    steps: int
    motion_from: int
    warp_from: int | None
    fresh: bool = False


DEFAULT_SCHEDULE = (
    Scale(bin=4, steps=80, motion_from=15, warp_from=None),
    Scale(bin=2, steps=60, motion_from=10, warp_from=20),
)

FINISH = Scale(bin=1, steps=16, motion_from=16, warp_from=None)
"""The density alone, once the motion is known: it gains what the coarser scales cannot hold (S1: CC 0.94 -> 0.95)."""
FINISH_POINTS = 6.4e7  # lattice points up to which that costs less than the fit before it, in time and in memory


@dataclass(frozen=True)
class JointSettings:
    """What is fitted and how; lengths in raw px.

    Attributes:
        field: ``"hash"``, ``"voxel"`` or ``"mlp"``.
        levels: of the field, each half the spacing of the one before; the finest has the last scale's spacing.
        outside: how many of the finest levels are left out where less than half of the tilts look.
        schedule: stages, coarse to fine.
        loss: ``"l2"``, ``"l1"`` or ``"huber"`` on residuals in units of the noise.
        warp: ``"bicubic"``, ``"bilinear"``, ``"network"`` (2023 paper) or ``"none"``.
        control_points: per axis of the view.
        sparsity, variation: weights of the L1 and total-variation priors of the density, in units of the noise
            that the gradient of one voxel receives from all tilts.
        penalty: ICE-TIDE's weights (rotation per degree, shift per px, warp per px), on the departure from the start.
        background_order: degree of the polynomial that is free in every image (0 to 2).
        held_out: fraction of pixels, in blocks, that are never fitted.
        fit_motion: False fits the density alone.
        memory_bytes: bound for the arrays of one batch of tilts; on a GPU, for all that is there.
        seed: of the field and of the held-out blocks.
        device: ``"cpu"``, or a GPU as torch calls it (`inrtomo.gpu.fit`).
        shared: other processes take part (`inrtomo.gpu.share.followers`).
    """

    field: str = "hash"
    levels: int = 6
    outside: int = 1
    schedule: tuple[Scale, ...] = DEFAULT_SCHEDULE
    loss: str = "l2"
    warp: str = "bicubic"
    control_points: int = 5
    sparsity: float = 0.64
    variation: float = 0.4
    penalty: tuple[float, float, float] = (0.0, 0.0, 0.0)
    background_order: int = 2
    motion_rate: float = 0.5
    held_out: float = 0.03
    fit_motion: bool = True
    memory_bytes: float = 2.0**30
    seed: int = 0
    device: str = "cpu"
    shared: bool = False

    def finished(self, alignment: Alignment, thickness_px: float) -> JointSettings:
        """The same with a last scale of one raw px, at which only the density changes, unless that would cost much."""
        last = self.schedule[-1].bin
        lattice = lattice_of_rays(alignment.tilt_deg, half_reach(alignment), thickness_px / 2, last)
        if lattice.n_points * (last / FINISH.bin) ** 3 > FINISH_POINTS:
            return self
        finer = round(np.log2(last / FINISH.bin))
        schedule = (*self.schedule, FINISH)
        return replace(self, schedule=schedule, levels=self.levels + finer, outside=self.outside + finer)


FIELD_RATES = {"hash": 0.03, "voxel": 0.1, "mlp": 1e-3, "siren": 3e-4, "tensor": 0.03}
HELD_BLOCK_PX = 16
LEAST_NOISE = 1e-20  # of an image without any
LATTICE_MARGIN_PX = 16.0
RATE_AT_END = 0.1  # both rates fall linearly to this fraction within a scale, which averages the noise of late steps


@dataclass
class JointResult:
    """What the fit found.

    Attributes:
        alignment: the refined motion.
        density: ``[z, x, y]`` on `lattice`.
        field: the fitted field (raw-px coordinates).
        losses: one row a step: bin, step, loss of the fitted pixels, loss of the held-out pixels.
        gain: amplitude of every tilt relative to the mean.
        warp_sd_px: empirical-Bayes sd of the control points.
    """

    alignment: Alignment
    density: F32
    lattice: Lattice
    field: DensityField
    losses: list[tuple[int, int, float, float]]
    gain: Array
    warp_sd_px: float


@dataclass
class ScaledData:
    """The images of one scale: ``(n, rows, cols)`` in units of the noise sd, and their weights.

    ``noise`` is the median over tilts of ``noise_of_tilt`` ``(n,)``, both in units of the images that were binned.
    """

    bin: int
    noise: float
    noise_of_tilt: Array
    images: F32
    fit: F32
    held: F32
    x: Array
    y: Array


def noise_sd(images: F32) -> Array:
    """Noise sd of each image from its diagonal second differences (robust; signal is smooth at this scale).

    Where most differences are zero, as of images with few counts, it is their root mean square.
    """
    d = (images[:, 1:, 1:] - images[:, :-1, 1:] - images[:, 1:, :-1] + images[:, :-1, :-1]) / 2
    robust = np.median(np.abs(d), axis=(1, 2)).astype(np.float64) / 0.6745
    whole = np.sqrt((d**2).mean(axis=(1, 2), dtype=np.float64))
    return robust_sd(robust, whole)


def blocks_to_hold_out(shape: tuple[int, ...], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which `HELD_BLOCK_PX` blocks of images of a shape ``(n, ny, nx)`` no fit sees, ``(n, n_by, n_bx)``."""
    blocks = (shape[0], *(-(-size // HELD_BLOCK_PX) for size in shape[1:]))
    return np.random.default_rng(seed).random(blocks) < fraction


def standardised(images: F32, factor: int) -> tuple[F32, Array]:
    """Images binned, with noise sd 1 and median 0, and the noise sd ``(n,)`` that they had."""
    binned = binned_stack(images, factor)
    noise = np.maximum(noise_sd(binned), LEAST_NOISE)
    binned /= noise[:, None, None].astype(np.float32)
    binned -= np.median(binned, axis=(1, 2), keepdims=True)
    return binned, noise


def scaled_data(
    images: F32, weight: F32, factor: int, held_blocks: NDArray[np.bool_], device: str = "cpu"
) -> ScaledData:
    """Images of one scale, made on a device with noise sd 1 and median 0, split into fitted and held-out pixels."""
    binned, noise = standardised(images, factor) if device == "cpu" else _standardised_on(device, images, factor)
    n, rows, cols = binned.shape
    w = weight[:, : rows * factor, : cols * factor].reshape(n, rows, factor, cols, factor).min(axis=(2, 4))
    x = (centred_coordinates(cols) * factor) + (cols * factor - images.shape[2]) / 2
    y = (centred_coordinates(rows) * factor) + (rows * factor - images.shape[1]) / 2
    at_y = (np.arange(rows) * factor) // HELD_BLOCK_PX
    at_x = (np.arange(cols) * factor) // HELD_BLOCK_PX
    held = held_blocks[:, at_y][:, :, at_x]
    return ScaledData(
        factor,
        float(np.median(noise)),
        noise,
        binned,
        np.where(held, 0, w).astype(np.float32),
        np.where(held, w, 0).astype(np.float32),
        x,
        y,
    )


def _standardised_on(device: str, images: F32, factor: int) -> tuple[F32, Array]:
    from inrtomo.gpu.resample import standardised

    return standardised(images, factor, device)


def motion_block(bin: int) -> int:
    """Pixels along each side of the blocks over which gradients of the motion are summed."""
    return max(2, HELD_BLOCK_PX // bin)


def half_reach(alignment: Alignment) -> tuple[float, float]:
    """Half-widths (u, v; raw px) of the aligned views of a fit, a margin around them included."""
    half_u, half_v = aligned_half_size(alignment)
    return half_u + LATTICE_MARGIN_PX, half_v + LATTICE_MARGIN_PX


def lattice_of_rays(tilt_deg: Array, reach: tuple[float, float], half_z: float, spacing: float) -> Lattice:
    """The lattice in which every ray through views of half-widths ``reach`` stays until it leaves the slab."""
    steepest = np.deg2rad(np.abs(tilt_deg).max())
    half_x = (reach[0] + half_z * np.sin(steepest)) / np.cos(steepest)
    return Lattice.covering(half_x, reach[1], half_z, spacing)


class JointFit:
    """The state of a joint refinement; `run` goes through the schedule and can go on from a saved state.

    Args:
        images: ``(n_tilts, ny, nx)`` raw frame, protein positive, background near zero; any unit.
        weight: same shape, validity 0..1.
        start: alignment to refine, one entry an image.
        thickness_px: the slab that may hold density, centred at z = 0.
        settings: see `JointSettings`.
    """

    def __init__(
        self, images: F32, weight: F32, start: Alignment, thickness_px: float, settings: JointSettings | None = None
    ) -> None:
        self.settings = s = settings or JointSettings()
        self.images, self.weight, self.half_z = images, weight, thickness_px / 2
        self.tilts = np.asarray(start.tilt_deg, dtype=np.float64)
        self.motion = Motion(start, s.control_points, s.warp, penalty=s.penalty, seed=s.seed)
        self.gain = np.ones(len(images), dtype=np.float32)
        self.losses: list[tuple[int, int, float, float]] = []
        self.loss = Loss(s.loss)
        self.done_scales, self.done_steps = 0, 0
        self.at_work: Stage | None = None
        self.held_blocks = blocks_to_hold_out(images.shape, s.held_out, s.seed)
        self.half_u, self.half_v = half_reach(start)
        first = s.schedule[0].bin
        data = scaled_data(images, weight, first, self.held_blocks, s.device)
        self.unit = data.noise / first
        signal = np.sqrt(max(float(np.var(data.images)) - 1.0, 0.05))
        self.density_unit = 2 * signal / np.sqrt(self.lattice(first).shape[0])
        self.field_rate = FIELD_RATES[s.field]
        self._new_density()

    def lattice(self, spacing: float) -> Lattice:
        """The lattice of a scale: every ray of every tilt stays inside it until it leaves the slab.

        At scales finer than the last that moves the views it divides that one's voxels.
        """
        parts = max(1, round(self.moving_bin / spacing))
        if parts > 1:
            whole = self.lattice(self.moving_bin)
            nz, nx, ny = (n * parts for n in whole.shape)
            z, x, y = (-(n - 1) / 2 * spacing for n in (nz, nx, ny))
            return Lattice(spacing, (nz, nx, ny), (z, x, y))
        return lattice_of_rays(self.tilts, (self.half_u, self.half_v), self.half_z, spacing)

    def n_u(self, bin: int) -> int:
        """Rays of a projection across the axis."""
        return 2 * int(np.ceil(self.half_u / bin)) + 1

    def active_levels(self, bin: int) -> float:
        """Levels of the field that a scale has a use for."""
        return max(1.0, self.settings.levels - float(np.log2(bin / self.settings.schedule[-1].bin)))

    @property
    def moving_bin(self) -> int:
        """The finest scale that moves the views, or the last one where none does."""
        moving = [scale.bin for scale in self.settings.schedule if scale.motion_from < scale.steps]
        return min(moving, default=self.settings.schedule[-1].bin)

    def _new_density(self) -> None:
        """An empty field and its optimiser.

        Voxels of the finest scale that moves the views, and of finer ones, lie midway between vertices, where
        interpolation smooths most: on vertices, they fit more of the noise (S3: 0.57 instead of 0.53 px).
        """
        s, lattice = self.settings, self.lattice(self.moving_bin)
        half_z, half_x, half_y = (n * lattice.spacing / 2 for n in lattice.shape)
        self.field = make_field(
            s.field,
            (-half_x, half_x, -half_y, half_y, -half_z, half_z),
            finest_px=float(s.schedule[-1].bin),
            levels=s.levels,
            seed=s.seed,
            scale=self.density_unit,
            initial=0.05 * self.density_unit,
        )
        self.adam = Adam(self.field.groups, self.field.rates(self.field_rate), beta2=0.95)

    def stage(self, scale: Scale) -> Stage:
        """What does the steps of a scale."""
        if self.settings.device == "cpu":
            return Stage(self, scale)
        from inrtomo.gpu.fit import DeviceStage

        return DeviceStage(self, scale)

    def run(self, on_step: Callable[[JointFit], None] | None = None) -> JointResult:
        """Fit through all scales, from wherever the state is; ``on_step`` sees it after every step."""
        if self.settings.device != "cpu":
            from inrtomo.gpu.room import refuse_too_little

            refuse_too_little(self)
        if self.settings.shared:
            from inrtomo.gpu.share import announce

            announce(self, type(self).run, self.settings, self.images, self.weight, self.motion.start, 2 * self.half_z)
        rho = np.zeros((1, 1, 1), np.float32)
        for index in range(self.done_scales, len(self.settings.schedule)):
            scale = self.settings.schedule[index]
            if scale.fresh and self.done_steps == 0:
                self._new_density()
            work = self.at_work = self.stage(scale)
            while self.done_steps < scale.steps:
                work.step(self.done_steps)
                self.done_steps += 1
                if on_step is not None:
                    on_step(self)
            self.done_scales, self.done_steps, self.at_work = index + 1, 0, None
            del work  # before the next scale takes its memory
        last = self.stage(self.settings.schedule[-1])
        rho = self.field.lattice(last.lattice, last.active, level_cap=last.caps)
        return JointResult(
            self.motion.alignment, rho, last.lattice, self.field, self.losses, self.gain.astype(np.float64),
            self.motion.warp_sd_px,
        )  # fmt: skip

    def held_out_map(self) -> Array:
        """Held-out loss at the last scale per block ``(n_tilts, n_by, n_bx, 2)``: summed loss and weight."""
        last = self.stage(self.settings.schedule[-1])
        rho = self.field.lattice(last.lattice, last.active, level_cap=last.caps)
        return last.held_out_map(rho)

    @property
    def fraction_done(self) -> float:
        """Share of the schedule's work that is done, steps weighted by their number of voxels."""
        work = [sc.steps * self.lattice(sc.bin).n_points for sc in self.settings.schedule]
        done = float(sum(work[: self.done_scales]))
        if self.done_scales < len(work):
            done += work[self.done_scales] * self.done_steps / self.settings.schedule[self.done_scales].steps
        return done / sum(work)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything that changes during a fit, as plain arrays for a checkpoint."""
        if self.at_work is not None:
            self.at_work.read()
        state = {f"field.{k}": v for k, v in self.field.state_dict().items()}
        state |= {f"adam.{k}": v for k, v in self.adam.state_dict().items()}
        state |= {f"motion.{k}": v for k, v in self.motion.state_dict().items()}
        return state | self.progress()

    def progress(self) -> dict[str, NDArray[Any]]:
        """How far a fit has come, its losses and the tilts' gains: the part of `state_dict` that stays small."""
        losses = np.array(self.losses, dtype=np.float64).reshape(-1, 4)
        return {"gain": self.gain.copy(), "losses": losses, "done": np.array([self.done_scales, self.done_steps])}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state_dict` gave, for the same data and settings."""

        def part(prefix: str) -> dict[str, NDArray[Any]]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        self.field.load_state_dict(part("field."))
        self.adam.load_state_dict(part("adam."))
        self.motion.load_state_dict(part("motion."))
        self.take_progress(state)

    def take_progress(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up what `progress` gave."""
        self.gain[:] = state["gain"]
        self.losses = [(int(a), int(b), float(c), float(d)) for a, b, c, d in state["losses"]]
        self.done_scales, self.done_steps = (int(v) for v in state["done"])


class Stage:
    """Data, lattice and constants of one scale of a fit, and the step that uses them."""

    def __init__(self, fit: JointFit, scale: Scale) -> None:
        self.fit, self.scale = fit, scale
        s = fit.settings
        self.data = data = scaled_data(fit.images, fit.weight, scale.bin, fit.held_blocks, s.device)
        self.lattice = fit.lattice(scale.bin)
        self.n_u, self.active = fit.n_u(scale.bin), fit.active_levels(scale.bin)
        fit.adam.rates.update(fit.field.rates(fit.field_rate, self.active))
        # binning changes the noise unit of the images and the length of a lattice step: the density keeps its unit
        self.amplitude = fit.unit / (data.noise / scale.bin)
        self.noise = self.amplitude * np.sqrt(len(fit.tilts))
        self.caps = self._level_caps()
        gx, gy = np.meshgrid(data.x / data.x[-1], data.y / data.y[-1])
        powers = [(i, j) for i in range(3) for j in range(3) if i + j <= s.background_order]
        self.background = np.stack([(gx**i * gy**j).ravel() for i, j in powers], axis=1).astype(np.float32)

    def _level_caps(self) -> NDArray[np.int64]:
        """Levels in use per (z, x): all where most tilts look, coarse ones around it, none where no ray passes."""
        nz, nx, _ = self.lattice.shape
        z = self.lattice.origin[0] + self.lattice.spacing * np.arange(nz)
        x = self.lattice.origin[1] + self.lattice.spacing * np.arange(nx)
        seen = np.zeros((nz, nx))
        for tilt in np.deg2rad(self.fit.tilts):
            seen += np.abs(x * np.cos(tilt) + z[:, None] * np.sin(tilt)) <= self.fit.half_u + 2 * self.lattice.spacing
        levels, outside = self.fit.settings.levels, self.fit.settings.outside
        caps = np.where(seen > 0.5 * len(self.fit.tilts), levels, max(1, levels - outside))
        return np.where(seen > 0, caps, 0).astype(np.int64)

    def rate(self, step: int) -> float:
        """What is left of both rates at a step."""
        return 1 - (1 - RATE_AT_END) * step / self.scale.steps

    def step(self, step: int) -> None:
        """One step of the density and, where it is unlocked, of the motion."""
        fit, s, scale = self.fit, self.fit.settings, self.scale
        rate = self.rate(step)
        with_motion = s.fit_motion and step >= scale.motion_from
        fit.field.zero_grad()
        sums, fit_loss, held_loss = self.accumulate(with_motion)
        fit.losses.append((scale.bin, step, fit_loss, held_loss))
        groups = fit.field.active_groups(self.active)
        fit.adam.step(fit.field.parameters(), fit.field.grad, groups, rate)
        if sums is not None:
            with_warp = s.warp != "none" and scale.warp_from is not None and step >= scale.warp_from
            fit.motion.step(sums, s.motion_rate * rate, with_warp)

    def read(self) -> None:
        """Bring what changed to the fit's own arrays; here it is there already."""

    def fetch_field(self) -> None:
        """Bring the field alone there, for a look at it."""

    def accumulate(self, with_motion: bool) -> tuple[BlockSums | None, float, float]:
        """Add the gradient of data term and priors to the field's; block sums for the motion, and the two losses."""
        fit = self.fit
        rho = fit.field.lattice(self.lattice, self.active, level_cap=self.caps)
        grad = np.zeros(self.lattice.shape, np.float32)
        total = DataTotal()
        for part in self.batches():
            ideal = project(rho, self.lattice, fit.tilts[part], self.n_u)
            by_ideal = self.data_term(ideal, part, total, with_motion)
            grad += back_project(by_ideal, self.lattice, fit.tilts[part])
        self.add_priors(grad, rho)
        fit.field.backward_lattice(grad)
        if with_motion:
            fit.gain /= np.exp(np.mean(np.log(fit.gain)))
        return total.sums, total.fit_loss, total.held_loss

    def add_priors(self, grad: F32, rho: F32) -> None:
        """Add the gradient of the density's priors to ``grad``."""
        s = self.fit.settings
        grad += np.float32(s.variation * self.noise) * total_variation(rho, 0.1 * self.fit.density_unit)[1]
        grad += np.float32(s.sparsity * self.noise)

    def batches(self) -> list[slice]:
        """Tilts in batches whose pixel and projection arrays stay within the memory bound."""
        n = len(self.fit.tilts)
        bytes_per_tilt = 4 * (12 * self.data.images[0].size + 3 * self.n_u * self.lattice.shape[2])
        batch = max(1, int(self.fit.settings.memory_bytes // bytes_per_tilt))
        return [slice(first, min(first + batch, n)) for first in range(0, n, batch)]

    def coordinates(self, part: slice) -> tuple[F32, F32]:
        """Indices (u, v) into the ideal projections at which a batch's pixels read them."""
        data, lattice = self.data, self.lattice
        return self.fit.motion.coordinates(part, data.x, data.y, lattice.spacing, self.n_u, lattice.shape[2])

    def imaged(self, values: F32, part: slice) -> F32:
        """What the microscope makes of projections seen at the raw pixels: here nothing else."""
        return values

    def imaged_adjoint(self, slopes: F32, part: slice) -> F32:
        """Transpose of `imaged`."""
        return slopes

    def loss(self, residuals: F32, weight: F32, part: slice) -> tuple[float, F32]:
        """Mean loss of a batch's residuals and its derivative by them."""
        return self.fit.loss(residuals, weight)

    def judged(self, residuals: F32, part: slice) -> F32:
        """What the held-out loss is of: the residuals of pixels that are not fitted."""
        return residuals

    def _residuals(self, ideal: F32, part: slice, update_gain: bool) -> _Residuals:
        """Model minus data of a batch of tilts, background taken out."""
        fit, data = self.fit, self.data
        u, v = self.coordinates(part)
        value, slope_u, slope_v = read_at(ideal, u, v)
        seen = np.isfinite(value)
        value = self.imaged(np.where(seen, value, np.float32(0)), part)
        weight, held, image = data.fit[part] * seen, data.held[part] * seen, data.images[part]
        scale = np.float32(self.amplitude) * fit.gain[part]
        predicted = scale[:, None, None] * value
        rest = self._background(image - predicted, weight)
        if update_gain:
            signal = weight * predicted
            norm = (signal * predicted).sum((1, 2)) - signal.sum((1, 2)) ** 2 / np.maximum(weight.sum((1, 2)), 1)
            mean = signal.sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1)
            correction = ((signal - mean[:, None, None] * weight) * (image - rest)).sum((1, 2)) / np.maximum(norm, 1e-6)
            fit.gain[part] *= np.clip(correction, 0.8, 1.25).astype(np.float32)
        return _Residuals(predicted + rest - image, weight, held, u, v, slope_u, slope_v, ideal.shape, scale)

    def _background(self, difference: F32, weight: F32) -> F32:
        """The free polynomial of every image ``(n, rows, cols)`` that best explains a difference."""
        n, rows, cols = difference.shape
        basis, w = self.background, weight.reshape(n, -1)
        right = (w * difference.reshape(n, -1)) @ basis
        normal = np.einsum("np,pa,pb->nab", w, basis, basis, optimize=True).astype(np.float64)
        normal += 1e-6 * np.eye(basis.shape[1]) * max(1.0, float(rows * cols))
        solved = np.linalg.solve(normal, right[..., None].astype(np.float64))[..., 0]
        return (solved.astype(np.float32) @ basis.T).reshape(n, rows, cols)

    def data_term(self, ideal: F32, part: slice, total: DataTotal, with_motion: bool, with_gain: bool = False) -> F32:
        """Gradient of the loss by a batch's ideal projections ``(n, n_u, n_v)``; losses and block sums go to total."""
        data = self.data
        r = self._residuals(ideal, part, update_gain=with_motion or with_gain)
        mean, slope = self.loss(r.values, r.weight, part)
        held_mean, _ = self.loss(self.judged(r.values, part), r.held, part)
        n_fit, n_held = float(r.weight.sum(dtype=np.float64)), float(r.held.sum(dtype=np.float64))
        total.values += [mean * n_fit, n_fit, held_mean * n_held, n_held]
        weighted = slope * np.float32(n_fit)
        scale = r.scale[:, None, None]
        if with_motion:
            per_px = scale * (r.weight > 0) / np.float32(self.lattice.spacing)
            block = motion_block(data.bin)
            total.blocks.append(BlockSums.of(weighted, r.slope_u * per_px, r.slope_v * per_px, data.x, data.y, block))
        return spread_at(self.imaged_adjoint(weighted * scale, part), r.u, r.v, r.shape)

    def held_out_map(self, rho: F32) -> Array:
        """Summed loss and weight of the held-out pixels in every block, ``(n_tilts, n_by, n_bx, 2)``."""
        fit, data = self.fit, self.data
        out = np.zeros((*fit.held_blocks.shape, 2))
        at_y = (np.arange(len(data.y)) * data.bin) // HELD_BLOCK_PX
        at_x = (np.arange(len(data.x)) * data.bin) // HELD_BLOCK_PX
        for part in self.batches():
            ideal = project(rho, self.lattice, fit.tilts[part], self.n_u)
            r = self._residuals(ideal, part, update_gain=False)
            for m, (residual, held) in enumerate(zip(r.values, r.held, strict=True), start=part.start):
                pair = np.stack([held * residual**2 / 2, held], axis=-1)
                np.add.at(out[m], (at_y[:, None], at_x[None, :]), pair)
        return out


@dataclass
class DataTotal:
    """Sums over the batches of a step.

    Attributes:
        values: loss and weight of the fitted pixels, of the held-out pixels.
        blocks: of every batch, for the motion.
    """

    values: Array = field(default_factory=lambda: np.zeros(4))
    blocks: list[BlockSums] = field(default_factory=list)

    @property
    def fit_loss(self) -> float:
        return float(self.values[0] / max(self.values[1], 1))

    @property
    def held_loss(self) -> float:
        return float(self.values[2] / max(self.values[3], 1))

    @property
    def sums(self) -> BlockSums | None:
        """All tilts' block sums, None without motion."""
        if not self.blocks:
            return None
        return replace(self.blocks[0], values=np.concatenate([p.values for p in self.blocks]))


@dataclass
class _Residuals:
    """Model minus data of a batch, with what its gradients need."""

    values: F32
    weight: F32
    held: F32
    u: F32
    v: F32
    slope_u: F32
    slope_v: F32
    shape: tuple[int, int, int]
    scale: F32
