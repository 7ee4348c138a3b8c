"""What a potential of somebody else claims, held against samples: its derivatives belong to its value, and the bounds
that certificates take from it hold.

What passes may still be wrong elsewhere; what fails is named. This package's own potentials are not looked at here, its
tests do that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.examination import is_own_class
from learnreg.linear.parameter_groups import Density
from learnreg.potentials.base import Potential
from learnreg.potentials.modulus import Modulus
from learnreg.potentials.stacked import StackedPotential

__all__ = ["check_claims", "foreign_potentials", "interval_errors", "relative_error", "value_errors"]

_SIZES, _RADII = (1e-3, 0.3, 3.0, 100.0), (1e-3, 0.3, 10.0)
_DERIVATIVE, _DIFFERENCE, _SLACK, _STEP = 1e-8, 1e-6, 1e-9, 1e-4

_SIDE = 16

Draw = Callable[[tuple[int, ...]], Tensor]
Error = tuple[str, float, float]


def foreign_potentials(f: Potential, shape: tuple[int, ...] = ()) -> list[tuple[Potential, tuple[int, ...]]]:
    """Those of another package's class, and the shape of their responses; of a stack its parts, of a modulus what sees
    it. Functions that are given by their value alone, which have an examination of their own, are none."""
    if isinstance(f, StackedPotential):
        pairs = zip(f.parts, f.shares, strict=True)
        return [found for part, share in pairs for found in foreign_potentials(part, share.shape)]
    if isinstance(f, Modulus):
        return foreign_potentials(f.profile, shape[1:])
    return [] if is_own_class(type(f)) else [(f, shape)]


def check_claims(f: Potential, shape: tuple[int, ...], device: torch.device | None = None) -> None:
    """Hold what potentials of other classes than this package's claim against responses of this shape, or of a smaller
    one where their numbers say nothing of places, in float64.

    Raises
    ------
    ConfigError: a method that is wrong, or no bound; it is named.
    """
    for part, own in foreign_potentials(f, shape):
        everywhere = all(torch.as_tensor(number).shape[1:].numel() == 1 for number in part.numbers().values())
        _check(part, (own[0], *(min(side, _SIDE) for side in own[1:])) if everywhere else own, device)


def _check(f: Potential, shape: tuple[int, ...], device: torch.device | None) -> None:
    generator = torch.Generator().manual_seed(11)

    def draw(wanted: tuple[int, ...]) -> Tensor:
        return torch.randn(2, *wanted, dtype=torch.float64, generator=generator).to(device)

    f = f.to(torch.float64)
    unit = torch.as_tensor(f.scale, dtype=torch.float64, device=device).detach()
    with torch.inference_mode(False):
        for size in _SIZES:
            _require(f, value_errors(f, size * unit * draw(shape), draw(shape)))
            for radius in _RADII:
                t = size * unit * draw(shape)
                reach = radius * (unit if f.gather(t).numel() > len(t) else unit.amin())
                _require(f, interval_errors(f, t, reach, draw))
                _require(f, _density_errors(f, t, reach, draw))


def _require(f: Potential, errors: Iterator[Error]) -> None:
    for method, error, tolerance in errors:
        if not error <= tolerance:
            raise ConfigError(
                f"{type(f).__name__}.{method} is wrong, or no bound (off by {error:.1e} of its size at responses of "
                "noise). Every bound rests on it: correct it, or define a Regularizer by its value(x) alone."
            )


def value_errors(f: Potential, t: Tensor, v: Tensor) -> Iterator[Error]:
    """(method, relative error, tolerance) of the derivatives, against autograd of the value."""
    yield "grad", relative_error(f.grad(t), _autograd(f.value, t)), _DERIVATIVE
    yield "hess_vec", relative_error(f.hess_vec(t, v), _autograd(lambda s: f.grad(s) * v, t)), _DERIVATIVE


def interval_errors(f: Potential, t: Tensor, radius: Tensor, draw: Draw) -> Iterator[Error]:
    """(method, excess, tolerance): how far curvatures at points within the radius leave the intervals, relative to the
    largest curvature."""
    shape = tuple(t.shape[1:])
    limit = torch.as_tensor(f.curvature_limit, dtype=torch.float64)
    low, high = f.curvature_bounds(t, radius)
    change, third = f.curvature_change(t, radius), f.third_bound(t, radius)
    here_at = f.hess_vec
    for end in (-1.0, 1.0, None):
        offset = draw(shape).clamp(-1.0, 1.0) if end is None else end * torch.ones_like(t)
        moved = radius * offset / f.size(offset).clamp_min(1.0)
        v = draw(shape)
        there, here = _quotient(f, here_at(t + moved, v), v), _quotient(f, here_at(t, v), v)
        yield "curvature_bounds", _excess(low - there, limit), _SLACK
        yield "curvature_bounds", _excess(there - high, limit), _SLACK
        yield "curvature_limit", _excess(there - limit, limit), _SLACK
        yield "concavity", _excess(-there - f.concavity, limit), _SLACK
        yield "curvature_change", _excess((there - here).abs() - change, limit), _SLACK
        finite = torch.isfinite(third)
        allowed = torch.where(finite, third * f.size(moved), torch.inf)
        yield "third_bound", _excess((there - here).abs() - allowed, limit), _SLACK


def _density_errors(f: Potential, t: Tensor, radius: Tensor, draw: Draw) -> Iterator[Error]:
    """(parameter group, relative error or excess, tolerance): how f' moves with the logarithms of the numbers, against
    differences, and how fast that changes within the radius."""
    high = f.curvature_bounds(t, radius)[1] + f.concavity
    moved = radius * draw(tuple(t.shape[1:])).clamp(-1.0, 1.0)
    moved = moved / (f.size(moved) / radius).clamp_min(1.0)
    for group in f.parameter_groups():
        name = group.name.removeprefix("log_")
        if not isinstance(group, Density) or group.several is not None or name not in (*f.number_names, "factor"):
            continue
        here, there = group.size(t, f.grad(t)), group.size(t + moved, f.grad(t + moved))
        if name != "factor":
            found = (_grad_at(f, name, _STEP, t) - _grad_at(f, name, -_STEP, t)) / (2.0 * _STEP)
            yield f"parameter_groups ({group.name})", relative_error(here, found), _DIFFERENCE
        slope = group.largest_slope(t, radius, high)
        allowed = torch.where(torch.isfinite(slope), slope * f.size(moved), torch.inf)
        yield f"parameter_groups ({group.name})", _excess(f.size(there - here) - allowed, f.size(here).amax()), _SLACK


def _grad_at(f: Potential, name: str, step: float, t: Tensor) -> Tensor:
    """f' with one of the numbers larger by the factor e^step."""
    number: Any = f.numbers()[name]
    return f.with_numbers(**{name: number * torch.tensor(step, dtype=torch.float64).exp()}).grad(t)


def _quotient(f: Potential, product: Tensor, v: Tensor) -> Tensor:
    """The curvature in the direction v, at each place."""
    return f.gather(product * v) / f.gather(v * v)


def _autograd(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        return torch.autograd.grad(function(t).sum(), t, materialize_grads=True)[0]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest entry."""
    size = float(expected.detach().abs().max())
    difference = float((found - expected).detach().abs().max())
    return difference / size if size > 0 else difference


def _excess(beyond: Tensor, scale: Tensor) -> float:
    return float((beyond / scale).detach().max().clamp_min(0.0))
