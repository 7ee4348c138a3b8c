"""Quadratic lower levels: the state and the adjoint state are one linear system each, with the same matrix.

    H x = q,    H X = -∇ell(x),    H = M + K^T W K for f(t) = ½ <t, W t>        (1)

Lower levels with an l1-norm of responses are of this kind once the signs of the responses are known (``sign_pattern``).

Source: Chen, Chen, Ma, Liu and Liu, Gradient-based bi-level optimization for deep learning: a survey (2022), the
closed-form update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.sign_pattern import signed_states
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import evaluate_pairing
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

    For the potential ``Square`` (``GeneralisedTikhonov``, or ``AnalysisOperator`` with it, and sums of these), and for
    functions that declare ``hessian_lipschitz`` = 0; any forward operator, data term and ridge. By conjugate gradients
    with iterative refinement, so that the operator's matrix is never formed.

    And for the potential ``AbsoluteValue`` on images of up to 1,024 pixels, of which matrices are formed: a primal-dual
    iteration leads to the signs of the responses, with which the energy is quadratic on the kernel of those that
    vanish. Where the pattern is certified (docs/certificate.md, Lemma L2) so is the gradient; elsewhere it is one
    element of a generalised derivative, an estimate with an infinite ``error_bound``.

    Raises
    ------
    ConfigError: when it runs, a lower level that is not quadratic, or has a constraint or latent variables; images too
    large for matrices.

    Examples
    --------
    >>> R = lr.regularizers.GeneralisedTikhonov(filters=2, size=3)
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), R)
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.ClosedForm(), tolerance=1e-6).certified
    True
    """

    name = "closed-form"

    def fits(self, instance: Instance) -> bool:
        f = instance.potential
        return (f.quadratic or not f.differentiable) and not (instance.box.constrains or instance.latent.channels)

    def check(self, instance: Instance) -> None:
        """ConfigError unless it fits."""
        if not self.fits(instance):
            raise ConfigError(
                "ClosedForm: it takes quadratic lower levels alone, the potentials Square and AbsoluteValue, or "
                "functions that declare hessian_lipschitz = 0, without constraint and latent variables; use Implicit() "
                "and, for AbsoluteValue under a constraint, PseudoHuber with a small smoothing."
            )

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        self.check(instance)
        if not instance.potential.differentiable:
            return _by_signs(start, goal)
        x, steps, status = start.x, 0, Status.CONVERGED
        at = AdjointEquation.at(instance, x, instance.apply(x), instance.full_gradient(torch.zeros_like(x)))
        if not bool(torch.isinf(goal.state).all()):
            x, steps, status = _solved(at, x, goal.max_state_steps)
        own = AdjointEquation(instance, at.at_response, -start.loss.gradient(x), at.free)
        X, adjoint_steps, ended = _solved(own, start.X, goal.max_adjoint_steps)
        return Outcome(x, X, None, status if status is not Status.CONVERGED else ended, steps, adjoint_steps)


def _by_signs(start: Point, goal: Goal) -> Outcome:
    """With an l1-norm, in float64."""
    found = signed_states(start, goal)
    gradient, _ = evaluate_pairing(found.point, found.duals)
    return Outcome(found.point.x, found.point.X, gradient, found.status, found.steps, 0, found.duals.y)


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
