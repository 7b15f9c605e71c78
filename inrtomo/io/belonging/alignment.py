"""An alignment fitted to the images it is used for: every entry to its image, every length to their pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io.belonging.order import Comparison, Order, compare, order_of, shown
from inrtomo.io.belonging.sizes import Size, alike, growth, turned_like
from inrtomo.io.series_record import SeriesRecord

if TYPE_CHECKING:
    from inrtomo.tiltseries import TiltSeries

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

OTHER_PIXEL = 0.02
"""Pixel sizes that differ by more are said; calibrations differ by a percent."""
CALIBRATIONS = 0.06
"""What two calibrations of one microscope may differ by."""
IN_ANGSTROM = (".star", ".xml")
SCALE_SAID = 0.03
NAMED_STACK = "the stack they name"
SHOWN = 4


@dataclass(frozen=True)
class Images:
    """What is known of the images that an alignment is for, in their order.

    Attributes:
        path: of the stack, or of what else stands for the images.
        size: (nx, ny); tilt_deg: recorded angles ``(n,)``; exposure_e_A2: before each image ``(n,)``, or None.
        pixel_size_A: None where nothing says it, or where a file says the 1 Å that it was never told.
        names: of each image's file, and movies: of its movie, without folders, or None.
    """

    path: Path
    size: Size
    tilt_deg: Array
    pixel_size_A: float | None = None
    exposure_e_A2: Array | None = None
    names: tuple[str, ...] | None = None
    movies: tuple[str, ...] | None = None

    @classmethod
    def of_series(cls, series: TiltSeries) -> Images:
        names = getattr(series.stack, "names", None)
        return cls(
            series.path,
            series.size,
            np.asarray(series.tilt_deg),
            series.known_pixel_size_A,
            series.exposure_e_A2,
            None if names is None else tuple(map(_file_name, names)),
            series.movies,
        )

    @property
    def n_tilts(self) -> int:
        return len(self.tilt_deg)


def on_images(record: SeriesRecord, images: Images, path: Path, notes: list[str]) -> SeriesRecord:
    """The record in the order of the images, with their recorded angles; images it has no entry for are excluded.

    Entries find their images by name, recorded angle, exposure or refined angle, whatever tells them apart. Where they
    are more than the images, those that are left out have none: many programs write stacks without such images.

    Raises:
        InputError: they belong to other images, or it cannot be told which is whose.
    """
    a = record.alignment
    if len(a.included) <= images.n_tilts < a.n_tilts:
        left = ", ".join(map(str, sorted(a.excluded)))
        notes.append(f"{path}: {images.path} is taken not to hold the images that it leaves out ({left}, from 0)")
        record = _without_excluded(record)
        a = record.alignment
    at, how, comparison = _places(record, images, path)
    notes += _said_of(comparison, at, path, images)
    if a.n_tilts == images.n_tilts and (at == np.arange(a.n_tilts)).all():
        own = record.nominal_tilt_deg is not None and record.stack is not None and how == NAMED_STACK
        return record if own else replace(record, nominal_tilt_deg=images.tilt_deg)
    n = images.n_tilts
    missing = sorted(set(range(n)) - set(at.tolist()))
    notes.append(
        f"{path}: its entries were put in the order of {images.path} by {how}"
        + (f", where images {', '.join(map(str, missing))} (from 0) have none and are left out" if missing else "")
    )
    linear = np.tile(a.linear[int(np.argmin(np.abs(a.tilt_deg)))], (n, 1, 1))
    shift, x_tilt = np.zeros((n, 2)), np.full(n, np.median(a.x_tilt_deg))
    tilt = comparison.of(images.tilt_deg)
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
    elif record.exposure_e_A2 is not None and images.exposure_e_A2 is None:
        notes.append(f"{path}: its doses are lost, since images without an entry have none; an .mdoc has them")
    return replace(record, alignment=moved, nominal_tilt_deg=images.tilt_deg, images=None, exposure_e_A2=exposure)


def _without_excluded(record: SeriesRecord) -> SeriesRecord:
    """The record of the images that its alignment uses."""
    kept = record.alignment.included
    nominal, exposure, names = record.nominal_tilt_deg, record.exposure_e_A2, record.images
    return replace(
        record,
        alignment=record.alignment.subset(kept),
        nominal_tilt_deg=None if nominal is None else nominal[kept],
        exposure_e_A2=None if exposure is None else exposure[kept],
        images=None if names is None else tuple(names[k] for k in kept),
    )


def in_order_of(
    record: SeriesRecord, path: Path, other: SeriesRecord, other_path: Path, notes: list[str]
) -> SeriesRecord:
    """The record in the order of another of the same images.

    Raises:
        InputError: their angles are of different images, or it cannot be told which is whose.
    """
    nominal, a = (record.nominal_tilt_deg, other.nominal_tilt_deg), other.alignment
    both = nominal[0] is not None and nominal[1] is not None
    angles = nominal[1] if both and nominal[1] is not None else a.tilt_deg
    if not both:
        record = replace(record, nominal_tilt_deg=None)
    images = Images(other_path, a.image_size, angles, a.pixel_size_A, other.exposure_e_A2)
    return on_images(replace(record, images=None, stack=None), images, path, notes)


def _places(record: SeriesRecord, images: Images, path: Path) -> tuple[Ints, str, Comparison]:
    """The image of every entry, what told it, and the refined angles held against those recorded."""
    a = record.alignment
    named = _by_name(record, images)
    if named is not None:
        at, what, is_own = named
        angles = a.tilt_deg if record.nominal_tilt_deg is None else record.nominal_tilt_deg
        fit = order_of(angles, images.tilt_deg[at], used=_used(a)).is_same
        if what == NAMED_STACK or fit:
            return at, what, _compare_used(a, images.tilt_deg[at])
        if is_own:
            raise InputError(
                f"{path}: names the sections of {images.path} in one order, but its angles ({shown(angles)}) are not "
                f"in that of theirs ({shown(images.tilt_deg[at])}); correct the names or the angles"
            )
    turns = None
    if record.exposure_e_A2 is not None and images.exposure_e_A2 is not None:
        turns = record.exposure_e_A2, images.exposure_e_A2
    found = Order(None)
    if record.nominal_tilt_deg is not None:
        found = order_of(record.nominal_tilt_deg, images.tilt_deg, turns, same_zero=True)
        if found.at is not None:
            comparison = _compare_used(a, images.tilt_deg[found.at])
            if not comparison.is_plausible:
                raise InputError(
                    f"{path}: its recorded angles ({shown(record.nominal_tilt_deg)}) are those of {images.path}, its "
                    f"refined ones ({shown(a.tilt_deg)}) are in another order; correct one of them"
                )
            return found.at, "their recorded angles", comparison
    by_refined = order_of(a.tilt_deg, images.tilt_deg, turns, used=_used(a))
    if by_refined.at is not None:
        return by_refined.at, "their angles", _compare_used(a, images.tilt_deg[by_refined.at])
    if a.n_tilts != images.n_tilts:
        raise InputError(
            f"{path}: aligns {a.n_tilts} images, {images.path} has {images.n_tilts}"
            + ("" if a.n_tilts > images.n_tilts else f", and {_reason(found, by_refined)}")
            + "; give the alignment of this series"
        )
    raise InputError(
        f"{path}: its entries are in the order {shown(a.tilt_deg)} degrees, the images of {images.path} in the order "
        f"{shown(images.tilt_deg)}, and {_reason(found, by_refined)}; give the alignment, or the angles, of this series"
    )


def _reason(*orders: Order) -> str:
    return next((order.why_not for order in reversed(orders) if order.why_not), "they do not fit")


def _used(a: Alignment) -> Ints:
    return a.included if len(a.included) > 2 else np.arange(a.n_tilts)


def _compare_used(a: Alignment, recorded: Array) -> Comparison:
    """Refined angles against recorded ones; of entries left out only as an expectation."""
    used = _used(a)
    comparison = compare(a.tilt_deg[used], recorded[used])
    rest = np.zeros(a.n_tilts)
    rest[used] = comparison.rest
    return replace(comparison, rest=rest)


def _said_of(comparison: Comparison, at: Ints, path: Path, images: Images) -> list[str]:
    """Sentences on what is unusual about angles that were taken."""
    said = []
    if not comparison.is_plausible:
        said.append(
            f"{path}: its refined angles and the recorded angles of {images.path} are not in one order, though it "
            "names this stack; its entries are taken in the order of the stack, so check the recorded angles"
        )
        return said
    if comparison.sign < 0:
        said.append(
            f"{path}: its angles are the recorded ones of {images.path} with the other sign; its entries are taken in "
            "the order of the stack (were they in the opposite order, this would be wrong)"
        )
    if abs(comparison.scale - 1) > SCALE_SAID:
        said.append(f"{path}: its angles are {comparison.scale:.3f} times the recorded ones of {images.path}")
    if len(comparison.odd_ones):
        odd = ", ".join(f"{at[k]} by {abs(comparison.rest[k]):.0f}" for k in comparison.odd_ones[:SHOWN])
        said.append(f"{path}: recorded angles differ from its refined ones in images {odd} degrees; check its order")
    return said


def _by_name(record: SeriesRecord, images: Images) -> tuple[Ints, str, bool] | None:
    """The image of every entry by its own name, how it was told, and whether the names are of this very stack."""
    here = np.arange(record.alignment.n_tilts)
    if record.stack is not None and len(here) == images.n_tilts and _is_same_file(record.stack, images.path):
        return here, NAMED_STACK, True
    names = record.images
    if not names:
        return None
    found = [re.fullmatch(r"0*([1-9]\d{0,5})@(.+)", name) for name in names]
    if all(found) and len({match.group(2) for match in found if match}) == 1:
        at = np.array([int(match.group(1)) - 1 for match in found if match])
        stack = next(match.group(2) for match in found if match)
        if len(set(at.tolist())) == len(at) and at.max() < images.n_tilts:
            return at, "the sections they name", _is_same_file(stack, images.path)
    own = [_file_name(name) for name in names]
    for known, what, stems in ((images.names, "their files' names", False), (images.movies, "their movies", True)):
        if known is None:
            continue
        key = _stem if stems else str
        place = {key(name): k for k, name in enumerate(known)}
        asked = [key(name) for name in own]
        if len(place) == len(known) and len(set(asked)) == len(asked) and set(asked) <= set(place):
            return np.array([place[name] for name in asked]), what, False
    return None


def _is_same_file(name: str, path: Path) -> bool:
    """Whether a name, from wherever it was given, can only be that of a stack: its folder has to be the same too."""
    try:
        return Path(name).resolve() == path.resolve() or (not Path(name).is_absolute() and Path(name) == path)
    except OSError:
        return False


def _file_name(name: str) -> str:
    """``3@a/b.mrc`` -> ``3@b.mrc``, also of names written on Windows."""
    section, at, file = name.rpartition("@")
    return f"{section.lstrip('0')}{at}{PureWindowsPath(file).name}"


def _stem(name: str) -> str:
    return PureWindowsPath(name).name.split(".")[0]


# --- scale ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What says how large the images are that an alignment was made on."""

    what: str
    size: Size
    pixel_size_A: float | None = None
    may_be_turned: bool = False


