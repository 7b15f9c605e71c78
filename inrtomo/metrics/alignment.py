"""How far apart two alignments are, free of what no alignment can know.

Specimen points that both alignments could have been made from are projected with either; the distance in raw px,
after the best rigid motion of the specimen, is the error. What a single-axis series cannot show either, deformations
of the specimen that depend on y alone (the slice gauge), is taken out on request. The rest is split into what varies
smoothly with tilt, what jumps from tilt to tilt, and what varies within an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from inrtomo.alignment import Alignment
from inrtomo.geometry import axis_rotation, rotation_about_x
from inrtomo.truth import TruePoints

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

POINTS = (11, 11, 5)
"""Specimen points along x, y and z."""
SLICE_GAUGE_DEGREE = 4
SMOOTH_DEGREE = 4
"""Polynomial degree in tilt of what counts as smooth; the modes seen in practice (up at both ends, down in the
middle) need two, drifts of the axis one more."""
MOTION_STEPS = 30
MOTION_TOLERANCE_PX = 1e-5


@dataclass(frozen=True)
class RigidMotion:
    """A motion of the specimen, ``X -> rotation @ X + translation_px`` with X = (x, y, z) raw px from the centre."""

    rotation: Array
    translation_px: Array

    def __call__(self, points: Array) -> Array:
        """Moved points ``(..., 3)``."""
        return np.asarray(points @ self.rotation.T + self.translation_px)

    @property
    def handedness(self) -> int:
        """-1 if the specimen is turned round about z (tilt axis called by its other end), else 1."""
        return -1 if self.rotation[1, 1] < 0 else 1

    @property
    def rotation_deg(self) -> Array:
        """Rotation vector (x, y, z), degrees."""
        return np.asarray(Rotation.from_matrix(self.rotation).as_rotvec(degrees=True))


@dataclass(frozen=True)
class Residual:
    """What is left between two alignments once a gauge is removed; all lengths in raw px.

    ``rms_px**2 = smooth_px**2 + jitter_px**2 + local_px**2`` (the parts are orthogonal).

    Attributes:
        rms_px: root mean square distance over all points and tilts; median_px: median distance.
        smooth_px: part of each tilt's shift and in-plane rotation that is a polynomial of degree 4 in tilt.
        jitter_px: rest of each tilt's shift and in-plane rotation.
        local_px: rest within the images.
        per_tilt_px: RMS distance of every compared tilt, ``(n,)``.
        shift_px: mean of a minus b per tilt ``(n, 2)`` (x, y), in the sense of the ``.xf`` shifts, aligned frame.
        smooth_shift_px: the smooth part of ``shift_px``, ``(n, 2)``.
        turn_deg: in-plane rotation of every tilt, a minus b ``(n,)``, in the sense of the tilt axis's angle.
        local_per_tilt_px: RMS of the local part of every tilt, ``(n,)``.
    """

    rms_px: float
    median_px: float
    smooth_px: float
    jitter_px: float
    local_px: float
    per_tilt_px: Array
    shift_px: Array
    smooth_shift_px: Array
    turn_deg: Array
    local_per_tilt_px: Array


@dataclass(frozen=True)
class LocalMap:
    """RMS over the tilts of the local part (slice gauge removed) over the field of view, ``(ny, nx)`` raw px.

    ``x`` and ``y`` are the columns and rows, raw px from the centre of the reference's image nearest zero tilt.
    """

    x: Array
    y: Array
    rms_px: Array


@dataclass(frozen=True)
class AlignmentError:
    """Alignment a compared with the reference b.

    Attributes:
        tilts: stack indices compared, ``(n,)``; excluded: those left out.
        tilt_deg: their tilt angles in b.
        motion: takes the specimen of b to that of a.
        rigid: what is left after the rigid motion.
        gauge_free: what is left after rigid motion and slice gauge.
        local_map: where in the field of view the local part is.
        angle_deg: tilt angles of a minus those of b, less the mean (which is a turn of the specimen), ``(n,)``.
        pixel_size_A: Å per raw px or None.
    """

    tilts: Ints
    excluded: tuple[int, ...]
    tilt_deg: Array
    angle_deg: Array
    motion: RigidMotion
    rigid: Residual
    gauge_free: Residual
    local_map: LocalMap
    pixel_size_A: float | None

    @property
    def rms_px(self) -> float:
        return self.rigid.rms_px

    @property
    def median_px(self) -> float:
        return self.rigid.median_px

    @property
    def per_tilt_px(self) -> Array:
        return self.rigid.per_tilt_px

    @property
    def smooth_px(self) -> float:
        return self.rigid.smooth_px

    @property
    def jitter_px(self) -> float:
        return self.rigid.jitter_px

    @property
    def local_px(self) -> float:
        return self.rigid.local_px

    @property
    def rms_after_slice_gauge_px(self) -> float:
        return self.gauge_free.rms_px

    def lean_deg(self, normal: ArrayLike) -> tuple[float, float]:
        """How far the specimen, with a ``normal`` ``(3,)`` in the frame of b, is from level in the frame of a.

        Returns the angles about y and about x by which a level slab would be turned to lie so. They are what an
        alignment that calls itself levelled is wrong by.
        """
        n = self.motion.rotation @ np.asarray(normal, dtype=np.float64)
        n = n if n[2] > 0 else -n
        return float(np.rad2deg(np.arctan2(n[0], n[2]))), float(np.rad2deg(np.arcsin(np.clip(-n[1], -1, 1))))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(residual: Residual) -> dict[str, Any]:
            values = {key: np.asarray(value).tolist() for key, value in vars(residual).items()}
            if self.pixel_size_A is not None:
                for key in ("rms", "median"):
                    values[f"{key}_A"] = values[f"{key}_px"] * self.pixel_size_A
            return values

        return {
            "rms_px": self.rms_px,
            "rms_after_slice_gauge_px": self.rms_after_slice_gauge_px,
            "tilts": self.tilts.tolist(),
            "excluded": list(self.excluded),
            "tilt_deg": self.tilt_deg.tolist(),
            "angle_deg": self.angle_deg.tolist(),
            "pixel_size_A": self.pixel_size_A,
            "motion": {
                "rotation_deg": self.motion.rotation_deg.tolist(),
                "translation_px": self.motion.translation_px.tolist(),
            },
            "rigid_removed": plain(self.rigid),
            "rigid_and_slice_gauge_removed": plain(self.gauge_free),
        }


def compare_alignments(
    a: Alignment,
    b: Alignment,
    thickness_px: float,
    *,
    exclude: Iterable[int] = (),
    known: TruePoints | None = None,
) -> AlignmentError:
    """Distance between alignments a and b of the same raw images, b being the reference (or the truth).

    Points fill the slab of ``thickness_px`` (raw px) over the field of view of b's tilt nearest zero; in every tilt
    those count that b sees inside the raw image. Tilts that either alignment excludes, or that are named in
    ``exclude`` (stack indices), are left out. Raises ValueError for alignments of different image size or number.

    Args:
        known: points of the specimen whose images are known exactly, of b's series. They take the place of those in the
            slab and of what b says of them: where a specimen moves, no alignment is the whole truth.
    """
    if a.n_tilts != b.n_tilts:
        raise ValueError(f"one alignment has {a.n_tilts} tilts, the other {b.n_tilts}")
    if tuple(a.image_size) != tuple(b.image_size):
        raise ValueError(f"one alignment is of {a.image_size} px images, the other of {b.image_size} px")
    left_out = set(a.excluded) | set(b.excluded) | set(exclude)
    tilts = np.array([m for m in range(b.n_tilts) if m not in left_out], dtype=np.int64)
    if len(tilts) == 0:
        raise ValueError("no tilt is used by both alignments")
    if known is None:
        points = slab_points(b, thickness_px, tilts)
        seen_by_b = np.stack([b.specimen_to_raw(int(m), points) for m in tilts])
    elif len(known.raw) != b.n_tilts:
        raise ValueError(f"the known points are seen in {len(known.raw)} tilts, the alignment has {b.n_tilts}")
    else:
        points, seen_by_b = known.points, known.raw[tilts]
    visible = _inside(seen_by_b, b.image_size)
    if not visible.any():
        raise ValueError("no point of the specimen is inside any image; is the alignment of this series?")
    motion = _best_motion(a, b, tilts, points, seen_by_b, visible)
    # turning (not scaling) raw distances into b's aligned frame keeps lengths and makes x and y mean something
    turn = np.stack([axis_rotation(angle) for angle in b.rotation_deg[tilts]])
    moved = motion(points)
    distance = np.stack([a.specimen_to_raw(int(m), moved) for m in tilts]) - seen_by_b
    distance = np.einsum("mij,mpj->mpi", turn, distance)
    distance[~visible] = 0.0
    tilt_deg = np.asarray(b.tilt_deg, dtype=np.float64)[tilts]
    rest = distance - _slice_gauge_part(distance, visible, points, tilt_deg, b.image_size)
    rest[~visible] = 0.0
    rigid, _ = _residual(distance, visible, points, tilt_deg)
    gauge_free, local = _residual(rest, visible, points, tilt_deg)
    # an axis 180 degrees off goes with angles of the other sign
    angle = np.asarray(a.tilt_deg, dtype=np.float64)[tilts] * motion.handedness - tilt_deg
    return AlignmentError(
        tilts=tilts,
        excluded=tuple(sorted(left_out)),
        tilt_deg=tilt_deg,
        angle_deg=angle - angle.mean(),
        motion=motion,
        rigid=rigid,
        gauge_free=gauge_free,
        local_map=_local_map(local, visible, seen_by_b[int(np.argmin(np.abs(tilt_deg)))], b.image_size),
        pixel_size_A=b.pixel_size_A or a.pixel_size_A,
    )


def best_linear(alignment: Alignment, thickness_px: float) -> Alignment:
    """The linear alignment (what an ``.xf`` file can hold) nearest to a full one, by the measure of this module.

    Per tilt the least-squares affine map over the specimen points in view; excluded tilts just lose their warp.
    """
    tilts = np.asarray(alignment.included, dtype=np.int64)
    linear, shift = alignment.linear.copy(), alignment.shift_px.copy()
    points = slab_points(alignment, thickness_px, tilts)
    plain = Alignment.identity(alignment.tilt_deg, alignment.image_size)
    plain = replace(plain, x_tilt_deg=alignment.x_tilt_deg)
    for m in map(int, tilts):
        raw = alignment.specimen_to_raw(m, points)
        seen = _inside(raw, alignment.image_size)
        if alignment.warp is None or np.count_nonzero(seen) < 4:
            continue
        aligned = plain.specimen_to_raw(m, points[seen])
        design = np.column_stack([aligned, np.ones(len(aligned))])
        fit, *_ = np.linalg.lstsq(design, raw[seen], rcond=None)
        linear[m] = np.linalg.inv(fit[:2].T)
        shift[m] = -linear[m] @ fit[2]
    return replace(alignment, linear=linear, shift_px=shift, warp=None)


def folded_over_specimen(alignment: Alignment, thickness_px: float) -> Alignment:
    """The same map, its linear part being `best_linear` and its warp the rest.

    `Alignment.folded` weighs the whole image alike; at high tilt the field of view of the tomogram is a narrow strip
    of it, and there a linear fit to the strip is the better ``.xf``.
    """
    best = best_linear(alignment, thickness_px)
    if alignment.warp is None:
        return best
    # p = A^-1 (u + w - d) = B^-1 (u + w' - e)  =>  w' = B A^-1 (u + w - d) - u + e
    change = best.linear @ np.linalg.inv(alignment.linear)
    nodes = np.stack(np.meshgrid(alignment.warp.x, alignment.warp.y), axis=-1)
    moved = nodes + alignment.warp.vectors - alignment.shift_px[:, None, None]
    vectors = np.einsum("mij,myxj->myxi", change, moved) - nodes + best.shift_px[:, None, None]
    return replace(best, warp=replace(alignment.warp, vectors=vectors))


def in_frame_of(a: Alignment, motion: RigidMotion) -> Alignment:
    """Alignment a for the specimen before ``motion`` (`AlignmentError.motion`): tomograms made with it lie like b's.

    Turns about y and x go into the tilt angles and x-tilts, the translation into shifts. A turn about z is left as
    it is: the tilt axis is a fact of the images, so two good alignments do not differ by one. The x-tilt is taken to
    be small.
    """
    turn_y, turn_x, _ = (float(angle) for angle in Rotation.from_matrix(motion.rotation).as_euler("YXZ", degrees=True))
    centred = a.translated((-motion.translation_px[0], -motion.translation_px[1], -motion.translation_px[2]))
    return replace(centred, tilt_deg=centred.tilt_deg + turn_y, x_tilt_deg=centred.x_tilt_deg - turn_x)


def slab_points(b: Alignment, thickness_px: float, tilts: Ints) -> Array:
    """Specimen points ``(n, 3)`` evenly filling the slab over the field of view of the tilt nearest zero."""
    tilt = int(tilts[np.argmin(np.abs(np.asarray(b.tilt_deg)[tilts]))])
    lengths = (*b.image_size, thickness_px)
    across, up, deep = (_middles(count, length) for count, length in zip(POINTS, lengths, strict=True))
    raw = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    aligned = b.raw_to_aligned(tilt, raw)
    z = np.repeat(deep, len(raw))
    u = np.tile(aligned, (len(deep), 1))
    # invert the projection at the depth z of the tilted slab's frame
    angle, lean = np.deg2rad(float(b.tilt_deg[tilt])), np.deg2rad(float(b.x_tilt_deg[tilt]))
    y = (u[:, 1] - z * np.sin(lean)) / np.cos(lean)
    depth = z * np.cos(lean) - y * np.sin(lean)
    x = (u[:, 0] - depth * np.sin(angle)) / np.cos(angle)
    return np.stack([x, y, z], axis=1)


def _inside(raw: Array, size: tuple[int, int]) -> Bools:
    return np.asarray((np.abs(raw[..., 0]) <= size[0] / 2) & (np.abs(raw[..., 1]) <= size[1] / 2))


def _best_motion(
    a: Alignment, b: Alignment, tilts: Ints, points: Array, seen_by_b: Array, visible: Bools
) -> RigidMotion:
    """Gauss-Newton for the motion of the specimen; the warp's slope is left out of the derivative (it is small)."""
    # an axis 180 degrees off with all tilts negated is the same alignment of a specimen turned by 180 about z
    between = np.rad2deg(np.angle(np.exp(1j * np.deg2rad(a.rotation_deg - b.rotation_deg)[tilts]).sum()))
    rotation = np.diag([-1.0, -1.0, 1.0]) if abs(between) > 90 else np.eye(3)
    translation = np.zeros(3)
    reach = float(np.abs(points).max())
    slopes = []
    for m in map(int, tilts):
        angle = np.deg2rad(float(a.tilt_deg[m]))
        across = np.array([[np.cos(angle), 0.0, np.sin(angle)], [0.0, 1.0, 0.0]])
        slopes.append(np.linalg.inv(a.linear[m]) @ across @ rotation_about_x(float(a.x_tilt_deg[m])))
    weight = visible.astype(np.float64)
    for _ in range(MOTION_STEPS):
        turned = points @ rotation.T
        # d(X')/d(turn) = -[X']x, written as rows (x', y', z') by columns (about x, about y, about z)
        x, y, z = turned.T
        o = np.zeros_like(x)
        spin = np.stack(
            [np.stack([o, z, -y], axis=-1), np.stack([-z, o, x], axis=-1), np.stack([y, -x, o], axis=-1)], axis=1
        )
        normal, gradient = np.zeros((6, 6)), np.zeros(6)
        for k, m in enumerate(map(int, tilts)):
            away = seen_by_b[k] - a.specimen_to_raw(m, turned + translation)
            jacobian = np.concatenate(
                [np.einsum("ij,pjc->pic", slopes[k], spin), np.broadcast_to(slopes[k], (len(points), 2, 3))], axis=2
            )
            seen = jacobian * weight[k][:, None, None]
            normal += np.einsum("pic,pid->cd", seen, jacobian, optimize=True)
            gradient += np.einsum("pic,pi->c", seen, away)
        # the least-squares solution of least size: what a narrow tilt range cannot tell stays put
        step = np.linalg.lstsq(normal, gradient, rcond=1e-12)[0]
        rotation = Rotation.from_rotvec(step[:3]).as_matrix() @ rotation
        translation = translation + step[3:]
        if np.abs(step[:3]).max() * reach + np.abs(step[3:]).max() < MOTION_TOLERANCE_PX:
            break
    return RigidMotion(rotation, translation)


