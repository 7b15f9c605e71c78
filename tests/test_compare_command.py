"""inr-compare: what it prints and writes, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrtomo.alignment import Alignment
from inrtomo.io.alignment_json import alignment_to_dict
from inrtomo.truth import TruePoints
from tests.running import Inr

N = 21


@pytest.fixture
def truth() -> Alignment:
    plain = Alignment.identity(np.linspace(-60, 60, N), (96, 80), 3.0, 10.0)
    return replace(plain, shift_px=np.random.default_rng(0).uniform(-5, 5, (N, 2)))


def written(path: Path, alignment: Alignment, **more: object) -> Path:
    path.write_text(json.dumps({**alignment_to_dict(alignment), **more}))
    return path


def test_numbers_picture_and_exclusion(inr: Inr, truth: Alignment, tmp_path: Path) -> None:
    by = np.random.default_rng(1).normal(size=(N, 2)) * 0.3
    by[7] = 200.0
    other = replace(truth, shift_px=truth.shift_px + by, excluded={7: "dark"})
    a, b = written(tmp_path / "a.json", other), written(tmp_path / "b.json", truth, thickness_px=30)
    result = inr("compare", a, b, "-o", tmp_path / "cmp.v1")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "cmp.v1.json").read_text())
    assert 0.2 < values["rms_after_slice_gauge_px"] <= values["rms_px"] < 0.45
    assert values["rigid_removed"]["rms_A"] == pytest.approx(10 * values["rms_px"])
    assert values["excluded"] == [7] and values["thickness_px"] == 30
    assert (tmp_path / "cmp.v1.png").read_bytes().startswith(b"\x89PNG")
    assert f"{values['rms_px']:.3f}" in result.output and "left out: tilts 7" in result.output
    assert "30 nm" in result.output and "b.json" in result.output


def test_thickness_and_more_tilts_to_leave_out(inr: Inr, truth: Alignment, tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", truth)
    result = inr("compare", a, a, "--thickness", 50, "--exclude", "0-2,20")
    assert result.exit_code == 0, result.output
    assert "50 nm" in result.output and "17 tilts" in result.output
    assert "image side" in inr("compare", a, a).output


def test_refusals(inr: Inr, truth: Alignment, tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", truth)
    small = written(tmp_path / "small.json", replace(truth, image_size=(64, 64)))
    for args, word in (
        ((a, small), "64"),
        ((a, a, "--thickness", 0), "positive"),
        ((a, a, "--exclude", "21"), "21"),
        ((a, a, "-o", tmp_path / "taken"), "taken.json"),
    ):
        (tmp_path / "taken.json").write_text("precious")
        result = inr("compare", *args)
        assert result.exit_code == 2, result.output
        assert word in result.output and "Traceback" not in result.output
    assert (tmp_path / "taken.json").read_text() == "precious"


def test_level_and_thickness_against_a_truth(inr: Inr, truth: Alignment, tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3)) * (40, 30, 15)
    raw = np.stack([truth.specimen_to_raw(m, points) for m in range(N)])
    known = TruePoints(points, raw, np.array([0.0, 0.0, 1.0]), 30.0)
    off = replace(truth, tilt_deg=truth.tilt_deg - 2.0, x_tilt_deg=np.full(N, 1.0))
    a = written(tmp_path / "a.json", off, thickness_px=24)
    b = written(tmp_path / "b.json", truth, **known.to_dict())
    result = inr("compare", a, b, "-o", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert "200 in 30 nm" in result.output and "0.80 of the true one" in result.output
    assert "+2.00 degrees about y and +1.00 about x" in result.output
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["thickness_ratio"] == pytest.approx(0.8) and values["rms_px"] < 1e-5
    # the other way round there is no truth to hold a level against
    assert "level:" not in inr("compare", b, a).output
