"""Local alignments of IMOD: read as tilt does, written as linear patches that follow the warp through the slab."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.imod_local import fitted_local, read_local, warp_from_local, write_local

SIZE, TILT = (101, 80), np.array([-50.0, 0.0, 40.0])


def plain() -> Alignment:
    return Alignment.identity(TILT, SIZE, 0.0, 5.0)


def warped(linear: bool) -> Alignment:
    x, y = np.linspace(-120, 120, 9), np.linspace(-100, 100, 9)
    gx, gy = np.meshgrid(x / 60, y / 60)
    if linear:
        field = np.stack([0.4 + 0.8 * gx - 0.3 * gy, -0.2 + 0.5 * gx + 0.6 * gy], axis=-1)
    else:
        field = np.stack([np.sin(gx + 0.3), np.cos(gy * 1.2) * gx], axis=-1)
    return replace(plain(), warp=LocalWarp(x, y, field * np.array([1.0, -0.7, 0.4])[:, None, None, None], "bicubic"))


def test_linear_motion_needs_four_areas_and_is_exact_in_depth(tmp_path: Path) -> None:
    a = warped(linear=True)
    fit = write_local(tmp_path / "tslocal.xf", a, thickness_px=60)
    assert fit.areas == 2 and fit.largest_px < 5e-3
    head = (tmp_path / "tslocal.xf").read_text().splitlines()[0].split()
    assert head[:2] == ["2", "2"] and head[6:] == ["0", "5.00000", "0"]
    local = read_local(tmp_path / "tslocal.xf", 3, SIZE, 5.0)
    point = np.array([20.0, -15.0, 25.0])
    for m in range(3):
        c, s = np.cos(np.deg2rad(TILT[m])), np.sin(np.deg2rad(TILT[m]))
        u = np.array([20 * c + 25 * s, -15.0])
        assert a.warp is not None
        assert local.observed(a, m, point) == pytest.approx(u + a.warp(m, u), abs=3e-3)
    b = replace(plain(), warp=warp_from_local(local, plain(), 60)[0])
    u = np.stack(np.meshgrid(np.linspace(-20, 20, 9), np.linspace(-40, 40, 9)), axis=-1)
    for m in range(3):
        assert b.aligned_to_raw(m, u) == pytest.approx(a.aligned_to_raw(m, u), abs=0.01)


def test_more_areas_for_bent_motion() -> None:
    local, fit = fitted_local(warped(linear=False), 30)
    assert fit.areas > 2 and fit.rms_px < fit.largest_px < 0.05
    assert len(local.x) == fit.areas and (np.diff(local.x) == np.round(np.diff(local.x))).all()


def test_the_sense_is_ideal_to_observed(tmp_path: Path) -> None:
    """One shift for all areas: what should be at u is found at u + shift, so raw = A^-1 (u + shift - d)."""
    area = "0 0 0\n" + "1 0 0 1 2 -3\n" * 3
    (tmp_path / "l.xf").write_text("2 2 20 20 60 40 0 5.0 0\n" + area * 4)
    warp, lost = warp_from_local(read_local(tmp_path / "l.xf", 3, SIZE, 5.0), plain(), 50)
    b = replace(plain(), warp=warp)
    assert lost < 1e-9
    assert b.aligned_to_raw(1, np.array([5.0, 6.0])) == pytest.approx([7.0, 3.0])


def test_tilt_increments_matter_off_the_middle_only_in_depth(tmp_path: Path) -> None:
    """An increment of the angle moves points at x by its cosine and points at z by its sine; the latter is lost."""
    area = "0 2.0 0\n" + "1 0 0 1 0 0\n" * 3
    (tmp_path / "l.xf").write_text("2 2 1 1 100 79 0 5.0 0\n" + area * 4)
    local = read_local(tmp_path / "l.xf", 3, SIZE, 5.0)
    warp, lost = warp_from_local(local, plain(), 60)
    x = 30.0
    assert warp(1, np.array([x, 0.0]))[0] == pytest.approx(x * (np.cos(np.deg2rad(2)) - 1), abs=1e-3)
    assert lost == pytest.approx(30 * np.sin(np.deg2rad(2)), abs=0.02)


def test_sampling_scales_positions_and_shifts(tmp_path: Path) -> None:
    area = "0 0 0\n" + "1 0 0 1 2 -3\n" * 3
    (tmp_path / "l.xf").write_text("2 2 20 20 30 20 0 10.0 0\n" + area * 4)
    local = read_local(tmp_path / "l.xf", 3, SIZE, 5.0)
    assert local.x.tolist() == [40 - 51, 100 - 51] and local.shift_px[0, 0, 0].tolist() == [4, -6]


@pytest.mark.parametrize("name", ["BBalocal.xf", "BBalocal_patch-tracking.xf"])
def test_etomo_files(shared_data: Path, name: str) -> None:
    folder = shared_data / "interop" / "imod" / "BB"
    local = read_local(folder / name, 61, (512, 512), 20.2)
    assert local.linear.shape == (2, 2, 61, 2, 2) and np.abs(local.linear - np.eye(2)).max() < 0.05
    assert np.abs(local.shift_px).max() < 20 and np.abs(local.tilt_deg).max() < 1
    assert local.z_factors.any() == (name == "BBalocal.xf" or bool(local.z_factors.any()))
    with pytest.raises(InputError, match="60 views"):
        read_local(folder / name, 60, (512, 512), 20.2)


def test_an_etomo_folder_brings_its_local_alignments(shared_data: Path) -> None:
    notes: list[str] = []
    a = read_alignment(shared_data / "interop" / "imod" / "BB", notes=notes)
    assert a.warp is not None and any("BBalocal.xf" in note and "depth" in note for note in notes)
    local = read_local(shared_data / "interop" / "imod" / "BB" / "BBalocal.xf", 61, (512, 512), None)
    point = np.array([60.0, -20.0, 0.0])
    for m in (0, 30, 60):
        observed = local.observed(a, m, point)
        raw = np.linalg.inv(a.linear[m]) @ (observed - a.shift_px[m])
        assert a.specimen_to_raw(m, point) == pytest.approx(raw, abs=0.02)


@pytest.mark.parametrize(
    "text",
    ["", "x\n", "2 2 1 1 10\n", "1 2 1 1 10 10\n0\n", "2 2 1 1 0 10\n0\n", "2 2 1 1 10 10\n1 2 3\n",
     "2 2 1 1 10 10 0 nan 0\n", "999999 999999 1 1 10 10\n1\n"],
)  # fmt: skip
def test_what_is_no_file_of_local_alignments(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.xf").write_text(text)
    with pytest.raises(InputError, match="l.xf"):
        read_local(tmp_path / "l.xf", 3, SIZE, 5.0)
