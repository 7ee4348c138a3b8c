"""The truth about bilevel problems given by two functions: Newton's method and the implicit function theorem with dense
matrices in float64, by autograd; nothing of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

__all__ = ["DenseBilevel", "dense_bilevel"]

Named = dict[str, Tensor]


@dataclass
class DenseBilevel:
    """Solution, adjoint state and gradient as vectors, and the Hessian."""

    x: Tensor
    X: Tensor
    gradient: Tensor
    hessian: Tensor
    loss: float


def flat(named: Named) -> Tensor:
    return torch.cat([t.detach().double().reshape(-1) for t in named.values()])


def shaped(v: Tensor, like: Named) -> Named:
    found, first = {}, 0
    for name, t in like.items():
        found[name] = v[first : first + t.numel()].view(t.shape)
        first += t.numel()
    return found


def dense_bilevel(
    lower: Callable[..., Tensor], upper: Callable[..., Tensor], theta: Named, x: Named, data: Any, newton: int = 80
) -> DenseBilevel:
    """For dicts of tensors."""

    def energy(v: Tensor, t: Tensor) -> Tensor:
        return lower(shaped(v, x), shaped(t, theta), data).sum()

    def loss(v: Tensor, t: Tensor) -> Tensor:
        return upper(shaped(v, x), shaped(t, theta), data).mean()

    def slope(v: Tensor, t: Tensor) -> Tensor:
        v = v if v.requires_grad else v.detach().requires_grad_()
        return torch.autograd.grad(energy(v, t), v, create_graph=True)[0]

    v, t = flat(x), flat(theta)
    for _ in range(newton):
        step = torch.linalg.solve(hessian(lambda v: energy(v, t), v), slope(v, t).detach())
        size = 1.0
        while energy(v - size * step, t) > energy(v, t) and size > 1e-6:
            size /= 2
        v = v - size * step
        if step.norm() <= 1e-15 * (1.0 + v.norm()):
            break
    H = hessian(lambda v: energy(v, t), v)
    of_x, of_theta = jacobian(loss, (v, t))
    X = -torch.linalg.solve(H, of_x)
    C = jacobian(lambda t: slope(v, t), t)
    return DenseBilevel(v, X, of_theta + C.T @ X, H, float(loss(v, t)))
