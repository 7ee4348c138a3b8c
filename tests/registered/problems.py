"""Lower-level problems for registered regularizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from registered.operators import delta
from registered.randomness import SHAPE, rand, randn, scalar
from registered.regularizers import REGULARIZERS
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity, Inpainting

__all__ = ["PROBLEMS", "ProblemCase", "build", "measure"]


@dataclass(frozen=True)
class ProblemCase:
    """A forward operator with what else the lower level needs to be strongly convex."""

    operator: Callable[[], LinearOperator]
    ridge: Callable[[], float | nn.Parameter] = lambda: 0.0
    data_term: Callable[[], lr.LeastSquares] = lr.LeastSquares


def _weights(learnable: bool) -> lr.WeightedLeastSquares:
    weights = rand(*SHAPE, seed=11) * (rand(*SHAPE, seed=12) > 0.2)
    return lr.WeightedLeastSquares(nn.Parameter(weights) if learnable else weights)


PROBLEMS: dict[str, ProblemCase] = {
    "denoising": ProblemCase(lambda: Identity(SHAPE)),
    "denoising-learned-ridge": ProblemCase(lambda: Identity(SHAPE), lambda: scalar(0.3)),
    "learned-blur": ProblemCase(lambda: Blur(nn.Parameter(rand(3, 3) / 4), SHAPE, "reflect"), lambda: 0.2),
    "circular-blur": ProblemCase(lambda: Blur(delta(3) + 0.05 * rand(3, 3), SHAPE, "circular")),
    "inpainting": ProblemCase(lambda: Inpainting((rand(*SHAPE) > 0.4).double()), lambda: 0.1),
    "learned-weights": ProblemCase(lambda: Identity(SHAPE), lambda: 0.2, lambda: _weights(True)),
    "learned-scalar-weight": ProblemCase(
        lambda: Identity(SHAPE), lambda: 0.0, lambda: lr.WeightedLeastSquares(scalar(0.7))
    ),
    "weights-and-blur": ProblemCase(
        lambda: Blur(nn.Parameter(randn(2, 3, seed=2) / 4), SHAPE), lambda: scalar(0.3), lambda: _weights(True)
    ),
}


def build(problem: str, regularizer: str, constraint: lr.Box | None = None) -> lr.LowerLevelProblem:
    """A registered problem with a registered regularizer, in float64."""
    case = PROBLEMS[problem]
    return lr.LowerLevelProblem(
        case.operator(), REGULARIZERS[regularizer](), ridge=case.ridge(), data_term=case.data_term(),
        constraint=constraint,
    )  # fmt: skip


def measure(problem: lr.LowerLevelProblem, batch: int = 2, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Ground truth and measurement."""
    x_true = rand(batch, *problem.operator.domain_shape, seed=20)
    with torch.no_grad():
        b = problem.operator(x_true)
    return x_true, b + noise * randn(*b.shape, seed=21)
