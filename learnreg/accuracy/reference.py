"""The exact hypergradient, to rounding: Newton's method on the energy by autograd, independent of solvers' derivatives
and of certificates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.errors import AssumptionError, SolverError
from learnreg.losses import UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.solvers.solve import solve

__all__ = ["Reference", "adjoint_at", "solve_reference"]

_START = 1e-5
_LINEAR = 1e-12
_ROUNDING = 1e-14
_MAX_NEWTON, _MAX_LINEAR, _HALVINGS = 40, 5000, 12
_LARGEST_ERROR = 1e-7
"""A reference that is less accurate could not tell a violated bound from its own error."""

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reference:
    """Solution, adjoint state and hypergradient in float64.

    error: distance to the gradient that one more Newton step and adjoint equation lead to, at least 1e-14 of its norm:
    an *estimate* of the rounding errors in ``gradient``, in its units.
    """

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    error: float

    @property
    def norm(self) -> float:
        return gradient_norm(self.gradient)


def solve_reference(problem: LowerLevelProblem, b: Tensor, loss: UpperLoss) -> Reference:
    """The minimiser of ``problem.energy`` and its hypergradient to rounding.

    A solver of the library only provides the starting point. Gradients, Hessian-vector products and the parameter
    gradient of <∇E(x), X> come from autograd of ``problem.energy``.

    Raises
    ------
    AssumptionError: a constraint, which Newton's method does not know. SolverError: it does not converge.
    """
    if problem.constraint is not None:
        raise AssumptionError("the reference is computed by Newton's method, which does not handle constraints.")
    exact = copy.deepcopy(problem).double()
    b = b.detach().double()
    x = _newton(exact, b, solve(exact, b, tolerance=_START).x)
    X = adjoint_at(exact, b, loss, x, _LINEAR)
    gradient = _parameter_gradient(exact, b, x, X)
    gradient_at, hessian = _linearise(exact, b, x)
    further = x - _conjugate_gradients(hessian, gradient_at, torch.zeros_like(x), _LINEAR)
    again = _parameter_gradient(exact, b, further, adjoint_at(exact, b, loss, further, _LINEAR))
    norm = gradient_norm(gradient)
    error = max(gradient_distance(gradient, again), _ROUNDING * norm)
    if not error <= _LARGEST_ERROR * norm:
        raise SolverError(f"the reference hypergradient is only known to {error:.1e}; smooth the potential more.")
    return Reference(x, X, gradient, error)


def adjoint_at(
    problem: LowerLevelProblem, b: Tensor, loss: UpperLoss, x: Tensor, relative: float, start: Tensor | None = None
) -> Tensor:
    """X with H(x) X = -∇ell(x) to a relative residual, from zero or from ``start``."""
    _, hessian = _linearise(problem, b, x)
    start = torch.zeros_like(x) if start is None else start
    return _conjugate_gradients(hessian, -loss.gradient(x), start, relative)


def _newton(problem: LowerLevelProblem, b: Tensor, x: Tensor) -> Tensor:
    """Newton steps, halved until the gradient shrinks, as long as it does."""
    gradient, hessian = _linearise(problem, b, x)
    for _ in range(_MAX_NEWTON):
        step = _conjugate_gradients(hessian, gradient, torch.zeros_like(x), _LINEAR)
        for halving in range(_HALVINGS):
            moved = x - step / 2**halving
            gradient_there, hessian_there = _linearise(problem, b, moved)
            if float(gradient_there.norm()) < 0.9 * float(gradient.norm()):
                break
        else:
            return x
        x, gradient, hessian = moved, gradient_there, hessian_there
    return x


def _linearise(problem: LowerLevelProblem, b: Tensor, x: Tensor) -> tuple[Tensor, Linear]:
    """∇E(x), and v -> H(x) v."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.energy(point, b).sum(), point, create_graph=True)

    def hessian(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(gradient, point, v, retain_graph=True)
        return product

    return gradient.detach(), hessian


def _parameter_gradient(problem: LowerLevelProblem, b: Tensor, x: Tensor, X: Tensor) -> dict[str, Tensor]:
    """∂_theta <∇E(x), X> with x and X fixed."""
    parameters = problem.learnable()
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.energy(point, b).sum(), point, create_graph=True)
        found = torch.autograd.grad(gradient, list(parameters.values()), X, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def _conjugate_gradients(hessian: Linear, rhs: Tensor, x: Tensor, relative: float) -> Tensor:
    """H x = rhs for the whole batch at once."""
    r = rhs - hessian(x)
    p, rr = r, _square(r)
    goal = (relative * math.sqrt(_square(rhs))) ** 2
    for _ in range(_MAX_LINEAR):
        if rr <= goal:
            break
        h_p = hessian(p)
        alpha = rr / float((p * h_p).sum())
        x, r = x + alpha * p, r - alpha * h_p
        previous, rr = rr, _square(r)
        p = r + (rr / previous) * p
    return x


def _square(t: Tensor) -> float:
    return float((t * t).sum())
