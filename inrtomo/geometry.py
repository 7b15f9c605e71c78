"""Where a specimen point lands in an aligned image.

Spaces (all in raw px, origin at the centre, index ``(n - 1) / 2``):

* **raw** ``p = (x, y)``: pixel of an image as recorded;
* **aligned** ``u = (x, y)``: pixel of the ideal projection, tilt axis along +y through the centre;
* **specimen** ``X = (x, y, z)``: point of the tomogram, volume arrays are ``[z, y, x]``.

The projection is ``u = (x cos t + z sin t, y)`` with the tilt angle t right-handed about +y and z up,
which is the geometry of an IMOD tomogram after ``trimvol -rx``.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def centre_index(size: int) -> float:
    """Pixel index of the origin of an axis with ``size`` pixels."""
    return (size - 1) / 2


def centred_coordinates(size: int) -> Array:
    """Coordinates (px from the centre) of the ``size`` pixels of an axis."""
    return np.arange(size, dtype=np.float64) - centre_index(size)


def sides_turned(axis_deg: float | Array) -> bool:
    """Whether the tilt axis lies nearer to raw x than to raw y, so that aligned images stand across the raw ones.

    Args:
        axis_deg: angle of the axis (degrees, IMOD's sense), or those of several images, whose median counts.
    """
    return bool(np.median(np.abs(np.sin(np.deg2rad(axis_deg)))) > np.sqrt(0.5))


def point_the_other_way(one_deg: float, other_deg: float) -> bool:
    """Whether two tilt axes (degrees, IMOD's sense) are nearer to opposite than to across: the hands are different."""
    return bool(np.cos(np.deg2rad(one_deg - other_deg)) < -np.sqrt(0.5))


def turned_size(image_size: tuple[int, int], axis_deg: float | Array) -> tuple[int, int]:
    """Size (nx, ny), px, of aligned images and tomograms of raw images (nx, ny): their sides turned, or not.

    The sides are turned where the tilt axis lies nearer to x, as Etomo, AreTomo and RELION do, so that nothing is cut
    off that all images saw. The axis stands upright in aligned images, and raw images would lie across them.
    """
    nx, ny = image_size
    return (ny, nx) if sides_turned(axis_deg) else (nx, ny)


def rotation_about_x(x_tilt_deg: float) -> Array:
    """3 x 3 matrix taking a levelled specimen to the microscope's frame, in IMOD's sense of ``XAXISTILT``.

    A positive angle levels a section that falls in z as y rises (IMOD's row index runs against z).
    """
    c, s = np.cos(np.deg2rad(x_tilt_deg)), np.sin(np.deg2rad(x_tilt_deg))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]])


def rotation_about_y(angle_deg: float) -> Array:
    """3 x 3 matrix of a tilt: what is seen at tilt t of a specimen turned by it is what tilt ``t + angle`` saw."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def specimen_to_aligned(points: Array, tilt_deg: float, x_tilt_deg: float = 0.0) -> Array:
    """Project specimen points ``(..., 3)`` (x, y, z) to aligned pixels ``(..., 2)``."""
    points = np.asarray(points, dtype=np.float64)
    if x_tilt_deg:
        points = points @ rotation_about_x(x_tilt_deg).T
    c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    return np.stack([points[..., 0] * c + points[..., 2] * s, points[..., 1]], axis=-1)


def axis_rotation(axis_deg: float) -> Array:
    """2 x 2 raw -> aligned rotation for a tilt axis ``axis_deg`` counter-clockwise from +y (IMOD's sense)."""
    c, s = np.cos(np.deg2rad(axis_deg)), np.sin(np.deg2rad(axis_deg))
    return np.array([[c, s], [-s, c]])


def axis_angle(linear: Array) -> Array:
    """Tilt-axis angle (degrees, IMOD's sense) of raw -> aligned matrices ``(..., 2, 2)``."""
    linear = np.asarray(linear, dtype=np.float64)
    return np.rad2deg(-np.arctan2(linear[..., 1, 0] - linear[..., 0, 1], linear[..., 0, 0] + linear[..., 1, 1]))
