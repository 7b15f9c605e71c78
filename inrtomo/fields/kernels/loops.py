"""Compiled CPU loops (numba) of grid fields: encode, decode and softplus on lattices and at points, with gradients.

A lattice is a tensor product, so a level's trilinear interpolation separates: its vertices are interpolated
along y, then along x, into *columns* ``(nx, rows, ny)`` with one row per (level, z vertex, feature); the last
step, along z, is fused with the decoder, whose features live in a buffer of ``BLOCK`` points that never leaves
the first-level cache. The backward pass is the transpose of each step. Threads own disjoint columns, vertex
planes or (hashed levels) features, so sums do not race and do not depend on the number of threads.

Unsigned 64-bit indices are not decoration: numba then drops its negative-index test, and LLVM can prove the
distances between rows of a flat buffer and vectorise the small matrix products.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

U = np.uint64
ZERO, ONE, TWO, THREE, FOUR = U(0), U(1), U(2), U(3), U(4)
BLOCK = 128  # points decoded together
B = U(BLOCK)
LANES = 16  # rows of columns are padded to whole vectors
PRIME_X, PRIME_Z, PRIME_Y = U(1), U(2654435761), U(805459861)

_NODES: Any = np.polynomial.Chebyshev.interpolate
_LOG1P = tuple(
    np.float32(c)
    for c in _NODES(lambda e: np.log1p(e + 1e-300) / (e + 1e-300), 9, domain=[0.0, 1.0])
    .convert(kind=np.polynomial.Polynomial)
    .coef
)
_EXP2 = tuple(np.float32(c) for c in _NODES(np.exp2, 6, domain=[0.0, 1.0]).convert(kind=np.polynomial.Polynomial).coef)
L0, L1, L2, L3, L4, L5, L6, L7, L8, L9 = _LOG1P
E0, E1, E2, E3, E4, E5, E6 = _EXP2
LOG2_E = np.float32(1.4426950408889634)
F0, F1 = np.float32(0), np.float32(1)

_serial: Any = nb.njit(fastmath=True, error_model="numpy", cache=True)
_inlined: Any = nb.njit(fastmath=True, error_model="numpy", cache=True, inline="always")
_parallel: Any = nb.njit(fastmath=True, error_model="numpy", cache=True, parallel=True)


@_inlined
def _exp_of_minus(a):
    """exp(-a) for a >= 0, relative error below 3e-7; written out so that it vectorises."""
    t = max(-a * LOG2_E, np.float32(-125.0))
    n = np.floor(t)
    f = t - n
    p = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@_inlined
def _softplus(x):
    e = _exp_of_minus(abs(x))
    log1p = e * (L0 + e * (L1 + e * (L2 + e * (L3 + e * (L4 + e * (L5 + e * (L6 + e * (L7 + e * (L8 + e * L9)))))))))
    return max(x, F0) + log1p


@_inlined
def _sigmoid(x):
    e = _exp_of_minus(abs(x))
    s = F1 / (F1 + e)
    return s if x >= F0 else e * s


@_serial
def _affine(w, start, stride, b, b_start, x, x_start, n_in, n_out, n, out, out_start):
    """``out = W x + b`` on rows of BLOCK points; sizes are multiples of four (zero-padded weights)."""
    for h in range(ZERO, n_out, FOUR):
        h0 = (out_start + h) * B
        h1 = h0 + B
        h2 = h1 + B
        h3 = h2 + B
        b0, b1, b2, b3 = b[b_start + h], b[b_start + h + ONE], b[b_start + h + TWO], b[b_start + h + THREE]
        for y in range(n):
            out[h0 + y] = b0
            out[h1 + y] = b1
            out[h2 + y] = b2
            out[h3 + y] = b3
        for k in range(ZERO, n_in, FOUR):
            k0 = (x_start + k) * B
            k1 = k0 + B
            k2 = k1 + B
            k3 = k2 + B
            i = start + h * stride + k
            w00, w01, w02, w03 = w[i], w[i + ONE], w[i + TWO], w[i + THREE]
            i += stride
            w10, w11, w12, w13 = w[i], w[i + ONE], w[i + TWO], w[i + THREE]
            i += stride
            w20, w21, w22, w23 = w[i], w[i + ONE], w[i + TWO], w[i + THREE]
            i += stride
            w30, w31, w32, w33 = w[i], w[i + ONE], w[i + TWO], w[i + THREE]
            for y in range(n):
                v0, v1, v2, v3 = x[k0 + y], x[k1 + y], x[k2 + y], x[k3 + y]
                out[h0 + y] += w00 * v0 + w01 * v1 + w02 * v2 + w03 * v3
                out[h1 + y] += w10 * v0 + w11 * v1 + w12 * v2 + w13 * v3
                out[h2 + y] += w20 * v0 + w21 * v1 + w22 * v2 + w23 * v3
                out[h3 + y] += w30 * v0 + w31 * v1 + w32 * v2 + w33 * v3


@_serial
def _outer(d, d_start, x, x_start, n_in, n_out, n, gw, start, stride, gb, b_start):
    """``gW += d x^T`` and ``gb += sum d`` over the block."""
    for h in range(ZERO, n_out, TWO):
        h0 = (d_start + h) * B
        h1 = h0 + B
        t0 = F0
        t1 = F0
        for y in range(n):
            t0 += d[h0 + y]
            t1 += d[h1 + y]
        gb[b_start + h] += t0
        gb[b_start + h + ONE] += t1
        for k in range(ZERO, n_in, FOUR):
            k0 = (x_start + k) * B
            k1 = k0 + B
            k2 = k1 + B
            k3 = k2 + B
            s00 = F0
            s01 = F0
            s02 = F0
            s03 = F0
            s10 = F0
            s11 = F0
            s12 = F0
            s13 = F0
            for y in range(n):
                a0, a1 = d[h0 + y], d[h1 + y]
                v0, v1, v2, v3 = x[k0 + y], x[k1 + y], x[k2 + y], x[k3 + y]
                s00 += a0 * v0
                s01 += a0 * v1
                s02 += a0 * v2
                s03 += a0 * v3
                s10 += a1 * v0
                s11 += a1 * v1
                s12 += a1 * v2
                s13 += a1 * v3
            i = start + h * stride + k
            gw[i] += s00
            gw[i + ONE] += s01
            gw[i + TWO] += s02
            gw[i + THREE] += s03
            i += stride
            gw[i] += s10
            gw[i + ONE] += s11
            gw[i + TWO] += s12
            gw[i + THREE] += s13


@_serial
def _decode(acts, n, k_active, sizes, w, w_at, b, b_at, a_at):
    """Run the decoder on the feature rows of ``acts``; layer i's output starts at row ``a_at[i]``."""
    layers = len(sizes) - 1
    for i in range(layers):
        n_in = k_active if i == 0 else sizes[i]
        _affine(w, w_at[i], sizes[i], b, b_at[i], acts, a_at[i], n_in, sizes[i + 1], n, acts, a_at[i + 1])
        if i < layers - 1:
            low = a_at[i + 1] * B
            for h in range(ZERO, sizes[i + 1]):
                for y in range(n):
                    acts[low + h * B + y] = max(acts[low + h * B + y], F0)


