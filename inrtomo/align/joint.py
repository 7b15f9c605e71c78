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

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.motion import BlockSums, Motion, aligned_half_size
from inrtomo.alignment import Alignment
from inrtomo.fields import Adam, DensityField, make_field
from inrtomo.geometry import centred_coordinates
from inrtomo.priors import total_variation
from inrtomo.projection import Lattice, back_project, project, read_at, spread_at

Array = NDArray[np.float64]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """One stage of the coarse-to-fine schedule: image binning and what is fitted there."""

    bin: int
    steps: int
    motion_from: int
    warp_from: int | None
    rate: float


DEFAULT_SCHEDULE = (
    Scale(bin=4, steps=80, motion_from=15, warp_from=None, rate=1.0),
    Scale(bin=2, steps=60, motion_from=10, warp_from=20, rate=1.0),
)


@dataclass(frozen=True)
class JointSettings:
    """What is fitted and how; lengths in raw px.

    Attributes:
        field: ``"hash"``, ``"voxel"`` or ``"mlp"``.
        sparsity, variation: weights of the L1 and total-variation priors of the density, in units of the noise
            that one voxel's gradient receives from all tilts.
        held_out: fraction of pixels, in blocks, that are never fitted.
        memory_bytes: bound for the arrays of one batch of tilts.
    """

    field: str = "hash"
    levels: int = 6
    schedule: tuple[Scale, ...] = DEFAULT_SCHEDULE
    loss: str = "l2"
    warp: str = "bicubic"
    control_points: int = 5
    sparsity: float = 0.64
    variation: float = 0.4
    field_rate: float = 0.1
    motion_rate: float = 0.5
    held_out: float = 0.03
    background_order: int = 0
    memory_bytes: float = 1.0e9
    seed: int = 0


@dataclass
class JointResult:
    """What the fit found.

    Attributes:
        alignment: the refined motion.
        density: ``[z, x, y]`` on `lattice`, in noise units of the last scale.
        field: the fitted field (raw-px coordinates).
        losses: one row a step: scale (bin), step, fit loss, held-out loss, both mean squared noise units.
        gain: per tilt.
    """

    alignment: Alignment
    density: F32
    lattice: Lattice
    field: DensityField
    losses: list[tuple[int, int, float, float]]
    gain: Array
    tilt_loss: Array


@dataclass
class ScaledData:
    """The images of one scale: ``(n, rows, cols)`` in units of the noise sd, and their weights."""

    bin: int
    noise: float
    images: F32
    fit: F32
    held: F32
    x: Array
    y: Array


