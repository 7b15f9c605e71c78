"""What an ``inr-align`` folder says of its run, checked as far as the report relies on it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.belonging.order import order_of, shown
from inrtomo.io.files import read_text
from inrtomo.io.imod import read_command_file
from inrtomo.tiltseries import TiltSeries, open_tilt_series

Array = NDArray[np.float64]

ENDING = "_align.json"


@dataclass(frozen=True)
class Run:
    """A finished run of ``inr-align``; lengths in raw px, NaN where a value is not known.

    Attributes:
        json: its ``BASE_align.json``; base: name of the series.
        values: all that the JSON holds.
        alignment: the result.
        nominal_tilt_deg, residual_px: per tilt ``(n,)``; sigma_shift_px: ``(n, 2)``.
        tracks_px: x, y and RMS residual of every track ``(n_tracks, 3)``.
        losses: rows of bin (raw px), loss of fitted, loss of held-out pixels, one a step ``(n_steps, 3)``.
        thickness_px: of the specimen.
    """

    json: Path
    base: str
    values: dict[str, Any]
    alignment: Alignment
    nominal_tilt_deg: Array
    residual_px: Array
    sigma_shift_px: Array
    tracks_px: Array
    losses: Array
    thickness_px: float

    def beside(self, ending: str) -> Path | None:
        """``BASE`` + ending in the run's folder, if it is there."""
        path = self.json.with_name(self.base + ending)
        return path if path.is_file() else None


def read_run(path: Path) -> Run:
    """Read an output folder of ``inr-align``, or its JSON. Raises InputError for anything else."""
    source = _json_of(path)
    alignment = read_alignment(source)
    try:
        values = json.loads(read_text(source))
        _check_kinds(values)
        n = alignment.n_tilts
        tracks = values.get("tracks") or {"place_px": [], "residual_px": []}
        losses = [(row[0] * values.get("working_bin", 1), row[2], row[3]) for row in values["losses"]]
        return Run(
            json=source,
            base=source.name.removesuffix(ENDING),
            values=values,
            alignment=alignment,
            nominal_tilt_deg=_array(values["input"]["nominal_tilt_deg"], (n,)),
            residual_px=_array(values["residual_px"], (n,)),
            sigma_shift_px=_array(values.get("sigma_shift_px"), (n, 2)),
            tracks_px=np.column_stack(
                [_array(tracks["place_px"], (-1, 2)), _array(tracks["residual_px"], (len(tracks["place_px"]),))]
            ),
            losses=_array(losses, (-1, 3)),
            thickness_px=float(values["thickness_px"]),
        )
    except KeyError as error:
        raise InputError(f"{source}: has no {error.args[0]!r}; give the folder that inr-align wrote") from None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError):
        raise InputError(f"{source}: is damaged; run inr-align again") from None


def open_stack_of(run: Run, given: Path | None) -> tuple[TiltSeries | None, str]:
    """The raw images of a run, or None and why not.

    The stack is the one given, else that of ``newst.com`` (it names it from the folder, which may have been moved
    together with the data), else the one in the JSON.

    Raises:
        InputError: the stack given cannot be read or is of another series.
    """
    candidates = [given] if given is not None else [*_named_in_com(run), Path(str(run.values["input"].get("stack")))]
    path = next((p for p in candidates if p.is_file()), candidates[0])
    sources = run.values["input"].get("sources") or {}
    angles = Path(str(sources.get("tilt angles")))
    try:
        series = open_tilt_series(path, angles if angles.is_file() else None)
    except InputError as error:
        if given is not None:
            raise
        return None, f"{error}; --stack names it"
    a = run.alignment
    if series.n_tilts != a.n_tilts or series.size != a.image_size:
        raise InputError(
            f"{path}: has {series.n_tilts} images of {series.size[0]} x {series.size[1]} px, the alignment "
            f"{a.n_tilts} of {a.image_size[0]} x {a.image_size[1]}; give the stack of this run with --stack"
        )
    if not order_of(run.nominal_tilt_deg, series.tilt_deg, same_zero=True).is_same:
        why_not = (
            f"{path}: its images are in the order {shown(series.tilt_deg)} degrees, those of the run in the order "
            f"{shown(run.nominal_tilt_deg)}; give the stack of this run with --stack"
        )
        if given is not None:
            raise InputError(why_not)
        return None, why_not
    series.excluded = dict(a.excluded)
    return series, ""


def _json_of(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob(f"*{ENDING}"))
        if len(found) != 1:
            what = "no BASE_align.json" if not found else f"{', '.join(p.name for p in found[:4])}"
            hint = "give a folder that inr-align wrote" if not found else "name one of them"
            raise InputError(f"{path}: holds {what}; {hint}")
        return found[0]
    if not path.name.endswith(ENDING):
        raise InputError(f"{path}: is no folder of inr-align; give one, or its BASE{ENDING}")
    return path


def _check_kinds(values: dict[str, Any]) -> None:
    """ValueError where something that is shown as it stands is not of its kind; it may be missing."""
    for kind, keys in (
        (dict, ("guard", "versions", "seconds")),
        (list, ("notes", "wrong_start", "doubts")),
        (int | float, ("residual_rms_px", "held_out_loss", "peak_memory_bytes", "tomogram_height_px")),
    ):
        for key in keys:
            if not isinstance(values.get(key), kind | None):  # type: ignore[operator]
                raise ValueError(key)
    for number in (values.get("seconds") or {}).values():
        float(number)


def _named_in_com(run: Run) -> list[Path]:
    try:
        name = read_command_file(run.json.with_name("newst.com"), "newstack").value("InputFile")
    except InputError:
        return []
    return [] if name is None else [run.json.parent / name]


def _array(values: Any, shape: tuple[int, ...]) -> Array:
    """Numbers of a shape; null, or nothing at all, is NaN."""
    if values is None:
        return np.full(shape, np.nan)
    array = np.array(values, dtype=object)
    array[array == None] = np.nan  # noqa: E711 (element by element)
    return array.astype(np.float64).reshape(shape)
