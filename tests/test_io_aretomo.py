"""AreTomo's ``.aln`` of four versions, read and written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.geometry import axis_angle
from inrtomo.io.aretomo import read_aln, read_aln_record, write_aln
from inrtomo.io.imod import read_angles, read_xf
from inrtomo.io.series_record import SeriesRecord

ROW = "{sec} 84.0 1.0 {tx} 5.0 1 1 1 0 {tilt}\n"


def write(path: Path, sections: list[int], size: str = "# RawSize = 64 48 {n}\n", dark: str = "", n: int = 3) -> Path:
    rows = "".join(ROW.format(sec=s, tx=10.0 + s, tilt=-3.0 + 3 * k) for k, s in enumerate(sections))
    path.write_text("# AreTomo Alignment\n" + size.format(n=n) + dark + rows)
    return path


def test_rows_are_aligned_to_raw(shared_data: Path) -> None:
    """raw = R(rot) aligned + (TX, TY), here with the numbers of the first row."""
    a = read_aln(shared_data / "interop" / "aretomo" / "alnfile" / "global_no_local.aln")
    assert a.n_tilts == 61 and a.image_size == (4096, 4096) and not a.excluded and a.warp is None
    angle = np.deg2rad(-95.4040)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for u in ([0.0, 0.0], [100.0, -700.0]):
        assert a.aligned_to_raw(0, np.array(u)) == pytest.approx(rotation @ u + [9.220, 103.933], abs=1e-3)
    assert a.rotation_deg == pytest.approx(np.full(61, -95.404))


def test_agrees_with_another_converter(shared_data: Path) -> None:
    """Its angles and shapes are right; its rotation has the opposite sign, see SOURCES.md of the data."""
    folder = shared_data / "interop" / "aretomo" / "alnfile"
    a = read_aln(folder / "global_no_local.aln")
    np.testing.assert_allclose(a.tilt_deg, read_angles(folder / "global_no_local.tlt"))
    linear, shift = read_xf(folder / "global_no_local.xf", 61)
    np.testing.assert_allclose(axis_angle(linear), -a.rotation_deg, atol=1e-4)
    origin = np.array([a.aligned_to_raw(m, np.zeros(2)) for m in range(61)])
    np.testing.assert_allclose(shift, -np.einsum("nij,nj->ni", linear, origin), atol=1e-3)


@pytest.mark.parametrize(("version", "rotation"), [("v1_2_0", -93.7196), ("v1_3_0", -93.6692)])
def test_first_versions(shared_data: Path, version: str, rotation: float) -> None:
    path = shared_data / "interop" / "aretomo" / "lil-aretomo" / f"example_{version}.aln"
    a = read_aln(path, (5760, 4092))
    assert a.n_tilts == 41 and a.image_size == (5760, 4092) and a.rotation_deg[0] == pytest.approx(rotation)
    assert a.tilt_deg[0] == -51.98 and (np.diff(a.tilt_deg) > 0).all()


def test_version_1_2_does_not_know_its_size(shared_data: Path) -> None:
    with pytest.raises(InputError, match="how large"):
        read_aln(shared_data / "interop" / "aretomo" / "lil-aretomo" / "example_v1_2_0.aln")


def test_dark_images_keep_their_place(shared_data: Path) -> None:
    notes: list[str] = []
    a = read_aln(shared_data / "interop" / "aretomo" / "alnfile" / "global_and_local.aln", notes=notes)
    assert a.n_tilts == 51 and sorted(a.excluded) == list(range(14)) and any("not dark" in note for note in notes)
    # dark images are noted with their recorded angle, the others with AlphaOffset, 12.3, added
    assert a.tilt_deg[:2] == pytest.approx([-55.7, -53.7]) and a.tilt_deg[14] == -27.71 and a.tilt_deg[-1] == 44.29
    assert np.linalg.det(a.linear) == pytest.approx(np.ones(51)) and not a.shift_px[:14].any()
    # the image with SEC 14 is the reference
    assert a.shift_px[28] == pytest.approx([0, 0]) and a.tilt_deg[28] == 0.29


def test_local_motion_is_a_gaussian_mean_of_the_good_patches(shared_data: Path) -> None:
    path = shared_data / "interop" / "aretomo" / "alnfile" / "global_and_local.aln"
    a = read_aln(path)
    lines = path.read_text().splitlines()
    table = np.array([[float(w) for w in line.split()] for line in lines[lines.index("# Local Alignment") + 1 :]])
    row, index = 20, 34
    patches = table[(table[:, 0] == row) & (table[:, 6] == 1)]
    shift = -np.linalg.inv(a.linear[index]) @ a.shift_px[index]
    rng = np.random.default_rng(0)
    for p in rng.uniform(-1500, 1500, (20, 2)):
        weight = np.exp(-100 * (((p - patches[:, 2:4]) / 4096) ** 2).sum(axis=1))
        expected = p + weight @ patches[:, 4:6] / weight.sum() + shift
        assert a.aligned_to_raw(index, a.linear[index] @ p) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("base", [0, 1])
def test_sections_count_from_zero_or_one(tmp_path: Path, base: int) -> None:
    a = read_aln(write(tmp_path / "a.aln", [base, base + 1, base + 2]))
    assert not a.excluded and a.tilt_deg.tolist() == [-3, 0, 3]


@pytest.mark.parametrize("base", [0, 1])
def test_a_dark_image_tells_where_sections_start(tmp_path: Path, base: int) -> None:
    dark = f"# DarkFrame = 0 {base} -60.0\n"
    a = read_aln(write(tmp_path / "a.aln", [base + 1, base + 2, base + 3], dark=dark, n=4))
    assert list(a.excluded) == [0] and a.tilt_deg.tolist() == [-60, -3, 0, 3]


def test_rows_go_to_their_section_whatever_their_order(tmp_path: Path) -> None:
    a = read_aln(write(tmp_path / "a.aln", [3, 1, 2]))
    assert a.tilt_deg.tolist() == [0, 3, -3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# RawSize = 64 48 3\n",
        "not an alignment\n",
        "# RawSize = 64 48\n" + ROW.format(sec=0, tx=0, tilt=0),
        "# RawSize = 64 48 3\n" + 2 * ROW.format(sec=1, tx=0, tilt=0),
        "# RawSize = 64 48 3\n" + ROW.format(sec=9, tx=0, tilt=0),
        "# RawSize = 64 48 3\n" + ROW.format(sec=1, tx="nan", tilt=0),
        "# RawSize = 64 48 999999999\n" + ROW.format(sec=1, tx=0, tilt=0),
        "# RawSize = 64 48 1\n" + ROW.format(sec=1, tx=0, tilt=0) + "# Local Alignment\n 5 0 0 0 1 1 1\n",
    ],
)
def test_what_is_no_aln(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.aln").write_text(text)
    with pytest.raises(InputError, match="a.aln"):
        read_aln(tmp_path / "a.aln")


# --- writing


def test_what_was_read_is_written_again(shared_data: Path, tmp_path: Path) -> None:
    """Rotation, shift, angles and the offset of the owner's own file, to its last decimal; sections from 0."""
    path = shared_data / "interop" / "aretomo" / "alnfile" / "global_no_local.aln"
    record = read_aln_record(path)
    assert record.nominal_tilt_deg is not None and record.thickness_px == 2050
    np.testing.assert_allclose(record.alignment.tilt_deg - record.nominal_tilt_deg, -7.0)
    assert write_aln(tmp_path / "a.aln", record) == []
    old, new = (
        np.array([line.split() for line in file.read_text().splitlines() if line and line[0] != "#"], dtype=float)
        for file in (path, tmp_path / "a.aln")
    )
    np.testing.assert_allclose(new[:, 1:], old[:, 1:], atol=2e-4)
    np.testing.assert_array_equal(new[:, 0], old[:, 0] - 1)
    text = (tmp_path / "a.aln").read_text()
    assert "# RawSize = 4096 4096 61" in text and "# NumPatches = 0" in text and "# AlphaOffset =    -7.0000" in text


