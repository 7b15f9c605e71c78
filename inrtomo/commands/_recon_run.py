"""The work of ``inr-recon``: from its options to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo.align.checkpoint import Checkpoint, Fingerprint, Interrupts, check_unfinished
from inrtomo.align.prepare import PrepareSettings, find_defocus
from inrtomo.alignment import Alignment
from inrtomo.commands._common import Progress
from inrtomo.commands._tomogram_run import TOMOGRAM_SHARE, TomogramRun, polarity_of
from inrtomo.commands.recon import MAY_DIFFER, Options
from inrtomo.ctf import Defoci
from inrtomo.device import choose_several
from inrtomo.errors import InputError
from inrtomo.io.alignment_json import alignment_from_dict, alignment_to_dict
from inrtomo.io.mrc import open_stack, zero_of_mask
from inrtomo.losses import COUNT_KINDS, read_noise
from inrtomo.reconstruct.ctf_correction import CtfOperator, ctf_corrected
from inrtomo.reconstruct.fbp import ROWS_AT_A_TIME, FbpSettings, filtered_lines
from inrtomo.reconstruct.field import USUAL_WEIGHTS, FieldFit, FieldSettings, Priors, Recording, reconstruct_field
from inrtomo.reconstruct.filters import RadialFilter
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.live import LiveView
from inrtomo.reconstruct.prepared import PreparedTilts, other_images, prepared_tilts, refined
from inrtomo.reconstruct.sart_tv import SartTvSettings, sart_tv_slabs
from inrtomo.reconstruct.sirt import SirtSettings, sirt_slabs
from inrtomo.reconstruct.slabs import Slab, ranges
from inrtomo.reconstruct.tomogram import Tomogram, tomogram

BOUNDED_LOSSES, BOUNDED_SHARE = ("l1", "huber"), 0.25
"""Data terms whose pull is bounded, and their part of the usual weights: with all of it l1 leaves no density."""
SWEEPS_SHARE = 0.55  # of the memory, for iterations: images and tomogram are held beside them
_FILTER, _FIELD, _SIRT, _SART = RadialFilter(), FieldSettings(), SirtSettings(), SartTvSettings()


class Run(TomogramRun[Options]):
    """One run of the command."""

    program = "inr-recon"

    def __init__(self, options: Options) -> None:
        o = options
        self.radial = _filter(o.filter_name, o.radial, o.iterations)
        self.priors = _priors(o.prior, o.field_kind, o.loss)
        check_unfinished(o.checkpoint, o.resume, o.overwrite)
        device, *others = choose_several(o.device)
        self.others = tuple(other.name for other in others)
        super().__init__(o, [device, *others], *([] if o.support is None else [o.support]))
        self.check_subsets()
        self.support = None if o.support is None else _support(o.support, o.orientation, self.shape)
        self.polarity = 0  # iterative methods find it in what they prepare; halves are to agree on it
        if (o.contrast == "positive" and o.method == "fbp") or (o.with_halves and o.method != "fbp"):
            self.polarity = polarity_of(self.given, self.device.name)
        self.sign = -1 if o.contrast == "positive" and self.polarity < 0 else 1
        self.interrupts = Interrupts()
        self.kept = Checkpoint(None, {}) if o.method != "field" else self.checkpoint()

    def new_files(self) -> list[Path]:
        o = self.o
        return [o.output] if o.goes_on else o.outputs

    def check_subsets(self) -> None:
        """Refuse (InputError) more subsets than the tomogram with the fewest tilts has tilts."""
        series, n_tilts = self.given.series, len(self.given.alignment.included)
        of_tilts = self.o.with_halves and (series.odd is None or series.even is None)
        if self.o.subsets > (fewest := n_tilts // 2 if of_tilts else n_tilts):
            half = " of a half" if of_tilts else ""
            raise InputError(f"--subsets {self.o.subsets}: there are {fewest} tilts{half} to share; give fewer")

    def checkpoint(self) -> Checkpoint:
        """The state of this run before it was interrupted, or an empty one.

        Raises:
            InputError: it is of another run.
        """
        o, given = self.o, self.given
        identity = {name: str(value) for name, value in asdict(o).items() if name not in MAY_DIFFER}
        seen = Fingerprint((given.series.n_tilts, *given.series.size[::-1]), given.alignment.tilt_deg)
        for tilt in range(given.series.n_tilts):
            seen.add(given.series.image(tilt))
        identity["input"] = seen.text
        identity["alignment"] = json.dumps(alignment_to_dict(given.alignment))
        if not o.goes_on:
            o.checkpoint.unlink(missing_ok=True)
            return Checkpoint(o.checkpoint, identity)
        kept = Checkpoint.resume(o.checkpoint, identity)
        for path in o.outputs:
            if path != o.output and path not in map(self.path_of, kept.stages.get("made", {})):
                path.unlink(missing_ok=True)  # written just before the end came
        return kept

    def rows(self) -> list[tuple[str, object, str]]:
        o, rows = self.o, list[tuple[str, object, str]]()
        if self.polarity and o.contrast == "positive":
            rows.append(("contrast", "turned" if self.polarity < 0 else "kept", "protein bright in the tomogram"))
        if self.others:
            idle = f"idle: --method {o.method} computes on {self.device.name}"
            rows.append(("more devices", ", ".join(self.others), "share the fits" if o.method == "field" else idle))
        if self.support is not None:
            rows.append(("support", f"{self.support.mean():.0%} of the voxels, those above 0", str(o.support)))
        if o.method == "fbp":
            rows.append(("filter", o.filter_name, "default" if o.filter_name == _FILTER.name else "--filter"))
        return rows

    def task(self, source: Source) -> str:
        return f"{self.o.method} {source.name}".strip()

    @property
    def made_by(self) -> str:
        o = self.o
        iterations = o.iterations or (_SART if o.method == "sart-tv" else _SIRT).iterations
        how = {"fbp": o.filter_name, "field": o.field_kind}.get(o.method, f"{iterations} iterations")
        return f"{o.method}, {how}"

    def own_record(self) -> dict[str, Any]:
        return {"priors": asdict(self.priors)} if self.o.method == "field" else {}

    def run(self) -> None:
        """As of `TomogramRun`; Ctrl-C leaves what --resume goes on from."""
        o = self.o
        try:
            with self.followers():
                super().run()
        except KeyboardInterrupt:
            if o.checkpoint.exists():
                click.echo(f"{o.checkpoint} holds the run so far; --resume goes on with it", err=True)
            raise
        o.checkpoint.unlink(missing_ok=True)

    def followers(self) -> AbstractContextManager[None]:
        """Processes on the other GPUs, which take part in fits."""
        if not self.others or self.o.method != "field":
            return nullcontext()
        from inrtomo.gpu.share import followers

        return followers((self.device.name, *self.others))

    def make(self, source: Source) -> None:
        """One tomogram, unless an interrupted run has made it."""
        made = self.kept.stages.setdefault("made", {})
        if source.name in made:
            self.record[source.name] = made[source.name]
            click.echo(f"{self.path_of(source.name)}: made before")
            return
        super().make(source)
        if source.name:
            made[source.name] = self.record[source.name]
            self.kept.save()

    def fill(self, source: Source, volume: Tomogram, progress: Progress, facts: dict[str, Any]) -> Alignment:
        """By the method of choice."""
        if self.o.method == "fbp":
            volume.take(self.fbp(source, progress))
            return source.alignment
        return self.iterated(source, volume, progress, facts)

    # --- methods ---------------------------------------------------------------------------------------------------

    def reader(self, source: Source) -> Source:
        """The source with the CTF undone in its images, where that is not a part of the fit."""
        o, defoci = self.o, self.defoci
        if defoci is None or o.method == "field":
            return source
        alignment = source.alignment
        image = ctf_corrected(source.image, alignment, defoci, o.ctf_mode, o.voltage, device=self.device.name)
        return replace(source, image=image)

    def fbp(self, source: Source, progress: Progress) -> Iterator[Slab]:
        """Weighted back-projection, row by row."""
        o, source = self.o, self.reader(source)
        settings = FbpSettings(self.thickness_px, self.radial, o.binning, int(self.memory / 2), self.device.name)
        image = source.image

        def turned(tilt: int) -> NDArray[Any]:
            return image(tilt) if self.sign > 0 else -image(tilt)

        nz, ny, _ = self.shape
        folder = o.output.parent
        with filtered_lines(turned, source.alignment, settings, folder, lambda d: progress(0.5 * d)) as lines:
            for rows in ranges(0, ny, ROWS_AT_A_TIME):
                yield rows, lines.back_project(range(nz), rows).transpose(0, 2, 1)
                progress(0.5 + 0.5 * rows.stop / ny)

    def iterated(self, source: Source, volume: Tomogram, progress: Progress, facts: dict[str, Any]) -> Alignment:
        """SIRT, SART with total variation, or a field; returns the alignment in use, excluded tilts in it."""
        o, field = self.o, self.o.method == "field"
        # what --ctf does not ask for is not undone: images may have been corrected before
        settings = PrepareSettings(polarity=self.polarity, restore=False, voltage_kV=o.voltage)
        tilts = prepared_tilts(self.reader(source), o.binning, settings, o.mask_gold, self.device.name)
        facts["prepared"] = tilts.prepared.notes
        for note in tilts.prepared.notes:
            click.echo(f"note: {note}")
        factor = np.float32(abs(tilts.unit) if o.contrast == "positive" else tilts.unit)
        if field:
            slabs = self.field(source, tilts, settings, progress, facts, float(factor))
        else:
            slabs = self.sweeps(tilts, progress)
        volume.take((rows, slab * factor) for rows, slab in slabs)
        return replace(source.alignment, excluded=dict(tilts.prepared.excluded))

    def sweeps(self, tilts: PreparedTilts, progress: Progress) -> Iterator[Slab]:
        """SIRT or SART, in slabs."""
        o, data = self.o, (tilts.images, tilts.weight, tilts.alignment, float(self.shape[0]))
        memory = SWEEPS_SHARE * self.device_memory
        if o.method == "sart-tv":
            iterations = o.iterations or _SART.iterations
            sart = SartTvSettings(iterations, nonnegative=o.nonnegative, memory_bytes=memory, device=self.device.name)
            return sart_tv_slabs(*data, sart, progress)
        sirt = SirtSettings(
            o.iterations or _SIRT.iterations, o.subsets, o.nonnegative, self.support,
            memory_bytes=memory, device=self.device.name,
        )  # fmt: skip
        return sirt_slabs(*data, sirt, progress)

    def field(
        self,
        source: Source,
        tilts: PreparedTilts,
        prepare_settings: PrepareSettings,
        progress: Progress,
        facts: dict[str, Any],
        factor: float,
    ) -> Iterator[Slab]:
        """A fitted density, in slabs; its uncertainty goes to a file of its own."""
        o = self.o
        height = float(self.shape[0])
        settings = FieldSettings(
            o.field_kind, o.loss, self.priors, average=o.average, memory_bytes=self.device_memory, seed=o.seed,
            device=self.device.name, shared=bool(self.others),
        )  # fmt: skip
        if o.loss in COUNT_KINDS and (self.defoci is not None or not tilts.prepared.counts):
            why = "it does not go with --ctf" if self.defoci is not None else "these images are not camera counts"
            raise InputError(f"--loss {o.loss}: {why}; use l2 or huber")
        self.tell_of_phase_contrast(tilts, prepare_settings)
        if o.refine:
            tilts = self.refined(source, tilts, height, progress, facts)
        first = 0.3 if o.refine else 0.0
        live = LiveView(o.beside("_live.png"), self.voxel_A, o.output.name)

        def on_step(fit: FieldFit, fraction: float) -> None:
            bin_, _, loss, held = fit.losses[-1]
            progress(first + (1 - first) * fraction, scale=f"bin {bin_ * o.binning}", loss=loss, held_out=held)
            live(fit)

        check = other_images(source, tilts, prepare_settings, self.device.name)
        recording = self.recording(tilts, check)
        data = tilts.images, tilts.weight, tilts.alignment, height
        with self.interrupts.held_back() as interrupts:
            found = reconstruct_field(*data, settings, on_step, recording, self.kept, interrupts)
        if found.is_blank:
            for path in (o.checkpoint, o.beside("_live.png")):  # there is nothing to go on from, nor to be in the way
                path.unlink(missing_ok=True)
            raise InputError(
                f"{o.stack}: no density was found that predicts pixels kept apart any better than an empty tomogram "
                f"(held-out loss {found.held_out_loss:.6g}, of nothing {found.loss_of_nothing:.6g}); try --field hash, "
                "weaker priors, or a larger --bin, and look whether the alignment is right"
            )
        facts |= {
            "held_out_loss": found.held_out_loss,
            "held_out_loss_of_nothing": found.loss_of_nothing,
            "losses": [[list(row) for row in losses] for losses in found.losses],
            "gain": found.fits[0].gain.tolist(),
            "field_parameters": int(found.fits[0].field.parameters().size),
        }
        if o.average > 1 and not source.name:
            with tomogram(self.shape, o.output.parent, TOMOGRAM_SHARE * self.memory) as spread:
                spread.take((rows, sd * np.float32(abs(factor))) for rows, _, sd in found.slabs())
                label = f"inr-recon: standard deviation of {o.average} fits"
                spread.write(o.beside("_sd"), o.orientation, self.voxel_A, o.overwrite, label)
            click.echo(f"wrote {o.beside('_sd')} (standard deviation over {o.average} fits)")
        return ((rows, mean) for rows, mean, _ in found.slabs())

    def refined(
        self, source: Source, tilts: PreparedTilts, height: float, progress: Progress, facts: dict[str, Any]
    ) -> PreparedTilts:
        """The tilts with their alignment polished, or as it was where held-out pixels prefer that."""
        o = self.o
        polished = self.kept.stages.setdefault("polished", {})
        if source.name not in polished:

            def polishing(fraction: float, bin_: int, loss: float) -> None:
                progress(0.3 * fraction, scale=f"refining, bin {bin_ * o.binning}", loss=loss)

            alignment, reason = refined(
                tilts, height, self.device_memory, o.seed, polishing, self.device.name, bool(self.others)
            )
            polished[source.name] = alignment_to_dict(alignment), reason
            self.kept.save()
        values, facts["refined"] = polished[source.name]
        click.echo(f"note: refine: {facts['refined']}")
        return replace(tilts, alignment=alignment_from_dict(values))

    def tell_of_phase_contrast(self, tilts: PreparedTilts, settings: PrepareSettings) -> None:
        """Say so where the images show a transfer function that nobody spoke of."""
        pixel = tilts.alignment.pixel_size_A
        if self.defoci is None and pixel is not None:
            defocus = find_defocus(tilts.images, pixel, settings)
            if defocus is not None:
                about = f"{defocus / 1e4:.1f}"
                click.echo(
                    f"note: the images look like phase contrast, about {about} um under focus; unless that was "
                    f"corrected before, --ctf {about} (better: a file of CTFFIND) takes it into the fit"
                )

    def recording(self, tilts: PreparedTilts, check: NDArray[np.float32] | None) -> Recording:
        """What the fit makes use of besides the images: CTF, counts, the other frames."""
        o, found = self.o, tilts.prepared
        transfer: partial[CtfOperator] | None = None
        if self.defoci is not None:  # no function of its own, so that it can be sent to other processes
            transfer = partial(CtfOperator, tilts.alignment, _of_tilts(self.defoci, tilts.used), voltage_kV=o.voltage)
        if o.loss not in COUNT_KINDS:
            return Recording(transfer, check=check)
        background, gain = found.background[tilts.used], found.gain[tilts.used]
        variance = (found.noise_sd[tilts.used] * gain) ** 2
        read, _ = read_noise(variance, background)
        return Recording(transfer, background, gain, np.clip(read / variance, 0.0, 1.0), check)


# --- options -------------------------------------------------------------------------------------------------------


def _filter(name: str, radial: tuple[float, float] | None, iterations: int | None) -> RadialFilter:
    count = iterations or _FILTER.iterations
    if radial is None:
        return RadialFilter(name, iterations=count)
    cutoff, falloff = radial
    if not (0 < cutoff <= 0.5 and falloff > 0):
        raise InputError(
            f"--radial {cutoff:g} {falloff:g}: the cutoff is in cycles per pixel, up to 0.5, the falloff positive; "
            "IMOD's usual values are 0.35 0.035"
        )
    return RadialFilter(name, cutoff, falloff, count)


def _priors(text: str | None, field_kind: str, loss: str) -> Priors:
    """``variation,wedge=0.2`` -> weights; what is not named has none."""
    if text is None:
        share = BOUNDED_SHARE if loss in BOUNDED_LOSSES else 1.0
        return Priors(**{name: share * weight for name, weight in asdict(_FIELD.priors).items()})
    names = [f.name for f in fields(Priors)]
    weights = dict.fromkeys(names, 0.0)
    for part in text.replace(" ", "").split(","):
        name, given, value = part.partition("=")
        if name == "nonnegative":
            continue
        if name not in weights:
            raise InputError(f"--prior {part}: no such prior; there are nonnegative, {', '.join(names)}")
        try:
            weights[name] = float(value) if given else getattr(USUAL_WEIGHTS, name)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < np.inf:
            raise InputError(f"--prior {part}: the weight must be a number, 0 or more")
    if weights["boundary"] and field_kind != "tensor":
        raise InputError("--prior boundary: only --field tensor has nodes with boundaries")
    return Priors(**weights)


def _support(path: Path, orientation: str, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Where a mask in the orientation of the tomogram is above 0, ``[z, y, x]``.

    Raises:
        InputError: it is of another size, or nothing of it is above 0.
    """
    stack = open_stack(path)
    nz, ny, nx = shape
    expected = (ny, nz, nx) if orientation == "imod" else shape
    if stack.shape != expected:
        found, wanted = (" x ".join(str(n) for n in reversed(sides)) for sides in (stack.shape, expected))
        raise InputError(f"{path}: is {found} voxels, the tomogram {wanted}; make the mask from such a tomogram")
    zero = zero_of_mask(stack)
    inside = np.empty(stack.shape, dtype=np.bool_)
    for section in range(len(stack)):
        values = stack.image(section)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: has voxels that are no number (NaN or infinite); write it again without them")
        inside[section] = values > zero
    if not inside.any():
        raise InputError(f"{path}: is nowhere above 0, so there would be no density at all; give another mask")
    return inside if orientation == "xyz" else inside.transpose(1, 0, 2)[::-1]


def _of_tilts(defoci: Defoci, tilts: NDArray[np.int64]) -> Defoci:
    """The defoci of some images."""
    return Defoci(
        defoci.defocus_A[tilts],
        defoci.astigmatism_A[tilts],
        defoci.astigmatism_deg[tilts],
        defoci.phase_shift_deg[tilts],
        defoci.hand,
    )
