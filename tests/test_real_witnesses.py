"""The witnesses on real series, on small made-up ones whose answer is known in closed form."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation, centred_coordinates
from inrtomo.io.mrc import write_volume
from integration.benchmarks.real import run
from integration.benchmarks.real.averages import average, half_averages_fsc, template_fsc
from integration.benchmarks.real.bead_fits import FREEDOMS, bead_planes, fit_points, projected, with_freedom
from integration.benchmarks.real.bead_tracks import BeadTracks, disc, find_beads
from integration.benchmarks.real.bead_widths import widths
from integration.benchmarks.real.frame import levelled_by_beads, placed_like
from integration.benchmarks.real.matching import (
    Template,
    box_at,
    correlation_at,
    match,
    orientations,
    peaks,
    read_template,
)
from integration.benchmarks.real.particles import Match, moved, places_in, z_score

Array = NDArray[np.float64]

TILTS = np.arange(-60.0, 61.0, 6.0)
SIZE = (200, 180)
AXIS = -7.0


def an_alignment(rng: np.random.Generator, tilts: Array = TILTS) -> Alignment:
    """Random shifts about a common tilt axis."""
    return replace(Alignment.identity(tilts, SIZE, AXIS, 10.0), shift_px=rng.uniform(-6, 6, (len(tilts), 2)))


def beads_on_two_faces(rng: np.random.Generator, n: int = 16, height: float = 40.0) -> Array:
    """Points ``(n, 3)``: a half on each plane, well apart in the plane."""
    cells = rng.permutation(25)[:n]
    x, y = (cells % 5 - 2) * 24.0 + rng.uniform(-6, 6, n), (cells // 5 - 2) * 26.0 + rng.uniform(-6, 6, n)
    return np.stack([x, y, np.where(np.arange(n) % 2 == 0, height, -height) / 2], axis=1)


def noisy_tracks(alignment: Alignment, points: Array, noise_px: float, rng: np.random.Generator) -> BeadTracks:
    seen = projected(alignment, points)
    return BeadTracks(seen + noise_px * rng.standard_normal(seen.shape), np.full(len(points), 4.0))


def test_beads_are_followed_without_an_alignment_and_found_to_a_tenth_of_a_pixel() -> None:
    rng = np.random.default_rng(4)
    tilts = TILTS[4:17]
    alignment, points = an_alignment(rng, tilts=tilts), beads_on_two_faces(rng, 8)
    truth = projected(alignment, points)
    x, y = centred_coordinates(SIZE[0])[None], centred_coordinates(SIZE[1])[:, None]
    images = rng.standard_normal((len(tilts), SIZE[1], SIZE[0])).astype(np.float32)
    for m, image in enumerate(images):
        for bead_x, bead_y in truth[:, m]:
            image += 6 * disc(x, y, bead_x, bead_y, 4.0).astype(np.float32)
    found = find_beads(images, tilts, AXIS + 0.5)
    assert len(found.raw_px) == len(points)
    order = np.linalg.norm(found.raw_px[:, None, 6] - truth[None, :, 6], axis=-1).argmin(axis=1)
    assert sorted(order) == list(range(len(points)))
    off = np.linalg.norm(found.raw_px - truth[order], axis=-1)
    assert np.isfinite(off).mean() > 0.97  # where two cross in projection neither is measured
    assert np.sqrt(np.nanmean(off**2)) < 0.25 and np.nanmedian(off) < 0.12
    np.testing.assert_allclose(found.radius_px, 4.0, atol=0.2)


def test_points_and_noise_come_back() -> None:
    rng = np.random.default_rng(5)
    alignment, points = an_alignment(rng), beads_on_two_faces(rng)
    fit = fit_points(alignment, noisy_tracks(alignment, points, 0.3, rng))
    assert np.abs(fit.points_px - points).max() < 0.5
    assert fit.corrected_rms_px == pytest.approx(0.3 * np.sqrt(2), rel=0.06)
    n = 2 * len(TILTS)
    assert fit.rms_px == pytest.approx(fit.corrected_rms_px * np.sqrt((n - 3) / n))


def test_smaller_images_do_not_make_an_alignment_better() -> None:
    rng = np.random.default_rng(6)
    alignment, points = an_alignment(rng), beads_on_two_faces(rng)
    tracks = noisy_tracks(alignment, points, 0.5, rng)
    small = replace(alignment, linear=alignment.linear / 2, shift_px=alignment.shift_px / 2)
    assert fit_points(small, tracks).rms_px == pytest.approx(fit_points(alignment, tracks).rms_px, rel=1e-6)


@pytest.mark.parametrize("planted", ["shift", "affine", "affine + depth"])
def test_freedom_of_a_kind_explains_errors_of_that_kind(planted: str) -> None:
    rng = np.random.default_rng(7)
    alignment, points = an_alignment(rng), beads_on_two_faces(rng, 20)
    seen = projected(alignment, points)
    for m in range(len(TILTS)):
        if planted == "shift":
            seen[:, m] += rng.normal(0, 2, 2)
        elif planted == "affine":
            seen[:, m] += seen[:, m] @ rng.normal(0, 0.02, (2, 2))
        else:
            seen[:, m] += points[:, 2:] * rng.normal(0, 0.05, 2)
    noisy = BeadTracks(seen + 0.2 * rng.standard_normal(seen.shape), np.full(20, 4.0))
    fit = fit_points(alignment, noisy)
    enough = FREEDOMS.index(planted)
    rms = [with_freedom(alignment, noisy, fit, freedom).corrected_rms_px for freedom in FREEDOMS]
    assert rms[0] == pytest.approx(fit.corrected_rms_px)
    assert rms[enough] == pytest.approx(0.2 * np.sqrt(2), rel=0.08)
    assert rms[enough - 1] > 1.5 * rms[enough]


def test_planes_of_beads_give_slope_and_separation() -> None:
    rng = np.random.default_rng(8)
    points = beads_on_two_faces(rng, height=40.0)
    points[:, 2] += 0.1 * points[:, 0] - 0.05 * points[:, 1] + 7 + rng.normal(0, 0.3, len(points))
    planes = bead_planes(points[rng.permutation(len(points))])
    assert planes is not None
    np.testing.assert_allclose(planes.slopes_deg, np.rad2deg(np.arctan([0.1, -0.05])), atol=0.3)
    assert planes.separation_px == pytest.approx(40 / np.sqrt(1 + 0.1**2 + 0.05**2), abs=0.5)
    assert planes.height_px == pytest.approx(7, abs=0.3)
    assert bead_planes(points[:7]) is None


def test_alignments_that_differ_by_a_frame_become_one_and_level() -> None:
    rng = np.random.default_rng(9)
    flat = an_alignment(rng)
    points = beads_on_two_faces(rng)
    points[:, 2] += 0.08 * points[:, 0] + 0.04 * points[:, 1] - 9
    tracks = noisy_tracks(flat, points, 0.0, rng)
    level = levelled_by_beads(flat, tracks)
    planes = bead_planes(fit_points(level, tracks).points_px)
    assert planes is not None and np.abs(planes.slopes_deg).max() < 0.01 and abs(planes.height_px) < 0.05
    other = replace(flat.translated((5.0, -8.0, 12.0)), tilt_deg=flat.tilt_deg + 3.0)
    placed = placed_like(fit_points(level, tracks).points_px, other, tracks)
    assert np.abs(placed.points_px - fit_points(level, tracks).points_px).max() < 0.3
    assert fit_points(placed.alignment, tracks).rms_px == pytest.approx(0, abs=1e-3)


def test_width_of_a_ball_is_its_own() -> None:
    z, y, x = np.meshgrid(*[centred_coordinates(29)] * 3, indexing="ij")
    ball = np.exp(-(x**2 / 2**2 + y**2 / 3**2 + z**2 / 4**2) / 2).astype(np.float32)
    half, rim = widths(ball)
    np.testing.assert_allclose(half, np.array([2, 3, 4]) * 2 * np.sqrt(2 * np.log(2)), rtol=0.02)
    falls = np.sqrt(2 * np.log(4)) - np.sqrt(2 * np.log(4 / 3))
    np.testing.assert_allclose(rim, np.array([2, 3, 4]) * falls, rtol=0.06)


@pytest.fixture
def template(tmp_path: Path) -> Template:
    """Three blobs at the corners of a scalene triangle, so that no turn but by nothing leaves it as it is."""
    z, y, x = np.meshgrid(*[centred_coordinates(32)] * 3, indexing="ij")
    blobs = ((0, 0, 0, 1.0), (7, 2, 0, 0.8), (0, -6, 5, 0.6), (-4, 4, -6, 0.5))
    density = sum(w * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 18) for a, b, c, w in blobs)
    path = write_volume(tmp_path / "molecule.mrc", np.asarray(density, np.float32), 10.0)
    return read_template(path, 30.0, 40.0, TILTS)


def planted(template: Template, shape: tuple[int, int, int], places: Array, turns: Array) -> NDArray[np.float32]:
    """What an ideal reconstruction of these tilts has of copies of the template at whole voxels."""
    volume = np.zeros(shape, dtype=np.float32)
    half = template.size // 2
    for place, turn in zip(places.astype(int), turns, strict=True):
        where = tuple(slice(i - half, i + half + 1) for i in place)
        volume[where] += template.measured(template.turned(turn))
    return volume


def apart(template: Template, n: int) -> tuple[Array, tuple[int, int, int]]:
    """Places in a row of rows, whose boxes do not touch; and the volume that holds them."""
    step = template.size + 2
    side = int(np.ceil(n ** (1 / 3)))
    cells = np.stack(np.unravel_index(np.arange(n), (side,) * 3), axis=1)
    return np.asarray(cells * step + template.size // 2 + 2.0, np.float64), (side * step + 4,) * 3


def test_a_template_is_found_where_and_as_it_was_planted(template: Template) -> None:
    turns = orientations(40)
    places, shape = apart(template, 5)
    given = np.array([3, 17, 22, 30, 39])
    volume = planted(template, shape, places, turns[given])
    volume += 0.02 * volume.max() * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    scores, which = match(volume, template, turns)
    found = peaks(scores, template.radius, 5)
    order = np.array([int(np.abs(places - place).sum(axis=1).argmin()) for place in found])
    np.testing.assert_array_equal(found, places[order].astype(int))
    np.testing.assert_array_equal(which[tuple(found.T)], given[order])
    assert scores[tuple(found.T)].min() > 0.9
    at = correlation_at(volume, template, found.astype(float), turns[given[order]])
    wrong = correlation_at(volume, template, found.astype(float), turns[(given[order] + 11) % 40])
    np.testing.assert_allclose(at, scores[tuple(found.T)], atol=0.03)
    assert at.min() > wrong.max() + 0.1


def test_a_box_in_the_molecules_frame_looks_the_same_however_it_was_turned(template: Template) -> None:
    turn = orientations(7)[4]
    half = template.size // 2
    volume = np.zeros((3 * template.size,) * 3, dtype=np.float32)
    middle = slice(template.size, 2 * template.size)
    volume[middle, middle, middle] = template.turned(turn)
    box = box_at(volume, np.full(3, template.size + half), template.size, turn)
    expected = template.turned(np.eye(3))
    assert np.corrcoef(box[template.sphere], expected[template.sphere])[0, 1] > 0.99


def test_halves_of_equal_particles_agree_and_of_noise_do_not(template: Template) -> None:
    turns = orientations(27)
    places, shape = apart(template, 27)
    volume = planted(template, shape, places, turns)
    assert half_averages_fsc(volume, template, places, turns).correlation[:-2].min() > 0.9
    assert template_fsc(volume, template, places, turns).correlation[:-2].min() > 0.9
    mean = average(volume, template, places, turns)
    inside = template.sphere
    assert np.corrcoef(mean[inside], template.turned(np.eye(3))[inside])[0, 1] > 0.95  # the wedges fill each other's
    noise = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    curve = half_averages_fsc(noise, template, places, turns)
    # a shell with n independent components: its correlation has a standard deviation of some 1 / sqrt(n), and a mask
    # of about half the box's width leaves an eighth of them independent
    assert (np.abs(curve.correlation) < 4 * np.sqrt(8 / curve.count)).all()
    assert abs(np.average(curve.correlation, weights=curve.count)) < 0.15


def test_random_places_keep_away_and_noise_scores_nothing(template: Template) -> None:
    rng = np.random.default_rng(3)
    shape = (60, 60, 60)
    scores = rng.uniform(0, 0.2, shape).astype(np.float32)
    where = [(20, 20, 20), (20, 40, 40), (40, 20, 35)]
    for place in where:
        scores[place] = 0.9
    scores[:8], scores[-8:] = -1, -1
    matched = Match(scores, np.zeros(shape, dtype=np.uint16))
    places, random, around = places_in(matched, template)
    assert {tuple(p) for p in places[:3]} == set(where)
    distance = np.linalg.norm(random[:, None] - places[None], axis=-1)
    assert distance.min() >= 1.5 * template.radius
    assert (scores[tuple(random.T)] > -1).all() and len(around) == len(random)
    noise = rng.standard_normal(10000)
    assert abs(z_score(noise[:5000], noise[5000:])) < 0.1
    assert z_score(noise[:5000] + 3, noise[5000:]) == pytest.approx(3, abs=0.15)


def test_places_follow_a_motion_of_the_specimen() -> None:
    quarter = np.eye(3)
    quarter[:2, :2] = axis_rotation(-90)  # x -> y
    there = moved(np.array([[5, 10, 12]]), quarter, np.array([1.0, 2.0, 3.0]), (11, 21, 21))
    np.testing.assert_allclose(there, [[5 + 3, 10 + 2 + 2, 10 + 1]])


def test_without_the_data_it_says_so(tmp_path: Path) -> None:
    words = [str(tmp_path), "--stack", str(tmp_path / "ts.mrc"), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(run.main, words)
    assert result.exit_code == 0 and "skipped" in result.output and "ts.mrc is not here" in result.output
    assert not (tmp_path / "work").exists()
