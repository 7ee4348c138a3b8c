"""The metric of primal steps: the condition of the primal-dual method holds, and iterations gain by it."""

from __future__ import annotations

import pytest
import registry
import torch

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.convolutions.padding import BOUNDARIES
from learnreg.linear.norms import dense_matrix
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts
from learnreg.solvers import PDHG, AdjointPDHG, iterate
from learnreg.solvers.pdhg import StepSizes
from learnreg.solvers.spectral_metric import SpectralMetric

SHAPE = (1, 11, 9)
EXACT = ("valid", "circular")


def bank(boundary: str, shape: tuple[int, int, int] = SHAPE, k: int = 4) -> FilterBank:
    return FilterBank(registry.randn(5, 3, k, seed=3), shape, boundary)  # type: ignore[arg-type]


def instance_of(problem: lr.LowerLevelProblem) -> Instance:
    return problem.instance(registry.rand(2, *problem.operator.range_shape, seed=5))


@pytest.mark.parametrize("boundary", EXACT)
@pytest.mark.parametrize("shape", [SHAPE, (1, 7, 16)])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
@torch.no_grad()
def test_the_condition_of_the_primal_dual_method_holds(boundary: str, shape: tuple[int, int, int], size: float) -> None:
    """The largest eigenvalue of P (d + K^T Sigma K), P the step, is below 1 exactly if T^-1 > K^T Sigma K."""
    K, scaling = bank(boundary, shape), registry.rand(5, 1, 1, seed=7) + 0.1
    problem = lr.LowerLevelProblem(Identity(shape), AnalysisOperator(K, lr.PseudoHuber(0.1)))
    metric = SpectralMetric.of(instance_of(problem), scaling)
    assert metric is not None
    step = dense_matrix(lambda v: metric.step(v, torch.full((len(v),), size, dtype=v.dtype)), shape)
    rows = (size * scaling).sqrt().expand(K.range_shape).reshape(-1, 1) * dense_matrix(K, shape)
    torch.testing.assert_close(step, step.T)
    lower = torch.linalg.inv(step) - torch.eye(step.shape[0], dtype=step.dtype) - rows.T @ rows
    assert float(torch.linalg.eigvalsh(lower).min()) > -1e-9 * size
    norm = metric.norm(registry.randn(3, *shape, seed=2))
    images = registry.randn(3, *shape, seed=2).flatten(1)
    assert bool((norm * size**0.5 >= (images @ rows.T).norm(dim=1) * (1.0 - 1e-9)).all())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_there_is_none_where_rows_see_beyond_the_image(boundary: str) -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), AnalysisOperator(bank(boundary), lr.PseudoHuber(0.1)))
    assert (StepSizes.of(instance_of(problem)).metric is not None) == (boundary in EXACT)


@pytest.mark.parametrize(
    "problem",
    [
        lr.LowerLevelProblem(
            Identity(SHAPE), AnalysisOperator(bank("valid"), lr.PseudoHuber(0.1)), constraint=lr.Box(0.0)
        ),
        lr.LowerLevelProblem(
            Inpainting(registry.rand(*SHAPE, seed=1)), AnalysisOperator(bank("valid"), lr.LogCosh(0.1))
        ),
        lr.LowerLevelProblem(Blur(torch.ones(3, 3) / 9, SHAPE), AnalysisOperator(bank("valid"), lr.PseudoHuber(0.1))),
    ],
    ids=["box", "mask", "blur"],
)
def test_there_is_none_without_a_scalar_data_term(problem: lr.LowerLevelProblem) -> None:
    assert StepSizes.of(instance_of(problem)).metric is None


def uneven(boundary: str) -> FieldsOfExperts:
    """Filters that see frequencies unequally, as trained ones do, with weights and smoothings of many sizes."""
    filters = registry.randn(6, 3, 3, seed=4)
    filters = torch.nn.functional.conv2d(filters[:, None], torch.ones(1, 1, 2, 2).double(), padding=1)[:, 0]
    return FieldsOfExperts.from_arrays(
        filters, 10.0 ** -torch.arange(6) * 3.0, 10.0 ** -torch.arange(1, 7) * 2.0, boundary
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("boundary", EXACT)
@torch.no_grad()
def test_both_iterations_converge_to_the_dense_solutions(boundary: str) -> None:
    problem = lr.LowerLevelProblem(Identity((1, 12, 12)), uneven(boundary).double())
    instance = instance_of(problem)
    assert StepSizes.of(instance).metric is not None
    goal, never = torch.full((2,), 1e-10, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    found = iterate(PDHG(), instance, instance.q, goal, never, 5000).x
    assert float(instance.full_gradient(found).flatten(1).norm(dim=1).max()) < 1e-7
    equation = AdjointEquation.at(instance, found, instance.apply(found), registry.randn(2, 1, 12, 12, seed=9))
    X = iterate(AdjointPDHG(), equation, torch.zeros_like(found), goal, never, 5000).x
    for i in range(2):
        part = equation.select(torch.tensor([i]))
        H = dense_matrix(lambda v, part=part: torch.cat([part.hessian(u[None]) for u in v]), (1, 12, 12))  # type: ignore[misc]
        exact = torch.linalg.solve(H, part.rhs.flatten())
        torch.testing.assert_close(X[i].flatten(), exact, rtol=1e-8, atol=1e-9)


def test_groups_share_their_scaling() -> None:
    grouped = registry.build("denoising", "MultivariateExperts")
    instance = instance_of(grouped)
    assert isinstance(instance.analysis, GroupedFilterBank)
    assert StepSizes.of(instance).metric is not None
