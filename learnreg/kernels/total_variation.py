"""Smoothed isotropic total variation with a data term d/2 |x|² - <q, x>: a whole primal-dual iteration and its
derivative, the dual answer and the judgement of a point, each in one pass over the rows of an image.

Images are (batch, 1, height, width), dual tensors (batch, 2, height, width). Rows that a pass still needs wait in
scratch rows, so that every array is read and written once. Loops over a row have no branches: compilers turn them into
vector instructions. Sums run down the columns in float64, whose order no vector length changes.
"""

from __future__ import annotations

import math

import numpy as np

from learnreg.kernels.jit import compiled, compiled_fast

__all__ = ["adjoint_steps", "dual_answer", "judge", "movement", "steps"]

# ---- the iteration ---------------------------------------------------------------------------------------------------


@compiled_fast
def steps(x, x_hat, y, t, q, diagonal, tau, weight, smoothing, norm, relaxation, newton_steps, count):
    """``count`` over-relaxed PDHG iterations per sample, in the memory of x, x_hat, y and t.

    tau: (batch,). diagonal, weight: without axes. norm: of D, sigma = 1/(tau norm²). newton_steps: of the dual proximal
    map, from the old |t|. Every iteration follows one row behind the one before it, so that the rows they share stay in
    the cache.
    """
    batch, _, height, width = x.shape
    number = x.dtype.type
    relax = number(relaxation)
    ahead = np.empty((count, 2, width), x.dtype)
    scratch = np.empty((4, width), x.dtype)
    for n in range(batch):
        tau_n = tau[n]
        sigma = number(1.0 / (norm * norm * tau_n))
        shrink = number(1.0 / (1.0 + tau_n * diagonal[()]))
        for front in range(height + count):
            for k in range(count):
                i = front - k
                if 0 <= i < height:
                    _primal_row(x[n, 0], x_hat[n, 0], y[n], q[n, 0], i, ahead[k, i % 2], tau_n, shrink, relax)
                if 0 < i <= height:  # the last row has no difference to a next one
                    here = ahead[k, (i - 1) % 2]
                    following = ahead[k, i % 2] if i < height else here
                    _dual_row(
                        here, following, y[n], t[n], i - 1, scratch, sigma, weight[()], smoothing, relax, newton_steps
                    )


@compiled_fast
def _primal_row(x, x_hat, y, q, i, ahead, tau, shrink, relaxation):
    """Row i of x_hat = prox_{tau g}(x - tau D^T y), of 2 x_hat - x (``ahead``) and of the relaxed x."""
    _adjoint_row(y, i - 1, i, i == 0, i == x.shape[0] - 1, ahead)
    for j in range(x.shape[1]):
        moved = (x[i, j] + tau * (q[i, j] - ahead[j])) * shrink - x[i, j]
        ahead[j] = x[i, j] + moved + moved
        x_hat[i, j] = x[i, j] + moved
        x[i, j] += relaxation * moved


