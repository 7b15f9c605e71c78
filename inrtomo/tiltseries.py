"""TiltSeries: the recorded images, read when they are needed, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.angle_files import read_angles
from inrtomo.io.belonging.halves import why_not_halves
from inrtomo.io.belonging.metadata import known_pixel_size, pixel_size_of, sections_of
from inrtomo.io.belonging.order import SAME_TILT_DEG, in_another_order
from inrtomo.io.images import LIST_SUFFIXES, ImageStack, open_images
from inrtomo.io.imod import list_text
from inrtomo.io.mdoc import Mdoc, read_mdoc
from inrtomo.io.numbers import TILT

Array = NDArray[np.float64]
F32 = NDArray[np.float32]
Ints = NDArray[np.int64]

MIN_TILTS = 3
RADIANS_BELOW = 2.0
"""Many distinct angles, all of them smaller than this, are radians."""
RADIANS_TILTS = 5
STACK_SUFFIXES = (".mrc", ".st", ".ali", ".mrcs", ".map", ".tif", ".tiff")
HALVES = (("_odd", "_even"), ("_ODD", "_EVN"), ("_Odd", "_Even"), ("_ODD", "_EVEN"))
SHOWN = 4
"""Damaged images named in a message."""
REPAIR_RADIUS = 2
"""A bad pixel becomes the median of the good ones in a square of twice this plus one."""


class NoAnglesError(InputError):
    """A stack whose tilt angles are nowhere to be found."""


@dataclass
class TiltSeries:
    """A tilt series as recorded. Images are read from their files on request; nothing is kept.

    Attributes:
        name: the stack's stem; path: of the stack (the folder, for a list of images).
        stack: where the images come from.
        tilt_deg: nominal tilt angles ``(n,)`` in stack order.
        order: acquisition index 0..n-1 of every image ``(n,)``, or None when not known.
        exposure_e_A2: dose received before each image ``(n,)``, or None; dose_per_tilt: of each image ``(n,)`` or None.
        pixel_size_A: Å, or None when no file says.
        axis_deg: nominal tilt axis of the ``.mdoc``'s title (IMOD's sense as SerialEM writes it), or None.
        excluded: stack index -> reason, images not to use.
        odd, even: stacks of the half-exposures, or None.
        taken: turn of every image among all exposures ``(n,)``, those without an image in the stack counted, or None.
        movies: name of every image's movie, from the ``.mdoc``, or None.
        sources: what -> where it was found, to be printed.
        remarks: sentences on what was found and does not fit, to be printed.
        bad_pixels: stack index -> number of NaN or infinite pixels replaced, for excluded images read so far.
        repair: what is done to every image that is read (stack index, image), or None.
    """

    name: str
    path: Path
    stack: ImageStack
    tilt_deg: Array
    order: Ints | None = None
    exposure_e_A2: Array | None = None
    dose_per_tilt: Array | None = None
    pixel_size_A: float | None = None
    axis_deg: float | None = None
    excluded: dict[int, str] = field(default_factory=dict)
    odd: Path | None = None
    even: Path | None = None
    taken: Ints | None = None
    movies: tuple[str, ...] | None = None
    remarks: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    bad_pixels: dict[int, int] = field(default_factory=dict)
    repair: Callable[[int, F32], F32] | None = None

    @property
    def n_tilts(self) -> int:
        return self.stack.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(nx, ny) of an image."""
        return self.stack.shape[2], self.stack.shape[1]

    @property
    def known_pixel_size_A(self) -> float | None:
        """The pixel size, None where it is only the 1 Å of a header that was never told."""
        return (
            self.pixel_size_A if self.sources.get("pixel size") == "as given" else known_pixel_size(self.pixel_size_A)
        )

    @property
    def included(self) -> Ints:
        """Stack indices of the images to use."""
        return np.array([i for i in range(self.n_tilts) if i not in self.excluded], dtype=np.int64)

    @property
    def notes(self) -> list[str]:
        """Sentences on what was repaired in the images read so far."""
        return [
            f"image {index}: {count} pixels that are not numbers replaced by the median around them"
            for index, count in sorted(self.bad_pixels.items())
        ]

    def image(self, index: int) -> F32:
        """Image ``index`` as float32 ``(ny, nx)``.

        Raises InputError when it has pixels that are not finite: the stack is damaged, and where is for the user to
        know. In an excluded image they are replaced by the median around them, and counted.
        """
        image = self.stack.image(index)
        bad = ~np.isfinite(image)
        if bad.any():
            if index not in self.excluded:
                raise InputError(self._not_numbers())
            self.bad_pixels[index] = int(bad.sum())
            image = _repaired(image, bad)
        return image if self.repair is None else self.repair(index, image)

    def _not_numbers(self) -> str:
        """Which images in use have pixels that are not finite, how many, and what to do."""
        counts = {int(i): int(np.sum(~np.isfinite(self.stack.image(int(i))))) for i in self.included}
        bad = {index: count for index, count in counts.items() if count}
        shown = ", ".join(f"image {index}: {count}" for index, count in list(bad.items())[:SHOWN])
        more = f" and {len(bad) - SHOWN} images more" if len(bad) > SHOWN else ""
        return (
            f"{self.path}: has pixels that are not numbers ({shown}{more}); repair them (IMOD: ccderaser) or use "
            f"--exclude {list_text(list(bad))}"
        )

    def images(self, indices: Iterable[int] | None = None) -> Iterator[F32]:
        """The images of ``indices`` (by default all) one after the other."""
        for index in range(self.n_tilts) if indices is None else indices:
            yield self.image(int(index))

    def read(self, bin: int = 1) -> F32:
        """All images, float32 ``(n, ny // bin, nx // bin)``, each pixel the mean of ``bin`` x ``bin``.

        Binned images keep the centre of the raw ones.
        """
        ny, nx = self.stack.shape[1] // bin, self.stack.shape[2] // bin
        out = np.empty((self.n_tilts, ny, nx), dtype=np.float32)
        for index, image in enumerate(self.images()):
            out[index] = image if bin == 1 else _binned(_binned(image, bin).T, bin).T
        return out


