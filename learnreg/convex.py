"""Convex functions: values, derivatives, proximal maps, conjugates through the pull-back, and curvature on intervals.

Functions are sums over all elements (or groups of elements) of a sample; the first axis is the batch. For a smooth f
the conjugate is never inverted: with the pull-back t, y = f'(t) is a dual point, f*(y) = <t, y> - f(t), (f*)'(y) = t
and (f*)''(y) = 1/f''(t), all without cancellation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, DataError, ShapeError

__all__ = [
    "Box",
    "ConvexFunction",
    "LeastSquares",
    "Nonnegative",
    "TransmissionLeastSquares",
    "WeightedLeastSquares",
    "dual_point",
    "inner_samples",
    "sum_samples",
]


def sum_samples(t: Tensor) -> Tensor:
    """Sum over everything but the batch: (batch, ...) to (batch,)."""
    return t.flatten(1).sum(1)


def inner_samples(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (batch,)."""
    return sum_samples(a * b)


class ConvexFunction(ABC):
    """A convex function of one tensor (batch, ...), with the constants that solvers and certificates need.

    Six abstract methods; conjugate and dual proximal map are derived. ``hess_vec`` and the others act per element
    unless a class says "group".
    """

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


class LeastSquares(nn.Module, ConvexFunction):
    """½‖p‖² of the residual p = A x - b: the data term of Gaussian noise."""

    def at(self, b: Tensor) -> LeastSquares:
        """The data term for these measurements: itself, where its weights do not depend on them."""
        return self

    def weights_for(self, p: Tensor) -> Tensor:
        """The weight of each measurement, broadcastable against (batch, *range_shape)."""
        return torch.ones((), dtype=p.dtype, device=p.device)

    def weigh(self, p: Tensor) -> Tensor:
        """w p; p itself without weights."""
        return p

    def value(self, t: Tensor) -> Tensor:
        return 0.5 * sum_samples(self.weights_for(t) * t * t)

    def grad(self, t: Tensor) -> Tensor:
        return self.weights_for(t) * t

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.weights_for(v) * v

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        return v / (1.0 + step * self.weights_for(v))

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        return v / (1.0 + step * self.weights_for(v))

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        curvature = self.weights_for(t).expand_as(t)
        return curvature, curvature

    def weight_range(self) -> tuple[float, float]:
        """Smallest and largest weight."""
        return 1.0, 1.0

    def project_(self) -> None:
        """Project learnable weights onto >= 0; nothing to do without."""


class WeightedLeastSquares(LeastSquares):
    """½ sum_i w_i p_i² of the residual p = A x - b.

    Parameters
    ----------
    weights: tensor that broadcasts against the range of A (without the batch axis), all entries finite and >= 0. An
        nn.Parameter is learnable and appears in hypergradients as ``data_term.weights``.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise ConfigError("WeightedLeastSquares(weights): expected finite weights >= 0; check the noise variances.")
        if isinstance(weights, nn.Parameter):
            self.weights = weights
        else:
            self.register_buffer("weights", weights)

    def weights_for(self, p: Tensor) -> Tensor:
        return self.weights.to(p.dtype)

    def weigh(self, p: Tensor) -> Tensor:
        return self.weights_for(p) * p

    def weight_range(self) -> tuple[float, float]:
        return float(self.weights.detach().min()), float(self.weights.detach().max())

    @torch.no_grad()
    def project_(self) -> None:
        if isinstance(self.weights, nn.Parameter):
            self.weights.clamp_(min=0.0)


class TransmissionLeastSquares(LeastSquares):
    """½ sum_i w_i(b) (A x - b)_i² for line integrals b of counted photons, each measurement with weights of its own.

    N_i = photons exp(-attenuation b_i) photons were counted; N_i has the variance N_i + electronic², and b_i to first
    order one proportional to (N_i + electronic²)/N_i². w_i is the variance at the line integral ``reference`` over that
    of ray i: regularization weights mean what they mean for rays of that length. Without electronic noise
    w_i = exp(-attenuation (b_i - reference)).

    Parameters
    ----------
    photons: count of a ray that meets nothing. attenuation: line integral without dimension per unit of A x.
    electronic: standard deviation of the electronics' noise in photons. reference: in units of A x.

    Source: Sauer and Bouman, IEEE Trans. Signal Process. 41 (1993); Thibault, Bouman, Sauer and Hsieh, Proc. SPIE 6065
    (2006), for the electronic noise.
    """

    def __init__(
        self, photons: float, attenuation: float = 1.0, electronic: float = 0.0, reference: float = 0.0
    ) -> None:
        super().__init__()
        for name, value, fits in (
            ("photons", photons, photons > 0),
            ("attenuation", attenuation, attenuation > 0),
            ("electronic", electronic, electronic >= 0),
            ("reference", reference, True),
        ):
            if not (fits and math.isfinite(value)):
                raise ConfigError(f"TransmissionLeastSquares({name}={value!r}): out of range, or not finite.")
        self.photons, self.attenuation = float(photons), float(attenuation)
        self.electronic, self.reference = float(electronic), float(reference)

    def inverse_variance(self, b: Tensor) -> Tensor:
        """That of -log N for each ray, in the shape of b, differentiable; *estimate*: measured counts stand for
        expected ones."""
        counts = self.photons * torch.exp(-self.attenuation * b)
        return counts / (1.0 + self.electronic**2 / counts)

    def at(self, b: Tensor) -> LeastSquares:
        """``WeightedLeastSquares`` with weights (batch, *range_shape). DataError where counts overflow."""
        exact = b.double()
        weights = (self.inverse_variance(exact) / self.inverse_variance(exact.new_tensor(self.reference))).to(b.dtype)
        if b.device.type != "meta" and not bool(torch.isfinite(weights).all()):
            raise DataError(
                f"a ray has the line integral {float(b.min()):.6g}, for which no photons can be counted.",
                hint="Check the sign and the unit of the measurement, and `attenuation`.",
            )
        return _PerMeasurement(weights)

    def weights_for(self, p: Tensor) -> Tensor:
        raise ConfigError("TransmissionLeastSquares: the weights depend on the measurement b; ask at(b).")

    def weight_range(self) -> tuple[float, float]:
        """What is known without a measurement."""
        return 0.0, math.inf


class _PerMeasurement(LeastSquares):
    """Weights (batch, *range_shape)."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self._weights = weights

    def weights_for(self, p: Tensor) -> Tensor:
        return self._weights.to(p.dtype)

    def weigh(self, p: Tensor) -> Tensor:
        return self.weights_for(p) * p

    def weight_range(self) -> tuple[float, float]:
        return float(self._weights.detach().min()), float(self._weights.detach().max())


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
