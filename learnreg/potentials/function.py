"""Functions of one tensor: values, derivatives, curvature on intervals; and, of some, proximal maps and conjugates.

Functions are sums over all elements (or groups of elements) of a sample; the first axis is the batch. For a smooth f
the conjugate is never inverted: with the pull-back t, y = f'(t) is a dual point, f*(y) = <t, y> - f(t), (f*)'(y) = t
and (f*)''(y) = 1/f''(t), all without cancellation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from learnreg.linear.samples import sum_samples

__all__ = ["Function", "Proximal", "dual_point"]


class Function(ABC):
    """What every function of one tensor (batch, ...) has: value, gradient, Hessian product, and curvature on
    intervals."""

    @abstractmethod
    def value(self, t: Tensor) -> Tensor:
        """f(t), shape (batch,)."""

    @abstractmethod
    def grad(self, t: Tensor) -> Tensor:
        """f'(t), shape of t."""

    @abstractmethod
    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        """f''(t) v, shape of t."""

    @abstractmethod
    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of f'' over the interval (ball, for groups) of the given radius around t,
        rounded outwards. *Rigorous bounds*, exact up to rounding."""

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """(batch,) bool: f is twice continuously differentiable on every interval of the given radius around t."""
        return torch.ones(t.shape[0], dtype=torch.bool, device=t.device)


class Proximal(Function):
    """A function with proximal maps; conjugate and dual proximal map are derived where it is convex."""

    @abstractmethod
    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """argmin_t ½|t - v|² + step f(t); ``step`` broadcasts against v, and is below 1/concavity. ``start``: a guess
        where prox iterates, which then makes fewer steps."""

    @abstractmethod
    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        """Derivative of the proximal map whose result is t, applied to v: (I + step f''(t))^-1 v."""

    def conjugate_at_gradient(self, t: Tensor) -> Tensor:
        """f*(f'(t)) = <t, f'(t)> - f(t), shape (batch,)."""
        return sum_samples(t * self.grad(t)) - self.value(t)


def dual_point(f: Proximal, v: Tensor, sigma: Tensor | float, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """prox_{sigma f*}(v) and its pull-back t, by Moreau's identity: t = prox_{f/sigma}(v/sigma), y = f'(t).

    ``start``: a guess of t.
    """
    t = f.prox(v / sigma, 1.0 / sigma, start)
    return f.grad(t), t