def open_tilt_series(
    stack: str | Path | Sequence[str | Path],
    tilt_angles: str | Path | None = None,
    pixel_size_A: float | None = None,
    exclude: Iterable[int] = (),
    include: Iterable[int] | None = None,
    mdoc: str | Path | None = None,
) -> TiltSeries:
    """Open a tilt series and find what belongs to it.

    Args:
        stack: an MRC or TIFF stack, a list of images, or a text file naming them.
        tilt_angles: ``.rawtlt``, ``.tlt`` or ``.mdoc``; by default ``BASE.rawtlt``, ``BASE.tlt``, the ``.mdoc``, or
            the extended header, whichever is found first.
        pixel_size_A: overrides the header's.
        exclude: stack indices not to use; include: the only ones to use.
        mdoc: by default ``BASE.mrc.mdoc`` (with the stack's own ending) or ``BASE.mdoc``.

    Raises:
        InputError: files that are missing, damaged or do not fit together; angles that cannot be tilt angles; fewer
            than three images; a stack in which nothing is recorded.
    """
    images = open_images(stack)
    path = _path_of(stack, images)
    n = images.shape[0]
    if n < MIN_TILTS:
        count = "one image" if n == 1 else f"{n} images"
        raise InputError(f"{path}: holds {count}; a tilt series needs at least {MIN_TILTS}")
    series = TiltSeries(_name_of(stack, path), path, images, np.zeros(n))
    record = _find_mdoc(series, tilt_angles, mdoc)
    _set_tilts(series, tilt_angles, record)
    _compare_angles(series, record)
    _set_dose(series, record)
    _set_pixel_size(series, pixel_size_A, record)
    _set_excluded(series, exclude, include)
    _set_halves(series)
    _refuse_blank(series)
    return series


