"""The truth about small problems without a constraint from ``problem.energy`` alone: Newton's method with dense
Hessians by autograd, whatever the regularizer is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from truth.dense import gradient_by_autograd

import learnreg as lr

__all__ = ["EnergyTruth", "hessians", "truth_by_energy"]


@dataclass(frozen=True)
class EnergyTruth:
    """x and X, (batch, *domain_shape), the hypergradient, and the norm of the energy's gradient at x."""

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    residual: float


def _slope(problem: lr.LowerLevelProblem, x: Tensor, b: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        return torch.autograd.grad(problem.energy(point, b).sum(), point)[0].flatten(1)


def hessians(problem: lr.LowerLevelProblem, x: Tensor, b: Tensor) -> Tensor:
    """(batch, n, n)."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.energy(point, b).sum(), point, create_graph=True)
        columns = [torch.autograd.grad(s.sum(), point, retain_graph=True)[0] for s in slope.flatten(1).unbind(1)]
    return torch.stack(columns, 1).flatten(2)


def truth_by_energy(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, x: Tensor) -> EnergyTruth:
    """From a start x, whose basin decides where there are several minimisers; damped Newton steps to rounding."""
    x = x.double()
    for _ in range(60):
        slope = _slope(problem, x, b)
        step = torch.linalg.solve(hessians(problem, x, b), -slope)
        size, alpha = slope.norm(dim=1), torch.ones(len(x), 1, dtype=x.dtype)
        for _ in range(30):
            trial = x + (alpha * step).view(x.shape)
            worse = _slope(problem, trial, b).norm(dim=1) > size
            if not bool(worse.any()):
                break
            alpha = torch.where(worse[:, None], 0.5 * alpha, alpha)
        if not bool((_slope(problem, trial, b).norm(dim=1) < 0.9 * size).any()):
            break
        x = trial
    X = torch.linalg.solve(hessians(problem, x, b), -loss.gradient(x).flatten(1)).view(x.shape)
    return EnergyTruth(x, X, gradient_by_autograd(problem, b, x, X), float(_slope(problem, x, b).norm()))
