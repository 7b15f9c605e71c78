"""The alignment benchmark on a series of postage-stamp size: its records, resuming and tables."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from inrtomo.simulate import SimulationSettings
from integration.benchmarks.alignment import methods, run, series
from integration.benchmarks.alignment.measured import run_measured
from integration.benchmarks.alignment.tables import tables

TINY = SimulationSettings(size=(48, 40), thickness_px=16, tilt_step_deg=10, shift_px=3, counts=True, blanks=1, beads=1)


@pytest.fixture
def tiny_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(series.SERIES, "tiny", TINY)
    monkeypatch.setattr(run, "DENSITIES", tmp_path / "none")
    return tmp_path


def call(work: Path, *options: str) -> str:
    result = CliRunner().invoke(run.main, ["--work", str(work), "--series", "tiny", "--seeds", "0", *options])
    assert result.exit_code == 0, result.output
    return result.output


def records(work: Path) -> list[dict]:
    return [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]


def test_truth_is_best_and_finished_runs_are_not_repeated(tiny_benchmark: Path) -> None:
    said = call(tiny_benchmark, "--methods", "nothing,truth")
    assert "molecules: procedural" in said
    done = {record["method"]: record for record in records(tiny_benchmark)}
    assert done["truth"]["gauge_free"]["rms_px"] < 1e-6 < done["nothing"]["gauge_free"]["rms_px"]
    linear, nominal = (done[f"truth, best linear{more}"]["gauge_free"] for more in ("", ", nominal angles"))
    assert linear["rms_px"] < done["nothing"]["gauge_free"]["rms_px"]
    # the angles of the file are the true ones here
    assert nominal["rms_px"] == pytest.approx(linear["rms_px"], rel=0.05)
    # protein is dark in camera counts: reconstructions have to be turned before they are compared
    assert done["truth"]["fbp"]["cc"] > max(0.2, done["nothing"]["fbp"]["cc"])
    call(tiny_benchmark, "--methods", "nothing,truth")
    assert len(records(tiny_benchmark)) == 4
    assert "| truth | 1 | 0.000 |" in (tiny_benchmark / "results.md").read_text()


def test_a_method_that_fails_is_told_and_tried_again(tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: methods.Case) -> list[methods.Outcome]:
        case.run([sys.executable, "-c", "import sys; sys.exit('no such luck')"], "broken")
        return []

    monkeypatch.setitem(methods.METHODS, "nothing", broken)
    assert "no such luck" in call(tiny_benchmark, "--methods", "nothing", "--no-volumes")
    monkeypatch.setitem(methods.METHODS, "nothing", methods.nothing)
    assert "no such luck" not in call(tiny_benchmark, "--methods", "nothing", "--no-volumes")


def test_headlines_are_of_seeds_on_which_nothing_was_set() -> None:
    defaults = {option.name: option.default for option in run.main.params}
    assert run.seed_numbers(str(defaults["seeds"])) == [5, 6, 7, 8, 9]


def test_series_are_told_what_an_operator_would_know() -> None:
    """S7 differs from S7t by its angles alone; the old local motion stands beside the new."""
    wrong, right = (series.benchmark_settings(name, 3) for name in ("S7", "S7t"))
    assert replace(wrong, tilt_noise_deg=0, tilt_scale=1) == right and wrong.tilt_noise_deg == 1
    for name in ("S1", "S2", "S3", "S4", "S5"):
        new, old = series.SERIES[name], series.SERIES[f"{name}w"]
        assert new.warp_max_px == 0 < new.motion_px and old.motion_px == 0 < old.warp_max_px
        assert (new.snr_db, new.size, new.thickness_px, new.beads) == (
            old.snr_db,
            old.size,
            old.thickness_px,
            old.beads,
        )
    assert not any(s.motion_px or s.warp_max_px or s.rotation_jitter_deg for s in [series.SERIES["S11"]])


def test_level_and_thickness_are_scored_of_what_calls_itself_level(
    tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaning(case: methods.Case) -> list[methods.Outcome]:
        alignment = replace(case.truth, tilt_deg=case.truth.tilt_deg + 1.5)
        return [methods.Outcome("leaning", alignment, thickness_px=0.75 * case.thickness_px)]

    monkeypatch.setitem(methods.METHODS, "nothing", leaning)
    call(tiny_benchmark, "--methods", "nothing,truth", "--no-volumes")
    found = {record["method"]: record for record in records(tiny_benchmark)}
    assert found["leaning"]["off_level_y_deg"] == pytest.approx(1.5, abs=0.01)
    assert found["leaning"]["off_level_x_deg"] < 0.01 and found["leaning"]["thickness_ratio"] == pytest.approx(0.75)
    assert found["leaning"]["angle_rms_deg"] < 1e-6 and "thickness_ratio" not in found["truth"]


def test_memory_is_the_commands_own(tmp_path: Path) -> None:
    ballast = bytearray(200_000_000)
    idle = run_measured([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path / "log")
    filled = "import time; x = bytearray(b'1' * 150_000_000); time.sleep(0.5)"
    busy = run_measured([sys.executable, "-c", filled], tmp_path / "log")
    assert len(ballast) and idle.status == 0 and idle.wall_s > 0.4
    if sys.platform == "linux":
        assert 0 < idle.peak_MB < 100 < busy.peak_MB < 600


def test_table_gives_the_median_over_seeds_and_what_went_wrong() -> None:
    def record(seed: int, rms: float, **more: object) -> dict:
        part = {"rms_px": rms, "smooth_px": 0.0, "jitter_px": 0.0, "local_px": rms}
        head = {"series": "S9", "seed": seed, "run": "ours", "method": "ours", "wall_s": 10.0 * seed}
        return {**head, "rigid": part, "gauge_free": part, **more}

    text = tables([record(0, 0.1), record(1, 0.9, good_tilts_excluded=[3]), record(2, 0.2, error_bars_cover=0.66)])
    assert "| ours | 3 | 0.200 |" in text and "| 10.0 |" in text
    assert "seed 1: excluded good tilts [3]" in text and "66%" in text
    # no column without a number, and a word on what the seeds have been used for
    assert "FBP" not in text and "S9, medians over seeds 0, 1, 2; constants were set on seeds 0 to 4" in text
    assert "S9, medians over seeds 7, on which no constant was set" in tables([record(7, 0.1)])
