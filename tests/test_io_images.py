"""TIFF files and lists of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from inrtomo.errors import InputError
from inrtomo.io.images import open_images
from inrtomo.io.mrc import write_stack

IMAGES = np.random.default_rng(0).integers(0, 1000, (3, 5, 7)).astype(np.float32)


def as_tiff(path: Path, images: np.ndarray, **more: object) -> Path:
    """Rows from the top, as TIFF has them."""
    tifffile.imwrite(path, images[..., ::-1, :], **more)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_stack_has_its_first_row_below_as_in_mrc(tmp_path: Path, dtype: type, compression: str | None) -> None:
    images: NDArray[Any] = (IMAGES % 100).astype(dtype)
    stack = open_images(as_tiff(tmp_path / "a.tif", images, compression=compression, photometric="minisblack"))
    assert stack.shape == (3, 5, 7) and stack.pixel_size_A is None
    for k in range(3):
        np.testing.assert_array_equal(stack.image(k), images[k])


def test_a_tiff_that_lies_otherwise_is_refused(tmp_path: Path) -> None:
    """Rows from the bottom (4) or a quarter turn (6), which some programs obey and others do not."""
    assert open_images(
        as_tiff(tmp_path / "1.tif", IMAGES, photometric="minisblack", extratags=[(274, 3, 1, 1, True)])
    ).shape == (3, 5, 7)
    for value in (4, 6):
        path = as_tiff(
            tmp_path / f"{value}.tif", IMAGES, photometric="minisblack", extratags=[(274, 3, 1, value, True)]
        )
        with pytest.raises(InputError, match=f"{value}.tif: .*Orientation is {value}.*tiffset"):
            open_images(path)


def test_lists_may_mix_formats_and_lengths(tmp_path: Path) -> None:
    first = write_stack(tmp_path / "a.mrc", IMAGES[:2], 3.0)
    second = as_tiff(tmp_path / "b.tiff", IMAGES[2])
    (tmp_path / "list.txt").write_text("# my images\na.mrc\n\nb.tiff\n")
    for stack in (open_images([first, second]), open_images(tmp_path / "list.txt")):
        assert stack.shape == (3, 5, 7) and stack.pixel_size_A == 3
        for k in range(3):
            np.testing.assert_array_equal(stack.image(k), IMAGES[k])


def test_images_of_a_list_have_one_size(tmp_path: Path) -> None:
    paths = [write_stack(tmp_path / "a.mrc", IMAGES, 3.0), write_stack(tmp_path / "b.mrc", IMAGES[:, 1:], 3.0)]
    with pytest.raises(InputError, match="b.mrc.*7 x 4.*7 x 5"):
        open_images(paths)


def test_bad_tiff_files(tmp_path: Path) -> None:
    whole = as_tiff(tmp_path / "a.tif", IMAGES, photometric="minisblack").read_bytes()
    for length in (0, 4, 100, len(whole) // 2):
        (tmp_path / "b.tif").write_bytes(whole[:length])
        with pytest.raises(InputError, match="b.tif"):
            stack = open_images(tmp_path / "b.tif")
            for k in range(3):
                stack.image(k)
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="grey"):
        open_images(tmp_path / "colour.tif")


def test_empty_lists(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n")
    sources: list[list[Path] | Path] = [[], tmp_path / "list.txt"]
    for source in sources:
        with pytest.raises(InputError):
            open_images(source)
    (tmp_path / "list.txt").write_text("none.mrc\n")
    with pytest.raises(InputError, match="none.mrc"):
        open_images(tmp_path / "list.txt")