@_serial
def _decode_backward(acts, grads, n, k_active, sizes, wt, wt_at, w_at, b_at, a_at, zeros, gw, gb, trainable):
    """From the gradient of the output row to those of the features (rows of ``grads``) and the weights."""
    layers = len(sizes) - 1
    for j in range(layers):
        i = layers - 1 - j
        n_in = k_active if i == 0 else sizes[i]
        if trainable:
            n_out = sizes[i + 1] if j > 0 else TWO  # the last layer has one output, padded
            _outer(grads, a_at[i + 1], acts, a_at[i], n_in, n_out, n, gw, w_at[i], sizes[i], gb, b_at[i])
        _affine(wt, wt_at[i], sizes[i + 1], zeros, ZERO, grads, a_at[i + 1], sizes[i + 1], n_in, n, grads, a_at[i])
        if i > 0:
            low = a_at[i] * B
            for h in range(ZERO, sizes[i]):
                for y in range(n):
                    g = grads[low + h * B + y]
                    grads[low + h * B + y] = g if acts[low + h * B + y] > F0 else F0


@_inlined
def _slot(ix, iz, block, mask):
    """Hash of a run of vertices along y."""
    return ((U(ix) * PRIME_X) ^ (U(iz) * PRIME_Z) ^ (U(block) * PRIME_Y)) & mask


