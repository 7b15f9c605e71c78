"""What ``inr-recon`` and ``inr-infer`` have in common: what they are given, every tomogram in turn, and the record."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
import numpy as np

from inrtomo import __version__
from inrtomo.align.pipeline import peak_memory_bytes
from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.alignment import Alignment
from inrtomo.commands._aligned_stack import (
    AlignedStack,
    check_outputs,
    frame_record,
    read_aligned_stack,
    thickness_beside,
)
from inrtomo.commands._common import PLAIN_NUMBER, Progress, echo_defaults
from inrtomo.commands._tomogram_options import DEFAULT_MEMORY_GIB, DEFAULT_THICKNESS_NM, TomogramOptions
from inrtomo.ctf import Defoci
from inrtomo.device import Device, memory_bound, peak_device_bytes
from inrtomo.errors import InputError
from inrtomo.io.ctf import read_ctf
from inrtomo.io.files import write_text
from inrtomo.reconstruct.halves import Source, halves
from inrtomo.reconstruct.prepared import pixel_work_on
from inrtomo.reconstruct.tomogram import Tomogram, tomogram
from inrtomo.reconstruct.wedge import energy_in_wedge, measured_only
from inrtomo.report.figures import slices

TOMOGRAM_SHARE = 0.25  # of the memory: a larger tomogram waits in a scratch file for what concerns all of it
POLARITY_SIZE = 512  # px: enough of an image to see whether protein is bright
LEAST_SIDE = 8  # voxels along x and y: by then the filters' borders, of as many px, are all that a tomogram shows
LARGEST_THICKNESS_NM = 10_000.0  # the highest voltages see through some micrometres; more is Å typed for nm
JUDGED_SIZE = 512  # px, at most, of images that are looked at for whether they hold anything: all are held at once

Options = TypeVar("Options", bound=TomogramOptions)


class TomogramRun(Generic[Options]):
    """One run of a command; what it is called, says and does with a source is for its own class to say.

    Args:
        options: the command line.
        devices: what computes, the one that leads first.
        inputs: files besides stack and alignment that must not be written over.

    Attributes:
        given: the stack and its alignment without dark and blank tilts, and where everything was found.
        shape: voxels (nz, ny, nx) of a tomogram; voxel_A: their size.
        thickness_px: raw px.
        memory, device_memory: bounds in bytes, of this process and of what it holds where it computes.
        record: what will stand in OUT.json of every source.
    """

    program: str

    def __init__(self, options: Options, devices: Sequence[Device], *inputs: Path) -> None:
        self.o = o = options
        self.device = devices[0]
        check_outputs(self.new_files(), o.overwrite, o.stack, o.alignment, *inputs)
        given = read_aligned_stack(o.stack, o.alignment, o.pixel_size, o.exclude)
        self.thickness_px = max(o.binning, round(_thickness_nm(o, given) * 10 / given.pixel_size_A))
        if len(np.unique(np.round(given.alignment.tilt_deg[given.alignment.included], 3))) < 2:
            raise InputError(f"{o.stack}: fewer than two different tilt angles are left; a reconstruction needs more")
        nx, ny = (n // o.binning for n in given.alignment.aligned_size)
        if min(nx, ny) < LEAST_SIDE:
            raise InputError(
                f"--bin {o.binning}: leaves {nx} x {ny} px of an image, too few for a tomogram ({LEAST_SIDE} x "
                f"{LEAST_SIDE}); give a smaller one"
            )
        self.shape = max(1, round(self.thickness_px / o.binning)), ny, nx
        self.voxel_A = given.pixel_size_A * o.binning
        self.defoci = None if o.ctf is None else with_hand(defoci_of(o.ctf, given), o, given)
        if o.ctf_hand is not None and o.ctf is None:
            raise InputError("--ctf-hand: is for --ctf FILE or --ctf UM, and there is none; leave it out")
        self.memory: float = o.memory or DEFAULT_MEMORY_GIB * 2.0**30
        self.device_memory = memory_bound(devices, o.memory, self.memory)
        self.record: dict[str, Any] = {} if self.defoci is None else {"ctf_hand": self.defoci.hand}
        self.started = time.monotonic()
        self.given = without_unusable(given, self.device.name)

    def new_files(self) -> list[Path]:
        """What must not be there yet."""
        return self.o.outputs

    def path_of(self, name: str) -> Path:
        """The file of a source's tomogram."""
        return self.o.beside(f"_{name}") if name else self.o.output

    def rows(self) -> list[tuple[str, object, str]]:
        """What is said of the run before it begins: what, value, where from."""
        raise NotImplementedError

    def task(self, source: Source) -> str:
        """What is said to be under way."""
        raise NotImplementedError

    @property
    def made_by(self) -> str:
        """For the header of a tomogram."""
        raise NotImplementedError

    def fill(self, source: Source, volume: Tomogram, progress: Progress, facts: dict[str, Any]) -> Alignment:
        """Set all rows of a tomogram and add what was found to its facts; the alignment that was used."""
        raise NotImplementedError

    def own_record(self) -> dict[str, Any]:
        """What OUT.json says of this command alone."""
        raise NotImplementedError

    def run(self) -> None:
        """Everything, the tomogram of all data last, so that it is there only when all is."""
        o, given = self.o, self.given
        given.sources.append(("device", self.device.name, self.device.sentence))
        given.sources.append(("tilt range", _range_said(given.alignment), "used"))
        given.sources.extend(self.rows())
        sources = []
        if o.with_halves:
            first, second, what = halves(given.series, given.alignment)
            sources = [first, second]
            given.sources.append(("halves", what, "--halves"))
            self.record["halves"] = what
        echo_defaults(given.sources)
        for source in (*sources, Source("", given.series.image, given.alignment)):
            self.make(source)

    def make(self, source: Source) -> None:
        """One tomogram: its rows, what concerns all of it, and its files."""
        o = self.o
        with tomogram(self.shape, o.output.parent, TOMOGRAM_SHARE * self.memory) as volume:
            facts: dict[str, Any] = {}
            with Progress(self.task(source)) as progress:
                used = self.fill(source, volume, progress, facts)
            tilts, x_tilt = used.tilt_deg[used.included], float(np.median(used.x_tilt_deg[used.included]))
            where = tilts, o.binning, self.thickness_px, x_tilt
            if o.only_measured:
                measured_only(volume.volume, *where, overwrite=True, device=self.device.name)
            facts["wedge_energy"] = energy_in_wedge(volume.volume, *where, self.device.name)
            if o.normalize:
                facts["mean_and_sd_before"] = list(volume.normalise())
            facts |= _tilts_of(used)
            self.record[source.name or "all"] = facts
            path = self.path_of(source.name)
            if not source.name:
                slices(volume.volume, o.beside("_live.png"), f"{o.output.name}: {self.task(source)}", self.voxel_A)
                self.write_record()
            label = f"{self.program}: {self.made_by}, {o.orientation}"
            sections, rows, columns = volume.write(path, o.orientation, self.voxel_A, o.overwrite, label)
        click.echo(f"wrote {path} ({columns} x {rows} x {sections}, {self.voxel_A:.4g} Å/voxel, {o.orientation})")
        if used.excluded.keys() != source.alignment.excluded.keys():
            click.echo(f"tilt range of {path.name}: {_range_said(used)}, of {_range_said(source.alignment)} before")
        click.echo(f"{100 * facts['wedge_energy']:.1f} % of its variance lies in the missing wedge")
        if not source.name:
            peak = peak_memory_bytes()
            beyond = "" if peak <= self.memory else f", more than --memory, {self.memory / 2**30:.2g} GiB"
            click.echo(f"peak memory {peak / 2**30:.2f} GiB{beyond}")
            if self.device.is_gpu:
                peak = peak_device_bytes(self.device.name)
                click.echo(
                    f"peak memory of {self.device.name} {peak / 2**30:.2f} of {self.device_memory / 2**30:.2f} GiB"
                )

    def write_record(self) -> None:
        """OUT.json: everything that was used and found."""
        o, given = self.o, self.given
        record = {
            "program": self.program,
            "version": __version__,
            "command": shlex.join([self.program, *sys.argv[1:]]),
            "settings": {name: str(v) if isinstance(v, Path) else v for name, v in o.used.items()},
            "stack": str(o.stack),
            "alignment": str(o.alignment),
            "sources": [[what, str(value), source] for what, value, source in given.sources],
            "tilt_range_deg": self.record["all"]["tilt_range_deg"],
            "excluded_tilts": self.record["all"]["excluded_tilts"],
            "voxel_size_A": self.voxel_A,
            "thickness_nm": self.thickness_px * given.pixel_size_A / 10,
            "shape_zyx": list(self.shape),
            "frame": frame_record(given.alignment),
            **self.own_record(),
            **self.record,
            "seconds": time.monotonic() - self.started,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_device_bytes": peak_device_bytes(self.device.name),
            "numpy": np.__version__,
        }
        write_text(o.beside(".json"), json.dumps(record, indent=1, default=str), o.overwrite)


