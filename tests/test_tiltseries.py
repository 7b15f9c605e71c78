"""Opening a tilt series: what is found beside it, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

from inrtomo.errors import InputError
from inrtomo.io.mrc import write_stack
from inrtomo.tiltseries import TiltSeries, check_tilt_angles, open_tilt_series

N, NY, NX = 9, 12, 15
TILT = np.linspace(-60, 60, N)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(N, NY, NX)).astype(np.float32)
DOSE_SYMMETRIC = [7, 5, 3, 1, 0, 2, 4, 6, 8]


def angles(path: Path, values: object = TILT) -> Path:
    path.write_text("".join(f"{a:.2f}\n" for a in np.atleast_1d(np.asarray(values))))
    return path


def mdoc(path: Path, tilt: object = TILT, order: list[int] | None = None, **more: float) -> Path:
    """Metadata with 3 e/Å2 an image, an exposure a minute in the given order."""
    text = "PixelSpacing = 4.0\n[T =     Tilt axis angle = 84.1, binning = 1]\n"
    for k, a in enumerate(np.asarray(tilt)):
        text += f"[ZValue = {k}]\nTiltAngle = {a:.3f}\nPixelSpacing = 4.0\nExposureDose = 3\n"
        text += "".join(f"{key} = {value}\n" for key, value in more.items())
        if order is not None:
            text += f"DateTime = 01-Jan-24  10:{order[k]:02d}:00\n"
    path.write_text(text)
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """``ts.mrc`` with its ``ts.rawtlt``."""
    angles(tmp_path / "ts.rawtlt")
    return write_stack(tmp_path / "ts.mrc", IMAGES, 2.0)


def test_what_is_found(stack: Path) -> None:
    series = open_tilt_series(stack)
    assert (series.name, series.n_tilts, series.size, series.pixel_size_A) == ("ts", N, (NX, NY), 2.0)
    np.testing.assert_allclose(series.tilt_deg, TILT)
    assert series.order is None and series.exposure_e_A2 is None and series.odd is None and not series.excluded
    assert series.sources["tilt angles"].endswith("ts.rawtlt") and series.sources["pixel size"] == "header"
    np.testing.assert_array_equal(series.image(3), IMAGES[3])
    np.testing.assert_array_equal(series.read(), IMAGES)
    np.testing.assert_array_equal(np.stack(list(series.images([4, 2]))), IMAGES[[4, 2]])


def test_a_folder_of_the_same_name_does_not_hide_what_lies_beside(stack: Path) -> None:
    """``inr-align ts.mrc -o ts`` leaves one."""
    stack.with_suffix("").mkdir()
    mdoc(stack.with_name("ts.mrc.mdoc"))
    series = open_tilt_series(stack)
    np.testing.assert_allclose(series.tilt_deg, TILT)
    assert series.sources["mdoc"].endswith("ts.mrc.mdoc")


@pytest.mark.parametrize("suffix", [".st", ".mrcs", ".ali"])
def test_other_endings(tmp_path: Path, suffix: str) -> None:
    angles(tmp_path / "ts.tlt")
    assert open_tilt_series(write_stack(tmp_path / f"ts{suffix}", IMAGES, 2.0)).n_tilts == N


def test_given_files_come_first(stack: Path) -> None:
    other = angles(stack.parent / "other.txt", TILT + 1)
    series = open_tilt_series(stack, other, pixel_size_A=3.3)
    np.testing.assert_allclose(series.tilt_deg, TILT + 1)
    assert series.pixel_size_A == 3.3 and series.sources["pixel size"] == "as given"


@pytest.mark.parametrize("name", ["ts.mrc.mdoc", "ts.mdoc", "ts.st.mdoc"])
def test_everything_from_an_mdoc(stack: Path, name: str) -> None:
    stack.with_suffix(".rawtlt").unlink()
    mdoc(stack.parent / name, order=DOSE_SYMMETRIC)
    series = open_tilt_series(stack)
    np.testing.assert_allclose(series.tilt_deg, TILT)
    assert series.order is not None and series.order.tolist() == DOSE_SYMMETRIC and series.axis_deg == 84.1
    assert series.exposure_e_A2 is not None and series.dose_per_tilt is not None
    np.testing.assert_allclose(series.exposure_e_A2, 3.0 * np.array(DOSE_SYMMETRIC))
    np.testing.assert_allclose(series.dose_per_tilt, 3.0)
    assert series.pixel_size_A == 2.0  # the header's


def test_mdoc_in_order_of_acquisition_beside_a_stack_sorted_by_angle(stack: Path) -> None:
    taken = np.argsort(DOSE_SYMMETRIC)
    mdoc(stack.parent / "ts.mrc.mdoc", TILT[taken] + 0.1, list(range(N)))
    series = open_tilt_series(stack)
    np.testing.assert_allclose(series.tilt_deg, TILT)
    assert series.order is not None and series.order.tolist() == DOSE_SYMMETRIC


def test_mdoc_with_images_that_were_taken_out_of_the_stack(stack: Path) -> None:
    taken = np.argsort(DOSE_SYMMETRIC)
    more = np.append(TILT[taken], [70.0, -70.0])
    mdoc(stack.parent / "ts.mrc.mdoc", np.roll(more, 1), list(range(N + 2)))
    series = open_tilt_series(stack)
    assert series.order is not None and series.order.tolist() == DOSE_SYMMETRIC
    assert series.exposure_e_A2 is not None and series.exposure_e_A2.min() == 3  # one image was taken before


def test_mdoc_of_other_angles_is_left_out_and_said(stack: Path) -> None:
    mdoc(stack.parent / "ts.mrc.mdoc", RNG.uniform(-60, 60, N), list(range(N)))
    series = open_tilt_series(stack)
    assert series.order is None and "left out" in series.sources["mdoc"]


def test_a_dose_never_recorded_is_none(stack: Path) -> None:
    text = mdoc(stack.parent / "ts.mrc.mdoc", order=DOSE_SYMMETRIC, PriorRecordDose=0.0).read_text()
    (stack.parent / "ts.mrc.mdoc").write_text(text.replace("ExposureDose = 3", "ExposureDose = 0"))
    series = open_tilt_series(stack)
    assert series.dose_per_tilt is None and series.exposure_e_A2 is None and series.order is not None


def test_prior_dose_is_believed(stack: Path) -> None:
    text = mdoc(stack.parent / "ts.mrc.mdoc", order=DOSE_SYMMETRIC, PriorRecordDose=0.0).read_text()
    for turn in DOSE_SYMMETRIC:
        text = text.replace("PriorRecordDose = 0.0", f"PriorRecordDose = {10 + 3.5 * turn}", 1)
    (stack.parent / "ts.mrc.mdoc").write_text(text)
    series = open_tilt_series(stack)
    assert series.exposure_e_A2 is not None
    np.testing.assert_allclose(series.exposure_e_A2, 10 + 3.5 * np.array(DOSE_SYMMETRIC))


def test_pixel_size_from_the_mdoc_where_the_header_has_none(stack: Path) -> None:
    for header in (None, 1.0):
        write_stack(stack, IMAGES, header, overwrite=True)
        mdoc(stack.parent / "ts.mrc.mdoc")
        assert open_tilt_series(stack).pixel_size_A == 4.0
    (stack.parent / "ts.mrc.mdoc").unlink()
    series = open_tilt_series(stack)
    assert series.pixel_size_A == 1.0 and "never told" in series.sources["pixel size"]
    write_stack(stack, IMAGES, None, overwrite=True)
    series = open_tilt_series(stack)
    assert series.pixel_size_A is None and "pixel size" not in series.sources


@pytest.mark.parametrize("ends", [("_odd", "_even"), ("_ODD", "_EVN")])
def test_odd_and_even_companions(stack: Path, ends: tuple[str, str]) -> None:
    noise = RNG.normal(size=IMAGES.shape).astype(np.float32)
    for end, half in zip(ends, (IMAGES + noise, IMAGES - noise), strict=True):
        write_stack(stack.with_name(f"ts{end}.mrc"), half / 2, 2.0)
    series = open_tilt_series(stack)
    assert series.odd == stack.with_name(f"ts{ends[0]}.mrc") and series.even == stack.with_name(f"ts{ends[1]}.mrc")
    # a half on its own finds the angles of the full stack
    np.testing.assert_allclose(open_tilt_series(series.odd).tilt_deg, TILT)
    write_stack(series.even, IMAGES[:, 1:], 2.0, overwrite=True)
    series = open_tilt_series(stack)
    assert series.odd is None and "left out" in series.sources["odd and even"]


def test_lists_of_images(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.tif" for k in range(N)]
    for path, image in zip(paths, IMAGES, strict=True):
        tifffile.imwrite(path, image[::-1])
    tlt = angles(tmp_path / "a.tlt")
    series = open_tilt_series(paths, tlt, pixel_size_A=2.0)
    assert series.name == tmp_path.name
    np.testing.assert_array_equal(series.read(), IMAGES)
    (tmp_path / "mine.lst").write_text("".join(f"{path.name}\n" for path in paths))
    angles(tmp_path / "mine.rawtlt")
    listed = open_tilt_series(tmp_path / "mine.lst")
    assert listed.name == "mine" and listed.pixel_size_A is None
    np.testing.assert_array_equal(listed.image(2), IMAGES[2])


def test_exclude_and_include(stack: Path) -> None:
    series = open_tilt_series(stack, exclude=[1, 4], include=[1, 2, 3, 4, 5, 8])
    assert list(series.excluded) == [0, 1, 4, 6, 7] and series.included.tolist() == [2, 3, 5, 8]
    with pytest.raises(InputError, match="no image 9.*0 to 8"):
        open_tilt_series(stack, exclude=[N])
    with pytest.raises(InputError, match="exclude fewer"):
        open_tilt_series(stack, include=[1, 2])


@pytest.mark.parametrize("bin", [2, 3, 4])
@pytest.mark.parametrize("size", [(24, 24), (25, 26), (27, 23)])
def test_binned_images_keep_their_centre(tmp_path: Path, bin: int, size: tuple[int, int]) -> None:
    nx, ny = size
    x, y = np.meshgrid(np.arange(nx) - (nx - 1) / 2, np.arange(ny) - (ny - 1) / 2)
    angles(tmp_path / "ts.rawtlt", [-1.5, 0, 3])
    write_stack(tmp_path / "ts.mrc", np.stack([x, y, x + y]), 2.0)
    images = open_tilt_series(tmp_path / "ts.mrc").read(bin)
    bx, by = np.meshgrid(*(bin * (np.arange(s // bin) - (s // bin - 1) / 2) for s in size))
    np.testing.assert_allclose(images, np.stack([bx, by, bx + by]), atol=1e-4)


# --- what is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (TILT[:-1], "8 angles for 9"),
        (np.append(TILT, 3), "10 angles for 9"),
        (np.deg2rad(TILT), "radians"),
        (100 * TILT, "degrees"),
        (np.zeros(N), "every angle is 0"),
        (np.full(N, 3.0), "every angle is 3"),
        (np.where(TILT == 0, np.nan, TILT), "line 5"),
    ],
)
def test_angles_that_cannot_be(stack: Path, values: np.ndarray, said: str) -> None:
    angles(stack.with_suffix(".rawtlt"), values)
    with pytest.raises(InputError, match=f"ts.rawtlt.*{said}"):
        open_tilt_series(stack)


def test_few_small_angles_are_not_radians() -> None:
    check_tilt_angles(np.array([-1.0, 0, 1]), 3, "a")
    check_tilt_angles(np.linspace(-1, 3, 9), 9, "a")


def test_no_angles_at_all(stack: Path) -> None:
    stack.with_suffix(".rawtlt").unlink()
    with pytest.raises(InputError, match="--tilt-angles"):
        open_tilt_series(stack)
    with pytest.raises(InputError, match="none.tlt"):
        open_tilt_series(stack, stack.parent / "none.tlt")


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_images(tmp_path: Path, n: int) -> None:
    write_stack(tmp_path / "ts.mrc", IMAGES[:n], 2.0)
    with pytest.raises(InputError, match="at least 3"):
        open_tilt_series(tmp_path / "ts.mrc")


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_blank_stack(stack: Path, value: float) -> None:
    write_stack(stack, np.full(IMAGES.shape, value), 2.0, overwrite=True)
    with pytest.raises(InputError, match="blank"):
        open_tilt_series(stack)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_numbers(stack: Path, value: float) -> None:
    images = IMAGES.copy()
    images[2, 3, 4] = images[7, :2] = value
    write_stack(stack, images, 2.0, overwrite=True)
    series = open_tilt_series(stack)
    np.testing.assert_array_equal(series.image(1), IMAGES[1])
    with pytest.raises(InputError, match=r"image 2: 1, image 7: 30.*--exclude 2,7"):
        series.read()
    # an excluded image is mended, so that a stack can still be written whole
    series = open_tilt_series(stack, exclude=[2, 7])
    mended = series.read()
    assert np.isfinite(mended).all() and series.bad_pixels == {2: 1, 7: 30} and len(series.notes) == 2
    window = IMAGES[2, 1:6, 2:7].ravel()
    assert mended[2, 3, 4] == pytest.approx(np.median(np.delete(window, 12)))
    np.testing.assert_array_equal(mended[7, 2:], IMAGES[7, 2:])


def test_an_image_without_any_number(stack: Path) -> None:
    images = IMAGES.copy()
    images[0] = np.nan
    write_stack(stack, images, 2.0, overwrite=True)
    assert not open_tilt_series(stack, exclude=[0]).image(0).any()


@pytest.mark.parametrize("pixel", [0.0, -1.0, np.nan, np.inf])
def test_a_pixel_size_that_is_none(stack: Path, pixel: float) -> None:
    with pytest.raises(InputError, match="pixel size"):
        open_tilt_series(stack, pixel_size_A=pixel)


def test_images_are_not_kept(stack: Path) -> None:
    series: TiltSeries = open_tilt_series(stack)
    first = series.image(0)
    write_stack(stack, IMAGES + 1, 2.0, overwrite=True)
    assert not np.array_equal(series.image(0), first)


def test_the_real_series(shared_data: Path) -> None:
    series = open_tilt_series(shared_data / "empiar10499_ts01" / "ts01.mrc")
    assert series.n_tilts == 41 and series.size == (652, 630) and series.pixel_size_A == 10.0
    assert series.tilt_deg[0] == -60.01 and series.image(20).mean() > series.image(0).mean()


def test_a_simulated_series_says_all_it_knows(tiny_series: Path) -> None:
    series = open_tilt_series(tiny_series / "ts.mrc")
    assert series.odd is not None and series.order is not None and series.exposure_e_A2 is not None
    assert series.axis_deg == 0


# --- metadata of other images


def retaken(path: Path, turns: list[tuple[float, int]]) -> Path:
    """An .mdoc with sections (angle, minute) and 3 e/Å2 each."""
    text = "[T =     Tilt axis angle = 84.1, binning = 1]\n"
    for k, (angle, minute) in enumerate(turns):
        text += f"[ZValue = {k}]\nTiltAngle = {angle}\nExposureDose = 3\nDateTime = 01-Jan-24  10:{minute:02d}:00\n"
    path.write_text(text)
    return path


@pytest.mark.parametrize("in_time", [True, False])
def test_a_tilt_that_was_taken_twice(stack: Path, in_time: bool) -> None:
    """Of two sections at one angle the later is in the stack; all that come after have the dose of both."""
    taken = [float(TILT[k]) for k in np.argsort(DOSE_SYMMETRIC)]
    turns = [(a, t) for t, a in enumerate([*taken[:4], taken[3], *taken[4:]])]
    retaken(stack.parent / "ts.mrc.mdoc", turns if in_time else sorted(turns))
    series = open_tilt_series(stack)
    expected = 3.0 * np.array([t + (t >= 3) for t in DOSE_SYMMETRIC])
    assert series.exposure_e_A2 is not None and series.exposure_e_A2.tolist() == expected.tolist()
    assert series.order is not None and series.order.tolist() == DOSE_SYMMETRIC
    assert series.taken is not None and (3.0 * series.taken).tolist() == expected.tolist()
    assert any("more than one section is at" in said for said in series.remarks)


def test_an_mdoc_recorded_from_plus_to_minus(stack: Path) -> None:
    """The stack sorted from minus to plus: in the opposite order, and not of the other sign."""
    mdoc(stack.parent / "ts.mrc.mdoc", TILT[::-1], list(range(N)))
    series = open_tilt_series(stack)
    assert series.order is not None and series.order.tolist() == list(range(N))[::-1]


def test_an_mdoc_with_fewer_sections_is_left_out_and_said(stack: Path) -> None:
    mdoc(stack.parent / "ts.mrc.mdoc", TILT[:-1], list(range(N - 1)))
    series = open_tilt_series(stack)
    assert series.order is None and any("left out" in said for said in series.remarks)


@pytest.mark.parametrize(
    ("image_size", "pixel", "said"),
    [
        ("15 12", 4.0, None),
        ("60 48", 16.0, "times 4"),
        ("61 49", 16.0, "times 4"),
        ("96 48", None, "it is not used"),
    ],
)
def test_an_mdoc_of_images_of_another_size(stack: Path, image_size: str, pixel: float | None, said: str | None) -> None:
    """4 Å at 60 x 48 are 16 Å in a stack of 15 x 12."""
    write_stack(stack, IMAGES, None, overwrite=True)
    path = mdoc(stack.parent / "ts.mrc.mdoc", order=list(range(len(TILT))))
    path.write_text(f"ImageSize = {image_size}\n" + path.read_text())
    series = open_tilt_series(stack)
    assert series.pixel_size_A == (None if pixel is None else pytest.approx(pixel))
    assert [r for r in series.remarks if said and said in r] if said else not series.remarks


def test_pixel_sizes_that_contradict_each_other_are_said(stack: Path) -> None:
    mdoc(stack.parent / "ts.mrc.mdoc")
    series = open_tilt_series(stack)
    assert series.pixel_size_A == 2.0 and any("header says 2 Å" in said and "4 Å" in said for said in series.remarks)
    series = open_tilt_series(stack, pixel_size_A=8.0)
    assert series.pixel_size_A == 8.0 and sum("given, 8 Å" in said for said in series.remarks) == 2
    (stack.parent / "ts.mrc.mdoc").unlink()
    assert not open_tilt_series(stack, pixel_size_A=2.02).remarks


@pytest.mark.parametrize("pixel", [1e-3, 2e3, 1e6, np.nan, 0.0, -3.0])
def test_header_pixel_sizes_that_cannot_be(stack: Path, pixel: float) -> None:
    raw = bytearray(stack.read_bytes())
    raw[40:52] = np.array([NX * pixel, NY * pixel, N * pixel], "<f4").tobytes()
    stack.write_bytes(raw)
    assert open_tilt_series(stack).pixel_size_A is None
    mdoc(stack.parent / "ts.mrc.mdoc")
    assert open_tilt_series(stack).pixel_size_A == 4.0


def test_pixels_that_are_not_square_are_said(stack: Path) -> None:
    raw = bytearray(stack.read_bytes())
    raw[44:48] = np.array([NY * 3.0], "<f4").tobytes()
    stack.write_bytes(raw)
    series = open_tilt_series(stack)
    assert series.pixel_size_A == 2.0 and any("2 Å along x and 3 Å along y" in said for said in series.remarks)


def test_angles_in_another_order_than_the_headers(tmp_path: Path) -> None:
    """SerialEM's extended header goes with the images wherever they go."""
    stack = write_stack(tmp_path / "ts.mrc", IMAGES, 2.0)
    raw = bytearray(stack.read_bytes())
    raw[92:96] = np.array([2 * N], "<i4").tobytes()
    raw[128:132] = np.array([2, 1], "<i2").tobytes()
    in_header = TILT[np.argsort(DOSE_SYMMETRIC)]
    stack.write_bytes(bytes(raw[:1024]) + np.round(100 * in_header).astype("<i2").tobytes() + bytes(raw[1024:]))
    angles(tmp_path / "ts.rawtlt")
    assert any("another order" in said for said in open_tilt_series(stack).remarks)
    angles(tmp_path / "ts.rawtlt", in_header + 0.02)
    assert not open_tilt_series(stack).remarks


