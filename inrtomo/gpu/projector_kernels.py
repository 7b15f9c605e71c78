"""Triton kernels of projection: Joseph's projector and its adjoint, reading and spreading at deformed positions.

Ray i of a tilt and voxel (z, x) share ``max(0, 1 - |u_i - (x cos t + z sin t)| / m) / m`` with ``m = max(|cos t|,
|sin t|)`` (see `inrtomo.reconstruct.joseph`). Projecting gathers, for every ray and plane z, the voxels under that
hat; back-projecting gathers, for every voxel, the at most two rays over it. Both write each element once, so nothing
is added by two programs, and both work the weight out by the same arithmetic, so they are adjoint to rounding. Rows
y are the fast axis of everything: loads are contiguous.

``places (tilts, nz)`` holds ``z sin t`` and ``angles (tilts, 4)`` holds cos t, 1 / m, the voxels under a hat as a
float, and the half-width of the hat along x, all worked out in double precision beforehand.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

ADD: tl.constexpr = tl.constexpr(0)
CORRECT: tl.constexpr = tl.constexpr(1)
CORRECT_BY_STEP: tl.constexpr = tl.constexpr(2)
CORRECT_BY_MEANS: tl.constexpr = tl.constexpr(3)


@triton.jit
def _hat(u, x, z_sine, cosine, scale):
    """Share of ray u and a voxel at (x, z)."""
    return tl.maximum(1.0 - tl.abs(u - (x * cosine + z_sine)) * scale, 0.0) * scale


@triton.jit
def project(rho, places, angles, out, nz, nx, ny, n_u, x0, u0, RAYS: tl.constexpr, ROWS: tl.constexpr):
    """Projections ``(tilts, n_u, ny)`` of ``rho (nz, nx, ny)``; grid (blocks of y, blocks of rays, tilts)."""
    tilt = tl.program_id(2)
    y = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ray = tl.program_id(1) * RAYS + tl.arange(0, RAYS)
    seen = y < ny
    cosine, scale = tl.load(angles + tilt * 4), tl.load(angles + tilt * 4 + 1)
    taps, half = tl.load(angles + tilt * 4 + 2).to(tl.int32), tl.load(angles + tilt * 4 + 3)
    across = tl.where(tl.abs(cosine) < 1e-6, 1e-6, cosine)
    u = u0 + ray.to(tl.float32)
    total = tl.zeros((RAYS, ROWS), tl.float32)
    for z in range(0, nz):
        z_sine = tl.load(places + tilt * nz + z)
        start = tl.ceil((u - z_sine) / across - x0 - half)
        first = tl.minimum(tl.maximum(start, 0.0), nx).to(tl.int32)
        for tap in range(0, taps):
            j = first + tap
            w = _hat(u, x0 + j.to(tl.float32), z_sine, cosine, scale)
            inside = (j >= 0) & (j < nx) & (w > 0)
            at = (z * nx + j).to(tl.int64)[:, None] * ny + y[None, :]
            total += w[:, None] * tl.load(rho + at, mask=inside[:, None] & seen[None, :], other=0.0)
    to = (tilt * n_u + ray).to(tl.int64)[:, None] * ny + y[None, :]
    tl.store(out + to, total, mask=(ray < n_u)[:, None] & seen[None, :])


@triton.jit
def back_project(
    rho, projections, received, step, subset, places, angles, nz, nx, ny, n_tilts, n_u, x0, u0, least, lowest,
    MODE: tl.constexpr, VOXELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Change ``rho (nz, nx, ny)`` by the adjoint of `project`; grid (blocks of y, blocks of x, nz).

    `ADD`: ``rho += adjoint``. `CORRECT`: ``rho = max(lowest, rho + adjoint)``, `CORRECT_BY_STEP`: with ``step *``
    before the adjoint, `CORRECT_BY_MEANS`: with ``1 / max(least, adjoint of received)``; voxels that no ray passes
    stay as they are. ``subset`` names the row of ``places`` and ``angles`` of every projection.
    """
    z = tl.program_id(2)
    y = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(1) * VOXELS + tl.arange(0, VOXELS)
    seen = y < ny
    place = x0 + x.to(tl.float32)
    total, weight = tl.zeros((VOXELS, ROWS), tl.float32), tl.zeros((VOXELS, ROWS), tl.float32)
    passed = tl.zeros((VOXELS,), tl.int32)
    for k in range(0, n_tilts):
        tilt = tl.load(subset + k)
        cosine, scale, z_sine = (
            tl.load(angles + tilt * 4),
            tl.load(angles + tilt * 4 + 1),
            tl.load(places + tilt * nz + z),
        )
        at = place * cosine + z_sine - u0
        ray = tl.floor(at).to(tl.int32)
        passed = passed | ((at > -1.0) & (at < n_u)).to(tl.int32)
        for tap in tl.static_range(2):
            i = ray + tap
            w = _hat(u0 + i.to(tl.float32), place, z_sine, cosine, scale)
            w = tl.where((i >= 0) & (i < n_u), w, 0.0)
            here = (k * n_u + i).to(tl.int64)[:, None] * ny + y[None, :]
            mask = (w > 0)[:, None] & seen[None, :]
            total += w[:, None] * tl.load(projections + here, mask=mask, other=0.0)
            if MODE == CORRECT_BY_MEANS:
                weight += w[:, None] * tl.load(received + here, mask=mask, other=0.0)
    to = (z * nx + x).to(tl.int64)[:, None] * ny + y[None, :]
    kept = (x < nx)[:, None] & seen[None, :]
    if MODE != ADD:
        kept = kept & (passed > 0)[:, None]
    if MODE == CORRECT_BY_STEP:
        total = total * tl.load(step + to, mask=kept, other=0.0)
    if MODE == CORRECT_BY_MEANS:
        total = total / tl.maximum(weight, least)
    total += tl.load(rho + to, mask=kept, other=0.0)
    if MODE != ADD:
        total = tl.maximum(total, lowest)
    tl.store(rho + to, total, mask=kept)


