"""Every public class is in the registries that the other tests run over."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable

import pytest
import registry

import learnreg
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.linear.operator import LinearOperator
from learnreg.potentials.base import Potential
from learnreg.regularizers import Regularizer
from learnreg.solvers import Iteration

MEASURED = {"KullbackLeibler", "TransmissionLikelihood", "ShiftedPseudoHuber"}
WEIGHTED = {"WeightedElementwise", "WeightedGroups", "Logarithmic", "Reweighted", "ReweightedRidge"}
NOT_HERE = {
    "AbsoluteValue", "BandedPotential", "BSG1", "BSGHessian", "BSGNewtonFD", "LowerFunction", *MEASURED, *WEIGHTED,
}  # fmt: skip
"""Potentials of data terms, whose numbers differ from sample to sample, see potentials/test_measured.py, and those
with weights of each sample, see potentials/test_weighted.py, of which chains of problems are made, see
regularizers/test_reweighted.py; one without
derivatives, see hypergradients/test_sign_pattern.py, and one made of another one and an operator, see
lower_level/test_banded.py; methods of a few steps, of which no accuracy can be asked, see
hypergradients/test_stochastic.py; the lower level of upper_level/test_bilevel_problem.py."""


def _is_abstract(cls: type) -> bool:
    """Whether it leaves methods to its subclasses; operators are modules, whose metaclass does not say so."""
    own = any(getattr(method, "__isabstractmethod__", False) for method in vars(cls).values())
    return own or bool(vars(cls).get("__abstractmethods__"))


def public_classes(base: type) -> set[type]:
    """Concrete public classes below ``base`` in all modules of the package."""
    for module in pkgutil.walk_packages(learnreg.__path__, "learnreg."):
        if (
            not module.name.rpartition(".")[2].startswith("_")
            and module.name.partition(".cuda.")[0] != "learnreg.kernels"
        ):
            importlib.import_module(module.name)

    def below(cls: type) -> Iterable[type]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    return {
        cls
        for cls in below(base)
        if cls.__module__.startswith("learnreg.")
        and cls.__name__ not in NOT_HERE
        and not cls.__name__.startswith("_")
        and not inspect.isabstract(cls)
        and "[" not in cls.__name__
    }


@pytest.mark.parametrize(
    ("base", "registered"),
    [
        (LinearOperator, {type(f()) for f in registry.OPERATORS.values()}),
        (Regularizer, {type(f()) for f in registry.REGULARIZERS.values()}),
        (Potential, {type(f(0.1, 1.0)) for f in registry.POTENTIALS.values()}),
        (
            HypergradientMethod,
            {type(f()) for f in {**registry.METHODS, **registry.ESTIMATORS, **registry.OTHER_METHODS}.values()},
        ),
        (
            Iteration,
            {
                *registry.SOLVERS.values(),
                *registry.BOX_SOLVERS.values(),
                *registry.ADJOINT_SOLVERS.values(),
                *registry.OTHER_ITERATIONS.values(),
            },
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_public_classes_are_registered(base: type, registered: set[type]) -> None:
    missing = {cls for cls in public_classes(base) - registered if not _is_abstract(cls)}
    abstract = {cls for cls in missing if cls.__name__ in {"Solver", "AdjointSolver"}}
    names = sorted(cls.__qualname__ for cls in missing - abstract)
    assert not names, f"add a line for {', '.join(names)} to tests/registry.py or a file of tests/registered"
