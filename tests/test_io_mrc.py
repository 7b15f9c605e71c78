"""MRC files: every mode we promise, headers that lie, files that are complete or not there."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import get_ext_header_dtype

from inrtomo.errors import InputError
from inrtomo.io import mrc

DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def patch(path: Path, offset: int, values: object, dtype: str = "<i4") -> None:
    """Write numbers into a header."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(np.asarray(values, dtype=dtype).tobytes())


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Three images of 5 rows and 7 columns, float32."""
    images = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    return mrc.write_stack(tmp_path / "a.mrc", images, 2.5)


@pytest.mark.parametrize("mode", DTYPES)
@pytest.mark.parametrize("suffix", [".mrc", ".st", ".ali", ".mrcs"])
def test_reads_what_mrcfile_writes(tmp_path: Path, mode: int, suffix: str) -> None:
    values = np.random.default_rng(1).integers(-100 if mode != 6 else 0, 100, (3, 5, 7)).astype(DTYPES[mode])
    path = tmp_path / f"a{suffix}"
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 3.5
        assert file.header.mode == mode
    stack = mrc.open_stack(path)
    assert stack.shape == (3, 5, 7) and stack.pixel_size_A == pytest.approx(3.5)
    assert stack.image(1).dtype == np.float32
    np.testing.assert_array_equal(stack.read(), values.astype(np.float32))
    np.testing.assert_array_equal(stack.rows(2, 1, 3), values[2, 1:4].astype(np.float32))


@pytest.mark.parametrize("mode", mrc.WRITABLE_MODES)
def test_mrcfile_reads_what_we_write(tmp_path: Path, mode: int) -> None:
    values = np.random.default_rng(1).integers(-100 if mode != 6 else 0, 100, (3, 5, 7)).astype(np.float64)
    mrc.write_volume(tmp_path / "v.mrc", values, 4.0, mode=mode, origin=(1.0, 2.0, 3.0), label="test")
    with mrcfile.open(tmp_path / "v.mrc") as file:
        assert file.is_volume() and file.header.mode == mode
        np.testing.assert_array_equal(file.data.astype(float), values)
        assert (file.header.dmin, file.header.dmax) == (values.min(), values.max())
        assert file.header.dmean == pytest.approx(values.mean()) and file.header.rms == pytest.approx(values.std())
        assert file.voxel_size.x == file.voxel_size.z == 4 and file.header.origin.y == 2
    if mode != 12:  # mrcfile's own check of the rms overflows in half precision
        assert mrcfile.validate(tmp_path / "v.mrc")


def test_a_stack_of_images_is_said_to_be_one(stack: Path) -> None:
    with mrcfile.open(stack) as file:
        assert file.is_image_stack() and file.voxel_size.x == pytest.approx(2.5)
    assert mrcfile.validate(stack)


def test_integers_are_rounded_and_clipped(tmp_path: Path) -> None:
    mrc.write_stack(tmp_path / "a.mrc", np.array([[[-1e9, -1.6, 1.6, 1e9]]]), None, mode=1)
    assert mrc.open_stack(tmp_path / "a.mrc").image(0).tolist() == [[-32768, -2, 2, 32767]]
    assert mrc.open_stack(tmp_path / "a.mrc").pixel_size_A is None


def test_bytes_signed_and_unsigned(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    values = np.array([[[-100, 0, 100]]], dtype=np.int8)
    with mrcfile.new(path) as file:
        file.set_data(values)
    assert mrc.open_stack(path).image(0).tolist() == [[-100, 0, 100]]
    patch(path, mrc.IMOD_STAMP_OFFSET, [mrc.IMOD_STAMP, 0])
    assert mrc.open_stack(path).image(0).tolist() == [[156, 0, 100]]
    # what IMOD stores signed it means less 128
    patch(path, mrc.IMOD_STAMP_OFFSET, [mrc.IMOD_STAMP, mrc.SIGNED_BYTES_FLAG])
    assert mrc.open_stack(path).image(0).tolist() == [[28, 128, 228]]
    # files from before the stamp: their maximum tells
    patch(path, mrc.IMOD_STAMP_OFFSET, [0, 0])
    patch(path, 76, [0.0, 156.0], "<f4")
    assert mrc.open_stack(path).image(0).tolist() == [[156, 0, 100]]


def test_big_endian(tmp_path: Path) -> None:
    path, values = tmp_path / "a.mrc", np.arange(12, dtype=">f4").reshape(1, 3, 4)
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 2
    raw = path.read_bytes()
    assert raw[:4] == b"\0\0\0\4"
    assert mrc.open_stack(path).pixel_size_A == 2
    np.testing.assert_array_equal(mrc.open_stack(path).read(), values)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from(mrc.WRITABLE_MODES), st.integers(0, 2**32 - 1))
def test_any_size_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int, int], mode: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("sizes") / "a.mrc"
    values = np.random.default_rng(seed).integers(0, 100, shape)
    mrc.write_stack(path, values, 1.7, mode=mode)
    np.testing.assert_array_equal(mrc.open_stack(path).read(), values)


@pytest.mark.parametrize(
    ("offset", "value", "dtype", "said"),
    [
        (0, 2**20, "<i4", "promises"),
        (0, 2**30, "<i4", "not an MRC"),
        (8, 2**31 - 1, "<i4", "promises"),
        (0, -7, "<i4", "size"),
        (4, 0, "<i4", "size"),
        (12, 4, "<i4", "mode 4"),
        (92, 2**31 - 1, "<i4", "promises"),
        (92, -4, "<i4", "extended"),
        (64, [2, 1, 3], "<i4", "axes"),
    ],
)
def test_headers_that_lie_cost_a_sentence_and_no_memory(
    stack: Path, offset: int, value: object, dtype: str, said: str
) -> None:
    patch(stack, offset, value, dtype)
    tracemalloc.start()
    with pytest.raises(InputError, match=said) as caught:
        mrc.open_stack(stack)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a.mrc" in str(caught.value) and peak < 5e6


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1024 + 4 * 35 * 3 - 1])
def test_truncated_files(stack: Path, length: int) -> None:
    stack.write_bytes(stack.read_bytes()[:length])
    with pytest.raises(InputError, match="a.mrc"):
        mrc.open_stack(stack)


def test_the_file_may_shrink_while_it_is_read(stack: Path) -> None:
    opened = mrc.open_stack(stack)
    stack.write_bytes(stack.read_bytes()[:1100])
    with pytest.raises(InputError, match="shorter"):
        opened.image(2)


@pytest.mark.parametrize("cell", [np.nan, np.inf, 0, -5, 1e-30])
def test_a_cell_that_is_none_gives_no_pixel_size(stack: Path, cell: float) -> None:
    patch(stack, 40, cell, "<f4")
    assert mrc.open_stack(stack).pixel_size_A is None


def test_no_such_file_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.mrc", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            mrc.open_stack(path)


def with_extended_header(path: Path, block: bytes, kind: bytes, shorts: tuple[int, int] = (0, 0)) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:1024] + block + raw[1024:])
    patch(path, 92, len(block))
    patch(path, 104, np.frombuffer(kind.ljust(4, b"\0"), "<i4"))
    patch(path, mrc.SERIALEM_OFFSET, shorts, "<i2")


ANGLES = [-3.0, 0.02, 3.01]


def test_tilt_angles_of_serialem(stack: Path) -> None:
    image = mrc.open_stack(stack).image(1)
    block = np.zeros((3, 5), "<i2")  # tilt, stage x and y, magnification, intensity
    block[:, 0] = np.rint(100 * np.array(ANGLES))
    with_extended_header(stack, block.tobytes(), b"SERI", (10, 1 + 4 + 8 + 16))
    opened = mrc.open_stack(stack)
    assert opened.tilt_deg == pytest.approx(ANGLES)
    np.testing.assert_array_equal(opened.image(1), image)


@pytest.mark.parametrize("integers", [0, 4])
def test_tilt_angles_of_agard(stack: Path, integers: int) -> None:
    block = np.zeros((3, 32 + integers), "<f4")
    block[:, integers] = ANGLES
    with_extended_header(stack, block.tobytes(), b"AGAR", (integers, 32))
    assert mrc.open_stack(stack).tilt_deg == pytest.approx(ANGLES)


@pytest.mark.parametrize("kind", [b"FEI1", b"FEI2"])
def test_tilt_angles_and_pixel_size_of_thermo_fisher(stack: Path, kind: bytes) -> None:
    block = np.zeros(3, get_ext_header_dtype(kind, "<"))
    block["Metadata size"] = block.dtype.itemsize
    block["Alpha tilt"] = ANGLES
    block["Pixel size X"] = 1.35e-10
    with_extended_header(stack, block.tobytes(), kind)
    patch(stack, 40, 0.0, "<f4")
    opened = mrc.open_stack(stack)
    assert opened.tilt_deg == pytest.approx(ANGLES) and opened.pixel_size_A == pytest.approx(1.35)


def test_an_extended_header_never_filled_in_has_no_angles(stack: Path) -> None:
    with_extended_header(stack, bytes(3 * 128), b"AGAR", (0, 32))
    assert mrc.open_stack(stack).tilt_deg is None


def test_nothing_is_left_of_an_interrupted_write(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    with pytest.raises(KeyboardInterrupt), mrc.StackWriter(path, (2, 3, 4)) as writer:
        writer.write(np.zeros((3, 4)))
        assert not path.exists()
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="announced"), mrc.StackWriter(path, (2, 3, 4)) as writer:
        writer.write(np.zeros((3, 4)))
    assert not list(tmp_path.iterdir())


def test_files_are_overwritten_only_when_told_and_when_complete(stack: Path) -> None:
    before = stack.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        mrc.write_stack(stack, np.zeros((1, 2, 2)), 1)
    with pytest.raises(ValueError), mrc.StackWriter(stack, (2, 3, 4), overwrite=True) as writer:
        writer.write(np.zeros((3, 5)))
    assert stack.read_bytes() == before and len(list(stack.parent.iterdir())) == 1
    mrc.write_stack(stack, np.zeros((1, 2, 2)), 1, overwrite=True)
    assert mrc.open_stack(stack).shape == (1, 2, 2)
    with pytest.raises(InputError, match="no such folder"):
        mrc.write_stack(stack.parent / "none" / "a.mrc", np.zeros((1, 2, 2)), 1)


def test_the_real_series(shared_data: Path) -> None:
    path = shared_data / "empiar10499_ts01" / "ts01.mrc"
    stack = mrc.open_stack(path)
    assert stack.shape == (41, 630, 652) and stack.pixel_size_A == 10 and stack.tilt_deg is None
    with mrcfile.mmap(path) as file:
        np.testing.assert_array_equal(stack.image(40), file.data[40])
