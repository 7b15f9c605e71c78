"""``inr-simulate`` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from inrtomo.commands.simulate import main

TINY = "--base t --size 32 32 --thickness 10 --tilt-step 30 --beads 0 --vesicles 0".split()


def test_options_reach_the_truth(tmp_path: Path) -> None:
    call = ["-o", str(tmp_path), *TINY, "--seed", "7", "--pixel-size", "5", "--tilt-axis", "86.3", "--noise-free"]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    truth = json.loads((tmp_path / "t_truth.json").read_text())
    assert truth["seed"] == 7 and truth["thickness_px"] == 20 and truth["image_size"] == [32, 32]
    assert truth["snr_db"] is None and truth["settings"]["axis_deg"] == 86.3


def test_existing_files_are_kept_unless_told(tmp_path: Path) -> None:
    call = ["-o", str(tmp_path), *TINY]
    assert CliRunner().invoke(main, call).exit_code == 0
    again = CliRunner().invoke(main, call)
    assert again.exit_code == 2 and "--overwrite" in again.output
    assert CliRunner().invoke(main, [*call, "--overwrite"]).exit_code == 0


def test_impossible_options_are_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["-o", str(tmp_path), *TINY, "--tilt-range", "90"])
    assert result.exit_code == 2 and "tilt range" in result.output
    assert not list(tmp_path.iterdir())
