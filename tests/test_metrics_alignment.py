"""The error between alignments is free of gauge, and is the error that was put in."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation, specimen_to_aligned
from inrtomo.metrics.alignment import (
    RigidMotion,
    best_linear,
    compare_alignments,
    folded_over_specimen,
    in_frame_of,
    slab_points,
)
from inrtomo.truth import TruePoints

THICKNESS = 60.0
SIZE = (200, 160)


def make(n: int = 31, axis: float = 5.0, warp_px: float = 0.0, seed: int = 0) -> Alignment:
    rng = np.random.default_rng(seed)
    tilt = np.linspace(-60, 60, n)
    x, y = np.linspace(-110, 110, 5), np.linspace(-90, 90, 5)
    return Alignment(
        tilt_deg=tilt,
        linear=np.stack([axis_rotation(axis + r) for r in rng.uniform(-0.3, 0.3, n)]),
        shift_px=rng.uniform(-10, 10, (n, 2)),
        image_size=SIZE,
        pixel_size_A=10.0,
        warp=LocalWarp(x, y, rng.normal(size=(n, 5, 5, 2)) * warp_px) if warp_px else None,
    )


def shifted(alignment: Alignment, by: np.ndarray) -> Alignment:
    """By ``by`` (n, 2) px in the aligned frame; the warp stays put, so only for alignments without one."""
    return replace(alignment, shift_px=alignment.shift_px + by)


def test_equal_alignments_have_no_error() -> None:
    truth = make(warp_px=1.0)
    error = compare_alignments(truth, truth, THICKNESS)
    assert error.rms_px < 1e-9 and error.rms_after_slice_gauge_px < 1e-9
    assert error.per_tilt_px.max() < 1e-9


@pytest.mark.parametrize("warp_px", [0.0, 0.2])
def test_translation_of_the_specimen_is_no_error(warp_px: float) -> None:
    truth = make(warp_px=warp_px)
    moved = truth.translated((3.0, -2.0, 10.0))
    error = compare_alignments(moved, truth, THICKNESS)
    assert np.abs(moved.shift_px - truth.shift_px).max() > 8
    assert error.rms_px < (1e-6 if warp_px == 0 else 0.05)  # a translated warp is sampled anew
    np.testing.assert_allclose(error.motion.translation_px, (3, -2, 10), atol=0.05)


def test_turns_of_the_specimen_are_no_error() -> None:
    truth = make()
    offset = replace(truth, tilt_deg=truth.tilt_deg + 2.5)
    error = compare_alignments(offset, truth, THICKNESS)
    assert error.rms_px < 1e-6
    np.testing.assert_allclose(error.motion.rotation_deg, (0, -2.5, 0), atol=1e-6)
    leaning = replace(truth, x_tilt_deg=np.full(truth.n_tilts, 3.0))
    assert compare_alignments(leaning, truth, THICKNESS).rms_px < 1e-6
    assert compare_alignments(truth, leaning, THICKNESS).rms_px < 1e-6


def test_axis_180_degrees_off_with_negated_tilts_is_the_same_alignment() -> None:
    truth = make()
    other = replace(truth, tilt_deg=-truth.tilt_deg, linear=-truth.linear, shift_px=-truth.shift_px)
    assert compare_alignments(other, truth, THICKNESS).rms_px < 1e-6
    mirrored = replace(truth, linear=-truth.linear, shift_px=-truth.shift_px)
    assert compare_alignments(mirrored, truth, THICKNESS).rms_px > 3


def test_slice_gauge_is_removed_and_only_in_its_own_number() -> None:
    truth = make()
    points_y = np.linspace(-90, 90, 19)
    tilt = np.deg2rad(truth.tilt_deg)[:, None, None]
    u, y = np.meshgrid(np.linspace(-110, 110, 23), points_y)
    q = y / 90
    # a specimen deformed by b(y), c(y), a(y) and p(y), seen in every tilt; the warp is minus the displacement
    du = 2 * q**2 * np.cos(tilt) - 3 * q**3 * np.sin(tilt) + 0.01 * q * u
    dv = 1.5 * q**2 + 0 * tilt
    warp = LocalWarp(u[0], points_y, -np.stack([np.broadcast_to(d, du.shape) for d in (du, dv)], axis=-1))
    error = compare_alignments(replace(truth, warp=warp), truth, THICKNESS)
    assert error.rms_px > 0.5
    assert error.rms_after_slice_gauge_px < 0.03


def deformed(truth: Alignment, du: np.ndarray, dv: np.ndarray, u: np.ndarray, y: np.ndarray) -> Alignment:
    """The specimen's points seen off by ``(du, dv)`` ``(n, ny, nx)`` px; a warp is minus the displacement."""
    return replace(truth, warp=LocalWarp(u, y, -np.stack(np.broadcast_arrays(du, dv), axis=-1)))


