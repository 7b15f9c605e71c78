"""A stack of images wherever they are: one MRC, a TIFF, a list of either, or a text file naming them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.files import check_input, read_text, refuse_other_kinds
from inrtomo.io.mrc import MrcStack

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

TIFF_SUFFIXES = (".tif", ".tiff")
LIST_SUFFIXES = (".txt", ".lst", ".list")
ORIENTATION_TAG = 274
MAX_COMPRESSION = 1000
"""A TIFF whose pages would be larger than this many times its file is damaged."""


class ImageStack(Protocol):
    """Images read one at a time, shape ``(n, ny, nx)``."""

    path: Path
    shape: tuple[int, int, int]
    pixel_size_A: float | None
    tilt_deg: Array | None

    def image(self, index: int) -> F32: ...


class TiffStack:
    """Pages of a TIFF. Rows are turned over: TIFF counts them from the top, MRC (and IMOD reading TIFF) from below.

    Files whose tag says that they lie otherwise are refused: programs differ in whether they obey it.
    """

    pixel_size_A: float | None = None
    tilt_deg: Array | None = None

    def __init__(self, path: str | Path) -> None:
        self.path = check_input(path)
        refuse_other_kinds(path)
        with self._opened() as tiff:
            # of a damaged file a size can be anything, and fails here
            pages = [(tuple(int(size) for size in page.shape), page.dtype) for page in tiff.pages]
            tag = tiff.pages[0].tags.get(ORIENTATION_TAG)
            lies = 1 if tag is None else int(tag.value)
        if lies > 1:
            raise InputError(
                f"{self.path}: its images do not lie upright (TIFF tag Orientation is {lies}), which programs read "
                "differently; save them upright, or correct the tag (tiffset -s 274 1)"
            )
        shapes = {shape for shape, _ in pages}
        grey = all(dtype is not None and dtype.kind in "iuf" for _, dtype in pages)
        if len(shapes) != 1 or not grey or len(pages[0][0]) != 2 or min(pages[0][0]) < 1:
            raise InputError(f"{self.path}: its pages are not grey images of one size; save them as such")
        ny, nx = pages[0][0]
        if sum(ny * nx * dtype.itemsize for _, dtype in pages) > MAX_COMPRESSION * self.path.stat().st_size:
            raise InputError(f"{self.path}: is too short for the images it announces; copy it again")
        self.shape = (len(pages), ny, nx)

    def image(self, index: int) -> F32:
        """Page ``index`` as float32 ``(ny, nx)``, first row at the bottom."""
        with self._opened() as tiff:
            page = tiff.pages[index].asarray()
            if page.shape != self.shape[1:]:
                raise ValueError("its page has another size than it announces")
        return np.ascontiguousarray(page[::-1], dtype=np.float32)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file in tifffile, whose parser lets through whatever exception a damaged file leads to."""
        from tifffile import TiffFile

        try:
            with TiffFile(self.path) as tiff:
                yield tiff
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise InputError(
                f"{self.path}: cannot be read as TIFF ({reason}); save it again, without compression"
            ) from None


class ImageList:
    """Several files, each with one image or more, as one stack in the order given."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise InputError("no images given; name a stack or a list of images")
        self.parts = [_open_file(path) for path in paths]
        self.path = Path(paths[0]).parent
        first = self.parts[0]
        for part in self.parts:
            if part.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{part.path}: is {part.shape[2]} x {part.shape[1]}, {first.path} is {first.shape[2]} x "
                    f"{first.shape[1]}; all images of a series need one size"
                )
        self._where = [(part, k) for part in self.parts for k in range(part.shape[0])]
        self.shape = (len(self._where), first.shape[1], first.shape[2])
        self.pixel_size_A = first.pixel_size_A
        angles = [part.tilt_deg for part in self.parts]
        known = [a for a in angles if a is not None]
        self.tilt_deg: Array | None = np.concatenate(known) if len(known) == len(angles) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Where each image is, as `SeriesRecord.images` has it: a file of its own, or ``000003@ts.mrc``."""
        return tuple(f"{k + 1:06d}@{part.path}" if part.shape[0] > 1 else str(part.path) for part, k in self._where)

    def image(self, index: int) -> F32:
        """Image ``index`` of the list as float32 ``(ny, nx)``."""
        part, k = self._where[index]
        return part.image(k)


def open_images(source: str | Path | Sequence[str | Path]) -> ImageStack:
    """Open an MRC stack, a TIFF, a list of them, or a text file (``.txt``, ``.lst``) with a name on each line."""
    if not isinstance(source, str | Path):
        return _open_file(source[0]) if len(source) == 1 else ImageList(source)
    path = Path(source)
    if path.suffix.lower() in LIST_SUFFIXES:
        names = [line.strip() for line in read_text(path).splitlines()]
        names = [name for name in names if name and not name.startswith("#")]
        if not names:
            raise InputError(f"{path}: names no image; write one a line")
        return ImageList([path.parent / name for name in names])
    return _open_file(path)


def row_order_notes(stack: ImageStack) -> list[str]:
    """At most one: that rows are turned over on reading, as IMOD does and programs that have no IMOD in them do not."""
    parts = stack.parts if isinstance(stack, ImageList) else [stack]
    turned = [part for part in parts if isinstance(part, MrcStack) and part.header.rows_from_top]
    if not turned:
        return []
    return [
        f"{turned[0].path}: its header says that rows go from the top, so they are turned over, as IMOD does; AreTomo, "
        "RELION and Warp do not: for alignments of theirs, and for them, rewrite it first (IMOD: newstack)"
    ]


def _open_file(path: str | Path) -> ImageStack:
    return TiffStack(path) if Path(path).suffix.lower() in TIFF_SUFFIXES else MrcStack(path)
