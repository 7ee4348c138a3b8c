"""The logarithm of a potential, s log(1 + f/s): what chains of reweighted problems lower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.potentials.base import OUTWARD, Number
from learnreg.potentials.proximal import Elementwise

__all__ = ["Logarithmic"]


class Logarithmic(Elementwise):
    """h(f(t)) with h(u) = s log(1 + u/s) for a convex f >= 0 of single responses, f'' <= L: then f'² <= 2 L f, so that
    h'' f'² >= -2 L (f/s)/(1 + f/s)² >= -L/2, and h(f)'' is between -L/2 and L.

    Parameters
    ----------
    potential: f. scale: s > 0, a number or one for each channel, (n, 1, 1).
    """

    number_names = ()

    def __init__(self, potential: Elementwise, scale: Tensor) -> None:
        self.potential, self.bend = potential, scale

    @property
    def weight(self) -> Number:  # type: ignore[override]
        return self.potential.weight

    def numbers(self) -> dict[str, Number]:
        """Those of f, and s."""
        return {**self.potential.numbers(), "bend": self.bend}

    def with_numbers(self, **numbers: Number) -> Self:
        bend = torch.as_tensor(numbers.pop("bend", self.bend))
        return type(self)(self.potential.with_numbers(**numbers), bend)

    def detached(self) -> Self:
        return type(self)(self.potential.detached(), self.bend.detach())

    def to(self, dtype: torch.dtype) -> Self:
        return type(self)(self.potential.to(dtype), self.bend.to(dtype))

    def scaled(self, factor: Tensor) -> Self:
        return type(self)(self.potential.scaled(factor), self.bend.double() * factor.double())

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """None: bounds of hypergradients do not know it."""
        return ()

    @property
    def scale(self) -> Number:
        return self.potential.scale

    @property
    def curvature_limit(self) -> Number:
        return self.potential.curvature_limit

    @property
    def concavity(self) -> Number:
        return 0.5 * self.potential.curvature_limit * (1.0 + 1e-12)

    # ---- the function ------------------------------------------------------------------------------------------------

    def _share(self, u: Tensor) -> Tensor:
        """h'(u)."""
        return 1.0 / (1.0 + u / self.bend)

    def density(self, t: Tensor) -> Tensor:
        return self.bend * torch.log1p(self.potential.density(t) / self.bend)

    def grad(self, t: Tensor) -> Tensor:
        return self._share(self.potential.density(t)) * self.potential.grad(t)

    def second(self, t: Tensor) -> Tensor:
        """h' f'' - h'² f'²/s."""
        share = self._share(self.potential.density(t))
        return share * self.potential.second(t) - (share * self.potential.grad(t)) ** 2 / self.bend

    def majorant(self, t: Tensor) -> Tensor:
        return self._share(self.potential.density(t)) * self.potential.majorant(t)

    def term_size(self, y: Tensor) -> Tensor:
        return self.potential.term_size(y)

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        for f, t_, bend, *rest in self.potential.blocks(t, self.bend, *others):
            yield type(self)(f, bend), t_, *rest

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        moved = f.grad(t) * (r - t)
        sizes = f.density(r) + f.density(t) + moved.abs()
        return (f.density(r) - f.density(t) - moved + 8.0 * torch.finfo(torch.float64).eps * sizes).to(dtype)

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        raise AssumptionError("the logarithm of a potential is weakly convex: nothing here takes its proximal maps.")

    # ---- intervals ---------------------------------------------------------------------------------------------------

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """From the ends of f, f' and f'' on the interval: f moves by at most |f'| r + ½ hi r² up, |f'| r down, and f'
        by hi r."""
        f = self.potential
        low, high = f.curvature_bounds(t, radius)
        u, slope = f.density(t), f.grad(t).abs()
        most, least = (slope + high * radius) * (1.0 + OUTWARD), (slope - high * radius) * (1.0 - OUTWARD)
        up = self._share((u + (slope + 0.5 * high * radius) * radius) * (1.0 + OUTWARD))
        down = self._share(((u - slope * radius) * (1.0 - OUTWARD)).clamp_min(0.0))
        lowest = up * low - (down * most) ** 2 / self.bend
        highest = down * high - (up * least.clamp_min(0.0)) ** 2 / self.bend
        margin = 8.0 * OUTWARD * (down * high + (down * most) ** 2 / self.bend)
        return lowest - margin, highest + margin

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.potential.kink_excluded(t, radius)