@pytest.mark.parametrize("degree", [5, 6, 8])
def test_finer_deformations_along_the_axis_count_as_error(degree: int) -> None:
    """The slice gauge ends at degree 4 in y: Legendre's polynomials beyond it are orthogonal to all it takes out."""
    truth = Alignment.identity(np.linspace(-60, 60, 31), SIZE)
    points_y = np.linspace(-90, 90, 161)
    tilt = np.deg2rad(truth.tilt_deg)[:, None, None]
    bend = np.polynomial.legendre.Legendre.basis(degree)(points_y / (SIZE[1] / 2))[None, :, None]
    wide = np.array([-200.0, 200.0])
    for du, dv in ((2 * bend * np.cos(tilt), 0 * bend), (0 * bend * tilt, 2 * bend + 0 * tilt)):
        du, dv = (np.repeat(np.broadcast_to(d, (31, 161, 1)), 2, axis=2) for d in (du, dv))
        error = compare_alignments(deformed(truth, du, dv, wide, points_y), truth, THICKNESS)
        assert error.rms_px > 0.3
        assert error.rms_after_slice_gauge_px > 0.6 * error.rms_px


@pytest.mark.parametrize("mode", ["cos^2", "sin cos"])
def test_motion_that_no_specimen_makes_counts_as_error(mode: str) -> None:
    """What is seen of a fixed specimen goes with cos t and sin t; of cos^2 t and sin t cos t only their best fit by
    those two, which is reckoned here, can be the specimen's."""
    truth = Alignment.identity(np.linspace(-60, 60, 31), SIZE)
    tilt = np.deg2rad(truth.tilt_deg)
    along = np.cos(tilt) ** 2 if mode == "cos^2" else np.sin(tilt) * np.cos(tilt)
    could = np.stack([np.cos(tilt), np.sin(tilt)], axis=1)
    left = along - could @ np.linalg.lstsq(could, along, rcond=None)[0]
    points_y = np.linspace(-100, 100, 41)
    bend = 8 * (points_y / max(SIZE) * 2) ** 3
    du = np.repeat((along[:, None] * bend)[:, :, None], 2, axis=2)
    error = compare_alignments(deformed(truth, du, 0 * du, np.array([-200.0, 200.0]), points_y), truth, THICKNESS)
    rows = np.abs(points_y) <= SIZE[1] / 2
    expected = np.sqrt((left**2).mean() * (bend[rows] ** 2).mean())
    assert expected > 0.05
    assert error.rms_after_slice_gauge_px > 0.6 * expected


def test_exactly_opposite_axis_without_any_jitter() -> None:
    """Where nothing breaks the symmetry, a search that begins unturned has no slope to follow and stays there."""
    truth = Alignment.identity(np.linspace(-60, 60, 31), SIZE)
    other = replace(truth, tilt_deg=-truth.tilt_deg, linear=-truth.linear)
    assert compare_alignments(other, truth, THICKNESS).rms_px < 1e-6


def test_jitter_put_in_is_found_as_jitter() -> None:
    truth = make(n=61)
    by = np.random.default_rng(1).normal(size=(61, 2)) * 0.5
    error = compare_alignments(shifted(truth, by), truth, THICKNESS)
    expected = np.sqrt((by**2).sum(axis=1).mean())
    assert error.jitter_px == pytest.approx(expected, rel=0.12)  # a few of the 122 numbers are gauge or smooth
    assert error.smooth_px < 0.5 * expected
    assert error.local_px < 0.1 * expected
    found = error.gauge_free.shift_px
    assert np.corrcoef(found.ravel(), by.ravel())[0, 1] > 0.93


