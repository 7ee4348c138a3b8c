"""A point of the lower-level problem with its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import expand
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import SolverState

__all__ = ["EvaluatedPoint", "evaluate", "where"]


@dataclass(frozen=True)
class EvaluatedPoint(SolverState):
    """x, its responses t = K x, the gradient of the quadratic part, and the pull-back K^T f'(t)."""

    x: Tensor
    t: Tensor
    data_grad: Tensor
    pullback: Tensor

    @property
    def grad(self) -> Tensor:
        """The energy's gradient, without the constraint."""
        return self.data_grad + self.pullback


def evaluate(instance: Instance, x: Tensor) -> EvaluatedPoint:
    """The point at x; counts 2 applications."""
    t = instance.apply(x)
    return EvaluatedPoint(x, t, instance.quadratic(x) - instance.q, instance.adjoint(instance.potential.grad(t)))


def where(chosen: Tensor, new: EvaluatedPoint, old: EvaluatedPoint) -> EvaluatedPoint:
    """``new`` for the samples chosen, (batch,), ``old`` for the others."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(expand(chosen, a), a, b)

    return EvaluatedPoint(
        pick(new.x, old.x), pick(new.t, old.t), pick(new.data_grad, old.data_grad), pick(new.pullback, old.pullback)
    )
