"""The truth about small problems: dense matrices, potentials written out again, Newton to rounding, autograd of the
energy. Nothing here knows solvers or certificates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from truth.draw import DOUBLE
from truth.joint import DenseJoint
from truth.likelihoods import DenseLikelihood
from truth.matrices import Dense, derivatives
from truth.network import DenseNetwork

import learnreg as lr

__all__ = ["Dense", "Truth", "derivatives", "distance", "gradient_by_autograd", "norm", "truth_of"]


@dataclass
class Truth:
    """The solution to rounding, (batch, n) each, with the error that its own residuals allow."""

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    loss: float
    x_slack: Tensor
    X_slack: Tensor
    gradient_slack: float
    usable: bool
    elsewhere: Callable[[Tensor], Truth] | None = None

    def about(self, x: Tensor) -> Truth:
        """Of a problem with several minimisers that of the one to which energies fall from x."""
        return self if self.elsewhere is None else self.elsewhere(x.double().flatten(1))


def gradient_by_autograd(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor, X: Tensor) -> dict[str, Tensor]:
    """∂_theta <∇_x E(x; theta), X> from ``problem.energy`` alone (its unconstrained part)."""
    parameters = problem.learnable()
    shape = (-1, *problem.operator.domain_shape)
    with torch.enable_grad():
        point = x.reshape(shape).detach().requires_grad_()
        constraint, problem.constraint = problem.constraint, None
        try:
            energy = problem.energy(point, b).sum()
        finally:
            problem.constraint = constraint
        (slope,) = torch.autograd.grad(energy, point, create_graph=True)
        scalar = (slope * X.reshape(shape)).sum()
        grads = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in b))


def norm(a: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in a.values()))


def _dense_of(problem: lr.LowerLevelProblem, b: Tensor) -> Dense:
    terms = problem.saddle_terms(DOUBLE)
    if problem.data_term.dualised:
        return DenseLikelihood(problem, b)
    if terms.latent.channels:
        return DenseJoint(problem, b)
    if type(terms.potential).__name__ != "NetworkPotential":
        return Dense(problem, b)
    return DenseNetwork(problem, b)


def _least_curvature(dense: Dense, x: Tensor) -> Tensor:
    """The smallest eigenvalue of the Hessian on the free pixels, (batch,)."""
    free, H = dense.residual(x)[1], dense.hessian(x)
    held = ~(free[:, :, None] & free[:, None, :])
    steep = H.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] * torch.eye(H.shape[1], dtype=DOUBLE)
    return torch.linalg.eigvalsh(torch.where(held, steep, H))[:, 0]


@torch.no_grad()
def truth_of(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, near: Tensor | None = None) -> Truth:
    """Solution, adjoint state, hypergradient and loss to rounding, with slacks. Of a problem with several minimisers
    that one to which energies fall from ``near``, (batch, n), unusable where it is no strict one."""
    b = b.double()
    dense, of_data = _dense_of(problem, b), problem.data_term.dualised
    x, previous = dense.solve(near)
    if near is not None:
        mu = _least_curvature(dense, x)
    else:
        mu = torch.as_tensor(problem.instance(b).strong_convexity if of_data else problem.strong_convexity)
    shape = (-1, *problem.operator.domain_shape)
    own = dense.size(dense.residual(x)[0])
    # The same residual from problem.energy: a truth that belongs to another energy is useless.
    constraint, problem.constraint = problem.constraint, None
    with torch.enable_grad():
        point = dense.image(x).reshape(shape).detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.energy(point, b).sum(), point)
    problem.constraint = constraint
    free = dense.image(dense.residual(x)[1])
    residual = torch.maximum(own, torch.where(free, slope.flatten(1), 0.0).norm(dim=1))
    rounding = 2.2e-16 * dense.term_sizes(x)
    x_slack = 2.0 * (residual + rounding) / mu
    X, X_previous = dense.adjoint(x, loss), dense.adjoint(previous, loss)
    x, previous, X, X_previous = (dense.image(v) for v in (x, previous, X, X_previous))
    gradient = gradient_by_autograd(problem, b, x, X)
    change = distance(gradient_by_autograd(problem, b, previous, X_previous), gradient)
    X_slack = 4.0 * (X - X_previous).norm(dim=1) + 1e-13 * X.norm(dim=1)
    # autograd rounds the truth's gradient to the dtype of the parameters
    eps = 1e-13 if all(p.dtype == DOUBLE for p in problem.parameters()) else 3e-7
    rounding = eps * norm(gradient) + dense.energy_rounding(X)
    usable = bool((residual <= 1e-9 * (1.0 + dense.q.norm(dim=1))).all()) and bool((mu > 0).all())
    value = float(loss.value(x.reshape(shape)))
    elsewhere = None if near is None else lambda x: truth_of(problem, b, loss, x)
    return Truth(x, X, gradient, value, x_slack, X_slack, 4.0 * change + rounding, usable, elsewhere)
