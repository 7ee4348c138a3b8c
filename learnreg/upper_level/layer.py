"""The lower-level solution as a differentiable layer: x = argmin_x energy(x, b), inside any torch training loop."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from learnreg.errors import SolverError
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Status
from learnreg.solvers.newton_correction import correct_adjoint
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["SolutionLayer", "solution_layer"]


class SolutionLayer(nn.Module):
    """b -> x(b), differentiable in the problem's parameters and in b.

    Forward solves to a certified root-mean-square error ``tolerance``; backward solves the adjoint equation to the same
    relative accuracy by the chosen method. ``last_solution`` holds the bound of the latest forward pass. The gradient
    itself is not certified here: use :func:`learnreg.hypergradient` for that.
    """

    def __init__(
        self, problem: LowerLevelProblem, method: HypergradientMethod | None = None, tolerance: float = 1e-3
    ) -> None:
        super().__init__()
        self.problem = problem
        self.method = method if method is not None else Implicit()
        self.tolerance = check_tolerance(tolerance)
        self.last_solution: Any = None

    def forward(self, b: Tensor) -> Tensor:
        frozen = self.problem.frozen()
        return cast(Tensor, _Solve.apply(self, frozen, b, *frozen.originals.values()))  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"method={self.method!r}, tolerance={self.tolerance:g}"


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: SolutionLayer, frozen: FrozenProblem, b: Tensor, *parameters: Tensor) -> Tensor:
        solution = solve(frozen, b, layer.tolerance)
        layer.last_solution = solution
        ctx.layer, ctx.frozen = layer, frozen
        ctx.save_for_backward(b, solution.x)
        return solution.x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: SolutionLayer = ctx.layer
        b, x = ctx.saved_tensors
        frozen: FrozenProblem = ctx.frozen
        instance = frozen.at(b)
        loss = instance.latent.loss(_GivenGradient(grad[0]))
        size = grad[0].flatten(1).norm(dim=1)
        state = instance.latent.extend(x)
        start = Point(frozen, instance, b, loss, state, torch.zeros_like(state))
        found = evaluate(layer.method, start, Goal(torch.full_like(size, torch.inf), layer.tolerance * size))
        if found.outcome.status is Status.INDEFINITE:
            raise SolverError(f"solution_layer: no gradient exists. {Status.INDEFINITE.value}", layer.last_solution)
        grad_b = None
        if ctx.needs_input_grad[2]:
            solved = found.outcome.X is not None
            X = found.point.X if solved else correct_adjoint(start, layer.tolerance * size).point
            grad_b = _measurement_gradient(frozen, b, x, instance.latent.image(X))
        return None, None, grad_b, *(found.gradient[name] for name in frozen.parameters)


def _measurement_gradient(frozen: FrozenProblem, b: Tensor, x: Tensor, adjoint: Tensor) -> Tensor:
    """∂_b <∇_x E(x; b), X>, weights that depend on b included."""
    residual, response = frozen.operator(x) - b, frozen.operator(adjoint)
    with torch.enable_grad():
        own = b.detach().requires_grad_()
        slope = (frozen.data_term.at(own).grad(residual.detach() - (own - b)) * response.detach()).sum()
        return torch.autograd.grad(slope, own)[0]


class _GivenGradient(UpperLoss):
    """The linear loss whose gradient came from the rest of the network."""

    def __init__(self, gradient: Tensor) -> None:
        super().__init__(lambda x: (x * gradient).sum(), gradient_lipschitz=0.0)
        self._gradient = gradient

    def gradient(self, x: Tensor) -> Tensor:
        return self._gradient.to(x)


def solution_layer(
    problem: LowerLevelProblem, method: HypergradientMethod | None = None, tolerance: float = 1e-3
) -> SolutionLayer:
    """A layer b -> argmin_x energy(x, b), differentiable once in the parameters and in b.

    Parameters
    ----------
    method: of the backward pass; ``Implicit()`` by default.
    tolerance: certified root-mean-square error of x, and relative residual of the adjoint equation.
    """
    return SolutionLayer(problem, method, tolerance)