def check_tilt_angles(angles_deg: Array, n_tilts: int, source: str | Path) -> None:
    """Refuse (InputError) numbers that cannot be the tilt angles, in degrees, of ``n_tilts`` images."""
    angles = np.asarray(angles_deg, dtype=np.float64)
    if len(angles) != n_tilts:
        raise InputError(f"{source}: has {len(angles)} angles for {n_tilts} images; give the file of this series")
    if not np.isfinite(angles).all():
        raise InputError(f"{source}: has angles that are not numbers; correct it")
    if not angles.any():
        raise InputError(f"{source}: every angle is 0; give the tilt angles in degrees")
    if np.abs(angles).max() > TILT.high:
        worst = angles[np.argmax(np.abs(angles))]
        raise InputError(f"{source}: {worst:g} is not {TILT}; check unit and columns")
    if n_tilts > 1 and np.ptp(angles) == 0:
        raise InputError(f"{source}: every angle is {angles[0]:g}; give the tilt angles in degrees")
    if np.abs(angles).max() < RADIANS_BELOW and len(np.unique(angles)) >= RADIANS_TILTS:
        raise InputError(
            f"{source}: its angles reach only {np.abs(angles).max():.3g}, they look like radians; give degrees"
        )


# --- finding what belongs to a stack -------------------------------------------------------------------------------


def _path_of(stack: str | Path | Sequence[str | Path], images: ImageStack) -> Path:
    return Path(stack) if isinstance(stack, str | Path) else images.path


def _name_of(stack: str | Path | Sequence[str | Path], path: Path) -> str:
    """Stem of a stack or of a list of images; of several files, the name of their folder."""
    if isinstance(stack, str | Path) or len(stack) == 1:
        return path.stem
    return path.resolve().name or "series"


def _bases(series: TiltSeries) -> list[Path]:
    """Paths without ending under which neighbours of the stack may go: its own, and the full stack's of a half."""
    in_folder = series.path.is_dir()
    base = series.path if in_folder else series.path.with_suffix("")
    bases = [base / series.name if in_folder else base]
    for halves in HALVES:
        for half in halves:
            if base.name.endswith(half):
                bases.append(base.with_name(base.name.removesuffix(half)))
    return bases


def _find_mdoc(series: TiltSeries, tilt_angles: str | Path | None, mdoc: str | Path | None) -> Mdoc | None:
    """The metadata of the series, as given or from beside the stack; sections in the order of the stack."""
    given = mdoc if mdoc is not None else tilt_angles if _is_mdoc(tilt_angles) else None
    if given is not None:
        series.sources["mdoc"] = str(given)
        return read_mdoc(given)
    for base in _bases(series):
        names = [base.name + suffix + ".mdoc" for suffix in dict.fromkeys((series.path.suffix, "", *STACK_SUFFIXES))]
        for path in (base.with_name(name) for name in names):
            if path.is_file():
                series.sources["mdoc"] = str(path)
                return read_mdoc(path)
    return None


def _is_mdoc(path: str | Path | None) -> bool:
    return path is not None and Path(path).suffix.lower() == ".mdoc"


def _set_tilts(series: TiltSeries, tilt_angles: str | Path | None, record: Mdoc | None) -> None:
    """Tilt angles from the first place that has them."""
    n = series.n_tilts
    path = None if _is_mdoc(tilt_angles) else tilt_angles
    if tilt_angles is None:
        beside = (base.with_name(base.name + end) for base in _bases(series) for end in (".rawtlt", ".tlt"))
        path = next((p for p in beside if p.is_file()), None)
    if path is not None:
        series.tilt_deg, source = read_angles(path), str(path)
    elif record is not None:
        series.tilt_deg, source = record.tilt_deg, series.sources["mdoc"]
    elif series.stack.tilt_deg is not None:
        series.tilt_deg, source = series.stack.tilt_deg, "extended header"
    else:
        raise NoAnglesError(
            f"{series.path}: no tilt angles found (no {series.name}.rawtlt, .tlt or .mdoc, none in the header); give "
            "them with --tilt-angles"
        )
    check_tilt_angles(series.tilt_deg, n, series.path if source == "extended header" else source)
    series.sources["tilt angles"] = source


