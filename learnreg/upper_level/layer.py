"""The lower-level solution as a differentiable layer: x = argmin_x energy(x, b), inside any torch training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError, SolverError
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.hypergradients.implicit import tightening
from learnreg.linear.arguments import check_type
from learnreg.linear.grad_mode import full_precision, uncompiled, usable
from learnreg.linear.samples import expand
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Solution, Status
from learnreg.solvers.newton_correction import correct_adjoint
from learnreg.solvers.noise_levels import in_order
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["SolutionLayer", "solution_layer"]

T = TypeVar("T")

_ONCE = (
    "solution_layer is differentiated once, in reverse mode: it has no {what}. Take torch.func.jacrev or "
    "torch.autograd.grad once, and differences of them for second derivatives."
)


class SolutionLayer(nn.Module):
    """b -> x(b), differentiable in the problem's parameters and in b.

    Forward solves to a certified root-mean-square error ``tolerance``; backward solves the adjoint equation to the same
    relative accuracy by the chosen method. ``last_solution`` holds the bound of the latest forward pass, and no graph.
    The gradient itself is not certified here: use :func:`learnreg.hypergradient` for that.

    It computes in float32 or float64 under torch.autocast, too, is left out of what torch.compile makes of a model, and
    works under ``torch.func``: ``vmap`` over b joins its axis to the batch, over parameters solves one problem after
    the other.
    """

    def __init__(
        self, problem: LowerLevelProblem, method: HypergradientMethod | None = None, tolerance: float = 1e-3
    ) -> None:
        super().__init__()
        check_type(problem, LowerLevelProblem, "solution_layer(problem)", "a LowerLevelProblem")
        self.problem = problem
        self.method = tightening(method)
        self.tolerance = check_tolerance(tolerance)
        self.last_solution: Solution | None = None

    def forward(self, b: Tensor) -> Tensor:
        return _solved(self, b)

    def extra_repr(self) -> str:
        return f"method={self.method!r}, tolerance={self.tolerance:g}"


@uncompiled
@full_precision
def _solved(layer: SolutionLayer, b: Tensor) -> Tensor:
    problem = layer.problem
    if getattr(layer, "_is_replica", False):
        raise ConfigError(
            "solution_layer in a replica of nn.DataParallel, whose parameters are hidden from it: use "
            "DistributedDataParallel."
        )
    problem.operator.check_range(b, "b")
    b = usable(b)
    return cast(Tensor, _Solve.apply(layer, _Pass(), b, *_tensors(problem).values()))  # type: ignore[no-untyped-call]


def _tensors(problem: LowerLevelProblem) -> dict[str, Tensor]:
    """Everything that torch.func may have put its own tensors in place of."""
    return {**dict(problem.named_parameters()), **dict(problem.named_buffers())}


class _Within(nn.Module):
    """Work on a problem, as ``torch.func.functional_call`` wants it."""

    def __init__(self, problem: LowerLevelProblem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, work: Callable[[LowerLevelProblem], T]) -> T:
        return work(self.problem)


@dataclass
class _Pass:
    """What a forward pass leaves to its backward pass.

    frozen: the problem as it was. learned: for each tensor of the problem its name in hypergradients; None for those
    that are not learned. values: what torch.func puts in place of tensors of the problem. parts: the passes of the
    problems that vmap made of this one; a single one where it enlarged the batch.
    """

    frozen: FrozenProblem | None = None
    learned: list[str | None] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)
    parts: list[_Pass] = field(default_factory=list)

    def part(self, index: int) -> _Pass:
        return self.parts[index if len(self.parts) > 1 else 0]

    def within(self, problem: LowerLevelProblem, work: Callable[[LowerLevelProblem], T]) -> T:
        """What the work returns with the values in their place."""
        if not self.values:
            return work(problem)
        found: T = torch.func.functional_call(
            _Within(problem), {f"problem.{n}": t for n, t in self.values.items()}, work
        )
        return found


class _Solve(torch.autograd.Function):
    """x of b, and of all tensors of the problem."""

    @staticmethod
    def forward(layer: SolutionLayer, kept: _Pass, b: Tensor, *tensors: Tensor) -> Tensor:
        problem = layer.problem
        own = _tensors(problem)
        parameters = dict(problem.named_parameters())
        for (name, tensor), value in zip(own.items(), tensors, strict=True):
            if value is not tensor:
                learned = name in parameters and value.is_floating_point()
                kept.values[name] = nn.Parameter(value.detach()) if learned else value

        def work(at: LowerLevelProblem) -> Solution:
            kept.frozen = at.frozen()
            names = {id(p): name for name, p in kept.frozen.originals.items()}
            kept.learned = [names.get(id(t)) for t in _tensors(at).values()]
            return solve(kept.frozen, b, layer.tolerance)

        solution = kept.within(problem, work)
        layer.last_solution = replace(solution, x=solution.x.detach())
        return solution.x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, ctx.kept, b = inputs[:3]
        ctx.save_for_backward(b, output)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        b, x = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[2:])
        found = iter(_Adjoint.apply(ctx.layer, ctx.kept, wanted, grad[0], b, x))  # type: ignore[no-untyped-call]
        return None, None, *(next(found) if want else None for want in wanted)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], layer: SolutionLayer, kept: _Pass, b: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        if all(dim is None for dim in in_dims[3:]):
            kept.parts, b = [_Pass()], b.movedim(in_dims[2], 0)
            x = _Solve.apply(layer, kept.parts[0], b.flatten(0, 1), *tensors)  # type: ignore[no-untyped-call]
            return x.unflatten(0, b.shape[:2]), 0
        kept.parts = [_Pass() for _ in range(info.batch_size)]
        found = [
            _Solve.apply(layer, part, *_slices(i, in_dims[2:], (b, *tensors)))  # type: ignore[no-untyped-call]
            for i, part in enumerate(kept.parts)
        ]
        return torch.stack(found), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise AssumptionError(_ONCE.format(what="forward-mode derivatives"))


class _Adjoint(torch.autograd.Function):
    """The gradients that are wanted, of b and of tensors of the problem, from the gradient in x."""

    @staticmethod
    @full_precision
    def forward(
        layer: SolutionLayer, kept: _Pass, wanted: tuple[bool, ...], grad: Tensor, b: Tensor, x: Tensor
    ) -> tuple[Tensor, ...]:
        return kept.within(layer.problem, lambda at: _gradients(layer, kept, wanted, grad, b, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing to keep: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        raise AssumptionError(_ONCE.format(what="second derivatives"))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        layer: SolutionLayer,
        kept: _Pass,
        wanted: tuple[bool, ...],
        *images: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The axis is one of the forward pass if x has it, else one of the gradients alone."""
        forward, dims = in_dims[5] is not None, in_dims[3:]
        if not any(wanted[1:]) and not (forward and len(kept.parts) > 1):
            whole = (
                t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
                for t, d in zip(images, dims, strict=True)
            )
            part = kept.part(0) if forward else kept
            found = _Adjoint.apply(layer, part, wanted, *(t.flatten(0, 1) for t in whole))  # type: ignore[no-untyped-call]
            return tuple(t.unflatten(0, (info.batch_size, -1)) for t in found), (0,) * len(found)
        rows = [
            _Adjoint.apply(layer, kept.part(i) if forward else kept, wanted, *_slices(i, dims, images))  # type: ignore[no-untyped-call]
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*rows, strict=True))), (0,) * sum(wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        raise AssumptionError(_ONCE.format(what="forward-mode derivatives"))


def _slices(index: int, dims: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t if d is None else t.select(d, index) for t, d in zip(tensors, dims, strict=True)]


def _gradients(
    layer: SolutionLayer, kept: _Pass, wanted: tuple[bool, ...], grad: Tensor, b: Tensor, x: Tensor
) -> tuple[Tensor, ...]:
    """Those of samples of each noise level, put together."""
    assert kept.frozen is not None
    parts = kept.frozen.parts(b)
    if len(parts) == 1:
        return _gradients_at(parts[0][1], layer, kept, wanted, grad, b, x)
    found = [_gradients_at(frozen, layer, kept, wanted, grad[i], b[i], x[i]) for i, frozen in parts]
    rows = list(zip(*found, strict=True))
    on_b = [in_order(rows.pop(0), [i for i, _ in parts])] if wanted[0] else []
    return (*on_b, *(torch.stack(row).sum(0) for row in rows))


def _gradients_at(
    frozen: FrozenProblem,
    layer: SolutionLayer,
    kept: _Pass,
    wanted: tuple[bool, ...],
    grad: Tensor,
    b: Tensor,
    x: Tensor,
) -> tuple[Tensor, ...]:
    """Solve the adjoint equation for the gradient in x, and pair its solution with what b and the parameters do."""
    instance = frozen.at(b)
    finite = torch.isfinite(grad).flatten(1).all(1)
    overflown = not bool(finite.all())  # as with too large a factor of torch.amp.GradScaler, which has to see it
    if overflown:
        grad = torch.where(expand(finite, grad), grad, 0.0)
    size = grad.flatten(1).norm(dim=1)
    state = instance.latent.extend(x)
    start = Point(frozen, instance, b, instance.latent.loss(_GivenGradient(grad)), state, torch.zeros_like(state))
    found = evaluate(layer.method, start, Goal(torch.full_like(size, torch.inf), layer.tolerance * size))
    if found.outcome.status is Status.INDEFINITE:
        raise SolverError(f"solution_layer: no gradient exists. {Status.INDEFINITE.value}", layer.last_solution)
    gradients = []
    if wanted[0]:
        solved = found.outcome.X is not None
        X = found.point.X if solved else correct_adjoint(start, layer.tolerance * size).point
        on_b = _measurement_gradient(frozen, b, x, instance.latent.image(X))
        gradients.append(torch.where(expand(finite, on_b), on_b, torch.nan) if overflown else on_b)
    for want, name in zip(wanted[1:], kept.learned, strict=True):
        if want and name is None:
            raise ConfigError("solution_layer: a buffer of the problem requires a gradient; make it an nn.Parameter.")
        if want and name is not None:
            on_parameter = found.gradient[name]
            gradients.append(torch.full_like(on_parameter, torch.nan) if overflown else on_parameter)
    return tuple(gradients)


def _measurement_gradient(frozen: FrozenProblem, b: Tensor, x: Tensor, adjoint: Tensor) -> Tensor:
    """∂_b <∇_x E(x; b), X>, weights that depend on b included."""
    forward, response = frozen.operator(x), frozen.operator(adjoint)
    with torch.enable_grad():
        own = b.detach().requires_grad_()
        slope = (frozen.data_term.slope(forward.detach(), own) * response.detach()).sum()
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
    problem: the lower level; its learnable parameters get gradients, too.
    method: of the backward pass; ``Implicit()`` by default.
    tolerance: certified root-mean-square error of x, and relative residual of the adjoint equation.

    Raises
    ------
    ConfigError: a problem, method or tolerance that is none. When it is called: as ``learnreg.solve``; AssumptionError
    where second derivatives, or derivatives in forward mode, are asked for.
    """
    return SolutionLayer(problem, method, tolerance)
