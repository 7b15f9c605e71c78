"""MRC files: stacks read image by image, stacks and volumes written whole or not at all.

Headers are not believed: sizes are checked against the length of the file before anything is allocated, because a
truncated or damaged file is common and the memory its header asks for can be anything.

Format: Cheng et al. 2015 (MRC2014) with IMOD's additions (``mrc_format.txt`` of IMOD): mode 6, the stamp that says
whether bytes are signed, and the extended headers of SerialEM and FEI.

**Rows** are numbered as IMOD reads them, from the bottom. A file without IMOD's stamp has its first row at the top if
its extended header is FEI's and its version 20140, or if ``mapr`` is -2 (IMOD's ``mrcfiles.c``, ``mrc_head_read``, of
4.10 and later); its rows are turned over here. AreTomo, RELION and Warp leave them as they are.

**Bytes** (mode 0) with IMOD's stamp are 0 to 255: signed ones are stored less 128. Without it minimum and maximum in
the header tell signed from unsigned (``readBytesSigned`` of IMOD's ``b3dutil.c``). IMOD adds 128 to these signed ones
as well; here they keep their zero, as MRC2014 has it, unless all of them are negative.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE, get_ext_header_dtype
from numpy.typing import ArrayLike, NDArray

from inrtomo.errors import InputError
from inrtomo.io.axis_order import order_in
from inrtomo.io.files import atomic_path, check_input, refuse_other_kinds
from inrtomo.io.numbers import TILT

Array = NDArray[np.float64]
F32 = NDArray[np.float32]

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
WRITABLE_MODES = (1, 2, 6, 12)
"""Not bytes: programs differ in whether they are signed."""
OTHER_MODES = {
    3: " (complex numbers, a Fourier transform)",
    4: " (complex numbers, a Fourier transform)",
    16: " (colours)",
    101: " (4-bit pixels, two to a byte)",
}
IMOD_STAMP = 1146047817
IMOD_STAMP_OFFSET = 152
"""Two integers: the stamp, and flags."""
SERIALEM_OFFSET = 128
"""Two shorts: bytes a section and what they hold (SerialEM), or numbers of integers and reals a section (Agard)."""
SIGNED_BYTES_FLAG, PACKED_FLAG = 1, 16
BYTE_OFFSET = 128
"""What IMOD takes off bytes that it stores signed."""
UPRIGHT, FROM_THE_TOP = (1, 2, 3), (1, -2, 3)
"""Columns, rows, sections = x, y, z; rows of the second run downwards."""
FEI_FROM_THE_TOP = 20140
"""Version of the format in which files with FEI's extended header have their first row at the top."""
FEI_BYTES = 131072
"""Of FEI's extended header before MRC2014: 1024 sections of 32 reals."""
SERIALEM_FIELD_BYTES = {1: 2, 2: 6, 4: 4, 8: 2, 16: 2, 32: 4}
SERIALEM_TILT_FLAG = 1
PIXEL_SIZE_RANGE_A = (0.01, 10000.0)
MAX_EXTENDED_BYTES = 64 * 2**20
LABEL = b"inrtomo"


