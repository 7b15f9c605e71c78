"""RELION 5's angles and shifts against its own matrices, RELION 4's matrices, and deformations by their formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.ctf import Defoci
from inrtomo.errors import InputError
from inrtomo.geometry import centre_index
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.relion import read_relion, write_relion
from inrtomo.io.series_record import SeriesRecord
from inrtomo.io.star import read_star, write_star

Array = NDArray[np.float64]

K2 = (3710, 3838)
GOLDEN = Path("interop/relion5/relion_python_tests/tilt_series_metadata")


def matrices(path: Path, name: str) -> Array:
    """First two rows of every projection matrix, ``(n, 2, 4)``."""
    table = read_star(path)[name]
    rows = [[[float(v) for v in word.strip("[]").split(",")] for word in table[f"rlnTomoProj{a}"]] for a in "XY"]
    return np.array(rows).transpose(1, 0, 2)


@pytest.mark.parametrize("name", ["220728_TS_01", "220728_TS_43", "220728_TS_54"])
def test_angles_and_shifts_are_relions_own_matrices(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Pixel indices in the images of voxel indices in the tomogram, to a thousandth of a pixel."""
    path = shared_data / GOLDEN / "tilt_series" / f"{name}.star"
    a = read_relion(path, image_size=K2).alignment
    assert a.n_tilts == 41 and a.pixel_size_A == 1.35
    voxels = np.random.default_rng(0).uniform([0, 0, 0], [4000, 4000, 3000], (20, 3))
    points, centre = voxels - [2000, 2000, 1500], [centre_index(n) for n in K2]
    for m, matrix in enumerate(matrices(path, name)):
        index = voxels @ matrix[:, :3].T + matrix[:, 3]
        assert a.specimen_to_raw(m, points) + centre == pytest.approx(index, abs=1e-3)
    table = {k: v for k, v in read_star(path)[name].items() if k != "rlnTomoYTilt"}
    overview = read_star(shared_data / GOLDEN / "tilt_series.star")["global"]
    row = {k: [v[overview["rlnTomoName"].index(name)]] for k, v in overview.items() if "StarFile" not in k}
    write_star(tmp_path / "tomograms.star", {"global": row, name: table})  # as RELION 4 has them
    notes: list[str] = []
    b = read_alignment(tmp_path / "tomograms.star", K2, notes)
    assert any("matrices" in note for note in notes)
    for m in range(a.n_tilts):
        assert b.specimen_to_raw(m, points) == pytest.approx(a.specimen_to_raw(m, points), abs=1e-3)
    np.testing.assert_allclose(b.tilt_deg, a.tilt_deg, atol=1e-4)
    np.testing.assert_allclose(b.rotation_deg, a.rotation_deg, atol=1e-4)


