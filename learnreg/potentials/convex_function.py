"""Convex functions: values, derivatives, proximal maps, conjugates through the pull-back, and curvature on intervals.

Functions are sums over all elements (or groups of elements) of a sample; the first axis is the batch. For a smooth f
the conjugate is never inverted: with the pull-back t, y = f'(t) is a dual point, f*(y) = <t, y> - f(t), (f*)'(y) = t
and (f*)''(y) = 1/f''(t), all without cancellation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from learnreg.linear.samples import expand, norm_samples, sum_samples

__all__ = ["ConvexFunction", "WeaklyConvexFunction", "dual_point"]


class ConvexFunction(ABC):
    """A convex function of one tensor (batch, ...), with the constants that solvers and certificates need.

    Six abstract methods; conjugate and dual proximal map are derived. ``hess_vec`` and the others act per element
    unless a class says "group".

    grouped: f is a sum over groups of responses, the channels (axis 1) of each place, and bounds are per group. whole:
    (also ``grouped``) all responses of a sample are one group, and f has no proximal map. gradient_limit: a bound of
    |f'| at one place, all channels together, where f' does not vanish with K^T f'; 0 elsewhere.
    """

    grouped = False
    whole = False
    gradient_limit: float = 0.0

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
    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """argmin_t ½|t - v|² + step f(t); ``step`` broadcasts against v. ``start``: a guess where prox iterates, which
        then makes fewer steps."""

    @abstractmethod
    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        """Derivative of the proximal map whose result is t, applied to v: (I + step f''(t))^-1 v."""

    @abstractmethod
    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue of f'' over the interval (ball, for groups) of the given radius around t,
        rounded outwards. *Rigorous bounds*, exact up to rounding."""

    def conjugate_at_gradient(self, t: Tensor) -> Tensor:
        """f*(f'(t)) = <t, f'(t)> - f(t), shape (batch,)."""
        return sum_samples(t * self.grad(t)) - self.value(t)

    def size(self, v: Tensor) -> Tensor:
        """|v|, elementwise, or the length of each group."""
        if self.whole:
            return expand(norm_samples(v), v)
        return (v * v).sum(1, keepdim=True).sqrt() if self.grouped else v.abs()

    def bending_size(self, v: Tensor, t: Tensor, radius: Tensor | float) -> Tensor:
        """What bounds |(f''(t') - f''(t)) v| when ``curvature_change`` at this radius, or ``third_bound`` and |t' - t|,
        multiply it: the size of v, unless the function knows better. *Rigorous bound.*"""
        return self.size(v)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """(batch,) bool: f is twice continuously differentiable on every interval of the given radius around t."""
        return torch.ones(t.shape[0], dtype=torch.bool, device=t.device)


def dual_point(
    f: ConvexFunction, v: Tensor, sigma: Tensor | float, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """prox_{sigma f*}(v) and its pull-back t, by Moreau's identity: t = prox_{f/sigma}(v/sigma), y = f'(t).

    ``start``: a guess of t.
    """
    t = f.prox(v / sigma, 1.0 / sigma, start)
    return f.grad(t), t


class WeaklyConvexFunction(ConvexFunction):
    """A function with f'' >= -rho; convex, rho = 0, unless a class says otherwise. Only convex ones have conjugates and
    proximal maps of all steps."""

    @property
    def concavity(self) -> Tensor | float:
        """rho >= 0 with f'' >= -rho everywhere, per channel; 0 for convex functions. *Rigorous bound.*"""
        return 0.0

    @property
    def convex(self) -> bool:
        """Whether the concavity is 0."""
        rho = self.concavity
        return not bool((rho > 0).any()) if isinstance(rho, Tensor) else not rho > 0

    @property
    def proximal(self) -> bool:
        """Whether there are proximal maps of all steps and a conjugate, which primal-dual iterations rest on."""
        return self.convex and not self.whole

    @abstractmethod
    def second(self, t: Tensor) -> Tensor:
        """f''(t), elementwise."""
