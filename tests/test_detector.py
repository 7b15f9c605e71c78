"""Defects of the detector, copies and packed files are found and said; good images are left as they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignment_phantom import blob_series, rigid_error  # type: ignore[import-not-found]

from inrtomo.align.detector import Defects, DetectorScan, find_defects
from inrtomo.align.pipeline import align_series
from inrtomo.align.prepare import PrepareSettings, prepare
from inrtomo.align.settings import AlignSettings
from inrtomo.batch.manifest import stacks_in
from inrtomo.errors import InputError
from inrtomo.io.images import open_images
from inrtomo.io.imod import write_angles
from inrtomo.io.mrc import read_volume, write_stack
from inrtomo.tiltseries import open_tilt_series
from tests.running import Inr, assert_refused

NY, NX = 120, 128


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Raw images of moving blobs; spread about 1."""
    return np.asarray(blob_series((NX, NY), shift_px=6, noise_sd=0.5)[0])


def found(images: np.ndarray, order: list[int] | None = None) -> Defects:
    scan = DetectorScan(images.shape[1:])  # type: ignore[arg-type]
    for index, image in enumerate(images):
        scan.add(index, image.astype(np.float32))
    return scan.found(order)


def mask_of(*where: tuple[Any, Any]) -> np.ndarray:
    mask = np.zeros((NY, NX), dtype=bool)
    for rows, columns in where:
        mask[rows, columns] = True
    return mask