def test_matrices_that_disagree_with_angles_are_used(tmp_path: Path) -> None:
    record = replace(small(), alignment=small().alignment.without_warp())
    write_relion(tmp_path, record)
    path = tmp_path / "tilt_series" / "01.star"
    table = read_star(path)["01"]
    table |= {"rlnTomoProjX": ["[1,0,0,7]"] * 3, "rlnTomoProjY": ["[0,1,0,0]"] * 3}
    write_star(path, {"01": table}, True)
    notes: list[str] = []
    a = read_relion(tmp_path / "tomograms.star", (81, 60), notes=notes).alignment
    assert any("as RELION does" in note for note in notes) and not a.tilt_deg.any()
    size = [int(read_star(tmp_path / "tomograms.star")["global"][f"rlnTomoSize{axis}"][0]) for axis in "XY"]
    assert a.specimen_to_raw(1, np.zeros(3)) == pytest.approx([size[0] // 2 + 7 - 40, size[1] // 2 - 29.5])


def test_written_angles_and_shifts_are_those_read(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / GOLDEN / "tilt_series" / "220728_TS_03.star"
    record = read_relion(path, image_size=K2)
    write_relion(tmp_path, record)
    old, new = read_star(path)[record.name], read_star(tmp_path / "tilt_series" / f"{record.name}.star")[record.name]
    for column in ("YTilt", "ZRot", "XTilt", "XShiftAngst", "YShiftAngst", "NominalStageTiltAngle"):
        a, b = ([float(v) for v in table[f"rlnTomo{column}"]] for table in (old, new))
        assert b == pytest.approx(a, abs=2e-5), column
    assert new["rlnMicrographName"] == old["rlnMicrographName"]
    overview = read_star(tmp_path / "tomograms.star")["global"]
    assert overview["rlnTomoSizeZ"] == ["3000"] and float(overview["rlnTomoTiltSeriesPixelSize"][0]) == 1.35


def test_one_of_several_series(shared_data: Path) -> None:
    tomograms = shared_data / GOLDEN / "tilt_series.star"
    with pytest.raises(InputError, match="5 series"):
        read_relion(tomograms, K2)
    assert read_relion(tomograms, K2, name="220728_TS_43").name == "220728_TS_43"
    job = shared_data / "interop" / "relion5" / "pytom-match-pick" / "Tomograms" / "job009"
    a = read_relion(job / "tilt_series" / "tomo200528_107.star", (4096, 4096)).alignment
    assert (
        a.pixel_size_A == 1.724 and a.n_tilts == 35 and a.rotation_deg == pytest.approx(np.full(35, -90.545), abs=0.5)
    )
    with pytest.raises(InputError, match="size of its images"):
        read_relion(job / "tilt_series" / "tomo200528_107.star")


def small(x_tilt: float = 0.0) -> SeriesRecord:
    """An odd and an even side, and local motion that is a polynomial of third degree (a spline holds it exactly)."""
    rng = np.random.default_rng(2)
    plain = Alignment.identity(np.array([-30.0, 0.0, 30.0]), (81, 60), 84.0, 2.0)
    x, y = np.linspace(-70, 70, 12), np.linspace(-60, 60, 12)
    grid = np.stack(np.meshgrid(x / 70, y / 60), axis=-1)
    motion = np.stack([grid[..., 0] ** 2, grid[..., 0] * grid[..., 1]], axis=-1) * rng.normal(size=(3, 1, 1, 2))
    a = replace(plain, shift_px=rng.normal(size=(3, 2)) * 4, warp=LocalWarp(x, y, motion, "bicubic"))
    return SeriesRecord(replace(a, x_tilt_deg=np.full(3, x_tilt)), "01", None, None, None, 20.0)


def test_x_tilt_has_the_other_sign(tmp_path: Path) -> None:
    record = small(1.5)
    write_relion(tmp_path, record)
    table = read_star(tmp_path / "tilt_series" / "01.star")["01"]
    assert [float(v) for v in table["rlnTomoXTilt"]] == [-1.5] * 3
    x_tilt, y_tilt, z_rot = (np.deg2rad(float(table[f"rlnTomo{a}"][2])) for a in ("XTilt", "YTilt", "ZRot"))
    turns = []
    for axis, angle in ((2, z_rot), (1, y_tilt), (0, x_tilt)):  # right-handed, in the order they are multiplied
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        turns.append(turn)
    point = np.array([10.0, -5.0, 7.0])
    shift = np.array([float(table[f"rlnTomo{a}ShiftAngst"][2]) for a in "XY"]) / 2.0
    index = (turns[0] @ turns[1] @ turns[2] @ point)[:2] + shift + [81 // 2, 60 // 2]
    rigid = record.alignment.without_warp()
    assert rigid.specimen_to_raw(2, point) + [40, 29.5] == pytest.approx(index, abs=1e-4)


def test_deformations_on_a_grid_that_is_not_square(tmp_path: Path) -> None:
    """Values and slopes of a plane, 3 nodes along x and 2 along y, x fastest, x's shifts before y's: the plane."""
    record = replace(small(), alignment=small().alignment.without_warp())
    write_relion(tmp_path, record)
    overview, path = tmp_path / "tomograms.star", tmp_path / "tilt_series" / "01.star"
    general, table = read_star(overview)["global"], read_star(path)["01"]
    words, planes = [], ((1.0, 0.5, -0.7), (-0.3, 0.2, 0.9))  # px: constant, along x and along y for each grid step
    for constant, along_x, along_y in planes:
        for j, i in np.ndindex(2, 3):
            words += [constant + along_x * i + along_y * j, along_x, along_y, 0.0]
    table["rlnTomoDeformationCoefficients"] = ["[" + ",".join(map(str, words)) + "]"] * 3
    general |= {"rlnTomoDeformationGridSizeX": ["3"], "rlnTomoDeformationGridSizeY": ["2"]}
    general["rlnTomoDeformationType"] = ["spline"]
    write_star(path, {"01": table}, overwrite=True)
    write_star(overview, {"global": general}, overwrite=True)
    a = read_relion(overview, (81, 60)).alignment
    for m in range(3):
        for point in ([0.0, 0.0, 0.0], [14.0, -9.0, 3.0], [-11.0, 20.0, -5.0]):
            q = record.alignment.specimen_to_raw(m, np.array(point))
            steps = (q + [40.0, 29.5]) / [81, 60] * [2, 1]
            shift = [c + x * steps[0] + y * steps[1] for c, x, y in planes]
            assert a.specimen_to_raw(m, np.array(point)) == pytest.approx(q + shift, abs=0.01)


def test_deformations_by_their_formula(tmp_path: Path) -> None:
    """Bicubic Hermite interpolation of (value, slope x, slope y, twist), written out once more."""
    record = small()
    notes = write_relion(tmp_path, record)
    assert any("spline deformations" in note for note in notes)
    overview = read_star(tmp_path / "tomograms.star")["global"]
    table = read_star(tmp_path / "tilt_series" / "01.star")["01"]
    nx, ny = (int(overview[f"rlnTomoDeformationGridSize{a}"][0]) for a in "XY")
    points = np.array([float(v) for v in table["rlnTomoDeformationCoefficients"][1].strip("[]").split(",")])
    points = points.reshape(2, ny, nx, 4)
    a = record.alignment
    rigid = a.without_warp()

    def weights(f: float) -> Array:
        return np.array([1 - 3 * f**2 + 2 * f**3, 3 * f**2 - 2 * f**3, f - 2 * f**2 + f**3, -(f**2) + f**3])

    for u in np.array([[0.0, 0.0], [12.0, -25.0], [-20.0, 30.0]]):
        q = rigid.aligned_to_raw(1, u) + [40, 29.5]
        gx, gy = q / [81, 60] * [nx - 1, ny - 1]
        i, j = int(gx), int(gy)
        d = points[:, j : j + 2, i : i + 2]
        wx, wy = weights(gx - i), weights(gy - j)
        shift = np.zeros(2)
        for b in (0, 1):
            for c in (0, 1):
                value, slope_x, slope_y, twist = np.moveaxis(d[:, b, c], -1, 0)
                shift += wx[c] * wy[b] * value + wx[2 + c] * wy[b] * slope_x
                shift += wx[c] * wy[2 + b] * slope_y + wx[2 + c] * wy[2 + b] * twist
        assert q + shift == pytest.approx(a.aligned_to_raw(1, u) + [40, 29.5], abs=0.02)
    back = read_alignment(tmp_path / "tomograms.star", (81, 60))
    view = np.stack(np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-30, 30, 9)), axis=-1)
    assert back.aligned_to_raw(1, view) == pytest.approx(a.aligned_to_raw(1, view), abs=0.02)


def test_other_deformations(tmp_path: Path) -> None:
    write_relion(tmp_path, replace(small(), alignment=small().alignment.without_warp()))
    overview = {k: list(v) for k, v in read_star(tmp_path / "tomograms.star")["global"].items()}
    series_path = tmp_path / "tilt_series" / "01.star"
    table = read_star(series_path)["01"]
    rigid = read_alignment(tmp_path / "tomograms.star", (81, 60))
    overview |= {"rlnTomoDeformationGridSizeX": ["1"], "rlnTomoDeformationGridSizeY": ["1"]}
    table["rlnTomoDeformationCoefficients"] = ["[0.01,0.02,-0.01]"] * 3
    write_star(series_path, {"01": table}, overwrite=True)
    write_star(tmp_path / "tomograms.star", {"global": overview | {"rlnTomoDeformationType": ["linear"]}}, True)
    bent = read_alignment(tmp_path / "tomograms.star", (81, 60))
    u = np.array([10.0, -20.0])
    r = rigid.aligned_to_raw(0, u) + [40, 29.5] - [40.5, 30]
    moved = bent.aligned_to_raw(0, u) - rigid.aligned_to_raw(0, u)
    assert moved == pytest.approx([0.01 * r[0], 0.02 * r[0] - 0.01 * r[1]], abs=1e-3)
    write_star(tmp_path / "tomograms.star", {"global": overview | {"rlnTomoDeformationType": ["Fourier"]}}, True)
    notes: list[str] = []
    assert read_alignment(tmp_path / "tomograms.star", (81, 60), notes).warp is None
    assert any("Fourier" in note for note in notes)


def test_files_that_are_there_keep_other_series_and_columns(tmp_path: Path) -> None:
    one = replace(small(), nominal_tilt_deg=np.array([-30.0, 0.0, 30.0]), alignment=small().alignment.without_warp())
    two = replace(one, name="two")
    write_relion(tmp_path, one)
    path = tmp_path / "tilt_series" / "01.star"
    table = read_star(path)["01"]
    table = {k: v[::-1] for k, v in table.items()} | {"rlnDefocusU": ["3", "2", "1"]}  # in another order
    table |= dict.fromkeys(("rlnDefocusV", "rlnDefocusAngle"), ["0"] * 3)
    write_star(path, {"01": table}, True)
    overview = read_star(tmp_path / "tomograms.star")["global"] | {"rlnVoltage": ["200"]}
    write_star(tmp_path / "tomograms.star", {"global": overview}, True)
    with pytest.raises(InputError, match="--overwrite"):
        write_relion(tmp_path, two)
    notes = write_relion(tmp_path, two, overwrite=True)
    assert any("1 other series" in note for note in notes)
    assert any("no rlnDefocusU, rlnDefocusV" in note and "--ctf" in note for note in notes)
    notes = write_relion(tmp_path, replace(one, alignment=replace(one.alignment, excluded={1: "bad"})), overwrite=True)
    assert not any("no rlnDefocusU" in note or "300 kV" in note for note in notes)
    overview = read_star(tmp_path / "tomograms.star")["global"]
    assert sorted(overview["rlnTomoName"]) == ["01", "two"] and overview["rlnVoltage"] == ["200", "200"]
    assert read_star(path)["01"]["rlnDefocusU"] == ["1", "3"]
    assert read_relion(tmp_path / "tomograms.star", (81, 60), name="two").alignment.n_tilts == 3


def test_sections_are_named_as_relion_takes_them(tmp_path: Path) -> None:
    """``3@ts.mrc`` it refuses: ``.mrc`` is for volumes. A format after a colon is not part of a file's name."""
    names = ("1@a/ts.mrc", "3@a/ts.mrc", "4@a/ts.mrc")
    write_relion(tmp_path, replace(small(), images=names))
    table = read_star(tmp_path / "tilt_series" / "01.star")["01"]
    assert table["rlnMicrographName"] == [f"{name}:mrcs" for name in names]
    assert read_relion(tmp_path / "tomograms.star", (81, 60)).images == names
    others = ("1@ts.st", "one.mrc", "2@ts.tif")
    write_relion(tmp_path / "b", replace(small(), images=others))
    assert read_star(tmp_path / "b" / "tilt_series" / "01.star")["01"]["rlnMicrographName"] == list(others)


def test_ctf(tmp_path: Path) -> None:
    defoci = Defoci(np.array([3e4, 2e4, 1e4]), np.array([500.0, 0, 0]), np.array([30.0, 0, 0]), np.zeros(3), hand=-1)
    record = replace(small(), defoci=defoci, exposure_e_A2=np.array([6.0, 0.0, 3.0]))
    record = replace(record, alignment=replace(record.alignment, excluded={1: "dark"}))
    notes = write_relion(tmp_path, record)
    table = read_star(tmp_path / "tilt_series" / "01.star")["01"]
    assert [float(v) for v in table["rlnDefocusU"]] == [30250, 10000]
    assert [float(v) for v in table["rlnDefocusV"]] == [29750, 10000]
    assert [float(v) for v in table["rlnDefocusAngle"]] == [30, 0]
    assert read_star(tmp_path / "tomograms.star")["global"]["rlnTomoHand"] == ["1.0"]
    assert not any("stop" in note for note in notes)


@pytest.mark.parametrize("bent_first", [False, True])
def test_all_series_of_a_list_have_deformations_or_none_has(tmp_path: Path, bent_first: bool) -> None:
    """RELION's programs crash on a series without coefficients beside one with them."""
    bent, flat = small(), replace(small(), name="flat", alignment=small().alignment.without_warp())
    for record in (bent, flat) if bent_first else (flat, bent):
        write_relion(tmp_path, record, overwrite=True)
    overview = read_star(tmp_path / "tomograms.star")["global"]
    grid = dict(zip(overview["rlnTomoName"], overview["rlnTomoDeformationGridSizeX"], strict=True))
    assert grid["flat"] == "2" and int(grid["01"]) > 2 and overview["rlnTomoDeformationType"] == ["spline"] * 2
    zeros = read_star(tmp_path / "tilt_series" / "flat.star")["flat"]["rlnTomoDeformationCoefficients"]
    assert zeros == ["[" + ",".join(["0"] * 32) + "]"] * 3
    a, b = (read_relion(tmp_path / "tomograms.star", (81, 60), name=name).alignment for name in ("flat", "01"))
    view = np.stack(np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-30, 30, 9)), axis=-1)
    assert a.aligned_to_raw(0, view) == pytest.approx(flat.alignment.aligned_to_raw(0, view), abs=1e-5)
    assert b.aligned_to_raw(0, view) == pytest.approx(bent.alignment.aligned_to_raw(0, view), abs=0.02)


