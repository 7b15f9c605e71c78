"""One scale of a field reconstruction: its data, lattice and memory, and the gradient that a step goes along.

Memory is bounded without seams. Rows y of a single-axis series are projected on their own, so a step first projects
the lattice slab by slab, turns the residuals of whole images into the gradient of their projections, and then takes
that back slab by slab into the one field: the sum is the gradient that the whole lattice would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.align.joint import DataTotal, Scale, Stage, scaled_data
from inrtomo.align.motion import BlockSums
from inrtomo.errors import InputError
from inrtomo.fields.tensor import TensorField, boundary_points
from inrtomo.losses import COUNT_KINDS, CountLoss
from inrtomo.priors import boundary_consistency, isotropic_prior, total_variation, wedge_penalty
from inrtomo.projection import Lattice, back_project, project

if TYPE_CHECKING:
    from inrtomo.reconstruct.field import FieldFit

F32 = NDArray[np.float32]
Array = NDArray[np.float64]

NETWORKS = ("mlp", "siren")
LARGEST_GAIN = 4.0  # of a tilt, and its inverse the smallest: more is no gain but a density that is not there yet
GAIN_FROM = 10  # steps before the tilts' gains are free: an empty density would drive them anywhere
BOUNDARY_PAIRS = 4096  # points on either side of the nodes' edges, drawn anew at every step
UNSEEN = -9.0  # an index outside every projection
FIELD_ARRAYS = 10  # of the size of the field: with gradient, moments, the best one, and what a checkpoint copies
BYTES_PER_VOXEL = 64.0  # of a slab during a step: density, gradients and the field's own arrays
NETWORK_BYTES_PER_VOXEL = 160.0
DATA_ARRAYS = 9  # of the size of all images: binned, fitted, held out, and where each is seen, with what they come from
BATCH_ARRAYS = 12  # of the size of one batch of images
BATCH_SHARE = 0.3  # of the memory that is left
FEWEST_ROWS, GOOD_ROWS = 4, 12  # of a slab


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
            other = scaled_data(recording.check, fit.weight, scale.bin, fit.held_blocks, fit.settings.device)
            ratio = other.noise_of_tilt / self.data.noise_of_tilt
            self.check = other.images * ratio[:, None, None].astype(np.float32)
            self.data.held = self.data.fit
        needs = Needs.of(fit, scale.bin, self.lattice, self.n_u, self.more_bytes())
        self.n_batch, self.slabs = needs.shared_out(fit, self.lattice.shape[2])
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

    def more_bytes(self) -> float:
        """What is held besides images, projections, slabs and the field."""
        return 0.0

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
        if self.fit.options.loss not in COUNT_KINDS:
            return super().loss(residuals, weight, part)
        return self.count_loss(part)(residuals, self.data.images[part], weight)

    def count_loss(self, part: slice) -> CountLoss:
        """The loss of some tilts' camera counts."""
        recording = self.fit.recording
        assert recording.background is not None and recording.gain is not None
        read = np.zeros(len(self.fit.tilts)) if recording.read is None else recording.read
        gain = recording.gain * self.data.noise_of_tilt
        return CountLoss(self.fit.options.loss, recording.background[part], gain[part], read[part])

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

    def loss_of_nothing(self) -> float:
        """The held-out loss without any density: what is left are the images' backgrounds."""
        total = DataTotal()
        for part in self.batches():
            nothing = np.zeros((part.stop - part.start, self.n_u, self.lattice.shape[2]), dtype=np.float32)
            self.data_term(nothing, part, total, False)
        return total.held_loss

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
        view = self.view
        seen = np.ascontiguousarray(rho[:, view])
        if priors.wedge:
            rounding = 0.1 * fit.density_unit
            slope = wedge_penalty(seen, spacing, fit.tilts, float(fit.shape[0]), rounding)[1]
            grad[:, view] += np.float32(priors.wedge * self.noise_of_voxel) * slope
        if priors.isotropic:
            grad[:, view] += np.float32(priors.isotropic * self.noise_of_voxel) * isotropic_prior(seen)[1]

    @property
    def view(self) -> slice:
        """The lattice's columns x that the images show, which are those of the output."""
        width = min(round(self.fit.shape[2] / self.lattice.spacing), self.lattice.shape[1])
        first = (self.lattice.shape[1] - width) // 2
        return slice(first, first + width)

    def boundary_pairs(self, field: TensorField) -> Array:
        """Points ``(2 n, 3)``, the one sides of nodes' edges and then the other, of this step; none without edges."""
        fit = self.fit
        random = np.random.default_rng([fit.settings.seed, fit.done_scales, fit.done_steps])
        return np.concatenate(boundary_points(field, BOUNDARY_PAIRS, random))

    def _add_boundary(self, field: TensorField) -> None:
        """Add the gradient of differences across nodes' edges, as if there were a pair of points per voxel there."""
        fit, pairs = self.fit, self.boundary_pairs(field)
        if len(pairs) == 0:
            return
        one, other = np.split(field.points(pairs, self.active), 2)
        _, a, b = boundary_consistency(one, other, 0.1 * fit.density_unit)
        weight = np.float32(fit.options.priors.boundary * self.noise_of_voxel)
        field.backward_points(weight * np.concatenate([a, b]).astype(np.float32))