def _slice_gauge_part(distance: Array, visible: Bools, points: Array, tilt_deg: Array, size: tuple[int, int]) -> Array:
    """Least-squares part of ``distance`` ``(n, points, 2)`` (aligned frame) that a specimen can make by itself.

    Columns: ``u += b(y) cos t + c(y) sin t + r(y) du/dt + p(y) u`` and ``v += a(y)``, polynomials in y of degree 4;
    and the rigid turns about z and x, whose u-parts are among these, so that both are removed together.
    """
    angle = np.deg2rad(tilt_deg)[:, None]
    x, y, z = points.T
    c, s = np.broadcast_arrays(np.cos(angle), np.sin(angle))
    u = x * np.cos(angle) + z * np.sin(angle)
    slope = -x * np.sin(angle) + z * np.cos(angle)
    half = max(size) / 2
    zero = np.zeros_like(u)
    columns_u, columns_v = [], []
    for degree in range(SLICE_GAUGE_DEGREE + 1):
        q = np.polynomial.legendre.Legendre.basis(degree)(y / half)
        for term in (c * q, s * q, slope * q / half, u * q / half):
            columns_u.append(np.broadcast_to(term, u.shape))
            columns_v.append(zero)
        columns_u.append(zero)
        columns_v.append(np.broadcast_to(q, u.shape))
    columns_u += [-y * c / half, y * s / half]
    columns_v += [np.broadcast_to(x / half, u.shape), np.broadcast_to(-z / half, u.shape)]
    design = np.stack([np.stack(columns_u, axis=-1), np.stack(columns_v, axis=-1)], axis=2)[visible]
    design = design.reshape(-1, design.shape[-1])
    normal = design.T @ design
    # combinations the points cannot tell apart (turn about x with p(y) at no tilt, ...) get no share
    coefficients = np.linalg.lstsq(normal, design.T @ distance[visible].ravel(), rcond=1e-12)[0]
    part = np.zeros_like(distance)
    part[visible] = (design @ coefficients).reshape(-1, 2)
    return part


