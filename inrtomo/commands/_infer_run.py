"""What ``inr-infer`` does once its options are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import click
import numpy as np
import torch

from inrtomo.align.prepare import PrepareSettings
from inrtomo.alignment import Alignment
from inrtomo.commands._common import Progress
from inrtomo.commands._tomogram_run import TOMOGRAM_SHARE, TomogramRun, polarity_of
from inrtomo.commands.infer import Options
from inrtomo.device import choose
from inrtomo.localized.inference import inferred_slabs, outside_range
from inrtomo.localized.scaling import measured_scaling
from inrtomo.localized.tilts import filtered_tilts
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.reconstruct.ctf_correction import ctf_corrected
from inrtomo.reconstruct.halves import Source
from inrtomo.reconstruct.prepared import prepared_tilts
from inrtomo.reconstruct.tomogram import Tomogram

TILTS_SHARE = 0.2  # of the memory: larger ones wait in a scratch file


class Run(TomogramRun[Options]):
    """One run of the command."""

    program = "inr-infer"

    def __init__(self, options: Options) -> None:
        self.weights = shipped_weights() if options.weights is None else options.weights
        self.model, self.card = load_weights(self.weights)
        super().__init__(options, [choose(options.device)], self.weights)
        self.polarity = polarity_of(self.given, self.device.name)

    def rows(self) -> list[tuple[str, object, str]]:
        turned = self.polarity < 0 and self.o.contrast == "positive"
        return [
            ("weights", f"{self.model.architecture.output}, step {self.card.training.get('best_step', '?')}",
             "came with the package" if self.o.weights is None else str(self.weights)),
            ("contrast", f"protein {'dark' if self.polarity < 0 else 'bright'} in the images",
             "bright in the tomogram" if turned else "kept"),
        ]  # fmt: skip

    def task(self, source: Source) -> str:
        return f"infer {source.name}".strip()

    @property
    def made_by(self) -> str:
        return self.weights.stem

    def own_record(self) -> dict[str, Any]:
        return {"weights": {"file": str(self.weights), **asdict(self.card)}, "torch": torch.__version__}

    def fill(self, source: Source, volume: Tomogram, progress: Progress, facts: dict[str, Any]) -> Alignment:
        """By the network, slab by slab."""
        o, begun = self.o, time.monotonic()
        settings = PrepareSettings(polarity=self.polarity, restore=False, voltage_kV=o.voltage)
        tilts = prepared_tilts(self.reader(source), o.binning, settings, device=self.device.name)
        for note in tilts.prepared.notes:
            click.echo(f"note: {note}")
        report = _part(progress, 0.0, 0.1)
        room, device = TILTS_SHARE * self.memory, self.device.name
        given = tilts.images, tilts.alignment, self.shape[0], room, o.output.parent, report, tilts.weight, device
        with filtered_tilts(*given) as filtered:
            scaling = measured_scaling(filtered, self.shape, self.voxel_A, device)
            outside = outside_range(scaling, float(self.shape[0]), self.card.range)
            for sentence in outside:
                click.echo(f"note: outside the weights' training range: {sentence}; look at the result with care")
            factor = np.float32(abs(tilts.unit) if o.contrast == "positive" else tilts.unit)
            memory = self.device_memory * (1 - TILTS_SHARE - TOMOGRAM_SHARE)
            slabs = inferred_slabs(
                filtered, self.shape, scaling, self.model, memory, self.device.name, _part(progress, 0.1, 1.0)
            )
            volume.take((rows, slab * factor) for rows, slab in slabs)
        facts |= {
            "prepared": tilts.prepared.notes,
            "condition": scaling.condition.tolist(),
            "outside_training_range": outside,
            "inference_seconds": time.monotonic() - begun,
        }
        return replace(source.alignment, excluded=dict(tilts.prepared.excluded))

    def reader(self, source: Source) -> Source:
        """The source with the phases that the transfer function has turned turned back."""
        if self.defoci is None:
            return source
        given = source.image, source.alignment, self.defoci, "flip", self.o.voltage
        image = ctf_corrected(*given, device=self.device.name)
        return replace(source, image=image)


def _part(progress: Progress, start: float, stop: float) -> Callable[[float], None]:
    """A report of a part of the work as one of all of it."""
    return lambda fraction: progress(start + (stop - start) * fraction)
