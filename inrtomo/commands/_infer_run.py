"""What ``inr-infer`` does once its options are read."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from inrtomo import __version__
from inrtomo.align.pipeline import peak_memory_bytes
from inrtomo.align.prepare import PrepareSettings
from inrtomo.commands._aligned_stack import check_outputs, read_aligned_stack
from inrtomo.commands._common import Progress, echo_defaults
from inrtomo.commands._recon_run import _defoci, _polarity, _thickness
from inrtomo.commands.infer import Options
from inrtomo.device import choose
from inrtomo.errors import InputError
from inrtomo.io.files import write_text
from inrtomo.localized.inference import inferred_slabs, outside_range
from inrtomo.localized.scaling import measured_scaling
from inrtomo.localized.tilts import filtered_tilts
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.halves import Source, halves
from inrtomo.reconstruct.prepared import prepared_tilts
from inrtomo.reconstruct.tomogram import Tomogram, tomogram
from inrtomo.reconstruct.wedge import energy_in_wedge, measured_only
from inrtomo.report.figures import slices

TOMOGRAM_SHARE = TILTS_SHARE = 0.2  # of the memory: what is larger waits in a scratch file


class Run:
    """One run of the command: what it is given, then every tomogram in turn."""

    def __init__(self, options: Options) -> None:
        self.o = o = options
        path = shipped_weights() if o.weights is None else o.weights
        check_outputs(o.outputs, o.overwrite, o.stack, o.alignment, path)
        self.model, self.card = load_weights(path)
        self.weights = path
        self.device = choose(o.device)
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
        self.record: dict[str, Any] = {}
        self.started = time.monotonic()

    def run(self) -> None:
        """Everything, the tomogram of all data last, so that it is there only when all is."""
        o, given = self.o, self.given
        self.polarity = _polarity(given)
        turned = self.polarity < 0 and o.contrast == "positive"
        given.sources.extend([
            ("weights", f"{self.model.architecture.output}, {self.card.training.get('steps', '?')} steps",
             "came with the package" if o.weights is None else str(self.weights)),
            ("device", self.device.name, self.device.sentence),
            ("contrast", f"protein {'dark' if self.polarity < 0 else 'bright'} in the images",
             "bright in the tomogram" if turned else "kept"),
        ])  # fmt: skip
        sources = []
        if o.with_halves:
            first, second, what = halves(given.series, given.alignment)
            sources = [first, second]
            given.sources.append(("halves", what, "--halves"))
            self.record["halves"] = what
        echo_defaults(given.sources)
        for source in (*sources, Source("", given.series.image, given.alignment)):
            with tomogram(self.shape, o.output.parent, TOMOGRAM_SHARE * o.memory) as volume:
                self.make(source, volume)

    def make(self, source: Source, volume: Tomogram) -> None:
        """One tomogram: its rows, what concerns all of it, and its files."""
        o = self.o
        task = f"infer {source.name}".strip()
        start = time.monotonic()
        with Progress(task) as progress:
            facts = self.infer(source, volume, progress)
        facts["inference_seconds"] = time.monotonic() - start
        used = source.alignment
        tilts, x_tilt = used.tilt_deg[used.included], float(np.median(used.x_tilt_deg[used.included]))
        where = tilts, o.binning, self.thickness_px, x_tilt
        if o.only_measured:
            measured_only(volume.volume, *where, overwrite=True)
        facts["wedge_energy"] = energy_in_wedge(volume.volume, *where)
        if o.normalize:
            facts["mean_and_sd_before"] = list(volume.normalise())
        self.record[source.name or "all"] = facts
        path = o.beside(f"_{source.name}") if source.name else o.output
        if not source.name:
            slices(volume.volume, o.beside("_live.png"), f"{o.output.name}: {task}", self.voxel_A)
            self.write_record()
        label = f"inr-infer: {self.weights.stem}, {o.orientation}"
        sections, rows, columns = volume.write(path, o.orientation, self.voxel_A, o.overwrite, label)
        click.echo(f"wrote {path} ({columns} x {rows} x {sections}, {self.voxel_A:.4g} Å/voxel, {o.orientation})")
        if not source.name:
            click.echo(f"{100 * facts['wedge_energy']:.1f} % of its variance lies in the missing wedge")
            click.echo(f"peak memory {peak_memory_bytes() / 2**30:.2f} GiB")

    def infer(self, source: Source, volume: Tomogram, progress: Progress) -> dict[str, Any]:
        """Fill the volume; what was used and found on the way."""
        o = self.o
        settings = PrepareSettings(polarity=self.polarity, restore=False, voltage_kV=o.voltage)
        tilts = prepared_tilts(self.reader(source), o.binning, settings)
        for note in tilts.prepared.notes:
            click.echo(f"note  {note}")
        report = _part(progress, 0.0, 0.1)
        with filtered_tilts(
            tilts.images, tilts.alignment, self.shape[0], TILTS_SHARE * o.memory, o.output.parent, report, tilts.weight
        ) as filtered:
            scaling = measured_scaling(filtered, self.shape, self.voxel_A, self.device.name)
            outside = outside_range(scaling, float(self.shape[0]), self.card.range)
            for sentence in outside:
                click.echo(f"note  outside the weights' training range: {sentence}; look at the result with care")
            factor = np.float32(abs(tilts.unit) if o.contrast == "positive" else tilts.unit)
            memory = o.memory * (1 - TILTS_SHARE - TOMOGRAM_SHARE)
            slabs = inferred_slabs(
                filtered, self.shape, scaling, self.model, memory, self.device.name, _part(progress, 0.1, 1.0)
            )
            volume.take((rows, slab * factor) for rows, slab in slabs)
        return {
            "tilts_used": tilts.used.tolist(),
            "prepared": tilts.prepared.notes,
            "condition": scaling.condition.tolist(),
            "outside_training_range": outside,
        }

    def reader(self, source: Source) -> Source:
        """The source with the phases that the transfer function has turned turned back."""
        if self.defoci is None:
            return source
        image = ctf_corrected(source.image, source.alignment, self.defoci, "flip", self.o.voltage)
        return replace(source, image=image)

    def write_record(self) -> None:
        """OUT.json: everything that was used and found."""
        o, given = self.o, self.given
        options = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(o).items()}
        record = {
            "program": "inr-infer",
            "version": __version__,
            "command": shlex.join(["inr-infer", *sys.argv[1:]]),
            "settings": options,
            "stack": str(o.stack),
            "alignment": str(o.alignment),
            "weights": {"file": str(self.weights), **asdict(self.card)},
            "sources": [[what, str(value), source] for what, value, source in given.sources],
            "excluded_tilts": [[tilt, reason] for tilt, reason in sorted(given.alignment.excluded.items())],
            "voxel_size_A": self.voxel_A,
            "thickness_nm": self.thickness_px * given.pixel_size_A / 10,
            "shape_zyx": list(self.shape),
            **self.record,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": peak_memory_bytes(),
            "numpy": np.__version__,
            "torch": torch.__version__,
        }
        write_text(o.beside(".json"), json.dumps(record, indent=1, default=str), o.overwrite)


def _part(progress: Progress, start: float, stop: float) -> Callable[[float], None]:
    """A report of a part of the work as one of all of it."""
    return lambda fraction: progress(start + (stop - start) * fraction)
