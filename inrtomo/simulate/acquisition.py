"""How a simulated microscope records: tilt angles and their order, motion of the image, local deformation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inrtomo.alignment import Alignment, LocalWarp
from inrtomo.geometry import axis_rotation, turned_size
from inrtomo.simulate.settings import SimulationSettings

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

SLICE_GAUGE_DEGREE = 4
EQUALISING_STEPS = 20


def tilt_scheme(settings: SimulationSettings, rng: np.random.Generator) -> tuple[Array, Ints]:
    """Nominal angles ``(n,)`` in stack order (rising) and the acquisition index ``(n,)`` of every image."""
    steps = int(np.floor(settings.tilt_range_deg / settings.tilt_step_deg + 1e-9))
    nominal = np.arange(-steps, steps + 1) * settings.tilt_step_deg
    if settings.scheme == "dose-symmetric":
        order = dose_symmetric_order(steps)
    else:
        order = np.arange(len(nominal))
    half = min(settings.uneven_tilt_deg, 0.45 * settings.tilt_step_deg)
    return nominal + rng.uniform(-half, half, len(nominal)), order


def dose_symmetric_order(steps: int) -> Ints:
    """Acquisition index of the images ``-steps .. steps``: 0, +1, -1, -2, +2, +3, -3, ... (Hagen et al. 2017)."""
    sequence = [0]
    for k in range(1, steps + 1):
        sequence += [k, -k] if k % 2 else [-k, k]
    order = np.empty(2 * steps + 1, dtype=np.int64)
    order[np.array(sequence) + steps] = np.arange(2 * steps + 1)
    return order


def true_alignment(
    settings: SimulationSettings, nominal_deg: Array, order: Ints, rng: np.random.Generator
) -> Alignment:
    """The alignment that the simulated images obey."""
    n = len(nominal_deg)
    rotation = settings.axis_deg + rng.uniform(-1, 1, n) * settings.rotation_jitter_deg
    shift = rng.uniform(-1, 1, (n, 2)) * settings.shift_px
    walk = np.cumsum(rng.normal(size=(n, 2)), axis=0) * settings.drift_px
    shift += (walk - walk[0])[order]
    tilt = settings.tilt_scale * nominal_deg + settings.tilt_offset_deg
    tilt += own_stream(settings, 5).normal(size=n) * settings.tilt_noise_deg
    stretch, shear = own_stream(settings, 6).uniform(-1, 1, (2, n)) * settings.distortion_percent / 100
    own = np.tile(np.eye(2), (n, 1, 1))
    own[:, 0, 0] = own[:, 1, 1] = 1 + stretch
    own[:, 0, 1] = shear
    warp = random_warp(settings, tilt, rng) if settings.warp_max_px else None
    return Alignment(
        tilt_deg=tilt,
        linear=np.stack([axis_rotation(a) for a in rotation]) @ np.linalg.inv(own),
        shift_px=shift,
        image_size=settings.size,
        pixel_size_A=settings.pixel_size_A,
        warp=warp,
    )


def own_stream(settings: SimulationSettings, aspect: int) -> np.random.Generator:
    """Random numbers of one aspect of a simulation: no aspect changes when another is asked for as well."""
    return np.random.default_rng([settings.seed, aspect])


def aligned_view(settings: SimulationSettings) -> tuple[int, int]:
    """Size (x, y) of the field of view along the specimen's axes: swapped when the tilt axis lies along raw x."""
    return turned_size(settings.size, settings.axis_deg)


