"""The truth about regularizers with latent variables: image and latent variables as one dense problem, in their own
units, lifted networks under bounds."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from truth.draw import DOUBLE
from truth.matrices import Dense

import learnreg as lr

__all__ = ["DenseJoint"]


class DenseJoint(Dense):
    """E(x, z) = ½<x, Mx> - <q, x> + <c, z> + ½ delta ‖z‖² + f(K (x, z)), z free or >= 0; for lifted networks f(t) =
    ‖(t + b)_+‖² / (2 delta_y)."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        super().__init__(problem, b)
        terms = problem.saddle_terms(DOUBLE)
        latent = terms.latent
        assert latent.channels
        shape = (latent.channels, *problem.operator.domain_shape[1:])
        self.pixels, count = self.q.shape[1], math.prod(shape)
        if self.kind == "SquaredHinge":
            self.shift = (torch.ones(self.range_shape, dtype=DOUBLE) * terms.potential.shift).detach()  # type: ignore[attr-defined]
        self.modulus, self.mu = latent.modulus, problem.strong_convexity
        own_block = latent.modulus * torch.eye(count, dtype=DOUBLE)
        self.M = torch.stack([torch.block_diag(M, own_block) for M in self.M])
        cost = (torch.ones(shape, dtype=DOUBLE) * latent.cost).detach().flatten()
        self.q = torch.cat([self.q, -cost.expand(self.q.shape[0], -1)], 1)
        if not latent.nonnegative and self.lower == -math.inf and self.upper == math.inf:
            return
        bounds, lowest = (self.lower, self.upper), 0.0 if latent.nonnegative else -math.inf
        self.lower, self.upper = (  # type: ignore[assignment]
            torch.cat([torch.full((n,), bound, dtype=DOUBLE) for n, bound in ((self.pixels, own), (count, other))])
            for own, other in zip(bounds, (lowest, math.inf), strict=True)
        )

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind != "SquaredHinge":
            return super().derivatives(t)
        above = (t + self.shift).clamp_min(0.0)
        return above**2 / (2 * self.smoothing), above / self.smoothing, (above > 0) / self.smoothing

    def image(self, x: Tensor) -> Tensor:
        return x[:, : self.pixels]

    def size(self, r: Tensor) -> Tensor:
        """Latent variables weigh 1/sqrt(delta) where the image weighs 1/sqrt(mu)."""
        others = r[:, self.pixels :].norm(dim=1) * math.sqrt(self.mu / self.modulus)
        return (self.image(r).norm(dim=1) ** 2 + others**2).sqrt()

    def loss_gradient(self, x: Tensor, loss: lr.UpperLoss) -> Tensor:
        slope = super().loss_gradient(self.image(x), loss)
        return torch.cat([slope, torch.zeros_like(x[:, self.pixels :])], 1)
