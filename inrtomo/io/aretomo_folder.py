"""AreTomo's ``X_Imod`` folders: the alignment as IMOD files, in the two layouts that are handed to RELION and Warp.

Layout 1 (``-OutImod 1``) has a line for every image of the raw stack in its order, the identity for those left out.
Layout 2 has the images in use only, sorted by angle, with a stack of them. The transforms are the linear ones; local
motion is not part of either. Reading them is left to `inrtomo.io.alignment_files`, which knows both.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from inrtomo.errors import InputError
from inrtomo.io import imod
from inrtomo.io.files import check_output, make_folder, write_text
from inrtomo.io.images import open_images
from inrtomo.io.mrc import StackWriter
from inrtomo.io.series_record import SeriesRecord

DEFAULT_THICKNESS_PX = 200


def write_aretomo_folder(
    path: str | Path, record: SeriesRecord, layout: int, stack: str | Path | None, overwrite: bool = False
) -> tuple[list[Path], list[str]]:
    """Write ``NAME_Imod`` and in it ``NAME_st.xf .tlt .xtilt``, com files, and the order of recording where known.

    Args:
        path: the folder, or the one to make it in where its name does not end in ``_Imod``.
        layout: 1 or 2.
        stack: the raw stack; layout 2 copies its images.

    Returns:
        The files, and sentences on what they do not hold.

    Raises:
        InputError: nothing is left to write, layout 2 has no stack, a com file cannot hold a name, or a file exists.
    """
    a = record.alignment
    folder = Path(path) if Path(path).name.endswith("_Imod") else Path(path) / f"{record.name}_Imod"
    base = f"{folder.name.removesuffix('_Imod')}_st"
    files = {end: folder / f"{base}{end}" for end in (".xf", ".tlt", ".xtilt", "_order_list.csv")}
    files |= {name: folder / name for name in ("newst.com", "tilt.com")}
    if record.exposure_e_A2 is None:
        del files["_order_list.csv"]
    if layout == 2:
        files[".mrc"] = folder / f"{base}.mrc"
        if stack is None:
            raise InputError(f"{folder}: holds a stack of the images in use; give the raw one with --stack")
    if not len(a.included):
        raise InputError(f"{folder}: every image is excluded; nothing is left to write")
    raw = f"{base}.mrc" if layout == 2 else f"{record.name}.mrc" if stack is None else os.path.relpath(stack, folder)
    turned = a.aligned_size if a.sides_turned else None
    newst = imod.newst_com(base, raw, f"{base}_ali.mrc", turned).replace(f"{base}_warp.xf", f"{base}.xf")
    make_folder(folder)
    for file in files.values():
        check_output(file, overwrite)
    notes = []
    if layout == 2:
        rows: list[int] = sorted(a.included.tolist(), key=lambda m: (a.tilt_deg[m], m))
        assert stack is not None
        _copy_images(Path(stack), files[".mrc"], rows, a.n_tilts, overwrite)
        excluded: list[int] = []
        if a.excluded:
            left_out = ", ".join(map(str, sorted(a.excluded)))
            notes.append(f"{base}.mrc: images {left_out} (from 0) are not in it; their transforms and reasons are lost")
    else:
        rows, excluded = list(range(a.n_tilts)), sorted(a.excluded)
        if excluded:
            left_out = ", ".join(map(str, excluded))
            notes.append(f"{base}.xf: left out images {left_out} (from 0) have the identity; the reasons are not held")
    linear, shift = a.linear.copy(), a.shift_px.copy()
    linear[excluded], shift[excluded] = np.eye(2), 0.0
    imod.write_xf(files[".xf"], linear[rows], shift[rows], overwrite)
    imod.write_angles(files[".tlt"], a.tilt_deg[rows], overwrite)
    imod.write_x_tilt(files[".xtilt"], a.x_tilt_deg[rows], overwrite)
    thickness = round(record.thickness_px or DEFAULT_THICKNESS_PX)
    if record.thickness_px is None:
        notes.append(f"tilt.com: no thickness is known; THICKNESS is {DEFAULT_THICKNESS_PX} px")
    write_text(files["newst.com"], newst, overwrite)
    tilt = imod.tilt_com(base, f"{base}_ali.mrc", f"{base}_rec.mrc", a.aligned_size, thickness, excluded)
    write_text(files["tilt.com"], tilt, overwrite)
    if record.exposure_e_A2 is None:
        notes.append(f"{folder.name}: the order of recording is not known, so there is no {base}_order_list.csv")
    else:
        recorded = a.tilt_deg if record.nominal_tilt_deg is None else record.nominal_tilt_deg
        order = [m for m in np.argsort(record.exposure_e_A2, kind="stable") if m in rows]
        table = "".join(f"{k},{recorded[m]:.2f}\n" for k, m in enumerate(order, 1))
        write_text(files["_order_list.csv"], "ImageNumber, TiltAngle\n" + table, overwrite)
        notes.append(f"{base}_order_list.csv: holds the order of recording; doses are not held")
    if layout == 1 and a.pixel_size_A is not None:
        notes.append(f"{folder.name}: holds no pixel size; that of the raw stack counts")
    if a.warp is not None:
        notes.append(f"{base}.xf: holds no local motion; --to imod writes a warp file, --to aretomo patches")
    return list(files.values()), notes


def _copy_images(stack: Path, target: Path, rows: list[int], n_tilts: int, overwrite: bool) -> None:
    """Images of a stack in another order, unchanged but for being float32."""
    images = open_images(stack)
    if images.shape[0] != n_tilts:
        raise InputError(
            f"{stack}: has {images.shape[0]} images, the alignment {n_tilts}; give the stack of the series"
        )
    shape = (len(rows), *images.shape[1:])
    with StackWriter(target, shape, 2, images.pixel_size_A, overwrite, label="inr-convert: sorted") as writer:
        for row in rows:
            writer.write(images.image(row))
