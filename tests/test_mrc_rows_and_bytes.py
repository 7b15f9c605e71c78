"""MRC headers written byte by byte: row order and signs of bytes as IMOD has them, and masks of such bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io import mrc
from inrtomo.io.images import ImageList, row_order_notes
from inrtomo.simulate.specimen import _read_densities
from tests.running import Inr, assert_refused

STAMP = 1146047817
KINDS = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 3: "V4", 4: "V8", 16: "V3", 101: "u1"}
ROWS = np.arange(2 * 3 * 4).reshape(2, 3, 4)


def write(
    path: Path, pixels: NDArray, mode: int = 2, order: str = "<", extended: bytes = b"", kind: bytes = b"",
    version: int = 20140, axes: tuple[int, int, int] = (1, 2, 3), stamp: tuple[int, int] | None = None,
    range_: tuple[float, float] = (0.0, 0.0), volume: bool = False, shorts: tuple[int, int] = (0, 0),
) -> Path:  # fmt: skip
    """A file of pixels (sections, rows, columns) at 10 Å, every field at its offset of MRC2014."""
    nz, ny, nx = pixels.shape
    head = bytearray(1024)
    struct.pack_into(order + "4i", head, 0, nx, ny, nz, mode)
    struct.pack_into(order + "3i3f", head, 28, nx, ny, nz if volume else 1, 10.0 * nx, 10.0 * ny, 10.0 * nz)
    struct.pack_into(order + "3i2f", head, 64, *axes, *range_)
    struct.pack_into(order + "2i", head, 88, int(volume), len(extended))
    head[104:108] = kind.ljust(4, b"\0")
    struct.pack_into(order + "i", head, 108, version)
    struct.pack_into(order + "2h", head, 128, *shorts)
    if stamp is not None:
        struct.pack_into(order + "2i", head, 152, *stamp)
    head[208:216] = b"MAP " + (b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0")
    data = np.asarray(pixels)
    data = data.astype(order + KINDS[mode]) if mode not in (3, 4, 16) else data
    path.write_bytes(bytes(head) + extended + data.tobytes())
    return path


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("header", "from_top"),
    [
        ({"kind": b"FEI1"}, True),
        ({"kind": b"FEI2"}, True),
        ({"kind": b"FEI1", "stamp": (STAMP, 0)}, False),
        ({"kind": b"FEI2", "stamp": (STAMP, 4)}, False),
        ({"kind": b"FEI2", "version": 20141}, False),
        ({"kind": b"FEI1", "version": 0}, False),
        ({"kind": b"SERI"}, False),
        ({"kind": b""}, False),
        ({"axes": (1, -2, 3)}, True),
        ({"axes": (0, 0, 0)}, False),
        ({"axes": (1, 1, 1)}, False),  # no axes: IMOD takes them for 1 2 3
    ],
)
def test_rows_from_the_top_are_turned_over_where_imod_does(
    tmp_path: Path, header: dict, from_top: bool, order: str
) -> None:
    """``mrc_head_read``: FEI's extended header of version 20140, or mapr -2, in a file without IMOD's stamp."""
    extended = bytes(768 * 2) if header.get("kind") else b""
    path = write(tmp_path / "a.mrc", ROWS, order=order, extended=extended, **header)
    stack, expected = mrc.open_stack(path), ROWS[:, ::-1] if from_top else ROWS
    assert stack.header.rows_from_top == from_top
    np.testing.assert_array_equal(stack.read(), expected)
    np.testing.assert_array_equal(stack.image(1), expected[1])
    np.testing.assert_array_equal(stack.rows(1, 1, 2), expected[1, 1:])
    np.testing.assert_array_equal(stack.rows(0, 0, 1), expected[0, :1])
    np.testing.assert_array_equal(mrc.read_volume(path)[0], expected)
    notes = row_order_notes(ImageList([path, path]))
    assert len(notes) == from_top and all("a.mrc" in note and "RELION" in note for note in notes)


def test_a_bead_of_a_file_from_the_top_goes_to_the_other_half(inr: Inr, tmp_path: Path) -> None:
    """Through a command: the aligned stack of the same bytes with and without the stamp is mirrored in y."""
    images = np.random.default_rng(0).normal(size=(5, 12, 16))
    (tmp_path / "a.tlt").write_text("-40\n-20\n0\n20\n40\n")
    found = {}
    for name, stamp in (("fei", None), ("imod", (STAMP, 0))):
        path = write(tmp_path / f"{name}.mrc", images, extended=bytes(768 * 5), kind=b"FEI1", stamp=stamp)
        done = inr("export", path, tmp_path / "a.tlt", "-o", tmp_path / f"{name}_ali.mrc")
        assert done.exit_code == 0, done.output
        assert ("rows go from the top" in done.output) == (stamp is None)
        found[name] = mrc.read_volume(tmp_path / f"{name}_ali.mrc")[0]
    np.testing.assert_allclose(found["fei"], found["imod"][:, ::-1], atol=1e-5)
    np.testing.assert_allclose(found["imod"], images, atol=1e-4)


@pytest.mark.parametrize("axes", [(1, -2, 3), (1, 2, -3), (-1, 2, 3), (5, 2, 3)])
def test_axes_that_mean_nothing_are_refused(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    stamp = (STAMP, 0) if axes == (1, -2, 3) else None  # IMOD itself never writes rows from the top
    with pytest.raises(InputError, match="a.mrc.*axes"):
        mrc.open_stack(write(tmp_path / "a.mrc", ROWS, axes=axes, stamp=stamp))


@pytest.mark.parametrize("axes", [(3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2)])
def test_volumes_of_other_axes_are_turned_and_stacks_refused(tmp_path: Path, axes: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(0).integers(0, 99, (3, 4, 5))  # [z, y, x]
    columns, rows, sections = axes
    stored = volume.transpose(3 - sections, 3 - rows, 3 - columns)
    path = write(tmp_path / "a.mrc", stored, axes=axes, volume=True)
    np.testing.assert_array_equal(mrc.read_volume(path)[0], volume)
    with pytest.raises(InputError, match="a.mrc.*axes"):
        mrc.open_stack(path)


def test_fei_headers_of_before_2014_have_their_angles(tmp_path: Path) -> None:
    """128 integers and 32 reals are meant as 128 bytes, where the block has FEI's size."""
    block = np.zeros((1024, 32), "<f4")
    block[:3, 0] = [-30, 0, 30]
    pixels = np.zeros((3, 4, 5))
    stack = mrc.open_stack(write(tmp_path / "a.mrc", pixels, extended=block.tobytes(), shorts=(128, 32)))
    assert stack.tilt_deg is not None and stack.tilt_deg.tolist() == [-30, 0, 30]


