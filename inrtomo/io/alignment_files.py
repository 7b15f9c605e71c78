"""Alignments in any format we read, found by what is there; and the files that IMOD takes as its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.geometry import axis_angle
from inrtomo.io import imod
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.io.aretomo import read_aln_record
from inrtomo.io.belonging.alignment import (
    OTHER_PIXEL,
    Evidence,
    Images,
    fitted,
    images_aligned,
    on_images,
)
from inrtomo.io.belonging.metadata import known_pixel_size, mdoc_pixel_size
from inrtomo.io.belonging.sizes import TOLERANCE
from inrtomo.io.belonging.tables import checked_views
from inrtomo.io.files import check_output, make_folder, read_text, write_text
from inrtomo.io.imod_local import read_local, warp_from_local
from inrtomo.io.mdoc import read_mdoc
from inrtomo.io.mrc import MrcHeader, read_header
from inrtomo.io.relion import is_relion, read_relion
from inrtomo.io.series_record import SeriesRecord, series_name
from inrtomo.io.star import read_star
from inrtomo.io.warp import read_warp_xml
from inrtomo.tiltseries import TiltSeries, check_tilt_angles

Array = NDArray[np.float64]

STACK_SUFFIXES = (".mrc", ".st", ".ali", ".mrcs", ".map")
NOT_THE_ALIGNMENT = ("_warp", "_fid", "_rot", "_nonfid", "local", "_patch-tracking", "_prexf")
"""Endings of ``.xf`` files that lie beside the one that holds the alignment."""
SMALLEST_DETERMINANT = 1e-3
SAME_TRANSFORM = 2e-3
"""Difference (px over the image) up to which ``.xf`` and warp file hold the same linear part."""
DEFAULT_THICKNESS_PX = 200
LEAST_SIDE = 16
"""Of images (px); a smaller stack only stands for one, its header for its images' angles."""


def write_alignment(
    folder: str | Path,
    base: str,
    alignment: Alignment,
    overwrite: bool = False,
    *,
    thickness_px: int = DEFAULT_THICKNESS_PX,
    stack: str | Path | None = None,
) -> list[Path]:
    """Write ``BASE.xf .tlt .xtilt BASE_warp.xf newst.com tilt.com`` into a folder, made if need be; returns the paths.

    Args:
        thickness_px: for ``tilt.com``, raw px.
        stack: the raw stack as ``newst.com`` should name it, by default ``BASE.mrc``.

    Raises:
        InputError: when one of them exists already, unless it may be overwritten; then nothing is written.
    """
    folder = make_folder(folder)
    paths = alignment_paths(folder, base)
    for path in paths:
        check_output(path, overwrite)
    aligned, reconstruction = f"{base}_ali.mrc", f"{base}_full_rec.mrc"
    imod.write_xf(paths[0], alignment.linear, alignment.shift_px, overwrite)
    imod.write_angles(paths[1], alignment.tilt_deg, overwrite)
    imod.write_x_tilt(paths[2], alignment.x_tilt_deg, overwrite)
    imod.write_warp(paths[3], alignment, overwrite)
    write_text(paths[4], imod.newst_com(base, str(stack or f"{base}.mrc"), aligned), overwrite)
    tilt = imod.tilt_com(base, aligned, reconstruction, alignment.image_size, thickness_px, sorted(alignment.excluded))
    write_text(paths[5], tilt, overwrite)
    return paths


def alignment_paths(folder: str | Path, base: str) -> list[Path]:
    """The files `write_alignment` makes."""
    folder = Path(folder)
    return [folder / (base + end) for end in (".xf", ".tlt", ".xtilt", "_warp.xf")] + [
        folder / "newst.com",
        folder / "tilt.com",
    ]


def read_alignment(
    path: str | Path, series: TiltSeries | tuple[int, int] | None = None, notes: list[str] | None = None
) -> Alignment:
    """The alignment of `read_record`."""
    return read_record(path, series, notes).alignment


