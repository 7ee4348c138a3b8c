"""Spline potentials on responses (rows, pixels), as ``learnreg.kernels.spline``: tables (channels, m + 1) hold h', h''
and h''' at the knots; row r takes that of channel r modulo their number."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from learnreg.kernels.cuda.places import BOUNDS, FAST, add_blocks, block_sums, grid, larger, place, smaller

__all__ = ["curvature_bounds", "dual_step", "grad", "second", "slope", "third_bound"]


@triton.jit
def _slope_at(u, slopes, bends, twists, LAST: tl.constexpr) -> Any:
    """h'(u) for u >= 0, from tables of one channel, by the knot below u, at most the last one; NaN where u is."""
    k = tl.where(u < LAST, u, LAST).to(tl.int32)
    theta = u - k.to(u.dtype)
    return tl.load(slopes + k) + theta * (tl.load(bends + k) + theta * 0.5 * tl.load(twists + k))


def grad(t, weight, smoothing, slopes, bends, twists, out):
    """f'(t) in out; NaN where t is NaN."""
    channels, knots = bends.shape
    arrays = (t, weight, smoothing, slopes, bends, twists, out)
    _grad[grid(*t.shape)](*arrays, t.shape[1], channels, LAST=knots - 1, **FAST)


@triton.jit
def _grad(
    t, weight, smoothing, slopes, bends, twists, out, pixels, channels, LAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    table = (row % channels) * (LAST + 1)
    t_, l = tl.load(t + at, inside, 0.0), tl.load(weight + row)
    found = _slope_at(tl.abs(t_) / tl.load(smoothing + row), slopes + table, bends + table, twists + table, LAST)
    tl.store(out + at, tl.where(t_ < 0.0, -l, l) * found, inside)


def second(t, weight, smoothing, bends, out):
    """f''(t) in out."""
    channels, knots = bends.shape
    _second[grid(*t.shape)](t, weight, smoothing, bends, out, t.shape[1], channels, LAST=knots - 1, **FAST)


@triton.jit
def _second(t, weight, smoothing, bends, out, pixels, channels, LAST: tl.constexpr, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    bends += (row % channels) * (LAST + 1)
    nu = tl.load(smoothing + row)
    u = tl.abs(tl.load(t + at, inside, 0.0)) / nu
    k = tl.where(u < LAST - 1, u, LAST - 1).to(tl.int32)
    theta = smaller(u, LAST) - k.to(u.dtype)
    bend = tl.load(bends + k) * (1.0 - theta) + tl.load(bends + k + 1) * theta
    tl.store(out + at, tl.load(weight + row) / nu * bend, inside)


def slope(t, v, weight, smoothing, step, slopes, bends, twists, sums):
    """<f'(t + step v), v> of each row in sums, float64; step (rows,)."""
    channels, knots = bends.shape
    parts = block_sums(sums, t.shape[1])
    arrays = (t, v, weight, smoothing, step, slopes, bends, twists, parts)
    _slope[grid(*t.shape)](*arrays, t.shape[1], channels, LAST=knots - 1, **FAST)
    add_blocks(parts, sums)


@triton.jit
def _slope(
    t, v, weight, smoothing, step, slopes, bends, twists, parts, pixels, channels,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    table = (row % channels) * (LAST + 1)
    v_ = tl.load(v + at, inside, 0.0)
    ahead = tl.load(t + at, inside, 0.0) + tl.load(step + row) * v_
    found = _slope_at(tl.abs(ahead) / tl.load(smoothing + row), slopes + table, bends + table, twists + table, LAST)
    total = tl.sum(tl.where(inside, tl.where(ahead < 0.0, -found, found) * v_, 0.0), 0)
    tl.store(parts + row * tl.num_programs(1) + tl.program_id(1), (tl.load(weight + row) * total).to(tl.float64))


def dual_step(v, y, t, weight, smoothing, sigma, relaxation, slopes, bends, twists):
    """The dual half of a PDHG step, as ``Potential.dual_step_``, in the memory of y and t; sigma (rows,). The piece of
    the proximal map is found knot by knot, its point in closed form."""
    channels, knots = bends.shape
    arrays = (v, y, t, weight, smoothing, sigma, slopes, bends, twists)
    numbers = {"RELAXATION": relaxation, "LAST": knots - 1, **FAST}
    _dual_step[grid(*v.shape)](*arrays, v.shape[1], channels, **numbers)


@triton.jit
def _dual_step(
    v, y, t, weight, smoothing, sigma, slopes, bends, twists, pixels, channels,
    RELAXATION: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    table = (row % channels) * (LAST + 1)
    l, nu, step = tl.load(weight + row), tl.load(smoothing + row), tl.load(sigma + row)
    v_ = tl.load(v + at, inside, 0.0)
    size, pull = tl.abs(v_) / (step * nu), l / (step * nu)
    k = tl.zeros([BLOCK], tl.int32)
    for j in range(1, LAST + 1):  # t + f'(t)/sigma rises: its values at the knots tell the piece
        k += (size >= j + pull * tl.load(slopes + table + j)).to(tl.int32)
    knot = k.to(v_.dtype)
    slope_k, bend, twist = tl.load(slopes + table + k), tl.load(bends + table + k), tl.load(twists + table + k)
    rest = larger(size - knot - pull * slope_k, 0.0)
    linear = 1.0 + pull * bend
    root = tl.sqrt(larger(linear * linear + 2.0 * pull * twist * rest, 0.0))
    theta = 2.0 * rest / (linear + root)
    gradient = l * (slope_k + theta * (bend + theta * 0.5 * twist))
    T = (knot + theta) * nu
    tl.store(t + at, tl.where(v_ >= 0.0, T, -T), inside)
    moved = (1.0 - RELAXATION) * tl.load(y + at, inside, 0.0)
    tl.store(y + at, moved + RELAXATION * tl.where(v_ >= 0.0, gradient, -gradient), inside)


@triton.jit
def _ends(size, reach, nu, LAST: tl.constexpr, OUTWARD: tl.constexpr) -> Any:
    """The ends of the interval in units of the knots' distance, at most last + 1; what is not a number reaches all."""
    near, far = (size - reach) / nu * (1.0 - OUTWARD), (size + reach) / nu * (1.0 + OUTWARD)
    near = tl.where(near > 0.0, tl.minimum(near, LAST + 1), 0.0)
    return near, tl.where(far < LAST + 1, far, LAST + 1)


@triton.jit
def _bend_at(u, bends, LAST: tl.constexpr) -> Any:
    """The linear spline through bends at u >= 0, zero from the last knot on."""
    k = tl.minimum(u, LAST - 1).to(tl.int32)
    share = u - k.to(u.dtype)
    return tl.where(u >= LAST, 0.0, tl.load(bends + k) * (1.0 - share) + tl.load(bends + k + 1) * share)


def curvature_bounds(t, weight, smoothing, radius, outward, bends, lowest, highest, low, high):
    """Smallest and largest second derivative over intervals of a radius (rows,) around t, ends rounded outwards. The
    tables lowest and highest hold those of h over the knots i ... k, at (channel, i, k)."""
    channels, knots = bends.shape
    arrays = (t, weight, smoothing, radius, bends, lowest, highest, low, high)
    numbers = {"LAST": knots - 1, "OUTWARD": outward, **BOUNDS}
    _curvature_bounds[grid(*t.shape)](*arrays, t.shape[1], channels, **numbers)


@triton.jit
def _curvature_bounds(
    t, weight, smoothing, radius, bends, lowest, highest, low, high, pixels, channels,
    LAST: tl.constexpr, OUTWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    channel, nu = row % channels, tl.load(smoothing + row)
    near, far = _ends(tl.abs(tl.load(t + at, inside, 0.0)), tl.load(radius + row), nu, LAST, OUTWARD)
    table = bends + channel * (LAST + 1)
    at_near, at_far = _bend_at(near, table, LAST), _bend_at(far, table, LAST)
    first, final = tl.minimum(tl.ceil(near), LAST).to(tl.int32), tl.minimum(tl.floor(far), LAST).to(tl.int32)
    pair = channel * (LAST + 1) * (LAST + 1) + tl.minimum(first, final) * (LAST + 1) + final
    least, most = tl.minimum(at_near, at_far), tl.maximum(at_near, at_far)
    least = tl.where(first <= final, tl.minimum(least, tl.load(lowest + pair)), least)
    most = tl.where(first <= final, tl.maximum(most, tl.load(highest + pair)), most)
    scale = tl.load(weight + row) / nu
    tl.store(low + at, scale * least * (1.0 - OUTWARD), inside)
    tl.store(high + at, scale * most * (1.0 + OUTWARD), inside)


def third_bound(t, weight, smoothing, radius, outward, steepest, out):
    """The largest third derivative in size over the same intervals; the table holds that of h over pieces i ... k."""
    channels, knots = steepest.shape[:2]
    numbers = {"LAST": knots - 1, "OUTWARD": outward, **BOUNDS}
    _third_bound[grid(*t.shape)](t, weight, smoothing, radius, steepest, out, t.shape[1], channels, **numbers)


@triton.jit
def _third_bound(
    t, weight, smoothing, radius, steepest, out, pixels, channels,
    LAST: tl.constexpr, OUTWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    nu = tl.load(smoothing + row)
    near, far = _ends(tl.abs(tl.load(t + at, inside, 0.0)), tl.load(radius + row), nu, LAST, OUTWARD)
    first = tl.minimum(tl.floor(near), LAST).to(tl.int32)
    final = tl.minimum(tl.maximum((tl.ceil(far) - 1.0).to(tl.int32), first), LAST)
    table = steepest + (row % channels) * (LAST + 1) * (LAST + 1)
    found = tl.load(table + first * (LAST + 1) + final)
    tl.store(out + at, tl.load(weight + row) / nu / nu * found * (1.0 + OUTWARD), inside)
