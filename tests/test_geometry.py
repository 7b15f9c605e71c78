"""Where points land, by numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inrtomo.alignment import Alignment, LocalWarp, interpolation_matrix
from inrtomo.geometry import (
    axis_angle,
    axis_rotation,
    centre_index,
    centred_coordinates,
    rotation_about_x,
    rotation_about_y,
    specimen_to_aligned,
)

HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("size", "wanted"), [(1, [0.0]), (4, [-1.5, -0.5, 0.5, 1.5]), (5, [-2.0, -1.0, 0.0, 1.0, 2.0])]
)
def test_coordinates_are_from_the_middle_of_the_image(size: int, wanted: list[float]) -> None:
    np.testing.assert_array_equal(centred_coordinates(size), np.array(wanted))
    assert centred_coordinates(size)[0] == -centre_index(size)


def test_a_tilt_brings_what_lies_high_to_the_right() -> None:
    """At 90 degrees z is seen as x, at 30 degrees half of it; y stays."""
    np.testing.assert_allclose(specimen_to_aligned(np.array([1.0, 2.0, 3.0]), 90.0), np.array([3.0, 2.0]), atol=1e-12)
    at_30 = specimen_to_aligned(np.array([0.0, 5.0, 4.0]), 30.0)
    np.testing.assert_allclose(at_30, np.array([2.0, 5.0]), atol=1e-12)
    np.testing.assert_allclose(specimen_to_aligned(np.array([4.0, 5.0, 0.0]), 60.0), np.array([2.0, 5.0]), atol=1e-12)


def test_a_lean_about_x() -> None:
    """45 degrees level a section that falls in z by as much as y rises."""
    falling = rotation_about_x(45.0) @ np.array([0.0, 1.0, -1.0])
    rising = rotation_about_x(45.0) @ np.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose(falling, np.array([0.0, 0.0, -2 * HALF]), atol=1e-12)
    np.testing.assert_allclose(rising, np.array([0.0, 2 * HALF, 0.0]), atol=1e-12)
    seen = specimen_to_aligned(np.array([0.0, 1.0, 1.0]), 0.0, 45.0)
    np.testing.assert_allclose(seen, np.array([0.0, 2 * HALF]), atol=1e-12)


def test_turns_about_y_add_to_the_tilt() -> None:
    np.testing.assert_allclose(
        rotation_about_y(90.0) @ np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, -1.0]), atol=1e-12
    )
    points = np.random.default_rng(0).normal(size=(20, 3))
    turned = points @ rotation_about_y(17.0).T
    np.testing.assert_allclose(specimen_to_aligned(turned, 25.0), specimen_to_aligned(points, 42.0), atol=1e-12)
    np.testing.assert_allclose(rotation_about_y(17.0) @ rotation_about_y(-17.0), np.eye(3), atol=1e-12)


def test_an_axis_is_counter_clockwise_from_y() -> None:
    """A point on an axis of 30 degrees lies up and to the left in the raw image, and on +y in the aligned one."""
    on_axis = np.array([-np.sin(np.deg2rad(30)), np.cos(np.deg2rad(30))])
    np.testing.assert_allclose(axis_rotation(30.0) @ on_axis, np.array([0.0, 1.0]), atol=1e-12)
    angles = np.array([-179.0, -90.0, 0.0, 12.5, 179.0])
    matrices = np.stack([axis_rotation(angle) for angle in angles])
    np.testing.assert_allclose(axis_angle(matrices), angles, atol=1e-9)
    np.testing.assert_allclose(axis_angle(1.02 * matrices), angles, atol=1e-9)


def test_interpolation_between_two_and_three_nodes() -> None:
    """Catmull-Rom with nodes that go on linearly: half-way in an end cell (7, 10, -1) / 16; two nodes are a line."""
    cubic = interpolation_matrix(np.array([0.0, 2.0, 4.0]), np.array([1.0, 3.0]), "bicubic")
    np.testing.assert_allclose(cubic, np.array([[7.0, 10.0, -1.0], [-1.0, 10.0, 7.0]]) / 16, atol=1e-12)
    line = interpolation_matrix(np.array([0.0, 2.0, 4.0]), np.array([1.0, 3.5, 9.0]), "bilinear")
    np.testing.assert_allclose(line, np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75], [0.0, 0.0, 1.0]]), atol=1e-12)
    for kind in ("bilinear", "bicubic"):
        two = interpolation_matrix(np.array([0.0, 2.0]), np.array([0.5]), kind)
        np.testing.assert_allclose(two, np.array([[0.75, 0.25]]), atol=1e-12)


def test_an_affine_warp_folds_into_the_linear_part() -> None:
    """``p = A^-1 (u + B u + b - d)`` is ``A' = (I + B)^-1 A, d' = (I + B)^-1 (d - b)`` without any warp."""
    strain, offset = np.array([[0.02, -0.01], [0.03, 0.015]]), np.array([1.5, -2.5])
    x, y = np.linspace(-60, 60, 5), np.linspace(-40, 40, 4)
    vectors = np.stack(np.meshgrid(x, y), axis=-1) @ strain.T + offset
    plain = Alignment.identity(np.array([-10.0, 0.0, 10.0]), (100, 60), 30.0)
    shift = np.array([[3.0, 4.0], [0.0, 0.0], [-5.0, 2.0]])
    whole = replace(plain, shift_px=shift, warp=LocalWarp(x, y, np.tile(vectors, (3, 1, 1, 1)), "bilinear"))
    folded = whole.folded()
    inverse = np.linalg.inv(np.eye(2) + strain)
    assert folded.warp is not None
    np.testing.assert_allclose(folded.warp.vectors, 0, atol=1e-9)
    np.testing.assert_allclose(folded.linear, inverse @ plain.linear, atol=1e-9)
    np.testing.assert_allclose(folded.shift_px, (shift - offset) @ inverse.T, atol=1e-9)


def test_only_what_the_image_shows_counts_for_the_linear_part() -> None:
    """Motion beyond the image's edges, where a grid may reach, leaves the linear part as it is."""
    nodes = np.linspace(-100, 100, 21)
    vectors = np.zeros((1, 21, 21, 2))
    vectors[0][:, np.abs(nodes) > 45] = 8.0
    vectors[0][np.abs(nodes) > 45, :] = 8.0
    whole = replace(Alignment.identity(np.zeros(1), (80, 80)), warp=LocalWarp(nodes, nodes, vectors, "bilinear"))
    np.testing.assert_allclose(whole.folded().linear, np.eye(2)[None], atol=1e-9)
    np.testing.assert_allclose(whole.folded().shift_px, 0, atol=1e-9)


@pytest.mark.parametrize("shift", [np.zeros((3, 1)), np.zeros((2, 2)), np.zeros((4, 2)), np.zeros((3, 3))])
def test_shapes_that_do_not_belong_together_are_refused(shift: np.ndarray) -> None:
    linear = np.tile(np.eye(2), (3, 1, 1))
    with pytest.raises(ValueError, match="one tilt angle each"):
        Alignment(np.zeros(3), linear, shift, (10, 10))
    with pytest.raises(ValueError, match="one tilt angle each"):
        Alignment(np.zeros(2), linear, np.zeros((2, 2)), (10, 10))
