"""The adjoint equation at a point x: H(x) X = -∇ell(x), H = M + K^T f''(Kx) K, restricted to the free pixels of a
box."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.linear.samples import sum_samples
from learnreg.lower_level.constraints import FreePixels
from learnreg.lower_level.instance import Counter, Instance

__all__ = ["AdjointEquation"]


@dataclass(frozen=True)
class AdjointEquation:
    """H X = rhs with H frozen at x. at_response: ``Potential.linearised`` of K x. free: the pixels off the constraint's
    boundary."""

    instance: Instance
    at_response: Tensor
    rhs: Tensor
    free: FreePixels

    @classmethod
    def at(cls, instance: Instance, x: Tensor, t: Tensor, loss_gradient: Tensor) -> AdjointEquation:
        """The equation at x with responses t."""
        free = instance.box.interior(x)
        return cls(instance, instance.potential.linearised(t), free.restrict(-loss_gradient), free)

    @property
    def counter(self) -> Counter:
        """Of operator applications."""
        return self.instance.counter

    def curvature_diagonal(self) -> Tensor:
        """The diagonal of f''(Kx), in the shape of Kx."""
        return self.instance.potential.bent_diagonal(self.at_response)

    def bend(self, v: Tensor) -> Tensor:
        """f''(t) v."""
        return self.instance.potential.bent(self.at_response, v)

    def project(self, p: Tensor) -> Tensor:
        """p on the free pixels, 0 elsewhere."""
        return self.free.restrict(p)

    def bend_(self, v: Tensor) -> Tensor:
        """f''(t) v in the memory of v."""
        return self.instance.potential.bent_(self.at_response, v)

    def hessian(self, p: Tensor, memory: Tensor | None = None) -> Tensor:
        """H p on the free pixels, for p supported there; overwrites ``memory``, of the shape of t. Counts 2
        applications."""
        image = self.instance.quadratic(p) + self.instance.adjoint(self.bend_(self.instance.apply(p, memory)))
        return self.project(image)

    def residual(self, X: Tensor, memory: Tensor | None = None) -> Tensor:
        """rhs - H X, as :meth:`hessian`; at 0, where solvers often start, without an application."""
        return self.rhs - self.hessian(X, memory) if bool(X.any()) else self.rhs

    def of_latent(self, X: Tensor) -> AdjointEquation:
        """The equation of Z^ alone, for the adjoint state (X, Z^) whose image part is X: that of the adjoint equation
        of the energy reduced to images."""
        own = torch.zeros_like(self.rhs, dtype=torch.bool)
        own[:, X.shape[1] :] = True
        free, whole = self.free.within(own), self.instance.latent.lift(X)
        return replace(self, rhs=free.restrict(-self.hessian(whole)), free=free)

    def select(self, index: Tensor) -> AdjointEquation:
        """The equation restricted to some samples."""
        return replace(
            self,
            instance=self.instance.select(index),
            at_response=self.at_response[index],
            rhs=self.rhs[index],
            free=self.free.select(index),
        )

    def residual_norm(self, X: Tensor) -> Tensor:
        """‖rhs - H X‖ per sample, (batch,), part by part to save memory; counts 2 applications."""
        norms = []
        for instance, index in self.instance.parts():
            own = (self.at_response[index], self.rhs[index], self.free.select(index))
            part = AdjointEquation(instance, *own)
            norms.append(sum_samples((part.rhs - part.hessian(X[index])) ** 2).sqrt())
        return torch.cat(norms)
