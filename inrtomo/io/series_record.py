"""SeriesRecord: an alignment with what its file says of the series beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.ctf import Defoci
from inrtomo.errors import InputError
from inrtomo.tiltseries import SAME_TILT_DEG, TiltSeries

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

NAME_ENDINGS = ("_align", "_truth", "_warp", "_st", "_Imod")
"""Of files made for a series of the name before them."""


@dataclass(frozen=True)
class SeriesRecord:
    """What formats hold in common, per image in the order of `alignment`.

    Attributes:
        name: of the series.
        nominal_tilt_deg: recorded angles ``(n,)``; exposure_e_A2: received before each image ``(n,)``.
        images: where each image is, ``3@ts.mrc`` (section 3, from 1) or a file of its own.
        thickness_px: of the tomogram, raw px.
        defoci: of every image. Written for RELION; no format's reader gives them.
        Each is None where the file does not say.
    """

    alignment: Alignment
    name: str
    nominal_tilt_deg: Array | None = None
    exposure_e_A2: Array | None = None
    images: tuple[str, ...] | None = None
    thickness_px: float | None = None
    defoci: Defoci | None = None


def series_name(path: str | Path) -> str:
    """Name of the series that a file or folder was made for: its stem without the endings programs add."""
    name = Path(path).name
    name = name if Path(path).is_dir() else Path(path).stem
    for _ in NAME_ENDINGS:
        for end in NAME_ENDINGS:
            if len(name) > len(end):
                name = name.removesuffix(end)
    return name


def on_stack(record: SeriesRecord, series: TiltSeries, path: Path, notes: list[str]) -> SeriesRecord:
    """The record in the order of a stack; images it has no entry for are excluded.

    An entry finds its image by the section in its image's name, else by its angle, unless the two are in order already.

    Raises:
        InputError: an entry fits no image of the stack.
    """
    a = record.alignment
    at = _sections_by_name(record) if record.images else None
    if at is None or at.max() >= series.n_tilts:
        at = _sections_by_angle(record, series)
    if at is None:
        raise InputError(
            f"{path}: aligns {a.n_tilts} images, {series.path} has {series.n_tilts}; give the alignment of this series"
        )
    if a.n_tilts == series.n_tilts and (at == np.arange(a.n_tilts)).all():
        return record
    n = series.n_tilts
    missing = sorted(set(range(n)) - set(at.tolist()))
    notes.append(
        f"{path}: its entries were put in the order of {series.path}"
        + (f", where images {', '.join(map(str, missing))} (from 0) have none and are left out" if missing else "")
    )
    linear = np.tile(a.linear[int(np.argmin(np.abs(a.tilt_deg)))], (n, 1, 1))
    shift, tilt, x_tilt = np.zeros((n, 2)), series.tilt_deg.copy(), np.full(n, np.median(a.x_tilt_deg))
    linear[at], shift[at], tilt[at], x_tilt[at] = a.linear, a.shift_px, a.tilt_deg, a.x_tilt_deg
    warp = a.warp
    if warp is not None:
        vectors = np.zeros((n, *warp.vectors.shape[1:]))
        vectors[at] = warp.vectors
        warp = replace(warp, vectors=vectors)
    excluded = {int(at[k]): reason for k, reason in a.excluded.items()} | dict.fromkeys(missing, f"not in {path.name}")
    moved = replace(
        a,
        tilt_deg=tilt,
        linear=linear,
        shift_px=shift,
        x_tilt_deg=x_tilt,
        warp=warp,
        excluded=dict(sorted(excluded.items())),
    )
    exposure = None
    if record.exposure_e_A2 is not None and not missing:
        exposure = np.empty(n)
        exposure[at] = record.exposure_e_A2
    elif record.exposure_e_A2 is not None and series.exposure_e_A2 is None:
        notes.append(f"{path}: its doses are lost, since images without an entry have none; an .mdoc has them")
    return replace(record, alignment=moved, nominal_tilt_deg=series.tilt_deg, images=None, exposure_e_A2=exposure)


def _sections_by_name(record: SeriesRecord) -> Ints | None:
    """Stack index from names like ``3@ts.mrc``, all different and of one stack; None where they are not like that."""
    found = [re.fullmatch(r"0*([1-9]\d{0,5})@(.+)", name) for name in record.images or ()]
    if not all(found) or len({match.group(2) for match in found if match}) != 1:
        return None
    at = np.array([int(match.group(1)) - 1 for match in found if match])
    return at if len(set(at.tolist())) == len(at) else None


def _sections_by_angle(record: SeriesRecord, series: TiltSeries) -> Ints | None:
    """Stack index by the recorded, else by the refined angles; None where they do not tell images apart."""
    a = record.alignment
    if a.n_tilts > series.n_tilts:
        return None
    same_order = np.arange(a.n_tilts) if a.n_tilts == series.n_tilts else None
    for angles in (record.nominal_tilt_deg, a.tilt_deg):
        if angles is None:
            continue
        if same_order is not None and np.abs(_centred(angles - series.tilt_deg)).max() < SAME_TILT_DEG:
            return same_order
        nearest = np.abs(series.tilt_deg[None] - angles[:, None]).argmin(axis=1)
        apart = np.abs(series.tilt_deg[nearest] - angles)
        if len(set(nearest.tolist())) == len(nearest) and apart.max() < SAME_TILT_DEG:
            return nearest
    # angles refined far from the recorded ones: as many entries as images, in the order of the stack
    return same_order if record.nominal_tilt_deg is None else None


def _centred(difference: Array) -> Array:
    return np.asarray(difference - np.median(difference))