def random_warp(settings: SimulationSettings, tilt_deg: Array, rng: np.random.Generator) -> LocalWarp:
    """Random control points without the part no single-axis series can show, scaled to the stated maximum.

    Independent normal control points per tilt; taken out are the mean over tilts, the rigid motions of the specimen
    and its slice gauge (see `gauge_fields`). Every tilt moves by about ``warp_max_px`` somewhere in the field of view
    and none by more. Each tilt's own affine part stays: it is real motion.
    """
    width, height = aligned_view(settings)
    points = settings.warp_points
    x, y = np.linspace(-width / 2, width / 2, points), np.linspace(-height / 2, height / 2, points)
    unwanted = gauge_basis(x, y, tilt_deg)
    vectors = rng.normal(size=(len(tilt_deg), points, points, 2))
    for _ in range(EQUALISING_STEPS):  # both conditions at once: scale every tilt, project, again
        vectors = _without(unwanted, vectors)
        largest = _largest(LocalWarp(x, y, vectors, "bicubic"))
        vectors = vectors / np.maximum(largest, 1e-12)[:, None, None, None]
    vectors = _without(unwanted, vectors)
    vectors *= settings.warp_max_px / _largest(LocalWarp(x, y, vectors, "bicubic")).max()
    return LocalWarp(x, y, vectors, "bicubic")


def _largest(warp: LocalWarp) -> Array:
    """Largest displacement of every tilt within the grid, ``(n_tilts,)``."""
    xs, ys = np.linspace(warp.x[0], warp.x[-1], 41), np.linspace(warp.y[0], warp.y[-1], 41)
    return np.array([np.linalg.norm(warp.on_lattice(m, xs, ys), axis=-1).max() for m in range(len(warp.vectors))])


def _without(basis: Array, vectors: Array) -> Array:
    flat = vectors.reshape(-1)
    return np.asarray((flat - basis @ (basis.T @ flat)).reshape(vectors.shape))


def gauge_fields(tilt_deg: Array, x: Array, y: Array, degree: int = SLICE_GAUGE_DEGREE) -> Array:
    """Displacements ``(n_fields, n_tilts, len(y), len(x), 2)`` that a specimen at z = 0 can make by itself.

    In aligned positions (u, y): translations and the slice gauge ``u += b(y) cos t + c(y) sin t - r(y) u tan t +
    p(y) u``, ``v += a(y)`` with polynomials in y, and the rotation in the plane (common to all tilts).
    """
    angle = np.deg2rad(tilt_deg)[:, None, None]
    u, row = np.meshgrid(x, y)
    half = max(np.abs(y).max(), 1.0)
    zero = np.zeros((len(tilt_deg), *u.shape))
    fields = []
    for power in range(degree + 1):
        q = (row / half) ** power
        for term in (np.cos(angle) * q, np.sin(angle) * q, -np.tan(angle) * q * u / half, q * u / half + zero):
            fields.append(np.stack([term, zero], axis=-1))
        fields.append(np.stack([zero, q + zero], axis=-1))
    fields.append(np.stack([-row * np.cos(angle), u / np.cos(angle)], axis=-1) / half)
    return np.stack(fields)


def gauge_basis(x: Array, y: Array, tilt_deg: Array) -> Array:
    """Orthonormal control vectors ``(n_tilts * len(y) * len(x) * 2, k)`` that a warp must not contain.

    A warp orthogonal to them has interpolated displacements orthogonal to every gauge field, and no mean over tilts.
    """
    n, nodes = len(tilt_deg), len(x) * len(y)
    xs, ys = np.linspace(x[0], x[-1], 17), np.linspace(y[0], y[-1], 17)
    eye = np.eye(nodes).reshape(nodes, len(y), len(x))
    unit = LocalWarp(x, y, np.stack([eye, 0 * eye], axis=-1), "bicubic")
    sampling = np.stack([unit.on_lattice(k, xs, ys)[..., 0] for k in range(nodes)])
    gauge = np.einsum("gmyxc,kyx->gmkc", gauge_fields(tilt_deg, xs, ys), sampling, optimize=True)
    rows = gauge.reshape(len(gauge), -1)
    means = np.einsum("kl,cd,m->kcmld", np.eye(nodes), np.eye(2), np.ones(n)).reshape(2 * nodes, -1)
    constraints = np.concatenate([rows / np.linalg.norm(rows, axis=1, keepdims=True), means / np.sqrt(n)])
    basis, size, _ = np.linalg.svd(constraints.T, full_matrices=False)
    return np.asarray(basis[:, size > 1e-9 * size[0]])
