"""Every public potential, and what tests choose them by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from registered.randomness import rand, randn
from torch import Tensor, nn

import learnreg as lr
from learnreg.potentials.base import Potential
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.maximum import MaximumEnvelope
from learnreg.potentials.modulus import Modulus
from learnreg.potentials.network import NetworkPotential
from learnreg.potentials.quadratic_spline import QuadraticSpline
from learnreg.potentials.spline import Spline
from learnreg.potentials.squared_hinge import SquaredHinge
from learnreg.potentials.stacked import StackedPotential
from learnreg.potentials.stacked_proximal import StackedProximal
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.regularizers import Regularizer

__all__ = ["POTENTIALS", "Entropic", "PotentialEntry", "potentials"]


@dataclass(frozen=True)
class PotentialEntry:
    """How a potential is built from a smoothing and a weight, and its properties: even; smooth, twice differentiable;
    convex; proximal, it has proximal maps; elementwise; linear, it grows linearly; smoothed, it has a smoothing;
    channels it takes, None for any; dimensions of the axes behind them."""

    build: Callable[[float | Tensor, float | Tensor], Potential]
    even: bool = True
    smooth: bool = True
    convex: bool = True
    proximal: bool = True
    elementwise: bool = True
    linear: bool = True
    smoothed: bool = True
    channels: int | None = None
    dimensions: tuple[int, ...] = (1, 2, 3)

    def __call__(self, smoothing: float | Tensor, weight: float | Tensor) -> Potential:
        return self.build(smoothing, weight)

    def shape(self, dimensions: int) -> tuple[int, ...]:
        """Of responses without their batch axis."""
        return (self.channels or 2, *(5, 4, 3)[:dimensions])


def _network(smoothing: float | Tensor, weight: float | Tensor) -> Potential:
    return NetworkPotential(smoothing, weight, 0.2 * rand(1, 3, 3, 1, 1), 0.1 * randn(2, 3))


class Entropic(Regularizer):
    """weight · sum of smoothing · log cosh(x / smoothing), by its value alone, with all its constants on images of so
    many entries."""

    def __init__(self, smoothing: float, weight: float, entries: int) -> None:
        super().__init__()
        self.weight, self.smoothing, self.entries = nn.Parameter(torch.tensor(float(weight))), smoothing, entries
        self.modulus, self.gradient_lipschitz = 0.0, weight / smoothing
        self.hessian_lipschitz, self.cross_lipschitz = 0.77 * weight / smoothing**2, 1.0 / smoothing
        self.cross_bound = math.sqrt(entries)

    def value(self, x: Tensor) -> Tensor:
        u = (x / self.smoothing).abs()
        density = u + torch.nn.functional.softplus(-2.0 * u) - math.log(2.0)
        return self.weight * self.smoothing * density.flatten(1).sum(1)


def _by_value(smoothing: float | Tensor, weight: float | Tensor) -> Potential:
    terms = Entropic(float(torch.as_tensor(smoothing).min()), float(torch.as_tensor(weight).min()), 40).double()
    return terms.saddle_terms((2, 5, 4)).potential.detached()


def _stacked(smoothing: float | Tensor, weight: float | Tensor) -> Potential:
    return StackedPotential([lr.PseudoHuber(smoothing, weight), lr.LogCosh(smoothing, weight)], [(1, 2), (1, 3)])


def _stacked_proximal(smoothing: float | Tensor, weight: float | Tensor) -> Potential:
    parts = [lr.PseudoHuber(smoothing, weight), IsotropicPseudoHuber(smoothing, weight)]
    return StackedProximal(parts, [(1, 2), (1, 3)])


POTENTIALS: dict[str, PotentialEntry] = {
    "PseudoHuber": PotentialEntry(lr.PseudoHuber),
    "LogCosh": PotentialEntry(lr.LogCosh),
    "Huber": PotentialEntry(lr.Huber, smooth=False),
    "Spline": PotentialEntry(Spline),
    "Square": PotentialEntry(lambda v, l: lr.Square(l), linear=False, smoothed=False),
    "IsotropicPseudoHuber": PotentialEntry(IsotropicPseudoHuber, elementwise=False),
    "MaximumEnvelope": PotentialEntry(MaximumEnvelope, elementwise=False, smooth=False),
    "Modulus": PotentialEntry(lambda v, l: Modulus(lr.LogCosh(v, l)), elementwise=False),
    "ModulusOfSplines": PotentialEntry(lambda v, l: Modulus(Spline(v, l)), elementwise=False),
    "ModulusOfHuber": PotentialEntry(lambda v, l: Modulus(lr.Huber(v, l)), smooth=False, elementwise=False),
    "ModulusOfWeaklyConvex": PotentialEntry(
        lambda v, l: Modulus(WeaklyConvexSpline(v, l)), convex=False, elementwise=False
    ),
    "NetworkPotential": PotentialEntry(
        _network, even=False, proximal=False, elementwise=False, channels=6, dimensions=(2,)
    ),
    "WeaklyConvexSpline": PotentialEntry(WeaklyConvexSpline, convex=False),
    "SquaredHinge": PotentialEntry(SquaredHinge, even=False, smooth=False, linear=False),
    "QuadraticSpline": PotentialEntry(
        lambda v, l: QuadraticSpline(v, l, rand(1, 8, seed=15)), even=False, smooth=False
    ),
    "ValuePotential": PotentialEntry(
        _by_value, proximal=False, elementwise=False, smoothed=False, channels=2, dimensions=(2,)
    ),
    "StackedPotential": PotentialEntry(
        _stacked, proximal=False, elementwise=False, smoothed=False, channels=5, dimensions=(0,)
    ),
    "StackedProximal": PotentialEntry(
        _stacked_proximal, elementwise=False, smoothed=False, channels=5, dimensions=(0,)
    ),
}


def potentials(**properties: object) -> list[str]:
    """The names of those with these properties."""
    return [
        name for name, entry in POTENTIALS.items() if all(getattr(entry, p) == value for p, value in properties.items())
    ]
