"""Learned potentials whose first derivative is a linear spline: the second one is piecewise constant.

With u = t/v in units of the knots' distance v, f(t) = l v H(u), H(0) = H'(0) = 0, and H'' = a_j on [j, j + 1) for
j = -m ... m - 1, zero beyond: f need not be even, grows linearly in the end, and is convex if no a_j is negative. f''
jumps at knots between different a_j; its bounds on an interval are exact over the pieces touched.

Source: learned potentials of Goujon, Neumayer, Bohra, Ducotterd and Unser, IEEE Trans. Comput. Imaging 9 (2023), and,
weakly convex, of Goujon, Neumayer and Unser, SIAM J. Imaging Sci. 17 (2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ShapeError
from learnreg.kernels.blocks import planes
from learnreg.kernels.numbers import number_like
from learnreg.potentials.base import OUTWARD
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["QuadraticSpline"]


class QuadraticSpline(SmoothedElementwise):
    """l v H(t/v), H'' piecewise constant between the knots -m ... m.

    Parameters
    ----------
    smoothing: v > 0, the distance of the knots, in the units of the responses.
    weight: l > 0.
    bends: a_-m ... a_{m-1}, (1, 2m), or (n, 2m) for n channels, the second axis of responses; not all zero in any
        channel. They are not learned.
    """

    even = False

    def __init__(self, smoothing: float | Tensor, weight: float | Tensor, bends: Tensor) -> None:
        super().__init__(smoothing, weight)
        if bends.dim() != 2 or bends.shape[1] < 2 or bends.shape[1] % 2:
            raise ShapeError(f"QuadraticSpline(bends): got shape {tuple(bends.shape)}, expected (channels, 2 m).")
        self.bends = bends
        self._kept: dict[str, Tensor] = {}

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        result = type(self)(smoothing, weight, self.bends)
        result._kept = self._kept
        return result

    def to(self, dtype: torch.dtype) -> Self:
        result = super().to(dtype)
        result.bends = self.bends.to(dtype)
        if dtype != self.bends.dtype:
            result._kept = {}
        return result

    # ---- values ------------------------------------------------------------------------------------------------------

    def density(self, t: Tensor) -> Tensor:
        theta, index = self._locate(t)
        value, slope, bend = (self._at(index, name, t) for name in ("value", "slope", "bend"))
        return self.weight * self.smoothing * (value + theta * (slope + 0.5 * theta * bend))

    def grad(self, t: Tensor) -> Tensor:
        theta, index = self._locate(t)
        return self.weight * (self._at(index, "slope", t) + theta * self._at(index, "bend", t))

    def second(self, t: Tensor) -> Tensor:
        _, index = self._locate(t)
        return (self.weight / self.smoothing) * self._at(index, "bend", t)

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        theta, index = self._locate(t)
        bend = self._at(index, "bend", t)
        grad = self.weight * (self._at(index, "slope", t) + theta * bend)
        return grad, (self.weight / self.smoothing) * bend

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """In closed form: t + step f'(t) rises, its values at the knots tell the piece, where it is linear. Of weakly
        convex potentials for steps below 1/concavity alone."""
        target, pull = v / self.smoothing, step * (self.weight / self.smoothing)
        at_knots = self._table("knots").to(v)
        piece = torch.full_like(target, -1.0 - self._last)
        for j in range(-self._last, self._last + 1):
            piece += target >= j + pull * self._columns(at_knots[:, j + self._last], v)
        index = self._index(piece, v)
        slope, bend = self._at(index, "slope", v), self._at(index, "bend", v)
        anchor = self._anchor(piece)
        return (anchor + (target - anchor - pull * slope) / (1.0 + pull * bend)) * self.smoothing

    def majorant(self, t: Tensor) -> Tensor:
        return torch.maximum(super().majorant(t), self.second(t)).clamp_min_(0.0)  # of concave parts a line

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """½ f''(t) (r - t)² where both lie on one piece; elsewhere by differences, plus what rounding may have
        cancelled."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        one_piece = 0.5 * f.second(t) * (r - t) ** 2
        sizes = f.weight * f._per_channel(f._table("knots").abs().amax(1)) * (r.abs() + t.abs() + f.smoothing)
        across = f.density(r) - f.density(t) - f.grad(t) * (r - t) + 8.0 * torch.finfo(torch.float64).eps * sizes
        return torch.where(f._locate(r)[1] == f._locate(t)[1], one_piece, across).to(dtype)

    # ---- constants and intervals -------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Tensor | float:
        return self.weight / self.smoothing * self._per_channel(self.bends.abs().amax(1))

    @property
    def concavity(self) -> Tensor | float:
        lowest = self._per_channel(self.bends.amin(1).clamp_max(0.0).abs())
        return self.weight / self.smoothing * lowest * (1.0 + 1e-12)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = self._range(t, radius)
        margin = 4.0 * OUTWARD * self.curvature_limit
        low = self.weight / self.smoothing * low
        floor = torch.where(low >= 0, torch.zeros_like(low), low - margin)
        return torch.maximum(low - margin, floor), self.weight / self.smoothing * high + margin

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        low, high = self._range(t, radius)
        return (low == high).flatten(1).all(1)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """0 where f'' is constant, and nothing across a jump."""
        low, high = self._range(t, radius)
        return torch.where(low == high, torch.zeros_like(low), torch.full_like(low, torch.inf))

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        """|f''|/(f'' + rho), as t f' has the slope f'' between jumps; infinite where f'' may fall to -rho < 0."""
        if self.convex:
            return 1.0
        size, room = self.curvature_size(t, radius), self.curvature_bounds(t, radius)[0] + self.concavity
        return torch.where(room > 0, size / room * (1.0 + OUTWARD), torch.inf)

    def smoothing_slope(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.curvature_size(t, radius)

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        if self.bends.shape[0] == 1:
            yield from super().blocks(t, *others)
            return
        weight, smoothing = (number_like(p, t) for p in (self.weight, self.smoothing))
        channels = torch.arange(t.shape[1], device=t.device).reshape(-1, *(1,) * (t.dim() - 2))
        for t_, channels_, weight_, smoothing_, *rest in planes(t, channels, weight, smoothing, *others):
            own = channels_.flatten()
            part = type(self)(smoothing_, weight_, self.bends[own])
            part._kept = {name: table[own] for name, table in self._kept.items()}
            yield part, t_, *rest

    # ---- tables ------------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> int:
        """m, the last knot."""
        return self.bends.shape[1] // 2

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The signed distance of t/v to the end nearer to 0 of the piece it is on, and the index in flat tables."""
        u = t / self.smoothing
        piece = u.detach().floor().clamp_(-1.0 - self._last, self._last)
        return u - self._anchor(piece), self._index(piece, t)

    def _anchor(self, piece: Tensor) -> Tensor:
        return torch.where(piece >= 0, piece, piece + 1.0)

    def _range(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Smallest and largest a_j on the interval, rounded outwards."""
        size = t.abs() + radius
        ends = ((t - radius - OUTWARD * size) / self.smoothing, (t + radius + OUTWARD * size) / self.smoothing)
        outer, far = -1.0 - self._last, float(self._last)
        rounding = 1.0 - OUTWARD, 1.0 + OUTWARD
        lower, upper = (torch.minimum(end * r, end * s) for end, r, s in ((ends[0], *rounding), (-ends[1], *rounding)))
        tiny = torch.finfo(t.dtype).tiny  # the knot 0 is the end of two pieces, too
        lower, upper = lower - tiny, upper - tiny
        first = lower.floor().nan_to_num(nan=outer).clamp(outer, far)
        last = (-upper).floor().nan_to_num(nan=far).clamp(outer, far)
        index = self._index(first, t, torch.maximum(first, last))
        return self._at(index, "lowest", t), self._at(index, "highest", t)

    def _index(self, piece: Tensor, like: Tensor, second: Tensor | None = None) -> Tensor:
        """Where (channel, piece) or (channel, first, last) stands in a flat table."""
        size = count = 2 * self._last + 2
        index = (piece.nan_to_num(nan=0.0) + (1 + self._last)).long()
        if second is not None:
            index, size = index * count + (second + (1 + self._last)).long(), count * count
        if self.bends.shape[0] > 1:
            index = index + size * self._columns(torch.arange(like.shape[1], device=like.device), like)
        return index

    def _columns(self, values: Tensor, like: Tensor) -> Tensor:
        """A number per channel, to broadcast against responses."""
        return values.reshape((-1, *(1,) * (like.dim() - 2)) if self.bends.shape[0] > 1 else ())

    def _per_channel(self, values: Tensor) -> Tensor:
        return values[0] if values.shape[0] == 1 else values[:, None, None]

    def _at(self, index: Tensor, name: str, like: Tensor) -> Tensor:
        table = self._table(name).to(like.dtype).flatten()
        return table.index_select(0, index.flatten()).reshape(index.shape)

    def _table(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept.update(_range_tables(self.bends) if name in ("lowest", "highest") else _tables(self.bends))
        return self._kept[name]


def _tables(bends: Tensor) -> dict[str, Tensor]:
    """On the pieces -m - 1 ... m: H'', and H and H' at the end nearer to 0; H' at the knots -m ... m."""
    m = bends.shape[1] // 2
    left, right = bends[:, :m].flip(1), bends[:, m:]
    slopes, values = [], []
    for outward, sign in ((left, -1.0), (right, 1.0)):
        slope = torch.nn.functional.pad(outward.cumsum(1), (1, 0))  # |H'| at the knots 0 ... m
        values.append(torch.nn.functional.pad((slope[:, :-1] + 0.5 * outward).cumsum(1), (1, 0)))
        slopes.append(sign * slope)
    slope, value = (torch.cat([parts[0].flip(1), parts[1]], 1) for parts in (slopes, values))
    knots = torch.cat([slopes[0].flip(1), slopes[1][:, 1:]], 1)
    return {"bend": torch.nn.functional.pad(bends, (1, 1)), "slope": slope, "value": value, "knots": knots}


def _range_tables(bends: Tensor) -> dict[str, Tensor]:
    """The smallest and largest H'' over the pieces i ... k: entry (i, k) of each channel, for i <= k."""
    padded = torch.nn.functional.pad(bends.detach(), (1, 1))
    count = padded.shape[1]
    lowest, highest = (padded.new_zeros(padded.shape[0], count, count) for _ in range(2))
    for i in range(count):
        lowest[:, i, i:] = padded[:, i:].cummin(1).values
        highest[:, i, i:] = padded[:, i:].cummax(1).values
    return {"lowest": lowest, "highest": highest}