def fourier_crop(images: NDArray[np.floating[Any]], factor: int) -> F32:
    """Bin images ``(n, ny, nx)`` by an integer in Fourier space; binned pixels are centred on the raw ones they cover."""
    if factor == 1:
        return np.ascontiguousarray(images, dtype=np.float32)
    n, ny, nx = images.shape
    oy, ox = ny // factor, nx // factor
    images = images[:, : oy * factor, : ox * factor]
    ny, nx = oy * factor, ox * factor
    fy, fx = np.fft.fftfreq(oy, factor), np.fft.rfftfreq(ox, factor)
    phase = np.exp(2j * np.pi * (factor - 1) / 2 * (fy[:, None] + fx[None]))
    out = np.empty((n, oy, ox), dtype=np.float32)
    rows = np.concatenate([np.arange(0, (oy + 1) // 2), np.arange(ny - oy // 2, ny)])
    for k in range(n):
        spectrum = np.fft.rfft2(images[k])[rows, : ox // 2 + 1]
        out[k] = np.fft.irfft2(spectrum * phase, s=(oy, ox)) / factor**2
    return out


def noise_sd(images: F32) -> Array:
    """Noise sd of each image from its diagonal second differences (robust; signal is smooth at this scale)."""
    d = (images[:, 1:, 1:] - images[:, :-1, 1:] - images[:, 1:, :-1] + images[:, :-1, :-1]) / 2
    return np.median(np.abs(d), axis=(1, 2)).astype(np.float64) / 0.6745


def scaled_data(images: F32, weight: F32, factor: int, held_blocks: NDArray[np.bool_], block_px: int) -> ScaledData:
    """Images of one scale with noise sd 1 and median 0, split into fitted and held-out pixels."""
    binned = fourier_crop(images, factor)
    n, rows, cols = binned.shape
    noise = np.maximum(noise_sd(binned), 1e-20)
    binned /= noise[:, None, None].astype(np.float32)
    binned -= np.median(binned, axis=(1, 2), keepdims=True)
    w = weight[:, : rows * factor, : cols * factor].reshape(n, rows, factor, cols, factor).min(axis=(2, 4))
    x = (centred_coordinates(cols) * factor) + (cols * factor - images.shape[2]) / 2
    y = (centred_coordinates(rows) * factor) + (rows * factor - images.shape[1]) / 2
    at_y = (np.arange(rows) * factor) // block_px
    at_x = (np.arange(cols) * factor) // block_px
    held = held_blocks[:, at_y][:, :, at_x]
    return ScaledData(factor, float(np.median(noise)), binned, np.where(held, 0, w).astype(np.float32), np.where(held, w, 0).astype(np.float32), x, y)


Progress = Callable[[str, float, float, float], None]


class JointFit:
    """The state of a joint refinement; `run` goes through the schedule."""

    def __init__(
        self,
        images: F32,
        weight: F32,
        start: Alignment,
        thickness_px: float,
        settings: JointSettings,
        progress: Progress | None = None,
    ) -> None:
        self.settings, self.images, self.weight = settings, images, weight
        self.tilts = np.asarray(start.tilt_deg, dtype=np.float64)
        self.motion = Motion(start, settings.control_points, settings.warp if settings.warp != "none" else "bicubic")
        self.half_z = thickness_px / 2
        self.progress = progress
        self.losses: list[tuple[int, int, float, float]] = []
        self.gain = np.ones(len(images), dtype=np.float32)
        rng = np.random.default_rng(settings.seed)
        self.block_px = 16
        shape = (len(images), *(-(-s // self.block_px) for s in images.shape[1:]))
        self.held_blocks = rng.random(shape) < settings.held_out
        finest = self.settings.schedule[-1].bin
        self.box_lattice = self._lattice(finest)
        self.field: DensityField | None = None

    def _lattice(self, spacing: float) -> Lattice:
        half_u, half_v = aligned_half_size(self.motion.start)
        margin = 16.0
        steepest = np.deg2rad(np.abs(self.tilts).max())
        half_x = (half_u + margin + self.half_z * np.sin(steepest)) / np.cos(steepest)
        return Lattice.covering(half_x, half_v + margin, self.half_z, spacing)

    def _make_field(self, data: ScaledData, lattice: Lattice) -> DensityField:
        box_lattice = self.box_lattice
        reach = [n * box_lattice.spacing / 2 for n in box_lattice.shape]
        signal = np.sqrt(max(float(np.var(data.images)) - 1.0, 0.05))
        self.density_unit = 2 * signal / np.sqrt(lattice.shape[0])
        s = self.settings
        return make_field(
            s.field,
            (-reach[1], reach[1], -reach[2], reach[2], -reach[0], reach[0]),
            finest_px=box_lattice.spacing,
            levels=s.levels,
            seed=s.seed,
            scale=self.density_unit,
            initial=0.05 * self.density_unit,
        )

    def run(self) -> JointResult:
        """Fit through all scales."""
        rho, lattice = np.zeros((1, 1, 1), np.float32), self.box_lattice
        for scale in self.settings.schedule:
            rho, lattice = self.run_scale(scale)
        assert self.field is not None
        return JointResult(
            self.motion.alignment, rho, lattice, self.field, self.losses, self.gain.astype(np.float64), self.tilt_loss
        )

    def run_scale(self, scale: Scale, report: Callable[[str], None] | None = None) -> tuple[F32, Lattice]:
        """Fit at one scale; returns density and lattice."""
        s = self.settings
        data = scaled_data(self.images, self.weight, scale.bin, self.held_blocks, self.block_px)
        lattice = self._lattice(scale.bin)
        if self.field is None:
            self.field = self._make_field(data, lattice)
            self.adam = Adam(self.field.groups, s.field_rate, beta2=0.95)
            self.unit = data.noise / scale.bin
        finest = s.schedule[-1].bin
        active = s.levels - np.log2(scale.bin / finest)
        # binning changes the noise unit of the images and the length of a lattice step: the density keeps its unit
        self.amplitude = self.unit / (data.noise / scale.bin)
        n_u = 2 * int(np.ceil((aligned_half_size(self.motion.start)[0] + 16.0) / scale.bin)) + 1
        noise = self.amplitude * np.sqrt(len(self.tilts))
        started = time.monotonic()
        rho = np.zeros(lattice.shape, np.float32)
        for step in range(scale.steps):
            fraction = step / scale.steps
            rho = self.field.lattice(lattice, active)
            grad, sums, fit_loss, held_loss = self._data_term(rho, lattice, data, n_u, step >= scale.motion_from)
            self.losses.append((scale.bin, step, fit_loss, held_loss))
            grad += np.float32(s.variation * noise) * total_variation(rho, 0.1 * self.density_unit)[1]
            grad += np.float32(s.sparsity * noise)
            self.field.zero_grad()
            self.field.backward_lattice(grad)
            self.adam.step(self.field.parameters(), self.field.grad, self.field.active_groups(active), scale.rate * (1 - 0.9 * fraction))
            if sums is not None:
                with_warp = s.warp != "none" and scale.warp_from is not None and step >= scale.warp_from
                self.motion.step(sums, s.motion_rate * (1 - 0.9 * fraction), with_warp)
            if report is not None and (step % 20 == 0 or step == scale.steps - 1):
                report(f"bin {scale.bin} step {step} {time.monotonic() - started:.1f}s fit {fit_loss:.4f} held {held_loss:.4f} sd {self.motion.warp_sd_px:.2f}")
        return rho, lattice

    def _data_term(self, rho: F32, lattice: Lattice, data: ScaledData, n_u: int, with_motion: bool) -> tuple[F32, BlockSums | None, float, float]:
        """Gradient of the density, block sums for the motion, and mean squared residual of fitted and held-out pixels."""
        s = self.settings
        grad = np.zeros(lattice.shape, np.float32)
        sums: list[BlockSums] = []
        totals = np.zeros((len(self.tilts), 4))
        per_tilt = data.images[0].size * 4 * 8 + n_u * lattice.shape[2] * 8
        batch = max(1, int(s.memory_bytes // per_tilt))
        for first in range(0, len(self.tilts), batch):
            part = slice(first, min(first + batch, len(self.tilts)))
            ideal = project(rho, lattice, self.tilts[part], n_u)
            u, v = self.motion.coordinates(part, data.x, data.y, lattice.spacing, n_u, lattice.shape[2])
            value, slope_u, slope_v = read_at(ideal, u, v)
            fit, held, image = data.fit[part], data.held[part], data.images[part]
            seen = np.isfinite(value)
            fit, held = fit * seen, held * seen
            value = np.where(seen, value, 0)
            gain = np.float32(self.amplitude) * self.gain[part][:, None, None]
            predicted = gain * value
            weight_sum = np.maximum(fit.sum((1, 2)), 1e-6)
            offset = ((image - predicted) * fit).sum((1, 2)) / weight_sum
            residual = predicted + offset[:, None, None].astype(np.float32) - image
            squared = residual * residual
            totals[part, 0] = (squared * fit).sum((1, 2))
            totals[part, 1] = fit.sum((1, 2))
            totals[part, 2] = (squared * held).sum((1, 2))
            totals[part, 3] = held.sum((1, 2))
            weighted = residual * fit
            grad += back_project(spread_at(weighted * gain, u, v, ideal.shape), lattice, self.tilts[part])
            if with_motion:
                slope = (fit * gain / lattice.spacing).astype(np.float32)
                sums.append(BlockSums.of(weighted, slope_u * slope, slope_v * slope, data.x, data.y, max(2, 16 // data.bin)))
        self.tilt_loss = totals[:, 0] / np.maximum(totals[:, 1], 1)
        fit_loss = totals[:, 0].sum() / totals[:, 1].sum()
        held_loss = totals[:, 2].sum() / max(totals[:, 3].sum(), 1e-9)
        joined = replace(sums[0], values=np.concatenate([p.values for p in sums])) if sums else None
        return grad, joined, float(fit_loss), float(held_loss)
