"""Hypergradients: one file per method, the table of them, and one driver that lets the certificate set the
tolerances."""

from collections.abc import Callable
from functools import partial

from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.closed_form import ClosedForm
from learnreg.hypergradients.equilibrium_propagation import EquilibriumPropagation
from learnreg.hypergradients.finite_difference import FiniteDifference
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.one_step import OneStep
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.hypergradients.proxy import Proxy
from learnreg.hypergradients.unrolled import Unrolled

__all__ = [
    "METHODS",
    "ClosedForm",
    "EquilibriumPropagation",
    "FiniteDifference",
    "HypergradientMethod",
    "Implicit",
    "OneStep",
    "Piggyback",
    "Proxy",
    "Unrolled",
]

METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "implicit": Implicit,
    "piggyback": Piggyback,
    "piggyback-interleaved": partial(Piggyback, mode="interleaved"),
    "implicit-minres": partial(Implicit, "minres"),
    "implicit-neumann": partial(Implicit, "neumann"),
    "implicit-nystrom": partial(Implicit, "nystrom"),
    "one-step": OneStep,
    "equilibrium-propagation": EquilibriumPropagation,
    "equilibrium-propagation-one-sided": partial(EquilibriumPropagation, nudges=1),
    "equilibrium-propagation-holomorphic": partial(EquilibriumPropagation, nudges=4),
    "closed-form": ClosedForm,
    "unrolled": partial(Unrolled, steps=200),
}
"""Every method by its name on the command line; training has the first one by default, ``learnreg accuracy`` measures
those that ``--methods`` names."""
