"""The one scalar whose parameter gradient is the hypergradient: <∇_x E(x; theta), X> with x and X detached.

In saddle form it is <K_theta X, y> + <K_theta x, Y> for parameters of K, y = f'(Kx) and Y = f''(Kx) K X, plus
<f'_theta(Kx), K X> for parameters of the potential, plus the data term and the ridge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.problem import Instance, LowerLevelProblem

__all__ = ["Responses", "evaluate_pairing"]


@dataclass(frozen=True)
class Responses:
    """What the gradient and its certificate share, detached: t = K x, V = K X, y = f'(t), Y = f''(t) V, and for a
    learnable data term or operator the residual A x - b and A X."""

    t: Tensor
    V: Tensor
    y: Tensor
    Y: Tensor
    residual: Tensor | None
    forward_X: Tensor | None


def evaluate_pairing(
    problem: LowerLevelProblem, instance: Instance, b: Tensor, x: Tensor, X: Tensor
) -> tuple[dict[str, Tensor], Responses]:
    """The hypergradient formed from exactly these x and X, in their dtype, with the responses it used.

    Counts K x, K X and, when K has learnable parameters, the two applications of its backward pass.
    """
    x, X, b = x.detach(), X.detach(), b.detach()
    parameters = problem.learnable()
    counter = instance.counter
    data_side = any(name.startswith(("operator.", "data_term.")) for name in _beyond_regularizer(problem))
    with torch.enable_grad():
        terms = problem.saddle_terms(x.dtype)
        t, V = terms.operator(x), terms.operator(X)
        counter.applications += 2
        t_fixed, V_fixed = t.detach(), V.detach()
        frozen = terms.potential.detached()
        y, Y = frozen.grad(t_fixed), frozen.hess_vec(t_fixed, V_fixed)
        scalar = (terms.potential.grad(t_fixed) * V_fixed).sum()
        if t.requires_grad:
            scalar = scalar + (V * y).sum() + (t * Y).sum()
            counter.applications += 2
        residual = forward_X = None
        if data_side:
            residual, forward_X = problem.operator(x) - b.to(x.dtype), problem.operator(X)
            scalar = scalar + (problem.data_term.grad(residual) * forward_X).sum()
            residual, forward_X = residual.detach(), forward_X.detach()
        if isinstance(problem.ridge, Tensor):
            scalar = scalar + problem.ridge * (x * X).sum()
        grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if parameters and scalar.requires_grad:
            grads = torch.autograd.grad(scalar, list(parameters.values()), allow_unused=True)
    gradient = {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(parameters.items(), grads, strict=True)
    }
    return gradient, Responses(t_fixed, V_fixed, y, Y, residual, forward_X)


def _beyond_regularizer(problem: LowerLevelProblem) -> list[str]:
    own = {name for name, _ in problem.regularizer.named_parameters()}
    return [name for name in problem.learnable() if name not in own]