def _residual(distance: Array, visible: Bools, points: Array, tilt_deg: Array) -> tuple[Residual, Array]:
    """Numbers for ``distance`` (a minus b, aligned frame, zero where not visible) and its local part."""
    count = visible.sum(axis=1).astype(np.float64)
    seen = np.maximum(count, 1.0)
    mean = distance.sum(axis=1) / seen[:, None]
    # in-plane turn of each tilt about the centre of its points: orthogonal to its mean
    angle = np.deg2rad(tilt_deg)[:, None]
    place = np.stack(np.broadcast_arrays(points[:, 0] * np.cos(angle) + points[:, 2] * np.sin(angle), points[:, 1]), -1)
    place = place - (place * visible[..., None]).sum(axis=1, keepdims=True) / seen[:, None, None]
    lever = np.stack([-place[..., 1], place[..., 0]], axis=-1) * visible[..., None]
    inertia = (lever**2).sum(axis=(1, 2))
    turn = (lever * distance).sum(axis=(1, 2)) / np.maximum(inertia, 1e-9)
    smooth_mean, smooth_turn = _smooth(tilt_deg, mean, count), _smooth(tilt_deg, turn[:, None], inertia)[:, 0]
    local = (distance - mean[:, None] - turn[:, None, None] * lever) * visible[..., None]
    squared = (distance**2).sum(axis=2)

    def rms(shift: Array, spin: Array) -> float:
        return float(np.sqrt((count @ (shift**2).sum(axis=1) + inertia @ spin**2) / count.sum()))

    return Residual(
        rms_px=float(np.sqrt(squared.sum() / count.sum())),
        median_px=float(np.median(np.sqrt(squared[visible]))),
        smooth_px=rms(smooth_mean, smooth_turn),
        jitter_px=rms(mean - smooth_mean, turn - smooth_turn),
        local_px=float(np.sqrt((local**2).sum() / count.sum())),
        per_tilt_px=np.sqrt(squared.sum(axis=1) / seen),
        shift_px=-mean,
        smooth_shift_px=-smooth_mean,
        turn_deg=np.rad2deg(turn),
        local_per_tilt_px=np.sqrt((local**2).sum(axis=(1, 2)) / seen),
    ), local


