"""Every public operator, regularizer, potential, solver and method, once: a new class is tested by adding a line here,
and ``test_registry.py`` fails for a public class that has none. Tests choose by properties."""

from __future__ import annotations

from collections.abc import Callable

import torch
from registered.operators import HAS_ASTRA, OPERATORS
from registered.potentials import POTENTIALS, PotentialEntry, potentials
from registered.problems import PROBLEMS, ProblemCase, build, measure
from registered.randomness import SHAPE, rand, randn, scalar
from registered.regularizers import REGULARIZERS, RegularizerEntry, generalized_variation, network, regularizers

import learnreg as lr
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.interleaved import InterleavedPDHG
from learnreg.solvers import (
    LBFGS,
    MINRES,
    PDHG,
    AdjointPDHG,
    ConjugateGradient,
    Neumann,
    NewtonCG,
    NonsmoothPDHG,
    Nystrom,
    ProjectedLBFGS,
)
from learnreg.solvers.banded_lbfgs import BandedLBFGS

__all__ = [
    "ADJOINT_SOLVERS",
    "BOX_SOLVERS",
    "ESTIMATORS",
    "HAS_ASTRA",
    "METHODS",
    "OPERATORS",
    "OTHER_ITERATIONS",
    "OTHER_METHODS",
    "POTENTIALS",
    "PROBLEMS",
    "REGULARIZERS",
    "SHAPE",
    "SOLVERS",
    "PotentialEntry",
    "ProblemCase",
    "RegularizerEntry",
    "build",
    "generalized_variation",
    "measure",
    "network",
    "potentials",
    "rand",
    "randn",
    "regularizers",
    "scalar",
]

METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "Piggyback": lr.Piggyback,
    "Piggyback-interleaved": lambda: lr.Piggyback(mode="interleaved"),
    "Implicit": lr.Implicit,
    "Implicit-pdhg": lambda: lr.Implicit(state_solver="pdhg"),
    "Implicit-newton-cg": lambda: lr.Implicit(state_solver="newton-cg"),
    "Implicit-minres": lambda: lr.Implicit("minres"),
    "Implicit-neumann": lambda: lr.Implicit("neumann"),
    "Implicit-nystrom": lambda: lr.Implicit("nystrom"),
    "EquilibriumPropagation": lr.EquilibriumPropagation,
    "Unrolled": lambda: lr.Unrolled(steps=400),
}

ESTIMATORS: dict[str, Callable[[], HypergradientMethod]] = {
    "OneStep": lr.OneStep,
}
"""Methods with an error of their own, which they do not remove: they miss most tolerances, and say so."""

OTHER_METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "ClosedForm": lr.ClosedForm,
    "FiniteDifference": lr.FiniteDifference,
    "Proxy": lambda: lr.Proxy(torch.nn.Identity()),
}
"""Those that are not for every problem, see their own tests."""

SOLVERS = {"pdhg": PDHG, "lbfgs": LBFGS, "newton-cg": NewtonCG}
BOX_SOLVERS = {**SOLVERS, "lbfgs": ProjectedLBFGS}
ADJOINT_SOLVERS = {
    "piggyback": AdjointPDHG, "cg": ConjugateGradient, "minres": MINRES, "neumann": Neumann, "nystrom": Nystrom,
}  # fmt: skip
OTHER_ITERATIONS = {
    "piggyback-interleaved": InterleavedPDHG, "large images": BandedLBFGS, "without a gradient": NonsmoothPDHG,
}  # fmt: skip
