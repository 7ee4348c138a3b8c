"""A frozen problem stays as it was; what is shared stays shared."""

from __future__ import annotations

import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity
from learnreg.regularizers import AnalysisOperator

SHAPE = registry.SHAPE


def spoil(problem: lr.LowerLevelProblem) -> None:
    """Change all parameters without a trace."""
    for p in problem.parameters():
        p.data.mul_(3.0)


def test_later_changes_of_parameters_do_not_reach_it() -> None:
    problem = registry.build("weights-and-blur", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    loss, tolerance = lr.SquaredError(x_true), 1e-3
    expected = lr.hypergradient(problem, b, loss, tolerance=tolerance)
    frozen = problem.frozen()
    spoil(problem)
    assert torch.equal(lr.solve(frozen, b, 1e-6).x, lr.solve(frozen, b, 1e-6).x)
    found = lr.hypergradient(frozen, b, loss, tolerance=tolerance)
    assert all(torch.equal(found.gradient[name], g) for name, g in expected.gradient.items())
    assert found.error_bound == expected.error_bound
    other = lr.hypergradient(problem, b, loss, tolerance=tolerance)
    assert not torch.equal(other.gradient["filters"], expected.gradient["filters"])


def test_what_is_not_learned_is_shared() -> None:
    problem = registry.build("circular-blur", "FieldsOfExperts")
    frozen = problem.frozen()
    assert frozen.frozen() is frozen
    assert frozen.operator is problem.operator
    assert frozen.regularizer is not problem.regularizer
    assert set(frozen.parameters) == set(problem.learnable())
    assert all(frozen.parameters[name] is not p for name, p in problem.learnable().items())


def test_a_tied_parameter_has_one_twin() -> None:
    kernel = nn.Parameter(registry.rand(3, 3) / 9)
    bank = FilterBank(nn.Parameter(registry.randn(2, 3, 3)), SHAPE, "zero")
    operator = Blur(kernel, SHAPE) @ Blur(kernel, SHAPE)
    problem = lr.LowerLevelProblem(operator, AnalysisOperator(bank, lr.PseudoHuber(0.1)).double(), ridge=0.2)
    first, second = (part.kernel for part in (problem.frozen().operator.first, problem.frozen().operator.second))
    assert first is not kernel
    twin = problem.frozen().operator
    assert twin.first.kernel is twin.second.kernel
    assert torch.equal(first, kernel)
    assert torch.equal(second, kernel)


class Foreign(LinearOperator):
    """Of a user: a factor to learn, and a count of its own calls."""

    def __init__(self) -> None:
        super().__init__(SHAPE, SHAPE)
        self.factor, self.calls = nn.Parameter(torch.tensor(0.7, dtype=torch.float64)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * x

    def adjoint(self, y: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * y


def test_foreign_modules_stay_themselves() -> None:
    operator = Foreign()
    problem = lr.LowerLevelProblem(operator, registry.build("denoising", "FieldsOfExperts").regularizer, ridge=0.3)
    assert problem.frozen().operator is operator
    x_true, b = registry.measure(problem)
    before = operator.calls
    hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
    assert operator.calls > before
    assert float(hg.gradient["operator.factor"]) != 0.0


def test_the_layer_differentiates_at_the_parameters_of_its_forward_pass() -> None:
    gradients = []
    for spoiled in (False, True):
        problem = registry.build("denoising", "FieldsOfExperts")
        b = registry.measure(problem)[1]
        x = lr.solution_layer(problem, tolerance=1e-6)(b)
        if spoiled:
            spoil(problem)
        x.square().sum().backward()
        gradients.append([p.grad for p in problem.learnable().values()])
    assert all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))


def test_norms_are_found_again_when_an_operator_changes_and_only_then() -> None:
    bank = FilterBank(registry.randn(3, 3, 3), (1, 12, 12), "zero")
    searches = []
    find = bank._find_norm
    bank.__dict__["_find_norm"] = lambda: searches.append(1) or find()
    norm = bank.norm_bound()
    bank(registry.rand(1, 1, 12, 12))
    assert bank.norm_bound() == norm
    assert len(searches) == 1
    bank.filters.mul_(2.0)
    assert abs(bank.norm_bound() - 2.0 * norm) <= 1e-9 * norm
    bank.filters = registry.randn(3, 3, 3, seed=5)
    bank.norm_bound()
    assert len(searches) == 3
    foreign = Foreign().requires_grad_(False)
    assert foreign.norm_bound() == foreign.norm_bound()
    calls = foreign.calls
    foreign(registry.rand(1, *SHAPE))
    foreign.norm_bound()
    assert foreign.calls == calls + 1, "what an operator counts while it is applied is no change of it"
    assert Identity(SHAPE).norm_bound() == 1.0