def _compare_angles(series: TiltSeries, record: Mdoc | None) -> None:
    """Remark where the extended header or the ``.mdoc`` has other tilt angles for the images than those that are used.

    A stack sorted by angle keeps the ``.mdoc`` of its acquisition: another order alone says something of the header
    only, or where most images have the angle that the ``.mdoc`` has at their place.
    """
    used, header = series.tilt_deg, series.stack.tilt_deg
    source, said = series.sources["tilt angles"], None
    for where, angles in (
        (f"the header of {series.path}", header),
        (series.sources.get("mdoc"), None if record is None else record.tilt_deg),
    ):
        if angles is not None and len(angles) == len(used) and np.ptp(angles) > 0 and _same(used, -angles):
            if not _same(used, angles):
                said = f"{source}: its angles have the opposite sign of those in {where}: the hand is the other one"
    of_mdoc = None if record is None else record.tilt_deg
    moved = of_mdoc is not None and len(of_mdoc) == len(used) and np.mean(np.abs(used - of_mdoc) < SAME_TILT_DEG) > 0.5
    for where, angles, is_of_images in (
        (f"the header of {series.path}", header, True),
        (series.sources.get("mdoc"), of_mdoc, moved),
    ):
        if said is None and is_of_images and angles is not None and in_another_order(used, angles):
            first = int(np.flatnonzero(np.abs(used - angles) > SAME_TILT_DEG)[0])
            said = (
                f"{source}: its angles are those in {where} in another order (image {first}: {used[first]:.4g}°, there "
                f"{angles[first]:.4g}°); check which are the images'"
            )
    if said is not None:
        series.sources["other angles"] = said
        series.remarks.append(said)


def _same(one: Array, other: Array) -> bool:
    """Whether angles differ by a common offset alone."""
    return bool(np.abs(one - other - np.median(one - other)).max() < SAME_TILT_DEG)


def _set_dose(series: TiltSeries, record: Mdoc | None) -> None:
    """Acquisition order and doses from the ``.mdoc``."""
    if record is None:
        return
    found = sections_of(record, series.tilt_deg)
    source = series.sources["mdoc"]
    if found is None:
        series.sources["mdoc"] = f"{source}: left out, its angles are not those of the stack"
        series.remarks.append(series.sources["mdoc"])
        return
    sections = found.of_images
    series.remarks += [*record.remarks, *(f"{source}: {said}" for said in found.said)]
    series.axis_deg = record.axis_deg
    order = record.order
    if order is not None:
        series.taken = order[sections]
        # ranks among the images of the stack, should some sections have no image
        series.order = np.argsort(np.argsort(series.taken)).astype(np.int64)
        series.sources["acquisition order"] = source
    if record.movies is not None:
        series.movies = tuple(record.movies[section] for section in sections)
    dose, prior = record.dose_e_A2, record.prior_exposure_e_A2
    if dose is not None and dose.min() >= 0 and dose.max() > 0:
        series.dose_per_tilt = dose[sections]
        series.sources["dose"] = source
    if prior is not None:
        series.exposure_e_A2 = prior[sections]
        series.sources["exposure"] = source


def _set_pixel_size(series: TiltSeries, given: float | None, record: Mdoc | None) -> None:
    """Pixel size as given, else the header's, else the ``.mdoc``'s."""
    if given is not None and not (np.isfinite(given) and given > 0):
        raise InputError(f"{series.path}: {given} is not a pixel size; give Å per pixel")
    header = getattr(series.stack, "header", None)
    across = None if header is None else header.pixel_size_y_A
    source = series.sources.get("mdoc", "").partition(": left out")[0]
    found = pixel_size_of(series.stack.pixel_size_A, across, record, source, series.size, given)
    named = f"{source}: its "
    series.remarks += [said if said.startswith(named) else f"{series.path}: {said}" for said in found.said]
    if found.size_A is not None:
        series.pixel_size_A, series.sources["pixel size"] = float(found.size_A), found.source