def read_record(
    path: str | Path, series: TiltSeries | tuple[int, int] | None = None, notes: list[str] | None = None
) -> SeriesRecord:
    """Read an alignment of any format, by what is there.

    An ``inr-align``, Etomo or AreTomo ``_Imod`` folder, an ``.xf``, a warp file, a com file, an ``.aln``, RELION's STAR
    files, Warp's XML, an ``.mdoc`` (recorded angles only), or our JSON. Beside ``BASE.xf`` are looked for ``BASE.tlt``,
    ``BASE.xtilt``, ``BASE_warp.xf`` and ``tilt.com`` (excluded views, local alignments).

    Args:
        path: file or folder.
        series: the tilt series it is for, or (nx, ny) of its raw images; with a series the number of images is
            checked, missing angles are its own, and an alignment of a binned stack is scaled to it.
        notes: receives sentences on what was found or left out.

    Raises:
        InputError: nothing is found, or what is found does not fit together or to the series.
    """
    path, notes = Path(path), notes if notes is not None else []
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the name")
    if path.suffix.lower() in STACK_SUFFIXES and path.is_file():
        raise InputError(f"{path}: is a stack of images; give the file or folder that holds its alignment")
    given = path
    if path.is_dir():
        path = _find_in_folder(path, _base_of(series))
        notes.append(f"alignment read from {path}")
    own_rows = path.suffix in (".star", ".xml", ".mdoc")
    if path.suffix == ".json":
        record = _read_json(path)
    elif path.suffix == ".aln":
        record = read_aln_record(path, _size_of(series), notes)
    elif path.suffix == ".star":
        record = _read_star_of_relion(path, series, notes)
    elif path.suffix == ".xml":
        record = read_warp_xml(path, _size_of(series), _pixel_of(series), notes)
    elif path.suffix == ".mdoc":
        record = _read_mdoc(path, _size_of(series), notes)
    else:
        # AreTomo's second layout has the images that are not dark, sorted by angle
        own_rows = path.suffix == ".xf" and _is_aretomo_folder(path.parent)
        alignment = _read_imod(path, None if own_rows and not isinstance(series, tuple) else series, series, notes)
        record = SeriesRecord(
            alignment,
            series_name(path),
            _recorded_angles(path, alignment.n_tilts, notes),
            thickness_px=_thickness(path),
        )
    record = replace(record, alignment=_checked(record.alignment, path))
    if path.suffix == ".aln" and record.nominal_tilt_deg is None and not isinstance(series, TiltSeries):
        notes.append(
            f"{path.name}: has no AlphaOffset, so it is not known how far its angles are from the recorded ones"
        )
    if own_rows and path.suffix == ".xf":
        _check_not_of_its_aligned_stack(record.alignment, path, series)
    images = Images.of_series(series) if isinstance(series, TiltSeries) else series
    if isinstance(images, Images):
        if path.suffix == ".aln" and record.alignment.n_tilts == images.n_tilts:
            record = replace(record, nominal_tilt_deg=None)  # reckoned from the refined ones: they say no more
        record = on_images(record, images, path, notes)
    if path.suffix == ".aln":
        record = replace(record, alignment=_dark_as_the_rest(record))
    alignment = fitted(record.alignment, images, path, notes)
    factor = alignment.image_size[0] / record.alignment.image_size[0]
    thickness = None if record.thickness_px is None else record.thickness_px * factor
    if given.is_dir() and given.name.endswith("_Imod"):
        record = replace(record, name=series_name(given))
    return replace(record, alignment=alignment, thickness_px=thickness)


def _read_imod(
    path: Path,
    series: TiltSeries | tuple[int, int] | None,
    sized: TiltSeries | tuple[int, int] | None,
    notes: list[str],
) -> Alignment:
    if path.suffix == ".com":
        return _read_com(path, series, notes)
    if imod.is_warp_file(path):
        return _read_warp(path, series, notes)
    return _read_xf(path, series if series is not None else _size_of(sized), notes)


