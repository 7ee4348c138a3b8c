"""Learn regularizers for imaging by bilevel optimisation, with certified hypergradients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnreg import datasets, operators, plot, regularizers, solvers, testing
    from learnreg.errors import (
        AssumptionError,
        CheckpointError,
        ConfigError,
        DataError,
        LearnregError,
        OperatorError,
        ShapeError,
        SolverError,
    )
    from learnreg.hypergradients.certify import certify
    from learnreg.hypergradients.closed_form import ClosedForm
    from learnreg.hypergradients.compute import Start, hypergradient
    from learnreg.hypergradients.equilibrium_propagation import EquilibriumPropagation
    from learnreg.hypergradients.finite_difference import FiniteDifference
    from learnreg.hypergradients.implicit import Implicit
    from learnreg.hypergradients.one_step import OneStep
    from learnreg.hypergradients.piggyback import Piggyback
    from learnreg.hypergradients.proxy import Proxy
    from learnreg.hypergradients.stochastic import BSG1, BSGHessian, BSGNewtonFD
    from learnreg.hypergradients.unrolled import Unrolled
    from learnreg.linear.operator import LinearOperator
    from learnreg.linear.stack import vstack
    from learnreg.losses import AbsoluteError, SquaredError, UpperLoss
    from learnreg.lower_level.constraints import Box, Nonnegative
    from learnreg.lower_level.data_terms import LeastSquares, TransmissionLeastSquares, WeightedLeastSquares
    from learnreg.lower_level.likelihoods import Poisson, SmoothedL1, TransmissionPoisson
    from learnreg.lower_level.linear_constraints import LinearConstraints
    from learnreg.lower_level.problem import LowerLevelProblem
    from learnreg.lower_level.regularizer import Regularizer
    from learnreg.models.hub import pull, push
    from learnreg.models.model import Model, load, save_model
    from learnreg.models.shipped import pretrained
    from learnreg.potentials.absolute_value import AbsoluteValue
    from learnreg.potentials.huber import Huber
    from learnreg.potentials.log_cosh import LogCosh
    from learnreg.potentials.pseudo_huber import PseudoHuber
    from learnreg.potentials.square import Square
    from learnreg.result import Certificate, Hypergradient, Solution, Status
    from learnreg.solvers.solve import solve
    from learnreg.training.callbacks import Callback
    from learnreg.training.result import TrainResult
    from learnreg.training.tensorboard import TensorBoard
    from learnreg.training.train import train
    from learnreg.upper_level.adaptive_descent import AdaptiveDescent
    from learnreg.upper_level.batch_objective import BatchObjective
    from learnreg.upper_level.bilevel_objective import BilevelObjective
    from learnreg.upper_level.bilevel_problem import BilevelProblem
    from learnreg.upper_level.layer import solution_layer
    from learnreg.upper_level.maid import MAID
    from learnreg.upper_level.stochastic_descent import StochasticDescent

__version__ = "0.1.0"

_LAZY = {
    "AbsoluteError": "learnreg.losses",
    "AbsoluteValue": "learnreg.potentials.absolute_value",
    "AdaptiveDescent": "learnreg.upper_level.adaptive_descent",
    "AssumptionError": "learnreg.errors",
    "BSG1": "learnreg.hypergradients.stochastic",
    "BSGHessian": "learnreg.hypergradients.stochastic",
    "BSGNewtonFD": "learnreg.hypergradients.stochastic",
    "BatchObjective": "learnreg.upper_level.batch_objective",
    "BilevelObjective": "learnreg.upper_level.bilevel_objective",
    "BilevelProblem": "learnreg.upper_level.bilevel_problem",
    "Box": "learnreg.lower_level.constraints",
    "Callback": "learnreg.training.callbacks",
    "Certificate": "learnreg.result",
    "CheckpointError": "learnreg.errors",
    "ClosedForm": "learnreg.hypergradients.closed_form",
    "ConfigError": "learnreg.errors",
    "DataError": "learnreg.errors",
    "EquilibriumPropagation": "learnreg.hypergradients.equilibrium_propagation",
    "FiniteDifference": "learnreg.hypergradients.finite_difference",
    "Huber": "learnreg.potentials.huber",
    "Hypergradient": "learnreg.result",
    "Implicit": "learnreg.hypergradients.implicit",
    "LearnregError": "learnreg.errors",
    "LeastSquares": "learnreg.lower_level.data_terms",
    "LinearConstraints": "learnreg.lower_level.linear_constraints",
    "LinearOperator": "learnreg.linear.operator",
    "LogCosh": "learnreg.potentials.log_cosh",
    "LowerLevelProblem": "learnreg.lower_level.problem",
    "MAID": "learnreg.upper_level.maid",
    "Model": "learnreg.models.model",
    "Nonnegative": "learnreg.lower_level.constraints",
    "OperatorError": "learnreg.errors",
    "OneStep": "learnreg.hypergradients.one_step",
    "Piggyback": "learnreg.hypergradients.piggyback",
    "Poisson": "learnreg.lower_level.likelihoods",
    "Proxy": "learnreg.hypergradients.proxy",
    "PseudoHuber": "learnreg.potentials.pseudo_huber",
    "Regularizer": "learnreg.lower_level.regularizer",
    "ShapeError": "learnreg.errors",
    "SmoothedL1": "learnreg.lower_level.likelihoods",
    "Solution": "learnreg.result",
    "SolverError": "learnreg.errors",
    "Square": "learnreg.potentials.square",
    "SquaredError": "learnreg.losses",
    "Start": "learnreg.hypergradients.compute",
    "Status": "learnreg.result",
    "StochasticDescent": "learnreg.upper_level.stochastic_descent",
    "TensorBoard": "learnreg.training.tensorboard",
    "TrainResult": "learnreg.training.result",
    "TransmissionLeastSquares": "learnreg.lower_level.data_terms",
    "TransmissionPoisson": "learnreg.lower_level.likelihoods",
    "Unrolled": "learnreg.hypergradients.unrolled",
    "UpperLoss": "learnreg.losses",
    "WeightedLeastSquares": "learnreg.lower_level.data_terms",
    "certify": "learnreg.hypergradients.certify",
    "hypergradient": "learnreg.hypergradients.compute",
    "load": "learnreg.models.model",
    "pretrained": "learnreg.models.shipped",
    "pull": "learnreg.models.hub",
    "push": "learnreg.models.hub",
    "save_model": "learnreg.models.model",
    "solution_layer": "learnreg.upper_level.layer",
    "solve": "learnreg.solvers.solve",
    "train": "learnreg.training.train",
    "vstack": "learnreg.linear.stack",
}
"""Where each name is; imported when it is first used: torch takes seconds, for which no help should wait."""

_ROOMS = (
    *("certificates", "convolutions", "datasets", "errors", "hypergradients", "linear", "losses", "lower_level"),
    *(
        "models",
        "operators",
        "plot",
        "potentials",
        "regularizers",
        "result",
        "solvers",
        "testing",
        "training",
        "upper_level",
    ),
)
"""Attributes without an import of their own."""

__all__ = [
    "BSG1",
    "MAID",
    "AbsoluteError",
    "AbsoluteValue",
    "AdaptiveDescent",
    "AssumptionError",
    "BSGHessian",
    "BSGNewtonFD",
    "BatchObjective",
    "BilevelObjective",
    "BilevelProblem",
    "Box",
    "Callback",
    "Certificate",
    "CheckpointError",
    "ClosedForm",
    "ConfigError",
    "DataError",
    "EquilibriumPropagation",
    "FiniteDifference",
    "Huber",
    "Hypergradient",
    "Implicit",
    "LearnregError",
    "LeastSquares",
    "LinearConstraints",
    "LinearOperator",
    "LogCosh",
    "LowerLevelProblem",
    "Model",
    "Nonnegative",
    "OneStep",
    "OperatorError",
    "Piggyback",
    "Poisson",
    "Proxy",
    "PseudoHuber",
    "Regularizer",
    "ShapeError",
    "SmoothedL1",
    "Solution",
    "SolverError",
    "Square",
    "SquaredError",
    "Start",
    "Status",
    "StochasticDescent",
    "TensorBoard",
    "TrainResult",
    "TransmissionLeastSquares",
    "TransmissionPoisson",
    "Unrolled",
    "UpperLoss",
    "WeightedLeastSquares",
    "certify",
    "datasets",
    "hypergradient",
    "load",
    "operators",
    "plot",
    "pretrained",
    "pull",
    "push",
    "regularizers",
    "save_model",
    "solution_layer",
    "solve",
    "solvers",
    "testing",
    "train",
    "vstack",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name in _ROOMS:
        value = import_module(f"learnreg.{name}")
    else:
        raise AttributeError(f"module 'learnreg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