@compiled_fast
def _dual_row(here, following, y, t, i, scratch, sigma, weight, smoothing, relaxation, newton_steps):
    """Row i of the dual step: v = y + sigma D ahead, Newton's method on sigma T + f'(T) = |v| (from below, as in
    ``potentials``), t = T v/|v|, and y moves towards f'(t)."""
    width = here.shape[0]
    number = here.dtype.type
    square = number(smoothing * smoothing)
    curvature = number(weight * square)
    share = number(1.0 / (sigma + weight / smoothing))
    tiny = number(np.finfo(here.dtype).tiny)
    keep = number(1.0) - relaxation
    vertical, horizontal, length, T = scratch[0], scratch[1], scratch[2], scratch[3]
    for j in range(width - 1):
        horizontal[j] = y[1, i, j] + sigma * (here[j + 1] - here[j])
    horizontal[width - 1] = y[1, i, width - 1]
    for j in range(width):
        vertical[j] = y[0, i, j] + sigma * (following[j] - here[j])
        length[j] = math.sqrt(vertical[j] * vertical[j] + horizontal[j] * horizontal[j])
        T[j] = math.sqrt(t[0, i, j] * t[0, i, j] + t[1, i, j] * t[1, i, j])
    for _ in range(newton_steps):
        for j in range(width):
            inverse = number(1.0) / math.sqrt(T[j] * T[j] + square)
            p = T[j] * inverse
            following_T = (length[j] - weight * (p * p * p)) / (sigma + curvature * (inverse * inverse * inverse))
            low = length[j] * share
            T[j] = following_T if following_T > low else low
    for j in range(width):
        ratio = T[j] / (length[j] + tiny)
        slope = relaxation * weight * ratio / math.sqrt(T[j] * T[j] + square)
        y[0, i, j] = keep * y[0, i, j] + slope * vertical[j]
        y[1, i, j] = keep * y[1, i, j] + slope * horizontal[j]
        t[0, i, j] = ratio * vertical[j]
        t[1, i, j] = ratio * horizontal[j]


@compiled_fast
def adjoint_steps(X, X_hat, Y, Y_hat, t, rhs, diagonal, tau, weight, smoothing, norm, relaxation, count):
    """``count`` over-relaxed piggyback iterations per sample with the linearisation at t, in the memory of X, X_hat, Y
    and Y_hat; row by row as ``steps``."""
    batch, _, height, width = X.shape
    relax = X.dtype.type(relaxation)
    ahead = np.empty((count, 2, width), X.dtype)
    for n in range(batch):
        tau_n = tau[n]
        sigma = X.dtype.type(1.0 / (norm * norm * tau_n))
        shrink = X.dtype.type(1.0 / (1.0 + tau_n * diagonal[()]))
        for front in range(height + count):
            for k in range(count):
                i = front - k
                if 0 <= i < height:
                    _primal_row(X[n, 0], X_hat[n, 0], Y[n], rhs[n, 0], i, ahead[k, i % 2], tau_n, shrink, relax)
                if 0 < i <= height:
                    here = ahead[k, (i - 1) % 2]
                    following = ahead[k, i % 2] if i < height else here
                    _bent_row(here, following, Y[n], Y_hat[n], t[n], i - 1, sigma, weight[()], smoothing, relax)


@compiled_fast
def _bent_row(here, following, Y, Y_hat, t, i, sigma, weight, smoothing, relaxation):
    """Row i of the derivative of the dual step: of V = Y + sigma D ahead the part along t is multiplied by a/(sigma +
    a), the rest by b/(sigma + b), with a = l nu²/s³ and b = l/s the eigenvalues of f''(t), s² = |t|² + nu²; Y moves
    towards the result."""
    width = here.shape[0]
    number = here.dtype.type
    square = number(smoothing * smoothing)
    one, zero = number(1.0), number(0.0)
    keep = one - relaxation
    for j in range(width):
        difference = here[j + 1] - here[j] if j < width - 1 else zero
        vertical = Y[0, i, j] + sigma * (following[j] - here[j])
        horizontal = Y[1, i, j] + sigma * difference
        t_0, t_1 = t[0, i, j], t[1, i, j]
        inverse = one / math.sqrt(t_0 * t_0 + t_1 * t_1 + square)
        across = weight * inverse
        along = across * (square * (inverse * inverse))
        # (a/(sigma+a) - b/(sigma+b)) / |t|² = sigma (a - b) / ((sigma+a) (sigma+b) |t|²), a - b = -b |t|²/s²
        bent = -sigma * across * (inverse * inverse) / ((sigma + along) * (sigma + across))
        turned = bent * (t_0 * vertical + t_1 * horizontal)
        share = across / (sigma + across)
        Y_hat[0, i, j] = share * vertical + turned * t_0
        Y_hat[1, i, j] = share * horizontal + turned * t_1
        Y[0, i, j] = keep * Y[0, i, j] + relaxation * Y_hat[0, i, j]
        Y[1, i, j] = keep * Y[1, i, j] + relaxation * Y_hat[1, i, j]


