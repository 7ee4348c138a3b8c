"""Bounds that an operator of another class declares: wrong ones are named, right ones pass, for few applications."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.bound_examination import wrong_bound
from learnreg.linear.operator import LinearOperator
from learnreg.regularizers import AnalysisOperator, TotalVariation


class Rotation(LinearOperator):
    """A learned factor of the pair (x, x less 0.9 of its share of a checkerboard) with signs: its constants are in
    closed form. Counts its calls."""

    def __init__(self, side: int, **factors: float) -> None:
        super().__init__((1, side, side), (2, side, side))
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        sign = 1.0 - 2.0 * ((torch.arange(side)[:, None] + torch.arange(side)) % 2).double()
        self.register_buffer("pattern", sign / sign.norm())
        self.factors = factors
        self.__dict__["calls"] = 0

    def _shrunk(self, x: Tensor) -> Tensor:
        """√(1 - 0.9) of the checkerboard in x."""
        share = (self.pattern.to(x) * x).sum((-2, -1), keepdim=True)
        return x - (1.0 - math.sqrt(0.1)) * share * self.pattern.to(x)

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["calls"] += 1
        part = self._shrunk(x)
        return self.scale.to(x) * torch.cat([part, -part], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        self.__dict__["calls"] += 1
        return self.scale.to(y) * self._shrunk(y[:, :1] - y[:, 1:])

    def norm_bound(self) -> float:
        return self.factors.get("norm_bound", 1.0) * math.sqrt(2.0)

    def gram_lower_bound(self) -> float:
        return self.factors.get("gram_lower_bound", 1.0) * 0.2

    def row_norms(self, grouped: bool) -> float:
        return self.factors.get("row_norms", 1.0)

    def parameter_lipschitz(self) -> float:
        return self.factors.get("parameter_lipschitz", 1.0) * math.sqrt(2.0)


def refuse(operator: LinearOperator, forward: bool) -> None:
    """Ask for a solution, which freezes the problem."""
    inner = operator if forward else lr.operators.Identity(operator.domain_shape)
    R = TotalVariation(0.1, 0.1) if forward else AnalysisOperator(operator, lr.PseudoHuber(0.1, 0.1))
    problem = lr.LowerLevelProblem(inner, R.double(), ridge=0.1)
    lr.solve(problem, registry.randn(1, *inner.range_shape, seed=1), 1.0, max_steps=1)


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "analysis"])
@pytest.mark.parametrize("side", [6, 34], ids=["by its matrix", "by a few images"])
@pytest.mark.parametrize("name", ["norm_bound", "row_norms", "parameter_lipschitz"])
def test_a_bound_that_is_too_small_is_refused(name: str, side: int, forward: bool) -> None:
    for factor in (0.1, 0.5):
        with pytest.raises(lr.OperatorError, match=rf"Rotation: its {name}\(\) is [0-9.]+, but [0-9.]+ was found"):
            refuse(Rotation(side, **{name: factor}), forward)
    for factor in (1.0, 2.0):
        refuse(Rotation(side, **{name: factor}), forward)


class Entries(LinearOperator):
    """A matrix of learned numbers of single precision; ‖∂_theta <A u, p>‖ = ‖u‖ ‖p‖."""

    def __init__(self, seed: int) -> None:
        super().__init__((1, 3, 3), (7,))
        self.matrix = nn.Parameter(registry.randn(7, 9, seed=seed).float())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y.dtype)).reshape(-1, *self.domain_shape)

    def parameter_lipschitz(self) -> float:
        return 1.0


def test_rounding_of_parameters_contradicts_no_bound() -> None:
    x = registry.randn(2, 1, 3, 3, seed=2)
    assert [wrong_bound(Entries(seed), x, 1e-12) for seed in range(20)] == [("", "")] * 20


def test_a_lower_bound_that_is_too_large_is_refused() -> None:
    with pytest.raises(
        lr.OperatorError, match=r"its gram_lower_bound\(\) is 0.22, but of some image .* is 0.2 "
    ) as found:
        refuse(Rotation(6, gram_lower_bound=1.1), True)
    assert found.value.failed_property == "gram_lower_bound"
    with pytest.raises(lr.OperatorError, match=r"its gram_lower_bound\(\) is 0.4, but of some image"):
        refuse(Rotation(34, gram_lower_bound=2.0), True)
    refuse(Rotation(34), True)


class Weights(LinearOperator):
    """Multiplies by numbers between 1 and 2, in no order: the smallest belongs to one pixel."""

    def __init__(self, declared: float) -> None:
        super().__init__((1, 40, 40), (1, 40, 40))
        self.declared = declared

    def forward(self, x: Tensor) -> Tensor:
        n = x[0].numel()
        return x * (1.0 + (torch.arange(n) * 7919 % n).to(x) / (n - 1)).view(x.shape[1:])

    adjoint = forward

    def gram_lower_bound(self) -> float:
        return self.declared


@pytest.mark.parametrize(("declared", "named"), [(1.0, ""), (1.5, "gram_lower_bound")])
def test_smallest_eigenvalues_are_approached_from_noise(declared: float, named: str) -> None:
    assert wrong_bound(Weights(declared), registry.randn(2, 1, 40, 40, seed=4), 1e-9)[0] == named


@pytest.mark.parametrize(("side", "allowed"), [(6, 1), (20, 2), (34, 10)])
def test_looking_at_bounds_takes_few_applications(side: int, allowed: int) -> None:
    operator = Rotation(side)
    operator.scale.requires_grad_(False)
    x = registry.randn(2, *operator.domain_shape, seed=2)
    before = operator.calls
    assert wrong_bound(operator, x, 1e-9) == ("", "")
    assert operator.calls - before <= allowed


@pytest.mark.parametrize("name", registry.OPERATORS)
def test_what_this_package_declares_passes(name: str) -> None:
    operator = registry.OPERATORS[name]()
    x = registry.randn(2, *operator.domain_shape, seed=3)
    assert wrong_bound(operator, x, 1e-4) == ("", "")
