"""``inr-align``: its files, what it prints, and that nothing is lost when it is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inrtomo.align import pipeline
from inrtomo.align.checkpoint import Checkpoint
from inrtomo.align.joint import JointFit, JointSettings, Scale
from inrtomo.commands.align import main as align
from inrtomo.errors import InputError
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.mrc import read_header
from tests.running import Inr

QUICK = (Scale(4, 12, 4, None), Scale(2, 10, 3, 5))
IMOD_FILES = ("ts.xf", "ts.tlt", "ts.xtilt", "ts_warp.xf", "newst.com", "tilt.com")


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """A schedule that goes through all stages, not to the end of the fit."""
    joint_settings = vars(pipeline._Run)["joint_settings"].fget

    def shortened(run: pipeline._Run) -> JointSettings:
        return replace(joint_settings(run), schedule=QUICK, levels=4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._Run, "joint_settings", property(shortened))
        yield


def run_align(series: Path, out: Path, *options: object) -> int:
    args = [series / "ts.mrc", "--tilt-axis", 0, "-o", out, *options]
    return int(align.main([str(a) for a in args], standalone_mode=False) or 0)


@pytest.fixture(scope="module")
def result(quick: None, tiny_series: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("align") / "new" / "folder"
    run_align(tiny_series, out, "--recon", "--error-bars")
    return out


def test_every_file_is_there_and_nothing_else(result: Path) -> None:
    pictures = {f"ts_{name}.png" for name in ("alignment", "residual", "warp", "loss", "slices")}
    expected = {*IMOD_FILES, "ts_align.json", "ts_field.npz", "ts_rec.mrc", *pictures}
    assert {path.name for path in result.iterdir()} == expected


def test_files_read_back_as_the_same_alignment(result: Path) -> None:
    ours, imods = read_alignment(result / "ts_align.json"), read_alignment(result / "ts.xf")
    points = np.random.default_rng(0).uniform(-40, 40, (30, 3)) * [1, 1, 0.3]
    for tilt in range(ours.n_tilts):
        np.testing.assert_allclose(imods.specimen_to_raw(tilt, points), ours.specimen_to_raw(tilt, points), atol=0.03)


def test_json_holds_what_was_promised(result: Path) -> None:
    values = json.loads((result / "ts_align.json").read_text())
    n = 21
    assert values["excluded_tilts"] == []
    assert np.shape(values["shift_px"]) == (n, 2) and np.shape(values["rotation_deg"]) == (n,)
    assert np.shape(values["tilt_deg"]) == (n,) and len(values["residual_px"]) == n
    sigma = np.array(values["sigma_shift_px"], dtype=float)
    assert sigma.shape == (n, 2) and (sigma > 0).all() and (sigma < 2).all()
    assert values["held_out_loss"] > 0 and values["guard"]["chosen"] in ("start", "linear", "warp")
    assert values["tilt_axis_ambiguous"] is False
    assert values["thickness_nm"] == pytest.approx(values["thickness_px"], rel=1e-6)
    assert values["settings"]["seed"] == 0 and values["versions"]["inrtomo"]
    assert values["seconds"]["total"] > 0 and values["peak_memory_bytes"] > 0


def test_tomogram_has_imods_shape(result: Path) -> None:
    values = json.loads((result / "ts_align.json").read_text())
    header = read_header(result / "ts_rec.mrc")
    assert header.shape == (96, values["tomogram_height_px"], 96)
    assert header.pixel_size_A == pytest.approx(10.0)


def test_existing_results_are_not_touched(tiny_series: Path, result: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in result.iterdir()}
    with pytest.raises(Exception, match="--overwrite"):
        run_align(tiny_series, result)
    assert {path.name: path.stat().st_mtime_ns for path in result.iterdir()} == before


def test_resume_of_a_complete_run_does_nothing(tiny_series: Path, result: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in result.iterdir()}
    run_align(tiny_series, result, "--resume", "--recon")
    assert {path.name: path.stat().st_mtime_ns for path in result.iterdir()} == before


class Crash(Exception):
    """The machine stops."""


def crash_after(monkeypatch: pytest.MonkeyPatch, scale: int, step: int) -> None:
    """Stop the joint fit there, at a moment when a checkpoint has just been due."""
    monkeypatch.setattr("inrtomo.align.checkpoint.SAVE_EVERY_S", 0.0)
    run = JointFit.run

    def crashing(self: JointFit, on_step: Any = None) -> Any:
        def watched(fit: JointFit) -> None:
            on_step(fit)
            if self.settings.fit_motion and (fit.done_scales, fit.done_steps) == (scale, step):
                raise Crash

        return run(self, watched)

    monkeypatch.setattr(JointFit, "run", crashing)


@pytest.mark.parametrize(("scale", "step"), [(0, 7), (1, 8)])
def test_resumed_run_ends_like_an_uninterrupted_one(
    tiny_series: Path, result: Path, tmp_path: Path, scale: int, step: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, scale, step)
        with pytest.raises(Crash):
            run_align(tiny_series, tmp_path, "--error-bars")
    assert {path.name for path in tmp_path.iterdir()} == {"ts_checkpoint.npz"}
    with pytest.raises(Exception, match="--resume"):
        run_align(tiny_series, tmp_path, "--error-bars")
    with pytest.raises(Exception, match="belongs to a run with other seed"):
        run_align(tiny_series, tmp_path, "--error-bars", "--resume", "--seed", 5)
    run_align(tiny_series, tmp_path, "--error-bars", "--resume")
    resumed, whole = read_alignment(tmp_path / "ts_align.json"), read_alignment(result / "ts_align.json")
    np.testing.assert_allclose(resumed.shift_px, whole.shift_px, atol=1e-6)
    assert resumed.warp is not None and whole.warp is not None
    np.testing.assert_allclose(resumed.warp.vectors, whole.warp.vectors, atol=1e-6)
    assert not (tmp_path / "ts_checkpoint.npz").exists()


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    saved = Checkpoint(path, {"seed": 1})
    saved.stages["start"] = {"a": [1.5]}
    saved.set_part("joint", {"x": np.arange(4)})
    saved.save()
    again = Checkpoint.resume(path, {"seed": 1})
    assert again.stages == {"start": {"a": [1.5]}}
    np.testing.assert_array_equal(again.part("joint")["x"], np.arange(4))
    with pytest.raises(InputError, match="other seed"):
        Checkpoint.resume(path, {"seed": 2})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="not a checkpoint"):
        Checkpoint.resume(path, {"seed": 1})


def test_fast_writes_no_field(tiny_series: Path, tmp_path: Path) -> None:
    run_align(tiny_series, tmp_path, "--fast")
    assert (tmp_path / "ts.xf").exists() and not (tmp_path / "ts_field.npz").exists()
    values = json.loads((tmp_path / "ts_align.json").read_text())
    assert values["held_out_loss"] is None and values["sigma_shift_px"] is None


def test_starts_from_a_users_alignment(tiny_series: Path, result: Path, tmp_path: Path) -> None:
    run_align(tiny_series, tmp_path, "--start", result / "ts.xf", "--exclude", "3,5-6")
    values = json.loads((tmp_path / "ts_align.json").read_text())
    assert [e["tilt"] for e in values["excluded_tilts"]] == [3, 5, 6]
    assert "tracks" not in values["seconds"]


def test_axis_has_to_come_from_somewhere(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    for path in tiny_series.iterdir():
        if path.suffix in (".mrc", ".rawtlt"):
            (tmp_path / path.name).symlink_to(path)
    outcome = inr("align", tmp_path / "ts.mrc", "-o", tmp_path / "out")
    assert outcome.exit_code == 2
    assert "--tilt-axis" in outcome.output


def test_defocus_has_to_be_plausible(tiny_series: Path, tmp_path: Path, inr: Inr) -> None:
    outcome = inr("align", tiny_series / "ts.mrc", "--tilt-axis", 0, "--defocus", "25000", "-o", tmp_path / "out")
    assert outcome.exit_code == 2
    assert "micrometres" in outcome.output
