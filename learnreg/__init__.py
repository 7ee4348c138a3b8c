"""Learn regularizers for imaging by bilevel optimisation, with certified hypergradients."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from learnreg import regularizers, solvers, testing
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
from learnreg.hypergradients.compute import Start, hypergradient
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.hypergradients.unrolled import Unrolled
from learnreg.linear.operator import LinearOperator, vstack
from learnreg.losses import SquaredError, UpperLoss
from learnreg.lower_level.constraints import Box, Nonnegative
from learnreg.lower_level.data_terms import LeastSquares, TransmissionLeastSquares, WeightedLeastSquares
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.potentials.huber import Huber
from learnreg.potentials.log_cosh import LogCosh
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.potentials.square import Square
from learnreg.result import Certificate, Hypergradient, Solution, Status
from learnreg.solvers.solve import solve
from learnreg.upper_level.adaptive_descent import AdaptiveDescent
from learnreg.upper_level.batch_objective import BatchObjective
from learnreg.upper_level.layer import solution_layer

if TYPE_CHECKING:
    from learnreg import datasets, operators
    from learnreg.models.model import Model, load, pretrained, save_model
    from learnreg.training.train import TrainResult, train

__version__ = "0.1.0"

# the application layer, which imports operators and datasets, loads when it is used
_LAZY = {
    "Model": "learnreg.models.model",
    "load": "learnreg.models.model",
    "pretrained": "learnreg.models.model",
    "save_model": "learnreg.models.model",
    "TrainResult": "learnreg.training.train",
    "train": "learnreg.training.train",
}

_LAZY_FOLDERS = ("datasets", "operators")

__all__ = [
    "AdaptiveDescent",
    "AssumptionError",
    "BatchObjective",
    "Box",
    "Certificate",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Huber",
    "Hypergradient",
    "Implicit",
    "LearnregError",
    "LeastSquares",
    "LinearOperator",
    "LogCosh",
    "LowerLevelProblem",
    "Model",
    "Nonnegative",
    "OperatorError",
    "Piggyback",
    "PseudoHuber",
    "ShapeError",
    "Solution",
    "SolverError",
    "Square",
    "SquaredError",
    "Start",
    "Status",
    "TrainResult",
    "TransmissionLeastSquares",
    "Unrolled",
    "UpperLoss",
    "WeightedLeastSquares",
    "certify",
    "datasets",
    "hypergradient",
    "load",
    "operators",
    "pretrained",
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
        return getattr(import_module(_LAZY[name]), name)
    if name in _LAZY_FOLDERS:
        return import_module(f"learnreg.{name}")
    raise AttributeError(f"module 'learnreg' has no attribute {name!r}")