def images_aligned(evidence: Sequence[Evidence], wanted: Size | None, path: Path) -> tuple[Size | None, float | None]:
    """Size and pixel size of the images an alignment was made on, from all that says it, else (None, None).

    Args:
        evidence: the best first. The size of an aligned image may have its sides turned.
        wanted: the size of the images it is used for, which tells how the sides of a turned size lie.

    Raises:
        InputError: two of them contradict each other.
    """
    if not evidence:
        return None, None
    straight = [_straight(one, wanted if k == 0 else evidence[0].size) for k, one in enumerate(evidence)]
    first = straight[0]
    for other in straight[1:]:
        if not alike(other.size, first.size, 1.0):
            raise InputError(
                f"{path}: {first.what} says that it was made on images of {first.size[0]} x {first.size[1]}, "
                f"{other.what} of {other.size[0]} x {other.size[1]}; remove what is out of date"
            )
    pixel = next((one.pixel_size_A for one in straight if one.pixel_size_A), None)
    return first.size, pixel


def _straight(one: Evidence, like: Size | None) -> Evidence:
    return replace(one, size=turned_like(one.size, like)) if one.may_be_turned and like is not None else one


def fitted(alignment: Alignment, images: Images | Size | None, path: Path, notes: list[str]) -> Alignment:
    """The alignment in the pixels of a series, checked against its number and size of images.

    Raises:
        InputError: it is for images of another shape, or sizes and pixel sizes say different scales.
    """
    if images is None:
        return alignment
    size, pixel = (images, None) if isinstance(images, tuple) else (images.size, images.pixel_size_A)
    if not isinstance(images, tuple) and alignment.n_tilts != images.n_tilts:
        raise InputError(
            f"{path}: aligns {alignment.n_tilts} images, {images.path} has {images.n_tilts}; give the alignment of "
            "this series"
        )
    own = alignment.pixel_size_A
    if alignment.image_size == size:
        if own and pixel and abs(own / pixel - 1) > OTHER_PIXEL:
            said = f"{path}: says a pixel size of {own:.4g} Å, the images of this size have {pixel:.4g} Å"
            if path.suffix in IN_ANGSTROM and abs(own / pixel - 1) > CALIBRATIONS:
                raise InputError(f"{said}, and its lengths are in Å; correct one of them, or give its own images")
            notes.append(f"{said}; its lengths in px are taken")
        return alignment if own else replace(alignment, pixel_size_A=pixel)
    factor = growth(alignment.image_size, size)
    wrong = not alike(alignment.image_size, size, factor)
    if pixel and own and not wrong:
        wrong = abs(own / pixel / factor - 1) > CALIBRATIONS
        # numbers of pixels are exact, where one is a multiple of the other
        factor = factor if factor == round(factor) or 1 / factor == round(1 / factor) else own / pixel
    if wrong:
        sizes = f"images of {alignment.image_size[0]} x {alignment.image_size[1]}"
        sizes += f" with {own:.4g} Å/px" if pixel and own else ""
        raise InputError(
            f"{path}: is for {sizes}, these have {size[0]} x {size[1]}"
            + (f" with {pixel:.4g} Å/px" if pixel and own else "")
            + "; give the alignment of this series"
        )
    if max(abs(a - b) for a, b in zip(size, alignment.image_size, strict=True)) <= 1 and abs(factor - 1) < OTHER_PIXEL:
        return replace(alignment, image_size=size, pixel_size_A=own or pixel)  # a pixel at the edge
    notes.append(f"alignment scaled by {factor:.4g} from images of {alignment.image_size} to {size}")
    return scaled(alignment, factor, size, pixel)


def scaled(alignment: Alignment, factor: float, image_size: Size, pixel_size_A: float | None = None) -> Alignment:
    """The same alignment for images whose pixels are smaller by ``factor`` (lengths in px grow by it)."""
    warp = alignment.warp
    if warp is not None:
        warp = LocalWarp(warp.x * factor, warp.y * factor, warp.vectors * factor, warp.interpolation)
    if pixel_size_A is None and alignment.pixel_size_A:
        pixel_size_A = alignment.pixel_size_A / factor
    return replace(
        alignment,
        shift_px=alignment.shift_px * factor,
        warp=warp,
        image_size=image_size,
        pixel_size_A=pixel_size_A,
    )