@compiled_fast
def movement(x, x_hat, y, t, weight, smoothing, sums):
    """Per sample in ``sums`` (batch, 2), float64: |x - x_hat|² and |y - f'(t)|²."""
    batch, _, height, width = x.shape
    square = x.dtype.type(smoothing * smoothing)
    columns = np.empty((2, width), np.float64)
    for n in range(batch):
        columns[:] = 0.0
        for i in range(height):
            for j in range(width):
                moved = x[n, 0, i, j] - x_hat[n, 0, i, j]
                scale = weight[()] / math.sqrt(t[n, 0, i, j] * t[n, 0, i, j] + t[n, 1, i, j] * t[n, 1, i, j] + square)
                vertical = y[n, 0, i, j] - scale * t[n, 0, i, j]
                horizontal = y[n, 1, i, j] - scale * t[n, 1, i, j]
                columns[0, j] += moved * moved
                columns[1, j] += vertical * vertical + horizontal * horizontal
        _add_columns(columns, sums[n])


# ---- bounds: plain arithmetic ----------------------------------------------------------------------------------------


@compiled
def dual_answer(t, q, diagonal, weight, smoothing, x, sums):
    """x = (q - D^T f'(t)) / d, and per sample in ``sums`` (batch, 6), float64: the Bregman distance of f from t to Dx;
    l/nu |Dx - t|²; and the squares of d x - q + D^T f'(t), d x, q and D^T f'(t)."""
    batch, _, height, width = q.shape
    y = np.empty((2, 2, width), q.dtype)
    pullback = np.empty(width, q.dtype)
    columns = np.empty((6, width), np.float64)
    d = diagonal[()]
    for n in range(batch):
        columns[:] = 0.0
        for i in range(height + 1):
            if i < height:
                _slope_row(t[n], i, weight[()], smoothing, y, i % 2)
                _adjoint_row(y, (i - 1) % 2, i % 2, i == 0, i == height - 1, pullback)
                for j in range(width):
                    x[n, 0, i, j] = (q[n, 0, i, j] - pullback[j]) / d
                    scaled = d * x[n, 0, i, j]
                    residual = scaled - q[n, 0, i, j] + pullback[j]
                    columns[2, j] += residual * residual
                    columns[3, j] += scaled * scaled
                    columns[4, j] += q[n, 0, i, j] * q[n, 0, i, j]
                    columns[5, j] += pullback[j] * pullback[j]
            if i > 0:
                _distance_row(x[n, 0], t[n], i - 1, weight[()], smoothing, columns)
        _add_columns(columns, sums[n])


@compiled
def judge(x, t, q, diagonal, weight, smoothing, y, sums):
    """y = f'(Dx), and per sample in ``sums`` (batch, 8), float64: the Bregman distance of f from t to Dx; l/nu
    |Dx - t|²; the squares of d x - q + D^T f'(t), d x, q, D^T f'(t), d x - q + D^T y and D^T y. Everything is computed
    in float64, also where y has less."""
    batch, _, height, width = q.shape
    response = np.empty((2, 1, width), np.float64)
    from_x, from_t = np.empty((2, 2, width), np.float64), np.empty((2, 2, width), np.float64)
    own, pullback = np.empty(width, np.float64), np.empty(width, np.float64)
    columns = np.empty((8, width), np.float64)
    d = diagonal[()]
    for n in range(batch):
        columns[:] = 0.0
        for i in range(height):
            above, here = (i - 1) % 2, i % 2
            _difference_row(x[n, 0], i, response)
            _slope_row(response, 0, weight[()], smoothing, from_x, here)
            _slope_row(t[n], i, weight[()], smoothing, from_t, here)
            for c in range(2):
                for j in range(width):
                    y[n, c, i, j] = from_x[c, here, j]
            _adjoint_row(from_x, above, here, i == 0, i == height - 1, own)
            _adjoint_row(from_t, above, here, i == 0, i == height - 1, pullback)
            for j in range(width):
                scaled = d * x[n, 0, i, j]
                saddle, reduced = scaled - q[n, 0, i, j] + pullback[j], scaled - q[n, 0, i, j] + own[j]
                columns[2, j] += saddle * saddle
                columns[3, j] += scaled * scaled
                columns[4, j] += q[n, 0, i, j] * q[n, 0, i, j]
                columns[5, j] += pullback[j] * pullback[j]
                columns[6, j] += reduced * reduced
                columns[7, j] += own[j] * own[j]
            _distance_row(x[n, 0], t[n], i, weight[()], smoothing, columns)
        _add_columns(columns, sums[n])


