"""A density field fitted to a tilt series whose alignment is known: the joint fit with the motion held still.

Coarse to fine, down to the output voxel. Rays follow the alignment's full map (`Rays`), so noise is never
interpolated; the density is never negative; every tilt has a free gain and a free smooth background. Pixels in
held-out blocks are never fitted, and the parameters that predict them best are kept: later steps fit noise.

Memory is bounded without seams. Rows y of a single-axis series are projected on their own, so a step first projects
the lattice slab by slab, turns the residuals of whole images into the gradient of their projections, and then takes
that back slab by slab into the one field: the sum is the gradient that the whole lattice would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.checkpoint import Checkpoint, Interrupts, Stopped
from inrtomo.align.joint import DataTotal, JointFit, JointSettings, Scale, Stage, scaled_data
from inrtomo.align.motion import BlockSums
from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.fields import Adam, DensityField, field_of, make_field
from inrtomo.fields.tensor import TensorField, adapted, boundary_points
from inrtomo.losses import COUNT_KINDS, CountLoss
from inrtomo.priors import (
    BOUNDARY_WEIGHT,
    ISOTROPIC_WEIGHT,
    WEDGE_WEIGHT,
    boundary_consistency,
    isotropic_prior,
    total_variation,
    wedge_penalty,
)
from inrtomo.projection import Lattice, back_project, project
from inrtomo.reconstruct.rays import Rays, common_x_tilt, level_volume
from inrtomo.reconstruct.slabs import Slab, joined, ranges

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

FIELDS = ("hash", "mlp", "siren", "tensor", "voxel")
NETWORKS = ("mlp", "siren")
STEPS = {8: 60, 4: 60, 2: 50, 1: 100}  # at bins; the last is where held-out pixels end it in most cases
LEAST_SIZE = 12  # binned px of the coarsest scale: below this there is little to see
OUTSIDE_LEVELS = 2  # of the finest that material beyond the view does without
COARSEST_PX = 64  # spacing of the field's first level
LARGEST_GAIN = 4.0  # of a tilt, and its inverse the smallest: more is no gain but a density that is not there yet
GAIN_FROM = 10  # steps before the tilts' gains are free: an empty density would drive them anywhere
PATIENCE = 6  # steps of the last scale without a lower held-out loss, after which it goes on from the best one at
RATES = (1.0, 0.3, 0.1)  # the next of these rates, and ends after the last: noise wants slow steps, contrast quick ones
SLAB_MARGIN = 0.08  # of the thickness, above and below what is written: the specimen may reach beyond it
LEAST_MARGIN = 4
SPLINE_MARGIN = 8  # rows around a piece of an x-tilted volume, for its cubic interpolation
BOUNDARY_PAIRS = 4096  # points on either side of the nodes' edges, drawn anew at every step
UNSEEN = -9.0  # an index outside every projection

FIELD_ARRAYS = 10  # of the size of the field: with gradient, moments, the best one, and what a checkpoint copies
BYTES_PER_VOXEL = 64.0  # of a slab during a step: density, gradients and the field's own arrays
NETWORK_BYTES_PER_VOXEL = 160.0
DATA_ARRAYS = 9  # of the size of all images: binned, fitted, held out, and where each is seen, with what they come from
BATCH_ARRAYS = 12  # of the size of one batch of images
BATCH_SHARE = 0.3  # of the memory that is left
FEWEST_ROWS = 4  # of a slab


@dataclass(frozen=True)
class Priors:
    """Weights of what is likely before any image is seen; the density is never negative whatever they are.

    All but the last are in units of the noise that the gradient of a voxel receives from all tilts, so that one
    weight serves every series.

    Attributes:
        sparsity: of the sum of the density.
        variation: of its total variation.
        wedge: of its Fourier amplitude in the missing wedge beyond the Crowther frequency.
        isotropic: of Fourier amplitude on the x and y axes above that of the ring, slice by slice.
        boundary: of differences across the edges of a tensor field's nodes.
    """

    sparsity: float = 0.64
    variation: float = 0.4
    wedge: float = 0.0
    isotropic: float = 0.0
    boundary: float = 0.0


USUAL_WEIGHTS = Priors(wedge=WEDGE_WEIGHT, isotropic=ISOTROPIC_WEIGHT, boundary=BOUNDARY_WEIGHT)
"""What a prior weighs when it is asked for without a weight."""


@dataclass(frozen=True)
class FieldSettings:
    """What is fitted and how; lengths in px of the images, which are the output's voxels.

    Attributes:
        field: one of `FIELDS`.
        loss: ``"l2"``, ``"l1"``, ``"huber"``, or ``"poisson"`` or ``"heteroscedastic"`` for camera counts.
        priors: see `Priors`.
        background_order: degree of the polynomial that is free in every image.
        held_out: fraction of pixels, in blocks, that are never fitted.
        average: fits from so many initialisations; their mean is the result, their spread its uncertainty.
        steps: per scale, coarse to fine, the last at bin 1, each at half the bin of the one before (None: `STEPS`).
        memory_bytes: for everything.
        seed: of the first field and of the held-out blocks.
        device: ``"cpu"``, or a GPU as torch calls it.
    """

    field: str = "hash"
    loss: str = "l2"
    priors: Priors = Priors()
    background_order: int = 2
    held_out: float = 0.03
    average: int = 1
    steps: tuple[int, ...] | None = None
    memory_bytes: float = 4.0e9
    seed: int = 0
    device: str = "cpu"

    def schedule(self, image_size: tuple[int, int]) -> tuple[Scale, ...]:
        """Scales, coarse to fine, for images of a size (px)."""
        bins = [b for b in STEPS if b == 1 or min(image_size) >= b * LEAST_SIZE]
        steps = [STEPS[b] for b in bins]
        if self.steps is not None:
            bins, steps = [2**k for k in reversed(range(len(self.steps)))], list(self.steps)
        return tuple(Scale(b, n, n, None) for b, n in zip(bins, steps, strict=True))

    def joint(self, image_size: tuple[int, int], number: int = 0) -> JointSettings:
        """Settings of the underlying joint fit of initialisation ``number``, motion held still."""
        coarsest = min(COARSEST_PX, max(image_size) / 2)
        return JointSettings(
            field=self.field, levels=1 + max(1, round(np.log2(coarsest))), schedule=self.schedule(image_size),
            loss="l2" if self.loss in COUNT_KINDS else self.loss, warp="none", sparsity=self.priors.sparsity,
            variation=self.priors.variation, background_order=self.background_order, held_out=self.held_out,
            fit_motion=False, outside=OUTSIDE_LEVELS, memory_bytes=self.memory_bytes, seed=self.seed + number,
            device=self.device,
        )  # fmt: skip


class Transfer(Protocol):
    """What the microscope does to projections ``(n, rows, cols)`` of some tilts (`CtfOperator`)."""

    def apply(self, images: F32, tilts: NDArray[np.int64]) -> F32: ...
    def adjoint(self, images: F32, tilts: NDArray[np.int64]) -> F32: ...


@dataclass(frozen=True)
class Recording:
    """How the images came about, as far as a fit makes use of it.

    Attributes:
        transfer: makes the transfer function at a binning, for images in which it is not undone; None: there is none.
        background, gain: counts per image, ``counts = background + gain * image``, ``(n,)``; for count losses.
        read: part of the noise variance at the background that does not come from counting, ``(n,)``.
        check: images ``(n, ny, nx)`` of the same views with other noise, such as those of the other frames: what is
            kept is what predicts these best, and no pixels are held out.
    """

    transfer: Callable[[int], Transfer] | None = None
    background: Array | None = None
    gain: Array | None = None
    read: Array | None = None
    check: F32 | None = None


OnStep = Callable[["FieldFit", float], None]
"""Told after every step: the fit, and the fraction of all work that is done."""


def reconstruct_field(
    images: F32,
    weight: F32,
    alignment: Alignment,
    thickness_px: float,
    settings: FieldSettings | None = None,
    on_step: OnStep | None = None,
    recording: Recording | None = None,
    kept: Checkpoint | None = None,
    interrupts: Interrupts | None = None,
) -> FieldReconstruction:
    """Fit a density field to a tilt series.

    Args:
        images: ``(n, ny, nx)``, protein positive, background near zero; any unit.
        weight: same shape, validity 0..1.
        alignment: of these images and no others, lengths in their px, one x-tilt for all.
        thickness_px: height of the volume.
        settings: see `FieldSettings`.
        on_step: told after every step.
        recording: see `Recording`.
        kept: where the fits are from time to time, and where they go on from if it holds them already.
        interrupts: once one is noted the state is kept, and the work ends.

    Raises:
        InputError: too little memory, an x-tilt that varies, or a checkpoint that holds something else.
        Stopped: after an interrupt.
    """
    settings, kept = settings or FieldSettings(), kept or Checkpoint(None, {})
    fits: list[FieldFit] = []
    for number in range(settings.average):
        fit = FieldFit(images, weight, alignment, thickness_px, settings, number, recording or Recording())
        if state := kept.part(f"fit{number}"):
            try:
                fit.load_state_dict(state)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise InputError(f"{kept.path}: not of this fit ({error}); start anew with --overwrite") from None
            kept.set_part(f"fit{number}", None)
        fits.append(fit)

        def report(done: FieldFit, number: int = number) -> None:
            stopped = interrupts is not None and interrupts.received is not None
            if stopped or kept.is_due:
                _keep(fits, kept)
            if stopped:
                raise Stopped
            if on_step is not None:
                on_step(done, (number + done.fraction_done) / settings.average)

        fit.optimise(report)
    return FieldReconstruction(fits)


def _keep(fits: Sequence[FieldFit], kept: Checkpoint) -> None:
    """Write the state of all fits, and hold no copy of it."""
    for number, fit in enumerate(fits):
        kept.set_part(f"fit{number}", fit.state_dict())
    kept.save()
    kept.arrays = {}


@dataclass
class Search:
    """How far the last scale has come.

    Attributes:
        best: the parameters that predicted held-out pixels best, as `FieldStage.snapshot` gives them.
        rate: index into `RATES`.
        since: steps without better ones.
    """

    best: Any
    rate: int = 0
    since: int = 0


class FieldFit(JointFit):
    """A `JointFit` along `Rays` whose steps take the lattice slab by slab; arguments as of `reconstruct_field`.

    Attributes:
        shape: voxels (nz, ny, nx) of the output.
        held_out_loss: the lowest of the last scale, that of the parameters that were kept.
        search: what leads there, while the last scale is at work.
        stage_now: the scale at work, until the fit is done; then
        caps, active: the levels in use (see `DensityField.lattice`).
    """

    stage_now: FieldStage
    caps: NDArray[np.int64]
    active: float

    def __init__(
        self,
        images: F32,
        weight: F32,
        alignment: Alignment,
        thickness_px: float,
        settings: FieldSettings,
        number: int,
        recording: Recording,
    ) -> None:
        self.alignment, self.options, self.recording = alignment, settings, recording
        nx, ny = alignment.image_size
        nz = max(1, round(thickness_px))
        self.shape = nz, ny, nx
        self.slab_px = nz + 2 * max(LEAST_MARGIN, round(SLAB_MARGIN * nz))
        self._lattices: dict[int, Lattice] = {}
        self.held_out_loss = np.inf
        self.search: Search | None = None
        joint = settings.joint((nx, ny), number)
        if recording.check is not None:
            joint = replace(joint, held_out=0.0)
        super().__init__(images, weight, alignment, self.slab_px, joint)

    def rays(self, bin: int) -> Rays:
        """The geometry of a scale."""
        rays = Rays(self.alignment, self.alignment.image_size, bin, self.slab_px)
        self._lattices[bin] = rays.lattice
        return rays

    def lattice(self, spacing: float) -> Lattice:
        """The lattice of a scale (`Rays`); at the finest the output's voxels are points of it."""
        bin = round(spacing)
        if bin not in self._lattices:
            self.rays(bin)
        return self._lattices[bin]

    def stage(self, scale: Scale) -> FieldStage:
        """What does the steps of a scale."""
        if self.settings.device == "cpu":
            return FieldStage(self, scale)
        from inrtomo.gpu.field_stage import DeviceFieldStage

        return DeviceFieldStage(self, scale)

    def _new_density(self) -> None:
        """An empty field and its optimiser.

        Its finest vertices are the corners of the voxels, so a voxel is the mean of eight: neighbours have something
        in common (S1, 64 rows: CC 0.960; 0.958 with vertices in the voxels' centres).
        """
        s, lattice = self.settings, self.lattice(self.settings.schedule[-1].bin)
        step = lattice.spacing
        z, x, y = ((o - step / 2, o + (n - 0.5) * step) for o, n in zip(lattice.origin, lattice.shape, strict=True))
        self._use(
            make_field(
                s.field,
                (*x, *y, *z),
                finest_px=step,
                levels=s.levels,
                seed=s.seed,
                scale=self.density_unit,
                initial=0.05 * self.density_unit,
            )
        )

    def _use(self, field: DensityField) -> None:
        self.field = field
        self.adam = Adam(field.groups, field.rates(self.field_rate), beta2=0.95)

    def optimise(self, on_step: Callable[[FieldFit], None] | None = None) -> None:
        """Fit through all scales, from wherever the state is.

        At the last one those parameters are kept that predict held-out pixels best.
        """
        schedule = self.settings.schedule
        if self.done_scales == len(schedule):  # finished by a run before this one
            self.stage_now = self.stage(schedule[-1])
        for index in range(self.done_scales, len(schedule)):
            if index > 0 and self.done_steps == 0:
                self._adapt()
                del self.stage_now  # before the next one takes its memory
            self.stage_now = self.stage(schedule[index])
            judged = index == len(schedule) - 1 and bool(self.stage_now.data.held.any())
            for _ in self._judged_steps() if judged else self._steps():
                if on_step is not None:
                    on_step(self)
            self.done_scales, self.done_steps = index + 1, 0
        self.caps, self.active, self.search = self.stage_now.caps, self.stage_now.active, None
        del self.stage_now, self.adam  # a fit that waits for others of its kind holds little more than its field

    def _steps(self) -> Iterator[float]:
        """Do the steps of a scale; the held-out loss at each."""
        while self.done_steps < self.stage_now.scale.steps:
            self.stage_now.step(self.done_steps)
            self.done_steps += 1
            yield self.losses[-1][3]

    def _judged_steps(self) -> Iterator[float]:
        """The same at each of `RATES` for as long as the held-out loss falls, each from the best that was seen."""
        stage = self.stage_now
        search = self.search = self.search or Search(stage.snapshot())
        search.best = stage.taken_up(search.best)
        while search.rate < len(RATES) and self.done_steps < stage.scale.steps:
            stage.pace = RATES[search.rate]
            before = stage.snapshot()
            stage.step(self.done_steps)
            self.done_steps += 1
            search.since += 1
            held = self.losses[-1][3]
            if held < self.held_out_loss:
                self.held_out_loss, search.best, search.since = held, before, 0
            if search.since == PATIENCE:
                stage.restore(search.best)
                search.rate, search.since = search.rate + 1, 0
            yield held
        stage.restore(search.best)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """As of `JointFit`, with the search of the last scale; of a finished fit what its volume is made from."""
        state: dict[str, NDArray[Any]]
        if self.done_scales < len(self.settings.schedule):
            self.stage_now.read()
            state = super().state_dict()
        else:
            state = {f"field.{k}": v for k, v in self.field.state_dict().items()}
            state |= self.progress()
        if self.search is not None:
            state["best"] = self.stage_now.laid_down(self.search.best)
            state["search"] = np.array([self.search.rate, self.search.since])
        return state | {"held_out_loss": np.array(self.held_out_loss)}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state_dict` gave, for the same data and settings."""
        field = field_of({k.removeprefix("field."): v for k, v in state.items() if k.startswith("field.")})
        if type(field) is not type(self.field):
            raise ValueError("another kind of field")
        self._use(field)  # a tensor field's tree has grown since
        if "adam.first" in state:
            super().load_state_dict(state)
        else:
            self.take_progress(state)
        self.held_out_loss = float(state["held_out_loss"])
        if "best" in state:
            self.search = Search(state["best"], *map(int, state["search"]))

    def _adapt(self) -> None:
        """A tensor field goes on with nodes where the density of the last scale has something to show."""
        if isinstance(self.field, TensorField):
            stage = self.stage_now
            density = np.concatenate([stage.density(rows) for rows in stage.slabs], axis=2)
            self._use(adapted(self.field, stage.lattice, density, level_cap=stage.caps))

    def slabs(self, rows_at_a_time: int) -> Iterator[Slab]:
        """The volume's rows, level, in units of the images per px of path."""
        (nz, ny, nx), lattice = self.shape, self.lattice(1)
        x_tilt_deg = common_x_tilt(self.alignment)
        x_tilt = np.deg2rad(x_tilt_deg)
        first = (lattice.shape[1] - nx) // 2
        columns, caps = range(first, first + nx), np.ascontiguousarray(self.caps[:, first : first + nx])
        for rows in ranges(0, ny, rows_at_a_time):
            ends = (np.array([[rows.start], [rows.stop - 1]]) - (ny - 1) / 2) * np.cos(x_tilt)
            v = ends + np.array([-nz / 2, nz / 2]) * np.sin(x_tilt) - lattice.origin[2]
            margin = SPLINE_MARGIN if x_tilt else 0
            low, high = int(np.floor(v.min() + 1e-6)) - margin, int(np.ceil(v.max() - 1e-6)) + margin
            needed = range(max(low, 0), min(high + 1, lattice.shape[2]))
            part = part_of(lattice, needed, columns)
            density = self.field.lattice(part, self.active, level_cap=caps)
            level = level_volume(density, part, x_tilt_deg, self.shape, lattice.spacing, rows)
            yield rows, level * np.float32(self.unit)


class FieldStage(Stage):
    """One scale of a `FieldFit`.

    Attributes:
        pace: what is left of the rate, instead of a fall with the steps; None: that fall.
        rays: its geometry.
        slabs: rows of the lattice that are in memory together.
    """

    fit: FieldFit
    pace: float | None = None

    def __init__(self, fit: FieldFit, scale: Scale) -> None:
        self.rays = fit.rays(scale.bin)
        super().__init__(fit, scale)
        self.n_u = self.rays.n_u
        self._u, self._v = (np.full(self.data.images.shape, UNSEEN, dtype=np.float32) for _ in range(2))
        for whole, seen in zip((self._u, self._v), self.rays.indices, strict=True):
            whole[:, self.rays.window[0], self.rays.window[1]] = seen
        recording = fit.recording
        self.transfer = None if recording.transfer is None else recording.transfer(scale.bin)
        self.check: F32 | None = None
        if recording.check is not None:
            other = scaled_data(recording.check, fit.weight, scale.bin, fit.held_blocks)
            ratio = other.noise_of_tilt / self.data.noise_of_tilt
            self.check = other.images * ratio[:, None, None].astype(np.float32)
            self.data.held = self.data.fit
        self.n_batch, self.slabs = self._within_memory()
        self.noise_of_sum, self.noise_of_voxel = (self.noise * part for part in self._passed())

    def _passed(self) -> tuple[float, float]:
        """What the transfer function leaves of a constant and of white noise; all where there is none.

        Priors weigh against what reaches the density. Of its mean phase contrast shows but a few percent: sparsity
        with the weight it has without would empty the density.
        """
        if self.transfer is None:
            return 1.0, 1.0
        image = np.zeros((1, *self.data.images.shape[1:]), dtype=np.float32)
        image[0, image.shape[1] // 2, image.shape[2] // 2] = 1.0
        lowest = int(np.argmin(np.abs(self.fit.tilts)))
        spread = self.transfer.apply(image, np.array([lowest]))
        return min(1.0, abs(float(spread.sum()))), min(1.0, float(np.linalg.norm(spread)))

    def _within_memory(self) -> tuple[int, list[range]]:
        """How many tilts make a batch, and the slabs."""
        fit = self.fit
        n, ny, nx = fit.images.shape
        nz, width, rows = self.lattice.shape
        one_image = 4.0 * self.data.images[0].size
        fixed = n * (8.0 * ny * nx + DATA_ARRAYS * one_image + 4.0 * self.n_u * rows)
        fixed += FIELD_ARRAYS * fit.field.grad.nbytes
        left = fit.options.memory_bytes - fixed
        per_voxel = NETWORK_BYTES_PER_VOXEL if fit.settings.field in NETWORKS else BYTES_PER_VOXEL
        per_row = per_voxel * nz * width + 8.0 * n * self.n_u
        per_tilt = BATCH_ARRAYS * one_image + 8.0 * self.n_u * rows
        n_batch, n_rows = int(BATCH_SHARE * left / per_tilt), int((1 - BATCH_SHARE) * left / per_row)
        if n_batch < 1 or n_rows < FEWEST_ROWS:
            needed = fixed + max(per_tilt / BATCH_SHARE, FEWEST_ROWS * per_row / (1 - BATCH_SHARE))
            raise InputError(
                f"--memory {fit.options.memory_bytes / 1e9:.3g}G: too little for this field, which needs "
                f"{needed / 1e9 + 0.05:.1f}G; give that, or bin more"
            )
        edges = np.linspace(0, rows, -(-rows // n_rows) + 1).round().astype(int)
        return min(n_batch, n), [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def rate(self, step: int) -> float:
        """What is left of the rate at a step."""
        return super().rate(step) if self.pace is None else self.pace

    def batches(self) -> list[slice]:
        """Tilts whose arrays stay within the memory bound."""
        n = len(self.fit.tilts)
        return [slice(first, min(first + self.n_batch, n)) for first in range(0, n, self.n_batch)]

    def coordinates(self, part: slice) -> tuple[F32, F32]:
        """Indices (u, v) into the ideal projections at which a batch's pixels read them."""
        return self._u[part], self._v[part]

    def imaged(self, values: F32, part: slice) -> F32:
        """Projections as the microscope shows them."""
        return values if self.transfer is None else self.transfer.apply(values, np.arange(part.start, part.stop))

    def imaged_adjoint(self, slopes: F32, part: slice) -> F32:
        """Transpose of `imaged`."""
        return slopes if self.transfer is None else self.transfer.adjoint(slopes, np.arange(part.start, part.stop))

    def loss(self, residuals: F32, weight: F32, part: slice) -> tuple[float, F32]:
        """Mean loss of a batch's residuals and its derivative by them."""
        options, recording, data = self.fit.options, self.fit.recording, self.data
        if options.loss not in COUNT_KINDS:
            return super().loss(residuals, weight, part)
        assert recording.background is not None and recording.gain is not None
        read = np.zeros(len(self.fit.tilts)) if recording.read is None else recording.read
        gain = recording.gain * data.noise_of_tilt
        counts = CountLoss(options.loss, recording.background[part], gain[part], read[part])
        return counts(residuals, data.images[part], weight)

    def judged(self, residuals: F32, part: slice) -> F32:
        """Residuals of the pixels that are not fitted, or against the images with other noise."""
        return residuals if self.check is None else residuals + self.data.images[part] - self.check[part]

    def snapshot(self) -> Any:
        """A copy of the parameters, wherever they are."""
        return self.fit.field.parameters().copy()

    def restore(self, parameters: Any) -> None:
        """Go back to a copy."""
        self.fit.field.parameters()[:] = parameters

    def laid_down(self, parameters: Any) -> F32:
        """A copy that `snapshot` gave, as an array for a checkpoint."""
        return np.asarray(parameters, dtype=np.float32)

    def taken_up(self, parameters: Any) -> Any:
        """What `laid_down` gave, or a copy that `snapshot` gave, as such a copy."""
        return parameters

    def density(self, rows: range) -> F32:
        """The field on rows of the lattice, ``[z, x, y]``."""
        return self.fit.field.lattice(part_of(self.lattice, rows), self.active, level_cap=self.caps)

    def accumulate(self, with_motion: bool) -> tuple[BlockSums | None, float, float]:
        """Add the gradient of data term and priors to the field's; the two losses."""
        fit, n_rows = self.fit, self.lattice.shape[2]
        ideal = np.empty((len(fit.tilts), self.n_u, n_rows), dtype=np.float32)
        rho = np.zeros(0, dtype=np.float32)
        for rows in self.slabs:
            rho = self.density(rows)
            ideal[:, :, rows.start : rows.stop] = project(rho, part_of(self.lattice, rows), fit.tilts, self.n_u)
        total = DataTotal()
        with_gain = fit.done_scales > 0 or fit.done_steps >= GAIN_FROM
        for batch in self.batches():
            ideal[batch] = self.data_term(ideal[batch], batch, total, False, with_gain)
        fit.gain /= np.exp(np.mean(np.log(fit.gain)))
        np.clip(fit.gain, 1 / LARGEST_GAIN, LARGEST_GAIN, out=fit.gain)
        for rows in self.slabs:
            wide = rows
            if len(self.slabs) > 1:
                # one row more on either side is what differences reach
                wide = range(max(rows.start - 1, 0), min(rows.stop + 1, n_rows))
                rho = self.density(wide)
            grad = np.zeros(rho.shape, dtype=np.float32)
            self.add_priors(grad, rho)
            inside = slice(rows.start - wide.start, rows.stop - wide.start)
            grad[:, :, : inside.start] = 0.0
            grad[:, :, inside.stop :] = 0.0
            by_ideal = np.ascontiguousarray(ideal[:, :, rows.start : rows.stop])
            grad[:, :, inside] += back_project(by_ideal, part_of(self.lattice, rows), fit.tilts)
            fit.field.backward_lattice(grad)
        if fit.options.priors.boundary and isinstance(fit.field, TensorField):
            self._add_boundary(fit.field)
        return None, total.fit_loss, total.held_loss

    def add_priors(self, grad: F32, rho: F32) -> None:
        """Add the gradient of the density's priors to ``grad``; Fourier priors see the view, slab by slab."""
        fit, priors, spacing = self.fit, self.fit.options.priors, self.lattice.spacing
        grad += np.float32(priors.sparsity * self.noise_of_sum)
        if priors.variation:
            slope: Any = total_variation(rho, 0.1 * fit.density_unit)[1]
            grad += np.float32(priors.variation * self.noise_of_voxel) * slope
        width = min(round(fit.shape[2] / spacing), rho.shape[1])
        first = (rho.shape[1] - width) // 2
        view = slice(first, first + width)
        seen = np.ascontiguousarray(rho[:, view])
        if priors.wedge:
            rounding = 0.1 * fit.density_unit
            slope = wedge_penalty(seen, spacing, fit.tilts, float(fit.shape[0]), rounding)[1]
            grad[:, view] += np.float32(priors.wedge * self.noise_of_voxel) * slope
        if priors.isotropic:
            grad[:, view] += np.float32(priors.isotropic * self.noise_of_voxel) * isotropic_prior(seen)[1]

    def _add_boundary(self, field: TensorField) -> None:
        """Add the gradient of differences across nodes' edges, as if there were a pair of points per voxel there."""
        fit = self.fit
        random = np.random.default_rng([fit.settings.seed, fit.done_scales, fit.done_steps])
        here, there = boundary_points(field, BOUNDARY_PAIRS, random)
        if len(here) == 0:
            return
        values = field.points(np.concatenate([here, there]), self.active)
        one, other = values[: len(here)], values[len(here) :]
        _, a, b = boundary_consistency(one, other, 0.1 * fit.density_unit)
        weight = np.float32(fit.options.priors.boundary * self.noise_of_voxel)
        field.backward_points(weight * np.concatenate([a, b]).astype(np.float32))


def part_of(lattice: Lattice, rows: range, columns: range | None = None) -> Lattice:
    """Rows y, and columns x if given, of a lattice."""
    columns = range(lattice.shape[1]) if columns is None else columns
    (z0, x0, y0), step = lattice.origin, lattice.spacing
    shape = lattice.shape[0], len(columns), len(rows)
    return Lattice(step, shape, (z0, x0 + columns.start * step, y0 + rows.start * step))


ROWS_AT_A_TIME = 32


@dataclass
class FieldReconstruction:
    """Fitted fields, one per initialisation, and the volume they stand for.

    Attributes:
        fits: what was fitted.
    """

    fits: list[FieldFit]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (nz, ny, nx)."""
        return self.fits[0].shape

    @property
    def held_out_loss(self) -> float:
        """Mean over the fits, each at its best."""
        return float(np.mean([fit.held_out_loss for fit in self.fits]))

    @property
    def losses(self) -> list[list[tuple[int, int, float, float]]]:
        """Of every fit and step: bin, step, loss of the fitted, loss of the held-out pixels."""
        return [fit.losses for fit in self.fits]

    def slabs(self) -> Iterator[tuple[range, F32, F32]]:
        """Rows of the volume ``[z, rows, x]``, units of the images per px of path: mean of the fits and their sd."""
        for parts in zip(*(fit.slabs(ROWS_AT_A_TIME) for fit in self.fits), strict=True):
            values = np.stack([slab for _, slab in parts])
            yield parts[0][0], values.mean(axis=0, dtype=np.float32), values.std(axis=0, dtype=np.float32)

    @property
    def volume(self) -> F32:
        """The whole volume ``[z, y, x]``."""
        return joined(((rows, mean) for rows, mean, _ in self.slabs()), self.shape)

    @property
    def uncertainty(self) -> F32:
        """Standard deviation over the fits ``[z, y, x]``; zero for a single one."""
        return joined(((rows, sd) for rows, _, sd in self.slabs()), self.shape)
