"""Derivatives of a function that is given by its value, by autograd; of few variables also the norms of its second
derivatives at a point, where nobody declares bounds of them."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from learnreg.linear.samples import inner_samples

__all__ = ["MOST_MEASURED", "GivenFunction", "SecondDerivatives", "cross_norm", "hessian_norm"]

MOST_MEASURED = 512
"""Rows of a matrix of second derivatives, each of which costs a pass through the function."""

_ROUNDED = 1.0 + 1e-9


class GivenFunction(Protocol):
    """A module at fixed parameters, as potentials needs it. tensors: its parameters and buffers."""

    @property
    def tensors(self) -> dict[str, Tensor]: ...

    def value(self, x: Tensor) -> Tensor: ...

    def detached(self) -> Self: ...

    def to(self, dtype: torch.dtype) -> Self: ...

    def moved(self, names: set[str], step: float) -> Self:
        """The same with these parameters larger by a step."""

    def learning(self) -> Self:
        """The same, once more differentiable in the parameters that are learned."""


class SecondDerivatives:
    """∇²R and C = ∂_theta ∇R at x, sample by sample."""

    def __init__(self, function: GivenFunction, x: Tensor) -> None:
        self.learned = [t for t in function.tensors.values() if t.requires_grad]
        with torch.inference_mode(False), torch.enable_grad():
            self.point = x.detach().clone().requires_grad_()
            self.values = function.value(self.point)
            (self.slope,) = torch.autograd.grad(
                self.values.sum(), self.point, create_graph=True, materialize_grads=True
            )

    def hessian(self, v: Tensor) -> Tensor:
        """∇²R v."""
        if not self.slope.requires_grad:
            return torch.zeros_like(v)
        return torch.autograd.grad(self.slope, self.point, v, retain_graph=True, materialize_grads=True)[0]

    def cross(self, v: Tensor) -> Tensor:
        """C v, (batch, parameters)."""
        with torch.enable_grad():
            pairings = inner_samples(self.slope, v).unbind()
        return torch.stack([_row(self._grads(p, False)) for p in pairings]).to(v)

    def pulled(self, u: Tensor) -> Tensor:
        """C^T u."""
        with torch.enable_grad():
            rows = [_row(self._grads(value, True)) for value in self.values.unbind()]
            total = torch.stack([(row * own).sum() for row, own in zip(rows, u, strict=True)]).sum()
        if not total.requires_grad:
            return torch.zeros_like(self.point)
        return torch.autograd.grad(total, self.point, retain_graph=True, materialize_grads=True)[0]

    def _grads(self, scalar: Tensor, again: bool) -> tuple[Tensor, ...]:
        if not scalar.requires_grad:
            return tuple(torch.zeros_like(t) for t in self.learned)
        return torch.autograd.grad(scalar, self.learned, retain_graph=True, create_graph=again, materialize_grads=True)


def _row(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.flatten() for g in grads])


@torch.no_grad()
def hessian_norm(function: GivenFunction, x: Tensor) -> Tensor:
    """‖∇²R‖ at x, (batch,), from all its columns; a *rigorous bound* up to the rounding of its entries."""
    at, n = SecondDerivatives(function, x), x[0].numel()
    columns = [at.hessian(_unit(x, k)).flatten(1) for k in range(n)]
    return _largest(columns)


@torch.no_grad()
def cross_norm(function: GivenFunction, x: Tensor) -> Tensor:
    """‖∂_theta ∇R‖ at x, (batch,), from its rows or its columns, whichever are fewer; a *rigorous bound* up to the
    rounding of its entries."""
    at, n = SecondDerivatives(function.learning(), x), x[0].numel()
    count = sum(t.numel() for t in at.learned)
    if count == 0:
        return x.new_zeros(len(x))
    if n <= count:
        rows = [at.cross(_unit(x, k)) for k in range(n)]
    else:
        units = torch.eye(count, dtype=x.dtype, device=x.device)
        rows = [at.pulled(u.expand(len(x), count)).flatten(1) for u in units]
    return _largest(rows)


def _largest(rows: list[Tensor]) -> Tensor:
    """The largest singular value of the matrices with these rows, (batch, n) each."""
    found: Tensor = torch.linalg.matrix_norm(torch.stack(rows, 1), ord=2)
    return found * _ROUNDED


def _unit(x: Tensor, k: int) -> Tensor:
    """Entry k of each sample 1, the others 0."""
    found = torch.zeros_like(x).flatten(1)
    found[:, k] = 1.0
    return found.view_as(x)
