"""How a specimen moves under the beam: a smooth displacement of its points in 3-D, tilt by tilt.

The displacement is a sum of a few closed-form fields of the point (monomials, plane waves, plane waves times z), each
with a vector that depends on the electrons the specimen has had. So it can be evaluated at any point, exactly, and it
knows nothing of control points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from inrtomo.simulate.settings import SimulationSettings

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SETTLING_DOSE = 40.0
"""Electrons per Å² in which the rate of motion falls to 1/e: fast at first, then slower, as beam-induced motion is."""
RANDOM_WAVES = 24
RANDOM_PROGRESS = 0.5
"""Correlation length of the random part in progress (0 before the first exposure, 1 before the last)."""
DEPTH_STRETCH = 4.0
"""The random part's correlation length along z over that in the plane: a sheet bends and shears more than it churns."""
HIGHEST_POWER = 3
INVERSION_TOLERANCE_PX = 1e-3
INVERSION_STEPS = 50

_POWERS = np.array([p for p in product(range(HIGHEST_POWER + 1), repeat=3) if sum(p) <= HIGHEST_POWER])


@dataclass(frozen=True)
class SpecimenMotion:
    """Displacement of specimen points: the material at X in the specimen of reference is at ``X + D_m(X)`` in tilt m.

    Attributes:
        scale_px: length by which coordinates are divided in the monomials, and z in the waves times z.
        waves: wave vectors ``(n_waves, 3)`` (x, y, z), radians per px.
        coefficients: ``(n_tilts, n_fields, 3)``, px: the displacement vector of every field in every tilt.
    """

    scale_px: float
    waves: Array
    coefficients: Array

    def displacement(self, tilt: int, points: Floats) -> Floats:
        """``D_m(X)`` in px for specimen points ``(..., 3)`` (x, y, z), in their own precision."""
        flat = points.reshape(-1, 3)
        return np.asarray(self._fields(flat) @ self.coefficients[tilt].astype(flat.dtype)).reshape(points.shape)

    def moved(self, tilt: int, points: Floats) -> Floats:
        """Where specimen points ``(..., 3)`` are in a tilt."""
        return np.asarray(points + self.displacement(tilt, points))

    def unmoved(self, tilt: int, places: Floats, half_box: Array) -> Floats:
        """Inverse of `moved`: which specimen points are at the places ``(..., 3)`` in a tilt.

        Points beyond ``half_box`` ``(3,)`` (x, y, z), where no specimen is and the motion may be wild, are put on its
        faces.
        """
        limit = half_box.astype(places.dtype)
        points = np.clip(places, -limit, limit)
        for _ in range(INVERSION_STEPS):
            new = np.clip(places - self.displacement(tilt, points), -limit, limit)
            done = np.abs(new - points).max(initial=0.0) < INVERSION_TOLERANCE_PX
            points = new
            if done:
                break
        return points

    def _fields(self, points: Floats) -> Floats:
        """Values of all fields ``(n, n_fields)`` at points ``(n, 3)``."""
        scaled = points / points.dtype.type(self.scale_px)
        powers = [np.ones_like(scaled)]
        for _ in range(HIGHEST_POWER):
            powers.append(powers[-1] * scaled)
        monomials = np.stack([powers[a][:, 0] * powers[b][:, 1] * powers[c][:, 2] for a, b, c in _POWERS], axis=1)
        phase = points @ self.waves.T.astype(points.dtype)
        cosine, sine = np.cos(phase), np.sin(phase)
        z = scaled[:, 2:]
        return np.concatenate([monomials, cosine, sine, z * cosine, z * sine], axis=1)


def make_motion(
    settings: SimulationSettings,
    order: Ints,
    tilt_deg: Array,
    used: Bools,
    view: tuple[int, int],
    rng: np.random.Generator,
) -> SpecimenMotion | None:
    """The motion that the settings ask for, or None for none.

    What is common to all tilts is taken out (`without_static`): a specimen that is bent the same way throughout is
    another specimen, and no series could tell it. So is the static part of the radial distortion of the images.

    Args:
        order: acquisition index of every tilt; tilt_deg: true angles; used: tilts that are not blank, ``(n_tilts,)``.
        view: size (x, y) of the field of view along the specimen's axes, px.
    """
    s = settings
    sizes = (s.motion_px, s.doming_px, s.thinning_px, s.sliding_px, s.creep_px, s.radial_px)
    if not any(sizes):
        return None
    half = max(view) / 2
    progress = dose_progress(order, s.dose_per_tilt)
    creep, slide = rng.uniform(0, 2 * np.pi, 2)
    dome = rng.uniform(-0.25, 0.25, 2) * view
    length = s.motion_length_px * np.array([1.0, 1.0, DEPTH_STRETCH])
    k = np.pi / min(view)
    waves = np.concatenate([[[k, 0, 0], [0, k, 0]], rng.normal(size=(RANDOM_WAVES, 3)) / length])
    empty = SpecimenMotion(half, waves, np.zeros((len(order), len(_POWERS) + 4 * len(waves), 3)))

    random = _random_part(empty, progress, rng)
    random = without_static(random, tilt_deg, used)
    lattice = np.stack(
        np.meshgrid(*(np.linspace(-n / 2, n / 2, c) for n, c in ((view[0], 9), (view[1], 9), (s.thickness_px, 3)))), -1
    ).reshape(-1, 3)
    seen = np.stack([_projected(random.displacement(int(m), lattice), tilt_deg[m]) for m in np.flatnonzero(used)])
    coefficients = random.coefficients * (s.motion_px / np.sqrt((seen**2).mean()))

    ordered = np.zeros_like(empty.coefficients[0])
    ordered[_power(0, 0, 0), :2] = s.creep_px * np.array([np.cos(creep), np.sin(creep)])
    deep = _power(0, 0, 1)
    ordered[deep, :2] = s.sliding_px * np.array([np.cos(slide), np.sin(slide)]) * half / (s.thickness_px / 2)
    ordered[deep, 2] = -s.thinning_px * half / (s.thickness_px / 2)
    # a thin plate: z moves by w(x, y) and what is at height z above its middle by -z grad w in the plane
    n = len(waves)
    for axis in range(2):
        cosine = len(_POWERS) + axis
        sine, z_cosine, z_sine = cosine + n, cosine + 2 * n, cosine + 3 * n
        at = k * dome[axis]
        ordered[[cosine, sine], 2] = s.doming_px / 2 * np.array([np.cos(at), np.sin(at)])
        slope = s.doming_px / 2 * k * half
        ordered[[z_sine, z_cosine], axis] = slope * np.array([np.cos(at), -np.sin(at)])
    coefficients = coefficients + progress[:, None, None] * ordered
    coefficients += _radial_displacement(s, half, tilt_deg)
    motion = without_static(replace(empty, coefficients=coefficients), tilt_deg, used)
    # the image's distortion itself is made in the images; here only its static part was to be undone
    return replace(motion, coefficients=motion.coefficients - _radial_displacement(s, half, tilt_deg))


