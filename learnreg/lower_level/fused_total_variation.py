"""Smoothed total variation on data with a scalar diagonal: whole iterations and judgements by compiled kernels.

``FusedTotalVariation.of(instance, ...)`` is None where the kernels do not fit, and the caller goes on in plain torch,
the reference. In torch every operation is a pass over memory; a kernel makes one pass per iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.convolutions.gradient import Gradient
from learnreg.kernels.loader import as_array, kernels_for
from learnreg.lower_level.instance import Instance
from learnreg.potentials.isotropic import IsotropicPseudoHuber

__all__ = ["FusedTotalVariation"]


@dataclass(frozen=True)
class FusedTotalVariation:
    """The kernels and an instance they fit: E(x) = d/2 |x|² - <q, x> + l sum_i (sqrt(|Dx|_i² + nu²) - nu) with one
    number d, and no constraint. Every tensor given to a method was given to ``of``, too."""

    kernels: ModuleType
    instance: Instance
    diagonal: Tensor
    weight: Tensor
    smoothing: float

    @classmethod
    def of(cls, instance: Instance, *tensors: Tensor) -> Self | None:
        """The fused form of an instance for calls with these tensors, or None."""
        potential, diagonal = instance.potential, instance.quadratic.number()
        if type(instance.analysis) is not Gradient or type(potential) is not IsotropicPseudoHuber:
            return None
        shape = instance.analysis.domain_shape
        if instance.box.constrains or diagonal is None or len(shape) != 3 or shape[0] > 1:
            return None
        weight, smoothing = potential.weight, potential.smoothing
        if not isinstance(weight, Tensor) or weight.dim() > 0 or not isinstance(smoothing, float):
            return None
        kernels = kernels_for("total_variation", instance.q, diagonal, weight, *tensors)
        return None if kernels is None else cls(kernels, instance, diagonal, weight, smoothing)

    def steps(
        self,
        x: Tensor,
        x_hat: Tensor,
        y: Tensor,
        t: Tensor,
        tau: Tensor,
        norm: float,
        relaxation: float,
        newton_steps: int,
        count: int,
    ) -> None:
        """Over-relaxed PDHG iterations with sigma = 1/(tau norm²), overwriting the first four; each counts 2."""
        self.instance.counter.applications += 2 * count
        images = _arrays(x, x_hat, y, t, self.instance.q, self.diagonal, tau, self.weight)
        self.kernels.steps(*images, self.smoothing, norm, relaxation, newton_steps, count)

    def adjoint_steps(
        self,
        X: Tensor,
        X_hat: Tensor,
        Y: Tensor,
        Y_hat: Tensor,
        t: Tensor,
        rhs: Tensor,
        tau: Tensor,
        steps: tuple[float, float, int],
    ) -> None:
        """Over-relaxed piggyback iterations with the linearisation at t, overwriting the first four; each counts 2.
        steps: ‖D‖ of sigma = 1/(tau ‖D‖²), the relaxation and how many."""
        norm, relaxation, count = steps
        self.instance.counter.applications += 2 * count
        images = _arrays(X, X_hat, Y, Y_hat, t, rhs, self.diagonal, tau, self.weight)
        self.kernels.adjoint_steps(*images, self.smoothing, norm, relaxation, count)

    def movement(self, x: Tensor, x_hat: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """‖x - x_hat‖ and ‖y - f'(t)‖ per sample, (batch,) each."""
        sums = torch.empty(x.shape[0], 2, dtype=torch.float64, device=x.device)
        self.kernels.movement(*_arrays(x, x_hat, y, t, self.weight), self.smoothing, as_array(sums))
        primal, dual = sums.sqrt_().to(x.dtype).unbind(1)
        return primal, dual

    def dual_answer(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x = (q - K^T f'(t)) / d, and the sums of ``kernels.total_variation.dual_answer``, (6, batch), float64;
        counts 2."""
        self.instance.counter.applications += 2
        x = torch.empty_like(self.instance.q)
        sums = torch.empty(t.shape[0], 6, dtype=torch.float64, device=t.device)
        arrays = _arrays(t, self.instance.q, self.diagonal, self.weight)
        self.kernels.dual_answer(*arrays, self.smoothing, as_array(x), as_array(sums))
        return x, sums.T

    def judge(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """y = f'(K x), and the sums of ``kernels.total_variation.judge``, (8, batch); counts 3."""
        self.instance.counter.applications += 3
        y, sums = torch.empty_like(t), torch.empty(t.shape[0], 8, dtype=torch.float64, device=t.device)
        arrays = _arrays(x, t, self.instance.q, self.diagonal, self.weight)
        self.kernels.judge(*arrays, self.smoothing, as_array(y), as_array(sums))
        return y, sums.T


def _arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(as_array(t) for t in tensors)