def test_deformations_beside_series_of_others(tmp_path: Path) -> None:
    """A file outside the folder is left as it is, and said."""
    flat = replace(small(), name="flat", alignment=small().alignment.without_warp())
    write_relion(tmp_path / "a", flat)
    theirs = tmp_path / "a" / "tilt_series" / "flat.star"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tomograms.star").write_text((tmp_path / "a" / "tomograms.star").read_text())
    before = theirs.read_text()
    notes = write_relion(tmp_path / "b", small(), overwrite=True)
    assert theirs.read_text() == before
    assert any("flat none" in note and "crash" in note for note in notes)


def test_a_list_of_relion_4_is_not_broken(tmp_path: Path) -> None:
    old = {"global": {"rlnTomoName": ["a", "b"]}, "a": {"rlnTomoProjX": ["[1,0,0,0]"]}}
    write_star(tmp_path / "tomograms.star", old)
    before = (tmp_path / "tomograms.star").read_text()
    with pytest.raises(InputError, match="RELION 4"):
        write_relion(tmp_path, small(), overwrite=True)
    assert (tmp_path / "tomograms.star").read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        "data_\n",
        "data_a\n\nloop_\n_rlnTomoYTilt #1\n1 2\n",
        "data_a\n\nloop_\n_rlnTomoYTilt #1\n_rlnTomoYTilt #2\n1 2\n",
        "data_a\n\nloop_\n_rlnTomoYTilt #1\n1\n",
        "data_a\n\nloop_\n_rlnTomoYTilt #1\n_rlnTomoZRot #2\n_rlnTomoXShiftAngst #3\n_rlnTomoYShiftAngst #4\n1 2 3 x\n",
        "data_a\n\nloop_\n_rlnTomoProjX #1\n_rlnTomoProjY #2\n[1,0] [0,1]\n",
        "data_global\n\nloop_\n_rlnTomoName #1\n_rlnTomoTiltSeriesStarFile #2\nts none/ts.star\n",
        "something else\n",
    ],
)
def test_what_is_no_tilt_series(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.star").write_text(text)
    with pytest.raises(InputError, match="a.star"):
        read_relion(tmp_path / "a.star", (64, 64), 2.0)
