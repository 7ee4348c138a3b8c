"""What a solve saw on its way: as many looks as there were, and nothing that costs one."""

from __future__ import annotations

from typing import Any

import pytest
import registry
import torch

import learnreg as lr
from learnreg.operators import Identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("solver", "regularizer"),
    [*((solver, "TotalVariation") for solver in registry.SOLVERS), ("auto", "InputConvexNetwork-lifted")],
)
def test_bounds_and_applications_are_those_of_the_checks(regularizer: str, solver: Any, dtype: torch.dtype) -> None:
    problem = registry.build("denoising", regularizer)
    b = registry.measure(problem, 3)[1].to(dtype)
    solution = lr.solve(problem, b, 1e-5, solver=solver)
    history = solution.history
    assert len(history) >= 2
    assert history.error_bound.shape == history.residual.shape == (len(history), 3)
    assert history.error_bound.dtype == history.residual.dtype == dtype
    assert torch.equal(history.error_bound[-1], solution.error_bound)
    assert int(history.steps[-1]) == solution.steps
    assert bool((history.steps.diff() >= 0).all())
    assert bool((history.operator_applications.diff() >= 0).all())
    assert int(history.operator_applications[-1]) <= solution.operator_applications
    truth = lr.solve(problem, b.double(), 1e-9).x
    assert float((truth - solution.x).square().mean().sqrt()) <= 1e-5
    assert bool((history.error_bound[0] >= history.error_bound[-2] * 0.999).all())
    assert "History(checks=" in repr(history)


def test_without_a_bound_residuals_fall() -> None:
    problem = lr.LowerLevelProblem(
        lr.operators.Inpainting((registry.rand(*registry.SHAPE) > 0.4).double()),
        registry.REGULARIZERS["FieldsOfExperts"](),
    )
    b = registry.measure(problem)[1]
    history = lr.solve(problem, b, 1e-4).history
    assert bool(torch.isinf(history.error_bound[:-1]).all())
    assert bool((history.residual[-1] <= history.residual[0]).all())


def test_it_costs_no_application() -> None:
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), registry.REGULARIZERS["TotalVariation"]())
    b = registry.measure(problem)[1]
    solution = lr.solve(problem, b, 1e-5, solver="lbfgs")
    assert int(solution.history.operator_applications[0]) <= 3
    assert int(solution.history.operator_applications[-1]) == solution.operator_applications
