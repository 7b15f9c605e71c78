"""Penalties that say what is likely before any image is seen: value and gradient of each.

Of motion: the 2023 paper has none besides its data term; ICE-TIDE's is `deformation_size`; the others follow its remark
that motion goes with the dose. Of densities on a lattice: `total_variation`, `wedge_penalty` (coordinate network),
`isotropic_prior` and `boundary_consistency` (TensorDF). Rays through gold have no weight in `prepare.Prepared.weight`.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from inrtomo.reconstruct.wedge import beyond_tilt_range, crowther_frequency, soft_limit

F32 = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Real = NDArray[Any]

TAPER = 0.2
"""Part of each side over which a density falls to 0 before its Fourier transform."""

# Weights in units of the noise that the gradient of one voxel receives from all tilts (see `align.joint`). Measured
# with a hash field, motion known, 41 tilts of +-60 deg, -5 dB: correlation with the truth in all / outside what was
# measured. Without, blobs 0.924 / 0.910, hollow shells 0.748 / 0.696.
WEDGE_WEIGHT = 1.6  # 0.928 / 0.921, 0.754 / 0.709; better than 0.8, more was not tried
ISOTROPIC_WEIGHT = 1.0  # 0.925 / 0.912, 0.748 / 0.700; 0.3 and 3 are within 0.0005 of it in all
BOUNDARY_WEIGHT = 1.0  # as if the two points of a pair were two voxels; not measured


def deformation_size(
    rotation_deg: Floats,
    shift_px: Floats,
    vectors_px: Floats,
    weights: tuple[float, float, float],
) -> tuple[float, Floats, Floats, Floats]:
    """ICE-TIDE's eq. 7, summed over tilts: ``l1 |rotation| + l2 ||shift|| + l3 ||warp||``.

    Args:
        rotation_deg: ``(n_tilts,)`` deviation from the common axis; full turns do not count.
        shift_px: ``(n_tilts, 2)`` raw px.
        vectors_px: ``(n_tilts, ..., 2)`` warp on a uniform mesh of the view, raw px; its norm is the root of the
            sum of squares over the mesh, as in the paper.
        weights: ``(l1, l2, l3)`` per degree, per px and per px.

    Returns:
        Value and gradients with respect to rotation, shift and vectors; zero where a norm is zero.
    """
    wrapped = (np.asarray(rotation_deg) + 180.0) % 360.0 - 180.0
    shift_norm = np.linalg.norm(shift_px, axis=1)
    flat = np.asarray(vectors_px).reshape(len(vectors_px), -1)
    warp_norm = np.linalg.norm(flat, axis=1)
    l1, l2, l3 = weights
    value = float(l1 * np.abs(wrapped).sum() + l2 * shift_norm.sum() + l3 * warp_norm.sum())
    shift_slope = l2 * shift_px / np.where(shift_norm > 0, shift_norm, 1.0)[:, None]
    warp_slope = l3 * flat / np.where(warp_norm > 0, warp_norm, 1.0)[:, None]
    return value, l1 * np.sign(wrapped), shift_slope, warp_slope.reshape(np.shape(vectors_px))


def warp_energy(vectors_px: Floats) -> tuple[float, Floats]:
    """Half the sum of squares of node vectors ``(n_tilts, ny, nx, 2)``: a Gaussian prior on their size."""
    return 0.5 * float(np.square(vectors_px, dtype=np.float64).sum()), vectors_px.copy()


def warp_curvature(vectors_px: Floats) -> tuple[float, Floats]:
    """Bending energy of node vectors ``(n_tilts, ny, nx, 2)``.

    Half the sum of squared second differences along x and y and twice the mixed ones, in px per node interval;
    constant and linear motion is free.
    """
    slope = np.zeros_like(vectors_px)
    value = 0.0
    for axis in (1, 2):
        if vectors_px.shape[axis] > 2:
            v, g = np.moveaxis(vectors_px, axis, 0), np.moveaxis(slope, axis, 0)
            bend = v[2:] - 2 * v[1:-1] + v[:-2]
            value += 0.5 * float(np.square(bend, dtype=np.float64).sum())
            g[2:] += bend
            g[1:-1] -= 2 * bend
            g[:-2] += bend
    v, g = vectors_px, slope
    twist = v[:, 1:, 1:] - v[:, 1:, :-1] - v[:, :-1, 1:] + v[:, :-1, :-1]
    value += float(np.square(twist, dtype=np.float64).sum())
    g[:, 1:, 1:] += 2 * twist
    g[:, 1:, :-1] -= 2 * twist
    g[:, :-1, 1:] -= 2 * twist
    g[:, :-1, :-1] += 2 * twist
    return value, slope


def dose_ordered_change(values: Floats, order: NDArray[Any]) -> tuple[float, Floats]:
    """Half the sum of squared changes of ``values`` ``(n_tilts, ...)`` from one exposure to the next.

    ``order`` ``(n_tilts,)`` is anything that sorts the images by acquisition: index, time or dose received.
    """
    sequence = np.argsort(np.asarray(order), kind="stable")
    change = np.diff(values[sequence], axis=0)
    slope = np.zeros_like(values)
    slope[sequence[1:]] += change
    slope[sequence[:-1]] -= change
    return 0.5 * float(np.square(change, dtype=np.float64).sum()), slope


def total_variation(density: F32, rounding: float) -> tuple[float, F32]:
    """Isotropic total variation of a density on a lattice ``[z, x, y]``: sum of ``sqrt(|grad|^2 + rounding^2)``.

    Differences are forward, per voxel; ``rounding`` (same unit) keeps the gradient smooth where the density is
    flat and is subtracted again, so that a constant density costs nothing.
    """
    density = np.ascontiguousarray(density, dtype=np.float32)
    inverse, slope = np.empty_like(density), np.empty_like(density)
    sums = np.zeros(len(density))
    _inverse_norms(density, np.float32(rounding), inverse, sums)
    _divergence(density, inverse, slope)
    return float(sums.sum()), slope


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _inverse_norms(rho, rounding, inverse, sums):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    for z in nb.prange(nz):
        total = 0.0
        for x in range(nx):
            here, out = rho[z, x], inverse[z, x]
            along_z, along_x = rho[min(z + 1, nz - 1), x], rho[z, min(x + 1, nx - 1)]
            for y in range(ny):
                v = here[y]
                c = here[y + 1] - v if y + 1 < ny else np.float32(0)
                a, b = along_z[y] - v, along_x[y] - v
                norm = np.sqrt(a * a + b * b + c * c + rounding * rounding)
                total += norm - rounding
                out[y] = np.float32(1) / norm if norm > 0 else np.float32(0)
        sums[z] = total


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _divergence(rho, inverse, slope):  # type: ignore[no-untyped-def]
    nz, nx, ny = rho.shape
    for z in nb.prange(nz):
        for x in range(nx):
            for y in range(ny):
                v, i = rho[z, x, y], inverse[z, x, y]
                total = np.float32(0)
                if z + 1 < nz:
                    total -= (rho[z + 1, x, y] - v) * i
                if x + 1 < nx:
                    total -= (rho[z, x + 1, y] - v) * i
                if y + 1 < ny:
                    total -= (rho[z, x, y + 1] - v) * i
                if z > 0:
                    total += (v - rho[z - 1, x, y]) * inverse[z - 1, x, y]
                if x > 0:
                    total += (v - rho[z, x - 1, y]) * inverse[z, x - 1, y]
                if y > 0:
                    total += (v - rho[z, x, y - 1]) * inverse[z, x, y - 1]
                slope[z, x, y] = total


def wedge_penalty(
    density: Real, spacing_px: float, tilt_deg: Floats, thickness_px: float, rounding: float
) -> tuple[float, Real]:
    """Fourier amplitude in the missing wedge beyond the Crowther frequency, weighted by frequency.

    ``sum_k w(k) (sqrt(|F(k)|^2 + rounding^2) - rounding)`` over all components of the unitary transform F of the
    density under a soft edge; ``w = |k| / k_Nyquist`` outside the outermost tilts and above
    `wedge.crowther_frequency`, 0 elsewhere, with edges as soft as the slab's blur. This is the regularisation of the
    missing-wedge coordinate network (its figure 4). Amplitude, not its square: white noise has the same
    size in a unitary component as in a voxel, so a weight means the same as for `total_variation`.

    Args:
        density: lattice ``[z, x, y]``, float32 or float64.
        spacing_px: of the lattice, raw px.
        tilt_deg: angles of the tilts used.
        thickness_px: of the specimen, raw px.
        rounding: amplitude (unit of the density) below which the penalty is quadratic.

    Returns:
        Value, and its gradient on the lattice.
    """
    weight = wedge_weights(density.shape, tilt_deg, thickness_px / spacing_px).astype(density.dtype)
    seen = _SoftEdge(density.shape, (0, 1, 2), density.dtype)
    spectrum = scipy.fft.rfftn(seen.forward(density), norm="ortho", workers=nb.get_num_threads())
    amplitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + density.dtype.type(rounding) ** 2)
    value = np.sum((amplitude - rounding) * weight * _conjugates(density.shape[2]), dtype=np.float64)
    spectrum *= weight / amplitude
    return float(value), seen.adjoint(
        scipy.fft.irfftn(spectrum, density.shape, norm="ortho", workers=nb.get_num_threads())
    )


def wedge_weights(shape: tuple[int, ...], tilt_deg: Floats, thickness: float) -> NDArray[np.float64]:
    """Weights of `wedge_penalty` for ``rfftn`` of a lattice ``[z, x, y]``; thickness in its steps."""
    nz, nx, ny = shape
    kz, kx = np.fft.fftfreq(nz)[:, None], np.fft.fftfreq(nx)[None, :]
    # the soft edge doubles the blur along kz
    beyond = 1 - soft_limit(beyond_tilt_range(kx, kz, tilt_deg), thickness / 2)
    beyond = (beyond + np.roll(beyond[::-1, ::-1], 1, axis=(0, 1))) / 2  # at Nyquist both signs are one component
    k = np.sqrt((kz**2 + kx**2)[:, :, None] + np.fft.rfftfreq(ny) ** 2)
    above = 1 - soft_limit(np.maximum(k - crowther_frequency(tilt_deg, thickness), 0), thickness)
    return np.asarray(2 * k * above * beyond[:, :, None])


def isotropic_prior(density: Real, zeta0: float = 0.2) -> tuple[float, Real]:
    """Fourier amplitude on the x and y axes in excess of that of its ring, the isotropic Fourier prior of TensorDF.

    In every slice z, with the unitary two-dimensional transform F of the density under a soft edge,

    ``sum_k w(|k|) max(|F(k)| - mean_{|k'| = |k|} |F(k')|, 0)``  over k on the axes kx = 0 and ky = 0,
    ``w = 1 / (exp(zeta0 k_N - |k|) + 1)``, frequencies in Fourier pixels, k_N that of Nyquist:

    factors of low rank (and nodes' edges) leave streaks along the axes, which this takes away; w spares frequencies
    below zeta0 of Nyquist.

    Corrections to the paper's eq. 7: the mean is of amplitudes (as its text says; a mean of complex values is nearly
    0 on a ring and would make this a penalty on all amplitude), over the ring itself (the published code averages the
    square lattice of all pairs of its points' coordinates), of physical frequency, so that slices need not be square;
    only excess counts (text and code; the formula's absolute value also fills holes); and the ring's mean takes part
    in the gradient.

    Args:
        density: lattice ``[z, x, y]``, float32 or float64.
        zeta0: part of Nyquist at which the weight is half.

    Returns:
        Value, and its gradient on the lattice.
    """
    nz, nx, ny = density.shape
    seen = _SoftEdge(density.shape, (1, 2), density.dtype)
    spectrum = scipy.fft.rfft2(seen.forward(density), norm="ortho", workers=nb.get_num_threads())
    amplitude = np.abs(spectrum)

    ring, share, twice, weight = rings_of((nx, ny), zeta0)
    rings = int(ring.max()) + 1
    place = ring[None] + rings * np.arange(nz)[:, None, None]
    mean = np.bincount(place.ravel(), (amplitude * share).ravel(), rings * nz)
    excess = np.maximum(amplitude - mean[place], 0)
    value = float(np.sum(weight * excess))
    pull = weight * (excess > 0)
    pull -= share * np.bincount(place.ravel(), pull.ravel(), rings * nz)[place]
    spectrum *= (pull / twice / np.where(amplitude > 0, amplitude, 1)).astype(density.dtype)
    return value, seen.adjoint(scipy.fft.irfft2(spectrum, (nx, ny), norm="ortho", workers=nb.get_num_threads()))


def rings_of(
    shape: tuple[int, int], zeta0: float = 0.2
) -> tuple[NDArray[np.int64], NDArray[np.float64], F32, NDArray[np.float64]]:
    """Rings of equal frequency of ``rfft2`` of slices ``(nx, ny)``, each array ``(nx, ny // 2 + 1)``.

    Returns:
        The ring of every component, 0 for those of none; its share of the ring's mean, conjugates with it; how many
        components it stands for; and its weight in `isotropic_prior`, on the axes kx = 0 and ky = 0.
    """
    nx, ny = shape
    side = min(nx, ny)  # a ring is as wide as the coarser axis' sampling
    radius = side * np.hypot(np.fft.fftfreq(nx)[:, None], np.fft.rfftfreq(ny))
    ring = np.rint(radius).astype(np.int64)
    twice = np.broadcast_to(_conjugates(ny), ring.shape)
    inside = (ring > 0) & (ring <= side // 2)
    share = np.where(inside, twice, 0) / np.bincount(ring.ravel(), twice.ravel())[ring]
    on_axis = np.zeros(ring.shape)
    on_axis[0], on_axis[:, 0] = twice[0], twice[:, 0]
    weight = on_axis * inside / (np.exp(np.clip(zeta0 * side / 2 - radius, -30, 30)) + 1)
    return np.where(inside, ring, 0), share, twice, np.asarray(weight)


def boundary_consistency(values_a: Real, values_b: Real, rounding: float = 0.0) -> tuple[float, Real, Real]:
    """Differences of a density seen from the nodes on either side of an edge, TensorDF's eq. 6.

    ``sum_p sqrt((a_p - b_p)^2 + rounding^2) - rounding``.

    Args:
        values_a, values_b: ``(n_pairs,)`` densities at the same points, or at points facing each other, by the two
            nodes.
        rounding: difference (unit of the density) below which the penalty is quadratic.

    Returns:
        Value, and its gradients with respect to ``values_a`` and ``values_b``.
    """
    difference = values_a - values_b
    size = np.sqrt(difference**2 + difference.dtype.type(rounding) ** 2)
    slope = difference / np.where(size > 0, size, 1)
    return float(np.sum(size - rounding, dtype=np.float64)), slope, -slope


class _SoftEdge:
    """A density less its mean, falling to 0 at the faces, and the adjoint of that: nothing wraps around."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any) -> None:
        self.axes = axes
        self.window = np.ones((1,) * len(shape), dtype=dtype)
        for axis in axes:
            profile = soft_profile(shape[axis])
            self.window = self.window * profile.astype(dtype).reshape([-1 if k == axis else 1 for k in range(3)])
        self.total = self.window.sum(axis=axes, keepdims=True)

    def forward(self, density: Real) -> Real:
        seen = density * self.window
        return np.asarray(seen - self.window * (seen.sum(axis=self.axes, keepdims=True) / self.total))

    def adjoint(self, gradient: Real) -> Real:
        seen = gradient * self.window
        return np.asarray(seen - self.window * (seen.sum(axis=self.axes, keepdims=True) / self.total))


def soft_profile(size: int) -> NDArray[np.float64]:
    """The window ``(size,)`` along one axis: half a cosine over `TAPER` of it at either end."""
    inward = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.clip(inward / (TAPER * size), 0, 1)))


def _conjugates(size: int) -> NDArray[np.float32]:
    """2 for the components of ``rfft`` of ``size`` samples whose conjugate it leaves out, 1 for the others."""
    count = np.full(size // 2 + 1, 2.0, dtype=np.float32)
    count[0] = 1.0
    if size % 2 == 0:
        count[-1] = 1.0
    return count
