"""Commands killed at twenty random moments: what they leave is gone on with, and the result is the same as without."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from inrtomo.alignment import Alignment
from inrtomo.batch.state import DONE, Batch
from inrtomo.io.alignment_files import read_alignment
from inrtomo.io.mrc import read_volume
from inrtomo.localized.weights import card_of, load_weights
from tests.forks import Forks
from tests.listing import list_of_two
from tests.running import ROOT, run_command

pytestmark = pytest.mark.slow

KILLS = 20
SAME_PX = 1e-3
TINY = "--size 48 48 --thickness 15 --tilt-step 12 --snr 10 --shifts 3 --warp 0 --beads 4 --seed 1 --base ts"
STAND_IN = f"import inrtomo.batch.runner as r; r.CHILD = open({str(ROOT / 'tests' / 'fake_align.py')!r}).read()"


@pytest.fixture(scope="module")
def smallest_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``ts.mrc`` (48 x 48 px, 11 tilts), its angles and truth, and ``run`` of inr-align."""
    folder = tmp_path_factory.mktemp("smallest")
    assert run_command("simulate", "-o", folder, *TINY.split()).exit_code == 0
    given = (folder / "ts.mrc", "--tilt-axis", 0, "--seed", 1, "--fast")
    assert run_command("align", *given, "-o", folder / "run").exit_code == 0
    return folder


def is_same(a: Alignment, b: Alignment) -> bool:
    """Everything, the warp in the frame of the images included, to a thousandth of a pixel."""
    corners = np.array([[x, y, z] for x in (-20.0, 20.0) for y in (-20.0, 20.0) for z in (-5.0, 5.0)])
    apart = [np.abs(a.specimen_to_raw(m, corners) - b.specimen_to_raw(m, corners)).max() for m in range(a.n_tilts)]
    return a.excluded == b.excluded and max(apart) < SAME_PX


def test_align(smallest_series: Path, tmp_path: Path) -> None:
    """The whole of inr-align with --resume; states are saved more often than every 15 s, since it takes no longer."""
    args = (smallest_series / "ts.mrc", "--tilt-axis", 0, "--seed", 1)
    often = "import inrtomo.align.checkpoint as c; c.SAVE_EVERY_S = 0.3"
    with Forks("align", "PROF", tmp_path / "log", ["inrtomo.align.pipeline", "inrtomo.report.figures"], often) as run:
        assert run([*args, "-o", tmp_path / "first"]).exit_code == 0, run.said()  # compiles what was not yet
        whole = run([*args, "-o", tmp_path / "whole"])
        truth = read_alignment(tmp_path / "whole")
        assert is_same(read_alignment(tmp_path / "first"), truth), "two runs of one seed differ"
        moments, kills, complete = random.Random(1), 0, 0
        while kills < KILLS or not complete:
            out = tmp_path / f"out{complete}"
            after = moments.uniform(0, 0.7 * whole.seconds) if kills < KILLS else 0.0
            ended = run([*args, "-o", out, "--resume"], after)
            kills += ended.killed
            if not ended.killed:
                assert ended.exit_code == 0, run.said()
                assert is_same(read_alignment(out), truth), "going on led elsewhere than running through"
                assert not [path for path in out.iterdir() if path.name.startswith(".") or "checkpoint" in path.name]
                complete += 1
            elif (out / "ts_align.json").exists():  # written last: then everything is there
                assert is_same(read_alignment(out), truth)


