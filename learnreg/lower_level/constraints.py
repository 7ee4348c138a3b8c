"""Constraints on the image: boxes, their projections, the reduced gradient, and the pixels they leave free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import given_tensor
from learnreg.linear.samples import expand, norm_samples, sum_samples
from learnreg.result import brief

__all__ = ["AllPixels", "Box", "FreePixels", "Nonnegative", "Unconstrained"]


@dataclass(frozen=True)
class FreePixels:
    """Pixels that are free to move, the others being held. mask: booleans that broadcast against images
    (batch, ...)."""

    mask: Tensor

    def restrict(self, image: Tensor) -> Tensor:
        """The image on the free pixels, 0 elsewhere."""
        return torch.where(self.mask, image, 0.0)

    def held_norm(self, image: Tensor) -> Tensor:
        """2-norm of the image on the other pixels, (batch,)."""
        return norm_samples(image - self.restrict(image))

    def within(self, mask: Tensor) -> FreePixels:
        """Those of them where the mask is true."""
        return FreePixels(mask & self.mask)

    def where(self, chosen: Tensor, old: FreePixels) -> FreePixels:
        """These for the samples chosen, (batch,), ``old`` for the others."""
        return FreePixels(torch.where(expand(chosen, self.mask), self.mask, old.mask))

    def select(self, index: Tensor | slice) -> FreePixels:
        """Those of some samples."""
        return FreePixels(self.mask[index])


@dataclass(frozen=True)
class AllPixels(FreePixels):
    """All of them are free, which costs no pass over an image."""

    mask: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.bool))

    def restrict(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image

    def held_norm(self, image: Tensor) -> Tensor:
        return image.new_zeros(image.shape[0])

    def within(self, mask: Tensor) -> FreePixels:
        return FreePixels(mask)

    def where(self, chosen: Tensor, old: FreePixels) -> FreePixels:
        return self

    def select(self, index: Tensor | slice) -> FreePixels:
        return self


_ALL_PIXELS = AllPixels()


class Box(nn.Module):
    """The constraint lower <= x <= upper, elementwise; either side may be infinite.

    Parameters
    ----------
    lower, upper: floats or tensors that broadcast against the image (without the batch axis).

    Raises
    ------
    ConfigError: NaN, or lower >= upper somewhere. ShapeError: shapes that do not fit.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 4, 4)), lr.regularizers.TotalVariation()
    >>> problem = lr.LowerLevelProblem(A, R, constraint=lr.Box(0.0, 1.0))
    >>> float(lr.solve(problem, torch.full((1, 1, 4, 4), 3.0)).x.max())
    1.0
    """

    lower: Tensor
    upper: Tensor

    constrains = True
    """Whether some images may be outside: what asks a solver that knows no constraints."""

    def __init__(self, lower: float | Tensor = -math.inf, upper: float | Tensor = math.inf) -> None:
        super().__init__()
        for name, value in (("lower", lower), ("upper", upper)):
            self.register_buffer(name, given_tensor(value, f"Box({name})").detach().double())
        try:
            low, high = torch.broadcast_tensors(self.lower, self.upper)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ShapeError(
                f"Box: lower {tuple(self.lower.shape)} and upper {tuple(self.upper.shape)} differ."
            ) from error
        if not bool((low < high).all()):  # NaN is not, either
            first = (~(low < high)).flatten().int().argmax()
            pair = f"lower={float(low.flatten()[first]):g}, upper={float(high.flatten()[first]):g}"
            raise ConfigError(f"Box({pair}): expected numbers, and lower < upper everywhere.")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={brief(getattr(self, name))}" for name in ("lower", "upper"))

    def check_domain(self, image_shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless the bounds broadcast against images of this shape."""
        for name in ("lower", "upper"):
            shape = tuple(getattr(self, name).shape)
            try:
                fits = torch.broadcast_shapes(shape, image_shape) == image_shape  # type: ignore[no-untyped-call]
            except RuntimeError:
                fits = False
            if not fits:
                raise ShapeError(f"Box({name}): shape {shape} does not broadcast against images {image_shape}.")

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

    def interior(self, x: Tensor) -> FreePixels:
        """The pixels strictly inside."""
        lower, upper = self.bounds_for(x)
        return FreePixels((x > lower) & (x < upper))

    def free(self, x: Tensor, grad: Tensor) -> FreePixels:
        """The pixels that their gradient does not hold at a bound."""
        lower, upper = self.bounds_for(x)
        return FreePixels(~(((x <= lower) & (grad > 0)) | ((x >= upper) & (grad < 0))))

    def excess(self, x: Tensor, target: Tensor, curvature: Tensor) -> Tensor:
        """½ <x - target, d (x - target)> for a diagonal curvature d > 0, minus its minimum over the box, (batch,),
        without cancellation: with z the feasible minimiser, ½ d (x - z)² + d (x - z)(z - target)."""
        z = self.prox(target)
        return sum_samples(curvature * (x - z) * (0.5 * (x - z) + (z - target)))


class Nonnegative(Box):
    """The constraint x >= 0.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 4, 4)), lr.regularizers.TotalVariation()
    >>> problem = lr.LowerLevelProblem(A, R, constraint=lr.Nonnegative())
    >>> float(lr.solve(problem, torch.full((1, 1, 4, 4), -1.0)).x.max())
    0.0
    """

    def __init__(self) -> None:
        super().__init__(lower=0.0)

    def extra_repr(self) -> str:
        return ""


class Unconstrained(Box):
    """Every image: a box without sides, which returns what it is given and costs no pass over an image."""

    constrains = False

    def value(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0])

    def prox(self, v: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """v itself."""
        return v

    def prox_jvp(self, v: Tensor, step: Tensor | float, direction: Tensor) -> Tensor:
        """The direction itself."""
        return direction

    def exactly(self, x: Tensor) -> Tensor:
        """x itself, in its dtype: its entries are as exact as they are."""
        return x

    def inside(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    def reduced_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient itself."""
        return grad

    def interior(self, x: Tensor) -> FreePixels:
        return _ALL_PIXELS

    def free(self, x: Tensor, grad: Tensor) -> FreePixels:
        return _ALL_PIXELS

    def excess(self, x: Tensor, target: Tensor, curvature: Tensor) -> Tensor:
        return 0.5 * sum_samples(curvature * (x - target).square_())