@dataclass(frozen=True)
class MrcHeader:
    """What a header says, checked against its file.

    Attributes:
        shape: (sections, rows, columns).
        dtype: of one pixel, with the byte order of the file.
        offset: bytes before the first pixel.
        byte_offset: to be added to pixels, 0 or `BYTE_OFFSET`.
        rows_from_top: whether the first row of a section is its top one.
        axes: which of x, y, z (1, 2, 3) columns, rows and sections are.
        pixel_size_A: along x, or None when the header has none that makes sense.
        tilt_deg: stage tilt of every section from the extended header, or None.
        labels: lines left by the programs that wrote the file, oldest first.
        sections_are_images: whether it says that it is a stack and no volume. Many programs leave that open.
        pixel_size_y_A: along y, or None.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    byte_offset: int
    rows_from_top: bool
    axes: tuple[int, int, int]
    pixel_size_A: float | None
    tilt_deg: Array | None
    labels: tuple[str, ...]
    sections_are_images: bool
    pixel_size_y_A: float | None = None


class MrcStack:
    """Images of an MRC file, read one at a time; keeps no file open and nothing in memory.

    Attributes:
        path: of the file; shape: ``(n, ny, nx)``; pixel_size_A: Å, or None when the header has none.
        tilt_deg: ``(n,)`` from the extended header, or None.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(path)
        if self.header.axes != UPRIGHT:
            raise InputError(
                f"{path}: its axes are in the order {self.header.axes}; rewrite it with columns, rows, sections = "
                "x, y, z"
            )
        self.shape = self.header.shape
        self.pixel_size_A = self.header.pixel_size_A
        self.tilt_deg = self.header.tilt_deg

    def __len__(self) -> int:
        return self.shape[0]

    def image(self, index: int) -> F32:
        """Section ``index`` as float32 ``(ny, nx)``, bottom row first, values as they are meant (NaN included)."""
        n, ny, nx = self.shape
        if not 0 <= index < n:
            raise IndexError(f"{self.path} has sections 0 to {n - 1}, not {index}")
        return self.rows(index, 0, ny)

    def rows(self, index: int, first: int, count: int) -> F32:
        """Rows ``first`` to ``first + count - 1`` of a section, from its bottom, float32 ``(count, nx)``."""
        _, ny, nx = self.shape
        dtype = self.header.dtype
        stored = ny - first - count if self.header.rows_from_top else first
        start = self.header.offset + ((index * ny) + stored) * nx * dtype.itemsize
        with open(self.path, "rb") as file:
            pixels = np.fromfile(file, dtype=dtype, count=count * nx, offset=start)
        if len(pixels) != count * nx:
            raise InputError(f"{self.path}: became shorter while it was read; copy it again")
        values = pixels.reshape(count, nx).astype(np.float32)
        if self.header.byte_offset:
            values += self.header.byte_offset
        return np.ascontiguousarray(values[::-1]) if self.header.rows_from_top else values

    def read(self) -> F32:
        """All sections, float32 ``(n, ny, nx)``."""
        out = np.empty(self.shape, dtype=np.float32)
        for index in range(len(self)):
            out[index] = self.image(index)
        return out


def open_stack(path: str | Path) -> MrcStack:
    """Open an MRC stack or volume for reading section by section.

    Raises:
        InputError: not an MRC file of mode 0, 1, 2, 6 or 12, or shorter than its header says.
    """
    return MrcStack(path)


def read_volume(path: str | Path) -> tuple[F32, float | None]:
    """A whole file as float32 ``[z, y, x]``, whatever order its axes are stored in, and its pixel size (Å) or None."""
    header = read_header(path)
    if header.axes == UPRIGHT:
        stack = MrcStack(path)
        return stack.read(), stack.pixel_size_A
    stored = np.fromfile(path, header.dtype, int(np.prod(header.shape)), offset=header.offset).reshape(header.shape)
    order = [header.axes[::-1].index(axis) for axis in (3, 2, 1)]
    return np.ascontiguousarray(stored.transpose(order), dtype=np.float32) + header.byte_offset, header.pixel_size_A


def zero_of_mask(stack: MrcStack) -> float:
    """What a mask's voxels outside have: 0, or the lowest byte where one written by IMOD has lost the stamp."""
    signed = stack.header.dtype.kind == "i" and stack.header.dtype.itemsize == 1 and not stack.header.byte_offset
    lowest = min(float(stack.image(k).min()) for k in range(len(stack))) if signed else 0.0
    return lowest if lowest == -BYTE_OFFSET else 0.0


def read_header(path: str | Path) -> MrcHeader:
    """Header of an MRC file; InputError where the file cannot be what it says."""
    path = check_input(path)
    refuse_other_kinds(path)
    length = path.stat().st_size
    with open(path, "rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{path}: has {length} bytes, less than an MRC header; copy it again")
    header, order = _in_byte_order(raw, path)
    nx, ny, nz, mode = (int(header[name]) for name in ("nx", "ny", "nz", "mode"))
    stamp, flags = (int(v) for v in np.frombuffer(raw, dtype=order + "i4", count=2, offset=IMOD_STAMP_OFFSET))
    stamped = stamp == IMOD_STAMP
    if mode == 0 and stamped and flags & PACKED_FLAG:
        mode = 101
    if mode not in MODES:
        raise InputError(
            f"{path}: is MRC mode {mode}{OTHER_MODES.get(mode, '')}; convert it to mode 1, 2, 6 or 12 "
            "(IMOD: newstack -mode 2)"
        )
    if min(nx, ny, nz) < 1:
        raise InputError(f"{path}: its header gives the size {nx} x {ny} x {nz}; copy it again or repair the header")
    axes, from_top = _axes(header, stamped, path)
    extended = int(header["nsymbt"])
    if extended < 0:
        raise InputError(f"{path}: its header gives an extended header of {extended} bytes; repair the header")
    dtype, byte_offset = np.dtype(order + MODES[mode]), 0
    if mode == 0:
        dtype, byte_offset = _bytes(header, stamped, flags)
    offset = HEADER_BYTES + extended
    section = nx * ny * dtype.itemsize
    if offset + section * nz > length:
        whole = max(0, length - offset) // section
        raise InputError(
            f"{path}: its header promises {nz} images of {nx} x {ny}, the file ends after {whole}; copy it again"
        )
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        block = file.read(min(extended, MAX_EXTENDED_BYTES))
    tilt, pixel = _extended_header(raw, block, header, order, nz)
    labels = _labels(header)
    # a volume may keep the extended header of the stack it was made from
    images = _is_stack(header) or (tilt is not None and order_in(labels) is None)
    pixel, across = _pixel_size(header) or pixel, _pixel_size(header, "y")
    return MrcHeader((nz, ny, nx), dtype, offset, byte_offset, from_top, axes, pixel, tilt, labels, images, across)


