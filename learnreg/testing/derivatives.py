"""Derivatives through an operator: of first, second and third order in its argument, and in its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learnreg.testing.case import AnyOperator, Direction, OperatorCase, largest, norms
from learnreg.testing.report import Property, broken, judged, skipped

__all__ = [
    "check_differentiability",
    "check_hessian_vector",
    "check_parameter_gradients",
    "check_parameter_lipschitz",
    "check_third_derivative",
]

_HINT = "build it from torch operations, or wrap a black box with learnreg.operators.from_callables"


@torch.enable_grad()
def check_differentiability(case: OperatorCase) -> Property:
    """The result is attached to the graph, and the gradient of ½‖Ax - b‖² is A^T (Ax - b), for both maps."""
    value, wrong = 0.0, ""
    for direction, transposed in _pairs(case):
        x, b = case.randn(2, direction.source).requires_grad_(), case.randn(2, direction.target)
        image = direction.apply(x)
        if not image.requires_grad:
            return broken("differentiability", _detached(direction))
        (gradient,) = torch.autograd.grad((image - b).square().sum() / 2, x)
        expected = transposed.apply((image - b).detach())
        found = largest(gradient - expected, expected)
        if not found <= value:
            value, wrong = found, f"autograd through {direction.name} disagrees with {transposed.name}; {_HINT}"
    return judged("differentiability", value, _tolerance(case), "relative error of the gradient of ½‖Ax-b‖²", wrong)


def _detached(direction: Direction) -> str:
    return (
        f"the result of {direction.name} is cut from the autograd graph (a detach, no_grad or NumPy inside); {_HINT}, "
        "whose backward is the adjoint"
    )


@torch.enable_grad()
def check_hessian_vector(case: OperatorCase) -> Property:
    """Differentiating ½‖Ax - b‖² twice gives A^T A v: wrappers that call NumPy in their backward lose it silently."""
    value, wrong = 0.0, ""
    for direction, transposed in _pairs(case):
        x, v = case.randn(2, direction.source).requires_grad_(), case.randn(2, direction.source)
        b = case.randn(2, direction.target)
        (gradient,) = torch.autograd.grad((direction.apply(x) - b).square().sum() / 2, x, create_graph=True)
        found = math.inf
        if gradient.requires_grad:
            (product,) = torch.autograd.grad(gradient, x, v, allow_unused=True)
            expected = transposed.apply(direction.apply(v)).detach()
            found = largest((torch.zeros_like(v) if product is None else product) - expected, expected)
        if not found <= value:
            value = found
            wrong = (
                f"second derivatives through {direction.name} lose A^T A (its backward is not differentiable); {_HINT}"
            )
    return judged(
        "hessian-vector product", value, _tolerance(case), "relative error of A^T A v by double backward", wrong
    )


@torch.enable_grad()
def check_third_derivative(case: OperatorCase) -> Property:
    """The third derivative of sum (Ax)^4 / 24 in directions v, w is A^T (Ax · Av · Aw)."""
    value, wrong = 0.0, ""
    for direction, transposed in _pairs(case):
        x = case.randn(1, direction.source).requires_grad_()
        v, w = case.randn(1, direction.source), case.randn(1, direction.source)
        (first,) = torch.autograd.grad(direction.apply(x).pow(4).sum() / 24, x, create_graph=True)
        (second,) = torch.autograd.grad((first * v).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad((second * w).sum(), x)
        images = [direction.apply(t).detach() for t in (x.detach(), v, w)]
        expected = transposed.apply(images[0] * images[1] * images[2]).detach()
        found = largest(third - expected, expected)
        if not found <= value:
            value, wrong = found, f"third derivatives through {direction.name} are wrong; {_HINT}"
    return judged("third derivative", value, _tolerance(case), "relative error of a third derivative", wrong)


def _pairs(case: OperatorCase) -> tuple[tuple[Direction, Direction], tuple[Direction, Direction]]:
    return (case.forward, case.adjoint), (case.adjoint, case.forward)


def _tolerance(case: OperatorCase) -> float:
    """Gradients repeat the adjoint's own gap a few times."""
    return max(100 * case.rounding, 10 * case.adjoint_tolerance)


# ---- parameters ------------------------------------------------------------------------------------------------------


class _Maps(nn.Module):
    """<A x, y> and <x, A^T y> as one module, so that ``functional_call`` can exchange the parameters."""

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        operator = cast(AnyOperator, self.operator)
        return (operator.forward(x) * y if name == "forward" else x * operator.adjoint(y)).sum()