def test_smooth_error_put_in_is_found_as_smooth() -> None:
    truth = make(n=41)
    t = truth.tilt_deg / 60
    by = np.stack([2 * t**4 - t**3, 2 * t**2 - t], axis=1)
    error = compare_alignments(shifted(truth, by), truth, THICKNESS)
    assert error.smooth_px > 0.3
    assert error.jitter_px < 0.05 * error.smooth_px


def test_parts_add_up() -> None:
    truth, other = make(warp_px=1.0), make(warp_px=0.7, seed=3)
    error = compare_alignments(other, truth, THICKNESS)
    for residual in (error.rigid, error.gauge_free):
        parts = residual.smooth_px**2 + residual.jitter_px**2 + residual.local_px**2
        assert parts == pytest.approx(residual.rms_px**2, rel=1e-6)
    assert error.rms_after_slice_gauge_px <= error.rms_px + 1e-3


def test_local_motion_left_out_is_found_as_local() -> None:
    truth = make(warp_px=1.0)
    error = compare_alignments(best_linear(truth, THICKNESS), truth, THICKNESS)
    assert error.local_px > 0.3
    assert error.jitter_px + error.smooth_px < 0.02 * error.local_px
    assert np.nanmax(error.local_map.rms_px) > error.gauge_free.local_px


def test_excluded_tilts_do_not_count() -> None:
    truth = make()
    by = np.zeros((truth.n_tilts, 2))
    by[[4, 20]] = 300.0
    wrong = shifted(truth, by)
    assert compare_alignments(wrong, truth, THICKNESS).rms_px > 10
    for error in (
        compare_alignments(replace(wrong, excluded={4: "dark", 20: "dark"}), truth, THICKNESS),
        compare_alignments(wrong, replace(truth, excluded={4: "dark"}), THICKNESS, exclude=[20]),
    ):
        assert error.rms_px < 1e-6
        assert error.excluded == (4, 20) and not np.isin([4, 20], error.tilts).any()


def test_order_of_the_images_does_not_matter() -> None:
    truth, other = make(warp_px=1.0), make(warp_px=0.7, seed=3)
    order = np.random.default_rng(0).permutation(truth.n_tilts)

    def reordered(a: Alignment) -> Alignment:
        assert a.warp is not None
        warp = replace(a.warp, vectors=a.warp.vectors[order])
        return replace(
            a,
            tilt_deg=a.tilt_deg[order],
            linear=a.linear[order],
            shift_px=a.shift_px[order],
            x_tilt_deg=a.x_tilt_deg[order],
            warp=warp,
        )

    plain = compare_alignments(other, truth, THICKNESS)
    mixed = compare_alignments(reordered(other), reordered(truth), THICKNESS)
    assert mixed.rms_px == pytest.approx(plain.rms_px, rel=1e-6)
    assert mixed.smooth_px == pytest.approx(plain.smooth_px, rel=1e-6)
    np.testing.assert_allclose(mixed.per_tilt_px, plain.per_tilt_px[order], atol=1e-5)


def test_points_fill_what_the_zero_tilt_shows() -> None:
    truth = replace(make(warp_px=1.0), tilt_deg=np.linspace(-50, 62, 31), x_tilt_deg=np.full(31, 4.0))
    points = slab_points(truth, THICKNESS, np.arange(31))
    raw = truth.specimen_to_raw(int(np.argmin(np.abs(truth.tilt_deg))), points)
    assert (np.abs(raw) < np.array(SIZE) / 2).all()
    assert np.ptp(raw, axis=0) == pytest.approx(np.array(SIZE) * 10 / 11, rel=1e-3)
    assert np.ptp(points[:, 2]) == pytest.approx(THICKNESS * 4 / 5)