@compiled
def _distance_row(x, t, i, weight, smoothing, columns):
    """Add row i of the Bregman distance of f from t to r = Dx to columns[0], and l/nu |r - t|² to columns[1]. With e =
    r - t the distance is l (nu² |e|² + (e x t)²) / (s_t (s_r s_t + <r, t> + nu²)), a form without cancellation."""
    width = x.shape[1]
    square, slope = smoothing * smoothing, weight / smoothing
    response = np.empty((2, 1, width), np.float64)
    _difference_row(x, i, response)
    for j in range(width):
        t_0, t_1 = np.float64(t[0, i, j]), np.float64(t[1, i, j])
        r_0, r_1 = response[0, 0, j], response[1, 0, j]
        e_0, e_1 = r_0 - t_0, r_1 - t_1
        apart, cross = e_0 * e_0 + e_1 * e_1, e_0 * t_1 - e_1 * t_0
        s_t = math.sqrt(t_0 * t_0 + t_1 * t_1 + square)
        s_r = math.sqrt(r_0 * r_0 + r_1 * r_1 + square)
        divisor = s_r * s_t + (r_0 * t_0 + r_1 * t_1) + square
        divisor = divisor if divisor > square else square
        columns[0, j] += weight * (square * apart + cross * cross) / (s_t * divisor)
        columns[1, j] += slope * apart


@compiled
def _slope_row(t, i, weight, smoothing, y, row):
    """Row ``row`` of y = f'(t) from row i of t, in the precision of y."""
    number = y.dtype.type
    square = number(smoothing * smoothing)
    for j in range(t.shape[2]):
        vertical, horizontal = number(t[0, i, j]), number(t[1, i, j])
        scale = weight / math.sqrt(vertical * vertical + horizontal * horizontal + square)
        y[0, row, j] = scale * vertical
        y[1, row, j] = scale * horizontal


@compiled
def _difference_row(x, i, out):
    """Row i of D x in float64, in out (2, 1, width)."""
    height, width = x.shape
    below = i + 1 if i < height - 1 else i  # the last row has no difference
    for j in range(width):
        out[0, 0, j] = np.float64(x[below, j]) - np.float64(x[i, j])
    for j in range(width - 1):
        out[1, 0, j] = np.float64(x[i, j + 1]) - np.float64(x[i, j])
    out[1, 0, width - 1] = 0.0


@compiled
def _adjoint_row(y, above, here, first, last, out):
    """A row of D^T y from y's row ``here`` and the one above it; the last row and column of D are zero."""
    width = y.shape[2]
    for j in range(width):
        out[j] = y.dtype.type(0.0) if first else y[0, above, j]
    if not last:
        for j in range(width):
            out[j] -= y[0, here, j]
    for j in range(width - 1):
        out[j] -= y[1, here, j]
    for j in range(width - 1):
        out[j + 1] += y[1, here, j]


@compiled
def _add_columns(columns, sums):
    for k in range(columns.shape[0]):
        total = 0.0
        for j in range(columns.shape[1]):
            total += columns[k, j]
        sums[k] = total