# --- bytes ---------------------------------------------------------------------------------------------------------

BYTES = np.array([[[-128, -127, -1, 0, 1, 127]]], dtype=np.int8)
SIGNED, UNSIGNED = [-128, -127, -1, 0, 1, 127], [128, 129, 255, 0, 1, 127]
LESS_128 = [0, 1, 127, 128, 129, 255]


@pytest.mark.parametrize(
    ("stamp", "range_", "meant"),
    [
        ((STAMP, 1), (0, 0), LESS_128),
        ((STAMP, 1 + 4), (-128, 127), LESS_128),
        ((STAMP, 0), (-128, 127), UNSIGNED),
        (None, (-128, 127), SIGNED),  # MRC2014
        (None, (-5, 100), SIGNED),
        (None, (0, 255), UNSIGNED),
        (None, (0, 1), UNSIGNED),  # as readBytesSigned has it: nothing says that there is anything below 0
        (None, (-1, 255), UNSIGNED),
        (None, (-200, 130), SIGNED),
        (None, (-128, -127), LESS_128),  # all of it below 0: IMOD's bytes whose stamp is lost
    ],
)
def test_bytes_are_what_imod_means(
    tmp_path: Path, stamp: tuple[int, int] | None, range_: tuple[float, float], meant: list[int]
) -> None:
    stack = mrc.open_stack(write(tmp_path / "a.mrc", BYTES, mode=0, stamp=stamp, range_=range_))
    assert stack.image(0)[0].tolist() == meant
    assert mrc.read_volume(stack.path)[0].ravel().tolist() == meant


@pytest.mark.parametrize(
    ("mode", "stamp", "said"),
    [
        (3, None, "complex"),
        (4, None, "complex"),
        (16, None, "colours"),
        (101, None, "4-bit"),
        (0, (STAMP, 16), "4-bit"),
    ],
)
def test_other_pixels_are_refused_by_name(tmp_path: Path, mode: int, stamp: tuple[int, int] | None, said: str) -> None:
    pixels = np.zeros((1, 4, 4), KINDS[mode])
    with pytest.raises(InputError, match=f"a.mrc.*{said}.*newstack"):
        mrc.open_stack(write(tmp_path / "a.mrc", pixels, mode=mode, stamp=stamp))


def test_bytes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode 0"):
        mrc.write_volume(tmp_path / "a.mrc", np.zeros((2, 2, 2)), 1.0, mode=0)


def test_a_seen_mask_is_of_16_bit_integers_with_its_statistics(inr: Inr, tmp_path: Path) -> None:
    write(tmp_path / "a.mrc", np.random.default_rng(0).normal(size=(3, 16, 16)))
    (tmp_path / "a.tlt").write_text("-20\n0\n20\n")
    (tmp_path / "a.xf").write_text("1 0 0 1 4 0\n" * 3)
    words = ("export", tmp_path / "a.mrc", tmp_path / "a.xf", "-o", tmp_path / "ali.mrc", "--mask", tmp_path / "m.mrc")
    assert inr(*words).exit_code == 0
    raw = (tmp_path / "m.mrc").read_bytes()
    assert struct.unpack_from("<i", raw, 12) == (1,)
    assert struct.unpack_from("<3f", raw, 76) == pytest.approx((0.0, 1.0, 0.75))
    assert struct.unpack_from("<f", raw, 216)[0] == pytest.approx(np.sqrt(0.75 * 0.25))


