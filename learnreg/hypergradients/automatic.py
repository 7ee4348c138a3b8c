"""Which method ``method=None`` stands for, by properties of the problem."""

from __future__ import annotations

from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.lower_level.instance import Instance
from learnreg.solvers.choice import fits_pdhg
from learnreg.solvers.preconditioner import can_precondition
from learnreg.solvers.spectral_metric import can_measure

__all__ = ["better_method"]

_SHARP, _SHARP_LATENT = 1000.0, 3e5
"""Condition bounds from which on the piggyback iteration takes less time, for filter banks and latent variables."""


def better_method(instance: Instance, warm: bool = False) -> HypergradientMethod:
    """The one that takes less time, as measured (docs/benchmarks.md, "Where the piggyback iteration wins"). Both need
    proximal maps and a diagonal data term, else implicit differentiation it is. ``Piggyback()`` for latent variables
    with a sign, where the problem is very ill-conditioned: L-BFGS stagnates there; from a cold start also for
    differences of images (total variation), and for ill-conditioned filter banks in the spectral metric. A good x
    without its dual iterate is of little use to a primal-dual method, so that ``Implicit()`` goes on from warm ones.
    """
    if not fits_pdhg(instance):
        return Implicit()
    if instance.latent.channels:
        wins = instance.latent.nonnegative and instance.condition_bound() >= _SHARP_LATENT
    elif warm or instance.box.constrains or instance.analysis.stencil() is None:
        wins = False
    elif can_precondition(instance):
        wins = can_measure(instance) and instance.condition_bound() >= _SHARP
    else:
        wins = True
    return Piggyback() if wins else Implicit()
