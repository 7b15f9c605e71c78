"""Triton kernels of rays integrated within the hash field: what the engine does not do, to be timed beside it.

A tile is a block of neighbouring rays along y (the tilt axis) of one tilt and one u. A program walks along them in
equidistant steps: features, decoder and softplus as in `inrtomo.gpu.hash_kernels`, summed in registers, and writes one
number per ray. Backwards it walks again; nothing per sample reaches memory either way.

The ray of tilt t through u is ``x = u cos t - s sin t, z = u sin t + s cos t``. Samples are at ``s = k step`` for every
whole k for which they lie in the field's box. ``angles (tilts, 2)`` holds cosines and sines. ``u`` has an element per
ray where a warp has ``BENT`` the rows of pixels; else one per tile, whose rays then share their cells across y.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

from inrtomo.gpu.hash_kernels import (
    _columns,
    _decode,
    _decode_backward,
    _empty_sums,
    _features,
    _features_backward,
    _place,
    _softplus,
    _store_sums,
)

LEAST_SLOPE: tl.constexpr = tl.constexpr(1e-5)


@triton.jit
def _rays(u, y, angles, row, block, n_u, n_y, BENT: tl.constexpr, BLOCK: tl.constexpr):
    """Indices of a tile's rays, which of them there are, their u and y, cosine and sine of the tilt."""
    lane = block * BLOCK + tl.arange(0, BLOCK)
    ray = row.to(tl.int64) * n_y + tl.minimum(lane, n_y - 1)
    at = ray if BENT else row + tl.arange(0, 1)
    angle = angles + 2 * (row // n_u)
    return ray, lane < n_y, tl.load(u + at), tl.load(y + ray), tl.load(angle), tl.load(angle + 1)


@triton.jit
def _within(start, slope, low, high):
    """From where to where along a ray ``start + s * slope`` lies between two values."""
    slope = tl.where(tl.abs(slope) < LEAST_SLOPE, LEAST_SLOPE, slope)
    one, other = (low - start) / slope, (high - start) / slope
    return tl.minimum(one, other), tl.maximum(one, other)


@triton.jit
def _span(u, cosine, sine, origin, upper, step):
    """First and last sample of a tile's rays in the box, or one beyond."""
    z_from, z_to = _within(u * sine, cosine, tl.load(origin), tl.load(upper))
    x_from, x_to = _within(u * cosine, -sine, tl.load(origin + 1), tl.load(upper + 1))
    first = tl.min(tl.maximum(z_from, x_from), axis=0) / step
    last = tl.max(tl.minimum(z_to, x_to), axis=0) / step
    return tl.floor(first).to(tl.int32), tl.ceil(last).to(tl.int32)


@triton.jit
def _sample(k, u, cosine, sine, step):
    """Where a tile's rays have their sample k: z and x."""
    s = k * step
    return u * sine + s * cosine, u * cosine - s * sine


@triton.jit
def _between(value, axis: tl.constexpr, origin, upper):
    """Whether coordinates along an axis are in the box."""
    return (value >= tl.load(origin + axis)) & (value <= tl.load(upper + axis))


@triton.jit
def rays_forward(
    tables, weights, geometry, level_weights, origin, upper, spacing, angles, u, y, out, n_u, n_y, step, scale,
    BENT: tl.constexpr, F: tl.constexpr, ACTIVE: tl.constexpr, NIN: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Line integrals ``(tilts, n_u, n_y)``, density x raw px; grid ``(tilts * n_u, blocks of y)``."""
    ray, seen, ray_u, ray_y, cosine, sine = _rays(
        u, y, angles, tl.program_id(0), tl.program_id(1), n_u, n_y, BENT, BLOCK
    )
    level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
    weight = tl.load(level_weights + level, mask=real, other=0.0)
    cy, fy = _place(ray_y, 2, origin, spacing, geometry, level)
    beside = seen & _between(ray_y, 2, origin, upper)
    first, last = _span(ray_u, cosine, sine, origin, upper, step)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(first, last + 1):
        z, x = _sample(k, ray_u, cosine, sine, step)
        inside = beside & _between(z, 0, origin, upper) & _between(x, 1, origin, upper)
        cz, fz = _place(z, 0, origin, spacing, geometry, level)
        cx, fx = _place(x, 1, origin, spacing, geometry, level)
        used = real[None, :] & inside[:, None]
        features = weight[None, :] * _features(tables, base, width, run, mask, used, cz, fz, cx, fx, cy, fy)
        value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
        total += tl.where(inside, _softplus(value), 0.0)
    tl.store(out + ray, scale * step * total, mask=seen)


@triton.jit
def rays_backward(
    tables, weights, geometry, level_weights, origin, upper, spacing, angles, u, y, given, grad_tables, private,
    grad_u, grad_y, partial, n_rows, n_u, n_y, n_weights, private_size, n_private, copies, step, scale,
    BENT: tl.constexpr, F: tl.constexpr, ACTIVE: tl.constexpr, NIN: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, TRAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of tables, decoder and every ray's u and y; grid (programs,), each taking every so many tiles.

    Tables have private copies of coarse levels as in `inrtomo.gpu.hash_kernels.points_backward`.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
    weight = tl.load(level_weights + level, mask=real, other=0.0)
    cell = tl.load(spacing + level)
    alone = (level < n_private)[None, :]
    own = private + (program % copies).to(tl.int64) * private_size
    g1, b1, g2, b2, g3, b3, go, bo = _empty_sums(K, H, HIDDEN)
    for tile in range(program, n_rows * ((n_y + BLOCK - 1) // BLOCK), programs):
        ray, seen, ray_u, ray_y, cosine, sine = _rays(
            u, y, angles, tile % n_rows, tile // n_rows, n_u, n_y, BENT, BLOCK
        )
        cy, fy = _place(ray_y, 2, origin, spacing, geometry, level)
        beside = seen & _between(ray_y, 2, origin, upper)
        per_length = scale * step * tl.load(given + ray, mask=seen, other=0.0)
        along_u, along_y = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        first, last = _span(ray_u, cosine, sine, origin, upper, step)
        for k in range(first, last + 1):
            z, x = _sample(k, ray_u, cosine, sine, step)
            inside = beside & _between(z, 0, origin, upper) & _between(x, 1, origin, upper)
            cz, fz = _place(z, 0, origin, spacing, geometry, level)
            cx, fx = _place(x, 1, origin, spacing, geometry, level)
            used = real[None, :] & inside[:, None]
            features = weight[None, :] * _features(tables, base, width, run, mask, used, cz, fz, cx, fx, cy, fy)
            value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
            slope = tl.where(inside, per_length * tl.sigmoid(value), 0.0)
            d, g1, b1, g2, b2, g3, b3, go, bo = _decode_backward(
                features, h1, h2, h3, slope, weights, g1, b1, g2, b2, g3, b3, go, bo,
                NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF,
            )  # fmt: skip
            d = d * weight[None, :]
            sz, sx, sy = _features_backward(
                tables, grad_tables, own, alone, base, width, run, mask, used, d, cz, fz, cx, fx, cy, fy
            )
            d = d / cell[None, :]
            along_u += tl.sum(d * (sz * sine + sx * cosine), axis=1)
            along_y += tl.sum(d * sy, axis=1)
        tl.store(grad_u + ray, along_u, mask=seen)
        tl.store(grad_y + ray, along_y, mask=seen)
    if TRAIN:
        out = partial + program.to(tl.int64) * n_weights
        _store_sums(out, g1, b1, g2, b2, g3, b3, go, bo, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H)