# --- halves


def frames(n: int = 11, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Odd and even frames of images that change slowly, with more noise than signal."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:size, :size] / size
    signal = np.stack([np.sin(9 * x + 0.15 * k) * np.cos(7 * y - 0.1 * k) for k in range(n)])
    return tuple((signal + 1.5 * rng.normal(size=signal.shape)).astype(np.float32) + 40 for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("good", None),
        ("mean", None),
        ("integers", None),
        ("one dark image", None),
        ("blank", "ts_odd.mrc is blank"),
        ("zeros", "ts_odd.mrc is blank"),
        ("fewer", "ts_odd.mrc has 10 images"),
        ("smaller", "ts_odd.mrc has 11 images of 64 x 60"),
        ("siblings", "ts_odd.mrc and .*ts_even.mrc are the same"),
        ("scaled siblings", "ts_odd.mrc and .*ts_even.mrc are the same"),
        ("the full stack", "ts_odd.mrc is the same as the full stack"),
        ("another series", "ts_odd.mrc does not show"),
        ("backwards", "ts_odd.mrc has its images in another order"),
        ("by one", "ts_odd.mrc has its images in another order"),
        ("changed places with the full stack", "ts_odd.mrc seems to hold all frames"),
        ("negative", "ts_odd.mrc does not show"),
    ],
)
def test_halves_are_the_frames_of_the_stack(tmp_path: Path, kind: str, said: str | None) -> None:
    odd, even = frames()
    full = (odd + even) / (2 if kind == "mean" else 1)
    if kind == "integers":
        odd, even, full = (np.round(20 * a) for a in (odd, even, full))
    if kind == "one dark image":
        for a in (odd, even, full):
            a[5] = 0
    odd = {
        "blank": np.full_like(odd, 7.3),
        "zeros": np.zeros_like(odd),
        "fewer": odd[:-1],
        "smaller": odd[:, :60],
        "siblings": even,
        "scaled siblings": 2 * even + 1,
        "the full stack": full / 2,
        "another series": np.random.default_rng(9).normal(size=odd.shape),
        "backwards": odd[::-1],
        "by one": np.roll(odd, 1, axis=0),
        "negative": -odd,
    }.get(kind, odd)
    if kind == "changed places with the full stack":
        odd, full = full, odd
    path = write_stack(tmp_path / "ts.mrc", full, 2.0)
    write_stack(tmp_path / "ts_odd.mrc", odd, 2.0)
    write_stack(tmp_path / "ts_even.mrc", even, 2.0)
    angles(tmp_path / "ts.rawtlt", np.linspace(-50, 50, len(full)))
    series = open_tilt_series(path)
    if said is None:
        assert series.odd is not None and not series.remarks
    else:
        assert series.odd is None and re.search(said, series.remarks[0]) and len(series.remarks) == 1


def test_a_half_without_the_other_is_said_to_be_left_out(stack: Path) -> None:
    write_stack(stack.with_name("ts_EVN.mrc"), IMAGES, 2.0)
    series = open_tilt_series(stack)
    assert series.odd is None and series.even is None
    assert [remark for remark in series.remarks if "ts_EVN.mrc" in remark and "left out" in remark]