def _in_byte_order(raw: bytes, path: Path) -> tuple[Any, str]:
    """The header record, read in the byte order in which it makes sense, and that order (``<`` or ``>``)."""
    for order in ("<", ">"):
        header = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order))[0]
        # a mode is a small number in one order and a huge one in the other
        if 0 <= int(header["mode"]) < 1000 and abs(int(header["nx"])) < 2**24:
            return header, order
    raise InputError(f"{path}: is not an MRC file; convert it, or check the name")


def _axes(header: Any, stamped: bool, path: Path) -> tuple[tuple[int, int, int], bool]:
    """Axes of columns, rows and sections, and whether rows are stored from the top (see this module's text).

    Numbers that cannot be axes are taken for x, y, z, as IMOD does.
    """
    axes = int(header["mapc"]), int(header["mapr"]), int(header["maps"])
    fei = bytes(header["exttyp"]).startswith(b"FEI") and int(header["nversion"]) == FEI_FROM_THE_TOP
    if not stamped and axes == FROM_THE_TOP:
        return UPRIGHT, True
    if min(axes) < 0 or max(axes) > 4:
        raise InputError(f"{path}: its axes are in the order {axes}; rewrite it with columns, rows, sections = x, y, z")
    if sorted(axes) != sorted(UPRIGHT):
        axes = UPRIGHT
    return axes, fei and not stamped and axes == UPRIGHT


def _bytes(header: Any, stamped: bool, flags: int) -> tuple[np.dtype[Any], int]:
    """Type of mode 0, and what is to be added (see this module's text)."""
    signed, unsigned = np.dtype("i1"), np.dtype("u1")
    if stamped:
        return (signed, BYTE_OFFSET) if flags & SIGNED_BYTES_FLAG else (unsigned, 0)
    low, high = float(header["dmin"]), float(header["dmax"])
    if not low < 0 or (high >= 128 and -low <= high - 128):
        return unsigned, 0
    return signed, BYTE_OFFSET if high < 0 else 0


def _is_stack(header: Any) -> bool:
    """MRC2014: space group 0 and a grid of one section; files from before have 0 and a grid of all for volumes, too."""
    return int(header["ispg"]) == 0 and 0 < int(header["mz"]) < int(header["nz"])


def _labels(header: Any) -> tuple[str, ...]:
    """The labels in use, without what pads them."""
    count = min(max(0, int(header["nlabl"])), len(header["label"]))
    return tuple(bytes(label).decode("ascii", "replace").strip("\0 ") for label in header["label"][:count])


def _pixel_size(header: Any, axis: str = "x") -> float | None:
    """Å a pixel along an axis, or None where cell or grid are missing or absurd."""
    cell, grid = float(header["cella"][axis]), int(header[f"m{axis}"])
    if grid < 1 or not np.isfinite(cell):
        return None
    size = cell / grid
    return size if PIXEL_SIZE_RANGE_A[0] <= size <= PIXEL_SIZE_RANGE_A[1] else None


