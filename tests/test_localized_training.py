"""Learning: weights and their card, samples of pairs, training that goes on where it was, the two commands."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import mrcfile
import numpy as np
import pytest
import torch

from inrtomo.commands import train
from inrtomo.errors import InputError
from inrtomo.io.mrc import read_volume, write_volume
from inrtomo.localized import pairs, scaling
from inrtomo.localized.bank import n_features
from inrtomo.localized.blocks import OUTPUTS, Blocks
from inrtomo.localized.cache import SampleCache, wait_for
from inrtomo.localized.curve import write_curve
from inrtomo.localized.network import Architecture, LocalizedMlp
from inrtomo.localized.samples import Samples, pair_samples
from inrtomo.localized.scaling import CONDITIONS
from inrtomo.localized.training import Pool, Training, TrainingSettings, losses
from inrtomo.localized.weights import load_weights, shipped_weights
from inrtomo.metrics.volume import best_isotropic_filter_cc, cc
from tests.listing import list_of_two
from tests.running import Inr, assert_refused

SMALL = Architecture(width=12, depth=2, filters=2)


def made_up(seed: int, count: int = 1500) -> Samples:
    """A pair whose density is a kinked function of its features, the same for a mirrored specimen."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, n_features(8)))
    target = 0.5 * x[:, :8]
    target[:, 0] = 3 * np.abs(x[:, 0])
    condition = np.zeros(len(CONDITIONS), dtype=np.float32)
    return Samples(x.astype(np.float16), target.astype(np.float16), condition, float(target.var()), 30)


@pytest.fixture
def cache(tmp_path: Path) -> SampleCache:
    cache = SampleCache(tmp_path / "cache", 10)
    for k in range(6):
        cache.add(made_up(k), 1, k)
    return cache


def training(cache: SampleCache, steps: int, stop_at: int | None = None, resume: Path | None = None) -> Training:
    pool = Pool(cache, 10, SMALL.blocks)
    pool.refill()
    settings = TrainingSettings(steps=steps, batch=256, rate=3e-2, validate_every=20)
    run = Training.fresh(SMALL, pool, [made_up(100), made_up(101)], settings, "cpu")
    if resume is not None:
        run.load(resume)
    run.run(lambda now: now.state.step == stop_at)
    return run


def test_training_starts_at_the_least_squares_filter_and_gets_better(cache: SampleCache) -> None:
    run = training(cache, 300)
    first, last = run.state.curve[0][2], run.state.best
    beyond = 9 * (1 - 2 / np.pi)  # the variance of 3 |x|, of which a linear filter can tell nothing
    linear = beyond / (beyond + 7 * 0.25)
    assert first == pytest.approx(linear, rel=0.1)
    assert last < 0.5 * first
    assert run.state.seen == 300 * 256 and len(run.pool.seen) == 6


