"""Hypergradients: one file per method, the table of them, and one driver that lets the certificate set the
tolerances."""

from collections.abc import Callable
from functools import partial

from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.one_step import OneStep
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.hypergradients.unrolled import Unrolled

__all__ = ["METHODS", "HypergradientMethod", "Implicit", "OneStep", "Piggyback", "Unrolled"]

METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "implicit": Implicit,
    "piggyback": Piggyback,
    "piggyback-interleaved": partial(Piggyback, mode="interleaved"),
    "implicit-minres": partial(Implicit, "minres"),
    "implicit-neumann": partial(Implicit, "neumann"),
    "implicit-nystrom": partial(Implicit, "nystrom"),
    "one-step": OneStep,
    "unrolled": partial(Unrolled, steps=200),
}
"""Every method by its name on the command line; training has the first one by default, ``learnreg accuracy`` measures
those that ``--methods`` names."""
