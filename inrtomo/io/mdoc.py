"""SerialEM's ``.mdoc``: what was recorded, when, at which tilt and dose.

Only the keys used here reach the parser: microscopes and their software add others, and broken ones, all the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io import numbers
from inrtomo.io.files import read_text
from inrtomo.io.keys import Section, no_matter, taken
from inrtomo.io.numbers import Word

Array = NDArray[np.float64]

NUMBERS = {
    "TiltAngle": numbers.TILT,
    "ExposureDose": numbers.DOSE,
    "PriorRecordDose": numbers.DOSE,
    "PixelSpacing": numbers.PIXEL_SIZE,
}
"""Keys of a section that hold a number, and what it can be."""
KEYS = (*NUMBERS, "SubFramePath", "DateTime")
MDOC = Section(
    "NAME.mdoc",
    (
        *taken("recorded tilt angle", "TiltAngle"),
        *taken("exposure of the image", "ExposureDose"),
        *taken("exposure before the image; where it is missing, the sum of the doses before", "PriorRecordDose"),
        *taken("order of recording", "DateTime"),
        *taken("Å of a pixel, where the stack's header does not say it", "PixelSpacing"),
        *taken("movie of the image", "SubFramePath"),
        *taken("size of the images", "ImageSize"),
        *taken("tilt axis, in the title", "Tilt axis angle"),
        *no_matter("turn of the camera; the tilt axis is that of the title", "RotationAngle"),
        *no_matter("where the stage and the beam were", "StagePosition", "StageZ", "ImageShift"),
        *no_matter("what was aimed at; the defocus has to be measured", "Defocus", "TargetDefocus"),
    ),
    "no matter here",
)
SECTION = re.compile(r"^\[ZValue\s*=\s*\d+\s*\]$", re.ASCII)
SIZE = re.compile(r"^ImageSize\s*=\s*(\S.*)$")
AXIS = re.compile(r"Tilt axis angle\s*=\s*([^\s\]]+?)(?=,?(\s|\]|$))")
DAYS = ("%d-%b-%y", "%d-%b-%Y", "%Y-%b-%d", "%Y-%m-%d")
HOURS = ("%H:%M:%S", "%I:%M:%S %p")
HALF_A_DAY_S = 12 * 3600.0
SAME_SPACING = 0.02
"""Pixel sizes of one file that differ by more are of different magnifications."""


@dataclass(frozen=True)
class Mdoc:
    """One entry a section, in the order of ``ZValue``; None where the file (or one section) does not say.

    Attributes:
        tilt_deg: stage tilt; dose_e_A2: of every image; prior_dose_e_A2: received before it;
        time_s: seconds since the first exposure; pixel_size_A: of the images; axis_deg: tilt axis from the title;
        movies: name of every section's movie without its folder; image_size: (nx, ny).
        remarks: sentences on what the file says and cannot be used.
    """

    tilt_deg: Array
    dose_e_A2: Array | None
    prior_dose_e_A2: Array | None
    time_s: Array | None
    pixel_size_A: float | None
    axis_deg: float | None
    movies: list[str] | None
    image_size: tuple[int, int] | None
    remarks: tuple[str, ...] = ()

    @property
    def order(self) -> NDArray[np.int64] | None:
        """Acquisition index of every section: by time, else by accumulated dose; None when neither tells them apart."""
        for values in (self.time_s, self.prior_dose_e_A2):
            if values is not None and len(np.unique(values)) == len(values):
                order = np.empty(len(values), dtype=np.int64)
                order[np.argsort(values, kind="stable")] = np.arange(len(values))
                return order
        return None

    @property
    def prior_exposure_e_A2(self) -> Array | None:
        """Exposure received before every image, as recorded or else summed over those before; None where unknown."""
        prior, dose, order = self.prior_dose_e_A2, self.dose_e_A2, self.order
        if prior is not None and prior.any():
            return prior
        if dose is None or order is None or dose.min() < 0 or not dose.any():
            return None
        return np.array([dose[order < turn].sum() for turn in order])


def read_mdoc(path: str | Path) -> Mdoc:
    """Read the ``.mdoc`` of a tilt series.

    Raises:
        InputError: no tilt series (a montage or a set of frames), sections without a tilt angle, damage.
    """
    from mdocfile.data_models import Mdoc as MdocFile  # brings pandas along: only where there is an mdoc

    lines = [line.strip() for line in read_text(path).splitlines()]
    if not any(SECTION.match(line) for line in lines):
        raise InputError(f"{path}: is not the .mdoc of a tilt series (it has no [ZValue = n]); give another")
    kept, titles, in_section = [], [], False
    for number, line in enumerate(lines, 1):
        key, _, value = (part.strip() for part in line.partition("="))
        if line.startswith("[T"):
            titles.append(Word(line, number))
        elif line.startswith("["):
            in_section = bool(SECTION.match(line))
            if in_section:
                kept.append(f"[ZValue = {value.rstrip('] ')}]")
        elif in_section and key in NUMBERS and value:
            kept.append(f"{key} = {numbers.read(value, f'{path}: line {number}: {key}', NUMBERS[key])!r}")
        elif in_section and key in KEYS and value:
            kept.append(f"{key} = {value}")
    try:
        sections = MdocFile.from_lines(kept).section_data
    except ValueError as error:
        raise InputError(f"{path}: {_first_complaint(error)}; correct it") from None
    if not sections:
        raise InputError(f"{path}: none of its sections says anything; copy it again")
    z = [section.ZValue for section in sections]
    if len(set(z)) != len(z):
        raise InputError(f"{path}: has the same ZValue twice; give an .mdoc of one series")
    sections = [sections[k] for k in np.argsort(np.array(z))]
    tilt = _column([section.TiltAngle for section in sections])
    if tilt is None:
        raise InputError(f"{path}: has sections without a TiltAngle; give the angles in a .rawtlt")
    spacing = _column([section.PixelSpacing for section in sections])
    paths = [section.SubFramePath for section in sections]
    size = next(((int(nx), int(ny)) for nx, ny in _sizes(lines, path)), None)
    axis = next(
        (numbers.read(m.group(1), f"{numbers.where(path, title)}: Tilt axis angle", numbers.AXIS)
         for title in titles if (m := AXIS.search(title))),
        None,
    )  # fmt: skip
    one_spacing = spacing is not None and 0 < spacing.max() <= (1 + SAME_SPACING) * spacing.min()
    remarks = []
    if spacing is not None and spacing.any() and not one_spacing:
        remarks.append(
            f"{path}: its images have pixel sizes from {spacing.min():.4g} to {spacing.max():.4g} Å; none is used, so "
            "check whether they are of one magnification"
        )
    mdoc = Mdoc(
        tilt_deg=tilt,
        dose_e_A2=_column([section.ExposureDose for section in sections]),
        prior_dose_e_A2=_column([section.PriorRecordDose for section in sections]),
        time_s=_times([section.DateTime for section in sections]),
        pixel_size_A=float(spacing[0]) if spacing is not None and one_spacing else None,
        axis_deg=axis,
        movies=None if None in paths else [PureWindowsPath(str(p)).name for p in paths],
        image_size=size,
    )
    if mdoc.prior_exposure_e_A2 is None and mdoc.dose_e_A2 is not None and mdoc.dose_e_A2.any():
        why = _no_order([section.DateTime for section in sections])
        remarks.append(
            f"{path}: has the doses of its images but not their order ({why}), so their exposures are unknown"
        )
    return replace(mdoc, remarks=tuple(remarks))


def _no_order(texts: list[str | None]) -> str:
    """Why the times of the sections do not say in which order they were recorded."""
    for k, text in enumerate(texts):
        if not text:
            return "no DateTime" if not any(texts) else f"section {k} has no DateTime"
        if _moment(text) is None:
            return f"DateTime {text[: numbers.SHOWN]!r} is not known here; write 01-Jan-24  13:30:00"
    return "sections have the same DateTime"


def _sizes(lines: list[str], path: str | Path) -> Iterator[list[float]]:
    """(nx, ny) of every line that says it."""
    for number, line in enumerate(lines, 1):
        if found := SIZE.match(line):
            yield numbers.read_list(found.group(1), f"{path}: line {number}: ImageSize", (2,), numbers.SIZE_PX)


def _column(values: list[float | None]) -> Array | None:
    """Numbers of all sections, or None."""
    if any(value is None for value in values):
        return None
    return np.array(values, dtype=np.float64)


def _times(texts: list[str | None]) -> Array | None:
    """Seconds since the earliest of the given moments, or None where one is missing or unknown in form."""
    moments = []
    for text in texts:
        moment = _moment(text or "")
        if moment is None:
            return None
        moments.append(moment)
    seconds = np.array([(moment - min(moments)).total_seconds() for moment in moments])
    # a clock of 12 hours without AM and PM falls once, from 12 to 1
    falls = np.flatnonzero(np.diff(seconds) < 0)
    if len(falls) == 1 and all(1 <= moment.hour <= 12 for moment in moments):
        last, first = (moments[k].hour for k in (falls[0], falls[0] + 1))
        if (last, first) == (12, 1):
            seconds[falls[0] + 1 :] += HALF_A_DAY_S
    return seconds - seconds.min(initial=np.inf)


def _moment(text: str) -> datetime | None:
    words = re.sub(r"(?<=\d)T(?=\d)", " ", text).split()
    for day in DAYS:
        for hours in HOURS:
            try:
                return datetime.strptime(" ".join(words), f"{day} {hours}")
            except ValueError:
                continue
    return None


def _first_complaint(error: ValueError) -> str:
    """A sentence from the parser's message, which may have many lines."""
    details = getattr(error, "errors", None)
    if callable(details):
        first = details()[0]
        return f"{'.'.join(str(part) for part in first['loc'])} is {str(first.get('input'))[:40]!r}"
    return str(error).splitlines()[0][:100]
