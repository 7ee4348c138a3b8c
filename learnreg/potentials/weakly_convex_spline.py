"""Learned potentials that are convex up to redescending parts of bounded depth.

With u = t/v in units of the knots' distance v and the even hat functions H_j at the knots ±j,

    f''(t) = (l/v) sum_j c_j H_j(u) + sum_{j >= 1} d_j (H_0 + ½ H_1 - H_j)(u),   c_j, d_j >= 0.

What a concave part takes from f' around the knot j, it has given it before the knot 2: f' >= 0 for t >= 0, whatever the
depths, and its limit is that of the convex part. f'' is a linear spline of the coefficients c + (v/l) g, with g the
coefficients of the sum of concave parts, and at least -max_j d_j: the depths are curvatures, not in units of l/v.

Source: learned weakly convex potentials of Goujon, Neumayer and Unser, SIAM J. Imaging Sci. 17 (2024), where f' is a
linear spline with slopes of at least -1; parts that give back what they take are new here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.kernels.numbers import number_like
from learnreg.linear.parameter_groups import Density, ParameterGroup, shape_of
from learnreg.potentials.base import OUTWARD
from learnreg.potentials.spline import Spline, channel_shape, initial_coefficients

__all__ = ["WeaklyConvexSpline"]


class WeaklyConvexSpline(Spline):
    """A spline potential minus concave parts, f'' >= -concavity.

    Parameters
    ----------
    smoothing: v > 0, the distance of the knots.
    weight: l > 0, of the convex part.
    coefficients: c, (1, m), or (n, m) for n channels; all >= 0.
    depths: d_1 ... d_{m-1}, (1, m - 1) or (n, m - 1); all >= 0.
    """

    def __init__(
        self,
        smoothing: float | Tensor,
        weight: float | Tensor = 1.0,
        coefficients: Tensor | None = None,
        depths: Tensor | None = None,
    ) -> None:
        c = initial_coefficients(21) if coefficients is None else coefficients
        self.depths = c.new_full((1, c.shape[1] - 1), 0.05) if depths is None else depths
        self._convex = c
        ratio = number_like(smoothing / weight, c).reshape(-1, 1)
        super().__init__(smoothing, weight, c + ratio * _concave_coefficients(self.depths))

    @property
    def convex_coefficients(self) -> Tensor:
        return self._convex

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        return type(self)(smoothing, weight, self._convex, self.depths)

    def with_coefficients(self, coefficients: Tensor) -> Self:
        """The same potential with other c."""
        return type(self)(self.smoothing, self.weight, coefficients, self.depths)

    def scaled(self, factor: Tensor) -> Self:
        weight = torch.as_tensor(self.weight, dtype=torch.float64, device=factor.device)
        return type(self)(self.smoothing, weight * factor.double(), self._convex, self.depths * factor.double())

    def detached(self) -> Self:
        return self._mapped(lambda p: p.detach())

    def to(self, dtype: torch.dtype) -> Self:
        """The coefficients of f'' are formed before they are rounded."""
        return self._mapped(lambda p: p.to(dtype))

    def _mapped(self, change: Any) -> Self:
        smoothing, weight = (change(p) if isinstance(p, Tensor) else p for p in (self.smoothing, self.weight))
        result = type(self)(smoothing, weight, change(self._convex), change(self.depths))
        result.coefficients = change(self.coefficients)
        return result

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        yield from Spline(self.smoothing, self.weight, self.coefficients).blocks(t, *others)

    # ---- constants and intervals -------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Tensor | float:
        return self.weight / self.smoothing * self._per_channel(self.coefficients.abs().amax(1))

    @property
    def concavity(self) -> Tensor | float:
        lowest = self._per_channel(self.coefficients.neg().amax(1).clamp_min(0.0))
        return self.weight / self.smoothing * lowest * (1.0 + 1e-12)

    @property
    def depth(self) -> Tensor:
        """The largest d_j, per channel; at least the concavity."""
        return self._per_channel(self.depths.amax(1)) * (1.0 + 1e-12)

    @property
    def weight_excess(self) -> Tensor | float:
        """p >= 0 with |ds/dt| <= f'' + rho + p for s = l ∂f'/∂l: the convex part has the curvature f'' - g'' <= f'' +
        max_j d_j. *Rigorous bound.*"""
        return (self.depth - self.concavity).clamp_min(0.0)

    @property
    def depth_excess(self) -> Tensor:
        """p with sum_j |ds_j/dt| <= f'' + rho + p for s_j = d_j ∂f'/∂d_j: what the concave parts give is at most f'' +
        max_j d_j, and what they take at most max_j d_j."""
        return self.weight_excess + self.depth

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = super().curvature_bounds(t, radius)
        margin = 4.0 * OUTWARD * self.curvature_limit  # coefficients may cancel between knots
        return low - margin, high + margin

    def smoothing_gradient(self, t: Tensor) -> Tensor:
        """-t f'' + g', g the concave parts, for f(t) = l v h(t/v) + v² k(t/v), g = v² k."""
        return self.grad(t) - self.weight_gradient(t) - self.second(t) * t

    def smoothing_slope(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """d/dt (-t f'' + g') = -(f'' - g'') - t f'''."""
        _, high = self.convex_part().curvature_bounds(t, radius)
        return (high + self.third_bound(t, radius) * (t.abs() + radius)) * (1.0 + OUTWARD)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        """Infinite where f'' may fall to -concavity."""
        low, slope = self.curvature_bounds(t, radius)[0] + self.concavity, self.smoothing_slope(t, radius)
        return torch.where(slope == 0, 0.0, torch.where(low > 0, slope / low * (1.0 + OUTWARD), torch.inf))

    # ---- the parts ---------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """With the logarithms of the depths."""
        depth = Density(
            "log_depth",
            channel_shape(self.depths),
            self.depth_gradient_size,
            excess=self.depth_excess,
            several=self.depth_gradients,
        )
        return (*super().parameter_groups(), depth)

    def weight_group(self) -> Density:
        return Density("log_weight", shape_of(self.weight), self.weight_gradient, excess=self.weight_excess)

    def convex_part(self) -> Spline:
        """l v h(t/v)."""
        return Spline(self.smoothing, self.weight, self._convex)

    def weight_gradient(self, t: Tensor) -> Tensor:
        """l ∂f'(t)/∂l: that of the convex part."""
        return self.convex_part().grad(t)

    def depth_gradients(self, t: Tensor) -> Tensor:
        """d_j ∂f'(t)/∂d_j, how f' moves with the logarithm of each depth: (m - 1, *t.shape)."""
        start, first, *later = self.hat_slopes(t)
        given, scale = start + 0.5 * first, self.smoothing * torch.sign(t)
        shape = (-1, *(1,) * (t.dim() - 2)) if self.depths.shape[0] > 1 else ()
        columns = (d.reshape(shape) for d in self.depths.to(t).unbind(1))
        return torch.stack([d * (given - taken) * scale for d, taken in zip(columns, (first, *later), strict=True)])

    def depth_gradient_size(self, t: Tensor) -> Tensor:
        """Bound of the Euclidean norm of ``depth_gradients`` at each response, min(|t|, v) ‖(d_j)_j‖: each is at most
        d_j v, and its slope in t at most d_j. *Rigorous bound.*"""
        size = torch.minimum(t.abs(), number_like(self.smoothing, t))
        return size * self._per_channel(self.depths.norm(dim=1)).to(t) * (1.0 + 1e-12)


def _concave_coefficients(depths: Tensor) -> Tensor:
    """g_0 ... g_{m-1} of the sum of concave parts, (channels, m)."""
    given = depths.sum(1, keepdim=True)
    taken = torch.nn.functional.pad(depths, (1, 0))
    return torch.nn.functional.pad(torch.cat([given, 0.5 * given], 1), (0, depths.shape[1] - 1)) - taken
