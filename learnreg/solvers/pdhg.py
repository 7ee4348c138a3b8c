"""The primal-dual hybrid gradient method, over-relaxed, with automatic balance of its step sizes.

Source: Chambolle and Pock (2011); over-relaxation and the explicit smooth term: Condat (2013), Vu (2013); the balance
of primal and dual movement: Applegate et al. (2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from learnreg.certificates.state import smallest_bound
from learnreg.convex import dual_point, sum_samples
from learnreg.filterbank import FilterBank, weighted_norm_bound
from learnreg.problem import Instance, expand
from learnreg.solvers.base import Report, Solver, SolverState

__all__ = ["PDHG", "PDHGState", "StepSizes", "balanced_tau", "initial_tau", "primal_step"]


@dataclass(frozen=True)
class StepSizes:
    """What a PDHG iteration on K with channel scaling needs: the norm of the scaled K, the scaling of sigma per
    channel, and the gradient's Lipschitz constant of the part of the energy treated explicitly (0: none)."""

    norm: float
    scaling: Tensor
    explicit_lipschitz: float

    @classmethod
    def of(cls, instance: Instance) -> StepSizes:
        """Step-size constants of an instance; sigma is proportional to the potential's weight in each channel."""
        weight = torch.as_tensor(instance.potential.weight, dtype=instance.q.dtype, device=instance.q.device)
        scaling = weight / weight.max() if weight.dim() == 3 and weight.numel() > 1 else torch.ones_like(weight)
        scaling = scaling.sqrt()
        if isinstance(instance.analysis, FilterBank) and scaling.numel() == instance.analysis.filters.shape[0]:
            norm = weighted_norm_bound(instance.analysis, scaling.flatten())
        else:
            scaling = torch.ones((), dtype=instance.q.dtype, device=instance.q.device)
            norm = instance.analysis.norm_bound()
        explicit = 0.0
        if instance.diagonal is None:
            explicit = float(instance.data_weights.max()) * instance.forward.norm_bound() ** 2
        return cls(max(norm, 1e-12), scaling, explicit)

    def sigma(self, tau: Tensor, like: Tensor) -> Tensor:
        """The dual step of each sample and channel: 1/tau = sigma ‖K‖² + L."""
        return expand((1.0 / tau - self.explicit_lipschitz) / self.norm**2, like) * self.scaling

    @property
    def relaxation(self) -> float:
        """1.9, or 1.45 with an explicit term (below 2 - (L/2)/(1/tau - sigma‖K‖²) = 1.5)."""
        return 1.9 if self.explicit_lipschitz == 0.0 else 1.45


@dataclass(frozen=True)
class PDHGState(SolverState):
    """Relaxed iterates x, y; prox outputs x_hat, y_hat with the pull-back t; tau per sample; movement since a check."""

    x: Tensor
    y: Tensor
    x_hat: Tensor
    y_hat: Tensor
    t: Tensor
    tau: Tensor
    x_start: Tensor
    y_start: Tensor
    checks: int
    sizes: StepSizes


def primal_step(instance: Instance, x: Tensor, pullback: Tensor, tau: Tensor) -> Tensor:
    """prox_{tau g}(x - tau K^T y), with the data term inside g when it is diagonal and explicit otherwise."""
    step = expand(tau, x)
    if instance.diagonal is not None:
        x_hat = (x - step * (pullback - instance.q)) / (1.0 + step * instance.diagonal)
    else:
        explicit = instance.quadratic(x) - instance.ridge * x - instance.q
        x_hat = (x - step * (pullback + explicit)) / (1.0 + step * instance.ridge)
    return x_hat if instance.box is None else instance.box.prox(x_hat)


class PDHG(Solver[PDHGState]):
    """Over-relaxed PDHG; the answer is the prox output, or for a diagonal data term argmin_x g(x) + <K^T y, x>."""

    name = "pdhg"

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every

    def init(self, instance: Instance, x: Tensor) -> PDHGState:
        sizes = StepSizes.of(instance)
        x = x if instance.box is None else instance.box.prox(x)
        t = instance.apply(x)
        y = instance.potential.grad(t)
        tau = torch.full((x.shape[0],), initial_tau(instance, sizes), dtype=x.dtype, device=x.device)
        return PDHGState(x, y, x, y, t, tau, x, y, 0, sizes)

    def step(self, instance: Instance, state: PDHGState) -> PDHGState:
        sizes = state.sizes
        sigma = sizes.sigma(state.tau, state.y)
        x_hat = primal_step(instance, state.x, instance.adjoint(state.y), state.tau)
        v = torch.addcmul(state.y, sigma, instance.apply(2.0 * x_hat - state.x))
        y_hat, t = dual_point(instance.potential, v, sigma, state.t)
        rho = sizes.relaxation
        return replace(
            state,
            x=torch.lerp(state.x, x_hat, rho),
            y=torch.lerp(state.y, y_hat, rho),
            x_hat=x_hat,
            y_hat=y_hat,
            t=t,
        )

    def adapt(self, instance: Instance, state: PDHGState) -> PDHGState:
        moved_x, moved_y = state.x - state.x_start, state.y - state.y_start
        tau = balanced_tau(state.sizes, state.tau, moved_x, moved_y, state.checks)
        return replace(state, tau=tau, x_start=state.x, y_start=state.y, checks=state.checks + 1)

    def report(self, instance: Instance, state: PDHGState) -> Report:
        pullback = instance.adjoint(state.y_hat)
        dual = instance.diagonal is not None and instance.strong_convexity > 0
        x = self._dual_answer(instance, pullback) if dual else state.x_hat
        judged = smallest_bound(instance, x, state.t, pullback)
        return Report(x, judged.residual, judged.bound, judged.floor, state.t)

    def _dual_answer(self, instance: Instance, pullback: Tensor) -> Tensor:
        x = (instance.q - pullback) / cast(Tensor, instance.diagonal)
        return x if instance.box is None else instance.box.prox(x)


def initial_tau(instance: Instance, sizes: StepSizes) -> float:
    """A start for the balance: between equal steps and the modulus-optimal ratio."""
    modulus = max(instance.strong_convexity, 1e-3)
    tau = min(1.0, 0.2 / (modulus * sizes.norm))
    return min(tau, 0.5 / sizes.explicit_lipschitz) if sizes.explicit_lipschitz > 0 else tau


def balanced_tau(sizes: StepSizes, tau: Tensor, moved_x: Tensor, moved_y: Tensor, checks: int) -> Tensor:
    """Move tau (batch,) towards ‖Δx‖/(‖Δy‖ ‖K‖), the movements since the last check, by less and less."""
    primal = sum_samples(moved_x * moved_x).sqrt()
    dual = sum_samples(moved_y * moved_y / sizes.scaling).sqrt()
    tiny = torch.finfo(primal.dtype).tiny
    target = primal / (dual.clamp_min(tiny) * sizes.norm)
    balanced = tau * (target / tau).clamp(0.1, 10.0) ** (0.5 / (1.0 + 0.3 * checks))
    if sizes.explicit_lipschitz > 0:
        balanced = balanced.clamp(max=0.9 / sizes.explicit_lipschitz)
    return torch.where((primal > tiny) & (dual > tiny), balanced, tau)
