"""The sum of potentials that all have proximal maps: each acts on the responses of its own operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from learnreg.kernels.numbers import number_like
from learnreg.linear.share import Share
from learnreg.potentials.base import WARM_PROX_STEPS, Number, Potential
from learnreg.potentials.proximal import ProximalPotential
from learnreg.potentials.stacked import StackedPotential, share_all

__all__ = ["StackedProximal", "stacked"]


class StackedProximal(StackedPotential, ProximalPotential):
    """Parts that are ``ProximalPotential``, for primal-dual iterations; steps are one number for each sample and
    part."""

    @property
    def _maps(self) -> tuple[ProximalPotential, ...]:
        return self.parts  # type: ignore[return-value]

    def prox_obstacle(self) -> str:
        return next((f"has a part that {why}" for f in self.parts if (why := f.prox_obstacle())), "")

    @property
    def curvature_limit(self) -> Number:
        """The largest of each part."""
        return self._numbers(lambda f: torch.as_tensor(f.curvature_limit).max())

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        yield self, t, *others

    def density(self, t: Tensor) -> Tensor:
        return self._places(lambda f, part: f.density(part), t)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        columns = zip(self._maps, self.shares, share_all(self.shares, r), share_all(self.shares, t), strict=True)
        return torch.cat([share.spread_batch(f.divergence(own, at)) for f, share, own, at in columns], 1)

    def distances(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        columns = zip(self._maps, share_all(self.shares, r), share_all(self.shares, t), strict=True)
        found = [f.distances(own.contiguous(), at.contiguous()) for f, own, at in columns]
        distance, apart = (torch.stack(column).sum(0) for column in zip(*found, strict=True))
        return distance, apart

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        starts = [None] * len(self.parts) if start is None else share_all(self.shares, start)
        columns = zip(self._maps, self.shares, share_all(self.shares, v), starts, strict=True)
        found = [f.prox(own, _step(share, step, v), first).flatten(1) for f, share, own, first in columns]
        return torch.cat(found, 1)

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        columns = zip(self._maps, self.shares, share_all(self.shares, t), share_all(self.shares, v), strict=True)
        return torch.cat([f.prox_jvp(at, _step(share, step, v), own).flatten(1) for f, share, at, own in columns], 1)

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        columns = zip(self._maps, self.shares, share_all(self.shares, t), share_all(self.shares, v), strict=True)
        found = [f.dual_prox_jvp(at, _step(share, sigma, v), own).flatten(1) for f, share, at, own in columns]
        return torch.cat(found, 1)

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        for f, share in zip(self._maps, self.shares, strict=True):
            own_v, own_y, own_t = (share.within(whole).contiguous() for whole in (v, y, t))
            f.dual_step_(own_v, own_y, own_t, _step(share, sigma, v), relaxation, newton_steps)
            _put_back(share, y, own_y)
            _put_back(share, t, own_t)

    def adjoint_dual_step_(self, at: Tensor, response: Tensor, Y: Tensor, sigma: Tensor, relaxation: float) -> None:
        for f, share in zip(self._maps, self.shares, strict=True):
            own_at, own_response, own_Y = (share.within(whole).contiguous() for whole in (at, response, Y))
            f.adjoint_dual_step_(own_at, own_response, own_Y, _step(share, sigma, Y), relaxation)
            _put_back(share, response, own_response)
            _put_back(share, Y, own_Y)


def _put_back(share: Share, whole: Tensor, part: Tensor) -> None:
    """Write a part where it was taken from, unless it is still there."""
    place = share.flat(whole)
    if part.data_ptr() != place.data_ptr():
        place.copy_(part.flatten(1))


def _step(share: Share, step: Tensor | float, like: Tensor) -> Tensor:
    """The steps of a part, (batch, 1, ...), from those of all responses."""
    steps = number_like(step, like).expand(like.shape)
    return steps[:, share.first].reshape(-1, *(1,) * len(share.shape))


def stacked(
    parts: Sequence[Potential], shapes: Sequence[tuple[int, ...]], names: Sequence[str] | None = None
) -> StackedPotential:
    """The sum, with proximal maps where all parts have them."""
    kind = StackedProximal if all(isinstance(f, ProximalPotential) for f in parts) else StackedPotential
    return kind(parts, shapes, names)
