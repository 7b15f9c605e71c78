"""Specimens that move under the beam: where their points are seen, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from inrtomo.commands.compare import main as compare
from inrtomo.commands.simulate import main as simulate_command
from inrtomo.simulate import Simulation, SimulationSettings, simulate, write_simulation
from inrtomo.simulate.specimen_motion import SpecimenMotion, make_motion
from inrtomo.simulate.true_map import distorted, undistorted
from inrtomo.truth import TruePoints

THICKNESS = 40
VIEW = (96, 96)
STILL = SimulationSettings(
    size=VIEW, thickness_px=THICKNESS, tilt_step_deg=20, warp_max_px=0, shift_px=3, snr_db=None,
    beads=1, bead_diameter_A=60, vesicles=0, crowding=0, dose_per_tilt=20, seed=4,
)  # fmt: skip
TILTS = np.arange(-60.0, 61.0, 20.0)
# electrons so far 0, 20, ... 120; the motion slows down by 1/e in 40
PROGRESS = (1 - np.exp(-np.arange(7) / 2)) / (1 - np.exp(-3))
KINDS: dict[str, dict[str, float]] = {
    "random": {"motion_px": 1.0},
    "doming": {"doming_px": 4.0},
    "thinning": {"thinning_px": 3.0},
    "sliding": {"sliding_px": 3.0},
    "creep": {"creep_px": 3.0},
}


def motion(tilts: np.ndarray = TILTS, seed: int = 4, **kinds: float) -> SpecimenMotion:
    settings = replace(STILL, seed=seed, **kinds)  # type: ignore[arg-type]
    used = np.ones(len(tilts), dtype=bool)
    made = make_motion(settings, np.arange(len(tilts)), tilts, used, VIEW, np.random.default_rng(seed))
    assert made is not None
    return made


def from_first_to_last(made: SpecimenMotion, points: np.ndarray) -> np.ndarray:
    """Displacement between the ends of the series: free of what is common to all tilts."""
    return made.displacement(len(TILTS) - 1, points) - made.displacement(0, points)


def seen(displacement: np.ndarray, tilts: np.ndarray) -> np.ndarray:
    """What images see of displacements ``(n_tilts, points, 3)``."""
    t = np.deg2rad(tilts)[:, None]
    return np.stack([displacement[..., 0] * np.cos(t) + displacement[..., 2] * np.sin(t), displacement[..., 1]], -1)


SOME = np.random.default_rng(0).uniform(-1, 1, (40, 3)) * np.array([45, 45, 18])


def test_thinning_is_in_proportion_to_depth_and_goes_with_the_dose() -> None:
    made = motion(thinning_px=3.0)
    for m in range(len(TILTS)):
        moved = made.displacement(m, SOME) - made.displacement(0, SOME)
        assert np.allclose(moved[:, 2], -3.0 * SOME[:, 2] / (THICKNESS / 2) * PROGRESS[m], atol=1e-9)
        assert np.abs(moved[:, :2]).max() < 1e-9


def test_faces_slide_in_opposite_senses_and_creep_takes_all_along() -> None:
    up, down, middle = (np.array([[7.0, -5.0, z]]) for z in (THICKNESS / 2, -THICKNESS / 2, 0.0))
    made = motion(sliding_px=3.0)
    above, below = from_first_to_last(made, up)[0], from_first_to_last(made, down)[0]
    assert np.linalg.norm(above[:2]) == pytest.approx(3.0) and above[2] == pytest.approx(0, abs=1e-9)
    assert np.allclose(above, -below, atol=1e-9) and np.allclose(from_first_to_last(made, middle), 0, atol=1e-9)
    together = from_first_to_last(motion(creep_px=3.0), SOME)
    assert np.allclose(together, together[0], atol=1e-9)
    assert np.linalg.norm(together[0, :2]) == pytest.approx(3.0) and together[0, 2] == pytest.approx(0, abs=1e-9)


def test_a_dome_is_as_high_as_told_and_its_sheet_bends_like_a_plate() -> None:
    made = motion(doming_px=4.0)
    grid = np.stack(np.meshgrid(np.arange(-48.0, 49), np.arange(-48.0, 49), [0.0]), axis=-1).reshape(-1, 3)
    rise = from_first_to_last(made, grid)[:, 2]
    top = grid[rise.argmax()]
    far = top + [[96.0, 0, 0], [0, 96.0, 0], [96.0, 96.0, 0]]
    fall = rise.max() - from_first_to_last(made, far)[:, 2]
    assert np.allclose(fall, [4.0, 4.0, 8.0], atol=0.02)  # a view away along x, along y, along both
    assert np.abs(top[:2]).max() < 0.26 * 96
    # what stands on the middle plane stays perpendicular to it: d(D_x)/dz = -d(D_z)/dx
    h = 0.01
    dx, dy, dz = (
        (from_first_to_last(made, SOME + h * e) - from_first_to_last(made, SOME - h * e)) / (2 * h) for e in np.eye(3)
    )
    assert np.allclose(dz[:, 0], -dx[:, 2], atol=1e-6) and np.allclose(dz[:, 1], -dy[:, 2], atol=1e-6)
    assert np.abs(dz[:, :2]).max() > 0.01


def test_random_motion_has_the_stated_size_and_correlation_length() -> None:
    tilts = np.arange(-60.0, 61.0, 5.0)
    length, along, across = 40.0, [], []
    step = np.array([length, 0, 0])
    for seed in range(40):
        made = motion(tilts, seed, motion_px=0.7, motion_length_px=length)
        grid = np.stack(np.meshgrid(*[np.linspace(-48, 48, 9)] * 2, [-20.0, 0, 20.0]), axis=-1).reshape(-1, 3)
        images = seen(np.stack([made.displacement(m, grid) for m in range(len(tilts))]), tilts)
        assert np.sqrt((images**2).mean()) == pytest.approx(0.7, rel=0.01)
        middle = seen(np.stack([made.displacement(m, np.array([0 * step, step])) for m in range(len(tilts))]), tilts)
        along.append((middle[:, 0] * middle[:, 1]).mean())
        across.append((middle**2).mean())
    # a Gaussian correlation is exp(-1/2) at its length
    assert np.mean(along) / np.mean(across) == pytest.approx(np.exp(-0.5), abs=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_static_part_is_in_the_motion(kind: str) -> None:
    """At no point does the mean motion look like the specimen being elsewhere; so there is no slice gauge in it."""
    tilts = np.arange(-60.0, 61.0, 5.0)
    made = motion(tilts, 4, **KINDS[kind])
    images = seen(np.stack([made.displacement(m, SOME) for m in range(len(tilts))]), tilts)
    assert np.abs(images).max() > 0.3
    cosine, sine = np.cos(np.deg2rad(tilts)), np.sin(np.deg2rad(tilts))
    for part in (cosine @ images[..., 0], sine @ images[..., 0], images[..., 1].sum(axis=0)):
        assert np.abs(part).max() < 1e-8
    # a deformation by y alone: b(y) cos t + c(y) sin t + r(y) du/dt + p(y) u, and a(y) along y
    x, y, z = SOME.T
    u, slope = np.outer(cosine, x) + np.outer(sine, z), np.outer(cosine, z) - np.outer(sine, x)
    for power in range(5):
        q = (y / 48) ** power
        for term in (np.outer(cosine, q), np.outer(sine, q), slope * q, u * q):
            assert abs((term * images[..., 0]).sum()) < 1e-6
        assert abs((images[..., 1] * q).sum()) < 1e-6


def test_what_is_where_undoes_what_goes_where() -> None:
    made = motion(motion_px=1.0, doming_px=4.0, thinning_px=2.0)
    for m in (0, 6):
        assert np.abs(made.moved(m, made.unmoved(m, SOME, np.full(3, 99.0))) - SOME).max() < 2e-3


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_a_bead_is_seen_where_the_map_says(kind: str) -> None:
    kinds = {k: v for one in KINDS.values() for k, v in one.items()} if kind == "all" else KINDS[kind]
    result = simulate(replace(STILL, axis_deg=86.3 if kind == "all" else 0.0, **kinds))  # type: ignore[arg-type]
    check_bead(result)


def check_bead(result: Simulation, within_px: float = 0.03) -> None:
    bead = np.array(result.meta["beads_px"][0])
    looked = 0
    for m, image in enumerate(result.signal):
        place = result.true_map.specimen_to_raw(m, bead)
        if (np.abs(place) < 48 - 8).all():
            found = np.array(ndimage.center_of_mass(image))[::-1] - 47.5
            assert np.abs(found - place).max() < within_px
            looked += 1
    assert looked >= 5


def test_a_bead_in_a_thinning_specimen_by_hand() -> None:
    """The image of a bead goes with its height, less what a bead at another height would do."""
    result = simulate(replace(STILL, thinning_px=4.0, shift_px=0, rotation_jitter_deg=0))
    x, y, z = result.meta["beads_px"][0]
    assert abs(z) > 3
    t = np.deg2rad(TILTS)
    fall = -4.0 * z / (THICKNESS / 2) * PROGRESS * np.sin(t)
    design = np.stack([np.cos(t), np.sin(t)], axis=1)
    fall -= design @ np.linalg.lstsq(design, fall, rcond=None)[0]
    for m in range(len(TILTS)):
        image = result.signal[m]
        expected = np.array([x * np.cos(t[m]) + z * np.sin(t[m]) + fall[m], y])
        if (np.abs(expected) < 40).all():
            found = np.array(ndimage.center_of_mass(image))[::-1] - 47.5
            assert np.abs(found - expected).max() < 0.03
    assert np.abs(fall).max() > 0.2


def test_radial_distortion_moves_the_corners_and_can_be_undone() -> None:
    corner = np.array([48.0, -36.0])
    moved = distorted(corner, 2.0, (96, 72))
    assert np.linalg.norm(moved - corner) == pytest.approx(2.0) and np.linalg.det([moved, corner]) == pytest.approx(0)
    assert np.linalg.norm(distorted(corner / 2, 2.0, (96, 72)) - corner / 2) == pytest.approx(2.0 / 8)
    points = SOME[:, :2]
    for radial_px in (2.0, -2.0):
        assert np.abs(undistorted(distorted(points, radial_px, (96, 72)), radial_px, (96, 72)) - points).max() < 1e-9
    check_bead(simulate(replace(STILL, radial_px=3.0)))
    check_bead(simulate(replace(STILL, radial_px=-3.0)))


def test_images_have_their_own_magnification_and_shear() -> None:
    result = simulate(replace(STILL, tilt_step_deg=5, distortion_percent=2.0, crowding=0, axis_deg=86.3))
    # raw from aligned: magnification and shear after the rotation
    own = np.linalg.inv(result.alignment.linear)
    angle = np.deg2rad(result.alignment.rotation_deg)
    magnified = np.sqrt(np.linalg.det(own))
    assert 0.01 < np.abs(magnified - 1).max() <= 0.0201 and np.ptp(magnified) > 0.02
    # singular values differ by the shear
    difference = np.diff(-np.linalg.svd(own, compute_uv=False), axis=1)
    assert 0.01 < difference.max() <= 0.0206 and np.abs(np.rad2deg(angle) - 86.3).max() < 0.9
    check_bead(result)


def test_angles_are_wrong_as_told_and_the_truth_knows(tmp_path: Path) -> None:
    settings = replace(STILL, tilt_step_deg=2, tilt_scale=1.02, tilt_offset_deg=0.5, size=(48, 48))
    plain = simulate(settings)
    assert np.allclose(plain.alignment.tilt_deg, 1.02 * np.arange(-60, 61, 2) + 0.5)
    noisy = simulate(replace(settings, tilt_noise_deg=1.0))
    assert (noisy.alignment.tilt_deg - plain.alignment.tilt_deg).std() == pytest.approx(1.0, rel=0.25)
    write_simulation(noisy, tmp_path, "s")
    assert np.allclose(np.loadtxt(tmp_path / "s.rawtlt"), np.arange(-60, 61, 2))
    truth = json.loads((tmp_path / "s_truth.json").read_text())
    assert np.allclose(truth["tilt_deg"], noisy.alignment.tilt_deg)


def test_the_nearest_alignment_takes_depth_into_its_angles() -> None:
    base = replace(STILL, tilt_step_deg=5, dose_per_tilt=5, beads=0, size=(64, 64))
    for kinds, most in (({"creep_px": 3.0}, 1e-3), ({"thinning_px": 3.0, "sliding_px": 3.0}, 0.02)):
        result = simulate(replace(base, **kinds))  # type: ignore[arg-type]
        stage = result.true_map.recorded
        mine, plain = [], []
        for m in range(stage.n_tilts):
            raw = result.points.raw[m]
            inside = (np.abs(raw) < 32).all(axis=1)
            points = result.points.points[inside]
            mine.append(result.alignment.specimen_to_raw(m, points) - raw[inside])
            off = stage.specimen_to_raw(m, points) - raw[inside]
            plain.append(off - off.mean(axis=0))
        assert np.sqrt((np.concatenate(mine) ** 2).mean()) < most
        if "thinning_px" in kinds:  # beyond what shifts could do
            assert np.sqrt((np.concatenate(plain) ** 2).mean()) > 10 * most


def test_true_points_survive_the_disk_and_are_the_exact_map(tmp_path: Path) -> None:
    result = simulate(replace(STILL, motion_px=1.0, thinning_px=1.0))
    write_simulation(result, tmp_path, "s")
    known = TruePoints.from_dict(json.loads((tmp_path / "s_truth.json").read_text()))
    assert known is not None and known.thickness_px == THICKNESS and known.raw.shape == (7, 605, 2)
    assert np.ptp(known.points, axis=0) == pytest.approx([96 * 10 / 11, 96 * 10 / 11, 40 * 4 / 5], rel=1e-4)
    for m in range(7):
        assert np.abs(result.true_map.specimen_to_raw(m, known.points) - known.raw[m]).max() < 2e-5
    assert TruePoints.from_dict({"thickness_px": 3}) is None


def run_compare(*words: object) -> str:
    result = CliRunner().invoke(compare, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_truth_agrees_with_itself_where_nothing_moves(tmp_path: Path) -> None:
    settings = replace(STILL, distortion_percent=1.0, rotation_jitter_deg=5, slab_tilt_deg=(8.0, -5.0))
    write_simulation(simulate(settings), tmp_path, "s")
    truth = tmp_path / "s_truth.json"
    said = run_compare(truth, truth, "-o", tmp_path / "c")
    values = json.loads((tmp_path / "c.json").read_text())
    assert values["rms_px"] < 1e-5 and values["thickness_ratio"] == 1
    # the truth is not levelled: its slab leans as told
    assert values["level_about_y_deg"] == pytest.approx(8.0, abs=1e-6)
    assert values["level_about_x_deg"] == pytest.approx(-5.0, abs=1e-6)
    assert "605 in 40 nm" in said and "+8.00 degrees about y and -5.00 about x" in said


def test_where_the_specimen_moves_the_alignment_is_scored_by_its_points(tmp_path: Path) -> None:
    """The nearest alignment is not the whole truth; told a thickness, inr-compare takes it for that."""
    write_simulation(simulate(replace(STILL, motion_px=2.0, motion_length_px=40)), tmp_path, "s")
    truth = tmp_path / "s_truth.json"
    run_compare(truth, truth, "-o", tmp_path / "points")
    run_compare(truth, truth, "--thickness", 40, "-o", tmp_path / "slab")
    by_points, by_slab = (json.loads((tmp_path / f"{name}.json").read_text())["rms_px"] for name in ("points", "slab"))
    assert by_slab < 1e-4 and 0.1 < by_points < 2.0


def test_the_specimen_moves_where_its_motion_is_asked_for(tmp_path: Path) -> None:
    tiny = "--size 32 32 --thickness 10 --tilt-step 30 --beads 0 --vesicles 0 --base t".split()
    for name, words in (
        ("usual", []), ("still", ["--warp", "0"]), ("warp", ["--warp", "1"]), ("own", ["--motion", "2"]),
    ):  # fmt: skip
        result = CliRunner().invoke(simulate_command, ["-o", str(tmp_path / name), *tiny, *words])
        assert result.exit_code == 0, result.output
    made = {
        name: json.loads((tmp_path / name / "t_truth.json").read_text()) for name in ("usual", "still", "warp", "own")
    }
    sizes = {name: [truth["settings"][k] for k in ("motion_px", "doming_px", "thinning_px", "warp_max_px")]
             for name, truth in made.items()}  # fmt: skip
    assert sizes == {"usual": [0, 0, 0, 1], "still": [0, 0, 0, 0], "warp": [0, 0, 0, 1], "own": [2, 0, 0, 0]}
    assert made["still"]["warp"] is None and len(made["warp"]["warp"]["x"]) == 5
