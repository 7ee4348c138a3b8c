"""The truth about small problems from ``problem.energy`` alone: Newton's method with dense Hessians by autograd,
whatever the regularizer is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from truth.dense import gradient_by_autograd

import learnreg as lr

__all__ = ["EnergyTruth", "hessians", "truth_by_energy"]


@dataclass(frozen=True)
class EnergyTruth:
    """x and X, (batch, *domain_shape), the hypergradient, and the norm of the energy's reduced gradient at x."""

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    residual: float


@contextmanager
def _without_constraint(problem: lr.LowerLevelProblem) -> Iterator[tuple[Tensor | float, Tensor | float]]:
    """Its limits; within, the energy is finite everywhere."""
    box, problem.constraint = problem.constraint, None
    try:
        yield (-math.inf, math.inf) if box is None else (box.lower, box.upper)
    finally:
        problem.constraint = box


def _slope(problem: lr.LowerLevelProblem, x: Tensor, b: Tensor) -> Tensor:
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        return torch.autograd.grad(problem.energy(point, b).sum(), point)[0].flatten(1)


def hessians(problem: lr.LowerLevelProblem, x: Tensor, b: Tensor) -> Tensor:
    """(batch, n, n): each sample as many times as it has numbers, one row of the Hessian from each."""
    n = x[0].numel()
    with torch.enable_grad():
        points = x.detach().repeat_interleave(n, 0).requires_grad_()
        energies = problem.energy(points, b.repeat_interleave(n, 0))
        (slope,) = torch.autograd.grad(energies.sum(), points, create_graph=True)
        units = torch.eye(n, dtype=x.dtype).repeat(len(x), 1).view(points.shape)
        rows = torch.autograd.grad((slope * units).sum(), points)[0]
    return rows.view(len(x), n, n)


def truth_by_energy(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, x: Tensor) -> EnergyTruth:
    """From a start x, whose basin decides where there are several minimisers; damped Newton steps to rounding, those of
    the pixels that no limit of a constraint holds."""
    x = x.double()
    with _without_constraint(problem) as (lower, upper):

        def free(x: Tensor, slope: Tensor) -> Tensor:
            held = ((x <= lower) & (slope.view(x.shape) > 0)) | ((x >= upper) & (slope.view(x.shape) < 0))
            return ~held.flatten(1)

        def hessian(x: Tensor, free: Tensor) -> Tensor:
            both = free[:, :, None] & free[:, None, :]
            return torch.where(both, hessians(problem, x, b), torch.eye(free.shape[1], dtype=x.dtype))

        for _ in range(100):
            slope = _slope(problem, x, b)
            inside = free(x, slope)
            slope = slope * inside
            step = torch.linalg.solve(hessian(x, inside), -slope)
            size, alpha = slope.norm(dim=1), torch.ones(len(x), 1, dtype=x.dtype)
            for _ in range(30):
                trial = torch.clamp((x + (alpha * step).view(x.shape)), lower, upper)  # type: ignore[call-overload]
                at_trial = _slope(problem, trial, b)
                worse = (at_trial * free(trial, at_trial)).norm(dim=1) > size
                if not bool(worse.any()):
                    break
                alpha = torch.where(worse[:, None], 0.5 * alpha, alpha)
            if not bool(((at_trial * free(trial, at_trial)).norm(dim=1) < 0.9 * size).any()):
                break
            x = trial
        slope = _slope(problem, x, b)
        inside = free(x, slope)
        X = torch.linalg.solve(hessian(x, inside), -loss.gradient(x).flatten(1) * inside).view(x.shape)
        residual = float((slope * inside).norm())
    return EnergyTruth(x, X, gradient_by_autograd(problem, b, x, X), residual)
