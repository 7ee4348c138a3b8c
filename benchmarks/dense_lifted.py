"""The truth about lifted networks: image and features as one dense problem under bounds, in their own units."""

from __future__ import annotations

import math

import torch
from dense_truth import Dense
from random_problems import DOUBLE
from torch import Tensor

import learnreg as lr

__all__ = ["DenseLifted"]


class DenseLifted(Dense):
    """E(x, z) = ½<x, Mx> - <q, x> + <c, z_L> + ½ delta_z ‖z‖² + ‖(K (x, z) + b)_+‖² / (2 delta_y) over z >= 0."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        super().__init__(problem, b)
        terms = problem.saddle_terms(DOUBLE)
        latent = terms.latent
        assert latent is not None
        self.pixels, count = self.q.shape[1], latent.channels * math.prod(self.range_shape[1:])
        self.shift = (torch.ones(self.range_shape, dtype=DOUBLE) * terms.potential.shift).detach()  # type: ignore[attr-defined]
        self.modulus, self.mu = latent.modulus, problem.strong_convexity
        feature_block = latent.modulus * torch.eye(count, dtype=DOUBLE)
        self.M = torch.stack([torch.block_diag(M, feature_block) for M in self.M])
        cost = (torch.ones(self.range_shape, dtype=DOUBLE) * latent.cost).detach().flatten()
        self.q = torch.cat([self.q, -cost.expand(self.q.shape[0], -1)], 1)
        bounds = (self.lower, self.upper)
        self.lower, self.upper = (  # type: ignore[assignment]
            torch.cat([torch.full((n,), bound, dtype=DOUBLE) for n, bound in ((self.pixels, own), (count, other))])
            for own, other in zip(bounds, (0.0, math.inf), strict=True)
        )

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        above = (t + self.shift).clamp_min(0.0)
        return above**2 / (2 * self.smoothing), above / self.smoothing, (above > 0) / self.smoothing

    def image(self, x: Tensor) -> Tensor:
        return x[:, : self.pixels]

    def size(self, r: Tensor) -> Tensor:
        """Features weigh 1/sqrt(delta_z) where the image weighs 1/sqrt(mu)."""
        features = r[:, self.pixels :].norm(dim=1) * math.sqrt(self.mu / self.modulus)
        return (self.image(r).norm(dim=1) ** 2 + features**2).sqrt()

    def loss_gradient(self, x: Tensor, loss: lr.UpperLoss) -> Tensor:
        slope = super().loss_gradient(self.image(x), loss)
        return torch.cat([slope, torch.zeros_like(x[:, self.pixels :])], 1)
