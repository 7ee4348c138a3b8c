"""Learned potentials: even functions whose second derivative is a linear spline with non-negative knots.

With u = t/v in units of the knots' distance v, f(t) = l v h(u), h''(j) = c_j >= 0 at the knots j = 0 ... m - 1,
h''(m) = 0, linear between them and zero beyond: f is convex and twice continuously differentiable, and grows linearly
in the end. f'' may rise and fall; its bounds on an interval are those at the ends and at the knots inside.

Source: learned convex spline potentials of Goujon, Neumayer, Bohra, Ducotterd and Unser (IEEE TCI 2023), whose f' is a
linear spline; here it is f'', lest f'' jump.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.kernels.blocks import planes
from learnreg.kernels.loader import as_array
from learnreg.kernels.numbers import number_like
from learnreg.kernels.rows import ChannelKernels, as_rows
from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["Spline", "channel_shape", "initial_coefficients"]


def initial_coefficients(knots: int) -> Tensor:
    """c_j = 3^-j for j < (knots - 1)/2, (1, m): like log cosh, with the curvature l/v at 0 and the slope l far out."""
    if not isinstance(knots, int) or knots < 5 or knots % 2 == 0:
        raise ConfigError(f"knots={knots!r}: expected an odd integer >= 5, since potentials are even functions.")
    return (3.0 ** -torch.arange((knots - 1) // 2, dtype=torch.float64))[None]


def channel_shape(coefficients: Tensor) -> tuple[int, ...]:
    """The responses that share their coefficients (1 or n, knots), as the shape of a parameter."""
    channels = coefficients.shape[0]
    return () if channels == 1 else (channels, 1, 1)


class Spline(SmoothedElementwise):
    """l v h(t/v) with h'' the linear spline through c_0 ... c_{m-1}, 0 at the knots 0 ... m.

    Parameters
    ----------
    smoothing: v > 0, the distance of the knots, in the units of the responses.
    weight: l > 0.
    coefficients: (1, m), or (n, m) for n channels, the second axis of responses; all >= 0, and some > 0.
    """

    def __init__(
        self, smoothing: float | Tensor, weight: float | Tensor = 1.0, coefficients: Tensor | None = None
    ) -> None:
        super().__init__(smoothing, weight)
        self.coefficients = initial_coefficients(21) if coefficients is None else coefficients
        self._kept: dict[str, Tensor] = {}

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        result = type(self)(smoothing, weight, self.coefficients)
        result._kept = self._kept
        return result

    @property
    def convex_coefficients(self) -> Tensor:
        """The c_j >= 0 whose logarithms are learned."""
        return self.coefficients

    def with_coefficients(self, coefficients: Tensor) -> Self:
        """The same potential with other knots."""
        return type(self)(self.smoothing, self.weight, coefficients)

    def detached(self) -> Self:
        return super().detached().with_coefficients(self.coefficients.detach())

    def to(self, dtype: torch.dtype) -> Self:
        return super().to(dtype).with_coefficients(self.coefficients.to(dtype))

    # ---- values ------------------------------------------------------------------------------------------------------

    def density(self, t: Tensor) -> Tensor:
        sign, theta, index = self._locate(t)
        value, slope, bend, twist = (self._at(index, name, t) for name in ("value", "slope", "bend", "twist"))
        inner = value + theta * (sign * slope + theta * (bend / 2.0 + sign * theta * (twist / 6.0)))
        return self.weight * self.smoothing * inner

    def grad(self, t: Tensor) -> Tensor:
        sign, theta, index = self._locate(t)
        slope, bend, twist = (self._at(index, name, t) for name in ("slope", "bend", "twist"))
        return self.weight * (sign * slope + theta * (bend + sign * theta * (twist / 2.0)))

    def second(self, t: Tensor) -> Tensor:
        sign, theta, index = self._locate(t)
        return (self.weight / self.smoothing) * self._bend_at(sign * theta, index, t)

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sign, theta, index = self._locate(t)
        slope, bend, twist = (self._at(index, name, t) for name in ("slope", "bend", "twist"))
        inner = theta * (bend + sign * theta * (twist / 2.0))
        second = (self.weight / self.smoothing) * self._bend_at(sign * theta, index, t)
        return self.weight * (sign * slope + inner), second

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """With the logarithms of the coefficients. As the s_j of ``coefficient_gradients`` have one sign, never fall in
        t, and add up to the s of the weight, |(s_j(t))_j| <= |s(t)| and |(s_j(t') - s_j(t))_j| <= |s(t') - s(t)|: all
        knots together change no more than the weight."""
        shape = channel_shape(self.convex_coefficients)
        curvature = replace(self.weight_group(), name="log_curvature", shape=shape, several=self.coefficient_gradients)
        return (*super().parameter_groups(), curvature)

    def coefficient_gradients(self, t: Tensor) -> Tensor:
        """c_j ∂f'(t)/∂c_j, how f' moves with the logarithm of each coefficient: (m, *t.shape). These have the sign of
        t, never fall in t, and add up to f'(t), or what the weight multiplies of it."""
        scale, c = self.weight * torch.sign(t), self.convex_coefficients.to(t)
        columns = (column.reshape(_column_shape(c, t)) for column in c.unbind(1))
        return torch.stack([column * part * scale for column, part in zip(columns, self.hat_slopes(t), strict=True)])

    def hat_slopes(self, t: Tensor) -> list[Tensor]:
        """For j = 0 ... m - 1 the integral of the hat function at the knot j from 0 to |t|/v."""
        u, one = (t / self.smoothing).abs(), torch.ones((), dtype=t.dtype, device=t.device)
        start = torch.minimum(u, one)
        found = [start - 0.5 * start * start]
        for j in range(1, self._last):
            x = (u - (j - 1)).clamp(0.0, 2.0)
            found.append(torch.where(x <= 1.0, 0.5 * x * x, 1.0 - 0.5 * (2.0 - x) ** 2))
        return found

    # ---- proximal map ------------------------------------------------------------------------------------------------

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """In closed form: t + step f'(t) rises, its values at the knots tell the piece, where it is quadratic."""
        size = (v / self.smoothing).abs()
        pull = step * (self.weight / self.smoothing)
        slopes = self._table("slope").to(v)
        piece = torch.zeros_like(size)
        for j in range(1, slopes.shape[1]):
            piece += size >= j + pull * slopes[:, j].reshape(self._column_shape(v))
        index = self._index(piece, v)
        slope, bend, twist = (self._at(index, name, v) for name in ("slope", "bend", "twist"))
        rest = (size - piece - pull * slope).clamp_min(0.0)
        linear = 1.0 + pull * bend
        root = (linear * linear + 2.0 * pull * twist * rest).clamp_min(0.0).sqrt()
        u = piece + 2.0 * rest / (linear + root)
        return torch.minimum(u, size) * self.smoothing * v.sign()

    # ---- compiled, where that works ----------------------------------------------------------------------------------

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is None:
            return super().grad_into(t, out)
        fast.kernels.grad(as_rows(t), *fast.constants[:2], *self._arrays(t), as_rows(out))
        return out

    def second_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is None:
            return super().second_into(t, out)
        fast.kernels.second(as_rows(t), *fast.constants[:2], self._arrays(t)[1], as_rows(out))
        return out

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        fast = self._kernels(t, v, step=step)
        if fast is None:
            return super().slope(t, v, step)
        sums = torch.empty(t.shape[0], t.shape[1], dtype=torch.float64, device=t.device)
        fast.kernels.slope(as_rows(t), as_rows(v), *fast.constants, *self._arrays(t), as_array(sums.view(-1)))
        return sums.sum(1).to(t.dtype)

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        fast = self._kernels(v, y, t, step=sigma)
        if fast is None:
            super().dual_step_(v, y, t, sigma, relaxation, newton_steps)
            return
        rows = (as_rows(v), as_rows(y), as_rows(t))
        fast.kernels.dual_step(*rows, *fast.constants, relaxation, *self._arrays(t))

    def _kernels(self, *responses: Tensor, step: Tensor | float = 1.0) -> ChannelKernels | None:
        if self.coefficients.requires_grad or self.coefficients.device != responses[0].device:
            return None
        return ChannelKernels.of("spline", responses, self.weight, self.smoothing, step)

    def _arrays(self, like: Tensor) -> tuple[Any, ...]:
        """The first three derivatives of h at the knots."""
        return self._named(like, "slope", "bend", "twist")

    def _named(self, like: Tensor, *names: str) -> tuple[Any, ...]:
        return tuple(as_array(self._table(name).to(like.dtype)) for name in names)

    # ---- constants and intervals -------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Tensor | float:
        return self.weight / self.smoothing * self._per_channel(self.coefficients.amax(1))

    def majorant(self, t: Tensor) -> Tensor:
        return torch.maximum(super().majorant(t), self.second_into(t, torch.empty_like(t)))

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """(r - t)² (2 f''(t) + f''(r))/6 where both lie on one piece of f''; elsewhere by differences, plus what
        rounding may have cancelled."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        (sign_r, _, index_r), (sign_t, _, index_t) = f._locate(r), f._locate(t)
        one_piece = (r - t) ** 2 * (2.0 * f.second(t) + f.second(r)) / 6.0
        steepest = f._per_channel(f._table("slope")[:, -1])
        sizes = f.weight * steepest * (r.abs() + t.abs() + f.smoothing)
        across = f.density(r) - f.density(t) - f.grad(t) * (r - t)
        across = across + 8.0 * torch.finfo(torch.float64).eps * sizes
        return torch.where((sign_r == sign_t) & (index_r == index_t), one_piece, across).to(dtype)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        fast = self._kernels(t, step=radius)
        if fast is not None:
            bounds, tables = (torch.empty_like(t), torch.empty_like(t)), self._named(t, "bend", "lowest", "highest")
            fast.kernels.curvature_bounds(as_rows(t), *fast.constants, OUTWARD, *tables, *map(as_rows, bounds))
            return bounds
        near, far = self._interval(t, radius)
        first, last = near.ceil().clamp(max=self._last), far.floor().clamp(max=self._last)
        ends = [self._bend_at(end - end.floor(), self._index(end.floor(), t), t) for end in (near, far)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        between = first <= last
        pair = self._index(torch.minimum(first, last), t, last)
        scale = self.weight / self.smoothing
        low = torch.where(between, torch.minimum(low, self._at(pair, "lowest", t)), low)
        high = torch.where(between, torch.maximum(high, self._at(pair, "highest", t)), high)
        return scale * low * (1.0 - OUTWARD), scale * high * (1.0 + OUTWARD)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """The steepest piece of f'' that the interval touches."""
        fast = self._kernels(t, step=radius)
        if fast is not None:
            found = torch.empty_like(t)
            fast.kernels.third_bound(as_rows(t), *fast.constants, OUTWARD, *self._named(t, "steepest"), as_rows(found))
            return found
        near, far = self._interval(t, radius)
        first = near.floor().clamp(max=self._last)
        last = torch.maximum(far.ceil() - 1.0, first).clamp(max=self._last)
        steepest = self._at(self._index(first, t, last), "steepest", t)
        return (self.weight / self.smoothing**2) * steepest * (1.0 + OUTWARD)

    def smoothing_slope(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """d/dt (t f'') = f'' + t f'''."""
        _, high = self.curvature_bounds(t, radius)
        return (high + self.third_bound(t, radius) * (t.abs() + radius)) * (1.0 + OUTWARD)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        """Infinite where f'' may fall to zero."""
        low, high = self.curvature_bounds(t, radius)
        factor = self.smoothing_slope(t, radius) / low * (1.0 + OUTWARD)
        return torch.where(high == 0, 1.0, torch.where(low > 0, factor, torch.inf))

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        weight, smoothing = (number_like(p, t) for p in (self.weight, self.smoothing))
        if self.coefficients.shape[0] == 1:
            for t_, weight_, smoothing_, *rest in planes(t, weight, smoothing, *others):
                yield self.with_parameters(weight_, smoothing_), t_, *rest
            return
        channels = torch.arange(t.shape[1], device=t.device).reshape(-1, *(1,) * (t.dim() - 2))
        for t_, channels_, weight_, smoothing_, *rest in planes(t, channels, weight, smoothing, *others):
            own = self.coefficients[channels_.flatten()]
            yield type(self)(smoothing_, weight_, own), t_, *rest

    # ---- tables ------------------------------------------------------------------------------------------------------

    @property
    def _last(self) -> int:
        """m, the knot beyond which f'' vanishes."""
        return self.coefficients.shape[1]

    def _locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sign of t, the signed distance of |t|/v to the knot j below it, and the index of j in flat tables."""
        u = t / self.smoothing
        fixed = u.detach()
        sign = torch.ones_like(fixed).masked_fill_(fixed < 0, -1.0)
        piece = fixed.abs().floor_().clamp_(max=self._last)
        return sign, u - sign * piece, self._index(piece, t)

    def _interval(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Ends of the interval of |t|/v, rounded outwards; what lies beyond the last knot is all alike."""
        size, end = t.abs(), self._last + 1.0
        near = ((size - radius) / self.smoothing * (1.0 - OUTWARD)).nan_to_num(nan=0.0).clamp(0.0, end)
        return near, ((size + radius) / self.smoothing * (1.0 + OUTWARD)).nan_to_num(nan=end).clamp(0.0, end)

    def _index(self, piece: Tensor, like: Tensor, second: Tensor | None = None) -> Tensor:
        """Where (channel, j) or (channel, j, second) stands in a flat table."""
        count = self._last + 1
        index = piece.nan_to_num(nan=0.0).clamp(max=self._last).long()
        size = count
        if second is not None:
            index, size = index * count + second.long(), count * count
        if self.coefficients.shape[0] > 1:
            channels = torch.arange(like.shape[1], device=like.device).reshape(self._column_shape(like))
            index = index + size * channels
        return index

    def _column_shape(self, like: Tensor) -> tuple[int, ...]:
        return _column_shape(self.coefficients, like)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values[0] if values.shape[0] == 1 else values[:, None, None]

    def _at(self, index: Tensor, name: str, like: Tensor) -> Tensor:
        table = self._table(name).to(like.dtype).flatten()
        return table.index_select(0, index.flatten()).reshape(index.shape)

    def _bend_at(self, share: Tensor, index: Tensor, like: Tensor) -> Tensor:
        """h'' between two knots, without cancellation."""
        low, high = self._at(index, "bend", like), self._at(index, "next", like)
        return low * (1.0 - share) + high * share

    def _table(self, name: str) -> Tensor:
        """(channels, m + 1), or (channels, (m + 1)²) for ranges of knots; kept where nothing is differentiated."""
        if name in self._kept:
            return self._kept[name]
        tables = _tables(self.coefficients) if name not in _RANGES else _range_tables(self.coefficients)
        if not tables[name].requires_grad:
            self._kept.update(tables)
        return tables[name]


_RANGES = ("lowest", "highest", "steepest")


def _column_shape(coefficients: Tensor, like: Tensor) -> tuple[int, ...]:
    """Of a number per channel, to broadcast against responses."""
    return (-1, *(1,) * (like.dim() - 2)) if coefficients.shape[0] > 1 else ()


def _tables(coefficients: Tensor) -> dict[str, Tensor]:
    """At each knot: h, h', h'', the h'' of the next one, and h''' on the piece beyond."""
    bend = torch.nn.functional.pad(coefficients, (0, 1))
    ahead = torch.nn.functional.pad(coefficients[:, 1:], (0, 2))
    twist = ahead - bend
    slope = _running_sum(0.5 * (bend + ahead)[:, :-1])
    value = _running_sum((slope + bend / 2.0 + twist / 6.0)[:, :-1])
    return {"value": value, "slope": slope, "bend": bend, "next": ahead, "twist": twist}


def _running_sum(parts: Tensor) -> Tensor:
    return torch.nn.functional.pad(parts.cumsum(1), (1, 0))


def _range_tables(coefficients: Tensor) -> dict[str, Tensor]:
    """Over the knots i ... k, and for h''' over the pieces: entry (i, k) of each channel, for i <= k."""
    tables = _tables(coefficients.detach())
    bend, twist = tables["bend"], tables["twist"].abs()
    count = bend.shape[1]
    lowest, highest, steepest = (bend.new_zeros(bend.shape[0], count, count) for _ in range(3))
    for i in range(count):
        lowest[:, i, i:] = bend[:, i:].cummin(1).values
        highest[:, i, i:] = bend[:, i:].cummax(1).values
        steepest[:, i, i:] = twist[:, i:].cummax(1).values
    return {"lowest": lowest, "highest": highest, "steepest": steepest}
