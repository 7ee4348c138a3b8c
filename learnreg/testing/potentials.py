"""What a potential owes: derivatives of its value, proximal maps, and intervals that contain its curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from learnreg.potentials.base import Potential
from learnreg.potentials.proximal import ProximalPotential
from learnreg.testing.report import Property, broken, judged
from learnreg.testing.structure import terms_of
from learnreg.testing.values import RegularizerCase

__all__ = ["check_potential"]

_SIZES, _RADII, _STEPS = (1e-3, 0.3, 3.0, 100.0), (1e-3, 0.3, 10.0), (1e-2, 1.0, 1e2)
_SLACK = 1e-9


def check_potential(case: RegularizerCase) -> Property:
    """The potential f of saddle_terms, in float64: f' and f'' belong to f, proximal maps (if any) solve their
    equations, and curvature_bounds, curvature_change, third_bound, curvature_limit and concavity hold at sampled
    points."""
    potential = terms_of(case).potential.to(torch.float64)
    worst, blamed = 0.0, ""
    for what, error, tolerance in _errors(case, potential):
        if not error / tolerance <= worst:
            worst, blamed = error / tolerance, what
        if not worst <= 1.0:
            break
    kind = type(potential).__name__
    if worst != worst:
        return broken("potential", f"{kind}.{blamed} is NaN")
    problem = f"{kind}.{blamed} is wrong, or no bound"
    return judged("potential", worst, 1.0, "largest error over its tolerance", problem)


def _errors(case: RegularizerCase, f: Potential) -> Iterator[tuple[str, float, float]]:
    """(method, relative error or excess, tolerance) for responses of several sizes, in units of the smoothing."""
    shape = terms_of(case).operator.range_shape
    unit = torch.as_tensor(f.scale, dtype=torch.float64).detach()
    for size in _SIZES:
        t, v = size * unit * _draw(case, shape), _draw(case, shape)
        yield "grad", _relative(f.grad(t), _autograd(f.value, t)), 1e-8
        yield "hess_vec", _relative(f.hess_vec(t, v), _autograd(_along(f, v), t)), 1e-8
        if isinstance(f, ProximalPotential):
            yield from _proximal_errors(f, t, v)
        if f.foreign and not bool(torch.isfinite(torch.as_tensor(f.curvature_limit)).all()):
            continue  # nothing is declared
        for radius in _RADII:
            yield from _interval_errors(case, f, t, radius * (unit if f.gather(t).numel() > len(t) else unit.amin()))


def _proximal_errors(f: ProximalPotential, t: Tensor, v: Tensor) -> Iterator[tuple[str, float, float]]:
    for factor in _STEPS:
        step = factor / torch.as_tensor(f.curvature_limit, dtype=torch.float64).max()
        step = torch.minimum(step, 0.9 / torch.as_tensor(f.concavity, dtype=torch.float64).max())  # else set-valued
        yield "prox", _relative(f.prox(t + step * f.grad(t), step), t), 1e-6
        yield "prox_jvp", _relative(f.prox_jvp(t, step, v + step * f.hess_vec(t, v)), v), 1e-8


def _interval_errors(
    case: RegularizerCase, f: Potential, t: Tensor, radius: Tensor
) -> Iterator[tuple[str, float, float]]:
    """How far curvatures at points within the radius leave the intervals, relative to the largest curvature."""
    limit = torch.as_tensor(f.curvature_limit, dtype=torch.float64)
    low, high = f.curvature_bounds(t, radius)
    change, third = f.curvature_change(t, radius), f.third_bound(t, radius)
    here_at = f.hess_vec
    for end in (-1.0, 1.0, None):
        offset = _draw(case, tuple(t.shape[1:])).clamp(-1.0, 1.0) if end is None else end * torch.ones_like(t)
        moved = radius * offset / f.size(offset).clamp_min(1.0)
        v = _draw(case, tuple(t.shape[1:]))
        there, here = _quotient(f, here_at(t + moved, v), v), _quotient(f, here_at(t, v), v)
        yield "curvature_bounds", _excess(low - there, limit), _SLACK
        yield "curvature_bounds", _excess(there - high, limit), _SLACK
        yield "curvature_limit", _excess(there - limit, limit), _SLACK
        yield "concavity", _excess(-there - f.concavity, limit), _SLACK
        yield "curvature_change", _excess((there - here).abs() - change, limit), _SLACK
        finite = torch.isfinite(third)
        allowed = torch.where(finite, third * f.size(moved), torch.inf)
        yield "third_bound", _excess((there - here).abs() - allowed, limit), _SLACK


def _draw(case: RegularizerCase, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64, generator=case.generator)


def _quotient(f: Potential, product: Tensor, v: Tensor) -> Tensor:
    """The curvature in the direction v, at each place."""
    return f.gather(product * v) / f.gather(v * v)


def _along(f: Potential, v: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda t: f.grad(t) * v


def _autograd(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        return torch.autograd.grad(function(t).sum(), t)[0]


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest entry."""
    size = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return difference / size if size > 0 else difference


def _excess(beyond: Tensor, scale: Tensor) -> float:
    return float((beyond / scale).max().clamp_min(0.0))