def _smooth(tilt_deg: Array, values: Array, weight: Array) -> Array:
    """Weighted least-squares polynomial in tilt through values ``(n, k)``."""
    degree = min(SMOOTH_DEGREE, max(len(tilt_deg) // 3 - 1, 0))
    centre = (tilt_deg.max() + tilt_deg.min()) / 2
    half = max(float(np.ptp(tilt_deg)) / 2, 1e-9)
    design = np.polynomial.legendre.legvander((tilt_deg - centre) / half, degree)
    root = np.sqrt(weight)[:, None]
    return np.asarray(design @ np.linalg.lstsq(design * root, values * root, rcond=None)[0])


def _local_map(local: Array, visible: Bools, place: Array, size: tuple[int, int]) -> LocalMap:
    """RMS in equal parts of the image in which the points are at ``place`` ``(points, 2)``."""
    count_x, count_y, _ = POINTS
    column = np.floor((place[:, 0] / size[0] + 0.5) * count_x).astype(int).clip(0, count_x - 1)
    row = np.floor((place[:, 1] / size[1] + 0.5) * count_y).astype(int).clip(0, count_y - 1)
    total, seen = np.zeros((2, count_y, count_x))
    np.add.at(total, (row, column), (local**2).sum(axis=(0, 2)))
    np.add.at(seen, (row, column), visible.sum(axis=0))
    rms = np.sqrt(np.divide(total, seen, out=np.full(total.shape, np.nan), where=seen > 0))
    return LocalMap(_middles(count_x, size[0]), _middles(count_y, size[1]), rms)


def _middles(count: int, length: float) -> Array:
    """Middles of ``count`` equal parts of a length about zero."""
    return np.asarray((np.arange(count) + 0.5) / count * length - length / 2)
