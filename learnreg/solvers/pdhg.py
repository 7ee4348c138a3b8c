"""The primal-dual hybrid gradient method, over-relaxed, with automatic balance of its step sizes.

Source: Chambolle and Pock (2011); over-relaxation and the explicit smooth term: Condat (2013), Vu (2013); the balance
of primal and dual movement: Applegate et al. (2021); step sizes of channels and metrics: Pock and Chambolle (2011).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.certificates.state import dual_answer, smallest_bound
from learnreg.errors import AssumptionError
from learnreg.kernels.numbers import number_like
from learnreg.linear.samples import expand, sum_samples
from learnreg.lower_level.fused_total_variation import FusedTotalVariation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import OWNED, Report, Solver, SolverState
from learnreg.solvers.spectral_metric import SpectralMetric

_PRIMAL_SHARE = 0.6
"""Below 1 the dual iterate, which the certificate waits for, gets longer steps than the primal one."""

_START, _LEAST_SCALING = 0.7, 1e-6
"""What the balance starts with, of the sigma that is optimal for the moduli (measured: .7 to 1 need the fewest steps);
and the least curvature of a channel, of the largest."""

_FIRST_STEPS, _FIRST_NEWTON_STEPS = 20, 3
_NEWTON_STEPS = ((100.0, 1), (300.0, 3), (math.inf, 6))
"""Newton steps of the proximal map once iterates hardly move, by its stiffness, the largest f''/sigma: one is enough up
to 100 (as measured on trained models), where the map bends sharply more are needed."""

__all__ = [
    "PDHG",
    "BalancedState",
    "PDHGState",
    "StepSizes",
    "balanced_tau",
    "initial_tau",
    "optimal_tau",
    "primal_step",
    "proximal_obstacle",
    "scaled_movement",
]


@dataclass(frozen=True)
class StepSizes:
    """What a PDHG iteration on K with channel scaling needs: the norm of the scaled K, the scaling of sigma per
    channel, the gradient's Lipschitz constant of the part of the energy treated explicitly (0: none), the scaling of
    tau per channel (None: 1): at most 1, less for latent variables, so that their columns of K weigh as much as those
    of the image; the metric of the primal step (None: tau); and the largest curvature of f in scaled responses."""

    norm: float
    scaling: Tensor
    explicit_lipschitz: float
    primal_scaling: Tensor | None = None
    metric: SpectralMetric | None = None
    curvature: float = math.inf

    @classmethod
    def of(cls, instance: Instance) -> StepSizes:
        """Step-size constants of an instance; sigma grows with the root of the largest curvature of each channel."""
        limit = number_like(instance.potential.curvature_limit, instance.q)
        limit = limit.clamp_min(torch.finfo(limit.dtype).tiny ** 0.5)  # a spline may be straight
        scaling = limit / limit.max() if limit.dim() in (1, 3) and limit.numel() > 1 else torch.ones_like(limit)
        scaling = scaling.clamp_min(_LEAST_SCALING).sqrt()
        scaled_norm = instance.analysis.channel_norm(scaling)
        if scaled_norm is None:
            scaling = torch.ones((), dtype=instance.q.dtype, device=instance.q.device)
        known = instance.analysis.norm_bound if scaled_norm is None else lambda: scaled_norm
        norm, primal = instance.latent.balanced(known, instance.q)
        metric = SpectralMetric.of(instance, scaling)
        explicit, curvature = instance.quadratic.explicit_lipschitz(), float((limit / scaling).max())
        return cls(max(norm, 1e-12), scaling, explicit, primal, metric, curvature)

    def tau(self, tau: Tensor, like: Tensor) -> Tensor:
        """The primal step of each sample and channel."""
        step = expand(tau, like)
        return step if self.primal_scaling is None else step * self.primal_scaling

    def sigma(self, tau: Tensor, like: Tensor) -> Tensor:
        """The dual step of each sample and channel: 1/tau = sigma ‖K‖² + L."""
        return expand(self.level(tau), like) * self.scaling

    def level(self, tau: Tensor) -> Tensor:
        """sigma before the scaling of channels, (batch,)."""
        return (1.0 / tau - self.explicit_lipschitz) / self.norm**2

    @property
    def relaxation(self) -> float:
        """1.9, or 1.45 with an explicit term (below 2 - (L/2)/(1/tau - sigma‖K‖²) = 1.5)."""
        return 1.9 if self.explicit_lipschitz == 0.0 else 1.45


@dataclass(frozen=True)
class BalancedState(SolverState):
    """What every primal-dual iteration with balanced steps keeps: tau per sample, and the steps taken."""

    sizes: StepSizes
    tau: Tensor
    steps: int


@dataclass(frozen=True)
class PDHGState(BalancedState):
    """Relaxed iterates x, y; the prox outputs x_hat and f'(t), t the pull-back; and memory for responses. ``step``
    overwrites y, t and the memory, and may overwrite x and x_hat."""

    x: Tensor = field(metadata=OWNED)
    y: Tensor = field(metadata=OWNED)
    x_hat: Tensor = field(metadata=OWNED)
    t: Tensor = field(metadata=OWNED)
    memory: Tensor = field(metadata=OWNED)
    newton_steps: int


def proximal_obstacle(instance: Instance) -> str:
    """Why the potential has no proximal map of every step; "" where it does."""
    why = instance.potential.prox_obstacle()
    kind = type(instance.potential).__name__
    return why and f"{kind} {why} and has no proximal map of every step, which primal-dual iterations rest on"


def primal_step(instance: Instance, x: Tensor, pullback: Tensor, tau: Tensor, sizes: StepSizes) -> Tensor:
    """prox_{tau g}(x - tau K^T y), with the data term inside g when it is diagonal and explicit otherwise."""
    if sizes.metric is not None:
        return x - sizes.metric.step(instance.quadratic(x) - instance.q + pullback, sizes.level(tau))
    return instance.box.prox(instance.quadratic.primal_step(x, pullback, instance.q, sizes.tau(tau, x)))


class PDHG(Solver[PDHGState]):
    """Over-relaxed PDHG; the answer is the prox output, or for a diagonal data term argmin_x g(x) + <K^T y, x>, which
    for a ridge alone would be far off.

    Proximal maps that iterate start from the last pull-back: with three Newton steps at first, with one later, when the
    iterates hardly move.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> lr.solve(problem, b, tolerance=1e-3, solver=lr.solvers.PDHG()).certified
    True
    """

    name = "pdhg"
    report_applications = 2

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every

    def init(self, instance: Instance, x: Tensor) -> PDHGState:
        return self.resume(instance, x, None)

    def resume(self, instance: Instance, x: Tensor, t: Tensor | None) -> PDHGState:
        if not instance.potential.convex:
            raise AssumptionError("PDHG does not handle weakly convex regularizers; use LBFGS, as solver='auto' does.")
        sizes = StepSizes.of(instance)
        x = instance.box.prox(x.clone())
        t = instance.apply(x) if t is None else t
        y = instance.potential.grad_into(t, torch.empty_like(t))
        tau = torch.full((x.shape[0],), initial_tau(instance, sizes), dtype=x.dtype, device=x.device)
        first = newton_steps(instance, sizes, tau)
        return PDHGState(sizes, tau, 0, x, y, x.clone(), t, torch.empty_like(t), first)

    def step(self, instance: Instance, state: PDHGState) -> PDHGState:
        sizes = state.sizes
        fused = self._fused_steps(instance, state, 1)
        if fused is not None:
            return fused
        sigma = sizes.sigma(state.tau, state.y)
        x_hat = primal_step(instance, state.x, instance.adjoint(state.y), state.tau, sizes)
        response = instance.apply(torch.lerp(state.x, x_hat, 2.0), state.memory)
        v = torch.addcmul(state.y, sigma, response, out=response)
        instance.proximal.dual_step_(v, state.y, state.t, sigma, sizes.relaxation, _newton_now(state))
        return replace(state, x=torch.lerp(state.x, x_hat, sizes.relaxation), x_hat=x_hat, steps=state.steps + 1)

    def steps(self, instance: Instance, state: PDHGState, count: int) -> PDHGState:
        fused = self._fused_steps(instance, state, count)
        return super().steps(instance, state, count) if fused is None else fused

    def recurring(self, state: PDHGState) -> Hashable:
        return state.newton_steps if state.steps >= _FIRST_STEPS else None

    def _fused_steps(self, instance: Instance, state: PDHGState, count: int) -> PDHGState | None:
        """All of them by one kernel, where it fits; Newton steps as at the first."""
        iterates, sizes = (state.x, state.x_hat, state.y, state.t), state.sizes
        fused = FusedTotalVariation.of(instance, *iterates, state.tau)
        if fused is None:
            return None
        fused.steps(*iterates, state.tau, sizes.norm, sizes.relaxation, _newton_now(state), count)
        return replace(state, steps=state.steps + count)

    def adapt(self, instance: Instance, state: PDHGState) -> PDHGState:
        iterates = (state.x, state.x_hat, state.y, state.t)
        fused = FusedTotalVariation.of(instance, *iterates)
        if fused is not None:
            movement = fused.movement(*iterates)
        else:
            ahead_y = torch.sub(state.y, instance.potential.grad_into(state.t, state.memory), out=state.memory)
            movement = scaled_movement(state.sizes, state.x - state.x_hat, ahead_y)
        tau = balanced_tau(state.sizes, state.tau, *movement, state.steps // self.check_every)
        return replace(state, tau=tau, newton_steps=newton_steps(instance, state.sizes, tau))

    def report(self, instance: Instance, state: PDHGState) -> Report:
        if instance.quadratic.is_diagonal and not instance.quadratic.is_ridge and instance.strong_convexity > 0:
            answer = dual_answer(instance, state.t, state.memory)
            return Report(answer.x, answer.residual, answer.bound, answer.floor, state.t)
        judged = smallest_bound(instance, state.x_hat, state.t)
        return Report(state.x_hat, judged.residual, judged.bound, judged.floor, state.t)


def _newton_now(state: PDHGState) -> int:
    return max(state.newton_steps, _FIRST_NEWTON_STEPS if state.steps < _FIRST_STEPS else 1)


def newton_steps(instance: Instance, sizes: StepSizes, tau: Tensor) -> int:
    """Newton steps of the proximal map, from its stiffness."""
    stiffness = sizes.curvature / float(sizes.level(tau).min())
    return next((count for limit, count in _NEWTON_STEPS if stiffness <= limit), _NEWTON_STEPS[-1][1])


def optimal_tau(instance: Instance, sizes: StepSizes) -> float:
    """The tau that suits the moduli of both variables, 1/(‖K‖ √(mu L)) with L the largest curvature of f (Chambolle and
    Pock, 2011), by a factor."""
    modulus = max(instance.strong_convexity, 1e-3)
    tau = 1.0 / (_START * math.sqrt(modulus * sizes.curvature) * sizes.norm)
    return min(tau, 0.5 / sizes.explicit_lipschitz) if sizes.explicit_lipschitz > 0 else tau


def initial_tau(instance: Instance, sizes: StepSizes) -> float:
    """A start for the balance: the optimal tau, or longer primal steps, which come near the solution sooner, where f
    bends sharply; with a metric, between the two."""
    optimal, modulus = optimal_tau(instance, sizes), max(instance.strong_convexity, 1e-3)
    tau = max(optimal, min(1.0, 0.25 / (modulus * sizes.norm)))
    if sizes.metric is not None:
        return math.sqrt(optimal * tau)
    return min(tau, 0.5 / sizes.explicit_lipschitz) if sizes.explicit_lipschitz > 0 else tau


def scaled_movement(sizes: StepSizes, moved_x: Tensor, moved_y: Tensor) -> tuple[Tensor, Tensor]:
    """‖Δx‖ and ‖Δy‖ in the norm of the scaled dual space, (batch,) each; overwrites moved_y."""
    if sizes.metric is not None:
        primal = sizes.metric.norm(moved_x) / sizes.norm
        return primal, sum_samples(moved_y.square_().div_(sizes.scaling)).sqrt()
    square = moved_x * moved_x
    primal = sum_samples(square if sizes.primal_scaling is None else square / sizes.primal_scaling).sqrt()
    return primal, sum_samples(moved_y.square_().div_(sizes.scaling)).sqrt()


def balanced_tau(sizes: StepSizes, tau: Tensor, primal: Tensor, dual: Tensor, checks: int) -> Tensor:
    """Move tau (batch,) towards 0.6 ‖Δx‖/(‖Δy‖ ‖K‖), by less and less. The movements are those of the latest step up to
    a common factor: the relaxed iterate lies rho - 1 of a step ahead of the prox output."""
    tiny = torch.finfo(primal.dtype).tiny
    target = _PRIMAL_SHARE * primal / (dual.clamp_min(tiny) * sizes.norm)
    balanced = tau * (target / tau).clamp(0.1, 10.0) ** (0.3 / (1.0 + 0.3 * checks))
    if sizes.explicit_lipschitz > 0:
        balanced = balanced.clamp(max=0.9 / sizes.explicit_lipschitz)
    return torch.where((primal > tiny) & (dual > tiny), balanced, tau)
