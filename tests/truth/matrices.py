"""Small lower-level problems as dense matrices, with potentials written out again and Newton's method to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from truth.draw import DOUBLE

import learnreg as lr
from learnreg.linear.norms import dense_matrix

__all__ = ["Dense", "derivatives"]


_MODULUS = "modulus of "


def _column(value: float | Tensor, t: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=DOUBLE)
    return value.expand(t.shape[1:]) if value.dim() else value


def spline_derivatives(
    t: Tensor, weight: Tensor, smoothing: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of hat functions and their integrals, for channels on the second axis."""
    u = (t / smoothing).abs()[..., None]
    c = coefficients[:, None, None] if coefficients.shape[0] > 1 else coefficients[0]
    knots = torch.arange(coefficients.shape[1])
    x = (u - knots).clamp(-1.0, 1.0)
    second = (c * (1.0 - x.abs())).sum(-1)
    once = torch.where(x < 0, (1.0 + x) ** 2 / 2.0, 1.0 - (1.0 - x) ** 2 / 2.0)
    twice = torch.where(x < 0, (1.0 + x) ** 3 / 6.0, x + (1.0 - x) ** 3 / 6.0) + (u - knots - 1.0).clamp_min(0.0)
    at_zero = (knots == 0).double()
    slope = (c * (once - 0.5 * at_zero)).sum(-1)
    value = (c * (twice - at_zero * (1.0 / 6.0 + 0.5 * u))).sum(-1)
    return weight * smoothing * value, weight * slope * t.sign(), weight / smoothing * second