@dataclass(frozen=True)
class Needs:
    """Bytes that a scale takes.

    Attributes:
        fixed: besides the field, slabs and batches.
        per_row: of a slab.
        per_tilt: of a batch.
    """

    fixed: float
    per_row: float
    per_tilt: float

    @classmethod
    def of(cls, fit: FieldFit, bin: int, lattice: Lattice, n_u: int, more_bytes: float = 0.0) -> Needs:
        """Of a scale with projections ``n_u`` wide.

        Args:
            more_bytes: held besides images, projections, slabs and the field.
        """
        n, ny, nx = fit.images.shape
        nz, width, rows = lattice.shape
        one_image = 4.0 * (ny // bin) * (nx // bin)
        per_voxel = NETWORK_BYTES_PER_VOXEL if fit.settings.field in NETWORKS else BYTES_PER_VOXEL
        return cls(
            n * (8.0 * ny * nx + DATA_ARRAYS * one_image + 4.0 * n_u * rows) + more_bytes,
            per_voxel * nz * width + 8.0 * n * n_u,
            BATCH_ARRAYS * one_image + 8.0 * n_u * rows,
        )

    def with_slabs_of(self, rows: int) -> float:
        """All of it, for slabs of so many rows and as large batches as go with them."""
        return self.fixed + max(self.per_tilt / BATCH_SHARE, rows * self.per_row / (1 - BATCH_SHARE))

    def shared_out(self, fit: FieldFit, rows: int) -> tuple[int, list[range]]:
        """How many tilts make a batch, and which of all rows a slab, within the fit's memory.

        Raises:
            InputError: it is too little for one tilt and `FEWEST_ROWS`.
        """
        field_bytes = FIELD_ARRAYS * fit.field.grad.nbytes
        left = fit.options.memory_bytes - self.fixed - field_bytes
        n_batch, n_rows = int(BATCH_SHARE * left / self.per_tilt), int((1 - BATCH_SHARE) * left / self.per_row)
        if n_batch < 1 or n_rows < FEWEST_ROWS:
            needed = (self.with_slabs_of(FEWEST_ROWS) + field_bytes) / 2**30
            raise InputError(
                f"--memory {fit.options.memory_bytes / 2**30:.3g}G: too little for this field, which needs "
                f"{needed + 0.05:.1f}G; give that, or bin more"
            )
        edges = np.linspace(0, rows, -(-rows // n_rows) + 1).round().astype(int)
        return min(n_batch, len(fit.tilts)), [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def parameters_beside(self, memory_bytes: float) -> int:
        """How many parameters of the field leave room for slabs that are worth their overhead."""
        return int((memory_bytes - self.with_slabs_of(GOOD_ROWS)) / (4 * FIELD_ARRAYS))


def part_of(lattice: Lattice, rows: range, columns: range | None = None) -> Lattice:
    """Rows y, and columns x if given, of a lattice."""
    columns = range(lattice.shape[1]) if columns is None else columns
    (z0, x0, y0), step = lattice.origin, lattice.spacing
    shape = lattice.shape[0], len(columns), len(rows)
    return Lattice(step, shape, (z0, x0 + columns.start * step, y0 + rows.start * step))
