"""Constants that regularizers of one's own declare: bounds rest on them, and probes refuse what they contradict."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from support.own_values import OPERATORS, Declared, problem_of
from torch import Tensor, nn
from torch.nn import functional as F
from truth.by_energy import truth_by_energy
from truth.dense import distance, norm

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [
    (m, operator, plus) for m in (0.0, 0.4, -0.2) for operator in OPERATORS for plus in ("alone", "FieldsOfExperts")
]


@pytest.mark.parametrize(
    ("modulus", "operator", "plus"),
    [case if k % 5 == 0 else pytest.param(*case, marks=pytest.mark.slow(seconds=2)) for k, case in enumerate(CASES)],
)
def test_declared_constants_give_bounds_that_hold(modulus: float, operator: str, plus: str) -> None:
    R: Regularizer = Declared(modulus)
    problem = problem_of(R if plus == "alone" else 0.5 * R + registry.REGULARIZERS[plus](), operator)
    factor, data = (1.0 if plus == "alone" else 0.5), 1.0 if operator == "denoising" else 0.0
    assert problem.strong_convexity == pytest.approx(data + 0.3 + factor * modulus)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    solution = lr.solve(problem, b, 1e-5)
    assert (solution.status, solution.certified) == (lr.Status.CONVERGED, True)
    truth = truth_by_energy(problem, b, loss, solution.x)
    error = (solution.x - truth.x).square().flatten(1).mean(1).sqrt()
    assert bool((error <= solution.error_bound + 1e-12).all())
    for certificate, tolerance in (("sharp", 1e-1), ("sharp", 1e-3), ("published", 1e-1)):
        found = lr.hypergradient(problem, b, loss, tolerance=tolerance, certificate=certificate)  # type: ignore[arg-type]
        assert (found.status, found.certified) == (lr.Status.CONVERGED, True)
        # the truth's gradient of a parameter in float32 is rounded
        assert distance(found.gradient, truth.gradient) <= found.error_bound + 3e-7 * norm(truth.gradient)


def test_convexity_alone_bounds_x_and_not_the_gradient() -> None:
    class Convex(Declared):
        convex = True

    R = Convex()
    R.modulus = R.gradient_lipschitz = R.hessian_lipschitz = None
    problem = problem_of(R)
    x_true, b = registry.measure(problem)
    assert lr.solve(problem, b, 1e-5).certified
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true))
    assert (found.status, found.certified) == (lr.Status.ESTIMATED, False)
    assert found.reason == "Convex does not declare hessian_lipschitz"
    R.examine = False
    solution = lr.solve(problem, b, 1e-5)
    assert (solution.certified, solution.reason) == (False, "Convex was not examined (examine = False)")


@pytest.mark.parametrize("name", ["gradient_lipschitz", "hessian_lipschitz", "cross_bound", "cross_lipschitz"])
def test_a_constant_that_is_too_small_is_refused_with_what_was_found(name: str) -> None:
    R = Declared(0.1)
    setattr(R, name, 0.03)
    problem = problem_of(R)
    x_true, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=rf"Declared.{name} = 0.03 is declared, but near the solution [0-9.]+ was"):
        lr.hypergradient(problem, b, lr.SquaredError(x_true))


class OfEachPixel(Regularizer):
    """w · sum of log cosh(s x), whose constants single pixels show: an image of noise shows the Hessian's over √n."""

    convex = True

    def __init__(self, factor: float, weight: float = 0.1, steepness: float = 5.0) -> None:
        super().__init__()
        self.weight, self.steepness = nn.Parameter(torch.tensor(weight, dtype=torch.float64)), steepness
        self.gradient_lipschitz = weight * steepness**2
        self.hessian_lipschitz = factor * 0.7698 * weight * steepness**3
        self.cross_bound, self.cross_lipschitz = steepness * 16.0, steepness**2

    def value(self, x: Tensor) -> Tensor:
        t = (self.steepness * x).abs()
        return self.weight * (t + F.softplus(-2.0 * t) - math.log(2.0)).sum((1, 2, 3))


def test_constants_that_single_pixels_show_are_found() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 16, 16)), OfEachPixel(1.0))
    b = torch.linspace(-0.5, 0.5, 256, dtype=torch.float64).view(1, 1, 16, 16)
    loss = lr.SquaredError(torch.zeros_like(b))
    assert lr.hypergradient(problem, b, loss).certified
    for factor in (0.1, 0.3, 0.5):
        problem.regularizer = OfEachPixel(factor)
        with pytest.raises(lr.ConfigError, match=r"OfEachPixel\.hessian_lipschitz = [0-9.]+ is declared, but near"):
            lr.hypergradient(problem, b, loss)


@pytest.mark.parametrize("declared", [0.0, 0.5])
def test_a_modulus_that_is_too_large_is_refused(declared: float) -> None:
    R = Declared(-0.9, weight=0.01)
    R.modulus = declared
    problem = problem_of(R)
    _, b = registry.measure(problem)
    said = "convex = True" if declared == 0 else "modulus = 0.5"
    with pytest.raises(
        lr.ConfigError, match=rf"Declared.{said} is declared, but near the solution .* curvature -0\.[0-9]+;"
    ):
        lr.solve(problem, b, 1e-4)


def test_a_value_that_computes_in_float32_is_an_estimate() -> None:
    class Rounded(Declared):
        def value(self, x: Tensor) -> Tensor:
            return super().value(x.float()).to(x.dtype)

    problem = problem_of(Rounded())
    _, b = registry.measure(problem)
    solution = lr.solve(problem, b, 1e-4)
    assert not solution.certified
    assert "computes in torch.float32 inside" in solution.reason
