"""The pseudo-Huber potential on responses (rows, pixels), as ``learnreg.kernels.pseudo_huber``."""

from __future__ import annotations

import triton
import triton.language as tl

from learnreg.kernels.cuda.places import BOUNDS, FAST, add_blocks, block_sums, grid, larger, place, smaller

__all__ = ["adjoint_dual_step", "curvature_interval", "distances", "dual_step", "grad", "second", "slope"]


def grad(t, weight, smoothing, out):
    """f'(t) in out."""
    _grad[grid(*t.shape)](t, weight, smoothing, out, t.shape[1], **FAST)


@triton.jit
def _grad(t, weight, smoothing, out, pixels, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    l, nu = tl.load(weight + row), tl.load(smoothing + row)
    t_ = tl.load(t + at, inside, 0.0)
    tl.store(out + at, l * t_ / tl.sqrt(t_ * t_ + nu * nu), inside)


def second(t, weight, smoothing, out):
    """f''(t) in out."""
    _second[grid(*t.shape)](t, weight, smoothing, out, t.shape[1], **FAST)


@triton.jit
def _second(t, weight, smoothing, out, pixels, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    l, nu = tl.load(weight + row), tl.load(smoothing + row)
    t_ = tl.load(t + at, inside, 0.0)
    inverse = 1.0 / tl.sqrt(t_ * t_ + nu * nu)
    tl.store(out + at, l * nu * nu * (inverse * inverse * inverse), inside)


def slope(t, v, weight, smoothing, step, sums):
    """<f'(t + step v), v> of each row in sums, float64; step (rows,)."""
    parts = block_sums(sums, t.shape[1])
    _slope[grid(*t.shape)](t, v, weight, smoothing, step, parts, t.shape[1], **FAST)
    add_blocks(parts, sums)


@triton.jit
def _slope(t, v, weight, smoothing, step, parts, pixels, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    l, nu, length = tl.load(weight + row), tl.load(smoothing + row), tl.load(step + row)
    v_ = tl.load(v + at, inside, 0.0)
    ahead = tl.load(t + at, inside, 0.0) + length * v_
    part = tl.sum(tl.where(inside, ahead / tl.sqrt(ahead * ahead + nu * nu) * v_, 0.0), 0)
    tl.store(parts + row * tl.num_programs(1) + tl.program_id(1), (l * part).to(tl.float64))


def dual_step(v, y, t, weight, smoothing, sigma, relaxation, newton_steps):
    """The dual half of a PDHG step, as ``Potential.dual_step_``, in the memory of y and t; sigma (rows,)."""
    numbers = {"RELAXATION": relaxation, "NEWTON_STEPS": newton_steps, **FAST}
    _dual_step[grid(*v.shape)](v, y, t, weight, smoothing, sigma, v.shape[1], **numbers)


@triton.jit
def _dual_step(
    v, y, t, weight, smoothing, sigma, pixels,
    RELAXATION: tl.constexpr, NEWTON_STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    l, nu, step = tl.load(weight + row), tl.load(smoothing + row), tl.load(sigma + row)
    square, share = nu * nu, 1.0 / (step + l / nu)
    v_ = tl.load(v + at, inside, 0.0)
    size, T = tl.abs(v_), tl.abs(tl.load(t + at, inside, 0.0))
    for _ in tl.static_range(NEWTON_STEPS):
        inverse = 1.0 / tl.sqrt(T * T + square)
        p = T * inverse
        following = (size - l * (p * p * p)) / (step + l * square * (inverse * inverse * inverse))
        T = tl.maximum(following, size * share)
    T = tl.where(v_ >= 0.0, T, -T)
    moved = (1.0 - RELAXATION) * tl.load(y + at, inside, 0.0) + RELAXATION * l * T / tl.sqrt(T * T + square)
    tl.store(t + at, T, inside)
    tl.store(y + at, moved, inside)


def adjoint_dual_step(response, Y, curvature, sigma, relaxation):
    """The dual half of a piggyback step with a frozen linearisation, for any potential without groups: the prox output
    in the memory of response, the relaxed iterate in that of Y; sigma (rows,)."""
    numbers = {"RELAXATION": relaxation, **FAST}
    _adjoint_dual_step[grid(*Y.shape)](response, Y, curvature, sigma, Y.shape[1], **numbers)


@triton.jit
def _adjoint_dual_step(response, Y, curvature, sigma, pixels, RELAXATION: tl.constexpr, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    step, bend = tl.load(sigma + row), tl.load(curvature + at, inside, 1.0)
    Y_ = tl.load(Y + at, inside, 0.0)
    output = (Y_ + step * tl.load(response + at, inside, 0.0)) * (bend / (step + bend))
    tl.store(response + at, output, inside)
    tl.store(Y + at, (1.0 - RELAXATION) * Y_ + RELAXATION * output, inside)


def distances(r, t, weight, smoothing, sums):
    """Of each row in sums (rows, 2), float64: the Bregman distance of f from t to r, as ``PseudoHuber.divergence``, and
    l/nu |r - t|². In float64, for bounds."""
    parts = block_sums(sums, t.shape[1])
    _distances[grid(*t.shape)](r, t, weight, smoothing, parts, t.shape[1], **BOUNDS)
    add_blocks(parts, sums)


@triton.jit
def _distances(r, t, weight, smoothing, parts, pixels, BLOCK: tl.constexpr):
    row, at, inside = place(pixels, BLOCK)
    l, nu = tl.load(weight + row).to(tl.float64), tl.load(smoothing + row).to(tl.float64)
    square = nu * nu
    r_, t_ = tl.load(r + at, inside, 0.0).to(tl.float64), tl.load(t + at, inside, 0.0).to(tl.float64)
    apart = (r_ - t_) * (r_ - t_)
    s_t = tl.sqrt(t_ * t_ + square)
    divisor = larger(tl.sqrt(r_ * r_ + square) * s_t + r_ * t_ + square, square)
    count = tl.num_programs(1)
    first = parts + row * 2 * count + tl.program_id(1)
    tl.store(first, l * tl.sum(square * apart / (s_t * divisor), 0))
    tl.store(first + count, l / nu * tl.sum(apart, 0))


def curvature_interval(t, weight, smoothing, radius, outward, low, high, change, ratio, third):
    """``PseudoHuber.curvature_interval`` within radius (rows,), in float64, rounded outwards by the factors 1 ±
    outward."""
    found = (low, high, change, ratio, third)
    _curvature_interval[grid(*t.shape)](t, weight, smoothing, radius, *found, t.shape[1], OUTWARD=outward, **BOUNDS)


@triton.jit
def _curvature_interval(
    t, weight, smoothing, radius, low, high, change, ratio, third, pixels,
    OUTWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, at, inside = place(pixels, BLOCK)
    l, nu, reach = tl.load(weight + row), tl.load(smoothing + row), tl.load(radius + row)
    square = nu * nu
    curvature = l * square
    size = tl.abs(tl.load(t + at, inside, 0.0))
    far, near = (size + reach) * (1.0 + OUTWARD), larger((size - reach) * (1.0 - OUTWARD), 0.0)
    s_far, s_near, s_here = tl.sqrt(far * far + square), tl.sqrt(near * near + square), tl.sqrt(size * size + square)
    least = curvature / (s_far * s_far * s_far) * (1.0 - OUTWARD)
    most = curvature / (s_near * s_near * s_near) * (1.0 + OUTWARD)
    here = curvature / (s_here * s_here * s_here)
    fall, rise = larger(here - least, 0.0), larger(most - here, 0.0)
    below = tl.where(least > 0.0, fall / tl.sqrt(least), tl.where(fall > 0.0, float("inf"), 0.0))
    above = tl.where(most > 0.0, rise / tl.sqrt(most), 0.0)
    peak = smaller(larger(near, 0.5 * nu), far)
    s_peak = tl.sqrt(peak * peak + square)
    tl.store(low + at, least, inside)
    tl.store(high + at, most, inside)
    tl.store(change + at, larger(fall, rise) + here * OUTWARD, inside)
    tl.store(ratio + at, larger(below, above) * (1.0 + 1e-12), inside)
    fifth = s_peak * s_peak * s_peak * s_peak * s_peak
    tl.store(third + at, 3.0 * curvature * (1.0 + OUTWARD) * peak / fifth, inside)
