"""The first gradient of a bilevel objective: as cheap from 0 as that of the problem, whatever x is measured by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import learnreg as lr


def lower(x: Tensor, theta: Tensor, data: dict[str, Any]) -> Tensor:
    losses = cross_entropy(data["features"] @ x, data["labels"], reduction="none")
    return (theta.sigmoid() * losses).mean() + 5e-3 * x.square().sum()


def upper(x: Tensor, theta: Tensor, data: dict[str, Any]) -> Tensor:
    return cross_entropy(data["others"] @ x, data["labels"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_gradient_starts_warm(dtype: torch.dtype, generator: torch.Generator) -> None:
    features, others = torch.randn(2, 60, 5, generator=generator, dtype=dtype)
    labels = torch.randint(0, 3, (60,), generator=generator)
    data = {"features": features, "others": others, "labels": labels}
    theta, x = torch.zeros(60, dtype=dtype), torch.zeros(5, 3, dtype=dtype)
    problem = lr.BilevelProblem(lower, upper, strong_convexity=1e-2)
    expected = problem.hypergradient(theta, x, data, tolerance=0.1)
    objective = lr.BilevelObjective(problem.at(theta, x, data))
    torch.testing.assert_close(objective.x, x)
    found = objective.gradient(0.1)
    assert found.steps == expected.steps
    torch.testing.assert_close(found.gradient["theta0"], expected.gradient["theta"])
    assert objective.gradient(0.1).steps <= found.steps
