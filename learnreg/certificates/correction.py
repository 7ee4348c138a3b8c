"""Newton corrections of (x, X), for Lemma 5 of the certificate and for estimates where no bound exists.

x' = x - d with H(x) d = ∇E(x) to a relative residual, and X' solves the adjoint equation at x'. Whatever they are, the
bound at (x', X') is evaluated afresh there, and ‖d‖ added to it judges x: nothing depends on how well they were solved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.adjoint import AdjointEquation
from learnreg.certificates.state import state_residual
from learnreg.convex import sum_samples
from learnreg.losses import UpperLoss
from learnreg.problem import Instance
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate

__all__ = ["Correction", "correct_adjoint", "correct_state", "newton_correction"]

_MAX_STEPS = 2000


@dataclass(frozen=True)
class Correction:
    """A better point, and the conjugate-gradient steps it took."""

    point: Tensor
    steps: int


@torch.no_grad()
def correct_state(instance: Instance, x: Tensor, relative: Tensor, max_steps: int | None = None) -> Correction:
    """One Newton step on the free pixels, each sample to its own relative residual, (batch,); inside the box."""

    def work(part: Instance, index: slice) -> Correction:
        own = x[index]
        t = part.apply(own)
        residual = state_residual(part, own, part.adjoint(part.potential.grad(t)))
        equation = AdjointEquation.at(part, own, t, -residual)
        goal = relative[index] * sum_samples(equation.rhs**2).sqrt()
        found = iterate(
            ConjugateGradient(), equation, torch.zeros_like(own), goal, torch.zeros_like(goal), _limit(max_steps)
        )
        moved = own - found.x
        return Correction(moved if part.box is None else part.box.prox(moved), found.steps)

    return _joined(instance.by_parts(work))


@torch.no_grad()
def correct_adjoint(
    instance: Instance, loss: UpperLoss, x: Tensor, X: Tensor, residual: Tensor, max_steps: int | None = None
) -> Correction:
    """X closer to the solution of the adjoint equation at x, to residuals (batch,)."""
    gradient = loss.gradient(x)

    def work(part: Instance, index: slice) -> Correction:
        equation = AdjointEquation.at(part, x[index], part.apply(x[index]), gradient[index])
        never = torch.zeros_like(residual[index])
        found = iterate(ConjugateGradient(), equation, X[index], residual[index], never, _limit(max_steps))
        return Correction(found.x, found.steps)

    return _joined(instance.by_parts(work))


@torch.no_grad()
def newton_correction(
    instance: Instance, loss: UpperLoss, x: Tensor, X: Tensor, relative: float
) -> tuple[Tensor, Tensor]:
    """(x', X') one Newton step further, both to the same relative residual."""
    share = x.new_full((instance.batch,), relative)
    x = correct_state(instance, x, share).point
    size = sum_samples(loss.gradient(x) ** 2).sqrt()
    return x, correct_adjoint(instance, loss, x, X, share * size).point


def _joined(parts: list[Correction]) -> Correction:
    return Correction(torch.cat([p.point for p in parts]), max(p.steps for p in parts))


def _limit(max_steps: int | None) -> int:
    return _MAX_STEPS if max_steps is None else max(1, min(max_steps, _MAX_STEPS))
