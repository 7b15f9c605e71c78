"""The alignment benchmark on a series of postage-stamp size: its records, resuming and tables."""

import json
import sys
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
    assert done["truth, best linear"]["gauge_free"]["rms_px"] < done["nothing"]["gauge_free"]["rms_px"]
    # protein is dark in camera counts: reconstructions have to be turned before they are compared
    assert done["truth"]["fbp"]["cc"] > max(0.2, done["nothing"]["fbp"]["cc"])
    call(tiny_benchmark, "--methods", "nothing,truth")
    assert len(records(tiny_benchmark)) == 3
    assert "| truth | 1 | 0.000 |" in (tiny_benchmark / "results.md").read_text()


def test_a_method_that_fails_is_told_and_tried_again(tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: methods.Case) -> list[methods.Outcome]:
        case.run([sys.executable, "-c", "import sys; sys.exit('no such luck')"], "broken")
        return []

    monkeypatch.setitem(methods.METHODS, "nothing", broken)
    assert "no such luck" in call(tiny_benchmark, "--methods", "nothing", "--no-volumes")
    monkeypatch.setitem(methods.METHODS, "nothing", methods.nothing)
    assert "no such luck" not in call(tiny_benchmark, "--methods", "nothing", "--no-volumes")


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
