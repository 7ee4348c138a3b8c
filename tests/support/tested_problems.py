"""Small problems that tests of what certificates rest on start from."""

from __future__ import annotations

import math
from typing import Any

import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.regularizers import FieldsOfExperts

SHAPE = (1, 5, 6)


def experts() -> FieldsOfExperts:
    return FieldsOfExperts(3, 3, generator=torch.Generator().manual_seed(1)).double()


def problem_with(operator: LinearOperator, **options: Any) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = lr.LowerLevelProblem(operator, experts(), ridge=0.1, **options)
    b = registry.rand(2, *operator.range_shape, seed=3)
    return problem, b, lr.SquaredError(registry.rand(2, *operator.domain_shape, seed=4))


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(registry.rand(*shape, seed=7) / math.prod(shape))
