"""Compiled CPU loops (numba) of vector-matrix factors: density on lattices and at points, with gradients.

A lattice crosses a node in a *tile*. Its factors are first interpolated to the tile's x, y and z, which costs little;
then every row along y is a sum over features of three scaled rows. The backward pass is the transpose of each
step. A tile adds to a gradient of its own unless it has its node to itself, so sums do not race and do not depend on
the number of threads. Rows are padded to ``LANES`` and features come in fours, so that loops have no remainders.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

import numba as nb
import numpy as np

from inrtomo.fields.kernels.loops import F0, F1, FOUR, ONE, THREE, TWO, ZERO, U, _parallel, _serial, _sigmoid, _softplus

LANES = 8
BLOCK = 8  # z at once, so that their rows stay in the first-level cache while x runs


@_serial
def _cells(positions, first, intervals):
    """Lower vertices and fractions, in a node, of positions counted in vertices; ``first``: the node's first vertex."""
    at, frac = np.empty(len(positions), np.int64), np.empty(len(positions), np.float32)
    for p in range(len(positions)):
        local = positions[p] - first
        at[p] = min(max(np.int64(local), 0), intervals - 1)
        frac[p] = np.float32(min(max(local - at[p], 0.0), 1.0))
    return at, frac


@_serial
def _views(block, features, px, py, pz):
    """A node's X (x, r), Y (r, y), Z (z, r), XY (x, r, y), XZ (x, z, r) and YZ (z, r, y)."""
    a = px * features
    b = a + features * py
    c = b + pz * features
    d = c + px * features * py
    e = d + px * pz * features
    return (
        block[:a].reshape((px, features)),
        block[a:b].reshape((features, py)),
        block[b:c].reshape((pz, features)),
        block[c:d].reshape((px, features, py)),
        block[d:e].reshape((px, pz, features)),
        block[e : e + pz * features * py].reshape((pz, features, py)),
    )


@_serial
def _mix(low, high, t, out):
    for k in range(len(out)):
        out[k] = low[k] + t * (high[k] - low[k])


@_serial
def _spread(t, d, low, high):
    for k in range(len(d)):
        u = t * d[k]
        low[k] += d[k] - u
        high[k] += u


