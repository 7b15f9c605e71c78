"""Triton kernels of grid fields: encoding, decoder and softplus in one pass, their gradients, and the transposes.

A tile is a block of points by all features of all levels, ``(BLOCK, K)``: gathers fill it, matrix products on
tensor cores decode it (half-precision operands, float32 sums), and only the density is written. Backwards the tile is
made again. Gradients of tables never go through contended additions:

* on a lattice, a program walks one column of voxels along z with the two open vertex planes of every level in
  registers, and stores each plane once; `reduce_x` and `reduce_y` are the transposes of linear interpolation along the
  other axes, as gathers; `hashed_runs` sums the runs of vertices that share a slot, in an order sorted beforehand.
  Nothing is added by two programs, so sums do not depend on the order of execution;
* at free points, coarse levels have many private copies, fine ones are spread widely by themselves.

Indices within a level follow `inrtomo.fields.encodings.HashGrid`; ``geometry`` holds a row of `GEOMETRY` per level.
Levels, widths and paddings are compile-time constants. K and H are the numbers of features and of hidden units, each
padded to a power of two that tensor cores take.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc"

from __future__ import annotations

import triton
import triton.language as tl

GEOMETRY = ("start", "plane", "nz", "nx", "ny", "run", "mask")
COLUMNS: tl.constexpr = tl.constexpr(len(GEOMETRY))
PRIME_Z: tl.constexpr = tl.constexpr(2654435761)
PRIME_Y: tl.constexpr = tl.constexpr(805459861)
RUN: tl.constexpr = tl.constexpr(16)


@triton.jit
def _columns(geometry, K: tl.constexpr, F: tl.constexpr, ACTIVE: tl.constexpr):
    """Level of every feature column, whether it is one, where its plane begins, and the level's geometry."""
    k = tl.arange(0, K)
    real = k < ACTIVE * F
    level = tl.where(real, k // F, 0)
    at = geometry + level * COLUMNS
    base = tl.load(at) + (k % F) * tl.load(at + 1)
    return level, real, base[None, :], tl.load(at + 3)[None, :], tl.load(at + 5)[None, :], tl.load(at + 6)[None, :]


@triton.jit
def _entry(cz, cx, cy, width, run, mask):
    """Index of a vertex in its level's plane of one feature."""
    dense = (cz * width + cx) * run + cy
    hashed = cx.to(tl.uint32) ^ (cz.to(tl.uint32) * PRIME_Z) ^ ((cy // RUN).to(tl.uint32) * PRIME_Y)
    slot = (hashed & mask.to(tl.uint32)).to(tl.int32)
    return tl.where(mask == 0, dense, slot * RUN + cy % RUN)


@triton.jit
def _features(tables, base, width, run, mask, used, cz, fz, cx, fx, cy, fy):
    """Trilinear interpolation of every column; cells and fractions broadcast to the tile."""
    total = tl.zeros_like(fx + fy + fz)
    for edge in range(4):  # of the cell along y; a loop, because eight gathers at once take too many registers
        dz, dx = edge // 2, edge % 2
        w = tl.where(dz == 1, fz, 1.0 - fz) * tl.where(dx == 1, fx, 1.0 - fx)
        for dy in tl.static_range(2):
            at = base + _entry(cz + dz, cx + dx, cy + dy, width, run, mask)
            total += w * (fy if dy else 1.0 - fy) * tl.load(tables + at, mask=used, other=0.0)
    return total


@triton.jit
def _features_backward(tables, grad_tables, own, alone, base, width, run, mask, used, d, cz, fz, cx, fx, cy, fy):
    """Derivatives of `_features` along z, x and y, per cell; its gradient ``d`` is added to the tables' gradient.

    Columns that are ``alone`` add to ``own`` instead, a private copy.
    """
    sz, sx, sy = tl.zeros_like(d), tl.zeros_like(d), tl.zeros_like(d)
    for edge in range(4):
        dz, dx = edge // 2, edge % 2
        wz, wx = tl.where(dz == 1, fz, 1.0 - fz), tl.where(dx == 1, fx, 1.0 - fx)
        for dy in tl.static_range(2):
            wy = fy if dy else 1.0 - fy
            at = base + _entry(cz + dz, cx + dx, cy + dy, width, run, mask)
            entry = tl.load(tables + at, mask=used, other=0.0)
            sz += entry * wx * wy * (2.0 * dz - 1.0)
            sx += entry * wz * wy * (2.0 * dx - 1.0)
            sy += entry * wz * wx * (2.0 * dy - 1.0)
            part = d * wz * wx * wy
            tl.atomic_add(own + at, part, mask=used & alone, sem="relaxed")
            tl.atomic_add(grad_tables + at, part, mask=used & (alone == 0), sem="relaxed")
    return sz, sx, sy


@triton.jit
def _product(a, b, HALF: tl.constexpr):
    """Matrix product in float32; operands in half precision if asked for."""
    if HALF:
        out = tl.dot(a.to(tl.float16), b.to(tl.float16))
    else:
        out = tl.dot(a, b, input_precision="ieee")
    return out


@triton.jit
def _slope_product(a, b, HALF: tl.constexpr):
    """As `_product` for gradients, whose range half precision may not hold: TF32 has its digits and float32's range."""
    if HALF:
        out = tl.dot(a, b, input_precision="tf32")
    else:
        out = tl.dot(a, b, input_precision="ieee")
    return out


@triton.jit
def _matrix(
    weights, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, USED: tl.constexpr
):  # fmt: skip
    """A layer's matrix, transposed and padded to ``(ROWS, WIDE)``, and its offsets; the first USED rows count."""
    i, o = tl.arange(0, ROWS), tl.arange(0, WIDE)
    known = (i[:, None] < USED) & (o[None, :] < OUTPUTS)
    matrix = tl.load(weights + o[None, :] * INPUTS + i[:, None], mask=known, other=0.0)
    return matrix, tl.load(weights + INPUTS * OUTPUTS + o, mask=o < OUTPUTS, other=0.0)


@triton.jit
def _decode(
    x, weights, NIN: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr,
    H: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Argument of the softplus ``(BLOCK,)`` and the activations of the hidden layers (``x`` where there is none)."""
    first, inner = (NIN + 1) * WIDTH, (WIDTH + 1) * WIDTH
    h1, h2, h3 = x, x, x
    if HIDDEN == 0:
        k = tl.arange(0, K)
        out = tl.sum(x * tl.load(weights + k, mask=k < USED, other=0.0)[None, :], axis=1) + tl.load(weights + NIN)
    else:
        w, b = _matrix(weights, NIN, WIDTH, K, H, USED)
        h1 = tl.maximum(_product(x, w, HALF) + b[None, :], 0.0)
        last = h1
        if HIDDEN >= 2:
            w, b = _matrix(weights + first, WIDTH, WIDTH, H, H, WIDTH)
            h2 = tl.maximum(_product(h1, w, HALF) + b[None, :], 0.0)
            last = h2
        if HIDDEN >= 3:
            w, b = _matrix(weights + first + inner, WIDTH, WIDTH, H, H, WIDTH)
            h3 = tl.maximum(_product(h2, w, HALF) + b[None, :], 0.0)
            last = h3
        o = tl.arange(0, H)
        at = weights + first + (HIDDEN - 1) * inner
        out = tl.sum(last * tl.load(at + o, mask=o < WIDTH, other=0.0)[None, :], axis=1) + tl.load(at + WIDTH)
    return out, h1, h2, h3


@triton.jit
def _decode_backward(
    x, h1, h2, h3, slope, weights, g1, b1, g2, b2, g3, b3, go, bo, NIN: tl.constexpr, USED: tl.constexpr,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Gradient of the features ``(BLOCK, K)`` from that of the output; sums of the weights' gradients, added to."""
    first, inner = (NIN + 1) * WIDTH, (WIDTH + 1) * WIDTH
    bo += tl.sum(slope, axis=0)
    if HIDDEN == 0:
        k = tl.arange(0, K)
        go += tl.sum(x * slope[:, None], axis=0)
        dx = slope[:, None] * tl.load(weights + k, mask=k < USED, other=0.0)[None, :]
    else:
        o = tl.arange(0, H)
        out = tl.load(weights + first + (HIDDEN - 1) * inner + o, mask=o < WIDTH, other=0.0)
        if HIDDEN == 3:
            go += tl.sum(h3 * slope[:, None], axis=0)
            d = tl.where(h3 > 0, slope[:, None] * out[None, :], 0.0)
            g3 += _slope_product(tl.trans(h2), d, HALF)
            b3 += tl.sum(d, axis=0)
            w, b = _matrix(weights + first + inner, WIDTH, WIDTH, H, H, WIDTH)
            d = tl.where(h2 > 0, _slope_product(d, tl.trans(w), HALF), 0.0)
        if HIDDEN == 2:
            go += tl.sum(h2 * slope[:, None], axis=0)
            d = tl.where(h2 > 0, slope[:, None] * out[None, :], 0.0)
        if HIDDEN >= 2:
            g2 += _slope_product(tl.trans(h1), d, HALF)
            b2 += tl.sum(d, axis=0)
            w, b = _matrix(weights + first, WIDTH, WIDTH, H, H, WIDTH)
            d = tl.where(h1 > 0, _slope_product(d, tl.trans(w), HALF), 0.0)
        if HIDDEN == 1:
            go += tl.sum(h1 * slope[:, None], axis=0)
            d = tl.where(h1 > 0, slope[:, None] * out[None, :], 0.0)
        g1 += _slope_product(tl.trans(x), d, HALF)
        b1 += tl.sum(d, axis=0)
        w, b = _matrix(weights, NIN, WIDTH, K, H, USED)
        dx = _slope_product(d, tl.trans(w), HALF)
    return dx, g1, b1, g2, b2, g3, b3, go, bo


@triton.jit
def _empty_sums(K: tl.constexpr, H: tl.constexpr, HIDDEN: tl.constexpr):
    """Zeros for the sums of `_decode_backward`."""
    g1, b1 = tl.zeros((K, H), tl.float32), tl.zeros((H,), tl.float32)
    g2, b2 = tl.zeros((H, H), tl.float32), tl.zeros((H,), tl.float32)
    g3, b3 = tl.zeros((H, H), tl.float32), tl.zeros((H,), tl.float32)
    go = tl.zeros((K if HIDDEN == 0 else H,), tl.float32)
    return g1, b1, g2, b2, g3, b3, go, 0.0


@triton.jit
def _store_sums(
    out, g1, b1, g2, b2, g3, b3, go, bo, NIN: tl.constexpr, USED: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """One program's sums, in the layout of the decoder's weights."""
    first, inner = (NIN + 1) * WIDTH, (WIDTH + 1) * WIDTH
    k, o = tl.arange(0, K), tl.arange(0, H)
    if HIDDEN == 0:
        tl.store(out + k, go, mask=k < USED)
        tl.store(out + NIN, bo)
    else:
        tl.store(out + o[None, :] * NIN + k[:, None], g1, mask=(k[:, None] < USED) & (o[None, :] < WIDTH))
        tl.store(out + NIN * WIDTH + o, b1, mask=o < WIDTH)
        square = (o[:, None] < WIDTH) & (o[None, :] < WIDTH)
        if HIDDEN >= 2:
            tl.store(out + first + o[None, :] * WIDTH + o[:, None], g2, mask=square)
            tl.store(out + first + WIDTH * WIDTH + o, b2, mask=o < WIDTH)
        if HIDDEN >= 3:
            tl.store(out + first + inner + o[None, :] * WIDTH + o[:, None], g3, mask=square)
            tl.store(out + first + inner + WIDTH * WIDTH + o, b3, mask=o < WIDTH)
        at = out + first + (HIDDEN - 1) * inner
        tl.store(at + o, go, mask=o < WIDTH)
        tl.store(at + WIDTH, bo)


@triton.jit
def _softplus(value):
    """``log(1 + exp(value))``, exact to rounding where it is small."""
    e = tl.exp(-tl.abs(value))
    one = 1.0 + e
    return tl.maximum(value, 0.0) + tl.where(one == 1.0, e, tl.log(one) * (e / tl.where(one == 1.0, 1.0, one - 1.0)))


@triton.jit
def lattice_forward(
    tables, weights, geometry, level_weights, z_index, z_frac, x_index, x_frac, y_index, y_frac, caps, rho,
    nz, nx, ny, scale, F: tl.constexpr, ACTIVE: tl.constexpr, NIN: tl.constexpr, WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Density of a block of one row along y; grid ``(nz * nx, blocks of y)``."""
    row = tl.program_id(0)
    z, x = row // nx, row % nx
    y = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seen = y < ny
    cap = tl.load(caps + row)
    density = tl.zeros((BLOCK,), tl.float32)
    if cap > 0:
        level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
        used = real & (level < cap)
        weight = tl.load(level_weights + level, mask=used, other=0.0)
        at = level[None, :] * ny + tl.where(seen, y, 0)[:, None]
        features = weight[None, :] * _features(
            tables, base, width, run, mask, used[None, :] & seen[:, None],
            tl.load(z_index + level * nz + z)[None, :], tl.load(z_frac + level * nz + z)[None, :],
            tl.load(x_index + level * nx + x)[None, :], tl.load(x_frac + level * nx + x)[None, :],
            tl.load(y_index + at), tl.load(y_frac + at),
        )  # fmt: skip
        value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
        density = scale * _softplus(value)
    tl.store(rho + row.to(tl.int64) * ny + y, density, mask=seen)


@triton.jit
def lattice_backward(
    tables, weights, geometry, level_weights, z_index, z_frac, x_index, x_frac, y_index, y_frac, caps, grad_rho,
    z_low, rows, columns, partial, n_weights, nz, nx, ny, scale, F: tl.constexpr, ACTIVE: tl.constexpr,
    NIN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
    HALF: tl.constexpr, TRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the vertex planes below a block of columns, grid ``(nx, blocks of y)``.

    ``columns[row, x, y]`` gets the sum over z, ``row = rows[level] + (plane - z_low[level]) * F + feature``.
    """
    x, block = tl.program_id(0), tl.program_id(1)
    y = block * BLOCK + tl.arange(0, BLOCK)
    seen = y < ny
    level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
    weight = tl.load(level_weights + level, mask=real, other=0.0)
    cx, fx = tl.load(x_index + level * nx + x)[None, :], tl.load(x_frac + level * nx + x)[None, :]
    at = level[None, :] * ny + tl.where(seen, y, 0)[:, None]
    cy, fy = tl.load(y_index + at), tl.load(y_frac + at)
    first_row = tl.load(rows + level) + tl.arange(0, K) % F
    low = tl.load(z_low + level)
    open_plane = tl.load(z_index + level * nz)
    lower, upper = tl.zeros((BLOCK, K), tl.float32), tl.zeros((BLOCK, K), tl.float32)
    g1, b1, g2, b2, g3, b3, go, bo = _empty_sums(K, H, HIDDEN)
    for z in range(0, nz):
        plane = tl.load(z_index + level * nz + z)
        fz = tl.load(z_frac + level * nz + z)[None, :]
        # planes that the walk leaves behind are complete
        step = plane - open_plane
        left = real & (step > 0)
        to = columns + ((first_row + (open_plane - low) * F).to(tl.int64) * nx + x)[None, :] * ny + y[:, None]
        tl.store(to, lower, mask=left[None, :] & seen[:, None])
        tl.store(to + F * nx * ny, upper, mask=(left & (step > 1))[None, :] & seen[:, None])
        lower = tl.where((step == 1)[None, :], upper, tl.where((step > 1)[None, :], 0.0, lower))
        upper = tl.where((step > 0)[None, :], 0.0, upper)
        open_plane = plane
        cap = tl.load(caps + z * nx + x)
        if cap > 0:
            used = real & (level < cap)
            features = tl.where(used, weight, 0.0)[None, :] * _features(
                tables, base, width, run, mask, used[None, :] & seen[:, None], plane[None, :], fz, cx, fx, cy, fy
            )
            value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
            given = tl.load(grad_rho + (z * nx + x).to(tl.int64) * ny + y, mask=seen, other=0.0)
            slope = scale * given * tl.sigmoid(value)
            d, g1, b1, g2, b2, g3, b3, go, bo = _decode_backward(
                features, h1, h2, h3, slope, weights, g1, b1, g2, b2, g3, b3, go, bo,
                NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF,
            )  # fmt: skip
            d = d * tl.where(used, weight, 0.0)[None, :]
            upper += fz * d
            lower += (1.0 - fz) * d
    to = columns + ((first_row + (open_plane - low) * F).to(tl.int64) * nx + x)[None, :] * ny + y[:, None]
    tl.store(to, lower, mask=real[None, :] & seen[:, None])
    tl.store(to + F * nx * ny, upper, mask=real[None, :] & seen[:, None])
    if TRAIN:
        out = partial + (x * tl.num_programs(1) + block).to(tl.int64) * n_weights
        _store_sums(out, g1, b1, g2, b2, g3, b3, go, bo, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H)


@triton.jit
def reduce_x(columns, index, frac, starts, stops, out, nx, ny, n_vertices, low, BLOCK: tl.constexpr):
    """Transpose of interpolation along x: ``(rows, nx, ny)`` to ``(rows, vertices, ny)``; grid (y, vertices, rows).

    ``index`` ascends; the points at ``starts[v] ... stops[v]`` are those that vertex ``low + v`` has a part in.
    """
    vertex, row = tl.program_id(1), tl.program_id(2)
    y = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seen = y < ny
    total = tl.zeros((BLOCK,), tl.float32)
    for x in range(tl.load(starts + vertex), tl.load(stops + vertex)):
        f = tl.load(frac + x)
        w = tl.where(tl.load(index + x) == low + vertex, 1.0 - f, f)
        total += w * tl.load(columns + (row.to(tl.int64) * nx + x) * ny + y, mask=seen, other=0.0)
    tl.store(out + (row.to(tl.int64) * n_vertices + vertex) * ny + y, total, mask=seen)


@triton.jit
def reduce_y(
    given, index, frac, starts, stops, out, n_lines, ny, n_vertices, low, longest, vertices_x, F, plane, stride_z,
    stride_x, first, ADD: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Transpose of interpolation along y: lines ``(n_lines, ny)`` to vertices; grid (blocks of lines, of vertices).

    A line is (z, feature, x). Vertices go to ``out + first + feature * plane + z * stride_z + x * stride_x``, added
    to what is there if asked for (a dense level's own table).
    """
    vertex = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    real = vertex < n_vertices
    inside = line[:, None] < n_lines
    start = tl.load(starts + vertex, mask=real, other=0)
    stop = tl.load(stops + vertex, mask=real, other=0)
    total = tl.zeros((LINES, BLOCK), tl.float32)
    for k in range(0, longest):
        y = start + k
        valid = y < stop
        f = tl.load(frac + y, mask=valid, other=0.0)
        w = tl.where(tl.load(index + y, mask=valid, other=0) == low + vertex, 1.0 - f, f)
        at = line.to(tl.int64)[:, None] * ny + y[None, :]
        total += w[None, :] * tl.load(given + at, mask=valid[None, :] & inside, other=0.0)
    row, x = line // vertices_x, line % vertices_x
    where = first + (row % F).to(tl.int64) * plane + (row // F).to(tl.int64) * stride_z + x * stride_x
    to = out + where[:, None] + vertex[None, :]
    kept = inside & real[None, :]
    if ADD:
        total += tl.load(to, mask=kept, other=0.0)
    tl.store(to, total, mask=kept)


@triton.jit
def hashed_runs(
    vertices, order, starts, grad, n_slots, n_x, n_blocks, n_y, y_shift, z_stride, F, plane, first, longest,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Sum the runs that share a slot; grid (blocks of slots, features).

    ``vertices (z, feature, x, y)``; ``order`` lists the runs (z, x, block) slot by slot, ``starts`` where each begins.
    """
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    feature = tl.program_id(1)
    lane = tl.arange(0, 16)
    real = slot < n_slots
    start = tl.load(starts + slot, mask=real, other=0)
    stop = tl.load(starts + slot + 1, mask=real, other=0)
    total = tl.zeros((SLOTS, 16), tl.float32)
    for k in range(0, longest):
        valid = start + k < stop
        run = tl.load(order + start + k, mask=valid, other=0)
        z, x, block = run // (n_x * n_blocks), (run // n_blocks) % n_x, run % n_blocks
        y = block[:, None] * 16 + lane[None, :] - y_shift
        at = ((z * F + feature).to(tl.int64) * n_x + x)[:, None] * n_y + y
        total += tl.load(vertices + at, mask=valid[:, None] & (y >= 0) & (y < n_y), other=0.0)
    to = grad + first + feature.to(tl.int64) * plane + slot[:, None] * 16 + lane[None, :]
    tl.store(to, total + tl.load(to, mask=real[:, None], other=0.0), mask=real[:, None])


@triton.jit
def _point(points, point, seen, axis: tl.constexpr):
    """One coordinate of points ``(n, 3)``."""
    return tl.load(points + point * 3 + axis, mask=seen, other=0.0)


@triton.jit
def _place(coordinate, axis: tl.constexpr, origin, spacing, geometry, level):
    """Cells and fractions of coordinates along an axis in every column's level, ``(BLOCK, K)``."""
    size = tl.load(geometry + level * COLUMNS + 2 + axis)[None, :]
    p = coordinate[:, None] - tl.load(origin + axis)
    p = tl.minimum(tl.maximum(p / tl.load(spacing + level)[None, :], 0.0), (size - 1).to(tl.float32))
    cell = tl.minimum(p.to(tl.int32), size - 2)
    return cell, p - cell.to(tl.float32)


@triton.jit
def points_forward(
    tables, weights, geometry, level_weights, origin, spacing, points, out, n, scale, F: tl.constexpr,
    ACTIVE: tl.constexpr, NIN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr,
    H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Density at points ``(n, 3)`` in (z, x, y) order that lie in the box; grid (blocks of points,)."""
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seen = point < n
    level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
    weight = tl.load(level_weights + level, mask=real, other=0.0)
    cz, fz = _place(_point(points, point, seen, 0), 0, origin, spacing, geometry, level)
    cx, fx = _place(_point(points, point, seen, 1), 1, origin, spacing, geometry, level)
    cy, fy = _place(_point(points, point, seen, 2), 2, origin, spacing, geometry, level)
    used = real[None, :] & seen[:, None]
    features = weight[None, :] * _features(tables, base, width, run, mask, used, cz, fz, cx, fx, cy, fy)
    value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
    tl.store(out + point, scale * _softplus(value), mask=seen)


@triton.jit
def points_backward(
    tables, weights, geometry, level_weights, origin, spacing, points, given, grad_tables, private, grad_points,
    partial, n, n_weights, private_size, n_private, copies, scale, F: tl.constexpr, ACTIVE: tl.constexpr,
    NIN: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
    HALF: tl.constexpr, TRAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of tables, decoder and points; grid (programs,), each taking every so many blocks.

    The first ``n_private`` levels, ``private_size`` entries together, add into one of ``copies`` copies of their own.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    level, real, base, width, run, mask = _columns(geometry, K, F, ACTIVE)
    weight = tl.load(level_weights + level, mask=real, other=0.0)
    step = tl.load(spacing + level)
    alone = (level < n_private)[None, :]
    own = private + (program % copies).to(tl.int64) * private_size
    g1, b1, g2, b2, g3, b3, go, bo = _empty_sums(K, H, HIDDEN)
    for block in range(program, (n + BLOCK - 1) // BLOCK, programs):
        point = block * BLOCK + tl.arange(0, BLOCK)
        seen = point < n
        cz, fz = _place(_point(points, point, seen, 0), 0, origin, spacing, geometry, level)
        cx, fx = _place(_point(points, point, seen, 1), 1, origin, spacing, geometry, level)
        cy, fy = _place(_point(points, point, seen, 2), 2, origin, spacing, geometry, level)
        used = real[None, :] & seen[:, None]
        features = weight[None, :] * _features(tables, base, width, run, mask, used, cz, fz, cx, fx, cy, fy)
        value, h1, h2, h3 = _decode(features, weights, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF)
        slope = scale * tl.load(given + point, mask=seen, other=0.0) * tl.sigmoid(value)
        d, g1, b1, g2, b2, g3, b3, go, bo = _decode_backward(
            features, h1, h2, h3, slope, weights, g1, b1, g2, b2, g3, b3, go, bo,
            NIN, ACTIVE * F, WIDTH, HIDDEN, K, H, HALF,
        )  # fmt: skip
        d = d * weight[None, :]
        sz, sx, sy = _features_backward(
            tables, grad_tables, own, alone, base, width, run, mask, used, d, cz, fz, cx, fx, cy, fy
        )
        d = d / step[None, :]
        tl.store(grad_points + point * 3, tl.sum(d * sz, axis=1), mask=seen)
        tl.store(grad_points + point * 3 + 1, tl.sum(d * sx, axis=1), mask=seen)
        tl.store(grad_points + point * 3 + 2, tl.sum(d * sy, axis=1), mask=seen)
    if TRAIN:
        out = partial + program.to(tl.int64) * n_weights
        _store_sums(out, g1, b1, g2, b2, g3, b3, go, bo, NIN, ACTIVE * F, WIDTH, HIDDEN, K, H)
