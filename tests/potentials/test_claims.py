"""Potentials of somebody else's class: what they claim is held against samples before anything rests on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.operators import Identity
from learnreg.potentials.base import Potential
from learnreg.potentials.claims import check_claims
from learnreg.potentials.curvature import CurvatureInterval
from learnreg.potentials.modulus import Modulus
from learnreg.regularizers import AnalysisOperator, Regularizer, SaddleTerms, TotalVariation

SHAPE = (1, 6, 7)


class Right(lr.PseudoHuber):
    """As it should be."""


class Gradient(lr.PseudoHuber):
    def grad(self, t: Tensor) -> Tensor:
        return 1.1 * super().grad(t)


class SecondDerivative(lr.PseudoHuber):
    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return 1.1 * super().hess_vec(t, v)


class Interval(lr.PseudoHuber):
    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = super().curvature_bounds(t, radius)
        return low, 0.5 * high


class LowerEnd(lr.PseudoHuber):
    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        high = super().curvature_bounds(t, radius)[1]
        return 0.9 * high, high


class Limit(lr.PseudoHuber):
    @property
    def curvature_limit(self) -> Tensor | float:
        return 0.2 * super().curvature_limit


class Change(lr.PseudoHuber):
    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return 0.01 * super().curvature_change(t, radius)


class Third(lr.LogCosh):
    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return 1e-3 * super().third_bound(t, radius)


class Sensitivity(lr.PseudoHuber):
    def smoothing_gradient(self, t: Tensor) -> Tensor:
        return 0.5 * super().smoothing_gradient(t)


class Steepness(lr.PseudoHuber):
    def smoothing_slope(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return 1e-3 * super().smoothing_slope(t, radius)


WRONG = (Gradient, SecondDerivative, Interval, LowerEnd, Limit, Change, Third, Sensitivity, Steepness)


class Own(Regularizer):
    """A regularizer of a user, which hands over a potential of a user."""

    def __init__(self, potential: type[lr.PseudoHuber], examine: bool = True) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.potential, self.examine = potential, examine
        self.filters = torch.tensor([[[1.0, -1.0], [0.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        bank = FilterBank(self.filters, image_shape, "reflect")
        return SaddleTerms(bank, self.potential(0.1, 0.1 * self.log_weight.exp()))

    def parameter_roles(self) -> dict[str, str]:
        return {"log_weight": "log_weight"}


def problem(R: Regularizer) -> tuple[lr.LowerLevelProblem, Tensor]:
    b = torch.rand(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return lr.LowerLevelProblem(Identity(SHAPE), R), b


@pytest.mark.parametrize("potential", WRONG)
def test_a_wrong_potential_is_named(potential: type[Potential]) -> None:
    made = (Own(potential), Own(potential) + TotalVariation(0.1, 0.1).double())
    for R in (*made, AnalysisOperator(Identity(SHAPE), potential(0.1))):
        with pytest.raises(lr.ConfigError, match=rf"{potential.__name__}\.[a-z_]+.* is wrong, or no bound"):
            lr.solve(*problem(R), 1e-2)


def test_a_right_one_is_certified() -> None:
    p, b = problem(Own(Right) + TotalVariation(0.1, 0.1).double())
    found = lr.hypergradient(p, b, lr.SquaredError(b), tolerance=1e-2)
    assert (found.certified, found.reason) == (True, "")


@pytest.mark.parametrize("potential", [Right, Limit])
def test_without_examination_there_are_estimates_that_say_so(potential: type[lr.PseudoHuber]) -> None:
    p, b = problem(Own(potential, examine=False))
    solution = lr.solve(p, b, 1e-2)
    assert (solution.certified, solution.bound_kind) == (False, "estimate")
    assert f"{potential.__name__} was not examined" in solution.reason
    assert not lr.hypergradient(p, b, lr.SquaredError(b), tolerance=1e-1).certified


def test_large_responses_are_examined_on_a_few() -> None:
    seen = []

    class Counted(Right):
        def grad(self, t: Tensor) -> Tensor:
            seen.append(t[0].numel())
            return super().grad(t)

    check_claims(Counted(0.1), (24, 4000, 3000))
    assert max(seen) == 24 * 16 * 16
    check_claims(Counted(0.1, torch.ones(2, 5, 40)), (2, 5, 40))
    assert max(seen[-3:]) == 2 * 5 * 40


class Kept(lr.PseudoHuber):
    """Returns numbers that it keeps, and one for all places."""

    def curvature_interval(self, t: Tensor, radius: Tensor | float) -> CurvatureInterval:
        return Potential.curvature_interval(self, t, radius)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        kept = self.__dict__.setdefault("kept", torch.tensor(0.86 * 0.1 / 0.1**2, dtype=torch.float64))
        return kept.expand_as(t)


def test_bounds_leave_alone_what_a_potential_returned() -> None:
    p, b = problem(Own(Kept))
    found = lr.hypergradient(p, b, lr.SquaredError(b.flip(3)), tolerance=1e-3)
    assert (found.certified, found.status) == (True, lr.Status.CONVERGED)


@pytest.mark.parametrize("kind", [Gradient, Interval])
def test_what_sees_a_modulus_is_held_against_samples(kind: type[lr.PseudoHuber]) -> None:
    check_claims(Modulus(Right(0.1)), (2, 3, 6, 7))
    with pytest.raises(lr.ConfigError, match=rf"{kind.__name__}\..* is wrong"):
        check_claims(Modulus(kind(0.1)), (2, 3, 6, 7))