@triton.jit
def _cubic(f, tap: tl.constexpr):
    """Catmull-Rom weight of one of the four neighbours at fraction ``f``."""
    f2 = f * f
    f3 = f2 * f
    if tap == 0:
        w = 0.5 * (2.0 * f2 - f - f3)
    elif tap == 1:
        w = 0.5 * (2.0 - 5.0 * f2 + 3.0 * f3)
    elif tap == 2:
        w = 0.5 * (f + 4.0 * f2 - 3.0 * f3)
    else:
        w = 0.5 * (f3 - f2)
    return w


@triton.jit
def _cubic_slope(f, tap: tl.constexpr):
    """Derivative of `_cubic`."""
    f2 = f * f
    if tap == 0:
        w = 0.5 * (4.0 * f - 1.0 - 3.0 * f2)
    elif tap == 1:
        w = 0.5 * (9.0 * f2 - 10.0 * f)
    elif tap == 2:
        w = 0.5 * (1.0 + 8.0 * f - 9.0 * f2)
    else:
        w = 0.5 * (3.0 * f2 - 2.0 * f)
    return w


@triton.jit
def _neighbourhood(u, v, valid, pixel, per_image, n_u, n_v):
    """Cell and fractions of a reading, whether all its neighbours exist, and where the first of them is."""
    iu, iv = tl.floor(u).to(tl.int32), tl.floor(v).to(tl.int32)
    inside = valid & (iu >= 1) & (iv >= 1) & (iu <= n_u - 3) & (iv <= n_v - 3)
    first = ((pixel // per_image).to(tl.int64) * n_u + iu - 1) * n_v + iv - 1
    return u - iu.to(tl.float32), v - iv.to(tl.float32), inside, first


@triton.jit
def read(
    projections, at_u, at_v, value, slope_u, slope_v, n, per_image, n_u, n_v, SLOPES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Cubic reading of projections ``(tilts, n_u, n_v)`` at ``n`` places; 0 outside, with slopes NaN there."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < n
    u, v = tl.load(at_u + pixel, mask=valid, other=0.0), tl.load(at_v + pixel, mask=valid, other=0.0)
    fu, fv, inside, first = _neighbourhood(u, v, valid, pixel, per_image, n_u, n_v)
    total, su, sv = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for a in tl.static_range(4):
        along, slope = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
        for b in tl.static_range(4):
            sample = tl.load(projections + first + a * n_v + b, mask=inside, other=0.0)
            along += _cubic(fv, b) * sample
            if SLOPES:
                slope += _cubic_slope(fv, b) * sample
        total += _cubic(fu, a) * along
        if SLOPES:
            su += _cubic_slope(fu, a) * along
            sv += _cubic(fu, a) * slope
    if SLOPES:
        total = tl.where(inside, total, float("nan"))
        tl.store(slope_u + pixel, su, mask=valid)
        tl.store(slope_v + pixel, sv, mask=valid)
    tl.store(value + pixel, total, mask=valid)


@triton.jit
def spread(values, at_u, at_v, out, n, per_image, n_u, n_v, BLOCK: tl.constexpr):
    """Adjoint of `read`'s value, added to ``out (tilts, n_u, n_v)``; an element meets about sixteen additions."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < n
    u, v = tl.load(at_u + pixel, mask=valid, other=0.0), tl.load(at_v + pixel, mask=valid, other=0.0)
    fu, fv, inside, first = _neighbourhood(u, v, valid, pixel, per_image, n_u, n_v)
    given = tl.load(values + pixel, mask=inside, other=0.0)
    for a in tl.static_range(4):
        for b in tl.static_range(4):
            part = given * _cubic(fu, a) * _cubic(fv, b)
            tl.atomic_add(out + first + a * n_v + b, part, mask=inside, sem="relaxed")


@triton.jit
def _length(rho, at, here, z, x, y, nz, nx, ny, rounding):
    """Forward differences of the density at a voxel, zero across a face, and their rounded length."""
    value = tl.load(rho + at, mask=here, other=0.0)
    dz = tl.load(rho + at + nx * ny, mask=here & (z < nz - 1), other=0.0) - value
    dx = tl.load(rho + at + ny, mask=here & (x < nx - 1), other=0.0) - value
    dy = tl.load(rho + at + 1, mask=here & (y < ny - 1), other=0.0) - value
    dz, dx, dy = tl.where(z < nz - 1, dz, 0.0), tl.where(x < nx - 1, dx, 0.0), tl.where(y < ny - 1, dy, 0.0)
    return dz, dx, dy, tl.sqrt(dz * dz + dx * dx + dy * dy + rounding * rounding)


@triton.jit
def add_variation(rho, grad, nz, nx, ny, n, weight, rounding, BLOCK: tl.constexpr):
    """Add ``weight`` times the gradient of the total variation of ``rho (nz, nx, ny)`` to ``grad``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < n
    y, x, z = (at % ny).to(tl.int32), (at // ny % nx).to(tl.int32), (at // ny // nx).to(tl.int32)
    dz, dx, dy, length = _length(rho, at, here, z, x, y, nz, nx, ny, rounding)
    slope = -(dz + dx + dy) / length
    before = here & (z > 0)
    dz, dx, dy, length = _length(rho, at - nx * ny, before, z - 1, x, y, nz, nx, ny, rounding)
    slope += tl.where(before, dz / length, 0.0)
    before = here & (x > 0)
    dz, dx, dy, length = _length(rho, at - ny, before, z, x - 1, y, nz, nx, ny, rounding)
    slope += tl.where(before, dx / length, 0.0)
    before = here & (y > 0)
    dz, dx, dy, length = _length(rho, at - 1, before, z, x, y - 1, nz, nx, ny, rounding)
    slope += tl.where(before, dy / length, 0.0)
    tl.store(grad + at, tl.load(grad + at, mask=here, other=0.0) + weight * slope, mask=here)


@triton.jit
def adam(parameters, gradient, first, second, steps, n, beta1, beta2, epsilon, BLOCK: tl.constexpr):
    """One Adam update in place; ``steps`` holds the step size and the correction of the second moment."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < n
    g = tl.load(gradient + i, mask=here, other=0.0)
    m = beta1 * tl.load(first + i, mask=here, other=0.0) + (1.0 - beta1) * g
    v = beta2 * tl.load(second + i, mask=here, other=0.0) + (1.0 - beta2) * g * g
    move = tl.load(steps) * m / (tl.sqrt(v) * tl.load(steps + 1) + epsilon)
    tl.store(first + i, m, mask=here)
    tl.store(second + i, v, mask=here)
    tl.store(parameters + i, tl.load(parameters + i, mask=here, other=0.0) - move, mask=here)


@triton.jit
def back_project_lines(
    lines, cosines, sines, z, x, out, n_tilts, n_u, nz, nx, rows, u0, samples, VOXELS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Add lines ``(n_tilts, n_u, rows)``, ``samples`` a voxel, along their rays to ``out (nz, nx, rows)``.

    Grid (blocks of rows, blocks of x, nz).
    """
    k = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * VOXELS + tl.arange(0, VOXELS)
    seen = row < rows
    place, height = tl.load(x + i, mask=i < nx, other=0.0), tl.load(z + k)
    total = tl.zeros((VOXELS, ROWS), tl.float32)
    for m in range(0, n_tilts):
        at = (place * tl.load(cosines + m) + height * tl.load(sines + m) - u0) * samples
        j = tl.floor(at).to(tl.int32)
        f = at - j.to(tl.float32)
        inside = (i < nx) & (j >= 0) & (j + 1 < n_u)
        here = lines + (m * n_u + j).to(tl.int64)[:, None] * rows + row[None, :]
        mask = inside[:, None] & seen[None, :]
        total += (1.0 - f)[:, None] * tl.load(here, mask=mask, other=0.0)
        total += f[:, None] * tl.load(here + rows, mask=mask, other=0.0)
    to = out + (k * nx + i).to(tl.int64)[:, None] * rows + row[None, :]
    kept = (i < nx)[:, None] & seen[None, :]
    tl.store(to, tl.load(to, mask=kept, other=0.0) + total, mask=kept)