def test_dark_images_and_local_section_written(shared_data: Path, tmp_path: Path) -> None:
    record = read_aln_record(shared_data / "interop" / "aretomo" / "alnfile" / "global_and_local.aln")
    a = record.alignment
    notes = write_aln(tmp_path / "a.aln", record)
    assert any("patches to" in note for note in notes)
    b = read_aln(tmp_path / "a.aln")
    assert sorted(b.excluded) == sorted(a.excluded) and b.tilt_deg == pytest.approx(a.tilt_deg)
    p = np.stack(np.meshgrid(np.linspace(-1900, 1900, 15), np.linspace(-1900, 1900, 15)), axis=-1)
    errors = []
    for m in a.included[::6]:
        u = a.raw_to_aligned(int(m), p)
        errors.append(b.aligned_to_raw(int(m), u) - p)
    assert np.sqrt(np.mean(np.square(errors))) < 0.3  # where AreTomo's own mean jumps from patch to patch
    text = (tmp_path / "a.aln").read_text().splitlines()
    assert sum(line.startswith("# DarkFrame") for line in text) == 14
    patches = int(next(line for line in text if "NumPatches" in line).split()[-1])
    assert len(text) - text.index("# Local Alignment") - 1 == 37 * patches


def test_dark_images_keep_their_angle_where_no_recorded_one_is_known(tmp_path: Path) -> None:
    plain = Alignment.identity(np.array([-60.0, -3.0, 0.0, 3.0]), (100, 90), 84.0)
    write_aln(tmp_path / "a.aln", SeriesRecord(replace(plain, excluded={0: "dark"}), "a"))
    assert "# DarkFrame =     0    0   -60.0000" in (tmp_path / "a.aln").read_text().splitlines()
    assert read_aln(tmp_path / "a.aln").tilt_deg.tolist() == [-60, -3, 0, 3]


def test_local_section_by_its_formula(tmp_path: Path) -> None:
    """raw = p + s(p) + T at p = R(rot) aligned, s the Gaussian mean: written out once more."""
    x = np.linspace(-80, 80, 9)
    grid = np.stack(np.meshgrid(x / 80, x / 80), axis=-1)
    plain = Alignment.identity(np.array([-3.0, 0.0, 3.0]), (100, 90), 84.0)
    warp = LocalWarp(x, x, np.stack([grid, -0.5 * grid, 0.7 * grid[..., ::-1]]), "bicubic")
    a = replace(plain, shift_px=np.array([[4.0, 2.0], [-1.0, 0.0], [3.0, -5.0]]), warp=warp)
    write_aln(tmp_path / "a.aln", SeriesRecord(a, "a"))
    lines = (tmp_path / "a.aln").read_text().splitlines()
    at = lines.index("# Local Alignment")
    local = np.array([line.split() for line in lines[at + 1 :]], dtype=float)
    row = np.array([line.split() for line in lines[:at] if line[0] != "#"], dtype=float)[2]
    angle, patches = np.deg2rad(row[1]), local[local[:, 0] == 2]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for u in ([0.0, 0.0], [20.0, -25.0], [-30.0, 30.0]):
        p = rotation @ u
        weight = np.exp(-100 * (((p - patches[:, 2:4]) / [100, 90]) ** 2).sum(axis=1))
        raw = p + weight @ patches[:, 4:6] / weight.sum() + row[3:5]
        assert a.aligned_to_raw(2, np.array(u)) == pytest.approx(raw, abs=0.03)
