"""What a potential owes: derivatives of its value, proximal maps, and intervals that contain its curvature."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from learnreg.potentials.base import Potential
from learnreg.potentials.claims import interval_errors, relative_error, value_errors
from learnreg.potentials.proximal import ProximalPotential
from learnreg.testing.report import Property, broken, judged
from learnreg.testing.structure import terms_of
from learnreg.testing.values import RegularizerCase

__all__ = ["check_potential"]

_SIZES, _RADII, _STEPS = (1e-3, 0.3, 3.0, 100.0), (1e-3, 0.3, 10.0), (1e-2, 1.0, 1e2)


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
        yield from value_errors(f, t, v)
        if isinstance(f, ProximalPotential):
            yield from _proximal_errors(f, t, v)
        if f.foreign and not bool(torch.isfinite(torch.as_tensor(f.curvature_limit)).all()):
            continue  # nothing is declared
        for radius in _RADII:
            reach = radius * (unit if f.gather(t).numel() > len(t) else unit.amin())
            yield from interval_errors(f, t, reach, partial(_draw, case))


def _proximal_errors(f: ProximalPotential, t: Tensor, v: Tensor) -> Iterator[tuple[str, float, float]]:
    for factor in _STEPS:
        step = factor / torch.as_tensor(f.curvature_limit, dtype=torch.float64).max()
        step = torch.minimum(step, 0.9 / torch.as_tensor(f.concavity, dtype=torch.float64).max())  # else set-valued
        yield "prox", relative_error(f.prox(t + step * f.grad(t), step), t), 1e-6
        yield "prox_jvp", relative_error(f.prox_jvp(t, step, v + step * f.hess_vec(t, v)), v), 1e-8


def _draw(case: RegularizerCase, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64, generator=case.generator)
