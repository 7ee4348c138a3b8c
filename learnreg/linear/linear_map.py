"""Black-box linear maps as differentiable functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from learnreg.linear.grad_mode import full_precision, uncompiled

__all__ = ["linear_map"]


class _LinearMap(torch.autograd.Function):
    """y = forward(x) with backward adjoint, and the other way round: differentiable any number of times, in reverse and
    in forward mode, and under torch.func; the axis that vmap adds joins the batch."""

    @staticmethod
    def forward(x: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
        return forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pair = inputs[1:]

    @staticmethod
    @full_precision
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        forward, adjoint = ctx.pair
        return linear_map(grad[0], adjoint, forward), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return linear_map(tangents[0], *ctx.pair)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *pair: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        result = linear_map(x.flatten(0, 1), *pair)
        return result.reshape(*x.shape[:2], *result.shape[1:]), 0


@uncompiled
def linear_map(x: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a black-box linear map so that autograd uses its adjoint, at every order of differentiation."""
    return cast(Tensor, _LinearMap.apply(x, forward, adjoint))  # type: ignore[no-untyped-call]
