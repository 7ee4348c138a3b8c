"""Spline potentials on responses as (rows, pixels), a row being a channel of a sample, with its own weight l and
distance v of the knots (rows,): one pass over memory for what takes torch a dozen.

Tables (channels, m + 1) hold h', h'' and h''' at the knots; row r takes that of channel r modulo their number.
"""

from __future__ import annotations

import math

import numpy as np

from learnreg.kernels.jit import compiled, compiled_fast

__all__ = ["curvature_bounds", "dual_step", "grad", "second", "slope", "third_bound"]


@compiled_fast
def _piece(u, last, number):
    """The knot below u >= 0, at most the last one, and the distance to it, which is NaN where u is. Indices without a
    sign, of 32 bits, and one branch less than by floor: several times as fast in float32."""
    knot = np.int32(u if u < last else last)
    return np.uint32(knot), u - number(knot)


@compiled_fast
def grad(t, weight, smoothing, slopes, bends, twists, out):
    """f'(t) in out; NaN where t is NaN."""
    number = t.dtype.type
    half, last = number(0.5), number(bends.shape[1] - 1)
    for row in range(t.shape[0]):
        channel = row % bends.shape[0]
        slope, bend, twist = slopes[channel], bends[channel], twists[channel]
        l, inverse = weight[row], number(1.0) / smoothing[row]
        at, found = t[row], out[row]
        for j in range(t.shape[1]):
            k, theta = _piece(abs(at[j]) * inverse, last, number)
            found[j] = math.copysign(l, at[j]) * (slope[k] + theta * (bend[k] + theta * half * twist[k]))


@compiled_fast
def second(t, weight, smoothing, bends, out):
    """f''(t) in out."""
    number = t.dtype.type
    zero, one, last = number(0.0), number(1.0), number(bends.shape[1] - 1)
    for row in range(t.shape[0]):
        bend = bends[row % bends.shape[0]]
        inverse = one / smoothing[row]
        scale = weight[row] * inverse
        at, found = t[row], out[row]
        for j in range(t.shape[1]):
            u = abs(at[j]) * inverse
            k, _ = _piece(u, last - one, number)
            theta = min(u, last) - number(k)
            found[j] = scale * (bend[k] * (one - theta) + bend[k + np.uint32(1)] * theta) + zero * u  # NaN where t is


@compiled_fast
def slope(t, v, weight, smoothing, step, slopes, bends, twists, sums):
    """<f'(t + step v), v> of each row in sums, float64; step (rows,)."""
    number = t.dtype.type
    half, last = number(0.5), number(bends.shape[1] - 1)
    for row in range(t.shape[0]):
        channel = row % bends.shape[0]
        slope, bend, twist = slopes[channel], bends[channel], twists[channel]
        inverse = number(1.0) / smoothing[row]
        start, along, length = t[row], v[row], step[row]
        total = 0.0
        for j in range(t.shape[1]):
            at = start[j] + length * along[j]
            k, theta = _piece(abs(at) * inverse, last, number)
            found = slope[k] + theta * (bend[k] + theta * half * twist[k])
            total += math.copysign(number(1.0), at) * found * along[j]
        sums[row] = weight[row] * total


@compiled_fast
def dual_step(v, y, t, weight, smoothing, sigma, relaxation, slopes, bends, twists):
    """The dual half of a PDHG step, as ``Potential.dual_step_``, in the memory of y and t; sigma (rows,). The piece of
    the proximal map is found knot by knot, its point in closed form."""
    number = t.dtype.type
    zero, one, two, half, relax = number(0.0), number(1.0), number(2.0), number(0.5), number(relaxation)
    keep, last = one - relax, bends.shape[1] - 1
    for row in range(v.shape[0]):
        channel = row % bends.shape[0]
        l, distance = weight[row], smoothing[row]
        inverse = one / (sigma[row] * distance)
        pull = l * inverse
        for j in range(v.shape[1]):
            size = abs(v[row, j]) * inverse
            k = 0
            while k < last and size >= number(k + 1) + pull * slopes[channel, k + 1]:
                k += 1
            rest = size - number(k) - pull * slopes[channel, k]
            rest = rest if rest > zero or rest != rest else zero
            linear = one + pull * bends[channel, k]
            root = linear * linear + two * pull * twists[channel, k] * rest
            theta = two * rest / (linear + math.sqrt(root if root > zero else zero))
            gradient = l * (slopes[channel, k] + theta * (bends[channel, k] + theta * half * twists[channel, k]))
            positive = v[row, j] >= zero
            t[row, j] = (number(k) + theta) * distance if positive else -(number(k) + theta) * distance
            y[row, j] = keep * y[row, j] + relax * (gradient if positive else -gradient)


@compiled
def _ends(size, radius, inverse, outward, last):
    """The ends of the interval in units of the knots' distance, at most last + 1; what is not a number reaches all."""
    near, far = (size - radius) * inverse * (1.0 - outward), (size + radius) * inverse * (1.0 + outward)
    near = min(near, last + 1.0) if near > 0.0 else 0.0
    return near, far if far < last + 1.0 else last + 1.0


@compiled
def _bend(bends, u, last):
    """The linear spline through bends at u >= 0, zero from the last knot on."""
    if u >= last:
        return 0.0
    k = int(u)
    return bends[k] * (1.0 - (u - k)) + bends[k + 1] * (u - k)


@compiled
def curvature_bounds(t, weight, smoothing, radius, outward, bends, lowest, highest, low, high):
    """Smallest and largest second derivative over intervals of a radius (rows,) around t, ends rounded outwards. The
    tables lowest and highest hold those of h over the knots i ... k, at (channel, i, k)."""
    last = bends.shape[1] - 1
    for row in range(t.shape[0]):
        channel = row % bends.shape[0]
        inverse, scale = 1.0 / smoothing[row], weight[row] / smoothing[row]
        for j in range(t.shape[1]):
            near, far = _ends(abs(t[row, j]), radius[row], inverse, outward, last)
            at_near, at_far = _bend(bends[channel], near, last), _bend(bends[channel], far, last)
            least, most = min(at_near, at_far), max(at_near, at_far)
            first, final = min(math.ceil(near), last), min(int(far), last)
            if first <= final:
                least, most = min(least, lowest[channel, first, final]), max(most, highest[channel, first, final])
            low[row, j] = scale * least * (1.0 - outward)
            high[row, j] = scale * most * (1.0 + outward)


@compiled
def third_bound(t, weight, smoothing, radius, outward, steepest, out):
    """The largest third derivative in size over the same intervals; the table holds that of h over pieces i ... k."""
    last = steepest.shape[1] - 1
    for row in range(t.shape[0]):
        channel = row % steepest.shape[0]
        inverse = 1.0 / smoothing[row]
        scale = weight[row] * inverse * inverse * (1.0 + outward)
        for j in range(t.shape[1]):
            near, far = _ends(abs(t[row, j]), radius[row], inverse, outward, last)
            first = min(int(near), last)
            out[row, j] = scale * steepest[channel, first, min(max(math.ceil(far) - 1, first), last)]
