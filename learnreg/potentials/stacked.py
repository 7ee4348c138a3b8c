"""The sum of potentials, each of the responses of its own operator: what stands behind a ``Stack``.

Responses are flat, part after part. Numbers that a part says of each place (a response, a group of them, all of a
sample) stand at every response of the place: bounds hold as they are, and where they add squares over places they count
a place once for each of its responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from learnreg.linear.examination import is_own_class
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Density, OwnBound, ParameterGroup
from learnreg.linear.share import Share
from learnreg.linear.stack import Stack
from learnreg.potentials.base import Number, Potential

__all__ = ["StackedPotential"]

_ROUND_UP = 1.0 + 1e-12


class StackedPotential(Potential):
    """f(t_1, t_2, ...) = f_1(t_1) + f_2(t_2) + ...

    Parameters
    ----------
    parts: f_k. shapes: of the t_k, without the batch axis. names: what stands before the names of the parts' parameter
        groups; None: their numbers, and there is a factor of all of f.
    """

    number_names = ()
    weight: Number = 1.0

    def __init__(
        self, parts: Sequence[Potential], shapes: Sequence[tuple[int, ...]], names: Sequence[str] | None = None
    ) -> None:
        self.parts, self.shares, self.names = tuple(parts), Share.of(shapes), names
        self.gradient_limit = math.hypot(
            *(f.gradient_limit * math.sqrt(math.prod(share.shape[1:])) for f, share in self._pairs())
        )
        self.cheap_lines = all(f.cheap_lines for f in self.parts)
        self.foreign = any(f.foreign for f in self.parts)
        self.quadratic = all(f.quadratic for f in self.parts)
        self.has_modulus = all(f.has_modulus for f in self.parts)
        self._latest: tuple[Tensor, int, list[Tensor]] | None = None

    def _pairs(self) -> list[tuple[Potential, Share]]:
        return list(zip(self.parts, self.shares, strict=True))

    def _mapped(self, change: Callable[[Potential], Potential]) -> Self:
        return self._of([change(f) for f in self.parts])

    def _of(self, parts: Sequence[Potential]) -> Self:
        """The same of other parts, of the same shapes."""
        return type(self)(parts, [share.shape for share in self.shares], self.names)

    def select(self, index: Tensor | slice) -> Self:
        chosen = [f.select(index) for f in self.parts]
        return self if all(new is old for new, old in zip(chosen, self.parts, strict=True)) else self._of(chosen)

    def detached(self) -> Self:
        return self._mapped(lambda f: f.detached())

    def to(self, dtype: torch.dtype) -> Self:
        return self._mapped(lambda f: f.to(dtype))

    def scaled(self, factor: Tensor) -> Self:
        return self._mapped(lambda f: f.scaled(factor))

    def __repr__(self) -> str:
        return f"StackedPotential({', '.join(map(repr, self.parts))})"

    @property
    def scale(self) -> Tensor:
        return self._numbers(lambda f: f.scale)

    def smoother(self, factor: float) -> Self | None:
        found = [f.smoother(factor) for f in self.parts]
        if all(f is None for f in found):
            return None
        return self._of([f if g is None else g for f, g in zip(self.parts, found, strict=True)])

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Those of each part, "log_weight" of the second one under the name "1.log_weight", and a factor of all of f;
        or by the names given."""
        names = [f"{k}." for k in range(len(self.parts))] if self.names is None else self.names
        own = tuple(
            replace(group, name=f"{name}{group.name}", share=share.of_part(group.share))
            for name, (f, share) in zip(names, self._pairs(), strict=True)
            for group in cast("tuple[Density | OwnBound, ...]", f.parameter_groups())
        )
        return own if self.names is not None else (*own, Density("log_factor", (), excess=self.concavity))

    def term_size(self, y: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.term_size(part), y)

    def screen(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        for f, share in self._pairs():
            f.screen(share.shape, device)

    def doubt(self, t: Tensor, gradients: bool) -> str:
        return next((found for f, part in self._split(t) if (found := f.doubt(part, gradients))), "")

    def prox_obstacle(self) -> str:
        return "is a sum"

    # ---- each part, at its responses -------------------------------------------------------------------------------

    def _pieces(self, t: Tensor) -> list[Tensor]:
        """The responses of each part; those of the latest t are kept, for parts that keep what they found there."""
        kept = self._latest
        if kept is not None and kept[0] is t and not t.is_inference() and kept[1] == t._version:
            return kept[2]
        pieces = [share.within(t).contiguous() for share in self.shares]
        keeps = not (t.is_inference() or t.requires_grad)
        self._latest = (t, t._version, pieces) if keeps else None
        return pieces

    def _split(self, t: Tensor) -> list[tuple[Potential, Tensor]]:
        return list(zip(self.parts, self._pieces(t), strict=True))

    def _joined(self, function: Callable[..., Tensor], t: Tensor, *others: Tensor) -> Tensor:
        """The results of each part, of the shape of its responses, in one."""
        columns = zip(*(share_all(self.shares, other) for other in others), strict=True) if others else None
        rest: list[tuple[Tensor, ...]] = [()] * len(self.parts) if columns is None else list(columns)
        found = (function(f, part, *own) for (f, part), own in zip(self._split(t), rest, strict=True))
        return torch.cat([result.flatten(1) for result in found], 1)

    def value(self, t: Tensor) -> Tensor:
        return torch.stack([f.value(part) for f, part in self._split(t)]).sum(0)

    def grad(self, t: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.grad(part), t)

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        for (f, part), share in zip(self._split(t), self.shares, strict=True):
            share.flat(out).copy_(f.grad_into(part, torch.empty_like(part)).flatten(1))
        return out

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self._joined(lambda f, part, own: f.hess_vec(part, own), t, v)

    def linearised(self, t: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.linearised(part), t)

    def bent(self, at: Tensor, v: Tensor) -> Tensor:
        return self._joined(lambda f, part, own: f.bent(part, own), at, v)

    def bent_diagonal(self, at: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.bent_diagonal(part), at)

    def second_diagonal(self, t: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.second_diagonal(part), t)

    def majorant(self, t: Tensor) -> Tensor:
        return self._joined(lambda f, part: f.majorant(part), t)

    @property
    def analytic_width(self) -> Number:
        """That of each part, for each response; 0 where one has none, or is of a foreign class."""
        if not all(is_own_class(type(f)) for f in self.parts):
            return 0.0
        return self._numbers(lambda f: f.analytic_width)

    def continued(self, t: Tensor) -> Tensor:
        return torch.stack([f.continued(part) for f, part in self._split(t)]).sum(0)

    def continued_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope, curvature = (
            self._joined(lambda f, part, which=which: f.continued_derivatives(part)[which], t) for which in (0, 1)
        )
        return slope, curvature

    # ---- numbers of places -----------------------------------------------------------------------------------------

    def _numbers(self, number: Callable[[Potential], Number]) -> Tensor:
        """A number of each part, for each response, (responses,)."""
        found = [share.spread(number(f)) for f, share in self._pairs()]
        dtype = next((n.dtype for n in found if n.dtype != torch.float64), torch.float64)
        return torch.cat([n.to(dtype) for n in found])

    def _places(self, function: Callable[..., Tensor], t: Tensor, *others: Any) -> Tensor:
        """What each part says of its places, at every response of the place, (batch, responses)."""
        found = []
        for k, (f, part) in enumerate(self._split(t)):
            own = [self._own(k, other, t) for other in others]
            found.append(self.shares[k].spread_batch(function(f, part, *own)))
        return torch.cat(found, 1)

    def _own(self, k: int, radius: Tensor | float, t: Tensor) -> Tensor | float:
        """The radius of the places of a part: numbers of responses that are alike within a place."""
        if not isinstance(radius, Tensor):
            return radius
        f, own = self.parts[k], self.shares[k].within(radius.expand(t.shape))
        mean: Tensor = f.gather(own) / f.gather(torch.ones_like(own))
        return mean * _ROUND_UP

    def gather(self, t: Tensor) -> Tensor:
        return self._places(lambda f, part: f.gather(part), t)

    def size(self, v: Tensor) -> Tensor:
        return self._places(lambda f, part: f.size(part), v)

    def reach(self, operator: LinearOperator) -> Tensor | float:
        assert isinstance(operator, Stack)
        return torch.cat(
            [share.spread(f.reach(A)) for (f, share), A in zip(self._pairs(), operator.parts, strict=True)]
        )

    def softness(self, operator: LinearOperator) -> float:
        assert isinstance(operator, Stack)
        return math.fsum(f.softness(A) for f, A in zip(self.parts, operator.parts, strict=True))

    def stiffness(self, operator: LinearOperator) -> float:
        assert isinstance(operator, Stack)
        return math.fsum(f.stiffness(A) for f, A in zip(self.parts, operator.parts, strict=True))

    def hidden_rounding(self, x: Tensor, v: Tensor | None = None) -> Tensor | float:
        total: Tensor | float = 0.0
        for f in self.parts:
            total = total + f.hidden_rounding(x, v)
        return total

    @property
    def curvature_limit(self) -> Number:
        return self._numbers(lambda f: f.curvature_limit)

    @property
    def concavity(self) -> Number:
        return 0.0 if all(f.convex for f in self.parts) else self._numbers(lambda f: f.concavity)

    def second(self, t: Tensor) -> Tensor:
        return self._places(lambda f, part: f.second(part), t)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = (
            self._places(lambda f, part, own, end=end: f.curvature_bounds(part, own)[end], t, radius) for end in (0, 1)
        )
        return low, high

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._places(lambda f, part, own: f.curvature_change(part, own), t, radius)

    def curvature_ratio(self, second: Tensor, low: Tensor, high: Tensor, change: Tensor) -> Tensor:
        columns = zip(*(share_all(self.shares, bound) for bound in (second, low, high, change)), strict=True)
        found = (f.curvature_ratio(*own).flatten(1) for f, own in zip(self.parts, columns, strict=True))
        return torch.cat(list(found), 1)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._places(lambda f, part, own: f.third_bound(part, own), t, radius)

    def bending_size(self, v: Tensor, t: Tensor, radius: Tensor | float) -> Tensor:
        columns = zip(self.shares, share_all(self.shares, v), strict=True)
        found = []
        for k, ((share, own), (f, part)) in enumerate(zip(columns, self._split(t), strict=True)):
            found.append(share.spread_batch(f.bending_size(own, part, self._own(k, radius, t))))
        return torch.cat(found, 1)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        found = [f.kink_excluded(part, self._own(k, radius, t)) for k, (f, part) in enumerate(self._split(t))]
        return torch.stack(found).all(0)


def share_all(shares: Sequence[Share], t: Tensor) -> list[Tensor]:
    """The entries of each part."""
    return [share.within(t) for share in shares]