def _maximum_envelope(t: Tensor, l: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By bisection for the theta that entries of |t|/v are cut by."""
    u = t.abs() / v
    low, high = torch.zeros_like(u[:, :1]), u.amax(1, keepdim=True)
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = (u - middle).clamp_min(0.0).sum(1, keepdim=True) > 1.0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    inside = u.sum(1, keepdim=True) <= 1.0
    size = torch.where(inside, u, (u - high).clamp_min(0.0))
    p, kept = t.sign() * size, (inside | (u > high)).double()
    signs = t.sign() * kept
    identity = torch.eye(t.shape[1], dtype=t.dtype).reshape(1, t.shape[1], t.shape[1], *(1,) * (t.dim() - 2))
    outer = signs[:, :, None] * signs[:, None] / kept.sum(1)[:, None, None]
    onto = identity * kept[:, None] - torch.where(inside, 0.0, 1.0)[:, None] * outer
    value = l * ((p * t).sum(1, keepdim=True) - 0.5 * v * (p * p).sum(1, keepdim=True))
    return value, l * p, (l / v + 0.0 * value)[:, None] * onto


def derivatives(
    kind: str, t: Tensor, weight: Tensor, smoothing: Tensor, coefficients: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Density, f' and f'' written out again; for groups (axis 1) f'' is (batch, c, c, ...), else the shape of t."""
    l, v = weight, smoothing
    if kind.startswith(_MODULUS):
        return _of_modulus(kind.removeprefix(_MODULUS), t, weight, smoothing, coefficients)
    if kind == "PseudoHuber":
        s = torch.sqrt(t**2 + v**2)
        return l * (s - v), l * t / s, l * v**2 / s**3
    if kind == "LogCosh":
        u = (t / v).abs()
        return (
            l * v * (u + torch.log1p(torch.exp(-2 * u)) - math.log(2)),
            l * torch.tanh(t / v),
            l / v / torch.cosh(u.clamp(max=300)) ** 2,
        )
    if kind == "Huber":
        inside = t.abs() <= v
        return (
            torch.where(inside, l * t**2 / (2 * v), l * (t.abs() - v / 2)),
            torch.where(inside, l * t / v, l * t.sign()),
            torch.where(inside, l / v + 0 * t, 0 * t),
        )
    if kind == "Square":
        return l * t**2 / 2, l * t, l + 0 * t
    if kind == "IsotropicPseudoHuber":
        s = torch.sqrt((t**2).sum(1, keepdim=True) + v**2)
        identity = torch.eye(t.shape[1], dtype=t.dtype).reshape(1, t.shape[1], t.shape[1], *(1,) * (t.dim() - 2))
        outer = t[:, :, None] * t[:, None, :]
        return l * (s - v), l * t / s, (l / s)[:, None] * identity - (l / s**3)[:, None] * outer
    if kind == "MaximumEnvelope":
        return _maximum_envelope(t, l, v)
    if kind in ("Spline", "WeaklyConvexSpline") and coefficients is not None:
        return spline_derivatives(t, l, v, coefficients)
    raise NotImplementedError(kind)


def _of_modulus(
    kind: str, t: Tensor, weight: Tensor, smoothing: Tensor, coefficients: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the length of groups; where that is 0, f'' is that of the profile times the identity."""
    length = (t**2).sum(1).sqrt()
    value, slope, radial = (n[:, None] for n in derivatives(kind, length, weight, smoothing, coefficients))
    at_zero, r = length[:, None] == 0, length[:, None].clamp_min(1e-300)
    tangential, p = torch.where(at_zero, radial, slope / r), t / r
    identity = torch.eye(t.shape[1], dtype=t.dtype).reshape(1, t.shape[1], t.shape[1], *(1,) * (t.dim() - 2))
    outer = p[:, :, None] * p[:, None, :]
    return value, tangential * t, tangential[:, None] * identity + (radial - tangential)[:, None] * outer


class Dense:
    """The lower-level problem as dense matrices."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        self.problem, self.b = problem, b.detach().double()
        terms = problem.saddle_terms(DOUBLE)
        profile = getattr(terms.potential, "profile", None)
        self.kind = type(terms.potential).__name__ if profile is None else _MODULUS + type(profile).__name__
        with torch.no_grad():
            self.K = dense_matrix(terms.operator, terms.operator.domain_shape)
            A = dense_matrix(problem.operator, problem.operator.domain_shape)
            weights = problem.data_term.at(self.b).weights_for(self.b)
        weights = weights.expand(self.b.shape).flatten(1)
        self.range_shape = terms.operator.range_shape
        self.weight = torch.as_tensor(terms.potential.weight, dtype=DOUBLE).detach()
        self.smoothing = torch.as_tensor(terms.potential.scale, dtype=DOUBLE).detach()
        self.coefficients = getattr(profile or terms.potential, "coefficients", None)
        if bool((weights == weights[0]).all()):
            weights = weights[:1]
        self.M = A.T @ (weights[:, :, None] * A) + problem.ridge_value * torch.eye(A.shape[1], dtype=DOUBLE)
        self.q = (self.b.flatten(1) * weights) @ A
        self.lower, self.upper = -math.inf, math.inf
        if problem.constraint is not None:
            self.lower, self.upper = float(problem.constraint.lower), float(problem.constraint.upper)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.coefficients
        return derivatives(self.kind, t, self.weight, self.smoothing, None if c is None else c.detach())

    def quadratic(self, x: Tensor) -> Tensor:
        return (x[:, None] @ self.M)[:, 0]

    def value(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        density = self.derivatives(t)[0]
        return 0.5 * (self.quadratic(x) * x).sum(1) - (self.q * x).sum(1) + density.flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        return self.quadratic(x) - self.q + self.derivatives(t)[1].flatten(1) @ self.K

    def hessian(self, x: Tensor) -> Tensor:
        t = (x @ self.K.T).reshape(-1, *self.range_shape)
        second = self.derivatives(t)[2]
        if second.dim() == t.dim():
            curvature = second.expand_as(t).flatten(1)
            return self.M + torch.einsum("mi,bm,mj->bij", self.K, curvature, self.K)
        groups = self.K.reshape(t.shape[1], -1, self.K.shape[1])
        return self.M + torch.einsum("cpi,bcdp,dpj->bij", groups, second.flatten(3), groups)

    def energy_rounding(self, X: Tensor) -> float:
        """What autograd of the energy loses of the gradient: that of log cosh is 1 - (1 - small) for small responses,
        which rounds f' to eps times the weight."""
        if not self.kind.endswith("LogCosh"):
            return 0.0
        terms = self.problem.saddle_terms(DOUBLE)
        rounding = 4.0 * torch.finfo(DOUBLE).eps * self.weight.expand(self.range_shape).norm()
        lipschitz = terms.operator.parameter_lipschitz() or 0.0
        return float(rounding * ((X @ self.K.T).norm(dim=1) + lipschitz * X.norm(dim=1)).sum())

    def apply_hessian(self, x: Tensor, v: Tensor) -> Tensor:
        t, V = ((u @ self.K.T).reshape(-1, *self.range_shape) for u in (x, v))
        second = self.derivatives(t)[2]
        bent = second * V if second.dim() == t.dim() else torch.einsum("bcd...,bd...->bc...", second, V)
        return self.quadratic(v) + bent.flatten(1) @ self.K

    def residual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The reduced gradient and the mask of free pixels."""
        g = self.gradient(x)
        free = ~(((x <= self.lower) & (g > 0)) | ((x >= self.upper) & (g < 0)))
        return torch.where(free, g, 0.0), free

    def step(self, x: Tensor, rhs: Tensor, free: Tensor) -> Tensor:
        H = self.hessian(x)
        both = free[:, :, None] & free[:, None, :]
        H = torch.where(both, H, torch.eye(H.shape[1], dtype=DOUBLE))
        found, failed = torch.linalg.solve_ex(H, torch.where(free, rhs, 0.0)[:, :, None])
        return torch.where(failed[:, None] == 0, found[:, :, 0], 0.0)  # flat: there is no truth

    def solve(self, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Projected, damped Newton to rounding, from a quadratic's solution or a guess; returns the last two
        iterates."""
        x = torch.linalg.solve(self.M + self.K.T @ self.K, self.q[:, :, None])[:, :, 0] if start is None else start
        x = x.clamp(self.lower, self.upper)
        best, since = torch.full((x.shape[0],), math.inf, dtype=DOUBLE), 0
        previous, best_x = x, x
        for _ in range(400):
            r, free = self.residual(x)
            size = r.norm(dim=1)
            if bool((size < 0.5 * best).any()):
                since = 0
            else:
                since += 1
            improved = size < best
            previous = torch.where(improved[:, None], best_x, previous)
            best_x, best = torch.where(improved[:, None], x, best_x), torch.minimum(size, best)
            if (since >= 2 and bool((best < 1e-10 * (1 + self.q.norm(dim=1))).all())) or since > 60:
                break
            d = self.step(x, r, free)
            x = self._search(x, d, r)
        for _ in range(3):  # the line search compares energies, which tell less than gradients near the end
            r, free = self.residual(best_x)
            x = (best_x - self.step(best_x, r, free)).clamp(self.lower, self.upper)
            better = self.residual(x)[0].norm(dim=1) < r.norm(dim=1)
            previous = torch.where(better[:, None], best_x, previous)
            best_x = torch.where(better[:, None], x, best_x)
        return best_x, previous

    def _search(self, x: Tensor, d: Tensor, r: Tensor) -> Tensor:
        """Armijo backtracking per sample; full steps where the energy no longer tells."""
        start, slope = self.value(x), (d * r).sum(1)
        alpha = torch.ones_like(start)
        noise = 1e-14 * (start.abs() + (self.q * x).sum(1).abs())
        for _ in range(30):
            trial = (x - alpha[:, None] * d).clamp(self.lower, self.upper)
            bad = self.value(trial) > start - 1e-4 * alpha * slope + noise
            if not bool(bad.any()):
                break
            alpha = torch.where(bad, 0.5 * alpha, alpha)
        return (x - alpha[:, None] * d).clamp(self.lower, self.upper)

    def term_sizes(self, x: Tensor) -> Tensor:
        """The size of what the gradient is the sum of, (batch,): it is rounded relative to this."""
        return self.q.norm(dim=1) + self.quadratic(x).norm(dim=1)

    def image(self, x: Tensor) -> Tensor:
        """The image among the unknowns."""
        return x

    def size(self, r: Tensor) -> Tensor:
        """The norm of a residual whose quotient by the modulus bounds the error, (batch,)."""
        return r.norm(dim=1)

    def loss_gradient(self, x: Tensor, loss: lr.UpperLoss) -> Tensor:
        return loss.gradient(x.reshape(-1, *self.problem.operator.domain_shape)).flatten(1)

    def adjoint(self, x: Tensor, loss: lr.UpperLoss) -> Tensor:
        slope = self.loss_gradient(x, loss)
        _, free = self.residual(x)
        free = free & (x > self.lower) & (x < self.upper)
        X = self.step(x, -slope, free)
        for _ in range(3):  # the matrix H is rounded relative to its norm: its product with X, factor by factor, is not
            X = X + self.step(x, -slope - self.apply_hessian(x, X), free)
        return X
