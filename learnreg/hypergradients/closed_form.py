"""Quadratic lower levels: the state and the adjoint state are one linear system each, with the same matrix.

    H x = q,    H X = -∇ell(x),    H = M + K^T W K for f(t) = ½ <t, W t>        (1)

Source: Chen, Chen, Ma, Liu and Liu, Gradient-based bi-level optimization for deep learning: a survey (2022), the
closed-form update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate

__all__ = ["ClosedForm"]

_REACHABLE, _REFINEMENTS = 8.0, 3
"""Norms of residuals in units of rounding of the right-hand side; runs, each from the residual of the last one's
result."""


class ClosedForm(HypergradientMethod):
    """Both linear systems of a quadratic lower level, to rounding in the precision of the data, whatever the tolerance.

    For the potential ``Square`` (``GeneralisedTikhonov``, or ``AnalysisOperator`` with it, and sums of these), any
    forward operator, data term and ridge; by conjugate gradients with iterative refinement, so that the operator's
    matrix is never formed.

    Raises
    ------
    ConfigError: when it runs, a lower level that is not quadratic, or has a constraint or latent variables.
    """

    name = "closed-form"

    def fits(self, instance: Instance) -> bool:
        return instance.potential.quadratic and not (instance.box.constrains or instance.latent.channels)

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        if not self.fits(instance):
            raise ConfigError(
                "ClosedForm: it takes quadratic lower levels alone, the potential Square without constraint and latent "
                "variables; use Implicit()."
            )
        x, steps, status = start.x, 0, Status.CONVERGED
        at = AdjointEquation.at(instance, x, instance.apply(x), -instance.q)
        if not bool(torch.isinf(goal.state).all()):
            x, steps, status = _solved(at, x, goal.max_state_steps)
        own = AdjointEquation(instance, at.at_response, -start.loss.gradient(x), at.free)
        X, adjoint_steps, ended = _solved(own, start.X, goal.max_adjoint_steps)
        return Outcome(x, X, None, status if status is not Status.CONVERGED else ended, steps, adjoint_steps)


def _solved(equation: AdjointEquation, x: Tensor, max_steps: int | None) -> tuple[Tensor, int, Status]:
    """The solution to rounding, from x, the steps that took and how they ended."""
    residual = _REACHABLE * torch.finfo(x.dtype).eps * norm_samples(equation.rhs)
    steps, status = 0, Status.CONVERGED
    for _ in range(_REFINEMENTS):
        left = None if max_steps is None else max_steps - steps
        found = iterate(ConjugateGradient(), equation, x, residual, torch.zeros_like(residual), left)
        x, steps, status = found.x, steps + found.steps, found.status
        if not found.steps or status is not Status.CONVERGED or left == found.steps:
            break
    return x, steps, status
