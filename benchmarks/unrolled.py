"""Plain torch: iterations for the Field of Experts, differentiated by reverse mode through all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Descent", "PlainState", "pdhg_start", "pdhg_step", "unrolled_hypergradient"]

Theta = dict[str, Tensor]


def gradient(theta: Theta, b: Tensor, x: Tensor) -> Tensor:
    """∇_x of the energy, in closed form."""
    t = F.conv2d(x, theta["filters"][:, None])
    inverse = torch.rsqrt(t * t + (2.0 * theta["log_smoothing"]).exp()[:, None, None])
    y = theta["log_weights"].exp()[:, None, None] * (t * inverse)
    return x - b + F.conv_transpose2d(y, theta["filters"][:, None])


@dataclass(frozen=True)
class Descent:
    """x_{k+1} = z_k - step ∇E(z_k), z_{k+1} = x_{k+1} + momentum (x_{k+1} - x_k); momentum 0 is gradient descent."""

    step: float
    momentum: float

    def __call__(self, theta: Theta, b: Tensor, iterations: int) -> Tensor:
        x = z = b
        for _ in range(iterations):
            following = z - self.step * gradient(theta, b, z)
            z = following + self.momentum * (following - x) if self.momentum else following
            x = following
        return x

    def iterations_to(self, theta: Theta, b: Tensor, solution: Tensor, error: float, limit: int) -> int:
        """Iterations until ‖x - solution‖ <= error ‖solution‖; ``limit`` when more would be needed."""
        x = z = b
        for iteration in range(limit):
            if float((x - solution).norm()) <= error * float(solution.norm()):
                return iteration
            following = z - self.step * gradient(theta, b, z)
            z, x = following + self.momentum * (following - x), following
        return limit


def unrolled_hypergradient(
    solver: Descent, theta: Theta, b: Tensor, loss: Callable[[Tensor], Tensor], iterations: int
) -> Theta:
    """Gradient of the mean loss by backpropagation through the iterations."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
    grads = torch.autograd.grad(loss(solver(leaves, b, iterations)).mean(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


@dataclass(frozen=True)
class PlainState:
    """Primal and dual iterate, and the pull-back of the last proximal map, which starts the next one."""

    x: Tensor
    y: Tensor
    t: Tensor


def pdhg_start(theta: Theta, b: Tensor) -> PlainState:
    """x = b and y = 0."""
    t = F.conv2d(b, theta["filters"][:, None])
    return PlainState(b, torch.zeros_like(t), t)


def pdhg_step(
    theta: Theta, b: Tensor, state: PlainState, tau: float, sigma: float, newton: int = 3, relaxation: float = 1.9
) -> PlainState:
    """One over-relaxed primal-dual iteration; the proximal map of the potential takes ``newton`` Newton steps."""
    filters = theta["filters"][:, None]
    weight = theta["log_weights"].exp()[:, None, None]
    smoothing = theta["log_smoothing"].exp()[:, None, None]
    x_hat = (state.x - tau * (F.conv_transpose2d(state.y, filters) - b)) / (1.0 + tau)
    v = state.y / sigma + F.conv2d(2.0 * x_hat - state.x, filters)
    size = v.abs()
    low = torch.maximum(size - weight / sigma, size / (1.0 + weight / (smoothing * sigma)))
    t = torch.minimum(torch.maximum(state.t * v.sign(), low), size)
    for _ in range(newton):
        inverse = torch.rsqrt(t * t + smoothing**2)
        first, second = weight * t * inverse, weight * smoothing**2 * inverse**3
        t = t - (t + first / sigma - size) / (1.0 + second / sigma)
        t = torch.minimum(torch.maximum(t, low), size)
    t = t * v.sign()
    y_hat = sigma * (v - t)
    x = state.x + relaxation * (x_hat - state.x)
    return PlainState(x, state.y + relaxation * (y_hat - state.y), t)
