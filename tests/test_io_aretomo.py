"""AreTomo's ``.aln`` of four versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.geometry import axis_angle
from inrtomo.io.aretomo import read_aln
from inrtomo.io.imod import read_angles, read_xf

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
    assert a.tilt_deg[:2].tolist() == [-68, -66] and a.tilt_deg[14] == -27.71 and a.tilt_deg[-1] == 44.29
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