ALL = slice(None)
PLACES: dict[str, tuple[Any, Any]] = {
    "column": (ALL, 40),
    "rows": (slice(77, 79), ALL),
    "half a column": (slice(0, 60), 90),
    "cluster": (slice(50, 56), slice(20, 27)),
    "corner": (slice(0, 5), slice(0, 5)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", ["bright", "dead", "growing", "noisy"])
def test_what_stays_on_the_detector_is_found_to_the_pixel(images: np.ndarray, place: str, how: str) -> None:
    bad: Any = images + 50
    where = (ALL, *PLACES[place])
    n, rng = len(bad), np.random.default_rng(0)
    if how == "bright":
        bad[where] += 9
    elif how == "dead":
        bad[where] = 0
    elif how == "growing":
        bad[where] += np.linspace(0, 12, n).reshape(-1, *[1] * (bad[where].ndim - 1))
    else:
        bad[where] += rng.uniform(4, 12, bad[where].shape)
    got = found(bad)
    expected = mask_of(PLACES[place])
    if place == "half a column":  # told in pieces of some 60 pixels
        assert got.fixed[expected].all() and not got.fixed[:, np.arange(NX) != 90].any()
    else:
        np.testing.assert_array_equal(got.fixed, expected)
    assert len(got.notes()) == 1 and "detector defects" in got.notes()[0]


def test_the_sentence_names_columns_and_rows(images: np.ndarray) -> None:
    bad = images.copy()
    bad[:, :, [40, 77]] += 9
    bad[:, 100] -= 9
    bad[:, 30, 5] += 60
    (sentence,) = found(bad).notes()
    assert "columns 40, 77 and row 100 and 1 other pixel" in sentence


def test_nothing_is_found_in_good_images(images: np.ndarray) -> None:
    y, x = np.mgrid[:NY, :NX]
    radius = np.hypot(x - 60, y - 50)
    rng = np.random.default_rng(1)
    good = {
        "as they are": images,
        "bytes": np.clip(images * 20 + 120, 0, 255).round(),
        "few counts": rng.poisson(np.clip(0.1 + 0.02 * images, 0, None)),
        "counts": rng.poisson(np.clip(5 + images, 0, None)),
        "beam edge": images + 4 / (1 + np.exp((radius - 55) / 3)),
        "a bead that stays, as in an aligned stack": images + 15 * np.exp(-(radius**2) / 8),
        "a sphere that stays": images + 15 * np.sqrt(np.clip(1 - radius**2 / 30, 0, 1)),
        "a fibre along the axis": images + 5 * np.exp(-((x - 60) ** 2) / 8),
        "a border without data": np.where((y < 4) | (x > 120), 0, images + 50),
        "without noise": blob_series((NX, NY), shift_px=6, noise_sd=0.0)[0],
        "hardly tilted": np.repeat(images[15:16], 9, axis=0) + 0.5 * rng.standard_normal((9, NY, NX)),
    }
    for name, stack in good.items():
        got = found(np.asarray(stack, dtype=np.float32))
        assert got.notes() == [] and not got.any, name


def test_the_real_series_has_none(shared_data: Path) -> None:
    got = find_defects(open_tilt_series(shared_data / "empiar10499_ts01" / "ts01.mrc"))
    assert got.notes() == [] and not got.any


def test_defects_of_some_images_are_left_out_of_these(images: np.ndarray) -> None:
    bad = images.copy()
    bad[3:6, :, 30] += 4
    bad[9, 70:76, 70:76] = 40.0
    bad[12, 10:60, 20:70] = bad[12].min()
    got = found(bad)
    assert not got.fixed.any() and sorted(got.single) == [3, 4, 5, 9, 12]
    np.testing.assert_array_equal(got.of_image(4), mask_of((ALL, 30)))
    np.testing.assert_array_equal(got.of_image(9), mask_of((slice(70, 76), slice(70, 76))))
    assert got.of_image(12)[10:60, 20:70].mean() > 0.95 and got.of_image(12).sum() < 2600
    (sentence,) = got.notes()
    assert "defect lines" in sentence and "images 3, 4, 5, 9, 12" in sentence


def test_an_image_that_is_half_empty_is_named(images: np.ndarray) -> None:
    bad = images.copy()
    bad[8, :, 64:] = 0
    assert any("image 8: 50%" in note for note in found(bad).notes())


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_the_later_of_two_copies_is_left_out(images: np.ndarray, scale: float) -> None:
    twice = images.copy()
    twice[20] = scale * twice[6] + (scale - 1)
    assert found(twice).copies == {20: 6}
    order = list(range(len(twice)))[::-1]  # the last image of the stack was the first to be taken
    assert found(twice, order).copies == {6: 20}
    assert found(images).copies == {}


def test_one_image_with_two_tilt_angles_is_a_doubt_and_many_copies_are_few_notes() -> None:
    tilt = np.array([-3.0, 0.0, 3.0, -3.0])
    one = Defects(np.zeros((NY, NX), dtype=bool), copies={2: 1})
    said = one.doubt(tilt)
    assert said is not None and "images 1 and 2" in said and "0° and 3°" in said and "--exclude" in said
    # taken or written twice at one angle: whichever is used, it is right
    assert Defects(one.fixed, copies={3: 0}).doubt(tilt) is None
    notes = Defects(one.fixed, copies={40 + i: i for i in range(40)}).notes()
    assert len(notes) < 12 and "79" in notes[-1]


def test_repaired_pixels_follow_a_plane_and_the_others_stay() -> None:
    y, x = np.mgrid[:NY, :NX].astype(np.float32)
    plane = 3 * x - 2 * y + 7
    defects = Defects(
        mask_of((ALL, 40), (60, ALL), (slice(20, 23), slice(90, 93))), {2: (np.array([5]), np.array([6]))}
    )
    bad = np.where(defects.of_image(2), 1e6, plane).astype(np.float32)
    got = defects.repaired(2, bad)
    inside = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(got[inside], plane[inside], atol=4)
    np.testing.assert_array_equal(got[~defects.of_image(2)], bad[~defects.of_image(2)])
    assert defects.repaired(1, bad)[5, 6] == bad[5, 6]


def test_a_dead_quarter_is_filled_by_what_is_known() -> None:
    defects = Defects(mask_of((slice(0, 60), slice(0, 64))))
    got = defects.repaired(0, np.where(defects.fixed, 1e6, 5.0).astype(np.float32))
    assert np.abs(got - 5.0).max() < 1e-3


def test_binned_pixels_count_when_a_tenth_of_them_is_bad() -> None:
    defects = Defects(mask_of((ALL, 41), (17, 3)))
    expected = np.zeros((NY // 4, NX // 4), dtype=bool)
    expected[:, 10] = True  # 4 of 16; the single pixel is one of 16
    np.testing.assert_array_equal(defects.binned(0, 4), expected)
    np.testing.assert_array_equal(defects.binned(0, 1), defects.fixed)


def test_pixels_that_are_not_seen_have_no_weight_even_beside_gold(images: np.ndarray) -> None:
    bright = images.copy()
    y, x = np.mgrid[:NY, :NX]
    bright += 60 * np.exp(-((x - 50) ** 2 + (y - 50) ** 2) / 18)
    unseen = np.zeros(bright.shape, dtype=bool)
    unseen[:, :, 52] = True
    prepared = prepare(
        bright, np.linspace(-60, 60, len(bright)), settings=PrepareSettings(restore=False), unseen=unseen
    )
    assert prepared.gold[:, 48:53, 51].any()
    assert (prepared.weight[unseen] == 0).all() and (prepared.density_weight[unseen] == 0).all()
    assert (prepared.density_weight[:, :, 51] == 1).all()


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A folder with a series of blobs whose detector has defects, image 11 a copy of image 10."""
    folder = tmp_path_factory.mktemp("spoiled")
    images, truth = blob_series((112, 112), shift_px=6, noise_sd=0.5)
    images = images * 100 + 5000
    images[:, :, 40] += 1500
    images[:, :, 77] = 0
    images[:, 30, 90:96] = images[:, 100:102, 20:22] = 32767
    images[11] = images[10]
    write_stack(folder / "ts.mrc", images.round(), 10.0)
    write_angles(folder / "ts.rawtlt", truth.tilt_deg)
    return folder / "ts.mrc", truth


def test_defects_do_not_hold_the_images_where_the_detector_was(spoiled: tuple[Path, np.ndarray]) -> None:
    path, truth = spoiled
    series = open_tilt_series(path)
    result = align_series(series, AlignSettings(axis_deg=0.0, fast=True))
    assert rigid_error(result.alignment, truth) < 1
    assert any("columns 40, 77" in note for note in result.notes)
    assert result.alignment.excluded == {11: "a copy of image 10"}
    # whoever reads the series afterwards sees it repaired
    assert series.image(0)[:, 77].min() > 3000


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "ts.mrc.gz": gzip.compress,
    "ts.st.bz2": bz2.compress,
    "ts.mrc.xz": lzma.compress,
    "ts.tif.gz": gzip.compress,
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_stacks_are_refused_by_name(name: str, tmp_path: Path, inr: Inr) -> None:
    write_stack(tmp_path / "plain.mrc", np.zeros((4, 8, 8)), 10.0)
    (tmp_path / name).write_bytes(PACKED[name]((tmp_path / "plain.mrc").read_bytes()))
    for command in ("align", "export"):
        given = () if command == "align" else (tmp_path / "ts.xf",)
        result = inr(command, tmp_path / name, *given, "-o", tmp_path / "out")
        assert_refused(result, name, "packed", "unpack it first")
    with pytest.raises(InputError, match="packed"):
        read_volume(tmp_path / name)


def test_a_packed_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "ts.tif").write_bytes(gzip.compress(b"II*\0" + bytes(3000)))
    with pytest.raises(InputError, match="rename it to ts.tif.gz"):
        open_images(tmp_path / "ts.tif")


@pytest.mark.parametrize(
    ("name", "word"), [("a.eer", "motion"), ("a.dm4", "dm2mrc"), ("a.hdf", "HDF"), ("a.npy", "NumPy")]
)
def test_other_kinds_of_images_are_refused_by_name(name: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(5000))
    with pytest.raises(InputError, match=word):
        open_images(tmp_path / name)


def test_packed_stacks_of_a_folder_are_not_passed_over(tmp_path: Path) -> None:
    for name in ("a.mrc", "a.mrc.gz", "b.mrc.gz", "c.txt.gz", ".d.mrc.gz"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in stacks_in(tmp_path)] == ["a.mrc", "b.mrc.gz"]
