"""The squared hinge, the potential of lifted ReLU networks: zero below a shift, a parabola above."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.linear.parameter_groups import OwnBound, ParameterBound, ParameterGroup, ResponseErrors
from learnreg.linear.samples import sum_samples
from learnreg.potentials.base import OUTWARD
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["SquaredHinge"]


class SquaredHinge(SmoothedElementwise):
    """l (t + shift)_+² / (2 v): once differentiable, f'' jumps at t = -shift from 0 to l/v. Neither even nor bounded in
    slope, unlike other potentials.

    Parameters
    ----------
    smoothing, weight: v and l, as in ``Potential``.
    shift: number, or tensor that broadcasts against responses without their batch axis.
    """

    even = False

    def __init__(self, smoothing: float | Tensor, weight: float | Tensor = 1.0, shift: float | Tensor = 0.0) -> None:
        super().__init__(smoothing, weight)
        self.shift = shift

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        return type(self)(smoothing, weight, self.shift)

    def detached(self) -> Self:
        frozen = super().detached()
        frozen.shift = self.shift.detach() if isinstance(self.shift, Tensor) else self.shift
        return frozen

    def to(self, dtype: torch.dtype) -> Self:
        cast = super().to(dtype)
        cast.shift = self.shift.to(dtype) if isinstance(self.shift, Tensor) else self.shift
        return cast

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        """One block: the operations are few."""
        yield self, t, *others

    def density(self, t: Tensor) -> Tensor:
        above = (t + self.shift).clamp_min(0.0)
        return 0.5 * self.curvature_limit * above * above

    def grad(self, t: Tensor) -> Tensor:
        return self.curvature_limit * (t + self.shift).clamp_min(0.0)

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        return (
            torch.add(t, torch.as_tensor(self.shift, dtype=t.dtype), out=out).clamp_min_(0.0).mul_(self.curvature_limit)
        )

    def second(self, t: Tensor) -> Tensor:
        return (t + self.shift > 0).to(t.dtype) * self.curvature_limit

    def majorant(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) + self.curvature_limit

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        above = (v + self.shift).clamp_min(0.0)
        return v - above * (step * self.curvature_limit / (1.0 + step * self.curvature_limit))

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """On either side of the kink without cancellation: ½ (r - t)² above it, ½ t² + t |r| for t above and r below,
        ½ r² for t below (distances from the kink, times l/v)."""
        r, t = r + self.shift, t + self.shift
        below = 0.5 * r.clamp_min(0.0) ** 2
        above = torch.where(r > 0, 0.5 * (r - t) ** 2, 0.5 * t * t - t * r)
        return self.curvature_limit * torch.where(t > 0, above, below)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        limit, (surely, maybe) = self.curvature_limit, self._above(t, radius)
        return surely.to(t.dtype) * limit * (1.0 - OUTWARD), maybe.to(t.dtype) * limit * (1.0 + OUTWARD)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        surely, maybe = self._above(t, radius)
        return (surely != maybe).to(t.dtype) * self.curvature_limit

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        surely, maybe = self._above(t, radius)
        return (surely == maybe).flatten(1).all(1)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """0 on either side of the kink, and nothing across it."""
        surely, maybe = self._above(t, radius)
        return torch.where(surely == maybe, 0.0, math.inf).to(t.dtype)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return 1.0

    def smoothing_gradient(self, t: Tensor) -> Tensor:
        return -self.grad(t)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """With the shift as the group "potential"."""
        return (*super().parameter_groups(), OwnBound("potential", self.parameter_bound))

    def parameter_bound(self, t: Tensor, V: Tensor, y: Tensor, Y: Tensor, errors: ResponseErrors) -> ParameterBound:
        """Of the shift, gradient f''(t) V summed over the responses that share an entry: its error is at most the root
        of their number times ‖f''(t^) (V - V^)‖ + ‖(f''(t) - f''(t^)) V‖."""
        shared = math.prod(t.shape[1:]) / torch.as_tensor(self.shift).numel()
        root, none = math.sqrt(shared), torch.zeros_like(errors.Y)
        return ParameterBound(root * errors.Y, none, none + root, root * sum_samples(Y * Y).sqrt())

    def _above(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Whether all, or some, of the interval lies above the kink; rounded outwards relative to the sizes of t and
        the shift."""
        from_kink = t + self.shift
        reach = radius + OUTWARD * (t.abs() + torch.as_tensor(self.shift).abs().to(t) + radius)
        return from_kink > reach, from_kink > -reach