def dose_progress(order: Ints, dose_per_tilt: float) -> Array:
    """How far the motion has gone before every tilt ``(n_tilts,)``: 0 before the first exposure, 1 before the last.

    ``1 - exp(-dose / SETTLING_DOSE)`` over its last value.
    """
    dose = dose_per_tilt * np.asarray(order, dtype=np.float64)
    progress = 1 - np.exp(-dose / SETTLING_DOSE)
    return np.asarray(progress / max(progress.max(), 1e-12))


def without_static(motion: SpecimenMotion, tilt_deg: Array, used: Bools) -> SpecimenMotion:
    """The motion with, at every point, its best-fitting constant displacement (as the images see it) taken away.

    Seen at tilt t is ``(D_x cos t + D_z sin t, D_y)``; the constant is its least-squares fit over the ``used`` tilts.
    What is left is orthogonal, point by point, to all that a specimen can do by itself, the slice gauge included.
    """
    look = np.stack([np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))], axis=1)  # (n, 2): of x and z
    across = np.einsum("mc,mkc->mk", look, motion.coefficients[..., [0, 2]])
    constant = np.empty(motion.coefficients.shape[1:])
    constant[:, [0, 2]] = (np.linalg.pinv(look[used]) @ across[used]).T
    constant[:, 1] = motion.coefficients[used, :, 1].mean(axis=0)
    return replace(motion, coefficients=motion.coefficients - constant)


def _random_part(empty: SpecimenMotion, progress: Array, rng: np.random.Generator) -> SpecimenMotion:
    """A Gaussian random field of place and progress made of plane waves, of no particular size."""
    n = len(empty.waves)
    vectors = rng.normal(size=(RANDOM_WAVES, 3))
    phase = (
        rng.uniform(0, 2 * np.pi, RANDOM_WAVES) + progress[:, None] * rng.normal(size=RANDOM_WAVES) / RANDOM_PROGRESS
    )
    coefficients = empty.coefficients.copy()
    first = len(_POWERS) + n - RANDOM_WAVES
    coefficients[:, first : first + RANDOM_WAVES] = np.cos(phase)[..., None] * vectors
    coefficients[:, first + n : first + n + RANDOM_WAVES] = -np.sin(phase)[..., None] * vectors
    return replace(empty, coefficients=coefficients)


def _radial_displacement(settings: SimulationSettings, half: float, tilt_deg: Array) -> Array:
    """Coefficients ``(n_tilts, n_fields, 3)`` of a displacement that looks like the radial distortion of the images.

    In the images that is ``u |u|^2`` times a constant, with ``u = (x cos t + z sin t, y)``; here along the image's own
    axis x (as D_x = cos t, D_z = sin t times it) and y. Shifts and rotations make a difference of second order.
    """
    n_fields = len(_POWERS) + 4 * (2 + RANDOM_WAVES)
    out = np.zeros((len(tilt_deg), n_fields, 3))
    if not settings.radial_px:
        return out
    size = settings.radial_px / (np.hypot(*settings.size) / 2) ** 3 * half**3
    c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    across = {
        (3, 0, 0): c**3, (2, 0, 1): 3 * c**2 * s, (1, 0, 2): 3 * c * s**2, (0, 0, 3): s**3, (1, 2, 0): c, (0, 2, 1): s,
    }  # fmt: skip
    for powers, value in across.items():
        out[:, _power(*powers), 0] = size * value * c
        out[:, _power(*powers), 2] = size * value * s
    for powers, value in {(2, 1, 0): c**2, (1, 1, 1): 2 * c * s, (0, 1, 2): s**2, (0, 3, 0): np.ones_like(c)}.items():
        out[:, _power(*powers), 1] = size * value
    return out


def _power(x: int, y: int, z: int) -> int:
    return int(np.flatnonzero((_POWERS == (x, y, z)).all(axis=1))[0])


def _projected(displacement: Floats, tilt_deg: float) -> Array:
    c, s = np.cos(np.deg2rad(tilt_deg)), np.sin(np.deg2rad(tilt_deg))
    return np.stack([displacement[:, 0] * c + displacement[:, 2] * s, displacement[:, 1]], axis=1)