def _read_star_of_relion(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> SeriesRecord:
    """RELION's, its images taken to show as much as the series' where they cannot be found."""
    try:
        found: list[str] = []
        record = read_relion(path, None, _pixel_of(series), _base_of(series), found)
        notes += found
        return record
    except InputError:
        if series is None:
            raise
    size, pixel = _size_of(series), _pixel_of(series)
    assert size is not None
    own = read_relion(path, size, pixel, _base_of(series)).alignment.pixel_size_A
    if pixel and own and abs(pixel / own - 1) > TOLERANCE:
        size = (round(size[0] * pixel / own), round(size[1] * pixel / own))
    return read_relion(path, size, pixel, _base_of(series), notes)


def _is_aretomo_folder(folder: Path) -> bool:
    return folder.resolve().name.endswith("_Imod")


def _check_not_of_its_aligned_stack(
    alignment: Alignment, path: Path, series: TiltSeries | tuple[int, int] | None
) -> None:
    """InputError where AreTomo's third layout, identities for the aligned stack in the folder, is given raw images."""
    raw = series is not None and not isinstance(series, tuple) and series.path.resolve().parent != path.resolve().parent
    if raw and _all_identity(alignment.linear, alignment.shift_px):
        aln = f"{path.resolve().parent.name.removesuffix('_Imod')}.aln"
        raise InputError(
            f"{path}: holds identities, for the aligned stack beside it (-OutImod 3), and not the alignment of the raw "
            f"images; give AreTomo's {aln} in its place"
        )


def _all_identity(linear: Array, shift: Array) -> bool:
    return len(linear) > 1 and bool((linear == np.eye(2)).all() and not shift.any())


def _recorded_angles(path: Path, n: int, notes: list[str]) -> Array | None:
    """Recorded angles beside an ``.xf``: a ``.rawtlt``, or the list in AreTomo's folder, which has the lowest first."""
    base = path.with_name(path.stem.removesuffix("_warp"))
    raw = base.with_suffix(".rawtlt")
    lists = sorted(path.parent.glob("*_order_list.csv")) if _is_aretomo_folder(path.parent) else []
    source = raw if raw.is_file() else lists[0] if len(lists) == 1 else None
    if source is None:
        return None
    try:
        if source == raw:
            return imod.read_angles(raw, n)
        rows = [line.split(",") for line in read_text(source).splitlines()]
        angles = np.array(sorted(float(row[1]) for row in rows if len(row) == 2 and row[0].strip().isdecimal()))
        refined = imod.read_angles(base.with_suffix(".tlt"), n)
        if len(angles) == n and np.isfinite(angles).all():
            return np.asarray(angles[np.argsort(np.argsort(refined, kind="stable"))])
    except (InputError, ValueError):
        pass
    notes.append(f"{source}: does not have the angles of {n} images; it is not used")
    return None


def _dark_as_the_rest(record: SeriesRecord) -> Alignment:
    """With the offset of the refined angles also in those of dark images, which an ``.aln`` has as recorded."""
    a, nominal = record.alignment, record.nominal_tilt_deg
    if nominal is None or not a.excluded or not len(a.included):
        return a
    tilt, dark = a.tilt_deg.copy(), sorted(a.excluded)
    tilt[dark] = nominal[dark] + np.median((tilt - nominal)[a.included])
    return replace(a, tilt_deg=tilt)


def _thickness(path: Path) -> float | None:
    command = _tilt_command(path.parent, path.stem.removesuffix("_warp"))
    values = [] if command is None else command.numbers("THICKNESS")
    return values[0] if values and 0 < values[0] < 1e6 else None


def _checked(alignment: Alignment, path: Path) -> Alignment:
    """The alignment, or InputError where its numbers cannot be one."""
    warp = alignment.warp
    arrays = [alignment.tilt_deg, alignment.linear, alignment.shift_px, alignment.x_tilt_deg]
    shapes_fit = alignment.n_tilts > 0 and alignment.x_tilt_deg.shape == (alignment.n_tilts,)
    shapes_fit &= min(alignment.image_size) > 0
    if warp is not None:
        arrays += [warp.x, warp.y, warp.vectors]
        shapes_fit &= warp.x.ndim == 1 and warp.y.ndim == 1 and min(len(warp.x), len(warp.y)) > 0
        shapes_fit &= warp.vectors.shape == (alignment.n_tilts, len(warp.y), len(warp.x), 2)
        shapes_fit &= warp.interpolation in ("bilinear", "bicubic")
    shapes_fit &= all(0 <= image < alignment.n_tilts for image in alignment.excluded)
    if not shapes_fit or not all(np.isfinite(array).all() for array in arrays):
        raise InputError(f"{path}: its alignment is damaged; give another file")
    if np.abs(np.linalg.det(alignment.linear)).min() < SMALLEST_DETERMINANT:
        raise InputError(f"{path}: a transform has no inverse; give another file")
    if warp is not None and not all(_evenly_rising(nodes) for nodes in (warp.x, warp.y)):
        raise InputError(f"{path}: its warp is not on an even grid; give another file")
    return alignment


def _evenly_rising(nodes: Array) -> bool:
    steps = np.diff(nodes)
    return len(steps) == 0 or bool(steps.min() > 0 and np.ptp(steps) <= 1e-3 * steps.max())


# --- where things are ----------------------------------------------------------------------------------------------


def _size_of(series: TiltSeries | tuple[int, int] | None) -> tuple[int, int] | None:
    return series if series is None or isinstance(series, tuple) else series.size


def _pixel_of(series: TiltSeries | tuple[int, int] | None) -> float | None:
    return None if series is None or isinstance(series, tuple) else series.known_pixel_size_A


def _base_of(series: TiltSeries | tuple[int, int] | None) -> str | None:
    return None if series is None or isinstance(series, tuple) else series.name


def _find_in_folder(folder: Path, base: str | None) -> Path:
    """The file of a folder that holds the alignment, the most complete kind first."""
    names = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    xf = [p for p in names if p.suffix == ".xf" and not p.stem.endswith(NOT_THE_ALIGNMENT)]
    kinds = (
        ([p for p in names if p.name.endswith("_align.json")], "_align"),
        ([p for p in names if p.name.endswith("_truth.json")], "_truth"),
        (xf, ""),
        ([p for p in names if p.suffix == ".aln"], ""),
        ([p for p in names if p.suffix == ".star" and is_relion(_blocks(p))], ""),
        ([p for p in names if p.suffix == ".xml" and "<TiltSeries" in read_text(p)[:4096]], ""),
        ([p for p in names if p.name.endswith("_warp.xf")], "_warp"),
    )
    for found, end in kinds:
        if base is not None and len(found) > 1:
            found = [p for p in found if p.stem == base + end] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{folder}: holds {', '.join(p.name for p in found[:4])}; name one of them")
    raise InputError(
        f"{folder}: holds no alignment (no BASE_align.json, .xf, .aln, .star, .xml or BASE_warp.xf); give another"
    )


def _blocks(path: Path) -> dict[str, dict[str, list[str]]]:
    """A STAR file of the folder; whether it is a sound one does not matter here."""
    try:
        return read_star(path)
    except InputError:
        return {}


def _read_json(path: Path) -> SeriesRecord:
    """Our JSON: the alignment itself (truth), or under the key ``alignment`` with what is known beside it."""
    try:
        whole = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON; give another file") from None
    values = whole
    if isinstance(values, dict) and isinstance(values.get("alignment"), dict):
        values = values["alignment"]
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no alignment; give BASE_align.json or BASE_truth.json")
    try:
        alignment = alignment_from_dict(values)
        inputs = whole.get("input") if isinstance(whole.get("input"), dict) else {}
        nominal = _known(whole.get("nominal_tilt_deg", inputs.get("nominal_tilt_deg")), alignment.n_tilts)
        exposure = _known(whole.get("exposure_e_A2"), alignment.n_tilts)
        images = whole.get("images")
        thickness = whole.get("thickness_px")
        if thickness is None and alignment.pixel_size_A and whole.get("thickness_nm"):
            thickness = float(whole["thickness_nm"]) * 10 / alignment.pixel_size_A
        return SeriesRecord(
            alignment,
            str(whole.get("name") or series_name(path)),
            nominal,
            exposure,
            tuple(map(str, images)) if isinstance(images, list) and len(images) == alignment.n_tilts else None,
            float(thickness) if thickness and np.isfinite(float(thickness)) and float(thickness) > 0 else None,
            stack=_stack_of(inputs),
        )
    except KeyError as error:
        raise InputError(f"{path}: holds no alignment ({error} is missing); give BASE_align.json") from None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, ZeroDivisionError):
        raise InputError(f"{path}: its alignment is damaged; give another file") from None


