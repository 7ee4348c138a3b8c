"""How far a function is from being convex, and what that does to the gradients of its parameters."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from learnreg.convex import ConvexFunction

__all__ = ["WeaklyConvexFunction"]


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

    def weight_gradient(self, t: Tensor) -> Tensor:
        """l ∂f'(t)/∂l: how f' moves with the logarithm of a weight l; f' itself, unless a part of f has no weight."""
        return self.grad(t)

    @property
    def weight_excess(self) -> Tensor | float:
        """p >= 0 with |ds/dt| <= f'' + rho + p for s = l ∂f'/∂l. *Rigorous bound.*"""
        return self.concavity
