"""An alignment written in any format, with what it cannot hold said in sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inrtomo import __version__
from inrtomo.errors import InputError
from inrtomo.io import imod
from inrtomo.io.alignment_files import DEFAULT_THICKNESS_PX, alignment_paths, write_alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.io.aretomo import write_aln
from inrtomo.io.aretomo_folder import write_aretomo_folder
from inrtomo.io.files import check_output, make_folder, write_text
from inrtomo.io.imod_local import write_local
from inrtomo.io.names import com_value, one_line, safe_name
from inrtomo.io.relion import relion_paths, tomogram_size, write_relion
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.warp import write_warp_xml

Written = tuple[list[Path], list[str]]
"""Files, and sentences on what they do not hold, or only nearly."""


def format_of(path: Path) -> str | None:
    """The format that a name asks for: by its suffix, or a folder for IMOD; None where it asks for none."""
    by_suffix = {".xf": "imod", ".aln": "aretomo", ".star": "relion5", ".xml": "warp", ".json": "json"}
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    return "imod" if path.is_dir() or not path.suffix else None


def write_record(
    path: Path, record: SeriesRecord, target: str, stack: str | None = None, overwrite: bool = False
) -> Written:
    """Write a record in the format ``target``, one of `FORMATS`.

    Args:
        path: a file, or a folder in which files get the series' name.
        stack: the raw stack as other programs should find it.

    Raises:
        InputError: a file exists, or the format cannot hold the record, the name of its series or of an image.
    """
    safe_name(record.name, path)
    for image in record.images or ():
        one_line(image, path, "name of an image")
    return FORMATS[target](path, record, stack, overwrite)


def _file_in(path: Path, name: str, suffix: str) -> Path:
    """The file to write, in a folder where ``path`` is one, whose own folder is made if need be."""
    if path.suffix != suffix:
        path = path / f"{name}{suffix}"
    make_folder(path.parent)
    return path


def _write_imod(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    a = record.alignment
    folder, base = (path.parent, path.stem) if path.suffix == ".xf" else (path, record.name)
    if folder.name.endswith("_Imod"):
        base = f"{base}_st"
    thickness = record.thickness_px or DEFAULT_THICKNESS_PX
    raw, local = folder / f"{base}.rawtlt", folder / f"{base}local.xf"
    more = [raw] * int(record.nominal_tilt_deg is not None) + [local] * int(a.warp is not None)
    for name in (base, stack or base):
        com_value(name, path)
    make_folder(folder)
    for extra in [*alignment_paths(folder, base), *more]:
        check_output(extra, overwrite)
    paths = write_alignment(folder, base, a, overwrite, thickness_px=round(thickness), stack=stack)
    notes = []
    if record.nominal_tilt_deg is not None:
        imod.write_angles(raw, record.nominal_tilt_deg, overwrite)
    if a.warp is not None:
        grid = imod.grid_warp(a)
        notes.append(
            f"{base}_warp.xf: the local motion is held by {len(grid.x)} x {len(grid.y)} vectors an image to "
            f"{imod.WARP_TOLERANCE_PX:g} px"
        )
        fit = write_local(local, a, thickness, overwrite)
        notes.append(
            f"{local.name}: the local motion is held by {fit.areas} x {fit.areas} linear patches to {fit.rms_px:.3f} "
            f"px RMS, {fit.largest_px:.3f} px at most, through {thickness:.0f} px of depth; it is for tilt's LOCALFILE "
            f"with {base}.xf, in place of {base}_warp.xf and not with it"
        )
    if record.thickness_px is None:
        notes.append(f"tilt.com: no thickness is known; THICKNESS is {DEFAULT_THICKNESS_PX} px")
    if record.exposure_e_A2 is not None:
        notes.append(f"{base}: doses are not held")
    return paths + more, notes + _reasons_lost(record, "tilt.com")


def _write_aretomo(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    path = _file_in(path, record.name, ".aln")
    check_output(path, overwrite)
    notes = write_aln(path, record, overwrite)
    if record.alignment.pixel_size_A is not None or record.exposure_e_A2 is not None:
        notes.append(f"{path.name}: holds neither pixel size nor doses")
    if record.alignment.excluded:
        notes.append(
            f"{path.name}: excluded images are dark frames, whose transforms, refined angles and reasons are lost"
        )
    return [path], notes


def _write_outimod1(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    return write_aretomo_folder(path, record, 1, stack, overwrite)


def _write_outimod2(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    return write_aretomo_folder(path, record, 2, stack, overwrite)


def _write_relion5(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    folder = path.parent if path.suffix == ".star" else path
    one_line(str(folder), folder, "folder")
    paths = relion_paths(folder, record.name)
    if path.suffix == ".star" and path.name != paths[0].name:
        raise InputError(f"{path}: RELION's list of series is called {paths[0].name}; give that name, or a folder")
    notes = write_relion(folder, record, overwrite)
    return paths, notes


def _write_warp(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    path = _file_in(path, record.name, ".xml")
    check_output(path, overwrite)
    notes = write_warp_xml(path, record, overwrite, tomogram_size(record))
    return [path], notes + _reasons_lost(record, path.name)


def _write_json(path: Path, record: SeriesRecord, stack: str | None, overwrite: bool) -> Written:
    path = path if path.suffix == ".json" else path / f"{record.name}_align.json"
    make_folder(path.parent)
    values = {
        "version": __version__,
        "name": record.name,
        "alignment": alignment_to_dict(record.alignment),
        "nominal_tilt_deg": None if record.nominal_tilt_deg is None else np.asarray(record.nominal_tilt_deg).tolist(),
        "exposure_e_A2": None if record.exposure_e_A2 is None else np.asarray(record.exposure_e_A2).tolist(),
        "images": None if record.images is None else list(record.images),
        "thickness_px": record.thickness_px,
    }
    return [write_text(path, json.dumps(values, indent=1), overwrite)], []


def _reasons_lost(record: SeriesRecord, name: str) -> list[str]:
    excluded = record.alignment.excluded
    if not excluded:
        return []
    shown = ", ".join(map(str, sorted(excluded)))
    return [f"{name}: leaves out images {shown} (from 0); the reasons are not held"]


FORMATS: dict[str, Callable[[Path, SeriesRecord, str | None, bool], Written]] = {
    "imod": _write_imod,
    "aretomo": _write_aretomo,
    "outimod1": _write_outimod1,
    "outimod2": _write_outimod2,
    "relion5": _write_relion5,
    "warp": _write_warp,
    "json": _write_json,
}
