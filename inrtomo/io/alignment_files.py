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
from inrtomo.geometry import axis_angle, sides_turned
from inrtomo.io import etomo, imod, numbers
from inrtomo.io.alignment_json import alignment_from_dict
from inrtomo.io.aretomo import read_aln_record
from inrtomo.io.belonging.alignment import (
    Evidence,
    Images,
    fitted,
    images_aligned,
    on_images,
)
from inrtomo.io.belonging.metadata import mdoc_pixel_size
from inrtomo.io.belonging.sizes import TOLERANCE
from inrtomo.io.belonging.tables import checked_views
from inrtomo.io.etomo_images import by_pixel_size, made_on
from inrtomo.io.files import check_output, make_folder, read_text, write_text
from inrtomo.io.mdoc import read_mdoc
from inrtomo.io.plausible import check_plausible
from inrtomo.io.relion import is_relion, read_relion
from inrtomo.io.series_record import SeriesRecord, series_name
from inrtomo.io.star import read_star
from inrtomo.io.warp import read_warp_xml
from inrtomo.tiltseries import TiltSeries

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
        InputError: when one of them exists already, unless it may be overwritten, or a com file cannot hold a name;
            then nothing is written.
    """
    folder = make_folder(folder)
    paths = alignment_paths(folder, base)
    for path in paths:
        check_output(path, overwrite)
    aligned, reconstruction = f"{base}_ali.mrc", f"{base}_full_rec.mrc"
    size = alignment.aligned_size
    newst = imod.newst_com(base, str(stack or f"{base}.mrc"), aligned, size if alignment.sides_turned else None)
    tilt = imod.tilt_com(base, aligned, reconstruction, size, thickness_px, sorted(alignment.excluded))
    imod.write_xf(paths[0], alignment.linear, alignment.shift_px, overwrite)
    imod.write_angles(paths[1], alignment.tilt_deg, overwrite)
    imod.write_x_tilt(paths[2], alignment.x_tilt_deg, overwrite)
    imod.write_warp(paths[3], alignment, overwrite)
    write_text(paths[4], newst, overwrite)
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
    if path.suffix in (".edf", ".adoc"):
        raise InputError(f"{path}: says how Etomo works, not how images lie; give its folder, or the .xf in it")
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
    if (np.linalg.det(record.alignment.linear) < 0).all():
        notes.append(f"{path}: its transforms mirror the images, so the hand of the tomogram is the other one")
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
    raw, tilt_file = base.with_suffix(".rawtlt"), base.with_suffix(".tlt")
    lists = sorted(path.parent.glob("*_order_list.csv")) if _is_aretomo_folder(path.parent) else []
    source = raw if raw.is_file() else lists[0] if len(lists) == 1 and tilt_file.is_file() else None
    if source is None:
        return None
    angles = imod.read_angles(raw) if source == raw else np.sort(_order_list(source))
    refined = None if source == raw else imod.read_angles(tilt_file)
    if len(angles) != n or (refined is not None and len(refined) != n):
        notes.append(f"{source}: does not have the angles of {n} images; it is not used")
        return None
    return angles if refined is None else np.asarray(angles[np.argsort(np.argsort(refined, kind="stable"))])


def _dark_as_the_rest(record: SeriesRecord) -> Alignment:
    """With the offset of the refined angles also in those of dark images, which an ``.aln`` has as recorded."""
    a, nominal = record.alignment, record.nominal_tilt_deg
    if nominal is None or not a.excluded or not len(a.included):
        return a
    tilt, dark = a.tilt_deg.copy(), sorted(a.excluded)
    tilt[dark] = nominal[dark] + np.median((tilt - nominal)[a.included])
    return replace(a, tilt_deg=tilt)


def _order_list(path: Path) -> Array:
    """Recorded angles ``(n,)`` of AreTomo's list ``ImageNumber, TiltAngle``, in the order of acquisition."""
    rows = [(k, line.strip()) for k, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if rows and rows[0][1][0].isalpha():
        rows = rows[1:]
    bad = [k for k, line in rows if line.count(",") != 1]
    if bad:
        raise InputError(f"{path}: line {bad[0]} is not the number of an image and its angle; write them as 1,-3.00")
    return np.array([numbers.read(line.split(",")[1], f"{path}: line {k}", numbers.TILT) for k, line in rows])


def _thickness(path: Path) -> float | None:
    command = etomo.tilt_command(path.parent, path.stem.removesuffix("_warp"))
    return None if command is None else etomo.thickness(command)


def _checked(alignment: Alignment, path: Path) -> Alignment:
    """The alignment, or InputError where its numbers cannot be one."""
    check_plausible(alignment, path)
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
        recorded = whole.get("nominal_tilt_deg", inputs.get("nominal_tilt_deg"))
        images = whole.get("images")
        exposure = whole.get("exposure_e_A2")
        lists = {"nominal_tilt_deg": recorded, "exposure_e_A2": exposure, "images": images}
        for name, values in lists.items():
            _check_one_an_image(name, values, alignment.n_tilts, path)
        thickness = whole.get("thickness_px")
        if thickness is None and alignment.pixel_size_A and whole.get("thickness_nm"):
            nm = numbers.check(whole["thickness_nm"], f"{path}: thickness_nm", numbers.THICKNESS_NM)
            thickness = nm * 10 / alignment.pixel_size_A
        if thickness is not None:
            numbers.check(thickness, f"{path}: thickness_px", numbers.THICKNESS_PX)
        return SeriesRecord(
            alignment,
            str(whole.get("name") or series_name(path)),
            _known(recorded, numbers.TILT),
            _known(exposure, numbers.DOSE),
            tuple(map(str, images)) if images else None,
            float(thickness) if thickness else None,
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
    notes += [said, *mdoc.remarks] if said else mdoc.remarks
    alignment = Alignment.identity(mdoc.tilt_deg, size, mdoc.axis_deg or 0.0, pixel)
    return SeriesRecord(alignment, name, mdoc.tilt_deg, mdoc.prior_exposure_e_A2)


def _check_one_an_image(name: str, values: object, n: int, path: Path) -> None:
    """InputError where a list of the JSON, if it is there, has not one entry an image."""
    if values is not None and not (isinstance(values, list) and len(values) == n):
        count = f"{len(values)} entries" if isinstance(values, list) else "no list"
        raise InputError(f"{path}: {name} has {count} for {n} images; give the file of this series")


def _known(values: list[Any] | None, quantity: numbers.Quantity) -> Array | None:
    """Numbers of a list, or None where there is none; ValueError where one of them cannot be."""
    if values is None:
        return None
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or not ((array >= quantity.low) & (array <= quantity.high)).all():
        raise ValueError
    return array


def _read_xf(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> Alignment:
    """``BASE.xf`` with what lies beside it."""
    base = path.with_suffix("")
    expected = None if series is None or isinstance(series, tuple) else series.n_tilts
    tilt_file, x_tilt_file = base.with_suffix(".tlt"), base.with_suffix(".xtilt")
    command = etomo.tilt_command(path.parent, base.name, notes)
    tilt = etomo.angles_of(command, tilt_file, expected, notes)
    if tilt is None and series is not None and not isinstance(series, tuple):
        tilt = series.tilt_deg
        notes.append(f"{tilt_file.name} is not there: tilt angles are those of the series")
    if tilt is None:
        raise InputError(f"{tilt_file}: no such file; the alignment needs its tilt angles beside {path.name}")
    n = len(tilt)
    linear, shift = _transforms(path, n, notes)
    x_tilt = etomo.x_tilts_of(command, x_tilt_file, n, notes)
    project = etomo.project_of(path.parent, base.name)
    warp_path = base.with_name(base.name + "_warp.xf")
    warp_file = imod.read_warp(warp_path, n) if warp_path.is_file() else None
    size, pixel = _size_of(series), None
    evidence = made_on(path.parent, base.name, n, sides_turned(axis_angle(linear)), command, size)
    if warp_file is not None:
        _check_same_linear(path, warp_path, linear, shift, warp_file)
        evidence.insert(0, Evidence(warp_path.name, warp_file.size, warp_file.pixel_size_A))
    if size is not None:
        evidence = [one for one in evidence if min(one.size) >= LEAST_SIDE]
    own_size, own_pixel = images_aligned(evidence, size, path)
    if own_size is not None:
        size, pixel = own_size, own_pixel
    elif project is not None and isinstance(series, TiltSeries):
        size, pixel = by_pixel_size(project[0], series, notes)
    if size is None:
        raise InputError(f"{path}: the size of its images is not known; put the stack {base.name}.mrc beside it")
    excluded: dict[int, str] = {}
    if command is None and project is not None:
        views = checked_views(imod.etomo_excluded_views(*project), n, project[0])
        excluded = {view: "left out in Etomo" for view in views}
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
    return _as_etomo_has_it(alignment, path, base.name, command, notes)


def _transforms(path: Path, n: int, notes: list[str]) -> tuple[Array, Array]:
    """The lines of an ``.xf`` for ``n`` images; IMOD takes a single one for all."""
    linear, shift = imod.read_xf(path)
    if len(linear) == 1 and n > 1:
        notes.append(f"{path}: has one transform, which is applied to all {n} images")
        return np.repeat(linear, n, axis=0), np.repeat(shift, n, axis=0)
    return (linear, shift) if len(linear) == n else imod.read_xf(path, n)


def _as_etomo_has_it(
    alignment: Alignment, path: Path, base: str, command: imod.CommandFile | None, notes: list[str]
) -> Alignment:
    """With what the com files of the folder say, or a sentence on what of them is left out."""
    if command is not None:
        alignment = etomo.placed(alignment, etomo.read_tilt_com(command, alignment.n_tilts), command, path.name, notes)
    notes += etomo.sentences(command, path.parent, base, alignment.excluded)
    return alignment


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
    command = etomo.tilt_command(path.parent, base, notes)
    tilt = etomo.angles_of(command, tilt_file, None if len(warp.linear) == 1 else len(warp.linear), notes)
    if tilt is not None:
        if len(warp.linear) == 1 and len(tilt) > 1:
            notes.append(f"{path}: has one section, which is applied to all {len(tilt)} images")
        warp = imod.read_warp(path, len(tilt))
    elif series is not None and not isinstance(series, tuple):
        tilt = series.tilt_deg
        notes.append(f"{tilt_file.name} is not there: tilt angles are those of the series")
        warp = imod.read_warp(path, len(tilt))
    else:
        raise InputError(f"{tilt_file}: no such file; the alignment needs its tilt angles beside {path.name}")
    x_tilt = etomo.x_tilts_of(command, path.with_name(base + ".xtilt"), len(tilt), notes)
    alignment = Alignment(tilt, warp.linear, warp.shift_px, warp.size, warp.pixel_size_A, warp.warp, x_tilt)
    return _as_etomo_has_it(alignment, path, base, command, notes)


def _read_com(path: Path, series: TiltSeries | tuple[int, int] | None, notes: list[str]) -> Alignment:
    """``newst.com``: the transforms it names."""
    try:
        name = etomo.read_newst(path).value("TransformFile")
    except InputError:
        raise InputError(f"{path}: runs no newstack, so it names no transforms; give the .xf or its folder") from None
    if not name:
        raise InputError(f"{path}: names no TransformFile; give the .xf itself")
    target = path.parent / name
    if not target.is_file():
        raise InputError(f"{path}: names {name}, which is not there; put it beside, or give the .xf file itself")
    return (_read_warp if imod.is_warp_file(target) else _read_xf)(target, series, notes)
