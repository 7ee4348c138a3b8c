"""The pseudo-Huber potential on responses as (rows, pixels), a row being a channel of a sample, each with its own
weight l and smoothing nu (rows,): one pass over memory for what takes torch many.

Chunks of a row go through all loops before the next chunk starts; loops over a chunk have no branches, so that
compilers turn them into vector instructions.
"""

from __future__ import annotations

import math

import numpy as np

from learnreg.kernels.jit import compiled, compiled_fast

__all__ = ["adjoint_dual_step", "curvature_interval", "distances", "dual_step", "grad", "second", "slope"]

_CHUNK = 1024


@compiled_fast
def grad(t, weight, smoothing, out):
    """f'(t) in out."""
    for row in range(t.shape[0]):
        square = smoothing[row] * smoothing[row]
        for j in range(t.shape[1]):
            out[row, j] = weight[row] * t[row, j] / math.sqrt(t[row, j] * t[row, j] + square)


@compiled_fast
def second(t, weight, smoothing, out):
    """f''(t) in out."""
    one = t.dtype.type(1.0)
    for row in range(t.shape[0]):
        square = smoothing[row] * smoothing[row]
        curvature = weight[row] * square
        for j in range(t.shape[1]):
            inverse = one / math.sqrt(t[row, j] * t[row, j] + square)
            out[row, j] = curvature * (inverse * inverse * inverse)


@compiled_fast
def slope(t, v, weight, smoothing, step, sums):
    """<f'(t + step v), v> of each row in sums, float64; step (rows,)."""
    rows, pixels = t.shape
    for row in range(rows):
        square = smoothing[row] * smoothing[row]
        total = 0.0
        for first in range(0, pixels, _CHUNK):
            t_, v_ = t[row, first : first + _CHUNK], v[row, first : first + _CHUNK]
            part = t.dtype.type(0.0)
            for j in range(t_.shape[0]):
                at = t_[j] + step[row] * v_[j]
                part += at / math.sqrt(at * at + square) * v_[j]
            total += weight[row] * part
        sums[row] = total


@compiled_fast
def dual_step(v, y, t, weight, smoothing, sigma, relaxation, newton_steps):
    """The dual half of a PDHG step, as ``Potential.dual_step_``, in the memory of y and t; sigma (rows,)."""
    rows, pixels = v.shape
    number = v.dtype.type
    one, relax = number(1.0), number(relaxation)
    keep = one - relax
    size, T = np.empty(_CHUNK, v.dtype), np.empty(_CHUNK, v.dtype)
    for row in range(rows):
        square = smoothing[row] * smoothing[row]
        curvature = weight[row] * square
        share = one / (sigma[row] + weight[row] / smoothing[row])
        for first in range(0, pixels, _CHUNK):
            # slices, since indices that might be negative keep loops from becoming vector instructions
            v_, y_, t_ = (
                v[row, first : first + _CHUNK],
                y[row, first : first + _CHUNK],
                t[row, first : first + _CHUNK],
            )
            for j in range(v_.shape[0]):
                size[j] = abs(v_[j])
                T[j] = abs(t_[j])
            for _ in range(newton_steps):
                for j in range(v_.shape[0]):
                    inverse = one / math.sqrt(T[j] * T[j] + square)
                    p = T[j] * inverse
                    above = size[j] - weight[row] * (p * p * p)
                    following = above / (sigma[row] + curvature * (inverse * inverse * inverse))
                    low = size[j] * share
                    T[j] = following if following > low else low
            for j in range(v_.shape[0]):
                t_[j] = T[j] if v_[j] >= number(0.0) else -T[j]
                y_[j] = keep * y_[j] + relax * weight[row] * t_[j] / math.sqrt(t_[j] * t_[j] + square)


@compiled_fast
def adjoint_dual_step(response, Y, curvature, sigma, relaxation):
    """The dual half of a piggyback step with a frozen linearisation, for any potential without groups: the prox output
    in the memory of response, the relaxed iterate in that of Y; sigma (rows,)."""
    number = Y.dtype.type
    relax = number(relaxation)
    keep = number(1.0) - relax
    for row in range(Y.shape[0]):
        step = sigma[row]
        for j in range(Y.shape[1]):
            bend = curvature[row, j]
            output = (Y[row, j] + step * response[row, j]) * (bend / (step + bend))
            response[row, j] = output
            Y[row, j] = keep * Y[row, j] + relax * output


@compiled
def distances(r, t, weight, smoothing, sums):
    """Of each row in sums (rows, 2), float64: the Bregman distance of f from t to r, as ``PseudoHuber.divergence``, and
    l/nu |r - t|². Plain arithmetic in float64, for bounds."""
    rows, pixels = r.shape
    columns = np.empty((2, _CHUNK), np.float64)
    for row in range(rows):
        l, nu = np.float64(weight[row]), np.float64(smoothing[row])
        square = nu * nu
        columns[:] = 0.0
        for first in range(0, pixels, _CHUNK):
            r_, t_ = r[row, first : first + _CHUNK], t[row, first : first + _CHUNK]
            for j in range(r_.shape[0]):
                at_r, at_t = np.float64(r_[j]), np.float64(t_[j])
                apart = (at_r - at_t) * (at_r - at_t)
                s_t = math.sqrt(at_t * at_t + square)
                divisor = math.sqrt(at_r * at_r + square) * s_t + at_r * at_t + square
                divisor = divisor if divisor > square else square
                columns[0, j] += square * apart / (s_t * divisor)
                columns[1, j] += apart
        for k in range(2):
            total = 0.0
            for j in range(_CHUNK):
                total += columns[k, j]
            sums[row, k] = l * total if k == 0 else l / nu * total


@compiled
def curvature_interval(t, weight, smoothing, radius, outward, low, high, change, ratio, third):
    """``PseudoHuber.curvature_interval`` within radius (rows,), in plain float64 arithmetic, rounded outwards by the
    factors 1 ± outward."""
    up, down = 1.0 + outward, 1.0 - outward
    for row in range(t.shape[0]):
        square = smoothing[row] * smoothing[row]
        curvature, peak, reach = weight[row] * square, 0.5 * smoothing[row], radius[row]
        for first in range(0, t.shape[1], _CHUNK):
            part = slice(first, first + _CHUNK)
            t_, low_, high_ = t[row, part], low[row, part], high[row, part]
            change_, ratio_, third_ = change[row, part], ratio[row, part], third[row, part]
            for j in range(t_.shape[0]):
                size = abs(t_[j])
                far, near = (size + reach) * up, max((size - reach) * down, 0.0)
                s_far, s_near = math.sqrt(far * far + square), math.sqrt(near * near + square)
                s_here = math.sqrt(size * size + square)
                least = curvature / (s_far * s_far * s_far) * down
                most = curvature / (s_near * s_near * s_near) * up
                here = curvature / (s_here * s_here * s_here)
                low_[j], high_[j] = least, most
                fall, rise = max(here - least, 0.0), max(most - here, 0.0)
                change_[j] = max(fall, rise) + here * outward
                below = fall / math.sqrt(least) if least > 0.0 else (math.inf if fall > 0.0 else 0.0)
                above = rise / math.sqrt(most) if most > 0.0 else 0.0
                ratio_[j] = max(below, above) * (1.0 + 1e-12)
                at = min(max(near, peak), far)
                s_at = math.sqrt(at * at + square)
                third_[j] = 3.0 * curvature * up * at / (s_at * s_at * s_at * s_at * s_at)