def underfocus_um(ctf: str, named: str = "--ctf") -> float | None:
    """The underfocus that was typed, in the words of ``named``; None for the name of a file.

    Raises:
        InputError: it is none.
    """
    if not PLAIN_NUMBER.fullmatch(ctf.strip()):
        return None
    microns = float(ctf)
    if not 0.1 <= microns <= 20:
        raise InputError(f"{named} {ctf}: must be from 0.1 to 20 um of underfocus, or a file")
    return microns


def defoci_of(ctf: str, given: AlignedStack) -> Defoci:
    """Defocus of every image, from a file or one for all (micrometres)."""
    microns = underfocus_um(ctf)
    if microns is None:
        notes: list[str] = []
        kept = given.alignment.included.tolist()
        defoci = read_ctf(Path(ctf), given.series.n_tilts, notes, kept, given.series.tilt_deg)
        given.sources.append(("CTF", "of every image", ctf))
        given.sources.extend(("note", note, "") for note in notes)
        return defoci
    given.sources.append(("CTF", f"{microns:g} um of underfocus", "--ctf"))
    return Defoci.of(microns * 1e4, given.series.n_tilts)


def with_hand(defoci: Defoci, o: TomogramOptions, given: AlignedStack) -> Defoci:
    """The defoci with the hand that was asked for, its source noted."""
    source = o.ctf if defoci.hand_known else "default, as nothing says; --ctf-hand -1 for the other"
    if o.ctf_hand is not None:
        defoci, source = replace(defoci, hand=int(o.ctf_hand), hand_known=True), "--ctf-hand"
    side = "right" if defoci.hand > 0 else "left"
    said = f"{defoci.hand:+d}: the {side} is more underfocused at positive tilt"
    given.sources.append(("CTF hand", said, str(source)))
    return defoci