def _stack_of(inputs: dict[str, Any]) -> str | None:
    """The stack that a result of ours is of image by image; None where angles beside the stack say that as well.

    Angles that the user gave are known to the result alone; those beside the stack may have been put in a new order
    together with it.
    """
    stack, sources = inputs.get("stack"), inputs.get("sources")
    angles = sources.get("tilt angles") if isinstance(sources, dict) else None
    if not isinstance(stack, str) or not stack:
        return None
    beside = isinstance(angles, str) and Path(angles).parent == Path(stack).parent
    return None if beside and Path(str(angles)).name.startswith(f"{Path(stack).stem}.") else stack


def _read_mdoc(path: Path, image_size: tuple[int, int] | None, notes: list[str]) -> SeriesRecord:
    """What was recorded as an alignment without shifts: angles, tilt axis and exposures."""
    mdoc = read_mdoc(path)
    size = image_size or mdoc.image_size
    if size is None:
        raise InputError(f"{path}: does not say how large its images are; give the stack")
    axis = "is not said and taken as 0" if mdoc.axis_deg is None else f"is taken as {mdoc.axis_deg:g} degrees"
    notes.append(f"{path.name}: has recorded angles only, so all shifts are 0; the tilt axis {axis}")
    name = Path(path.stem).stem if Path(path.stem).suffix in STACK_SUFFIXES else path.stem
    pixel, said = mdoc_pixel_size(mdoc, path.name, size)
    notes += [said] if said else []
    alignment = Alignment.identity(mdoc.tilt_deg, size, mdoc.axis_deg or 0.0, pixel)
    return SeriesRecord(alignment, name, mdoc.tilt_deg, mdoc.prior_exposure_e_A2)