# --- masks and densities of bytes ----------------------------------------------------------------------------------


def mask(shape: tuple[int, int, int], inside: int, core: int) -> NDArray:
    """Half of a box inside, a part of that with another value."""
    out = np.zeros(shape, int)
    out[:, shape[1] // 4 : -(shape[1] // 4)] = inside
    out[:, shape[1] // 2 - 1 : shape[1] // 2 + 1] = core
    return out


WAYS: dict[str, tuple[Callable[[NDArray], NDArray], dict[str, Any]]] = {
    "signed under the stamp": (lambda m: m - 128, {"stamp": (STAMP, 1)}),
    "unsigned under the stamp": (lambda m: m, {"stamp": (STAMP, 0)}),
    "unsigned, no stamp": (lambda m: m, {}),
    "signed, stamp lost": (lambda m: m - 128, {}),
}


def byte_mask(path: Path, values: NDArray, way: str) -> Path:
    stored, header = WAYS[way][0](values), WAYS[way][1]
    range_ = (float(stored.min()), float(stored.max()))
    return write(path, stored.astype(np.uint8).view(np.int8), mode=0, volume=True, range_=range_, **header)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("inside", "core"), [(1, 1), (60, 255)])
def test_a_support_of_bytes_is_what_lies_above_its_zero(
    inr: Inr, tmp_path: Path, way: str, inside: int, core: int
) -> None:
    write(tmp_path / "a.mrc", np.random.default_rng(0).normal(size=(5, 24, 24)))
    (tmp_path / "a.tlt").write_text("-40\n-20\n0\n20\n40\n")
    given = byte_mask(tmp_path / "mask.mrc", mask((24, 16, 24), inside, core), way)
    words = ("--method", "sirt", "--iterations", 1, "--thickness", 16, "--support", given)
    done = inr("recon", tmp_path / "a.mrc", tmp_path / "a.tlt", "-o", tmp_path / "rec.mrc", *words)
    assert done.exit_code == 0, done.output
    said = next(line for line in done.output.splitlines() if line.startswith("support"))
    assert "50% of the voxels, those above 0" in said
    rec = mrc.read_volume(tmp_path / "rec.mrc")[0]
    assert not rec[:, :4].any() and not rec[:, -4:].any() and rec[:, 4:-4].any()


def test_a_support_with_holes_of_nan_is_refused(inr: Inr, tmp_path: Path) -> None:
    write(tmp_path / "a.mrc", np.random.default_rng(0).normal(size=(5, 24, 24)))
    (tmp_path / "a.tlt").write_text("-40\n-20\n0\n20\n40\n")
    values = np.ones((24, 16, 24))
    values[3, 3, 3] = np.nan
    words = ("--method", "sirt", "--thickness", 16, "--support", write(tmp_path / "m.mrc", values, volume=True))
    done = inr("recon", tmp_path / "a.mrc", tmp_path / "a.tlt", "-o", tmp_path / "rec.mrc", *words)
    assert_refused(done, "m.mrc", "NaN")


@pytest.mark.parametrize("way", WAYS)
def test_masks_of_bytes_weigh_correlations_as_those_of_numbers(inr: Inr, tmp_path: Path, way: str) -> None:
    """Of 0 and 1: as floats of 0 and 1. Of 0 to 255: as floats that are 255 times smaller, which is said."""
    rng = np.random.default_rng(0)
    shape = (16, 24, 24)
    signal = rng.normal(size=shape)
    for name in "ab":
        write(tmp_path / f"{name}.mrc", signal + rng.normal(size=shape), volume=True)
    for inside, core in ((1, 1), (60, 255)):
        values, found = mask(shape, inside, core), []
        byte_mask(tmp_path / "bytes.mrc", values, way)
        write(tmp_path / "floats.mrc", values / values.max(), volume=True)
        for kind in ("bytes", "floats"):
            words = ("--mask", tmp_path / f"{kind}.mrc", "-o", tmp_path / f"{kind}{core}")
            done = inr("fsc", tmp_path / "a.mrc", tmp_path / "b.mrc", *words)
            assert done.exit_code == 0, done.output
            assert ("divided by the largest, 255" in done.output) == (kind == "bytes" and core == 255)
            found.append(json.loads((tmp_path / f"{kind}{core}.json").read_text())["curves"]["masked"]["correlation"])
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_densities_of_signed_bytes_begin_at_their_zero(tmp_path: Path) -> None:
    """A box of 12 voxels with a ball in it, as IMOD writes bytes: 0 is stored as -128, 200 as 72."""
    z, y, x = np.mgrid[:12, :12, :12] - 5.5
    values = np.where(x**2 + y**2 + z**2 < 9, 200, 0)
    (template,) = _densities(tmp_path, values - 128)
    assert template.max() == 1 and np.count_nonzero(template) == np.count_nonzero(values)


def _densities(folder: Path, stored: NDArray) -> list[NDArray[np.float32]]:
    write(folder / "a.mrc", stored, mode=0, volume=True, stamp=(STAMP, 1))
    return _read_densities(folder)