@_serial
def _load_row(table, feature, plane, nx_level, run, mask, iz, ix, j_low, j_count, unit, y_index, y_frac, raw, out):
    """One row of vertices, interpolated along y."""
    base = feature * plane
    if mask == 0:
        first = base + (iz * nx_level + ix) * run + j_low
        source = table[first : first + j_count]
    else:
        source = raw
        j = 0
        while j < j_count:
            at = j_low + j
            inside = at % run
            length = min(run - inside, j_count - j)
            first = base + np.int64(_slot(ix, iz, at // run, U(mask))) * run + inside
            raw[j : j + length] = table[first : first + length]
            j += length
    upper = source[1:]
    if unit:
        for y in range(len(out)):
            out[y] = source[y] + y_frac[y] * (upper[y] - source[y])
    else:
        for y in range(len(out)):
            k = y_index[y]
            out[y] = source[k] + y_frac[y] * (upper[k] - source[k])


@_serial
def _store_row(grad, feature, plane, nx_level, run, mask, iz, ix, j_low, j_count, unit, y_index, y_frac, raw, d):
    """Transpose of `_load_row`: add the gradient row ``d`` to the table's gradient."""
    base = feature * plane
    raw[:j_count] = F0
    upper = raw[1:]
    if unit:
        for y in range(len(d)):
            raw[y] += (F1 - y_frac[y]) * d[y]
        for y in range(len(d)):
            upper[y] += y_frac[y] * d[y]
    else:
        cell, s0, s1 = y_index[0], F0, F0
        for y in range(len(d)):
            if y_index[y] != cell:
                raw[cell] += s0
                upper[cell] += s1
                cell, s0, s1 = y_index[y], F0, F0
            u = y_frac[y] * d[y]
            s0 += d[y] - u
            s1 += u
        raw[cell] += s0
        upper[cell] += s1
    if mask == 0:
        first = base + (iz * nx_level + ix) * run + j_low
        target = grad[first : first + j_count]
        for j in range(j_count):
            target[j] += raw[j]
    else:
        j = 0
        while j < j_count:
            at = j_low + j
            inside = at % run
            length = min(run - inside, j_count - j)
            first = base + np.int64(_slot(ix, iz, at // run, U(mask))) * run + inside
            for i in range(length):
                grad[first + i] += raw[j + i]
            j += length


@_parallel
def expand(table, features, plane, nx_level, run, mask, z_low, z_count, x_index, x_frac, x_need,
           j_low, j_count, unit, y_index, y_frac, columns, row):  # fmt: skip
    """Interpolate one level along y and x into ``columns[:, row + z vertex * features + feature, :ny]``."""
    ny = len(y_index)
    for z in nb.prange(z_count):
        raw = np.empty(j_count + 1, np.float32)
        rows = np.empty((2, features, ny), np.float32)
        tags = np.full(2, -1, np.int64)
        for x in range(len(x_index)):
            if not x_need[x]:
                continue
            for k in range(2):
                ix = x_index[x] + k
                if tags[ix & 1] != ix:
                    tags[ix & 1] = ix
                    for f in range(features):
                        _load_row(table, f, plane, nx_level, run, mask, z_low + z, ix, j_low, j_count, unit,
                                  y_index, y_frac, raw, rows[ix & 1, f])  # fmt: skip
            t = x_frac[x]
            for f in range(features):
                a, b = rows[x_index[x] & 1, f], rows[(x_index[x] + 1) & 1, f]
                out = columns[x, row + z * features + f]
                for y in range(ny):
                    out[y] = a[y] + t * (b[y] - a[y])


@_serial
def _collapse_plane(grad, feature, features, plane, nx_level, run, mask, z_low, z, x_index, x_frac, x_need,
                    j_low, j_count, unit, y_index, y_frac, columns, row, raw, rows):  # fmt: skip
    ny = len(y_index)
    tags = np.full(2, -1, np.int64)
    for x in range(len(x_index)):
        if not x_need[x]:
            continue
        for k in range(2):
            ix = x_index[x] + k
            s = ix & 1
            if tags[s] != ix:
                if tags[s] >= 0:
                    _store_row(grad, feature, plane, nx_level, run, mask, z_low + z, tags[s], j_low, j_count, unit,
                               y_index, y_frac, raw, rows[s])  # fmt: skip
                tags[s] = ix
                rows[s, :] = F0
        t = x_frac[x]
        a, b = rows[x_index[x] & 1], rows[(x_index[x] + 1) & 1]
        d = columns[x, row + z * features + feature]
        for y in range(ny):
            u = t * d[y]
            a[y] += d[y] - u
            b[y] += u
    for s in range(2):
        if tags[s] >= 0:
            _store_row(grad, feature, plane, nx_level, run, mask, z_low + z, tags[s], j_low, j_count, unit,
                       y_index, y_frac, raw, rows[s])  # fmt: skip


@_parallel
def collapse(grad, features, plane, nx_level, run, mask, z_low, z_count, x_index, x_frac, x_need,
             j_low, j_count, unit, y_index, y_frac, columns, row):  # fmt: skip
    """Transpose of `expand`: add the columns' gradient to the level's table gradient.

    Planes of a dense level are disjoint and share the work; a hashed level may meet the same entry from any
    plane, so there one thread keeps one feature.
    """
    ny = len(y_index)
    tasks = z_count * features if mask == 0 else features
    for task in nb.prange(tasks):
        raw = np.empty(j_count + 1, np.float32)
        rows = np.empty((2, ny), np.float32)
        if mask == 0:
            _collapse_plane(grad, task % features, features, plane, nx_level, run, mask, z_low, task // features,
                            x_index, x_frac, x_need, j_low, j_count, unit, y_index, y_frac, columns, row,
                            raw, rows)  # fmt: skip
        else:
            for z in range(z_count):
                _collapse_plane(grad, task, features, plane, nx_level, run, mask, z_low, z,
                                x_index, x_frac, x_need, j_low, j_count, unit, y_index, y_frac, columns, row,
                                raw, rows)  # fmt: skip


@_serial
def _mix(columns, x, z, y0, n, k_levels, features, rows, z_index, z_frac, weights, acts):
    """Feature rows of a block: interpolate the columns along z, times the levels' weights."""
    for level in range(k_levels):
        t = z_frac[level, z]
        w1 = t * weights[level]
        w0 = weights[level] - w1
        first = rows[level] + z_index[level, z] * features
        for f in range(features):
            a = columns[x, first + f, y0 : y0 + n]
            b = columns[x, first + features + f, y0 : y0 + n]
            low = (level * features + f) * BLOCK
            out = acts[low : low + n]
            for y in range(n):
                out[y] = w0 * a[y] + w1 * b[y]
    used = k_levels * features
    padded = (used + 3) // 4 * 4
    for k in range(used, padded):
        acts[k * BLOCK : k * BLOCK + n] = F0
    return U(padded)


@_parallel
def decode_lattice(columns, features, rows, z_index, z_frac, weights, caps, sizes, w, w_at, b, b_at, a_at,
                   scale, rho):  # fmt: skip
    """Density ``rho[z, x, y]`` from columns; ``caps[z, x]`` is the number of levels used there, 0 leaves zeros."""
    nz, nx, ny = rho.shape
    padded = columns.shape[2]
    for x in nb.prange(nx):
        acts = np.empty((a_at[len(sizes) - 1] + sizes[len(sizes) - 1]) * B, np.float32)
        last = np.int64(a_at[len(sizes) - 1]) * BLOCK
        for y0 in range(0, ny, BLOCK):
            n = min(BLOCK, padded - y0)
            for z in range(nz):
                k_levels = np.int64(caps[z, x])
                out = rho[z, x, y0 : min(ny, y0 + n)]
                if k_levels == 0:
                    out[:] = F0
                    continue
                k = _mix(columns, x, z, y0, n, k_levels, features, rows, z_index, z_frac, weights, acts)
                _decode(acts, U(n), k, sizes, w, w_at, b, b_at, a_at)
                value = acts[last : last + n]
                for y in range(len(out)):
                    out[y] = scale * _softplus(value[y])


@_parallel
def decode_lattice_backward(columns, features, rows, z_index, z_frac, weights, caps, sizes, w, w_at, b, b_at, a_at,
                            wt, wt_at, scale, trainable, grad_rho, gw, gb):  # fmt: skip
    """Replace ``columns`` by its gradient; weight gradients go to ``gw[x]``, ``gb[x]`` (one row per column)."""
    nz, nx, ny = grad_rho.shape
    n_rows, padded = columns.shape[1], columns.shape[2]
    for x in nb.prange(nx):
        acts = np.empty((a_at[len(sizes) - 1] + sizes[len(sizes) - 1]) * B, np.float32)
        grads = np.zeros(len(acts), np.float32)
        zeros = np.zeros(max(sizes), np.float32)
        column = np.empty((n_rows, BLOCK), np.float32)
        last = np.int64(a_at[len(sizes) - 1]) * BLOCK
        for y0 in range(0, ny, BLOCK):
            n = min(BLOCK, padded - y0)
            column[:] = F0
            for z in range(nz):
                k_levels = np.int64(caps[z, x])
                if k_levels == 0:
                    continue
                k = _mix(columns, x, z, y0, n, k_levels, features, rows, z_index, z_frac, weights, acts)
                _decode(acts, U(n), k, sizes, w, w_at, b, b_at, a_at)
                value, slope = acts[last : last + n], grads[last : last + n]
                g = grad_rho[z, x, y0 : min(ny, y0 + n)]
                for y in range(len(g)):
                    slope[y] = scale * g[y] * _sigmoid(value[y])
                slope[len(g) :] = F0
                _decode_backward(acts, grads, U(n), k, sizes, wt, wt_at, w_at, b_at, a_at, zeros, gw[x], gb[x],
                                 trainable)  # fmt: skip
                for level in range(k_levels):
                    t = z_frac[level, z]
                    w1 = t * weights[level]
                    w0 = weights[level] - w1
                    first = rows[level] + z_index[level, z] * features
                    for f in range(features):
                        low = (level * features + f) * BLOCK
                        d = grads[low : low + n]
                        lower, upper = column[first + f, :n], column[first + features + f, :n]
                        for y in range(n):
                            lower[y] += w0 * d[y]
                        for y in range(n):
                            upper[y] += w1 * d[y]
            columns[x, :, y0 : y0 + n] = column[:, :n]


@_serial
def _corner(point, level, origin, spacing, shapes, at, frac):
    """Cell (z, x, y) and fractions, in a level, of a point inside the box."""
    for axis in range(3):
        p = max((point[axis] - origin[axis]) / spacing[level], F0)
        i = min(np.int64(p), shapes[level, axis] - 2)
        at[axis] = i
        frac[axis] = p - np.float32(i)


@_inlined
def _entry(iz, ix, iy, nx_level, run, mask):
    """Index of a vertex in its level's plane of one feature."""
    if mask == 0:
        return (iz * nx_level + ix) * run + iy
    return np.int64(_slot(ix, iz, iy // run, U(mask))) * run + iy % run


@_serial
def _encode_points(points, first, n, k_levels, features, table, starts, planes, shapes, runs, masks, origin, spacing,
                   weights, acts):  # fmt: skip
    at, frac = np.empty(3, np.int64), np.empty(3, np.float32)
    for level in range(k_levels):
        nx_level, run, mask = shapes[level, 1], runs[level], masks[level]
        for p in range(n):
            _corner(points[first + p], level, origin, spacing, shapes, at, frac)
            for f in range(features):
                acts[(level * features + f) * BLOCK + p] = F0
            for corner in range(8):
                c0, c1, c2 = corner >> 2, (corner >> 1) & 1, corner & 1
                w = weights[level]
                w *= frac[0] if c0 else F1 - frac[0]
                w *= frac[1] if c1 else F1 - frac[1]
                w *= frac[2] if c2 else F1 - frac[2]
                i = starts[level] + _entry(at[0] + c0, at[1] + c1, at[2] + c2, nx_level, run, mask)
                for f in range(features):
                    acts[(level * features + f) * BLOCK + p] += w * table[i + f * planes[level]]
    used = k_levels * features
    padded = (used + 3) // 4 * 4
    for k in range(used, padded):
        acts[k * BLOCK : k * BLOCK + n] = F0
    return U(padded)


@_parallel
def decode_points(points, k_levels, features, table, starts, planes, shapes, runs, masks, origin, spacing, weights,
                  sizes, w, w_at, b, b_at, a_at, scale, out):  # fmt: skip
    """Density at points ``(N, 3)`` in (z, x, y) order."""
    n_points = len(points)
    for block in nb.prange((n_points + BLOCK - 1) // BLOCK):
        first = block * BLOCK
        n = min(BLOCK, n_points - first)
        acts = np.zeros((a_at[len(sizes) - 1] + sizes[len(sizes) - 1]) * B, np.float32)
        last = np.int64(a_at[len(sizes) - 1]) * BLOCK
        k = _encode_points(points, first, n, k_levels, features, table, starts, planes, shapes, runs, masks, origin,
                           spacing, weights, acts)  # fmt: skip
        _decode(acts, U(n), k, sizes, w, w_at, b, b_at, a_at)
        for p in range(n):
            out[first + p] = scale * _softplus(acts[last + p])


@_parallel
def decode_points_backward(points, k_levels, features, table, starts, planes, shapes, runs, masks, origin, spacing,
                           weights, sizes, w, w_at, b, b_at, a_at, wt, wt_at, scale, trainable, grad_out, tasks,
                           gw, gb, grad_features, grad_points):  # fmt: skip
    """Gradients of features ``(levels * features, N)``, of points ``(N, 3)`` and, per task, of the decoder."""
    n_points = len(points)
    blocks = (n_points + BLOCK - 1) // BLOCK
    for task in nb.prange(tasks):
        acts = np.zeros((a_at[len(sizes) - 1] + sizes[len(sizes) - 1]) * B, np.float32)
        grads = np.zeros(len(acts), np.float32)
        zeros = np.zeros(max(sizes), np.float32)
        at, frac = np.empty(3, np.int64), np.empty(3, np.float32)
        last = np.int64(a_at[len(sizes) - 1]) * BLOCK
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            first = block * BLOCK
            n = min(BLOCK, n_points - first)
            k = _encode_points(points, first, n, k_levels, features, table, starts, planes, shapes, runs, masks,
                               origin, spacing, weights, acts)  # fmt: skip
            _decode(acts, U(n), k, sizes, w, w_at, b, b_at, a_at)
            for p in range(n):
                grads[last + p] = scale * grad_out[first + p] * _sigmoid(acts[last + p])
            _decode_backward(acts, grads, U(n), k, sizes, wt, wt_at, w_at, b_at, a_at, zeros, gw[task], gb[task],
                             trainable)  # fmt: skip
            for p in range(n):
                s0, s1, s2 = F0, F0, F0
                for level in range(k_levels):
                    nx_level, run, mask = shapes[level, 1], runs[level], masks[level]
                    _corner(points[first + p], level, origin, spacing, shapes, at, frac)
                    factor = weights[level] / spacing[level]
                    for corner in range(8):
                        c0, c1, c2 = corner >> 2, (corner >> 1) & 1, corner & 1
                        w0 = frac[0] if c0 else F1 - frac[0]
                        w1 = frac[1] if c1 else F1 - frac[1]
                        w2 = frac[2] if c2 else F1 - frac[2]
                        i = starts[level] + _entry(at[0] + c0, at[1] + c1, at[2] + c2, nx_level, run, mask)
                        total = F0
                        for f in range(features):
                            total += grads[(level * features + f) * BLOCK + p] * table[i + f * planes[level]]
                        total *= factor
                        s0 += total * w1 * w2 * (F1 if c0 else -F1)
                        s1 += total * w0 * w2 * (F1 if c1 else -F1)
                        s2 += total * w0 * w1 * (F1 if c2 else -F1)
                grad_points[first + p, 0] = s0
                grad_points[first + p, 1] = s1
                grad_points[first + p, 2] = s2
            for row in range(k_levels * features):
                factor = weights[row // features]
                for p in range(n):
                    grad_features[row, first + p] = factor * grads[row * BLOCK + p]


@_parallel
def scatter_points(points, k_levels, features, starts, planes, shapes, runs, masks, origin, spacing, grad_features,
                   grad):  # fmt: skip
    """Add the gradients of features to the tables; one thread per level and feature, so nothing races."""
    for row in nb.prange(k_levels * features):
        level, f = row // features, row % features
        at, frac = np.empty(3, np.int64), np.empty(3, np.float32)
        nx_level, run, mask = shapes[level, 1], runs[level], masks[level]
        base = starts[level] + f * planes[level]
        for p in range(len(points)):
            _corner(points[p], level, origin, spacing, shapes, at, frac)
            g = grad_features[row, p]
            for corner in range(8):
                c0, c1, c2 = corner >> 2, (corner >> 1) & 1, corner & 1
                w = g * (frac[0] if c0 else F1 - frac[0])
                w *= frac[1] if c1 else F1 - frac[1]
                w *= frac[2] if c2 else F1 - frac[2]
                grad[base + _entry(at[0] + c0, at[1] + c1, at[2] + c2, nx_level, run, mask)] += w


@_parallel
def adam_step(parameters, gradient, first_moment, second_moment, step_size, beta1, beta2, correction, epsilon,
              skip_zero):  # fmt: skip
    """One Adam update in place; ``step_size`` and ``correction`` hold the bias corrections."""
    one1, one2 = F1 - beta1, F1 - beta2
    for i in nb.prange(len(parameters)):
        g = gradient[i]
        if not (skip_zero and g == F0):
            m = beta1 * first_moment[i] + one1 * g
            v = beta2 * second_moment[i] + one2 * g * g
            first_moment[i] = m
            second_moment[i] = v
            parameters[i] -= step_size * m / (np.sqrt(v) * correction + epsilon)
