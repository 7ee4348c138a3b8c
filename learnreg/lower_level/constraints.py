"""Constraints on the image: boxes, their projections, and the reduced gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError

__all__ = ["Box", "Nonnegative"]


class Box(nn.Module):
    """The constraint lower <= x <= upper, elementwise; either side may be infinite.

    Parameters
    ----------
    lower, upper: floats or tensors that broadcast against the image (without the batch axis).
    """

    lower: Tensor
    upper: Tensor

    def __init__(self, lower: float | Tensor = -math.inf, upper: float | Tensor = math.inf) -> None:
        super().__init__()
        self.register_buffer("lower", torch.as_tensor(lower, dtype=torch.float64))
        self.register_buffer("upper", torch.as_tensor(upper, dtype=torch.float64))
        try:
            crossed = bool((self.lower >= self.upper).any())
        except RuntimeError as error:
            raise ShapeError(
                f"Box: lower {tuple(self.lower.shape)} and upper {tuple(self.upper.shape)} differ."
            ) from error
        if crossed:
            raise ConfigError(f"Box(lower={lower!r}, upper={upper!r}): expected lower < upper everywhere.")

    def value(self, x: Tensor) -> Tensor:
        """0 inside, +inf outside, shape (batch,)."""
        lower, upper = self.bounds_for(x)
        outside = ((x < lower) | (x > upper)).flatten(1).any(1)
        zero = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        return torch.where(outside, torch.full_like(zero, math.inf), zero)

    def prox(self, v: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """Projection onto the box, whatever the step."""
        lower, upper = self.bounds_for(v)
        return torch.minimum(torch.maximum(v, lower), upper)

    def prox_jvp(self, v: Tensor, step: Tensor | float, direction: Tensor) -> Tensor:
        """Derivative of the projection at v (before projecting), applied to ``direction``: zero on active entries."""
        lower, upper = self.bounds_for(v)
        return torch.where((v > lower) & (v < upper), direction, torch.zeros_like(direction))

    def exactly(self, x: Tensor) -> Tensor:
        """x in float64 and inside the box, entries at a bound as rounded to the dtype of x moved to the bound itself: a
        bound like 0.1 is no float32 number."""
        exact, rounding = self.prox(x.double()), 2.0 * torch.finfo(x.dtype).eps
        if x.dtype == torch.float64:
            return exact
        for bound in (self.lower, self.upper):
            at_bound = (exact - bound).abs() <= rounding * bound.abs()
            exact = torch.where(at_bound & torch.isfinite(bound), bound, exact)
        return exact

    def inside(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in a lower precision, still inside the box when evaluated in float64."""
        result = x.to(dtype)
        for bound, towards in ((self.lower, math.inf), (self.upper, -math.inf)):
            beyond = (result.double() < bound) if towards > 0 else (result.double() > bound)
            result = torch.where(beyond, torch.nextafter(result, torch.full_like(result, towards)), result)
        return result

    def bounds_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds in the dtype and on the device of x."""
        return self.lower.to(x), self.upper.to(x)

    def reduced_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """The smallest element of grad + normal cone at a feasible x: g inside, min(g, 0) at a lower bound, max(g, 0)
        at an upper one. Its norm over the modulus bounds the distance to the solution."""
        lower, upper = self.bounds_for(x)
        grad = torch.where(x <= lower, grad.clamp(max=0.0), grad)
        return torch.where(x >= upper, grad.clamp(min=0.0), grad)


class Nonnegative(Box):
    """The constraint x >= 0."""

    def __init__(self) -> None:
        super().__init__(lower=0.0)