def test_recon_field(smallest_series: Path, tmp_path: Path) -> None:
    """A field and its halves with --resume; until it is through there is nothing under the result's name."""
    args = [smallest_series / "ts.mrc", smallest_series / "ts_truth.json", "--method", "field", "--field", "voxel"]
    args += ["--bin", 2, "--thickness", 15, "--halves"]
    modules = ["inrtomo.commands._recon_run", "inrtomo.reconstruct.field"]
    often = "import inrtomo.align.checkpoint as c; c.SAVE_EVERY_S = 0.1"
    with Forks("recon", "PROF", tmp_path / "log", modules, often) as run:
        assert run([*args, "-o", tmp_path / "first.mrc"]).exit_code == 0, run.said()
        whole = run([*args, "-o", tmp_path / "whole.mrc"])
        truth = read_volume(tmp_path / "whole.mrc")[0]
        np.testing.assert_allclose(read_volume(tmp_path / "first.mrc")[0], truth, atol=1e-4 * float(np.ptp(truth)))
        moments, kills, complete = random.Random(2), 0, 0
        while kills < KILLS or not complete:
            out = tmp_path / f"out{complete}" / "ts_rec.mrc"
            out.parent.mkdir(exist_ok=True)
            after = moments.uniform(0, 0.7 * whole.seconds) if kills < KILLS else 0.0
            ended = run([*args, "-o", out, "--resume"], after)
            kills += ended.killed
            if not ended.killed:
                assert ended.exit_code == 0, run.said()
                assert not out.with_name("ts_rec_checkpoint.npz").exists() and not list(out.parent.glob(".*"))
                complete += 1
            if not out.exists():
                continue
            json.loads(out.with_suffix(".json").read_text())
            for ending in ("", "_odd", "_even"):
                found = read_volume(out.with_name(f"ts_rec{ending}.mrc"))[0]
                expected = read_volume(tmp_path / f"whole{ending}.mrc")[0]
                np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.ptp(expected)))
            if ended.killed:  # after the last file, before the checkpoint went
                complete += 1


def test_train(smallest_series: Path, tmp_path: Path) -> None:
    """Training on two pairs with --resume; checkpoints come more often than every 45 s, not at validations alone."""
    there = [smallest_series / name for name in ("ts.mrc", "ts_truth.json", "ts_truth.mrc")]
    pairs = list_of_two(smallest_series / "pairs.star", *there)
    args = ["--pairs", pairs, "--orientation", "xyz", "--width", 16, "--batch", 128, "--steps", 300, "--device", "cpu"]
    less = "import inrtomo.localized.training as t; t.SAVE_EVERY_S = 0.2; t.START_BLOCKS = 5000\n"
    less += "import inrtomo.commands._listed_pairs as r; r.LISTED_BLOCKS = 2000"
    with Forks("train", "PROF", tmp_path / "log", ["inrtomo.commands._train_run"], less) as run:
        assert run([*args, "-o", tmp_path / "first"]).exit_code == 0, run.said()  # compiles what was not yet
        whole = run([*args, "-o", tmp_path / "whole"])
        truth = load_weights(tmp_path / "whole" / "weights.safetensors")[0].state_dict()
        moments, kills, complete = random.Random(5), 0, 0
        while kills < KILLS or not complete:
            out = tmp_path / f"out{complete}"
            after = moments.uniform(0, 0.7 * whole.seconds) if kills < KILLS else 0.0
            ended = run([*args, "-o", out, "--resume"], after)
            kills += ended.killed
            weights = out / "weights.safetensors"
            if not ended.killed:
                assert ended.exit_code == 0, run.said()
                for name, found in load_weights(weights)[0].state_dict().items():
                    torch.testing.assert_close(found, truth[name])
                assert _learnt(out) == _learnt(tmp_path / "whole")
                assert not list(out.rglob(".*"))
                complete += 1
            elif card_of(weights).exists():  # written last: then they are what it says
                load_weights(weights)


