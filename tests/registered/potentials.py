"""Every public potential, and what tests choose them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from registered.randomness import rand, randn
from torch import Tensor

import learnreg as lr
from learnreg.potentials.base import Potential
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.network import NetworkPotential
from learnreg.potentials.quadratic_spline import QuadraticSpline
from learnreg.potentials.spline import Spline
from learnreg.potentials.squared_hinge import SquaredHinge
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline

__all__ = ["POTENTIALS", "PotentialEntry", "potentials"]


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


POTENTIALS: dict[str, PotentialEntry] = {
    "PseudoHuber": PotentialEntry(lr.PseudoHuber),
    "LogCosh": PotentialEntry(lr.LogCosh),
    "Huber": PotentialEntry(lr.Huber, smooth=False),
    "Spline": PotentialEntry(Spline),
    "Square": PotentialEntry(lambda v, l: lr.Square(l), linear=False, smoothed=False),
    "IsotropicPseudoHuber": PotentialEntry(IsotropicPseudoHuber, elementwise=False),
    "NetworkPotential": PotentialEntry(
        _network, even=False, proximal=False, elementwise=False, channels=6, dimensions=(2,)
    ),
    "WeaklyConvexSpline": PotentialEntry(WeaklyConvexSpline, convex=False),
    "SquaredHinge": PotentialEntry(SquaredHinge, even=False, smooth=False, linear=False),
    "QuadraticSpline": PotentialEntry(
        lambda v, l: QuadraticSpline(v, l, rand(1, 8, seed=15)), even=False, smooth=False
    ),
}


def potentials(**properties: object) -> list[str]:
    """The names of those with these properties."""
    return [
        name for name, entry in POTENTIALS.items() if all(getattr(entry, p) == value for p, value in properties.items())
    ]
