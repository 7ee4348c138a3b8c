"""``operator_applications`` is the number of calls of K and K^T on the batch, x and X stacked counting 2."""

from __future__ import annotations

from typing import cast

import pytest
import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Identity
from learnreg.regularizers import AnalysisOperator


class Counting(LinearOperator):
    """A filter bank that counts its calls; an autograd backward pass through it counts, too."""

    def __init__(self, inner: FilterBank) -> None:
        super().__init__(inner.domain_shape, inner.range_shape)
        self.inner, self.calls, self.batch = inner, 0, 2

    def _count(self, samples: int) -> None:
        # a batch shrinks as samples finish, and x and X may be stacked: twice what is left of the batch
        self.__dict__["calls"] += 2 if samples > self.batch else 1  # no assignment: it would be examined again

    def forward(self, x: Tensor) -> Tensor:
        self._count(x.shape[0])
        result = cast(Tensor, self.inner(x))
        if result.requires_grad:
            result.register_hook(lambda _: self._count(x.shape[0]))
        return result

    def adjoint(self, y: Tensor) -> Tensor:
        self._count(y.shape[0])
        return self.inner.adjoint(y)

    def norm_bound(self) -> float:
        return self.inner.norm_bound()

    def row_norms(self, grouped: bool) -> Tensor | float:
        return self.inner.row_norms(grouped)

    def parameter_lipschitz(self) -> float | None:
        return self.inner.parameter_lipschitz()


@pytest.fixture(params=[True, False], ids=["learned", "fixed"])
def counting(request: pytest.FixtureRequest) -> tuple[lr.LowerLevelProblem, Counting]:
    filters = registry.randn(3, 3, 3, seed=1)
    bank = Counting(FilterBank(nn.Parameter(filters) if request.param else filters, registry.SHAPE, "zero"))
    regularizer = AnalysisOperator(bank, lr.PseudoHuber(0.1, 0.2)).double()
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), regularizer)
    problem.instance(registry.measure(problem)[1])  # the operator is examined once
    bank.__dict__["calls"] = 0  # not an assignment, after which it would be examined again
    return problem, bank


@pytest.mark.parametrize("solver", registry.SOLVERS)
@pytest.mark.parametrize("max_steps", [1, 7, None])
def test_solve_counts_every_call(
    counting: tuple[lr.LowerLevelProblem, Counting], solver: str, max_steps: int | None
) -> None:
    problem, bank = counting
    b = registry.measure(problem)[1]
    solution = lr.solve(problem, b, 1e-6, solver=solver, max_steps=max_steps)  # type: ignore[arg-type]
    assert solution.operator_applications == bank.calls
    assert isinstance(solution.operator_applications, int)


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize("max_steps", [1, None])
@pytest.mark.sampled(share=0.5, by=("method", "max_steps"))
def test_hypergradient_counts_every_call(
    counting: tuple[lr.LowerLevelProblem, Counting], method: str, max_steps: int | None
) -> None:
    problem, bank = counting
    x_true, b = registry.measure(problem)
    x_true, b = x_true[:1].expand(2, -1, -1, -1), b[:1].expand(2, -1, -1, -1).clone()  # both samples end together
    result = lr.hypergradient(
        problem, b, lr.SquaredError(x_true), registry.METHODS[method](), 1e-3, max_steps=max_steps
    )
    assert result.operator_applications == bank.calls


def test_a_step_is_one_forward_and_one_adjoint(counting: tuple[lr.LowerLevelProblem, Counting]) -> None:
    problem, bank = counting
    instance = problem.instance(registry.measure(problem)[1])
    for solver in registry.SOLVERS.values():
        with torch.no_grad():
            state = solver().init(instance, instance.q)
            before = bank.calls
            solver().step(instance, state)
            assert bank.calls - before == 2