def _extended_header(
    raw: bytes, block: bytes, header: Any, order: str, sections: int
) -> tuple[Array | None, float | None]:
    """Tilt angles (degrees, one per section) and pixel size (Å) from an extended header, None what it has not."""
    kind = bytes(header["exttyp"]).strip(b"\0 ")
    if kind in (b"FEI1", b"FEI2"):
        return _fei_header(block, order, kind, sections)
    first, second = (int(v) for v in np.frombuffer(raw, dtype=order + "i2", count=2, offset=SERIALEM_OFFSET))
    if first < 0 or second < 0:
        return None, None
    if (first, second) == (128, 32) and (len(block) == FEI_BYTES or bytes(header["label"][0]).startswith(b"Fei ")):
        first = 0  # FEI's mistake, which IMOD knows too: bytes for the number of integers
    fields = sum(size for flag, size in SERIALEM_FIELD_BYTES.items() if second & flag)
    if kind != b"AGAR" and first > 0 and fields == first:
        if not second & SERIALEM_TILT_FLAG or len(block) < first * sections:
            return None, None
        table = np.frombuffer(block, dtype=order + "i2", count=first // 2 * sections).reshape(sections, -1)
        return _meaningful(table[:, 0] / 100.0), None
    # Agard: integers, then reals, the first real is the tilt (also FEI before 2014: 0 integers, 32 reals)
    words = first + second
    if second == 0 or len(block) < 4 * words * sections:
        return None, None
    table = np.frombuffer(block, dtype=order + "f4", count=words * sections).reshape(sections, words)
    return _meaningful(table[:, first].astype(np.float64)), None


def _fei_header(block: bytes, order: str, kind: bytes, sections: int) -> tuple[Array | None, float | None]:
    """Tilt angles and pixel size of Thermo Fisher's extended headers."""
    dtype = get_ext_header_dtype(kind, order)
    if len(block) < 4:
        return None, None
    step = int(np.frombuffer(block, dtype=order + "i4", count=1)[0])
    if step < dtype.itemsize or len(block) < step * sections:
        return None, None
    records = [np.frombuffer(block, dtype=dtype, count=1, offset=step * i)[0] for i in range(sections)]
    tilt = np.array([float(record["Alpha tilt"]) for record in records])
    pixel = 1e10 * float(records[0]["Pixel size X"])
    ok = np.isfinite(pixel) and PIXEL_SIZE_RANGE_A[0] <= pixel <= PIXEL_SIZE_RANGE_A[1]
    return _meaningful(tilt), pixel if ok else None


def _meaningful(tilt_deg: Array) -> Array | None:
    """The angles, or None where the fields were never filled in."""
    tilt_deg = np.asarray(tilt_deg, dtype=np.float64)
    filled = (
        np.isfinite(tilt_deg).all() and np.abs(tilt_deg).max() <= TILT.high and (len(tilt_deg) == 1 or np.ptp(tilt_deg))
    )
    return tilt_deg if filled else None


class StackWriter:
    """Write a stack or volume section by section; the file appears under its name when it is complete.

    Use::

        with StackWriter(path, (n, ny, nx), pixel_size_A=2.1) as writer:
            for image in images:
                writer.write(image)

    An exception inside the block, or fewer sections than announced, leaves no file behind.

    Args:
        path: of the file; an existing one raises InputError unless ``overwrite``.
        shape: (sections, rows, columns).
        mode: 1 (int16), 2 (float32), 6 (uint16) or 12 (float16); integers are rounded and clipped.
        pixel_size_A: Å, along all axes; None leaves the cell empty.
        volume: whether the sections are slices of a volume (``ispg`` 1) or images of a stack (``ispg`` 0).
        origin: of the header, Å (x, y, z).
        label: one line for the header.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int],
        mode: int = 2,
        pixel_size_A: float | None = None,
        overwrite: bool = False,
        *,
        volume: bool = False,
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        label: str = "",
    ) -> None:
        if mode not in WRITABLE_MODES:
            raise ValueError(f"cannot write MRC mode {mode}; use one of {WRITABLE_MODES}")
        self.path, self.shape, self.mode = Path(path), shape, mode
        self.pixel_size_A, self.overwrite, self.volume, self.origin, self.label = (
            pixel_size_A,
            overwrite,
            volume,
            origin,
            label,
        )
        self._dtype = np.dtype("<" + MODES[mode])
        self._written = 0
        self._minimum, self._maximum, self._mean, self._squares = np.inf, -np.inf, 0.0, 0.0
        self._measured = 0
        self._cleanup = ExitStack()

    def __enter__(self) -> StackWriter:
        self._cleanup.__enter__()
        temporary = self._cleanup.enter_context(atomic_path(self.path, self.overwrite))
        self._file = self._cleanup.enter_context(open(temporary, "wb"))
        self._file.write(bytes(HEADER_BYTES))
        return self

    def write(self, image: ArrayLike) -> None:
        """Append one section ``(ny, nx)``."""
        pixels = np.asarray(image)
        if pixels.shape != self.shape[1:]:
            raise ValueError(f"section of shape {pixels.shape} for a file of {self.shape[1:]}")
        if self._written == self.shape[0]:
            raise ValueError(f"more than the {self.shape[0]} sections announced")
        if self._dtype.kind in "iu":
            limits = np.iinfo(self._dtype)
            pixels = np.clip(np.rint(pixels), limits.min, limits.max)
        pixels = np.ascontiguousarray(pixels, dtype=self._dtype)
        self._file.write(pixels.data)
        self._measure(pixels)
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._written != self.shape[0]:
            error = ValueError(f"{self._written} sections written, {self.shape[0]} announced")
            self._cleanup.__exit__(ValueError, error, None)
            raise error
        if kind is None:
            try:
                self._file.seek(0)
                self._file.write(self._header())
                self._file.flush()
            except OSError as failure:
                self._cleanup.__exit__(OSError, failure, failure.__traceback__)
                raise
        self._cleanup.__exit__(kind, error, trace)

    def _measure(self, pixels: NDArray[Any]) -> None:
        """Fold the finite pixels of a section into minimum, maximum, mean and sum of squared deviations."""
        values = pixels[np.isfinite(pixels)].astype(np.float64)
        if not values.size:
            return
        self._minimum = min(self._minimum, float(values.min()))
        self._maximum = max(self._maximum, float(values.max()))
        mean, before = float(values.mean()), self._measured
        self._measured += values.size
        difference, share = mean - self._mean, values.size / self._measured
        self._mean += difference * share
        self._squares += float(((values - mean) ** 2).sum()) + difference**2 * before * share

    def _header(self) -> bytes:
        header = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
        nz, ny, nx = self.shape
        grid_z = nz if self.volume else 1
        header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, self.mode
        header["mx"], header["my"], header["mz"] = nx, ny, grid_z
        if self.pixel_size_A:
            cell = header["cella"]
            cell["x"], cell["y"], cell["z"] = (self.pixel_size_A * size for size in (nx, ny, grid_z))
        for name in ("alpha", "beta", "gamma"):
            header["cellb"][name] = 90.0
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
        if self._measured:
            header["dmin"], header["dmax"], header["dmean"] = self._minimum, self._maximum, self._mean
        header["rms"] = np.sqrt(self._squares / max(1, self._measured))
        header["ispg"] = 1 if self.volume else 0
        header["nversion"] = 20140
        header["origin"]["x"], header["origin"]["y"], header["origin"]["z"] = self.origin
        header["map"] = b"MAP "
        header["machst"] = (0x44, 0x44, 0, 0)
        header["label"][0] = self.label.encode("ascii", "replace")[:80] or LABEL
        header["nlabl"] = 1
        return header.tobytes()


def write_volume(
    path: str | Path,
    array: ArrayLike,
    pixel_size_A: float | None,
    *,
    mode: int = 2,
    overwrite: bool = False,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    label: str = "",
) -> Path:
    """Write a volume ``[z, y, x]``; see `StackWriter`."""
    return _write(path, array, pixel_size_A, mode, overwrite, True, origin, label)


def write_stack(
    path: str | Path,
    images: ArrayLike,
    pixel_size_A: float | None,
    *,
    mode: int = 2,
    overwrite: bool = False,
    label: str = "",
) -> Path:
    """Write images ``(n, ny, nx)`` as a stack; see `StackWriter`."""
    return _write(path, images, pixel_size_A, mode, overwrite, False, (0.0, 0.0, 0.0), label)


def _write(
    path: str | Path,
    array: ArrayLike,
    pixel_size_A: float | None,
    mode: int,
    overwrite: bool,
    volume: bool,
    origin: tuple[float, float, float],
    label: str,
) -> Path:
    sections = np.asarray(array)
    if sections.ndim != 3:
        raise ValueError(f"an MRC file holds three dimensions, not {sections.ndim}")
    nz, ny, nx = sections.shape
    with StackWriter(
        path, (nz, ny, nx), mode, pixel_size_A, overwrite, volume=volume, origin=origin, label=label
    ) as writer:
        for section in sections:
            writer.write(section)
    return Path(os.fspath(path))
