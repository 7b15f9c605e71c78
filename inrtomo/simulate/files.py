"""A simulation on disk: the stack as a microscope leaves it, and the truth."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import mrcfile

from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.files import atomic_path, make_folder
from inrtomo.simulate.simulation import F32, Simulation

FIRST_EXPOSURE = datetime(2024, 1, 1, 12)  # any fixed moment: equal seeds give equal files


def write_simulation(simulation: Simulation, folder: Path, base: str, overwrite: bool = False) -> list[Path]:
    """Write the series and its truth into a folder, made if need be; returns the paths.

    ``BASE.mrc BASE_odd.mrc BASE_even.mrc`` (raw stacks), ``BASE.rawtlt`` (nominal angles), ``BASE.mrc.mdoc`` (order,
    dose, nominal axis), ``BASE_truth.json`` (the true alignment, where points of the specimen are seen, and how the
    series was made) and ``BASE_truth.mrc`` (the specimen over the view, [z, y, x]). Raises InputError for a file that
    exists, unless it may be overwritten.
    """
    make_folder(folder)
    pixel = simulation.settings.pixel_size_A
    paths = output_paths(folder, base)
    for path, images in zip(paths[:3], (simulation.images, simulation.odd, simulation.even), strict=True):
        _write_mrc(path, images, pixel, stack=True, overwrite=overwrite)
    _write_mrc(paths[3], simulation.volume, pixel, stack=False, overwrite=overwrite)
    truth = {**alignment_to_dict(simulation.alignment), **simulation.meta, **simulation.points.to_dict()}
    texts = (
        "".join(f"{angle:8.3f}\n" for angle in simulation.tilt_deg),
        mdoc_text(simulation, f"{base}.mrc"),
        json.dumps(truth, indent=1),
    )
    for path, text in zip(paths[4:], texts, strict=True):
        with atomic_path(path, overwrite) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def output_paths(folder: Path, base: str) -> list[Path]:
    """The files `write_simulation` makes."""
    endings = (".mrc", "_odd.mrc", "_even.mrc", "_truth.mrc", ".rawtlt", ".mrc.mdoc", "_truth.json")
    return [folder / (base + ending) for ending in endings]


def mdoc_text(simulation: Simulation, image_file: str) -> str:
    """SerialEM metadata: what an operator would know, and no more."""
    settings = simulation.settings
    axis = settings.axis_deg if settings.nominal_axis_deg is None else settings.nominal_axis_deg
    lines = [
        f"PixelSpacing = {settings.pixel_size_A:g}",
        f"Voltage = {settings.voltage_kV:g}",
        f"ImageFile = {image_file}",
        f"ImageSize = {settings.size[0]} {settings.size[1]}",
        "DataMode = 2",
        "",
        f"[T = SerialEM: simulated by inr-simulate, seed {settings.seed}]",
        "",
        f"[T =     Tilt axis angle = {axis:.1f}, binning = 1]",
        "",
    ]
    for m, (angle, turn) in enumerate(zip(simulation.tilt_deg, simulation.order, strict=True)):
        time = FIRST_EXPOSURE + timedelta(minutes=int(turn))
        lines += [
            f"[ZValue = {m}]",
            f"TiltAngle = {angle:.3f}",
            f"PixelSpacing = {settings.pixel_size_A:g}",
            f"ExposureDose = {settings.dose_per_tilt:g}",
            f"PriorRecordDose = {settings.dose_per_tilt * int(turn):g}",
            f"DateTime = {time.strftime('%d-%b-%y  %H:%M:%S')}",
            "",
        ]
    return "\n".join(lines)


def _write_mrc(path: Path, data: F32, pixel_size_A: float, stack: bool, overwrite: bool) -> None:
    """MRC mode 2 without the time stamp mrcfile would put into the header."""
    with atomic_path(path, overwrite) as temporary, mrcfile.new(temporary) as file:
        file.set_data(data)
        file.set_image_stack() if stack else file.set_volume()
        file.voxel_size = pixel_size_A
        file.header.label[0] = b"Simulated by inr-simulate"