def _set_excluded(series: TiltSeries, exclude: Iterable[int], include: Iterable[int] | None) -> None:
    """Images the user leaves out; enough must be left."""
    n = series.n_tilts
    exclude, wanted = list(exclude), None if include is None else set(include)
    for index in [*exclude, *(wanted or ())]:
        if not 0 <= index < n:
            raise InputError(f"{series.path}: there is no image {index}; images count from 0 to {n - 1}")
    series.excluded = {index: "excluded by the user" for index in sorted(set(exclude))}
    if wanted is not None:
        series.excluded |= {index: "not among those to include" for index in range(n) if index not in wanted}
        series.excluded = dict(sorted(series.excluded.items()))
    if n - len(series.excluded) < MIN_TILTS:
        left = n - len(series.excluded)
        raise InputError(f"{series.path}: only {left} of its {n} images are left; exclude fewer, it takes {MIN_TILTS}")


def _set_halves(series: TiltSeries) -> None:
    """Stacks of odd and even frames beside the full one, when both are there and hold its frames."""
    if series.path.is_dir() or series.path.suffix.lower() in LIST_SUFFIXES:
        return
    alone: list[Path] = []
    for odd_end, even_end in HALVES:
        for suffix in dict.fromkeys((series.path.suffix, *STACK_SUFFIXES)):
            paths = [series.path.with_name(series.name + end + suffix) for end in (odd_end, even_end)]
            there = [path for path in paths if path.is_file()]
            if len(there) < 2:
                alone += there
                continue
            why_not = why_not_halves(series.stack, [open_images(path) for path in paths], list(map(str, paths)))
            if why_not is not None:
                series.sources["odd and even"] = f"{paths[0]}, {paths[1]}: left out, {why_not}"
                series.remarks.append(f"odd and even frames are left out: {why_not}")
                continue
            series.odd, series.even = paths
            series.sources["odd and even"] = f"{paths[0]}, {paths[1]}"
            return
    if alone and "odd and even" not in series.sources:
        series.remarks.append(f"{alone[0]}: is left out, the other half of the frames is not beside it")


# --- pixels --------------------------------------------------------------------------------------------------------


def _refuse_blank(series: TiltSeries) -> None:
    """InputError when no image shows anything; images are looked at until one does."""
    for index in range(series.n_tilts):
        image = series.stack.image(index)
        finite = image[np.isfinite(image)]
        if finite.size and np.ptp(finite) > 0:
            return
    raise InputError(f"{series.path}: every image is blank; copy the stack again")


def _repaired(image: F32, bad: NDArray[np.bool_]) -> F32:
    """``image`` with bad pixels set to the median of good ones around them, or of the image where there are none."""
    good = image[~bad]
    if not good.size:
        return np.zeros_like(image)
    image = np.where(bad, np.float32(np.median(good)), image)
    rows, columns = np.nonzero(bad)
    if len(rows) > bad.size // 100:
        return image  # a dead region: its surroundings say no more than the whole image
    r = REPAIR_RADIUS
    for row, column in zip(rows, columns, strict=True):
        window = (slice(max(0, row - r), row + r + 1), slice(max(0, column - r), column + r + 1))
        near = image[window][~bad[window]]
        if near.size:
            image[row, column] = np.median(near)
    return image


def _binned(image: F32, bin: int) -> F32:
    """Means of ``bin`` rows ``(ny // bin, nx)``, centred; an odd remainder is shared by both edges."""
    ny = image.shape[0] // bin
    spare = image.shape[0] - ny * bin
    starts = {spare // 2, (spare + 1) // 2}
    parts = [image[s : s + ny * bin].reshape(ny, bin, -1).mean(axis=1) for s in sorted(starts)]
    return np.mean(parts, axis=0, dtype=np.float32)