def _learnt(folder: Path) -> list[str]:
    """The learning curve but for the time it took."""
    return [line.rpartition(",")[0] for line in (folder / "learning_curve.csv").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "args", "modules"),
    [
        ("export", "{}/ts.mrc {}/ts_truth.json -o {out}/ali.mrc --mask {out}/mask.mrc", ["inrtomo.export"]),
        ("recon", "{}/ts.mrc {}/ts_truth.json -o {out}/rec.mrc --halves", ["inrtomo.commands._recon_run"]),
        ("fsc", "{}/ts_odd.mrc {}/ts_even.mrc -o {out}/fsc", ["inrtomo.metrics.fsc", "inrtomo.report.fsc"]),
        ("infer", "{}/ts.mrc {}/ts_truth.json -o {out}/t.mrc --halves --thickness 15", ["inrtomo.commands._infer_run"]),
        ("convert", "{}/ts_truth.json {out}/relion --to relion5 --stack {}/ts.mrc", []),
        ("simulate", f"-o {{out}} {TINY}", ["inrtomo.simulate.specimen"]),
        ("report", "{}/run -o {out}/ts", ["inrtomo.report.page"]),
    ],
)
def test_the_short_ones(smallest_series: Path, tmp_path: Path, name: str, args: str, modules: list[str]) -> None:
    """They begin anew with --overwrite; what has its name after a kill is whole, and the end is as without any."""

    def words(out: Path) -> list[str]:
        return [*(word.format(*[smallest_series] * 2, out=out) for word in args.split()), "--overwrite"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    with Forks(name, "PROF", tmp_path / "log", modules) as run:
        assert run(words(whole)).exit_code == 0, run.said()  # compiles what was not yet
        seconds = run(words(whole)).seconds
        moments, kills = random.Random(4), 0
        for _ in range(KILLS):
            ended = run(words(killed), moments.uniform(0, seconds))
            assert ended.killed or ended.exit_code == 0, run.said()
            kills += ended.killed
            _assert_same_files(killed, whole, complete=not ended.killed)
        assert kills, "it was through before it was killed"
        assert run(words(killed)).exit_code == 0, run.said()
    _assert_same_files(killed, whole, complete=True)


def _assert_same_files(found: Path, expected: Path, complete: bool) -> None:
    """Files with a name of their own are those expected; all of them, and no others, when it is said to be complete."""
    names = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    there = {path.relative_to(found) for path in found.rglob("*") if path.is_file()}
    shown = {path for path in there if not path.name.startswith(".")}
    assert shown <= names and (not complete or there == names), (sorted(there), sorted(names))
    for path in shown:
        if path.suffix == ".mrc":
            np.testing.assert_array_equal(read_volume(found / path)[0], read_volume(expected / path)[0])
        elif path.suffix == ".png":
            assert (found / path).read_bytes().endswith(b"IEND\xaeB`\x82")
        elif path.suffix == ".json":
            assert json.loads((found / path).read_text()).keys() == json.loads((expected / path).read_text()).keys()
        else:
            here, text = (
                [line for line in (folder / path).read_text().splitlines() if not line.startswith("# Created by")]
                for folder in (found, expected)  # starfile notes the time
            )
            assert here == [line.replace(str(expected), str(found)) for line in text], path


def test_batch(tmp_path: Path) -> None:
    """The batch itself, with a stand-in for its command; whatever it was doing, the same call goes on with it."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    names = [f"ts{k:02d}" for k in range(12)]
    for name in names:
        (raw / f"{name}.mrc").write_text("sleep 0.1")
    args = ("align", raw, "-o", out, "--workers", 2)
    with Forks("batch", "REAL", tmp_path / "log", ["inrtomo.commands.align"], STAND_IN) as run:
        moments, kills = random.Random(3), 0
        for _ in range(KILLS):
            ended = run(args, moments.uniform(0.01, 3.0))
            kills += ended.killed
            assert ended.killed or ended.exit_code == 0, run.said()
        assert kills, "it was through before it was killed"
        assert run(args).exit_code == 0, run.said()
        assert run(["status", "-o", out]).exit_code == 0, run.said()
    batch = Batch.open(out)
    assert batch.states() == dict.fromkeys(names, DONE)
    started = Counter((raw / "starts").read_text().split())
    for name in names:
        json.loads((out / name / f"{name}_align.json").read_text())
        assert 1 <= started[name] <= (batch.record(name) or {})["attempts"] <= KILLS + 1
    assert not list(batch.state.glob("*.claimed*"))
    assert sorted(path.name for path in batch.state.glob("ts*")) == sorted(
        f"{name}.{ending}" for name in names for ending in ("done", "log")
    )