def _pairing(case: OperatorCase, parameters: Mapping[str, Tensor], name: str, x: Tensor, y: Tensor) -> Tensor:
    assert isinstance(case.operator, nn.Module)
    renamed = {f"operator.{key}": value for key, value in parameters.items()}
    result: Tensor = functional_call(_Maps(case.operator), renamed, (name, x, y))
    return result


@torch.enable_grad()
def check_parameter_gradients(case: OperatorCase) -> Property:
    """Gradients of <Ax, y> and <x, A^T y> in learnable parameters equal central differences."""
    if not case.parameters:
        return skipped("parameter gradients", "no learnable parameters")
    x, y = case.randn(2, case.forward.source), case.randn(2, case.forward.target)
    parameters = {name: p.detach().to(case.dtype).requires_grad_() for name, p in case.parameters.items()}
    value, wrong = 0.0, ""
    for map_name in ("forward", "adjoint"):
        output = _pairing(case, parameters, map_name, x, y)
        grads = _gradients(output, list(parameters.values()))
        for (name, p), gradient in zip(parameters.items(), grads, strict=True):
            direction = case.randn(1, tuple(p.shape) or (1,)).reshape(p.shape)
            slope = float((gradient.double() * direction.double()).sum())
            difference = _central_difference(case, parameters, map_name, x, y, name, direction)
            size = max(abs(slope), abs(difference), 1e-3 * float(gradient.norm() * direction.norm()))
            found = abs(slope - difference) / size if size > 0 else 0.0
            if not found <= value:
                value = found
                wrong = (
                    f"the gradient of {map_name} in the parameter {name} is not its derivative (detached, or cached?)"
                )
    tolerance = 1e-5 if case.dtype == torch.float64 else 3e-2
    return judged("parameter gradients", value, tolerance, "relative difference to central differences", wrong)


def _gradients(output: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    grads = torch.autograd.grad(output, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def _central_difference(
    case: OperatorCase,
    parameters: Mapping[str, Tensor],
    map_name: str,
    x: Tensor,
    y: Tensor,
    name: str,
    direction: Tensor,
) -> float:
    p = parameters[name]
    step = (1e-5 if case.dtype == torch.float64 else 1e-2) * max(float(p.detach().abs().max()), 1e-3)
    with torch.no_grad():
        sides = [
            float(_pairing(case, {**parameters, name: p + sign * step * direction}, map_name, x, y).double())
            for sign in (1.0, -1.0)
        ]
    return (sides[0] - sides[1]) / (2.0 * step)


@torch.enable_grad()
def check_parameter_lipschitz(case: OperatorCase) -> Property:
    """‖∂_theta <A u, p>‖ is at most ``parameter_lipschitz`` times ‖u‖ ‖p‖, for the worst p of each u as far as an
    alternation finds it."""
    operator, name = case.linear_operator, "parameter_lipschitz"
    if operator is None or not case.parameters:
        return skipped(name, "no learnable parameters")
    bound = operator.parameter_lipschitz()
    if bound is None:
        return skipped(name, "not declared, so that no hypergradient is certified")
    parameters = {key: p.detach().to(case.dtype).requires_grad_() for key, p in case.parameters.items()}
    zeros = {key: torch.zeros_like(p) for key, p in parameters.items()}
    worst = 0.0
    for u in torch.split(case.probes(case.forward.source), 1):
        p = case.randn(1, case.forward.target)
        for _ in range(3):
            grads = _gradients(_pairing(case, parameters, "forward", u, p), list(parameters.values()))
            size = math.sqrt(sum(float(norms(g.reshape(1, -1)).square()) for g in grads))
            worst = max(worst, size / float(norms(u) * norms(p)))
            p = _image_of(case, parameters, zeros, grads, u)
            if not float(p.norm()) > 0:
                break
    ratio = worst / bound if bound > 0 else (math.inf if worst > 0 else 0.0)
    wrong = f"parameter_lipschitz() = {bound:.6g} is no bound: {worst:.6g} was reached; return a larger one, or None"
    return judged(name, ratio, 1.0 + 10 * case.rounding, "largest gradient found, over the bound", wrong)


@torch.no_grad()
def _image_of(
    case: OperatorCase,
    parameters: Mapping[str, Tensor],
    zeros: Mapping[str, Tensor],
    grads: list[Tensor],
    u: Tensor,
) -> Tensor:
    """The linear part of theta -> A_theta u at these gradients: the p for which they are the largest."""
    assert isinstance(case.operator, nn.Module)
    moved = {key: g.to(case.dtype) for key, g in zip(parameters, grads, strict=True)}
    return functional_call(case.operator, moved, (u,)) - functional_call(case.operator, dict(zeros), (u,))  # type: ignore[no-any-return]
