"""A density field fitted to a tilt series whose alignment is known: the joint fit with the motion held still.

Coarse to fine, down to the output voxel. Rays follow the alignment's full map (`Rays`), so noise is never
interpolated; the density is never negative; every tilt has a free gain and a free smooth background. Pixels in
held-out blocks are never fitted, and the parameters that predict them best are kept: later steps fit noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.checkpoint import Checkpoint, Interrupts, Stopped
from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.fields import Adam, DensityField, field_of, make_field
from inrtomo.fields.tensor import TensorField, adapted
from inrtomo.losses import COUNT_KINDS
from inrtomo.priors import (
    BOUNDARY_WEIGHT,
    ISOTROPIC_WEIGHT,
    WEDGE_WEIGHT,
)
from inrtomo.projection import Lattice
from inrtomo.reconstruct.ctf_correction import TiltedView
from inrtomo.reconstruct.field_stage import FieldStage, Needs, part_of
from inrtomo.reconstruct.rays import Rays, common_x_tilt, level_volume
from inrtomo.reconstruct.slabs import Slab, joined, ranges

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

FIELDS = ("hash", "mlp", "siren", "tensor", "voxel")
STEPS = {8: 60, 4: 60, 2: 50, 1: 100}  # at bins; the last is where held-out pixels end it in most cases
LEAST_SIZE = 12  # binned px of the coarsest scale: below this there is little to see
OUTSIDE_LEVELS = 2  # of the finest that material beyond the view does without
COARSEST_PX = 64  # spacing of the field's first level
RATES = (1.0, 0.3, 0.1)  # of the last scale, each from the best of the one before: noise wants slow steps
PATIENCE = (12, 6, 6)  # steps at each without a lower held-out loss; at first a new scale fits noise, then finds more
SLAB_MARGIN = 0.08  # of the thickness, above and below what is written: the specimen may reach beyond it
LEAST_MARGIN = 4
LEAST_GAIN = 1e-4  # of the held-out loss by a density that shows anything: at -20 dB it is some 5e-3
SPLINE_MARGIN = 8  # rows around a piece of an x-tilted volume, for its cubic interpolation


@dataclass(frozen=True)
class Priors:
    """Weights of what is likely before any image is seen; the density is never negative whatever they are.

    All but the last are in units of the noise that the gradient of a voxel receives from all tilts, so that one
    weight serves every series. Half the sparsity would gain 0.003 of correlation at -10 dB and above (1 dB of PSNR on
    the noisiest shells), and lose 0.004 with the hash field, 0.04 with the tensor field, at -20 dB.

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
        shared: other processes take part (`inrtomo.gpu.share.followers`).
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
    shared: bool = False

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
    def view(self, tilt: int) -> TiltedView: ...


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
        lowest: their loss.
        rate: index into `RATES`.
        since: steps without better ones.
        waiting: parameters before the steps whose losses are not known yet: a device tells them a step late.
        judged: how many of the fit's losses are.
    """

    best: Any
    lowest: float
    rate: int = 0
    since: int = 0
    waiting: list[Any] = dataclass_field(default_factory=list)
    judged: int = 0

    @property
    def is_over(self) -> bool:
        """Whether a rate has brought nothing for long enough."""
        return self.since >= PATIENCE[self.rate]

    def judge(self, losses: Sequence[tuple[int, int, float, float]]) -> None:
        """Compare the parameters whose losses are known by now with the best, up to where the rate is over."""
        while self.waiting and self.judged < len(losses) and not self.is_over:
            before, held = self.waiting.pop(0), losses[self.judged][3]
            self.judged += 1
            self.since += 1
            if held < self.lowest:
                self.lowest, self.best, self.since = held, before, 0

    def slow_down(self, losses: Sequence[tuple[int, int, float, float]]) -> None:
        """Begin the next rate; steps that were done since the last was over count for nothing."""
        self.rate, self.since, self.waiting, self.judged = self.rate + 1, 0, [], len(losses)


class FieldFit(JointFit):
    """A `JointFit` along `Rays` whose steps take the lattice slab by slab; arguments as of `reconstruct_field`.

    Attributes:
        shape: voxels (nz, ny, nx) of the output.
        needs: bytes that the last scale takes.
        held_out_loss: the lowest of the last scale, that of the parameters that were kept.
        loss_of_nothing: what it would be without any density; both once the fit is done.
        search: what leads there, while the last scale is at work.
        stage_now: the scale at work, until the fit is done; then
        caps, active: the levels in use (see `DensityField.lattice`).
    """

    stage_now: FieldStage
    caps: NDArray[np.int64]
    active: float
    loss_of_nothing: float

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
        self.alignment, self.options, self.number, self.recording = alignment, settings, number, recording
        nx, ny = alignment.aligned_size
        nz = max(1, round(thickness_px))
        self.shape = nz, ny, nx
        self.slab_px = nz + 2 * max(LEAST_MARGIN, round(SLAB_MARGIN * nz))
        self._lattices: dict[int, Lattice] = {}
        self._widths: dict[int, int] = {}
        self.held_out_loss = np.inf
        self.search: Search | None = None
        joint = settings.joint((nx, ny), number)
        if recording.check is not None:
            joint = replace(joint, held_out=0.0)
        super().__init__(images, weight, alignment, self.slab_px, joint)
        finest = joint.schedule[-1].bin
        self.needs = Needs.of(self, finest, self.lattice(finest), self._widths[finest])
        self.needs.shared_out(self, self.lattice(finest).shape[2])  # too little is to be said now, not hours later

    def rays(self, bin: int) -> Rays:
        """The geometry of a scale."""
        rays = Rays(self.alignment, self.alignment.image_size, bin, self.slab_px, device=self.options.device)
        self._lattices[bin], self._widths[bin] = rays.lattice, rays.n_u
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
        if self.options.shared:
            from inrtomo.gpu.share import announce

            given = self.images, self.weight, self.alignment, float(self.shape[0])
            named = {"number": self.number, "recording": self.recording}
            announce(self, type(self).optimise, self.options, *given, **named)
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
        self.loss_of_nothing = self.stage_now.loss_of_nothing()
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
        search = self.search = self.search or Search(stage.snapshot(), self.held_out_loss)
        search.best, search.judged = stage.taken_up(search.best), len(self.losses)
        while True:
            if search.is_over:
                stage.restore(search.best)
                search.slow_down(self.losses)
            if search.rate == len(RATES) or self.done_steps == stage.scale.steps:
                break
            stage.pace = RATES[search.rate]
            search.waiting.append(stage.snapshot())
            stage.step(self.done_steps)
            self.done_steps += 1
            search.judge(self.losses)
            yield self.losses[-1][3]
        stage.restore(search.best)
        self.held_out_loss = search.lowest

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """As of `JointFit`, with the search of the last scale; of a finished fit what its volume is made from."""
        state: dict[str, NDArray[Any]]
        at_work = hasattr(self, "stage_now")
        if self.done_scales < len(self.settings.schedule):
            if at_work:
                self.stage_now.read()
            state = super().state_dict()
        else:
            state = {f"field.{k}": v for k, v in self.field.state_dict().items()}
            state |= self.progress()
        held_out_loss = self.held_out_loss
        if self.search is not None:
            # what has been read just now; the search itself waits, as it does in processes that are not asked this
            known = replace(self.search, waiting=[*self.search.waiting])
            known.judge(self.losses)
            state["best"] = self.stage_now.laid_down(known.best) if at_work else known.best
            state["search"] = np.array([known.rate, known.since])
            held_out_loss = known.lowest
        return state | {"held_out_loss": np.array(held_out_loss)}

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
            rate, since = map(int, state["search"])
            self.search = Search(state["best"], self.held_out_loss, rate, since)

    def _adapt(self) -> None:
        """A tensor field goes on with nodes where the density of the last scale has something to show.

        As many as split enough, or as the memory of the finest scale has room for.
        """
        if isinstance(self.field, TensorField):
            stage, tree = self.stage_now, self.field.grid.tree
            density = np.concatenate([stage.density(rows) for rows in stage.slabs], axis=2)
            room = self.needs.parameters_beside(self.options.memory_bytes) // self.field.grid.largest_node
            budget = min(tree.owner.size, max(room, len(tree.leaves)))
            self._use(adapted(self.field, stage.lattice, density, budget, level_cap=stage.caps))

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
            level = level_volume(density, part, x_tilt_deg, self.shape, lattice.spacing, rows, self.options.device)
            yield rows, level * np.float32(self.unit)


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
    def loss_of_nothing(self) -> float:
        """The held-out loss without any density, mean over the fits."""
        return float(np.mean([fit.loss_of_nothing for fit in self.fits]))

    @property
    def is_blank(self) -> bool:
        """Whether held-out pixels are predicted no better than without any density (False where none are held out)."""
        return np.isfinite(self.held_out_loss) and self.held_out_loss > (1 - LEAST_GAIN) * self.loss_of_nothing

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
