"""Total variation with the best weight for given samples: what a learned regularizer is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.progress import Count
from learnreg.regularizers import TotalVariation
from learnreg.solvers.solve import solve
from learnreg.training.sources import PairedDataset
from learnreg.training.start_tuning import least_loss

__all__ = ["WEIGHT_OF_NOISE", "tune_total_variation"]

WEIGHT_OF_NOISE = 0.8
"""About the best weight for denoising, over the noise level: where searches begin."""
_WEIGHT_STEP = 1.6


@torch.no_grad()
def tune_total_variation(problem: LowerLevelProblem, pairs: PairedDataset, samples: int, tolerance: float) -> float:
    """Set the weight of the problem's TotalVariation to the one with the least squared error on the first samples:
    steps by a factor of 1.6 until they bracket it, then the vertex of the parabola through the bracket, in the
    logarithm of the weight. Each reconstruction to ``tolerance``, started from the last one. Returns the weight."""
    regularizer = problem.regularizer
    assert isinstance(regularizer, TotalVariation)
    b, x_true = (torch.stack(column) for column in zip(*(pairs[i][:2] for i in range(samples)), strict=True))
    start: Tensor | None = None

    def loss(log_weight: float) -> float:
        nonlocal start
        regularizer.log_weight.fill_(log_weight)
        start = solve(problem, b, tolerance, start=start).x
        count.update(f"last one {math.exp(log_weight):.3g}")
        return float((start - x_true).double().square().sum())

    with Count("weights of total variation tried", None) as count:
        best = least_loss(loss, float(regularizer.log_weight), math.log(_WEIGHT_STEP))
    regularizer.log_weight.fill_(best)
    return float(regularizer.weight)
