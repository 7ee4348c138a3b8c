"""The primal-dual hybrid gradient method where f has no gradient: its dual iterate is kept, not a pull-back.

Source: as that of ``pdhg``.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.certificates.fenchel import FenchelGap
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import OWNED, Report, Solver
from learnreg.solvers.pdhg import BalancedState, StepSizes, balanced_tau, initial_tau, primal_step, scaled_movement

_SHARE = 0.1
"""Of what rounding may hide in the root of the gap, where it is taken to rule: it hides less as a rule."""

__all__ = ["NonsmoothPDHG", "NonsmoothPDHGState"]


@dataclass(frozen=True)
class NonsmoothPDHGState(BalancedState):
    """Relaxed iterates x, y; the prox outputs x_hat and y_hat, which every ``step`` overwrites."""

    x: Tensor = field(metadata=OWNED)
    y: Tensor = field(metadata=OWNED)
    x_hat: Tensor = field(metadata=OWNED)
    y_hat: Tensor = field(metadata=OWNED)


class NonsmoothPDHG(Solver[NonsmoothPDHGState]):
    """Over-relaxed PDHG; the answer is the prox output, or for a diagonal data term argmin_x g(x) + <K^T y, x>, judged
    by the duality gap (Lemma L1). The pull-backs of its results are dual points.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.

    Examples
    --------
    >>> R = lr.regularizers.AnalysisOperator(lr.operators.Identity((1, 8, 8)), lr.AbsoluteValue(0.1))
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), R)
    >>> solution = lr.solve(problem, torch.ones(1, 1, 8, 8), tolerance=1e-3, solver=lr.solvers.NonsmoothPDHG())
    >>> round(float(solution.x[0, 0, 0, 0]), 2)
    0.9
    """

    name = "pdhg"
    report_applications = 2
    patience = 1000  # the gap rests while the sign pattern is found

    def __init__(self, check_every: int = 20) -> None:
        self.check_every = check_every

    def init(self, instance: Instance, x: Tensor) -> NonsmoothPDHGState:
        return self.resume(instance, x, None)

    def resume(self, instance: Instance, x: Tensor, t: Tensor | None) -> NonsmoothPDHGState:
        norm = max(instance.analysis.norm_bound(), 1e-12)
        sizes = StepSizes(norm, instance.q.new_ones(()), instance.quadratic.explicit_lipschitz())
        x = instance.box.prox(x.clone())
        y = x.new_zeros(x.shape[0], *instance.analysis.range_shape) if t is None else instance.nonsmooth.dual_prox(t)
        tau = torch.full((x.shape[0],), initial_tau(instance, sizes), dtype=x.dtype, device=x.device)
        return NonsmoothPDHGState(sizes, tau, 0, x, y.clone(), x.clone(), y.clone())

    def step(self, instance: Instance, state: NonsmoothPDHGState) -> NonsmoothPDHGState:
        sizes, rho = state.sizes, state.sizes.relaxation
        x_hat = primal_step(instance, state.x, instance.adjoint(state.y), state.tau, sizes)
        response = instance.apply(torch.lerp(state.x, x_hat, 2.0))
        v = torch.addcmul(state.y, sizes.sigma(state.tau, state.y), response)
        y_hat = state.y_hat.copy_(instance.nonsmooth.dual_prox(v))
        x, y = torch.lerp(state.x, x_hat, rho), torch.lerp(state.y, y_hat, rho)
        return replace(state, x=x, y=y, x_hat=x_hat, y_hat=y_hat, steps=state.steps + 1)

    def recurring(self, state: NonsmoothPDHGState) -> Hashable:
        return ()

    def adapt(self, instance: Instance, state: NonsmoothPDHGState) -> NonsmoothPDHGState:
        movement = scaled_movement(state.sizes, state.x - state.x_hat, state.y - state.y_hat)
        return replace(state, tau=balanced_tau(state.sizes, state.tau, *movement, state.steps // self.check_every))

    def report(self, instance: Instance, state: NonsmoothPDHGState) -> Report:
        x, mu = state.x_hat, instance.strong_convexity
        if instance.quadratic.is_diagonal and mu > 0:
            x = instance.box.prox(instance.quadratic.minimiser(instance.q - instance.adjoint(state.y_hat)))
        found = FenchelGap.of(instance, x, state.y_hat)
        scale = mu if mu > 0 else 1.0
        residual = found.residual + (scale * found.gap).sqrt()
        floor = found.floor + _SHARE * (scale * found.gap_floor).sqrt()
        return Report(x, residual, found.bound(mu, rounding=False), floor, state.y_hat)