def test_training_goes_on_after_a_kill_as_if_nothing_had_been(cache: SampleCache, tmp_path: Path) -> None:
    whole = training(cache, 60)
    cut = training(cache, 60, stop_at=40)
    assert cut.state.step == 40
    cut.save(tmp_path / "checkpoint.pt")
    on = training(cache, 60, resume=tmp_path / "checkpoint.pt")
    np.testing.assert_allclose([row[:3] for row in on.state.curve[1:]], [row[:3] for row in whole.state.curve[1:]])
    for a, b in zip(on.best.values(), whole.best.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_would_be_lost_is_saved_between_validations_that_are_far_apart(
    cache: SampleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inrtomo.localized.training.SAVE_EVERY_S", 0.0)
    saved: list[int] = []
    pool = Pool(cache, 10, SMALL.blocks)
    pool.refill()
    settings = TrainingSettings(steps=25, batch=64, validate_every=20)
    run = Training.fresh(SMALL, pool, [made_up(100)], settings, "cpu")
    run.run(lambda now: False, lambda now: saved.append(now.state.step))
    assert saved == [step for step in range(1, 25) if step != 20]
    assert [row[0] for row in run.state.curve] == [0, 20, 25]


def test_what_is_told_of_weights_is_of_those_kept(cache: SampleCache) -> None:
    """The rate is so high that the weights of the end are worse than those kept."""
    pool = Pool(cache, 10, SMALL.blocks)
    pool.refill()
    settings = TrainingSettings(steps=60, batch=64, rate=0.9, validate_every=20)
    run = Training.fresh(SMALL, pool, [made_up(100), made_up(101)], settings, "cpu")
    run.run(lambda now: False)
    assert run.state.best_step < 60
    np.testing.assert_allclose(run.best_losses, losses(run.best_model(), run.held_out), rtol=1e-5)
    assert run.best_losses.mean() < run.losses_of(run.mean).mean()


def test_ranges_are_of_all_that_weights_have_learnt_from(cache: SampleCache, tmp_path: Path) -> None:
    """What the start had seen, what a run that was killed had seen, and what this one sees; pairs are counted alike."""
    start = {name: [-0.5, 0.0] for name in CONDITIONS} | {"thickness": [40.0, 90.0]}
    pool = Pool(cache, 10, SMALL.blocks, start)
    pool.refill()
    assert pool.spans == {name: [-0.5, 0.0] for name in CONDITIONS} | {"thickness": [30.0, 90.0]}
    assert start["thickness"] == [40.0, 90.0]
    run = Training(LocalizedMlp(SMALL), pool, [made_up(100)], TrainingSettings(), "cpu")
    run.save(tmp_path / "checkpoint.pt")
    for path in cache.paths()[:2]:
        path.unlink()
    pool = Pool(cache, 10, SMALL.blocks)
    pool.refill()
    assert pool.spans["thickness"] == [30.0, 30.0] and len(pool.all_seen) == 4
    run = Training(LocalizedMlp(SMALL), pool, [made_up(100)], TrainingSettings(), "cpu")
    run.load(tmp_path / "checkpoint.pt")
    assert pool.spans["thickness"] == [30.0, 90.0] and len(pool.all_seen) == 6


def test_the_curve_of_a_short_run_shows_its_training_loss(cache: SampleCache, tmp_path: Path) -> None:
    """One point beside the NaN of the start, through which no line goes."""
    run = training(cache, 20)
    assert len(run.state.curve) == 2 and np.isnan(run.state.curve[0][1])
    write_curve(run.state, tmp_path / "curve")
    shown = matplotlib.image.imread(tmp_path / "curve.png")[..., :3]
    middle = shown[: int(0.85 * len(shown)), int(0.8 * shown.shape[1]) :]  # where the last step is
    grey = (np.abs(middle - 0.6) < 0.02).all(axis=-1)
    assert grey.sum() >= 4


class Trap:
    """What a pickle that runs something when it is opened looks like."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("what", ["a trap", "another network's", "no pickle"])
def test_a_checkpoint_that_is_none_is_refused_and_never_run(what: str, cache: SampleCache, tmp_path: Path) -> None:
    path, sprung = tmp_path / "checkpoint.pt", tmp_path / "sprung"
    if what == "no pickle":
        path.write_bytes(b"\x80hello")
    else:
        torch.save({"model": Trap(sprung)} if what == "a trap" else {"model": {"weight": torch.ones(3)}}, path)
    with pytest.raises(InputError, match="no checkpoint"):
        training(cache, 1, resume=path)
    assert not sprung.exists()


def test_the_cache_is_bounded_and_loses_the_oldest(tmp_path: Path) -> None:
    cache = SampleCache(tmp_path, 3)
    for k in range(5):
        cache.add(made_up(k, 10), 7, k)
    assert [path.name for path in cache.paths()] == [f"000007_{k:06d}.npz" for k in (2, 3, 4)]
    assert cache.load(tmp_path / "000007_000000.npz") is None


def test_what_help_says_is_so() -> None:
    settings, architecture = TrainingSettings(), Architecture()
    assert (train.STEPS, train.BATCH, train.RATE) == (settings.steps, settings.batch, settings.rate)
    assert (train.WIDTH, train.DEPTH) == (architecture.width, architecture.depth)
    assert set(train.OUTPUTS) == set(OUTPUTS)


def test_a_pair_is_sampled_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise-free projections: the features' own back-projection and the target tell of the same density."""
    monkeypatch.setattr(scaling, "POINTS", 400)
    random = np.random.default_rng(3)
    settings = replace(pairs.random_specimen(random, None, Path()), size=(48, 48), thickness_px=20, pixel_size_A=14.0)
    settings = replace(settings, beads=0, membranes=0, crowding=0.1)
    specimen = pairs.make_specimen(settings, random)
    alignment = pairs.true_alignment(settings, np.arange(-68.0, 69.0, 4.0), np.arange(35), random)
    projections = pairs.project_series(specimen.density, alignment, pairs.CTF_MARGIN_PX)
    monkeypatch.setattr(pairs, "SNR_DB", (20.0, 20.0))
    truth = pairs.view_of(specimen, settings)
    for _ in range(20):  # until a series without transfer function and error
        pair = pairs.random_series(projections, alignment, truth, settings, random)
        if not pair.facts["defocus_um"] and not pair.facts["error_px"] and len(pair.images) > 20:
            break
    samples = pair_samples(pair, Blocks.of("haar"), random, 800)
    back_projection, density = samples.features[:, 0].astype(float), samples.target[:, 0].astype(float)
    assert np.corrcoef(back_projection, density)[0, 1] > 0.7


def test_molecules_that_results_are_on_are_never_learnt_from(tmp_path: Path) -> None:
    for name in ("4cr2", "5MRC", "3cf3_10A", "pdb1bxn", "EMD_4CR2", "1abc"):
        write_volume(tmp_path / f"{name}.mrc", np.ones((6, 6, 6), dtype=np.float32), 10.0)
    assert [path.stem for path in pairs.density_files(tmp_path)] == ["1abc"]
    there = pairs.densities_at(tmp_path, 20.0, tmp_path / "made")
    assert [path.name for path in there.iterdir()] == ["1abc.mrc"]
    assert read_volume(there / "1abc.mrc")[0].shape == (3, 3, 3)
    (tmp_path / "1abc.mrc").unlink()
    with pytest.raises(InputError, match="pdb1bxn.mrc, and 4cr2, .* are kept out of training"):
        pairs.density_files(tmp_path)
    with pytest.raises(InputError, match="holds no"):
        pairs.density_files(tmp_path / "made")


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def series(tiny_series: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_series, tmp_path / "series"))


def listed(series: Path, reference: str = "reference.mrc") -> Path:
    """A list of two series of the same images."""
    return list_of_two(series / "pairs.star", series / "ts.mrc", series / "ts_truth.json", reference)


def test_train_on_pairs_then_fine_tune_then_infer(inr: Inr, series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inrtomo.commands import _listed_pairs

    monkeypatch.setattr(_listed_pairs, "LISTED_BLOCKS", 3000)
    truth, _ = read_volume(series / "ts_truth.mrc")
    write_volume(series / "reference.mrc", 7 - 3 * truth, 10.0)  # any grey scale, dark protein
    out = series / "trained"
    pairs = ("--pairs", listed(series), "--orientation", "xyz", "--batch", 512)
    options = (*pairs, "--width", 16)
    done = inr("train", "-o", out, *options, "--steps", 60)
    assert done.exit_code == 0, done.output
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        "weights.safetensors", "weights.json", "learning_curve.csv", "learning_curve.png", "checkpoint.pt",
    }  # fmt: skip
    card = json.loads((out / "weights.json").read_text())
    assert card["data"]["kind"] == "listed" and card["training"]["steps"] == 60
    assert card["metrics"]["held_out_loss"] < card["metrics"]["held_out_loss_at_start"] < 1
    assert_refused(inr("train", "-o", out, *options, "--steps", 80), "--resume")
    assert inr("train", "-o", out, *options, "--steps", 80, "--resume").exit_code == 0
    assert json.loads((out / "weights.json").read_text())["training"]["steps"] == 80
    assert card["range"]["thickness"] == [len(truth), len(truth)] and np.isfinite(list(card["range"].values())).all()
    assert card["training"]["pairs_seen"] == 1
    refused = inr("train", "-o", out, *options, "--steps", 80, "--resume", "--seed", 3)
    assert_refused(refused, "checkpoint.pt", "--seed 0, not 3")
    assert_refused(inr("train", "-o", out, *pairs, "--resume", "--start", "shipped"), "checkpoint.pt", "other weights")
    (out / "checkpoint.pt").unlink()
    assert_refused(inr("train", "-o", out, *options, "--steps", 90, "--resume"), "no checkpoint.pt", "--overwrite")
    tuned = inr("train", "-o", series / "tuned", *pairs, "--steps", 5, "--start", out / "weights.safetensors")
    assert tuned.exit_code == 0, tuned.output
    record = json.loads((series / "tuned" / "weights.json").read_text())
    assert record["architecture"]["width"] == 16 and record["training"]["started_from"].endswith("weights.safetensors")
    assert record["training"]["started_from_sha256"] == json.loads((out / "weights.json").read_text())["sha256"]
    worse = inr("train", "-o", series / "worse", *pairs, "--steps", 2, "--start", "shipped", "--rate", 0.9)
    assert "nothing was gained: the weights are those it started from" in worse.output
    assert "nothing was gained" not in done.output
    ends = load_weights(series / "worse" / "weights.safetensors")[1].range, load_weights(shipped_weights())[1].range
    assert all(ends[0][name][0] <= low and high <= ends[0][name][1] for name, (low, high) in ends[1].items())
    rec = series / "rec.mrc"
    more = ("--weights", out / "weights.safetensors", "--thickness", 38, "--orientation", "xyz")
    done = inr("infer", series / "ts.mrc", series / "ts_truth.json", "-o", rec, *more)
    assert done.exit_code == 0, done.output
    assert "outside" not in done.output  # the very series it has learnt from
    assert f"haar, step {load_weights(out / 'weights.safetensors')[1].training['best_step']} " in done.output
    volume = mrcfile.read(rec)
    assert volume.shape == truth.shape
    assert cc(volume, truth) > 0.8  # as its start has, too: that it learns is said by its losses above


def test_infer_with_shipped_weights(inr: Inr, series: Path) -> None:
    out = series / "out.mrc"
    more = ("--thickness", 38, "--orientation", "xyz", "--halves")
    done = inr("infer", series / "ts.mrc", series / "ts_truth.json", "-o", out, *more)
    assert done.exit_code == 0, done.output
    assert "came with the package" in done.output
    truth, _ = read_volume(series / "ts_truth.mrc")
    volume, odd, even = (mrcfile.read(series / f"out{half}.mrc") for half in ("", "_odd", "_even"))
    assert mrcfile.validate(out) and volume.shape == truth.shape
    fbp = inr("recon", series / "ts.mrc", series / "ts_truth.json", "-o", series / "fbp.mrc", *more[:4])
    assert fbp.exit_code == 0
    assert cc(volume, truth) > best_isotropic_filter_cc(mrcfile.read(series / "fbp.mrc"), truth)
    assert 0.8 < cc(odd, even) < 0.9999
    record = json.loads((series / "out.json").read_text())
    assert record["program"] == "inr-infer" and len(record["all"]["condition"]) == len(CONDITIONS)
    assert record["weights"]["training"]["steps"] > 0
    assert_refused(inr("infer", series / "ts.mrc", series / "ts_truth.json", "-o", out), "out.mrc", "exists")


def test_infer_says_what_it_was_not_trained_for(inr: Inr, series: Path) -> None:
    more = ("--thickness", 60, "--pixel-size", 1.7, "--overwrite")
    done = inr("infer", series / "ts.mrc", series / "ts_truth.json", "-o", series / "o.mrc", *more)
    assert done.exit_code == 0, done.output
    assert "outside the weights' training range: 1.7 Å/voxel" in done.output
    assert "voxels thick" in done.output


def test_infer_refuses(inr: Inr, series: Path) -> None:
    given = ("infer", series / "ts.mrc", series / "ts_truth.json", "-o", series / "o.mrc")
    assert_refused(inr(*given, "--weights", series / "ts.mrc"), "card")
    assert_refused(inr(*given, "--device", "abacus"), "--device abacus")
    assert_refused(inr(*given, "--voltage", 200), "--voltage", "--ctf")
    assert not (series / "o.mrc").exists() and not (series / "o.json").exists()


def test_train_refuses(inr: Inr, series: Path) -> None:
    out = ("train", "-o", series / "t")
    assert_refused(inr(*out), "--simulate", "--pairs")
    assert_refused(inr(*out, "--simulate", "--orientation", "xyz"), "--orientation", "--pairs")
    assert_refused(inr(*out, "--pairs", "some.star", "--held-out", 3), "--held-out", "--simulate")
    assert_refused(inr(*out, "--simulate", "--start", "shipped", "--width", 64), "--width", "--start")
    assert_refused(inr(*out, "--pairs", listed(series, "nothing.mrc")), "nothing.mrc", "does not exist")
    write_volume(series / "wrong.mrc", np.zeros((20, 50, 96), dtype=np.float32), 10.0)
    assert_refused(inr(*out, "--pairs", listed(series, "wrong.mrc"), "--orientation", "xyz"), "wrong.mrc", "96 x 50")
    random = np.random.default_rng(0).standard_normal((30, 96, 96)).astype(np.float32)
    write_volume(series / "noise.mrc", random, 10.0)
    assert_refused(
        inr(*out, "--pairs", listed(series, "noise.mrc"), "--orientation", "xyz"), "noise.mrc", "nothing like"
    )
    star = series / "one.star"
    star.write_text("data_\nloop_\n_inrStack #1\nts.mrc\n")
    assert_refused(inr(*out, "--pairs", star), "inrReference")
    assert_refused(inr(*out, "--simulate", "--densities", series / "none"), "none", "no such folder")
    assert not (series / "t" / "weights.json").exists()


@pytest.mark.slow
def test_train_on_simulated_series(inr: Inr, tmp_path: Path) -> None:
    done = inr("train", "-o", tmp_path / "t", "--simulate", "--steps", 40, "--batch", 256, "--held-out", 2)
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "t" / "weights.json").read_text())
    assert card["data"]["molecules"] == "procedural alone" and card["training"]["pairs_seen"] >= 8


def test_dead_processes_are_told_of_in_a_sentence(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=os._exit, args=(1,))
    process.start()
    process.join()
    with pytest.raises(InputError, match="processes that simulate into it have ended"):
        wait_for(SampleCache(tmp_path / "cache", 10), 8, [process])
