"""Where no bound exists: a Newton correction of (x, X), whose size *estimates* their error."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.adjoint import AdjointEquation
from learnreg.certificates.state import state_residual
from learnreg.convex import sum_samples
from learnreg.losses import UpperLoss
from learnreg.problem import Instance
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate

__all__ = ["newton_correction", "state_correction"]

_MAX_STEPS = 500


def state_correction(instance: Instance, x: Tensor, relative: float) -> Tensor:
    """d with H(x) d = ∇E(x) on the free pixels, by CG to a relative residual: x - d is a better x, ‖d‖ an *estimate* of
    the error of x."""
    t = instance.apply(x)
    residual = state_residual(instance, x, instance.adjoint(instance.potential.grad(t)))
    equation = AdjointEquation.at(instance, x, t, -residual)
    tolerance = relative * sum_samples(equation.rhs**2).sqrt()
    never = torch.zeros_like(tolerance)
    return iterate(ConjugateGradient(), equation, torch.zeros_like(x), tolerance, never, _MAX_STEPS).x


def newton_correction(
    instance: Instance, loss: UpperLoss, x: Tensor, X: Tensor, relative: float
) -> tuple[Tensor, Tensor]:
    """(x', X') one Newton step further: x' = x - d, and X' solves the adjoint equation at x' to a relative residual."""
    x = x - state_correction(instance, x, relative)
    if instance.box is not None:
        x = instance.box.prox(x)
    equation = AdjointEquation.at(instance, x, instance.apply(x), loss.gradient(x))
    tolerance = relative * sum_samples(equation.rhs**2).sqrt()
    never = torch.zeros_like(tolerance)
    return x, iterate(ConjugateGradient(), equation, X, tolerance, never, _MAX_STEPS).x
