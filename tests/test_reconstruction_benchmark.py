"""The reconstruction benchmark: its specimens by closed forms, its scores, its records and tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from inrtomo.alignment import Alignment
from inrtomo.metrics.likeness import on_grey_scale
from inrtomo.reconstruct import field
from inrtomo.simulate import SimulationSettings
from integration.benchmarks.alignment import run as alignment_run
from integration.benchmarks.alignment import series
from integration.benchmarks.reconstruction import run, shells, specimen, speed, spheres
from integration.benchmarks.reconstruction.command import write_alignment
from integration.benchmarks.reconstruction.ellipsoids import Ellipsoids, apart, ellipsoid_shells, hollow_spheres
from integration.benchmarks.reconstruction.jobs import Job, do, records, tables
from integration.benchmarks.reconstruction.methods import FIELDS, ONE_NODE, BenchmarkFit, Fitted, Imaged, fbp
from integration.benchmarks.reconstruction.real import side_by_side
from integration.benchmarks.reconstruction.scores import image_scores, up_to_crossing, volume_scores

TILTS = np.array([-60.0, -13.0, 0.0, 41.0])
SHAPE = (24, 28, 32)  # z, y, x


def solid(centre: tuple[float, float, float], semi: tuple[float, float, float], turn: Rotation) -> Ellipsoids:
    directions = turn.as_matrix().T
    return Ellipsoids(np.array([centre]), (directions / np.array(semi)[:, None])[None], np.array([0.7]))


def test_an_ellipsoid_has_its_mass_on_voxels_and_in_every_image() -> None:
    body = solid((1.3, -2.1, 0.4), (7.0, 5.0, 3.5), Rotation.from_euler("zyx", [20, 50, -30], degrees=True))
    mass = 0.7 * 4 / 3 * np.pi * 7.0 * 5.0 * 3.5
    assert body.volume(SHAPE).sum() == pytest.approx(mass, rel=0.005)
    assert body.images(TILTS, (40, 28)).sum(axis=(1, 2)) == pytest.approx(mass, rel=0.005)


def test_a_sphere_is_seen_where_it_is_with_its_diameter_as_path() -> None:
    x, y, z = 4.0, -3.0, 5.0
    images = solid((x, y, z), (6.0, 6.0, 6.0), Rotation.identity()).images(TILTS, (41, 29))
    rows, cols = np.mgrid[:29, :41] - np.array([14, 20])[:, None, None]
    for tilt, image in zip(np.deg2rad(TILTS), images, strict=True):
        at = x * np.cos(tilt) + z * np.sin(tilt)
        assert (image * cols).sum() / image.sum() == pytest.approx(at, abs=0.02)
        assert (image * rows).sum() / image.sum() == pytest.approx(y, abs=0.02)
        d2 = (cols - at) ** 2 + (rows - y) ** 2
        chord = 0.7 * 2 * np.sqrt(np.maximum(36 - d2, 0))
        assert np.abs(image - chord)[d2 < 20].max() < 0.07  # a pixel's mean against its middle


def test_a_turned_ellipsoid_projects_as_its_voxels_do() -> None:
    body = solid((0.0, 1.0, -1.0), (9.0, 5.0, 4.0), Rotation.from_euler("zyx", [35, 15, 60], degrees=True))
    straight = body.images(np.array([0.0]), (32, 28))[0]
    assert np.abs(straight - body.volume(SHAPE).sum(axis=0)).max() < 0.5  # voxels sample the surface at thirds
    assert np.corrcoef(straight.ravel(), body.volume(SHAPE).sum(axis=0).ravel())[0, 1] > 0.9995


def test_shells_are_hollow_and_do_not_touch() -> None:
    one = Ellipsoids.shells(
        np.zeros((1, 3)), np.full((1, 3), 9.0), np.array([2.0]), np.array([0.5]), Rotation.identity(1)
    )
    volume = one.volume((21, 21, 21))
    assert volume.sum() == pytest.approx(0.5 * 4 / 3 * np.pi * (9.0**3 - 7.0**3), rel=0.005)
    assert volume[10, 10, 10] == 0 and volume[10, 10, 18] == 0.5
    assert one.images(np.array([25.0]), (21, 21))[0, 10, 10] == pytest.approx(0.5 * 4, abs=0.01)  # two walls
    centre, radius = apart(np.random.default_rng(0), 30, (20, 40, 50), (2.0, 8.0))
    gaps = np.linalg.norm(centre[:, None] - centre, axis=2) - radius[:, None] - radius + 1e9 * np.eye(len(radius))
    assert len(radius) > 5 and gaps.min() > 0
    assert (np.abs(centre) + radius[:, None] <= np.array([25, 20, 10]) + 1e-9).all()
    for body, shape in ((hollow_spheres(1, (16, 40, 40)), (16, 40, 40)), (ellipsoid_shells(1, 32), (32, 32, 32))):
        density = body.volume(shape)
        assert density.min() >= -1e-6 and 0.3 < density.max() <= 1 + 1e-6


def test_noise_of_the_specimens_is_what_the_tables_say() -> None:
    truth, noisy = shells.phantom(20, 0, 0.08)
    clean = ellipsoid_shells(0, 20).images(shells.TILT_DEG, (20, 20))
    assert (noisy.images - clean).std() == pytest.approx(0.08 * 20, rel=0.02)
    assert len(shells.TILT_DEG) == 94 and shells.TILT_DEG[-1] == 69.5 and truth.max() <= 1
    flat = np.full((1, 300, 300), 4.0, dtype=np.float32)
    flat[0, :150] = 1.0
    counted = spheres.counted(flat, 0.3, 0)
    assert counted[0, 150:].std() == pytest.approx(0.3 * 4, rel=0.03)
    assert counted[0, :150].std() == pytest.approx(0.3 * 2, rel=0.03)  # a quarter of the counts
    assert counted.mean() == pytest.approx(2.5, rel=0.01)
    assert spheres.counted(flat, 0.0, 0) is flat


def test_scores_do_not_depend_on_the_grey_scale_and_see_noise() -> None:
    truth = hollow_spheres(0, (16, 48, 48)).volume((16, 48, 48))
    noisy = truth + 0.1 * np.random.default_rng(0).standard_normal(truth.shape, dtype=np.float32)
    scores = image_scores(noisy, truth)
    other = image_scores(3 * noisy - 7, truth)
    for key in ("psnr", "ssim", "vif", "frc_mean", "cc"):
        assert scores[key] == pytest.approx(other[key], rel=1e-3)
    # the best line takes a little of the noise away with the contrast: sd^2 var / (sd^2 + var) is left
    variance = float(truth.var())
    assert scores["psnr"] == pytest.approx(-10 * np.log10(0.01 * variance / (0.01 + variance)), abs=0.1)
    assert len(scores["psnr_of_y"]) == 48
    assert image_scores(truth, truth)["ssim"] == pytest.approx(1)
    assert np.ptp(on_grey_scale(np.zeros_like(truth), truth)) == 0


def test_shells_of_a_volume_are_held_against_the_bar_up_to_its_crossing() -> None:
    assert up_to_crossing(np.array([0.9, 0.5, 0.2, 0.1, 0.4])) == 3
    assert up_to_crossing(np.array([0.1, 0.9])) == 1 and up_to_crossing(np.array([0.9, 0.8])) == 2
    truth = hollow_spheres(0, (16, 40, 40)).volume((16, 40, 40))
    random = np.random.default_rng(1)
    much, little = (truth + s * random.standard_normal(truth.shape, dtype=np.float32) for s in (0.6, 0.3))
    bar = np.array(volume_scores(much, truth, 1.0, TILTS)["fsc"])
    assert volume_scores(little, truth, 1.0, TILTS, bar)["shells_above"] == 1
    again = volume_scores(much, truth, 1.0, TILTS, bar)
    assert abs(again["worst_shell"]) < 1e-3 and again["shells"] == up_to_crossing(bar)
    assert again["best_filter_cc"] >= again["cc"]


def test_a_tensor_field_has_the_sizes_that_are_asked_for() -> None:
    series = Imaged(np.zeros((4, 24, 24), dtype=np.float32), Alignment.identity(TILTS, (24, 24)), 8)
    whole, small = (BenchmarkFit(series, Fitted("tensor", plane=p, features=4), 0).field for p in (ONE_NODE, 6))
    depth = [fitted.grid.tree.depth for fitted in (whole, small)]  # type: ignore[attr-defined]
    assert depth[0] == 0 < depth[1]
    assert whole.config["features"] == 4 and BenchmarkFit(series, FIELDS["tensor"], 0).field.config["plane"] == 22


def test_jobs_are_done_once_failures_again_and_tables_hold_medians(tmp_path: Path) -> None:
    results, fails = tmp_path / "results.jsonl", [True]
    said: list[str] = []

    def job(seed: int, value: float) -> Job:
        return Job("j", seed, lambda: [{"table": "t", "row": "r", "a": {"b": value}}])

    def broken() -> list[dict]:
        if fails[0]:
            raise RuntimeError("no such luck")
        return [{"table": "t", "row": "s", "a": {"b": 9.0}}]

    todo = [job(0, 1.0), job(1, 5.0), job(2, 2.0), Job("k", 0, broken)]
    columns = [("value", "a.b", "{:.1f}"), ("unused", "c", "{:.1f}")]
    do("p", todo, results, False, said.append)
    text = tables(records(results, "p"), columns)
    assert "| t | seeds | value |\n" in text and "| r | 3 | 2.0 |" in text and "k, seed 0: no such luck" in text
    with open(results, "a") as file:
        file.write('{"part": "p", "jo')  # stopped while writing
    fails[0] = False
    do("p", todo, results, False, said.append)
    text = tables(records(results, "p"), columns)
    assert len(said) == 5 and "| s | 1 | 9.0 |" in text and "luck" not in text
    assert records(results, "other") == []


def call(work: Path, *options: str) -> str:
    result = CliRunner().invoke(run.main, ["--work", str(work), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_specimens_are_scored_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shells, "NOISE", (0.02, 0.2))
    monkeypatch.setattr(spheres, "POISSON", (1.0,))
    text = call(tmp_path, "--part", "shells,spheres", "--size", "44", "--methods", "FBP")
    assert (
        "shells, 44 x 44 x 44, noise sd 0.02" in text
        and "hollow spheres, 44 x 44 x 11, 60 tilts, Poisson level 1 |" in text
    )
    low, high, clean, few, counted = records(tmp_path / "results.jsonl")
    assert low["psnr"] > high["psnr"] + 1 and low["cc"] > 0.5
    assert clean["psnr"] > counted["psnr"] + 1 and 0 < clean["vif"] < 1 and few["cc"] > 0.5
    assert "| FBP | 1 |" in (tmp_path / "shells.md").read_text()


def test_a_fit_is_watched_and_beats_back_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "STEPS", {2: 12, 1: 6})
    monkeypatch.setattr(specimen, "LEVELS_DB", (-10,))
    monkeypatch.setattr(run, "DENSITIES", tmp_path / "none")
    call(tmp_path, "--part", "steps,snr", "--size", "48", "--methods", "hash")
    *steps, level = records(tmp_path / "results.jsonl")
    assert [r["row"] for r in steps][-1] == "step 18, bin 1" and steps[-1]["cc"] > steps[0]["cc"] + 0.1
    assert level["hash"]["cc"] > level["fbp"]["cc"]
    assert level["lead"] == pytest.approx(level["hash"]["cc"] - level["fbp"]["best_filter_cc"])


def test_series_are_reconstructed_by_the_command_along_our_alignment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = SimulationSettings(size=(48, 40), thickness_px=16, tilt_step_deg=10, snr_db=10, shift_px=3, beads=0)
    monkeypatch.setitem(series.SERIES, "tiny", tiny)
    monkeypatch.setattr(run, "DENSITIES", tmp_path / "none")
    case = alignment_run.simulated_case("tiny", 0, None, tmp_path, 1, ())
    wrong = case.truth.translated((0.0, 0.0, 4.0))  # a rigid motion is no error
    write_alignment(wrong, case.work / "ours" / "tiny_align.json")
    here = ["--series", "tiny", "--aligned", str(tmp_path), "--methods", "FBP"]
    text = call(tmp_path, "--part", "series", *here)
    ours, true = records(tmp_path / "results.jsonl")
    assert ours["row"] == "FBP, ours" and ours["cc"] == pytest.approx(true["cc"], abs=0.02) and true["cc"] > 0.3
    assert true["shells_above"] < 1 and abs(true["worst_shell"]) < 0.05 and true["peak_MB"] > 0
    assert "### " not in text and "| FBP, true alignment | 1 |" in text


def test_methods_are_shown_side_by_side(tmp_path: Path) -> None:
    volume = hollow_spheres(0, (8, 24, 24)).volume((8, 24, 24))
    picture = side_by_side({"FBP": volume, "hash": 100 * volume + 3}, tmp_path / "methods.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_astra_solves_the_same_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("astra")
    monkeypatch.delenv("IMOD_DIR", raising=False)
    monkeypatch.setattr(speed, "ROWS", 20)
    call(tmp_path, "--part", "speed", "--size", "64", "--threads", "1")
    for of_astra, ours in np.array(records(tmp_path / "results.jsonl")).reshape(2, 2):
        assert ours["cc"] == pytest.approx(of_astra["cc"], abs=0.06) and ours["cc"] > 0.5


def test_back_projection_of_a_sphere_is_where_it_was() -> None:
    tilts = np.arange(-60.0, 61.0, 4.0)
    body = solid((5.0, -3.0, 2.0), (4.0, 4.0, 4.0), Rotation.identity())
    volume = np.maximum(fbp(Imaged(body.images(tilts, (40, 32)), Alignment.identity(tilts, (40, 32)), 20)) - 0.35, 0)
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in volume.shape)
    total = volume.sum()
    assert (volume.sum(axis=(0, 1)) @ x) / total == pytest.approx(5.0, abs=0.1)
    assert (volume.sum(axis=(0, 2)) @ y) / total == pytest.approx(-3.0, abs=0.1)
    assert (volume.sum(axis=(1, 2)) @ z) / total == pytest.approx(2.0, abs=0.1)