@_serial
def _rows_at(matrix, at, frac, y_at, y_frac, padded):
    """``matrix`` (v, r, y vertices) at positions along its first axis and along y: (n, r, padded)."""
    features = matrix.shape[1]
    out = np.zeros((len(at), (features + 3) // 4 * 4, padded), np.float32)
    row = np.empty(matrix.shape[2], np.float32)
    for n in range(len(at)):
        for r in range(features):
            _mix(matrix[at[n], r], matrix[at[n] + 1, r], frac[n], row)
            target = out[n, r]
            for y in range(len(y_at)):
                k = y_at[y]
                target[y] = row[k] + y_frac[y] * (row[k + 1] - row[k])
    return out


@_serial
def _rows_to(grad, at, frac, y_at, y_frac, d):
    """Transpose of `_rows_at`: add ``d`` (n, r, padded) to the gradient (v, r, y vertices)."""
    row = np.empty(grad.shape[2], np.float32)
    for n in range(len(at)):
        for r in range(grad.shape[1]):
            row[:] = F0
            source = d[n, r]
            for y in range(len(y_at)):
                k = y_at[y]
                u = y_frac[y] * source[y]
                row[k] += source[y] - u
                row[k + 1] += u
            _spread(frac[n], row, grad[at[n], r], grad[at[n] + 1, r])


@_serial
def _interpolated(block, features, px, py, pz, x_at, x_frac, y_at, y_frac, z_at, z_frac, padded):
    """A node's factors, with the axes that `_views` names, at a tile's positions."""
    X, Y, Z, XY, XZ, YZ = _views(block, features, px, py, pz)
    fours = (features + 3) // 4 * 4
    nx, nz = len(x_at), len(z_at)
    x_out, y_out = np.zeros((nx, fours), np.float32), np.zeros((fours, padded), np.float32)
    z_out, xz_out = np.zeros((nz, fours), np.float32), np.zeros((nx, nz, fours), np.float32)
    low, high = np.empty(features, np.float32), np.empty(features, np.float32)
    for x in range(nx):
        i = x_at[x]
        _mix(X[i], X[i + 1], x_frac[x], x_out[x, :features])
        for z in range(nz):
            k = z_at[z]
            _mix(XZ[i, k], XZ[i, k + 1], z_frac[z], low)
            _mix(XZ[i + 1, k], XZ[i + 1, k + 1], z_frac[z], high)
            _mix(low, high, x_frac[x], xz_out[x, z, :features])
    for z in range(nz):
        _mix(Z[z_at[z]], Z[z_at[z] + 1], z_frac[z], z_out[z, :features])
    for r in range(features):
        for y in range(len(y_at)):
            k = y_at[y]
            y_out[r, y] = Y[r, k] + y_frac[y] * (Y[r, k + 1] - Y[r, k])
    xy_out = _rows_at(XY, x_at, x_frac, y_at, y_frac, padded)
    yz_out = _rows_at(YZ, z_at, z_frac, y_at, y_frac, padded)
    return x_out, y_out, z_out, xy_out, xz_out, yz_out


@_serial
def _collect(block, features, px, py, pz, x_at, x_frac, y_at, y_frac, z_at, z_frac, dx, dy, dz, dxy, dxz, dyz):
    """Transpose of `_interpolated`: add the gradients of the tile's factors to the node's ``block``."""
    X, Y, Z, XY, XZ, YZ = _views(block, features, px, py, pz)
    low, high = np.empty(features, np.float32), np.empty(features, np.float32)
    for x in range(len(x_at)):
        i = x_at[x]
        _spread(x_frac[x], dx[x, :features], X[i], X[i + 1])
        for z in range(len(z_at)):
            k = z_at[z]
            low[:] = F0
            high[:] = F0
            _spread(x_frac[x], dxz[x, z, :features], low, high)
            _spread(z_frac[z], low, XZ[i, k], XZ[i, k + 1])
            _spread(z_frac[z], high, XZ[i + 1, k], XZ[i + 1, k + 1])
    for z in range(len(z_at)):
        _spread(z_frac[z], dz[z, :features], Z[z_at[z]], Z[z_at[z] + 1])
    for r in range(features):
        for y in range(len(y_at)):
            k = y_at[y]
            u = y_frac[y] * dy[r, y]
            Y[r, k] += dy[r, y] - u
            Y[r, k + 1] += u
    _rows_to(XY, x_at, x_frac, y_at, y_frac, dxy)
    _rows_to(YZ, z_at, z_frac, y_at, y_frac, dyz)


@_serial
def _row(a, b, c, p, p0, q, s, s0, fours, n, offset, out):
    """``out = offset + sum_r a_r p_r + b_r q_r + c_r s_r`` on rows of ``n``; ``p0``, ``s0``: where p and s begin."""
    for y in range(n):
        out[y] = offset
    for r in range(ZERO, fours, FOUR):
        a0, a1, a2, a3 = a[r], a[r + ONE], a[r + TWO], a[r + THREE]
        b0, b1, b2, b3 = b[r], b[r + ONE], b[r + TWO], b[r + THREE]
        c0, c1, c2, c3 = c[r], c[r + ONE], c[r + TWO], c[r + THREE]
        q0 = r * n
        k = p0 + q0
        m = s0 + q0
        n2, n3 = n + n, n + n + n
        for y in range(n):
            u = a0 * p[k + y] + a1 * p[k + n + y] + a2 * p[k + n2 + y] + a3 * p[k + n3 + y]
            v = b0 * q[q0 + y] + b1 * q[q0 + n + y] + b2 * q[q0 + n2 + y] + b3 * q[q0 + n3 + y]
            w = c0 * s[m + y] + c1 * s[m + n + y] + c2 * s[m + n2 + y] + c3 * s[m + n3 + y]
            out[y] += u + v + w


@_serial
def _row_backward(g, scalar, row, start, fours, n, d_scalar, d_row):
    """Transpose of one sum of `_row`: add to the gradients of its scalars (without their weights) and its rows."""
    for r in range(ZERO, fours, FOUR):
        k0 = start + r * n
        k1 = k0 + n
        k2 = k1 + n
        k3 = k2 + n
        a0, a1, a2, a3 = scalar[r], scalar[r + ONE], scalar[r + TWO], scalar[r + THREE]
        t0, t1, t2, t3 = F0, F0, F0, F0
        for y in range(n):
            v = g[y]
            t0 += v * row[k0 + y]
            t1 += v * row[k1 + y]
            t2 += v * row[k2 + y]
            t3 += v * row[k3 + y]
        for y in range(n):
            v = g[y]
            d_row[k0 + y] += a0 * v
            d_row[k1 + y] += a1 * v
            d_row[k2 + y] += a2 * v
            d_row[k3 + y] += a3 * v
        d_scalar[r] += t0
        d_scalar[r + ONE] += t1
        d_scalar[r + TWO] += t2
        d_scalar[r + THREE] += t3


@_serial
def _tile(tile, nodes, layers, features, ux, uy, uz):
    """Node, layer sizes and cells of a tile (node, first and past-the-last x and y, place of its gradient)."""
    layer, i, j, start = nodes[tile[0]]
    kx, ky, kz = np.int64(layers[layer, 3]), np.int64(layers[layer, 4]), np.int64(layers[layer, 5])
    x_at, x_frac = _cells(ux[layer, tile[1] : tile[2]], i * kx, kx)
    y_at, y_frac = _cells(uy[layer, tile[3] : tile[4]], j * ky, ky)
    z_at, z_frac = _cells(uz[layer], 0, kz)
    return start, (features, kx + 1, ky + 1, kz + 1, x_at, x_frac, y_at, y_frac, z_at, z_frac)


@_parallel
def lattice(parameters, weights, features, nodes, layers, tiles, n_tree, ux, uy, uz, which, scale, rho):
    """Density ``rho[z, x, y]``; ``which[z, x]``: 2 for the tree, 1 for the coarse nodes, 0 leaves ``rho`` alone.

    ``weights``: those of the features, then the offset. ``ux``, ``uy``, ``uz``: positions in vertices per layer.
    """
    for t in nb.prange(len(tiles)):
        tile = tiles[t]
        wanted = 2 if tile[0] < n_tree else 1
        x0, y0, n = tile[1], tile[3], tile[4] - tile[3]
        if not np.any(which[:, x0 : tile[2]] == wanted):
            continue
        padded = (n + LANES - 1) // LANES * LANES
        start, place = _tile(tile, nodes, layers, features, ux, uy, uz)
        X, Y, Z, XY, XZ, YZ = _interpolated(parameters[start:], *place, padded)
        fours = X.shape[1]
        w = np.zeros(fours, np.float32)
        w[:features] = weights[:features]
        a, b, c = np.empty(fours, np.float32), np.empty(fours, np.float32), np.empty(fours, np.float32)
        row = np.empty(padded, np.float32)
        y_rows, xy_rows, yz_rows = Y.ravel(), XY.ravel(), YZ.ravel()
        stride = fours * padded
        for block in range(0, len(Z), BLOCK):
            for x in range(len(X)):
                a[:] = w * X[x]
                for z in range(block, min(block + BLOCK, len(Z))):
                    if which[z, x0 + x] != wanted:
                        continue
                    for r in range(fours):
                        b[r] = w[r] * XZ[x, z, r]
                        c[r] = w[r] * Z[z, r]
                    _row(a, b, c, yz_rows, U(z * stride), y_rows, xy_rows, U(x * stride), U(fours), U(padded),
                         weights[features], row)  # fmt: skip
                    out = rho[z, x0 + x, y0 : y0 + n]
                    for y in range(n):
                        out[y] = scale * _softplus(row[y])


@_parallel
def lattice_backward(parameters, weights, features, nodes, layers, tiles, n_tree, ux, uy, uz, which, scale, grad_rho,
                     grad, partial, grad_weights):  # fmt: skip
    """Add to ``grad``, or to ``partial`` where a tile has a place in it; ``grad_weights[tile]`` is set."""
    for t in nb.prange(len(tiles)):
        tile = tiles[t]
        wanted = 2 if tile[0] < n_tree else 1
        x0, y0, n = tile[1], tile[3], tile[4] - tile[3]
        if not np.any(which[:, x0 : tile[2]] == wanted):
            continue
        padded = (n + LANES - 1) // LANES * LANES
        start, place = _tile(tile, nodes, layers, features, ux, uy, uz)
        X, Y, Z, XY, XZ, YZ = _interpolated(parameters[start:], *place, padded)
        fours = X.shape[1]
        w = np.zeros(fours, np.float32)
        w[:features] = weights[:features]
        a, b, c = np.empty(fours, np.float32), np.empty(fours, np.float32), np.empty(fours, np.float32)
        row = np.empty(padded, np.float32)
        y_rows, xy_rows, yz_rows = Y.ravel(), XY.ravel(), YZ.ravel()
        dx, dz, dxz = np.zeros(X.shape, np.float32), np.zeros(Z.shape, np.float32), np.zeros(XZ.shape, np.float32)
        dy, dxy, dyz = np.zeros(Y.size, np.float32), np.zeros(XY.size, np.float32), np.zeros(YZ.size, np.float32)
        g = np.zeros(padded, np.float32)
        stride = fours * padded
        m, rows = U(padded), U(fours)
        total = F0
        for block in range(0, len(Z), BLOCK):
            for x in range(len(X)):
                a[:] = w * X[x]
                for z in range(block, min(block + BLOCK, len(Z))):
                    if which[z, x0 + x] != wanted:
                        continue
                    for r in range(fours):
                        b[r] = w[r] * XZ[x, z, r]
                        c[r] = w[r] * Z[z, r]
                    at_yz, at_xy = U(z * stride), U(x * stride)
                    _row(a, b, c, yz_rows, at_yz, y_rows, xy_rows, at_xy, rows, m, weights[features], row)
                    given = grad_rho[z, x0 + x, y0 : y0 + n]
                    for y in range(n):
                        g[y] = scale * given[y] * _sigmoid(row[y])
                        total += g[y]
                    _row_backward(g, a, yz_rows, at_yz, rows, m, dx[x], dyz)
                    _row_backward(g, b, y_rows, ZERO, rows, m, dxz[x, z], dy)
                    _row_backward(g, c, xy_rows, at_xy, rows, m, dz[z], dxy)
        for r in range(features):  # the scalars' gradients still lack their weights, so they give those of the weights
            s = (dx[:, r] * X[:, r]).sum() + (dz[:, r] * Z[:, r]).sum() + (dxz[:, :, r] * XZ[:, :, r]).sum()
            grad_weights[t, r] = s
            dx[:, r] *= w[r]
            dz[:, r] *= w[r]
            dxz[:, :, r] *= w[r]
        grad_weights[t, features] = total
        block = grad[start:] if tile[5] < 0 else partial[tile[5] :]
        _collect(block, *place, dx, dy.reshape(Y.shape), dz, dxy.reshape(XY.shape), dxz, dyz.reshape(YZ.shape))


@_serial
def _point(X, Y, Z, XY, XZ, YZ, at, frac, values, slopes):
    """Interpolated factors of every feature at a point: ``values`` (r, 6); ``slopes`` (r, 6, 2) per vertex step."""
    i, j, k = at
    s, t, u = frac[0], frac[1], frac[2]
    for r in range(len(values)):
        a, b = X[i, r], X[i + 1, r]
        values[r, 0], slopes[r, 0, 0] = a + s * (b - a), b - a
        a, b = Y[r, j], Y[r, j + 1]
        values[r, 1], slopes[r, 1, 0] = a + t * (b - a), b - a
        a, b = Z[k, r], Z[k + 1, r]
        values[r, 2], slopes[r, 2, 0] = a + u * (b - a), b - a
        values[r, 3], slopes[r, 3, 0], slopes[r, 3, 1] = _bilinear(
            XY[i, r, j], XY[i, r, j + 1], XY[i + 1, r, j], XY[i + 1, r, j + 1], s, t
        )
        values[r, 4], slopes[r, 4, 0], slopes[r, 4, 1] = _bilinear(
            XZ[i, k, r], XZ[i, k + 1, r], XZ[i + 1, k, r], XZ[i + 1, k + 1, r], s, u
        )
        values[r, 5], slopes[r, 5, 0], slopes[r, 5, 1] = _bilinear(
            YZ[k, r, j], YZ[k + 1, r, j], YZ[k, r, j + 1], YZ[k + 1, r, j + 1], t, u
        )


@_serial
def _bilinear(f00, f01, f10, f11, s, t):
    """Value and slopes along s and t; ``fab``: a along s, b along t."""
    low, high = f00 + t * (f01 - f00), f10 + t * (f11 - f10)
    return low + s * (high - low), high - low, (f01 - f00) + s * ((f11 - f10) - (f01 - f00))


@_serial
def _argument(values, weights):
    total = weights[len(values)]
    for r in range(len(values)):
        v = values[r]
        total += weights[r] * (v[0] * v[5] + v[1] * v[4] + v[2] * v[3])
    return total


@_parallel
def points(parameters, weights, features, nodes, layers, order, firsts, u, scale, out):
    """Density at points; ``order[firsts[n] : firsts[n + 1]]`` are those of node n, ``u`` (N, 3) their positions."""
    for node in nb.prange(len(firsts) - 1):
        values, slopes = np.empty((features, 6), np.float32), np.empty((features, 6, 2), np.float32)
        layer, i, j, start = nodes[node]
        kx, ky, kz = np.int64(layers[layer, 3]), np.int64(layers[layer, 4]), np.int64(layers[layer, 5])
        X, Y, Z, XY, XZ, YZ = _views(parameters[start:], features, kx + 1, ky + 1, kz + 1)
        at, frac = np.empty(3, np.int64), np.empty(3, np.float32)
        for n in range(firsts[node], firsts[node + 1]):
            p = order[n]
            _corner(u[p], i * kx, j * ky, kx, ky, kz, at, frac)
            _point(X, Y, Z, XY, XZ, YZ, at, frac, values, slopes)
            out[p] = scale * _softplus(_argument(values, weights))


@_serial
def _corner(u, x_first, y_first, kx, ky, kz, at, frac):
    for axis in range(3):
        local = u[axis] - (x_first if axis == 0 else y_first if axis == 1 else 0)
        last = (kx if axis == 0 else ky if axis == 1 else kz) - 1
        at[axis] = min(max(np.int64(local), 0), last)
        frac[axis] = np.float32(min(max(local - at[axis], 0.0), 1.0))


@_parallel
def points_backward(parameters, weights, features, nodes, layers, order, firsts, u, scale, grad_out, grad, grad_weights,
                    grad_points):  # fmt: skip
    """Add to ``grad``; set ``grad_points`` (N, 3), per raw px, and per node ``grad_weights``."""
    for node in nb.prange(len(firsts) - 1):
        values, slopes = np.empty((features, 6), np.float32), np.empty((features, 6, 2), np.float32)
        layer, i, j, start = nodes[node]
        kx, ky, kz = np.int64(layers[layer, 3]), np.int64(layers[layer, 4]), np.int64(layers[layer, 5])
        X, Y, Z, XY, XZ, YZ = _views(parameters[start:], features, kx + 1, ky + 1, kz + 1)
        dX, dY, dZ, dXY, dXZ, dYZ = _views(grad[start:], features, kx + 1, ky + 1, kz + 1)
        at, frac = np.empty(3, np.int64), np.empty(3, np.float32)
        for n in range(firsts[node], firsts[node + 1]):
            p = order[n]
            _corner(u[p], i * kx, j * ky, kx, ky, kz, at, frac)
            _point(X, Y, Z, XY, XZ, YZ, at, frac, values, slopes)
            g = scale * grad_out[p] * _sigmoid(_argument(values, weights))
            i0, j0, k0 = at
            s, t, v = frac[0], frac[1], frac[2]
            g0, g1, g2 = F0, F0, F0
            grad_weights[node, features] += g
            for r in range(features):
                q, d = values[r], slopes[r]
                grad_weights[node, r] += g * (q[0] * q[5] + q[1] * q[4] + q[2] * q[3])
                h = g * weights[r]
                g0 += h * (d[0, 0] * q[5] + q[1] * d[4, 0] + q[2] * d[3, 0])
                g1 += h * (q[0] * d[5, 0] + d[1, 0] * q[4] + q[2] * d[3, 1])
                g2 += h * (q[0] * d[5, 1] + q[1] * d[4, 1] + d[2, 0] * q[3])
                for e in range(2):
                    x1, y1, z1 = (s if e else F1 - s), (t if e else F1 - t), (v if e else F1 - v)
                    dX[i0 + e, r] += h * q[5] * x1
                    dY[r, j0 + e] += h * q[4] * y1
                    dZ[k0 + e, r] += h * q[3] * z1
                    for f in range(2):
                        y2, z2 = (t if f else F1 - t), (v if f else F1 - v)
                        dXY[i0 + e, r, j0 + f] += h * q[2] * x1 * y2
                        dXZ[i0 + e, k0 + f, r] += h * q[1] * x1 * z2
                        dYZ[k0 + f, r, j0 + e] += h * q[0] * y1 * z2
            grad_points[p, 0] = g0 * np.float32(kx / layers[layer, 0])
            grad_points[p, 1] = g1 * np.float32(ky / layers[layer, 1])
            grad_points[p, 2] = g2 * np.float32(kz / layers[layer, 2])
