"""Files that are complete or not there at all, and text files that are what they claim to be.

A name promises a complete file or folder, after a power failure too. So what was written is on the disk before it gets
its name (`put_in_place`), and the name itself is when the call returns.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shlex
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inrtomo.errors import InputError

PACKED = (
    (b"\x1f\x8b", ".gz", "gunzip -k"),
    (b"BZh", ".bz2", "bunzip2 -k"),
    (b"\xfd7zXZ\0", ".xz", "unxz -k"),
    (b"\x28\xb5\x2f\xfd", ".zst", "unzstd"),
    (b"\x04\x22\x4d\x18", ".lz4", "unlz4 -k"),
    (b"\x1f\x9d", ".Z", "gunzip -k"),
    (b"PK\x03\x04", ".zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", ".7z", "7z x"),
)
"""First bytes of packed files, their ending and what unpacks them."""
PACKED_SUFFIXES = tuple(ending for _, ending, _ in PACKED)
OTHER_KINDS = (
    (None, (".eer", ".eers"), "a movie of electron events", "sum it first (with motion correction) and give the MRC"),
    (None, (".dm3", ".dm4"), "a Gatan file", "convert it to MRC first (IMOD: dm2mrc)"),
    (b"\x89HDF\r\n\x1a\n", (".hdf", ".h5", ".hdf5"), "an HDF file", "convert it to MRC first (EMAN2: e2proc2d.py)"),
    (b"\x93NUMPY", (".npy", ".npz"), "a NumPy file", "save it as MRC first (mrcfile)"),
)
"""First bytes and endings of files that hold images in other ways, what they are and what to do."""
MAX_TEXT_BYTES = 512 * 2**20
"""A text file beyond this is not one of ours: the warp files of a long 8k series have a few MB."""

UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EROFS)
"""What file systems answer that do not know how to wait for the disk."""


def check_output(path: str | Path, overwrite: bool) -> None:
    """Refuse (InputError) a path that exists already, unless it may be overwritten, or whose folder cannot be used."""
    path = Path(path)
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give another name or --overwrite")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it first or write elsewhere")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: no permission to write here; change it or write elsewhere")


def make_folder(folder: str | Path) -> Path:
    """Make an output folder, or InputError saying why not."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder}: is a file; give the name of a folder") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: a part of this path is a file; give another folder") from None
    except PermissionError:
        raise InputError(f"{folder}: no permission to make this folder; write elsewhere") from None
    return folder


@contextmanager
def atomic_path(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, renamed to it when the block ends well, removed when it does not.

    What is left of earlier attempts at the same file, whose process on this machine was killed, is removed too.
    """
    path = Path(path)
    check_output(path, overwrite)
    here = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.{here}-*-*.part"):
        if not _is_running(left_over.name.split("-")[-2]):
            left_over.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{here}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield temporary
        check_output(path, overwrite)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(made: str | Path, path: str | Path) -> None:
    """Rename a complete file or folder, so that after a power failure there is all of it, or what was there before.

    Every rename that promises completeness is this one.

    Args:
        made: file or folder with nothing open in it; of a folder everything in it is written to the disk first.
        path: its name from now on, on the same file system; a file there is replaced.

    Raises:
        OSError: the disk did not take it, or it cannot be renamed; what was at ``path`` is still there.
    """
    made, path = Path(made), Path(path)
    if made.is_dir():
        for folder, _, files in os.walk(made):
            for name in files:
                sync(Path(folder, name))
            sync(folder)
    else:
        sync(made)
    os.replace(made, path)
    sync(path.parent)


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they are not there for good: the disk is full or broken.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if not os.path.isdir(path):
            raise
        return  # a folder that may be written to and not listed; on Windows any folder
    try:
        os.fsync(handle)
    except OSError as error:
        # file systems that cannot do it for folders, some not for files either: no reason to lose a result
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(handle)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, OSError):
        pass  # somebody else's, or no process number
    return True


def write_text(path: str | Path, text: str, overwrite: bool = False) -> Path:
    """Write a whole text file or nothing; returns its path."""
    with atomic_path(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def check_input(path: str | Path) -> Path:
    """The path of a file that can be read and has something in it, or InputError."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    if not path.exists():
        raise InputError(f"{path}: no such file; check the name")
    if not path.is_file():
        raise InputError(f"{path}: is not a regular file; copy its contents to one")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; change it")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; copy it again")
    return path


def refuse_other_kinds(path: str | Path) -> None:
    """InputError for a file of images that is packed, or of a kind that is not read, naming what turns it into one."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(8)
    for magic, endings, what, remedy in OTHER_KINDS:
        if (magic is not None and start.startswith(magic)) or path.suffix.lower() in endings:
            raise InputError(f"{path}: is {what}; {remedy}")
    for magic, ending, program in PACKED:
        if start.startswith(magic):
            renamed = path.name if path.suffix == ending else f"{path.name}{ending}"
            rename = "" if renamed == path.name else f"rename it to {renamed} and "
            raise InputError(
                f"{path}: is packed ({ending}) and not read as it is; {rename}unpack it first: {program} "
                f"{shlex.quote(renamed)}"
            )


def read_text(path: str | Path) -> str:
    """Contents of a text file; bytes that are not UTF-8 become replacement characters (SerialEM writes Latin-1)."""
    path = check_input(path)
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"{path}: is too large for a text file; give another")
    data = path.read_bytes()
    if b"\0" in data:
        refuse_other_kinds(path)
        raise InputError(f"{path}: is not a text file; give another")
    return data.decode("utf-8", errors="replace").lstrip("\ufeff")
