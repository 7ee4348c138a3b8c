"""Learn regularizers for imaging by bilevel optimisation, with certified hypergradients."""

from learnreg.convex import Box, LeastSquares, Nonnegative, WeightedLeastSquares
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
from learnreg.hypergradients.compute import Start, hypergradient
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.linop import LinearOperator, vstack
from learnreg.losses import SquaredError, UpperLoss
from learnreg.potentials import Huber, LogCosh, PseudoHuber
from learnreg.problem import LowerLevelProblem
from learnreg.result import Hypergradient, Solution, Status
from learnreg.solvers.solve import solve

__version__ = "0.1.0"

__all__ = [
    "AssumptionError",
    "Box",
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
    "Nonnegative",
    "OperatorError",
    "Piggyback",
    "PseudoHuber",
    "ShapeError",
    "Solution",
    "SolverError",
    "SquaredError",
    "Start",
    "Status",
    "UpperLoss",
    "WeightedLeastSquares",
    "hypergradient",
    "solve",
    "vstack",
]
