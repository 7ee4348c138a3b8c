"""Smoothed isotropic total variation with a data term d/2 |x|² - <q, x>, as ``learnreg.kernels.total_variation``: two
launches for an iteration, one for its derivative's halves each, and one or two for a judgement.

Images are (batch, 1, height, width), dual tensors (batch, 2, height, width). A program takes a block of the pixels of
one image and reads the neighbours it needs. What bounds are made of is computed in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from learnreg.kernels.cuda.places import BOUNDS, FAST, add_blocks, block_sums, grid, larger, place

__all__ = ["adjoint_steps", "dual_answer", "judge", "movement", "steps"]


def _programs(image) -> tuple[int, int]:
    return grid(image.shape[0], image.shape[2] * image.shape[3])


def _number(value, like):
    """A number of the host as a tensor, in float64."""
    return torch.full((), value, dtype=torch.float64, device=like.device)


@triton.jit
def _adjoint(y, pixel, inside, height, width) -> Any:
    """D^T y at these pixels of one sample; the last row and column of D are zero."""
    i, j = pixel // width, pixel % width
    other = y + height * width
    found = tl.load(y + pixel - width, inside & (i > 0), 0.0) - tl.load(y + pixel, inside & (i < height - 1), 0.0)
    left = tl.load(other + pixel - 1, inside & (j > 0), 0.0)
    return found + left - tl.load(other + pixel, inside & (j < width - 1), 0.0)


@triton.jit
def _differences(x, pixel, inside, height, width) -> Any:
    """D x at these pixels of one sample."""
    i, j = pixel // width, pixel % width
    here = tl.load(x + pixel, inside, 0.0)
    down = tl.load(x + pixel + width, inside & (i < height - 1), 0.0)
    right = tl.load(x + pixel + 1, inside & (j < width - 1), 0.0)
    return tl.where(i < height - 1, down - here, 0.0), tl.where(j < width - 1, right - here, 0.0)


# ---- the iteration ---------------------------------------------------------------------------------------------------


def steps(x, x_hat, y, t, q, diagonal, tau, weight, smoothing, norm, relaxation, newton_steps, count):
    """``count`` over-relaxed PDHG iterations per sample, in the memory of x, x_hat, y and t.

    tau: (batch,). diagonal, weight: without axes. norm: of D, sigma = 1/(tau norm²). newton_steps: of the dual proximal
    map, from the old |t|.
    """
    height, width = x.shape[2:]
    programs, ahead, sigma, nu = _programs(x), torch.empty_like(x), 1.0 / (norm * norm * tau), _number(smoothing, x)
    numbers = {"RELAXATION": relaxation, **FAST}
    for _ in range(count):
        _primal[programs](x, x_hat, y, q, ahead, diagonal, tau, height, width, **numbers)
        _dual[programs](ahead, y, t, sigma, weight, nu, height, width, NEWTON_STEPS=newton_steps, **numbers)


@triton.jit
def _primal(x, x_hat, y, q, ahead, diagonal, tau, height, width, RELAXATION: tl.constexpr, BLOCK: tl.constexpr):
    """x_hat = prox_{tau g}(x - tau D^T y), 2 x_hat - x (``ahead``) and the relaxed x."""
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    step = tl.load(tau + n)
    pullback = _adjoint(y + n.to(tl.int64) * 2 * height * width, pixel, inside, height, width)
    x_ = tl.load(x + at, inside, 0.0)
    moved = (x_ + step * (tl.load(q + at, inside, 0.0) - pullback)) / (1.0 + step * tl.load(diagonal)) - x_
    tl.store(x_hat + at, x_ + moved, inside)
    tl.store(ahead + at, x_ + moved + moved, inside)
    tl.store(x + at, x_ + RELAXATION * moved, inside)


@triton.jit
def _dual(
    ahead, y, t, sigma, weight, smoothing, height, width,
    NEWTON_STEPS: tl.constexpr, RELAXATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The dual step: v = y + sigma D ahead, Newton's method on sigma T + f'(T) = |v| (from below, as in
    ``potentials``), t = T v/|v|, and y moves towards f'(t)."""
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = at + n.to(tl.int64) * height * width
    second = first + height * width
    vertical, horizontal = _differences(ahead + n.to(tl.int64) * height * width, pixel, inside, height, width)
    step, l = tl.load(sigma + n), tl.load(weight)
    nu = tl.load(smoothing).to(step.dtype)
    square, share = nu * nu, 1.0 / (step + l / nu)
    y_0, y_1 = tl.load(y + first, inside, 0.0), tl.load(y + second, inside, 0.0)
    t_0, t_1 = tl.load(t + first, inside, 0.0), tl.load(t + second, inside, 0.0)
    v_0, v_1 = y_0 + step * vertical, y_1 + step * horizontal
    length, T = tl.sqrt(v_0 * v_0 + v_1 * v_1), tl.sqrt(t_0 * t_0 + t_1 * t_1)
    for _ in tl.static_range(NEWTON_STEPS):
        inverse = 1.0 / tl.sqrt(T * T + square)
        p = T * inverse
        following = (length - l * (p * p * p)) / (step + l * square * (inverse * inverse * inverse))
        T = tl.maximum(following, length * share)
    ratio = tl.where(length == 0.0, 0.0, T / length)
    slope = RELAXATION * l * ratio / tl.sqrt(T * T + square)
    tl.store(y + first, (1.0 - RELAXATION) * y_0 + slope * v_0, inside)
    tl.store(y + second, (1.0 - RELAXATION) * y_1 + slope * v_1, inside)
    tl.store(t + first, ratio * v_0, inside)
    tl.store(t + second, ratio * v_1, inside)


