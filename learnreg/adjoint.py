"""The adjoint equation at a point x: H(x) X = -∇ell(x), H = M + K^T f''(Kx) K, restricted to the free pixels of a
box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.problem import Instance

__all__ = ["AdjointEquation"]


@dataclass(frozen=True)
class AdjointEquation:
    """H X = rhs with H frozen at x. t: responses K x. curvature: f''(t), None for grouped potentials. free: (batch,
    ...) mask of pixels off the constraint's boundary, None without a constraint."""

    instance: Instance
    t: Tensor
    rhs: Tensor
    curvature: Tensor | None
    free: Tensor | None

    @classmethod
    def at(cls, instance: Instance, x: Tensor, t: Tensor, loss_gradient: Tensor) -> AdjointEquation:
        """The equation at x with responses t."""
        free = None
        if instance.box is not None:
            lower, upper = instance.box.bounds_for(x)
            free = (x > lower) & (x < upper)
        rhs = -loss_gradient
        curvature = None if instance.potential.grouped else instance.potential.second(t)
        return cls(instance, t, rhs if free is None else torch.where(free, rhs, 0.0), curvature, free)

    def bend(self, v: Tensor) -> Tensor:
        """f''(t) v."""
        return self.instance.potential.hess_vec(self.t, v) if self.curvature is None else self.curvature * v

    def project(self, p: Tensor) -> Tensor:
        """p on the free pixels, 0 elsewhere."""
        return p if self.free is None else torch.where(self.free, p, 0.0)

    def bend_(self, v: Tensor) -> Tensor:
        """f''(t) v in the memory of v."""
        return v.copy_(self.bend(v)) if self.curvature is None else v.mul_(self.curvature)

    def hessian(self, p: Tensor, memory: Tensor | None = None) -> Tensor:
        """H p on the free pixels, for p supported there; overwrites ``memory``, of the shape of t. Counts 2
        applications."""
        image = self.instance.quadratic(p) + self.instance.adjoint(self.bend_(self.instance.apply(p, memory)))
        return self.project(image)

    def select(self, index: Tensor) -> AdjointEquation:
        """The equation restricted to some samples."""
        return replace(
            self,
            instance=self.instance.select(index),
            t=self.t[index],
            rhs=self.rhs[index],
            curvature=None if self.curvature is None else self.curvature[index],
            free=None if self.free is None else self.free[index],
        )
