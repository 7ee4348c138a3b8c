"""Nudges in the complex plane: Newton's method on the continued stationarity condition

    ∇E(z) - ∇E(x) + c beta ∇ell(x) = 0,    ∇E(z) = M z - q + K^T f'(K z)        (1)

at a free solution x, whose own residual is left where it is, with f' continued as a holomorphic function, and conjugate
orthogonal conjugate gradients for its complex symmetric systems: CG with the product sum_i u_i v_i, without conjugates.

Source: Laborieux and Zenke, Holomorphic equilibrium propagation computes exact gradients through finite size
oscillations (2022); van der Vorst and Melissen, A Petrov-Galerkin type method for solving Ax = b, where A is symmetric
complex (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.hypergradients.nudged import Nudged, Nudges
from learnreg.kernels.numbers import number_like
from learnreg.linear.examination import is_own_class
from learnreg.linear.samples import complexly, expand, inner_samples, norm_samples
from learnreg.lower_level.instance import Counter, Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.preconditioner import preconditioner_of

__all__ = ["can_continue", "solve_continued"]

_NEWTON_STEPS, _CG_STEPS, _CHECK_EVERY = 30, 3000, 4
_FORCING, _SPARE = 0.03, 0.3
"""Relative residual of a Newton step's linear system, and of the residual asked for where that is more."""

_INSIDE = 0.9
"""Of the strip's half-width, what imaginary parts of responses may take."""

Linear = Callable[[Tensor], Tensor]


def can_continue(instance: Instance) -> bool:
    """Whether the energy has a holomorphic continuation that is known."""
    f = instance.potential
    known = is_own_class(type(f)) and bool((torch.as_tensor(f.analytic_width) > 0).all())
    return known and not (instance.latent.channels or instance.box.constrains)


def solve_continued(
    point: Point, nudges: Nudges, beta: float, X: Tensor, residual: Tensor, max_steps: int | None
) -> Nudged | None:
    """At complex nudges, from the point's x + c beta X, to residuals of (1) of these norms, (batch,); None where
    responses leave the strip in which f' is holomorphic."""
    count, batch, dtype = len(nudges.at), point.instance.batch, torch.complex128
    index = torch.arange(batch, device=point.x.device).repeat(count)
    pairs = replace(point.instance.select(index.repeat(2)), counter=Counter())  # real and imaginary parts
    c = beta * nudges.numbers(nudges.at, point.x.to(dtype))
    own = point.instance.full_gradient(point.x) + point.instance.q
    force = (torch.einsum("k,b...->kb...", c, point.loss_gradient.to(dtype)) - own).flatten(0, 1)
    z = (point.x + torch.einsum("k,b...->kb...", c, X.to(dtype))).flatten(0, 1)
    precondition, goal = _preconditioner(point, index.repeat(2)), residual.repeat(count)
    width = _INSIDE * number_like(pairs.potential.analytic_width, point.x)
    steps, status = 0, Status.STAGNATED
    for _ in range(_NEWTON_STEPS):
        t = complexly(pairs.apply, z)
        if not bool((t.imag.abs() <= width).all()):
            return None
        slope, curvature = pairs.potential.continued_derivatives(t)
        F = complexly(pairs.quadratic, z) + complexly(pairs.adjoint, slope) + force
        left = _CG_STEPS if max_steps is None else max_steps - steps
        if bool((_norms(F) <= goal).all()) or left <= 0:
            status = Status.CONVERGED if left > 0 else Status.MAX_STEPS
            break

        def hessian(v: Tensor, curvature: Tensor = curvature) -> Tensor:
            bent = complexly(pairs.adjoint, curvature * complexly(pairs.apply, v))
            return complexly(pairs.quadratic, v) + bent

        wanted = torch.maximum(_FORCING * _norms(F), _SPARE * goal)
        d, taken = _conjugate_orthogonal(hessian, precondition, F, wanted, left)
        z, steps = z - d, steps + taken
    point.instance.counter.applications += 2 * count * pairs.counter.applications
    return Nudged(nudges, beta, z.reshape(count, batch, *z.shape[1:]), status, steps)


def _conjugate_orthogonal(
    hessian: Linear, precondition: Linear, rhs: Tensor, residual: Tensor, max_steps: int
) -> tuple[Tensor, int]:
    """H d = rhs from 0 to residuals of these norms, (batch,), and the steps that took."""
    d, r = torch.zeros_like(rhs), rhs
    p = z = precondition(r)
    rz, steps = inner_samples(r, z), 0
    while steps < max_steps:
        running = _norms(r) > residual
        if steps % _CHECK_EVERY == 0 and not bool(running.any()):
            break
        q = hessian(p)
        bend = inner_samples(p, q)
        usable = running & (bend.abs() > 0)
        alpha = expand(torch.where(usable, rz / torch.where(usable, bend, 1.0), 0.0), p)
        d, r = d + alpha * p, r - alpha * q
        z, before = precondition(r), rz
        rz = inner_samples(r, z)
        p = z + expand(torch.where(before.abs() > 0, rz / torch.where(before.abs() > 0, before, 1.0), 0.0), p) * p
        steps += 1
    return d, steps


def _preconditioner(point: Point, index: Tensor) -> Linear:
    """That of the Hessian at the point's x, of real and imaginary parts alike."""
    part = replace(point.instance.select(index), counter=Counter())
    at = part.potential.linearised(part.apply(point.x[index]))
    found = preconditioner_of(part, lambda: part.potential.bent_diagonal(at))
    return (lambda v: v) if found is None else (lambda v: complexly(found, v))


def _norms(v: Tensor) -> Tensor:
    """2-norms of complex samples, (batch,)."""
    return norm_samples(torch.view_as_real(v))