def adjoint_steps(X, X_hat, Y, Y_hat, t, rhs, diagonal, tau, weight, smoothing, norm, relaxation, count):
    """``count`` over-relaxed piggyback iterations per sample with the linearisation at t, in the memory of X, X_hat, Y
    and Y_hat."""
    height, width = X.shape[2:]
    programs, ahead, sigma, nu = _programs(X), torch.empty_like(X), 1.0 / (norm * norm * tau), _number(smoothing, X)
    numbers = {"RELAXATION": relaxation, **FAST}
    for _ in range(count):
        _primal[programs](X, X_hat, Y, rhs, ahead, diagonal, tau, height, width, **numbers)
        _bent[programs](ahead, Y, Y_hat, t, sigma, weight, nu, height, width, **numbers)


@triton.jit
def _bent(
    ahead, Y, Y_hat, t, sigma, weight, smoothing, height, width, RELAXATION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The derivative of the dual step: of V = Y + sigma D ahead the part along t is multiplied by a/(sigma + a), the
    rest by b/(sigma + b), with a = l nu²/s³ and b = l/s the eigenvalues of f''(t), s² = |t|² + nu²; Y moves towards the
    result."""
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = at + n.to(tl.int64) * height * width
    second = first + height * width
    vertical, horizontal = _differences(ahead + n.to(tl.int64) * height * width, pixel, inside, height, width)
    step, l = tl.load(sigma + n), tl.load(weight)
    nu = tl.load(smoothing).to(step.dtype)
    Y_0, Y_1 = tl.load(Y + first, inside, 0.0), tl.load(Y + second, inside, 0.0)
    t_0, t_1 = tl.load(t + first, inside, 0.0), tl.load(t + second, inside, 0.0)
    V_0, V_1 = Y_0 + step * vertical, Y_1 + step * horizontal
    inverse = 1.0 / tl.sqrt(t_0 * t_0 + t_1 * t_1 + nu * nu)
    across = l * inverse
    along = across * (nu * nu * (inverse * inverse))
    # (a/(sigma+a) - b/(sigma+b)) / |t|² = sigma (a - b) / ((sigma+a) (sigma+b) |t|²), a - b = -b |t|²/s²
    bent = -step * across * (inverse * inverse) / ((step + along) * (step + across))
    turned, share = bent * (t_0 * V_0 + t_1 * V_1), across / (step + across)
    hat_0, hat_1 = share * V_0 + turned * t_0, share * V_1 + turned * t_1
    tl.store(Y_hat + first, hat_0, inside)
    tl.store(Y_hat + second, hat_1, inside)
    tl.store(Y + first, (1.0 - RELAXATION) * Y_0 + RELAXATION * hat_0, inside)
    tl.store(Y + second, (1.0 - RELAXATION) * Y_1 + RELAXATION * hat_1, inside)


# ---- sums, in float64 ------------------------------------------------------------------------------------------------


@triton.jit
def _pair(dual, at, n, inside, size) -> Any:
    """Both components of a dual tensor at these places of an image, in float64."""
    first = dual + at + n.to(tl.int64) * size
    return tl.load(first, inside, 0.0).to(tl.float64), tl.load(first + size, inside, 0.0).to(tl.float64)


@triton.jit
def _keep(parts, n, SUMS: tl.constexpr, k: tl.constexpr, value, inside):
    """The sum of this block as its part of the k-th of the sums of sample n."""
    place = parts + (n * SUMS + k) * tl.num_programs(1) + tl.program_id(1)
    tl.store(place, tl.sum(tl.where(inside, value, 0.0), 0))


def movement(x, x_hat, y, t, weight, smoothing, sums):
    """Per sample in ``sums`` (batch, 2), float64: |x - x_hat|² and |y - f'(t)|²."""
    parts = block_sums(sums, x[0].numel())
    _movement[_programs(x)](x, x_hat, y, t, weight, _number(smoothing, x), parts, x[0].numel(), **FAST)
    add_blocks(parts, sums)


@triton.jit
def _movement(x, x_hat, y, t, weight, smoothing, parts, pixels, BLOCK: tl.constexpr):
    n, at, inside = place(pixels, BLOCK)
    moved = (tl.load(x + at, inside, 0.0) - tl.load(x_hat + at, inside, 0.0)).to(tl.float64)
    (y_0, y_1), (t_0, t_1) = _pair(y, at, n, inside, pixels), _pair(t, at, n, inside, pixels)
    nu = tl.load(smoothing)
    scale = tl.load(weight).to(tl.float64) / tl.sqrt(t_0 * t_0 + t_1 * t_1 + nu * nu)
    vertical, horizontal = y_0 - scale * t_0, y_1 - scale * t_1
    _keep(parts, n, 2, 0, moved * moved, inside)
    _keep(parts, n, 2, 1, vertical * vertical + horizontal * horizontal, inside)


@triton.jit
def _slope(dual, weight, smoothing, out, pixels, BLOCK: tl.constexpr):
    """f'(t), in float64."""
    n, at, inside = place(pixels, BLOCK)
    t_0, t_1 = _pair(dual, at, n, inside, pixels)
    nu = tl.load(smoothing)
    scale = tl.load(weight).to(tl.float64) / tl.sqrt(t_0 * t_0 + t_1 * t_1 + nu * nu)
    first = out + at + n.to(tl.int64) * pixels
    tl.store(first, scale * t_0, inside)
    tl.store(first + pixels, scale * t_1, inside)


@triton.jit
def _response(x, out, height, width, BLOCK: tl.constexpr):
    """D x, in float64."""
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i, j = pixel // width, pixel % width
    here = tl.load(x + at, inside, 0.0).to(tl.float64)
    down = tl.load(x + at + width, inside & (i < height - 1), 0.0).to(tl.float64)
    right = tl.load(x + at + 1, inside & (j < width - 1), 0.0).to(tl.float64)
    first = out + at + n.to(tl.int64) * height * width
    tl.store(first, tl.where(i < height - 1, down - here, 0.0), inside)
    tl.store(first + height * width, tl.where(j < width - 1, right - here, 0.0), inside)


def dual_answer(t, q, diagonal, weight, smoothing, x, sums):
    """x = (q - D^T f'(t)) / d, and per sample in ``sums`` (batch, 6), float64: the Bregman distance of f from t to Dx;
    l/nu |Dx - t|²; and the squares of d x - q + D^T f'(t), d x, q and D^T f'(t)."""
    (height, width), nu, programs = q.shape[2:], _number(smoothing, q), _programs(q)
    slope, response = (torch.empty_like(t, dtype=torch.float64) for _ in range(2))
    _slope[programs](t, weight, nu, slope, height * width, **BOUNDS)
    _minimiser[programs](slope, q, diagonal, x, height, width, **BOUNDS)
    _response[programs](x, response, height, width, **BOUNDS)
    parts = block_sums(sums, height * width)
    arrays = (x, response, t, slope, slope, q, diagonal, weight, nu, parts)
    _judge[programs](*arrays, height, width, SUMS=6, **BOUNDS)
    add_blocks(parts, sums)


@triton.jit
def _minimiser(slope, q, diagonal, x, height, width, BLOCK: tl.constexpr):
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pullback = _adjoint(slope + n.to(tl.int64) * 2 * height * width, pixel, inside, height, width)
    found = (tl.load(q + at, inside, 0.0).to(tl.float64) - pullback) / tl.load(diagonal).to(tl.float64)
    tl.store(x + at, found, inside)


def judge(x, t, q, diagonal, weight, smoothing, y, sums):
    """y = f'(Dx), and per sample in ``sums`` (batch, 8), float64: the Bregman distance of f from t to Dx; l/nu
    |Dx - t|²; the squares of d x - q + D^T f'(t), d x, q, D^T f'(t), d x - q + D^T y and D^T y. Everything is computed
    in float64, also where y has less."""
    (height, width), nu, programs = q.shape[2:], _number(smoothing, q), _programs(q)
    slope, response, own = (torch.empty_like(t, dtype=torch.float64) for _ in range(3))
    _slope[programs](t, weight, nu, slope, height * width, **BOUNDS)
    _response[programs](x, response, height, width, **BOUNDS)
    _slope[programs](response, weight, nu, own, height * width, **BOUNDS)
    parts = block_sums(sums, height * width)
    arrays = (x, response, t, slope, own, q, diagonal, weight, nu, parts)
    _judge[programs](*arrays, height, width, SUMS=8, **BOUNDS)
    y.copy_(own)
    add_blocks(parts, sums)


@triton.jit
def _judge(
    x, response, t, slope, own, q, diagonal, weight, smoothing, parts, height, width,
    SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of a point. With e = r - t the distance is l (nu² |e|² + (e x t)²) / (s_t (s_r s_t + <r, t> + nu²)), a
    form without cancellation."""
    n, at, inside = place(height * width, BLOCK)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = height * width
    l, nu = tl.load(weight).to(tl.float64), tl.load(smoothing)
    (r_0, r_1), (t_0, t_1) = _pair(response, at, n, inside, size), _pair(t, at, n, inside, size)
    square, e_0, e_1 = nu * nu, r_0 - t_0, r_1 - t_1
    apart, cross = e_0 * e_0 + e_1 * e_1, e_0 * t_1 - e_1 * t_0
    s_t, s_r = tl.sqrt(t_0 * t_0 + t_1 * t_1 + square), tl.sqrt(r_0 * r_0 + r_1 * r_1 + square)
    divisor = larger(s_r * s_t + (r_0 * t_0 + r_1 * t_1) + square, square)
    _keep(parts, n, SUMS, 0, l * (square * apart + cross * cross) / (s_t * divisor), inside)
    _keep(parts, n, SUMS, 1, l / nu * apart, inside)
    scaled = tl.load(diagonal).to(tl.float64) * tl.load(x + at, inside, 0.0).to(tl.float64)
    q_ = tl.load(q + at, inside, 0.0).to(tl.float64)
    first = n.to(tl.int64) * 2 * size
    pullback = _adjoint(slope + first, pixel, inside, height, width)
    residual = scaled - q_ + pullback
    _keep(parts, n, SUMS, 2, residual * residual, inside)
    _keep(parts, n, SUMS, 3, scaled * scaled, inside)
    _keep(parts, n, SUMS, 4, q_ * q_, inside)
    _keep(parts, n, SUMS, 5, pullback * pullback, inside)
    if SUMS == 8:
        pullback = _adjoint(own + first, pixel, inside, height, width)
        residual = scaled - q_ + pullback
        _keep(parts, n, SUMS, 6, residual * residual, inside)
        _keep(parts, n, SUMS, 7, pullback * pullback, inside)
