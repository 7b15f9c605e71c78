"""Matrices of Scipion and lines of IMOD's files: direction, centre, sampling, order."""

import numpy as np
import pytest

from inr import conventions


def matrix(axis_deg, dx, dy):
    c, s = np.cos(np.radians(axis_deg)), np.sin(np.radians(axis_deg))
    return np.array([[c, s, dx], [-s, c, dy], [0, 0, 1]])


def test_an_axis_at_85_degrees_turns_onto_the_vertical():
    """IMOD's sense: the raw image's axis lies 85 degrees counter-clockwise of +y; aligned, it is +y."""
    axis = np.radians(85)
    along = np.array([-np.sin(axis), np.cos(axis)])
    turned = matrix(85, 3, 4)
    assert np.allclose(turned[:2, :2] @ along, [0, 1])
    assert conventions.tilt_axis_angle(turned) == pytest.approx(85)
    assert turned[0, 1] == pytest.approx(0.996, abs=1e-3) and turned[1, 0] == pytest.approx(-0.996, abs=1e-3)


def test_xf_file(tmp_path):
    """Six numbers with seven decimals between spaces, and exactly the same matrices back."""
    matrices = [matrix(-4.3, 412.123456, -0.000123), matrix(175.2, -1, 2)]
    path = str(tmp_path / "a.xf")
    conventions.write_xf(path, matrices)
    words = open(path).read().splitlines()[0].split(" ")
    c, s = np.cos(np.radians(4.3)), np.sin(np.radians(4.3))
    assert [float(w) for w in words if w] == pytest.approx([c, -s, s, c, 412.123456, -0.000123], abs=1e-7)
    for a, b in zip(conventions.read_xf(path), matrices):
        assert np.abs(a - b).max() < 1e-6
    assert conventions.line_of_matrix(conventions.matrix_of_line([1, 2, 3, 4, 5, 6])) == [1, 2, 3, 4, 5, 6]


def test_not_an_xf_file(tmp_path):
    path = tmp_path / "a.xf"
    path.write_text("1 0 0 1 2\n")
    with pytest.raises(ValueError, match=r"a\.xf.*6 numbers"):
        conventions.read_xf(str(path))


def test_shifts_follow_the_sampling():
    """A point 10 px from the centre is 5 px from it in a series binned twofold, before and after the alignment."""
    fine = matrix(10, 6, -8)
    coarse = conventions.with_sampling(fine, 2.5, 5.0)
    point = np.array([10.0, 20.0, 1.0])
    assert np.allclose((fine @ point)[:2] / 2, (coarse @ (point / [2, 2, 1]))[:2])
    assert np.allclose(fine, matrix(10, 6, -8))


def test_angles(tmp_path):
    path = str(tmp_path / "a.tlt")
    conventions.write_angles(path, [-60.0, 0.01, 59.98765])
    assert conventions.read_angles(path) == pytest.approx([-60, 0.01, 59.9877])
