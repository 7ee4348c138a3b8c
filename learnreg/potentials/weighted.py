"""Potentials times a weight of each place and sample: what the problems of a reweighted chain minimise.

f_w(t) = sum_i w_i f_i(t_i) over places i, for weights w_i in [0, 1] that are given: f_w'' lies between w_i lo and w_i
hi where f_i'' lies between lo and hi, and so do all other bounds, which are linear in f. Where weights are known within
a spread alone, values and derivatives are those of w, and bounds hold for every weight within it, in [0, 1]. With f_i''
>= -rho_i, f_w'' >= -rho_i, too: what the whole makes up for without weights, it does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.linear.examination import is_own_class
from learnreg.linear.parameter_groups import Density, ParameterGroup
from learnreg.potentials.base import OUTWARD, Number, Potential
from learnreg.potentials.curvature import CurvatureInterval
from learnreg.potentials.proximal import Elementwise, Grouped, ProximalPotential

__all__ = ["WeightedElementwise", "WeightedGroups", "reweightable", "weighted"]


class _Weighted(ProximalPotential):
    """A potential times ``places`` (batch, n, ...), one number in [0, 1] for each place of each sample.

    Parameters
    ----------
    potential: f. places: w, which broadcasts against the densities of f. spread: how far from w, at each place, the
        weights in [0, 1] may be that bounds are about; 0 where none.
    """

    number_names = ()

    def __init__(self, potential: ProximalPotential, places: Tensor, spread: Tensor | float = 0.0) -> None:
        self.potential, self.places, self.spread = potential, places, spread
        self.quadratic = potential.quadratic
        self.whole_planes = potential.whole_planes

    # ---- its numbers -------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Number:  # type: ignore[override]
        """That of f."""
        return self.potential.weight

    @property
    def gradient_limit(self) -> float:  # type: ignore[override]
        limit = self.potential.gradient_limit
        return limit * float(self.places.detach().max()) if limit else 0.0

    def numbers(self) -> dict[str, Number]:
        """The weights of places, and the numbers of f."""
        return {**self.potential.numbers(), "places": self.places}

    def _of(
        self, potential: ProximalPotential, places: Tensor | None = None, spread: Tensor | float | None = None
    ) -> Self:
        chosen = self.spread if spread is None else spread
        return type(self)(potential, self.places if places is None else places, chosen)

    @property
    def _least(self) -> Tensor:
        """The smallest weights."""
        return (self.places - self.spread).clamp_min(0.0)

    @property
    def _most(self) -> Tensor:
        """The largest weights."""
        return torch.maximum(self.places, (self.places + self.spread).clamp_max(1.0))

    def with_numbers(self, **numbers: Number) -> Self:
        places = torch.as_tensor(numbers.pop("places", self.places))
        return self._of(self.potential.with_numbers(**numbers), places)

    def detached(self) -> Self:
        return self._of(self.potential.detached(), self.places.detach())

    def to(self, dtype: torch.dtype) -> Self:
        spread = self.spread.to(dtype) if isinstance(self.spread, Tensor) else self.spread
        return self._of(self.potential.to(dtype), self.places.to(dtype), spread)

    def scaled(self, factor: Tensor) -> Self:
        return self._of(self.potential.scaled(factor))

    def select(self, index: Tensor | slice) -> Self:
        """The function of some samples."""
        spread = self.spread[index] if isinstance(self.spread, Tensor) else self.spread
        return self._of(self.potential.select(index), self.places[index], spread)

    @property
    def scale(self) -> Number:
        return self.potential.scale

    def smoother(self, factor: float) -> Self | None:
        found = self.potential.smoother(factor)
        return None if found is None else self._of(found)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Those of f whose gradients are densities, times the weights; the others are not known."""
        return tuple(self._group(g) for g in self.potential.parameter_groups() if isinstance(g, Density))

    def _group(self, group: Density) -> Density:
        density, several = (self._times(f, self.places) for f in (group.density, group.several))
        excess = group.excess if isinstance(group.excess, float) else self._most * group.excess
        steepest = self._times(group.steepest, self._most)
        return replace(group, density=density, steepest=steepest, several=several, excess=excess)

    def _times(self, function: Callable[..., Tensor] | None, places: Tensor) -> Callable[..., Tensor] | None:
        """The function, times these weights."""
        return None if function is None else lambda *responses: places * function(*responses)

    # ---- the function ------------------------------------------------------------------------------------------------

    def density(self, t: Tensor) -> Tensor:
        return self.places * self.potential.density(t)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        return self.places * self.potential.divergence(r, t)

    def grad(self, t: Tensor) -> Tensor:
        return self.places * self.potential.grad(t)

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        return self.potential.grad_into(t, out).mul_(self.places)

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.places * self.potential.hess_vec(t, v)

    def second(self, t: Tensor) -> Tensor:
        return self.places * self.potential.second(t)

    def second_diagonal(self, t: Tensor) -> Tensor:
        return self.places * self.potential.second_diagonal(t)

    def majorant(self, t: Tensor) -> Tensor:
        return self.places * self.potential.majorant(t)

    def term_size(self, y: Tensor) -> Tensor:
        return self.potential.term_size(y)

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """That of f, with a step for each place."""
        return self.potential.prox(v, step * self.places, start)

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        return self.potential.prox_jvp(t, step * self.places, v)

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        """w f'' (sigma + w f'')^-1 v; 0 where w is."""
        positive = self.places > 0
        found = self.potential.dual_prox_jvp(t, sigma / torch.where(positive, self.places, 1.0), v)
        return torch.where(positive, found, 0.0)

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        for f, t_, places, *rest in self.potential.blocks(t, self.places, *others):
            yield self._of(f, places, 0.0), t_, *rest  # iterations ask for no bounds

    # ---- curvature ---------------------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Number:
        """With the largest weight of each channel, over all samples."""
        places = self._most.detach()
        largest = places.amax((0, *range(2, places.dim())), keepdim=True)[0]
        return self.potential.curvature_limit * largest

    @property
    def concavity(self) -> Number:
        """That of f, as weights are at most 1."""
        return self.potential.concavity

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = self.potential.curvature_bounds(t, radius)
        if self.convex:
            return self._least * low, self._most * high
        return torch.minimum(self._least * low, self._most * low), torch.maximum(self._least * high, self._most * high)

    def curvature_interval(self, t: Tensor, radius: Tensor | float) -> CurvatureInterval:
        """``change``, ``ratio`` and ``third`` are those of one weight times f'', whichever of the spread it is."""
        if not self.convex:
            return super().curvature_interval(t, radius)
        found, most = self.potential.curvature_interval(t, radius), self._most * (1.0 + OUTWARD)
        return CurvatureInterval(
            self._least * (1.0 - OUTWARD) * found.low,
            most * found.high,
            most * found.change,
            torch.where(most > 0, most.sqrt() * found.ratio, 0.0),
            most * found.third,
            found.smooth,
        )

    def curvature_ratio(self, second: Tensor, low: Tensor, high: Tensor, change: Tensor) -> Tensor:
        """Without knowing the weight: change/√low."""
        return Potential.curvature_ratio(self, second, low, high, change)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._most * self.potential.curvature_change(t, radius)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._most * self.potential.third_bound(t, radius)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.potential.kink_excluded(t, radius)


class WeightedElementwise(_Weighted, Elementwise):
    """A weight for each response."""


class WeightedGroups(_Weighted, Grouped):
    """A weight for each group of responses."""


def reweightable(potential: Potential) -> str:
    """Why a potential takes no weights of its places; "" where it does."""
    if not isinstance(potential, (Elementwise, Grouped)):
        return "it couples all responses of an image, or is a sum"
    if not is_own_class(type(potential)):
        return "it is of a class that is not examined"
    if not potential.differentiable:
        return "it has no gradient where responses vanish"
    return ""


def weighted(potential: Potential, places: Tensor, spread: Tensor | float = 0.0) -> ProximalPotential:
    """The potential times weights of its places, (batch, n, ...), with bounds for all that are within ``spread``.

    Raises
    ------
    AssumptionError: it takes none.
    """
    if obstacle := reweightable(potential):
        raise AssumptionError(f"{type(potential).__name__} cannot be reweighted: {obstacle}.")
    if isinstance(potential, Elementwise):
        return WeightedElementwise(potential, places, spread)
    assert isinstance(potential, Grouped)
    return WeightedGroups(potential, places, spread)
