"""The work of ``inr-recon``: from its options to files."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from inrtomo import __version__
from inrtomo.align.pipeline import peak_memory_bytes
from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.alignment import Alignment
from inrtomo.commands._aligned_stack import AlignedStack, check_outputs, read_aligned_stack, thickness_beside
from inrtomo.commands._common import Progress, echo_defaults
from inrtomo.commands.recon import DEFAULT_THICKNESS_NM, Options
from inrtomo.ctf import Defoci
from inrtomo.device import choose, peak_device_bytes
from inrtomo.errors import InputError
from inrtomo.io.ctf import read_ctf
from inrtomo.io.files import write_text
from inrtomo.losses import COUNT_KINDS, read_noise
from inrtomo.reconstruct.ctf_correction import CtfOperator, ctf_corrected
from inrtomo.reconstruct.fbp import ROWS_AT_A_TIME, FbpSettings, filtered_lines
from inrtomo.reconstruct.field import USUAL_WEIGHTS, FieldFit, FieldSettings, Priors, Recording, reconstruct_field
from inrtomo.reconstruct.filters import RadialFilter
from inrtomo.reconstruct.halves import Source, halves
from inrtomo.reconstruct.live import LiveView
from inrtomo.reconstruct.prepared import PreparedTilts, other_images, prepared_tilts, refined
from inrtomo.reconstruct.sart_tv import SartTvSettings, sart_tv_slabs
from inrtomo.reconstruct.sirt import SirtSettings, sirt_slabs
from inrtomo.reconstruct.slabs import Slab, ranges
from inrtomo.reconstruct.tomogram import Tomogram, tomogram
from inrtomo.reconstruct.wedge import energy_in_wedge, measured_only
from inrtomo.report.figures import slices

TOMOGRAM_SHARE = 0.25  # of the memory: a larger tomogram waits in a scratch file for what concerns all of it
POLARITY_SIZE = 512  # px: enough of an image to see whether protein is bright
_FILTER, _FIELD, _SIRT, _SART = RadialFilter(), FieldSettings(), SirtSettings(), SartTvSettings()


class Run:
    """One run of the command: what it is given, then every tomogram in turn."""

    def __init__(self, options: Options) -> None:
        self.o = o = options
        self.radial = _filter(o.filter_name, o.radial, o.iterations)
        self.priors = _priors(o.prior, o.field_kind)
        check_outputs(o.outputs, o.overwrite, o.stack, o.alignment)
        self.given = given = read_aligned_stack(o.stack, o.alignment, o.pixel_size, o.exclude)
        thickness_nm = _thickness(o.thickness, o.alignment, given)
        self.thickness_px = max(o.binning, round(thickness_nm * 10 / given.pixel_size_A))
        if len(np.unique(np.round(given.alignment.tilt_deg[given.alignment.included], 3))) < 2:
            raise InputError(f"{o.stack}: fewer than two different tilt angles are left; a reconstruction needs more")
        nx, ny = (n // o.binning for n in given.alignment.image_size)
        if min(nx, ny) < 1:
            raise InputError(f"--bin {o.binning}: nothing is left of images of {nx} x {ny}")
        self.shape = max(1, round(self.thickness_px / o.binning)), ny, nx
        self.voxel_A = given.pixel_size_A * o.binning
        self.defoci = _defoci(o.ctf, given)
        self.device = choose(o.device, _only_cpu(o, self.priors))
        given.sources.append(("device", self.device.sentence, ""))
        self.record: dict[str, Any] = {}
        self.started = time.monotonic()

    def run(self) -> None:
        """Everything, the tomogram of all data last, so that it is there only when all is."""
        o, given = self.o, self.given
        self.polarity = 0  # iterative methods find it in what they prepare; halves are to agree on it
        if (o.contrast == "positive" and o.method == "fbp") or (o.with_halves and o.method != "fbp"):
            self.polarity = _polarity(given)
        self.sign = -1 if o.contrast == "positive" and self.polarity < 0 else 1
        tilts = np.sort(given.alignment.tilt_deg[given.alignment.included])
        given.sources.append(("tilt range", f"{tilts[0]:.2f} to {tilts[-1]:.2f}°, {len(tilts)} tilts", "used"))
        if self.polarity and o.contrast == "positive":
            turned = "turned" if self.polarity < 0 else "kept"
            given.sources.append(("contrast", turned, "protein bright in the tomogram"))
        if o.method == "fbp":
            given.sources.append(("filter", o.filter_name, "default" if o.filter_name == _FILTER.name else "--filter"))
        sources = []
        if o.with_halves:
            first, second, what = halves(given.series, given.alignment)
            sources = [first, second]
            given.sources.append(("halves", what, "--halves"))
            self.record["halves"] = what
        echo_defaults(given.sources)
        self.record["tilt_range_deg"] = [float(tilts[0]), float(tilts[-1])]
        for source in (*sources, Source("", given.series.image, given.alignment)):
            with tomogram(self.shape, o.output.parent, TOMOGRAM_SHARE * o.memory) as volume:
                self.make(source, volume)

    def make(self, source: Source, volume: Tomogram) -> None:
        """One tomogram: its rows, what concerns all of it, and its files."""
        o, kind = self.o, self.o.field_kind if self.o.method == "field" else self.o.filter_name
        facts: dict[str, Any] = {}
        used = source.alignment
        task = f"{o.method} {source.name}".strip()
        with Progress(task) as progress:
            if o.method == "fbp":
                volume.take(self.fbp(source, progress))
            else:
                used = self.iterated(source, volume, progress, facts)
        tilts, x_tilt = used.tilt_deg[used.included], float(np.median(used.x_tilt_deg[used.included]))
        where = tilts, o.binning, self.thickness_px, x_tilt
        if o.only_measured:
            measured_only(volume.volume, *where, overwrite=True)
        facts["wedge_energy"] = energy_in_wedge(volume.volume, *where)
        if o.normalize:
            facts["mean_and_sd_before"] = list(volume.normalise())
        facts["tilts_used"] = used.included.tolist()
        self.record[source.name or "all"] = facts
        path = o.beside(f"_{source.name}") if source.name else o.output
        if not source.name:
            picture = o.beside("_live.png")
            slices(volume.volume, picture, f"{o.output.name}: {task}", self.voxel_A)
            self.write_record()
        label = f"inr-recon: {task}, {kind}, {o.orientation}"
        sections, rows, columns = volume.write(path, o.orientation, self.voxel_A, o.overwrite, label)
        click.echo(f"wrote {path} ({columns} x {rows} x {sections}, {self.voxel_A:.4g} Å/voxel, {o.orientation})")
        click.echo(f"{100 * facts['wedge_energy']:.1f} % of its variance lies in the missing wedge")
        if not source.name:
            click.echo(f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB")
            if self.device.is_gpu:
                peak = peak_device_bytes(self.device.name)
                click.echo(f"peak memory of {self.device.name} {peak / 2**30:.2f} GiB")

    # --- methods ---------------------------------------------------------------------------------------------------

    def reader(self, source: Source) -> Source:
        """The source with the CTF undone in its images, where that is not a part of the fit."""
        o, defoci = self.o, self.defoci
        if defoci is None or o.method == "field":
            return source
        alignment = source.alignment
        image = ctf_corrected(source.image, alignment, defoci, o.ctf_mode, o.voltage)
        return replace(source, image=image)

    def fbp(self, source: Source, progress: Progress) -> Iterator[Slab]:
        """Weighted back-projection, row by row."""
        o, source = self.o, self.reader(source)
        settings = FbpSettings(self.thickness_px, self.radial, o.binning, int(o.memory / 2), self.device.name)
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
        settings = PrepareSettings(
            polarity=self.polarity, restore=None if field and self.defoci is None else False, voltage_kV=o.voltage
        )
        tilts = prepared_tilts(self.reader(source), o.binning, settings, o.mask_gold)
        facts["prepared"] = tilts.prepared.notes
        for note in tilts.prepared.notes:
            click.echo(f"note  {note}")
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
        memory = 0.75 * o.memory
        if o.method == "sart-tv":
            iterations = o.iterations or _SART.iterations
            sart = SartTvSettings(iterations, nonnegative=o.nonnegative, memory_bytes=memory, device=self.device.name)
            return sart_tv_slabs(*data, sart, progress)
        sirt = SirtSettings(
            o.iterations or _SIRT.iterations, o.subsets, o.nonnegative, memory_bytes=memory, device=self.device.name
        )
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
            o.field_kind, o.loss, self.priors, average=o.average, memory_bytes=o.memory, seed=o.seed,
            device=self.device.name,
        )  # fmt: skip
        if o.refine:

            def polishing(fraction: float, bin_: int, loss: float) -> None:
                progress(0.3 * fraction, scale=f"refining, bin {bin_ * o.binning}", loss=loss)

            alignment, reason = refined(tilts, height, o.memory, o.seed, polishing, self.device.name)
            tilts = replace(tilts, alignment=alignment)
            facts["refined"] = reason
            click.echo(f"note  refine: {reason}")
        first = 0.3 if o.refine else 0.0
        live = LiveView(o.beside("_live.png"), self.voxel_A, o.output.name)

        def on_step(fit: FieldFit, fraction: float) -> None:
            bin_, _, loss, held = fit.losses[-1]
            progress(first + (1 - first) * fraction, scale=f"bin {bin_ * o.binning}", loss=loss, held_out=held)
            live(fit)

        check = other_images(source, tilts, prepare_settings)
        recording = self.recording(tilts, check)
        found = reconstruct_field(tilts.images, tilts.weight, tilts.alignment, height, settings, on_step, recording)
        facts |= {
            "held_out_loss": found.held_out_loss,
            "losses": [[list(row) for row in losses] for losses in found.losses],
            "gain": found.fits[0].gain.tolist(),
            "field_parameters": int(found.fits[0].field.parameters().size),
        }
        if o.average > 1 and not source.name:
            with tomogram(self.shape, o.output.parent, TOMOGRAM_SHARE * o.memory) as spread:
                spread.take((rows, sd * np.float32(abs(factor))) for rows, _, sd in found.slabs())
                label = f"inr-recon: standard deviation of {o.average} fits"
                spread.write(o.beside("_sd"), o.orientation, self.voxel_A, o.overwrite, label)
            click.echo(f"wrote {o.beside('_sd')} (standard deviation over {o.average} fits)")
        return ((rows, mean) for rows, mean, _ in found.slabs())

    def recording(self, tilts: PreparedTilts, check: NDArray[np.float32] | None) -> Recording:
        """What the fit makes use of besides the images: CTF, counts, the other frames."""
        o, found = self.o, tilts.prepared
        transfer = None
        if self.defoci is not None:
            defoci = _of_tilts(self.defoci, tilts.used)

            def transfer(bin_: int) -> CtfOperator:
                return CtfOperator(tilts.alignment, defoci, bin_, voltage_kV=o.voltage)

        if o.loss not in COUNT_KINDS:
            return Recording(transfer, check=check)
        if not found.counts or found.restored_defocus_A is not None or self.defoci is not None:
            why = "these images are not camera counts" if not found.counts else "the images were filtered for the CTF"
            raise InputError(f"--loss {o.loss}: {why}; use l2 or huber")
        background, gain = found.background[tilts.used], found.gain[tilts.used]
        variance = (found.noise_sd[tilts.used] * gain) ** 2
        read, _ = read_noise(variance, background)
        return Recording(transfer, background, gain, np.clip(read / variance, 0.0, 1.0), check)

    def write_record(self) -> None:
        """OUT.json: everything that was used and found."""
        o, given = self.o, self.given
        options = {f.name: getattr(o, f.name) for f in fields(Options)}
        record = {
            "program": "inr-recon",
            "version": __version__,
            "command": shlex.join(["inr-recon", *sys.argv[1:]]),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in options.items()},
            "priors": asdict(self.priors),
            "stack": str(o.stack),
            "alignment": str(o.alignment),
            "sources": [[what, str(value), source] for what, value, source in given.sources],
            "excluded_tilts": [[tilt, reason] for tilt, reason in sorted(given.alignment.excluded.items())],
            "voxel_size_A": self.voxel_A,
            "thickness_nm": self.thickness_px * given.pixel_size_A / 10,
            "shape_zyx": list(self.shape),
            **self.record,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_device_bytes": peak_device_bytes(self.device.name),
            "numpy": np.__version__,
        }
        write_text(o.beside(".json"), json.dumps(record, indent=1, default=str), o.overwrite)


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


def _priors(text: str | None, field_kind: str) -> Priors:
    """``variation,wedge=0.2`` -> weights; what is not named has none."""
    if text is None:
        return _FIELD.priors
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


def _defoci(ctf: str | None, given: AlignedStack) -> Defoci | None:
    """Defocus of every image, from a file or one for all (micrometres)."""
    if ctf is None:
        return None
    try:
        microns = float(ctf)
    except ValueError:
        given.sources.append(("CTF", "of every image", ctf))
        return read_ctf(Path(ctf), given.series.n_tilts)
    if not 0.1 <= microns <= 20:
        raise InputError(f"--ctf {ctf}: must be from 0.1 to 20 um of underfocus, or a file")
    given.sources.append(("CTF", f"{microns:g} um of underfocus", "--ctf"))
    return Defoci.of(microns * 1e4, given.series.n_tilts)


def _of_tilts(defoci: Defoci, tilts: NDArray[np.int64]) -> Defoci:
    """The defoci of some images."""
    return Defoci(
        defoci.defocus_A[tilts],
        defoci.astigmatism_A[tilts],
        defoci.astigmatism_deg[tilts],
        defoci.phase_shift_deg[tilts],
        defoci.hand,
    )


def _thickness(option_nm: float | None, path: Path, given: AlignedStack) -> float:
    """Thickness in nm, its source noted."""
    found: tuple[float, str] | None = None
    if option_nm is not None:
        if not option_nm > 0:
            raise InputError(f"--thickness {option_nm:g}: must be positive; give nm")
        found = option_nm, "--thickness"
    found = found or thickness_beside(path, given.series.name, given.pixel_size_A) or (DEFAULT_THICKNESS_NM, "default")
    given.sources.append(("thickness", f"{found[0]:.4g} nm", found[1]))
    return found[0]


def _polarity(given: AlignedStack) -> int:
    """1 if protein is bright in the images, -1 if dark."""
    images = given.series.read(bin=max(1, min(given.series.size) // POLARITY_SIZE))
    settings = PrepareSettings(restore=False, mask_gold=False)
    return prepare(images, given.alignment.tilt_deg, None, settings, dict(given.alignment.excluded)).polarity


def _only_cpu(o: Options, priors: Priors) -> str:
    """What of the options has no form for the GPU; empty if there is nothing."""
    if o.method != "field":
        return ""
    if o.field_kind not in ("hash", "voxel"):
        return f"--field {o.field_kind}"
    if o.ctf is not None:
        return "--ctf within --method field"
    if o.loss in COUNT_KINDS:
        return f"--loss {o.loss}"
    return "--prior wedge or isotropic" if priors.wedge or priors.isotropic else ""
