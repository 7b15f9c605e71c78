"""Alignments as Scipion holds them and as IMOD's files do: the one place where matrices and angles change their form.

A ``TiltImage``'s ``Transform`` is the 3 x 3 matrix ``[[A11, A12, DX], [A21, A22, DY], [0, 0, 1]]`` of the line
``A11 A12 A21 A22 DX DY`` of an ``.xf``. That is, it

* goes **from the raw to the aligned** image (not back): ``aligned = A raw + d``;
* turns about the **centre** of the image, index ``(n - 1) / 2``, not about its corner, and shifts afterwards;
* counts shifts in pixels **of the series that it belongs to**. In a binned copy of a series the shifts are divided by
  the binning; the 2 x 2 part stays;
* with ``A = [[cos, sin], [-sin, cos]]`` of the tilt axis angle (from +y, counter-clockwise positive), so that
  ``atan2(A12, A11)`` is that angle.

Lines of an ``.xf``, ``.tlt`` and ``.xtilt`` are in the order of the **stack**. Scipion sorts its tables by tilt angle
after an import, so ``TiltImage.getIndex()`` (from 1), not the place in the table, says which line is an image's.
Scipion's writers of ``.xf`` are not used: one has three significant digits, another tabs that Warp does not read.
"""

from __future__ import annotations

import math
from typing import Iterable, Sequence

import numpy as np

XF_COLUMNS = 6
DECIMALS = 7


def matrix_of_line(line: Sequence[float]) -> np.ndarray:
    """Scipion's matrix ``(3, 3)`` of the six numbers of a line of an ``.xf``."""
    a11, a12, a21, a22, dx, dy = line
    return np.array([[a11, a12, dx], [a21, a22, dy], [0.0, 0.0, 1.0]])


def line_of_matrix(matrix: np.ndarray) -> list[float]:
    """The six numbers of a line of an ``.xf`` from Scipion's matrix ``(3, 3)``."""
    (a11, a12, dx), (a21, a22, dy), _ = np.asarray(matrix, dtype=float)
    return [a11, a12, a21, a22, dx, dy]


def tilt_axis_angle(matrix: np.ndarray) -> float:
    """Tilt axis angle in degrees: from +y, counter-clockwise positive."""
    return math.degrees(math.atan2(matrix[0][1], matrix[0][0]))


def with_sampling(matrix: np.ndarray, sampling_A: float, wanted_A: float) -> np.ndarray:
    """The matrix for the same images at another sampling rate (Å/px)."""
    scaled = np.array(matrix, dtype=float)
    scaled[:2, 2] *= sampling_A / wanted_A
    return scaled


def read_xf(path: str) -> list[np.ndarray]:
    """Scipion's matrices from an ``.xf``, in its order. Raises ValueError when it is none."""
    lines = [line.split() for line in _lines(path)]
    if not lines or any(len(line) != XF_COLUMNS for line in lines):
        raise ValueError(f"{path}: is not an .xf file ({XF_COLUMNS} numbers a line)")
    return [matrix_of_line([float(word) for word in line]) for line in lines]


def write_xf(path: str, matrices: Iterable[np.ndarray]) -> None:
    """Write an ``.xf``: columns between spaces, seven decimals."""
    with open(path, "w") as file:
        for matrix in matrices:
            file.write("".join(f"{value:14.{DECIMALS}f}" for value in line_of_matrix(matrix)) + "\n")


def read_angles(path: str) -> list[float]:
    """Angles of a ``.tlt``, ``.rawtlt`` or ``.xtilt``, in degrees."""
    return [float(line.split()[0]) for line in _lines(path)]


def write_angles(path: str, degrees: Iterable[float]) -> None:
    """Write a ``.tlt``, ``.rawtlt`` or ``.xtilt``."""
    with open(path, "w") as file:
        file.writelines(f"{angle:.4f}\n" for angle in degrees)


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return [line for line in file if line.strip()]