def test_points_of_a_leaning_specimen_are_seen_at_middles_of_equal_parts() -> None:
    """At every depth alike, however far the tilt nearest to zero and the lean are from zero."""
    leaning = replace(Alignment.identity(np.array([20.0, 45.0, 60.0]), SIZE), x_tilt_deg=np.full(3, 30.0))
    points = slab_points(leaning, THICKNESS, np.arange(3))
    raw = leaning.specimen_to_raw(0, points).reshape(5, 11, 11, 2)
    x, y = ((np.arange(11) + 0.5) / 11 * n - n / 2 for n in SIZE)
    for layer in raw:
        np.testing.assert_allclose(layer, np.stack(np.meshgrid(x, y), axis=-1), atol=1e-9)
    np.testing.assert_allclose(points[::121, 2], THICKNESS * np.array([-0.4, -0.2, 0, 0.2, 0.4]), atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_points_out_of_view_do_not_count(axis: int) -> None:
    """One image is shifted so far that it shows half of the specimen; what it would say of the rest is no matter."""
    shift = np.zeros((31, 2))
    shift[17, axis] = SIZE[axis] / 2
    truth = replace(Alignment.identity(np.linspace(-60, 60, 31), SIZE), shift_px=shift)
    nodes = np.linspace(-200, 200, 201)
    vectors = np.zeros((31, 201, 201, 2))
    beyond = nodes < -8  # of the aligned image; the image ends at 0
    if axis == 0:
        vectors[17][:, beyond] = 40.0
    else:
        vectors[17][beyond, :] = 40.0
    error = compare_alignments(replace(truth, warp=LocalWarp(nodes, nodes, vectors, "bilinear")), truth, THICKNESS)
    assert error.rms_px < 1e-6


def test_tilts_named_twice_are_left_out_once() -> None:
    truth = make()
    error = compare_alignments(replace(truth, excluded={4: "dark"}), truth, THICKNESS, exclude=[4])
    assert error.excluded == (4,)
    error = compare_alignments(truth, replace(truth, excluded={4: "dark"}), THICKNESS, exclude=[4])
    assert error.excluded == (4,) and 4 not in error.tilts


def test_best_linear_beats_the_linear_part_and_every_neighbour() -> None:
    full = make(warp_px=1.0)
    best = best_linear(full, THICKNESS)
    least = compare_alignments(best, full, THICKNESS).rms_px
    assert best.warp is None
    rng = np.random.default_rng(5)
    others = [full.without_warp(), full.folded().without_warp()]
    for _ in range(3):
        linear = best.linear + rng.normal(size=best.linear.shape) * 1e-3
        others.append(replace(best, linear=linear, shift_px=best.shift_px + rng.normal(size=best.shift_px.shape) * 0.1))
    for other in others:
        assert compare_alignments(other, full, THICKNESS).rms_px > least


def test_folding_over_the_specimen_keeps_the_map() -> None:
    full = make(warp_px=1.0)
    folded = folded_over_specimen(full, THICKNESS)
    best = best_linear(full, THICKNESS)
    np.testing.assert_allclose(folded.linear, best.linear)
    np.testing.assert_allclose(folded.shift_px, best.shift_px)
    u = np.random.default_rng(0).uniform(-80, 80, (50, 2))
    for m in (0, 12, 30):
        np.testing.assert_allclose(folded.aligned_to_raw(m, u), full.aligned_to_raw(m, u), atol=1e-9)


def test_in_frame_of_lays_projections_over_the_reference() -> None:
    truth = make()
    motion = RigidMotion(Rotation.from_euler("YX", [2.0, -1.5], degrees=True).as_matrix(), np.array([3.0, -4.0, 6.0]))
    # an alignment that sees the specimen of `truth` moved
    points = slab_points(truth, THICKNESS, np.arange(truth.n_tilts))
    other = in_frame_of(truth, RigidMotion(motion.rotation.T, -motion.rotation.T @ motion.translation_px))
    assert compare_alignments(other, truth, THICKNESS).rms_px < 1e-3
    error = compare_alignments(other, truth, THICKNESS)
    back = in_frame_of(other, error.motion)
    for m in (0, 15, 30):
        seen = specimen_to_aligned(points, float(back.tilt_deg[m]), float(back.x_tilt_deg[m]))
        want = truth.specimen_to_raw(m, points)
        assert np.abs(back.aligned_to_raw(m, seen) - want).max() < 0.1


def test_different_series_are_refused() -> None:
    with pytest.raises(ValueError, match="31 tilts, the other 29"):
        compare_alignments(make(), make(n=29), THICKNESS)
    with pytest.raises(ValueError, match="images"):
        compare_alignments(replace(make(), image_size=(64, 64)), make(), THICKNESS)
    with pytest.raises(ValueError, match="no tilt"):
        compare_alignments(make(), make(), THICKNESS, exclude=range(31))


def test_level_is_judged_in_the_frame_of_the_result() -> None:
    truth, flat = make(), (0.0, 0.0, 1.0)
    # with angles 2.5 degrees up, a point (x, y, 0) is seen as one at x (cos, 0, sin 2.5) would be: the plane rises in x
    offset = replace(truth, tilt_deg=truth.tilt_deg + 2.5)
    assert compare_alignments(offset, truth, THICKNESS).lean_deg(flat) == pytest.approx((-2.5, 0), abs=1e-6)
    # with x-tilts of 3 degrees, one at y (0, cos, sin 3): it rises in y, which a turn by +3 about x makes
    leaning = replace(truth, x_tilt_deg=np.full(truth.n_tilts, 3.0))
    assert compare_alignments(leaning, truth, THICKNESS).lean_deg(flat) == pytest.approx((0, 3), abs=1e-6)
    # the specimen itself leaned the other way, and the angles made it level
    b = np.deg2rad(2.5)
    assert compare_alignments(offset, truth, THICKNESS).lean_deg((np.sin(b), 0, np.cos(b))) == pytest.approx(
        (0, 0), abs=1e-6
    )


def test_rotations_and_angles_are_scored_tilt_by_tilt() -> None:
    truth = make()
    turn = np.where(np.arange(truth.n_tilts) % 2, 0.2, -0.2)
    matrices = np.stack([axis_rotation(angle) for angle in truth.rotation_deg + turn])
    turned = replace(truth, linear=matrices, shift_px=np.einsum("mij,mj->mi", matrices, _centres(truth)))
    found = compare_alignments(turned, truth, THICKNESS)
    np.testing.assert_allclose(found.gauge_free.turn_deg, turn, atol=0.02)
    wrong = np.random.default_rng(3).normal(size=truth.n_tilts)
    error = compare_alignments(replace(truth, tilt_deg=truth.tilt_deg + wrong), truth, THICKNESS)
    np.testing.assert_allclose(error.angle_deg, wrong - wrong.mean(), atol=1e-9)


def _centres(alignment: Alignment) -> np.ndarray:
    """Shifts before the rotation, so that a turn is about the centre of the aligned image."""
    return np.einsum("mij,mj->mi", np.linalg.inv(alignment.linear), alignment.shift_px)


def test_the_other_end_of_the_axis_is_no_error_of_the_angles() -> None:
    truth = make()
    half_turn = replace(truth, linear=-truth.linear, shift_px=-truth.shift_px, tilt_deg=-truth.tilt_deg)
    error = compare_alignments(half_turn, truth, THICKNESS)
    assert error.rms_px < 1e-6 and np.abs(error.angle_deg).max() < 1e-9


def test_known_points_take_the_place_of_the_references_own_map() -> None:
    truth = make()
    points = np.random.default_rng(2).uniform(-1, 1, (300, 3)) * (80, 60, 30)
    raw = np.stack([truth.specimen_to_raw(m, points) for m in range(truth.n_tilts)])
    known = TruePoints(points, raw, np.array([0.0, 0.0, 1.0]), THICKNESS)
    assert compare_alignments(truth, truth, THICKNESS, known=known).rms_px < 1e-9
    # motion that neither a rigid body nor a deformation by y can make: to and fro from tilt to tilt
    push = 0.01 * (-1.0) ** np.arange(truth.n_tilts)[:, None] * points[:, 0]
    off = replace(known, raw=raw + push[..., None] * np.array([1.0, 0.0]))
    error = compare_alignments(truth, truth, THICKNESS, known=off)
    seen = (np.abs(off.raw) <= np.array(SIZE) / 2).all(axis=-1)
    assert error.rms_px == pytest.approx(np.sqrt((push[seen] ** 2).mean()), rel=0.05)
    with pytest.raises(ValueError, match="seen in 30 tilts"):
        compare_alignments(truth, truth, THICKNESS, known=replace(known, raw=raw[1:]))