def _known(values: object, n: int) -> Array | None:
    """A list of as many finite numbers as there are images, or None."""
    if not isinstance(values, list) or len(values) != n:
        return None
    array = np.array(values, dtype=np.float64)
    return array if array.shape == (n,) and np.isfinite(array).all() else None


def _read_xf(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> Alignment:
    """``BASE.xf`` with what lies beside it."""
    base = path.with_suffix("")
    expected = None if series is None or isinstance(series, tuple) else series.n_tilts
    tilt_file, x_tilt_file = base.with_suffix(".tlt"), base.with_suffix(".xtilt")
    tilt: Array | None = None
    if tilt_file.is_file():
        tilt = _tilt_angles(tilt_file, expected)
    elif series is not None and not isinstance(series, tuple):
        tilt = series.tilt_deg
        notes.append(f"{tilt_file.name} is not there: tilt angles are those of the series")
    if tilt is None:
        raise InputError(f"{tilt_file}: no such file; the alignment needs its tilt angles beside {path.name}")
    n = len(tilt)
    linear, shift = _transforms(path, n, notes)
    x_tilt = imod.read_x_tilt(x_tilt_file, n) if x_tilt_file.is_file() else np.zeros(n)
    command = _tilt_command(path.parent, base.name)
    etomo = base.with_suffix(".edf")
    warp_path = base.with_name(base.name + "_warp.xf")
    warp_file = imod.read_warp(warp_path, n) if warp_path.is_file() else None
    size, pixel = _size_of(series), None
    turned = bool(np.median(np.abs(np.sin(np.deg2rad(axis_angle(linear))))) > np.sqrt(0.5))
    made_on = _made_on(path, base.name, n, turned, command)
    if warp_file is not None:
        _check_same_linear(path, warp_path, linear, shift, warp_file)
        made_on.insert(0, Evidence(warp_path.name, warp_file.size, warp_file.pixel_size_A))
    if size is not None:
        made_on = [one for one in made_on if min(one.size) >= LEAST_SIDE]
    own_size, own_pixel = images_aligned(made_on, size, path)
    if own_size is not None:
        size, pixel = own_size, own_pixel
    elif etomo.is_file() and isinstance(series, TiltSeries):
        size, pixel = _by_pixel_size(imod.etomo_pixel_size_A(etomo), series, etomo, notes)
    if size is None:
        raise InputError(f"{path}: the size of its images is not known; put the stack {base.name}.mrc beside it")
    excluded: dict[int, str] = {}
    if command is None and etomo.is_file():
        views = checked_views(imod.etomo_excluded_views(etomo), n, etomo)
        excluded = {view: "left out in Etomo" for view in views}
    if command is not None:
        tilt = tilt + sum(command.numbers("OFFSET")[:1])
        x_tilt = x_tilt + sum(command.numbers("XAXISTILT")[:1])
        where = path.parent / "tilt.com"
        excluded = {
            view: "left out by tilt.com" for view in checked_views(imod.excluded_views(command, where), n, where)
        }
    alignment = Alignment(
        tilt_deg=tilt,
        linear=warp_file.linear if warp_file else linear,
        shift_px=warp_file.shift_px if warp_file else shift,
        image_size=size,
        pixel_size_A=pixel,
        warp=warp_file.warp if warp_file else None,
        x_tilt_deg=x_tilt,
        excluded=excluded,
    )
    if _all_identity(linear, shift):
        notes.append(f"{path.name}: every transform is the identity; it is for a stack that is aligned already")
    local = None if command is None else command.value("LOCALFILE")
    if command is None or not local or alignment.warp is not None:
        return alignment
    return _with_local_alignments(alignment, path, path.parent / local, command, notes)


def _transforms(path: Path, n: int, notes: list[str]) -> tuple[Array, Array]:
    """The lines of an ``.xf`` for ``n`` images; IMOD takes a single one for all."""
    linear, shift = imod.read_xf(path)
    if len(linear) == 1 and n > 1:
        notes.append(f"{path}: has one transform, which is applied to all {n} images")
        return np.repeat(linear, n, axis=0), np.repeat(shift, n, axis=0)
    return (linear, shift) if len(linear) == n else imod.read_xf(path, n)


def _with_local_alignments(
    alignment: Alignment, path: Path, local: Path, command: imod.CommandFile, notes: list[str]
) -> Alignment:
    """The local alignments that a ``tilt.com`` names, as the motion of the specimen's middle plane."""
    if local.name == path.name:
        notes.append(f"{local.name} is named as LOCALFILE too, as AreTomo does; it holds no local alignments")
        return alignment
    if not local.is_file():
        notes.append(f"local alignments of {local.name} are not there; the global alignment is used")
        return alignment
    with_z = command.value("ZFACTORFILE") is not None
    areas = read_local(local, alignment.n_tilts, alignment.image_size, alignment.pixel_size_A, with_z)
    thickness = (command.numbers("THICKNESS") or [0.0])[0]
    warp, lost = warp_from_local(areas, alignment, min(max(thickness, 0.0), 1e5))
    notes.append(
        f"local alignments of {local.name} are read at the middle of the specimen; what they say of depth is left out, "
        f"up to {lost:.2f} px at its top and bottom"
    )
    return replace(alignment, warp=warp)


def _tilt_angles(path: Path, n_tilts: int | None) -> Array:
    """Refined angles: those of a series, so the same is refused as there."""
    angles = imod.read_angles(path, n_tilts)
    check_tilt_angles(angles, len(angles), path)
    return angles


def _check_same_linear(path: Path, warp_path: Path, linear: Array, shift: Array, warp: imod.WarpFile) -> None:
    """The warp file repeats the ``.xf`` with more decimals; where it does not, one of them is out of date."""
    reach = max(warp.size) / 2
    apart = np.abs(warp.linear - linear).max() * reach + np.abs(warp.shift_px - shift).max()
    if apart > SAME_TRANSFORM + 1e-6 * reach:
        raise InputError(
            f"{warp_path}: its transforms differ from those of {path.name} by up to {apart:.3g} px; remove the one "
            "that is out of date"
        )


def _read_warp(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> Alignment:
    """A warp file; its angles come from the ``.tlt`` beside it, of the same base without ``_warp``."""
    base = path.stem.removesuffix("_warp")
    beside = path.with_name(base + ".xf")
    if path.stem != base and beside.is_file():
        return _read_xf(beside, series, notes)
    warp = imod.read_warp(path)
    tilt_file = path.with_name(base + ".tlt")
    if tilt_file.is_file():
        tilt = _tilt_angles(tilt_file, None if len(warp.linear) == 1 else len(warp.linear))
        if len(warp.linear) == 1 and len(tilt) > 1:
            notes.append(f"{path}: has one section, which is applied to all {len(tilt)} images")
        warp = imod.read_warp(path, len(tilt))
    elif series is not None and not isinstance(series, tuple):
        tilt = series.tilt_deg
        notes.append(f"{tilt_file.name} is not there: tilt angles are those of the series")
        warp = imod.read_warp(path, len(tilt))
    else:
        raise InputError(f"{tilt_file}: no such file; the alignment needs its tilt angles beside {path.name}")
    x_tilt_file = path.with_name(base + ".xtilt")
    x_tilt = imod.read_x_tilt(x_tilt_file, len(tilt)) if x_tilt_file.is_file() else np.zeros(len(tilt))
    return Alignment(tilt, warp.linear, warp.shift_px, warp.size, warp.pixel_size_A, warp.warp, x_tilt)


def _read_com(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> Alignment:
    """``newst.com``: the transforms it names."""
    name = imod.read_command_file(path, "newstack").value("TransformFile", "xform")
    if not name:
        raise InputError(f"{path}: names no TransformFile; give the .xf itself")
    target = path.parent / name
    if not target.is_file():
        raise InputError(f"{path}: names {name}, which is not there; put it beside, or give the .xf file itself")
    return (_read_warp if imod.is_warp_file(target) else _read_xf)(target, series, notes)


def _tilt_command(folder: Path, base: str) -> imod.CommandFile | None:
    """The ``tilt.com`` of this base in a folder (Etomo names it ``tilta.com`` for the first of two axes)."""
    for name in ("tilt.com", "tilta.com", "tiltb.com"):
        if (folder / name).is_file():
            command = imod.read_command_file(folder / name, "tilt")
            if Path(command.value("TILTFILE") or "").stem == base:
                return command
    return None


def _made_on(path: Path, base: str, n: int, turned: bool, command: imod.CommandFile | None) -> list[Evidence]:
    """What says how large the ``n`` images are that the ``.xf`` of a folder was made on, the best first.

    The folder's own stack, by its name or by that of ``newst.com``; the prealigned one; ``tilt.com``; Etomo's project.
    """
    folder, found = path.parent, []
    newst = folder / "newst.com"
    named = imod.read_command_file(newst, "newstack").value("InputFile") if newst.is_file() else None
    stacks = [folder / (base + suffix) for suffix in STACK_SUFFIXES if suffix != ".ali"]
    stacks += [folder / named] if named and not named.endswith(".ali") else []
    for stack in dict.fromkeys(stacks):
        header = _header(stack, n)
        if header is not None:
            size = header.shape[2], header.shape[1]
            found.append(Evidence(f"its stack {stack.name}", size, known_pixel_size(header.pixel_size_A)))
    if not found:
        found += _by_prealigned(folder, base, n)
    full = [] if command is None else command.numbers("FULLIMAGE")
    if len(full) == 2 and min(full) >= 1:
        # the raw images' size (IMOD), or that of the aligned ones (AreTomo), whose sides may be turned
        size = (int(full[1]), int(full[0])) if turned and _is_aretomo_folder(folder) else (int(full[0]), int(full[1]))
        found.append(Evidence("FULLIMAGE in its tilt.com", size, None, may_be_turned=turned))
    return found


def _by_pixel_size(
    own: float | None, series: TiltSeries, path: Path, notes: list[str]
) -> tuple[tuple[int, int], float | None]:
    """Size and pixel size of the images an Etomo project is of, where only its pixel size tells."""
    pixel, size = series.known_pixel_size_A, series.size
    if own is None or pixel is None or abs(own / pixel - 1) <= OTHER_PIXEL:
        return size, None
    factor = max(own / pixel, pixel / own)
    if factor < 1.9 or abs(factor - round(factor)) > 0.05 * factor:
        notes.append(
            f"{path}: says a pixel size of {own:.4g} Å, the images have {pixel:.4g} Å; shifts are taken in their pixels"
        )
        return size, None
    return (round(size[0] * pixel / own), round(size[1] * pixel / own)), own


def _by_prealigned(folder: Path, base: str, n: int) -> list[Evidence]:
    """Etomo's prealigned stack has all of the raw images, binned as ``prenewst.com`` says."""
    com = folder / "prenewst.com"
    if not com.is_file():
        return []
    bins = imod.read_command_file(com, "newstack").numbers("BinByFactor") or [1.0]
    for name in (f"{base}.preali", f"{base}_preali.mrc"):
        header = _header(folder / name, n)
        if header is not None and bins[0] >= 1:
            size = round(header.shape[2] * bins[0]), round(header.shape[1] * bins[0])
            return [Evidence(f"its {name}, binned by {bins[0]:g}", size)]
    return []


def _header(stack: Path, n: int) -> MrcHeader | None:
    """The header of a stack of ``n`` images, None where there is no such stack."""
    try:
        header = read_header(stack) if stack.is_file() else None
    except InputError:
        return None
    return header if header is not None and header.shape[0] == n else None