def _thickness_nm(o: TomogramOptions, given: AlignedStack) -> float:
    """Thickness of the sample, its source noted."""
    found: tuple[float, str] | None = None
    if o.thickness is not None:
        if not o.thickness > 0:
            raise InputError(f"--thickness {o.thickness:g}: must be positive; give nm")
        found = o.thickness, "--thickness"
    beside = thickness_beside(o.alignment, given.series.name, given.pixel_size_A)
    found = found or beside or _of_the_alignment(o, given) or (DEFAULT_THICKNESS_NM, "default")
    if found[0] > LARGEST_THICKNESS_NM:
        raise InputError(
            f"{found[1]}: a thickness of {found[0]:g} nm is more than electrons pass ({LARGEST_THICKNESS_NM:g}); "
            "give --thickness in nm"
        )
    given.sources.append(("thickness", f"{found[0]:.4g} nm", found[1]))
    return found[0]


def _of_the_alignment(o: TomogramOptions, given: AlignedStack) -> tuple[float, str] | None:
    """Thickness (nm) of the tomogram that another program's alignment is for, where it can be that of a sample."""
    nm = (given.thickness_px or 0.0) * given.pixel_size_A / 10
    return (nm, str(o.alignment)) if 0 < nm <= LARGEST_THICKNESS_NM else None


def without_unusable(given: AlignedStack, device: str) -> AlignedStack:
    """With dark and blank tilts left out, whatever the method: judged as `prepare` does, on small images.

    Raises:
        InputError: too few tilts are left.
    """
    alignment = given.alignment
    images = given.series.read(bin=-(-max(given.series.size) // JUDGED_SIZE))
    settings = PrepareSettings(polarity=1, restore=False, mask_gold=False)  # a polarity, so that none is looked for
    excluded = dict(alignment.excluded)
    excluded = prepare(images, alignment.tilt_deg, None, settings, excluded, work=pixel_work_on(device)).excluded
    notes: list[tuple[str, object, str]] = [
        ("note", f"tilt {tilt} ({alignment.tilt_deg[tilt]:.1f} deg) left out: {reason}", "")
        for tilt, reason in sorted(excluded.items())
        if tilt not in alignment.excluded
    ]
    return replace(given, alignment=replace(alignment, excluded=excluded), sources=[*given.sources, *notes])


def _tilts_of(used: Alignment) -> dict[str, Any]:
    """What OUT.json says of the tilts of a tomogram."""
    tilts = used.tilt_deg[used.included]
    return {
        "tilts_used": used.included.tolist(),
        "tilt_range_deg": [float(tilts.min()), float(tilts.max())],
        "excluded_tilts": [[int(tilt), reason] for tilt, reason in sorted(used.excluded.items())],
    }


def _range_said(used: Alignment) -> str:
    """The tilts of a tomogram in words."""
    tilts = used.tilt_deg[used.included]
    return f"{tilts.min():.2f} to {tilts.max():.2f}°, {len(tilts)} tilts"


def polarity_of(given: AlignedStack, device: str) -> int:
    """1 if protein is bright in the images, -1 if dark."""
    images = given.series.read(bin=max(1, min(given.series.size) // POLARITY_SIZE))
    settings = PrepareSettings(restore=False, mask_gold=False)
    excluded, work = dict(given.alignment.excluded), pixel_work_on(device)
    return prepare(images, given.alignment.tilt_deg, None, settings, excluded, work=work).polarity
