"""IMOD's files: read and written as IMOD does, and warps exact to what their grid promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.geometry import axis_angle, centre_index
from inrtomo.io import imod
from inrtomo.io.etomo import left_out_views

Array = NDArray[np.float64]


def warped(
    size: tuple[int, int] = (256, 200), n: int = 5, axis_deg: float = -4.3, amplitude: float = 1.0, nodes: int = 5
) -> Alignment:
    """Random shifts and a bicubic warp on control points that span the view."""
    rng = np.random.default_rng(0)
    x, y = (np.linspace(-s / 2, s / 2, nodes) for s in size)
    warp = LocalWarp(x, y, amplitude * rng.normal(size=(n, nodes, nodes, 2)), "bicubic")
    plain = Alignment.identity(np.linspace(-60, 60, n), size, axis_deg, 2.17)
    return replace(plain, shift_px=rng.normal(size=(n, 2)) * 20, warp=warp)


def points(size: tuple[int, int], count: int = 61) -> Array:
    """Aligned positions over the view, ``(count, count, 2)``."""
    return np.stack(np.meshgrid(*(np.linspace(-s / 2, s / 2, count) for s in size)), axis=-1)


def distances(a: Alignment, b: Alignment) -> Array:
    """Distance (px) between the raw positions of the same aligned points, all tilts."""
    u = points(a.aligned_size)
    return np.array(
        [np.linalg.norm(a.aligned_to_raw(m, u) - b.aligned_to_raw(m, u), axis=-1) for m in range(a.n_tilts)]
    )


def as_alignment(file: imod.WarpFile, like: Alignment) -> Alignment:
    return replace(like, linear=file.linear, shift_px=file.shift_px, warp=file.warp, image_size=file.size)


# --- transforms and angles


@pytest.mark.parametrize(
    ("name", "n", "axis"),
    [("BB/BBa", 61, -11.0), ("BB/BBa_patch-tracking", 61, -11.8), ("misc/mixedCTEM_tomo1", 58, 175.1)],
)
def test_etomo_transforms_come_back_to_the_byte(
    shared_data: Path, tmp_path: Path, name: str, n: int, axis: float
) -> None:
    path = shared_data / "interop" / "imod" / f"{name}.xf"
    linear, shift = imod.read_xf(path, n)
    assert axis_angle(linear)[n // 2] == pytest.approx(axis, abs=1.5)
    imod.write_xf(tmp_path / "a.xf", linear, shift)
    assert (tmp_path / "a.xf").read_text() == path.read_text()


def test_transform_is_about_the_image_centre_and_shift_comes_after(tmp_path: Path) -> None:
    (tmp_path / "a.xf").write_text("0 -1 1 0 5 -7\n")
    linear, shift = imod.read_xf(tmp_path / "a.xf")
    a = Alignment(np.zeros(1), linear, shift, (11, 11))
    assert a.raw_to_aligned(0, np.array([2.0, 3.0])) == pytest.approx([-3 + 5, 2 - 7])


def test_one_line_applies_to_all_and_other_counts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xf"
    path.write_text("1 0 0 1 2 3\n")
    linear, shift = imod.read_xf(path, 4)
    assert linear.shape == (4, 2, 2) and (shift == [2, 3]).all()
    for count in (2, 5):
        path.write_text("1 0 0 1 2 3\n" * count)
        with pytest.raises(InputError, match=f"a.xf.*{count}.*4"):
            imod.read_xf(path, 4)


def test_full_columns_without_blanks(tmp_path: Path) -> None:
    (tmp_path / "a.xf").write_text("   1.0000000   0.0000000   0.0000000   1.0000000-1234567.891-2345678.912\n")
    assert imod.read_xf(tmp_path / "a.xf")[1][0] == pytest.approx([-1234567.891, -2345678.912])


@pytest.mark.parametrize(
    "text", ["", "\n\n", "1 0 0 1 2\n", "1 0 0 1 2 x\n", "1 0 0 1 nan 0\n", "0 0 0 0 1 1\n", "\0\1"]
)
def test_what_is_no_transform(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xf").write_text(text)
    with pytest.raises(InputError, match="a.xf"):
        imod.read_xf(tmp_path / "a.xf")


def test_angles_of_etomo(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "interop" / "imod" / "BB"
    tilt = imod.read_angles(folder / "BBa.tlt", 61)
    assert tilt[:3].tolist() == [65.06, 63.01, 60.96]
    with pytest.raises(InputError, match="61 angles for 60"):
        imod.read_angles(folder / "BBa.tlt", 60)
    imod.write_angles(tmp_path / "a.tlt", tilt)
    np.testing.assert_array_equal(imod.read_angles(tmp_path / "a.tlt"), tilt)


@pytest.mark.parametrize("text", ["", "a\n", "nan\n", "1\n2\ninf\n"])
def test_what_is_no_angle(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.tlt").write_text(text)
    with pytest.raises(InputError, match="a.tlt"):
        imod.read_angles(tmp_path / "a.tlt")


# --- warp files


def test_meaning_of_a_warp_file(tmp_path: Path) -> None:
    """For an output pixel u: look up the grid at u, add the vector, then undo the linear part."""
    nx, ny = 11, 9
    (tmp_path / "a.xf").write_text(f"3\n{nx} {ny} 1 1 2.5 1\n0 10 2 0 8 2\n0 -1 1 0 3 4\n1 0 2 0 3 5\n4 5\n")
    file = imod.read_warp(tmp_path / "a.xf")
    assert file.size == (nx, ny) and file.pixel_size_A == 2.5 and file.warp is not None
    a = Alignment(np.zeros(1), file.linear, file.shift_px, file.size, warp=file.warp)
    centre = np.array([centre_index(nx), centre_index(ny)])
    pixel = np.array([5.0, 2.0])  # index: half way in x, a quarter in y
    vector = 0.75 * np.array([1.5, 0]) + 0.25 * np.array([3.5, 5])
    u = pixel - centre
    expected = np.linalg.inv([[0, -1], [1, 0]]) @ (u + vector - [3, 4])
    assert a.aligned_to_raw(0, u) == pytest.approx(expected)
    # beyond the grid its edge goes on
    assert file.warp(0, np.array([100.0, -100.0])) == pytest.approx([2, 0])


@pytest.mark.parametrize(
    ("size", "axis"), [((256, 200), -4.3), ((200, 256), 85.0), ((97, 64), 0.0), ((1001, 700), 175.0)]
)
def test_a_warp_written_and_read_back_is_the_same_map(tmp_path: Path, size: tuple[int, int], axis: float) -> None:
    a = warped(size, axis_deg=axis)
    b = as_alignment(imod.read_warp(imod.write_warp(tmp_path / "w.xf", a), a.n_tilts), a)
    error = distances(a, b)
    assert error.max() < imod.WARP_TOLERANCE_PX and np.sqrt((error**2).mean()) < 0.005
    assert b.pixel_size_A == a.pixel_size_A and b.image_size == size


def test_the_grid_is_just_dense_enough(tmp_path: Path) -> None:
    a = warped((512, 512))
    grid, warp = imod.grid_warp(a), a.warp
    assert warp is not None
    x = np.linspace(grid.x[0], grid.x[-1], int(0.7 * len(grid.x)))
    sparse = LocalWarp(x, grid.y, np.stack([warp.on_lattice(m, x, grid.y) for m in range(5)]), "bilinear")
    assert distances(a, replace(a, warp=grid)).max() < imod.WARP_TOLERANCE_PX
    assert distances(a, replace(a, warp=sparse)).max() > imod.WARP_TOLERANCE_PX
    smooth = imod.grid_warp(warped((512, 512), amplitude=0.1))
    assert smooth.vectors.size < 0.3 * grid.vectors.size


def test_the_grid_reaches_past_the_edges() -> None:
    for axis in (0.0, 45.0, 85.0):
        a = warped((300, 200), axis_deg=axis)
        grid = imod.grid_warp(a)
        corners = np.array([[x, y] for x in (-150, 150) for y in (-100, 100)])
        output = corners if axis < 80 else corners[:, ::-1]
        seen = np.concatenate([output, *(corners @ linear.T for linear in a.linear)])
        assert (np.abs(seen).max(axis=0) < [grid.x[-1], grid.y[-1]]).all()
        assert grid.x[0] == pytest.approx(-grid.x[-1]) and len(grid.x) % imod.PAIRS_PER_LINE == 0


def test_a_4k_series_stays_a_few_megabytes(tmp_path: Path) -> None:
    path = imod.write_warp(tmp_path / "w.xf", warped((4096, 4096), n=61, axis_deg=-85))
    assert path.stat().st_size < 6e6


def test_lines_hold_four_pairs(tmp_path: Path) -> None:
    path = imod.write_warp(tmp_path / "w.xf", warped(n=2))
    lines = path.read_text().splitlines()
    assert lines[0] == "3" and lines[1].split() == ["256", "200", "2", "1", "2.17", "1"]
    columns, rows = int(lines[2].split()[2]), int(lines[2].split()[5])
    per_section = 2 + columns * rows // 4
    assert len(lines) == 2 + 2 * per_section
    assert all(len(line.split()) == 8 for line in lines[4 : 2 + per_section])
    assert "\t" not in path.read_text()


def test_a_bilinear_warp_keeps_its_grid(tmp_path: Path) -> None:
    a = warped(nodes=6)
    assert a.warp is not None
    a = replace(a, warp=replace(a.warp, interpolation="bilinear"))
    b = as_alignment(imod.read_warp(imod.write_warp(tmp_path / "w.xf", a)), a)
    assert distances(a, b).max() < 2e-3 and b.warp is not None and len(b.warp.y) == 6


def test_without_local_motion_the_warp_file_holds_the_linear_part(tmp_path: Path) -> None:
    a = warped().without_warp()
    file = imod.read_warp(imod.write_warp(tmp_path / "w.xf", a))
    assert file.warp is None
    assert distances(a, as_alignment(file, a)).max() < 1e-3


def test_sections_may_have_their_own_grids(tmp_path: Path) -> None:
    one = "0 10 2 0 8 2\n1 0 0 1 0 0\n1 0 2 0 3 5\n4 5\n"
    other = "0 5 3 0 8 2\n1 0 0 1 0 0\n1 1 1 1 1 1 1 1\n1 1 1 1\n"
    none = "0 0 0 0 0 0\n1 0 0 1 0 0\n"
    (tmp_path / "a.xf").write_text(f"3\n11 9 3 1 2.5 1\n{one}{other}{none}")
    warp = imod.read_warp(tmp_path / "a.xf", 3).warp
    assert warp is not None and warp.vectors.shape == (3, 2, 3, 2)
    assert warp(0, np.array([0.0, 0.0])) == pytest.approx([2.5, 2.5])
    assert warp(1, np.array([0.0, 0.0])) == pytest.approx([1, 1]) and not warp.vectors[2].any()


HEAD = "3\n11 9 1 1 2.5 1\n"
BODY = "0 10 2 0 8 2\n1 0 0 1 0 0\n1 0 2 0 3 5 4 5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2\n" + HEAD[2:] + BODY, "version"),
        ("3\n11 9 1 1 2.5 3\n" + BODY, "control points"),
        ("3\n11 9 1 1 2.5 0\n" + BODY, "forward"),
        ("3\n11 9 7 1 2.5 1\n" + BODY * 7, "7 sections for 5"),
        ("3\n11 9 0 1 2.5 1\n", "size"),
        (HEAD + BODY[:-5], "early"),
        (HEAD + BODY + "7\n", "goes on"),
        (HEAD + BODY.replace("3", "nan"), "line 5"),
        (HEAD + BODY.replace("3", "c"), "line 5"),
        (HEAD + "0 10 1000000 0 8 1000000\n", "grid"),
        (HEAD + BODY.replace("10 2", "0 2"), "spacing"),
        (HEAD + BODY.replace("1 0 0 1", "1 1 1 1"), "inverse"),
        (HEAD + BODY.replace("10 2", "10 2.5"), "grid"),
    ],
)
def test_what_is_no_warp_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.xf").write_text(text)
    with pytest.raises(InputError, match=said):
        imod.read_warp(tmp_path / "a.xf", 5)


# --- command files


def test_etomo_tilt_com(shared_data: Path) -> None:
    path = shared_data / "interop" / "imod" / "BB" / "tilta.com"
    command = imod.read_command_file(path, "tilt")
    assert command.numbers("THICKNESS") == [84] and command.numbers("FULLIMAGE") == [512, 512]
    assert command.value("TILTFILE") == "BBa.tlt" and command.numbers("XAXISTILT") == [1.94]
    assert "PERPENDICULAR" in command.options and list(left_out_views(command, 61)) == [0]
    with pytest.raises(InputError, match="newstack"):
        imod.read_command_file(path, "newstack")


def test_tabs_and_comments_in_com_files(shared_data: Path) -> None:
    path = shared_data / "interop" / "imod" / "BB" / "xcorra.com"
    command = imod.read_command_file(path, "tiltxcorr")
    assert command.value("InputFile") == "BBa.st" and command.numbers("RotationAngle") == [-12.5]


def test_our_com_files_say_what_they_should(tmp_path: Path) -> None:
    (tmp_path / "newst.com").write_text(imod.newst_com("ts", "../ts.mrc", "ts_ali.mrc"))
    (tmp_path / "tilt.com").write_text(imod.tilt_com("ts", "ts_ali.mrc", "ts_rec.mrc", (652, 630), 180, [0, 3, 4, 5]))
    newst = imod.read_command_file(tmp_path / "newst.com", "newstack")
    assert newst.value("InputFile") == "../ts.mrc" and newst.value("TransformFile") == "ts_warp.xf"
    assert newst.value("TaperAtFill") == "1,0" and "ADJUSTORIGIN" in newst.options
    tilt = imod.read_command_file(tmp_path / "tilt.com", "tilt")
    assert tilt.numbers("FULLIMAGE") == [652, 630] and tilt.numbers("THICKNESS") == [180]
    assert tilt.value("EXCLUDELIST2") == "1,4-6"
    assert sorted(left_out_views(tilt, 9)) == [0, 3, 4, 5]
    assert "EXCLUDELIST2" not in imod.tilt_com("ts", "a", "b", (1, 1), 10)


@pytest.mark.parametrize("views", [[], [3], [1, 2], [1, 3, 4, 5, 9]])
def test_lists_of_views(views: list[int]) -> None:
    assert imod.parse_list(imod.list_text(views), "list") == views


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "-2", "1-99999999999"])
def test_what_is_no_list_of_views(text: str) -> None:
    with pytest.raises(InputError, match="here"):
        imod.parse_list(text, "here")
