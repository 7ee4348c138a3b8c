"""A fixed regularizer times one learnable factor. Gradients, certificates and the conformance suite run over the
registry; here is what ``Scaled`` alone promises."""

from __future__ import annotations

import math

import pytest
import torch

import learnreg as lr
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, Scaled, TotalVariation

SHAPE = (1, 8, 9)


class Conditioned(Regularizer):
    """Total variation whose weight is the noise level."""

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.tv = TotalVariation(sigma)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        return self.tv.saddle_terms(image_shape)

    def at(self, sigma: float) -> Conditioned:
        return Conditioned(sigma)


def test_it_is_the_factor_times_a_copy(generator: torch.Generator) -> None:
    base = FieldsOfExperts(3, 3)
    scaled = Scaled(base, 0.25)
    x = torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64)
    value = base.value(x)
    torch.testing.assert_close(scaled.value(x), 0.25 * value)
    assert [name for name, p in scaled.named_parameters() if p.requires_grad] == ["log_factor"]
    assert all(p.requires_grad for p in base.parameters()), "the regularizer itself stays as it is"
    with torch.no_grad():
        base.log_weights.add_(1.0)
    torch.testing.assert_close(scaled.value(x), 0.25 * value)
    assert float(scaled.factor.detach()) == pytest.approx(0.25)


def test_it_equals_the_data_term_divided(generator: torch.Generator) -> None:
    """argmin ½‖x - b‖² + c R(x) is that of 1/c ½‖x - b‖² + R(x)."""
    base, b = TotalVariation(0.2, 0.05), torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64)
    scaled = lr.solve(lr.LowerLevelProblem(Identity(SHAPE), Scaled(base, 0.5)), b, tolerance=1e-7)
    divided = lr.LowerLevelProblem(Identity(SHAPE), base, data_term=lr.WeightedLeastSquares(torch.tensor(2.0)))
    torch.testing.assert_close(scaled.x, lr.solve(divided, b, tolerance=1e-7).x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("certificate", ["published", "sharp"])
def test_the_bound_covers_the_sum_over_channels(certificate: str, generator: torch.Generator) -> None:
    """The factor's gradient sums those of all log-weights, so that a bound for one channel at a time is too small: here
    by the root of 16 equal channels, with an error of X along the gradient's own direction and a Hessian near I."""
    filters = torch.randn(1, 3, 3, dtype=torch.float64, generator=generator).expand(16, 3, 3)
    base = FieldsOfExperts.from_arrays(filters, torch.full((16,), 1e-4), torch.full((16,), 0.1))
    x_true = torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=generator, dtype=torch.float64)
    problem, loss = lr.LowerLevelProblem(Identity(SHAPE), Scaled(base).double()), lr.SquaredError(x_true)
    x = lr.solve(problem, b, tolerance=1e-10).x
    hessian = torch.autograd.functional.hessian(lambda flat: problem.energy(flat.view_as(x), b).sum(), x.flatten())
    X = -torch.linalg.solve(hessian, (x - x_true).flatten()).view_as(x)
    direction = torch.autograd.functional.jacobian(problem.regularizer.value, x)[0].detach()
    exact, size = float((direction * X).sum()), 1e-3
    found = lr.certify(problem, b, loss, x, X + size * direction / direction.norm(), certificate=certificate)
    assert found.certified
    error = abs(float(found.gradient["log_factor"]) - exact)
    assert error == pytest.approx(size * float(direction.norm()), rel=1e-3)
    assert error <= found.gradient_error_bound <= 2.0 * error


def test_noise_levels_reach_the_base() -> None:
    scaled = Scaled(Conditioned(), 2.0)
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    at = scaled.at(0.3)
    torch.testing.assert_close(at.value(x), 2.0 * TotalVariation(0.3).value(x))
    assert at.log_factor is scaled.log_factor
    assert isinstance(scaled.base, Conditioned), "at() leaves the regularizer as it is"
    plain = Scaled(TotalVariation())
    assert plain.at(0.3) is plain


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_factors_are_positive(factor: float) -> None:
    with pytest.raises(lr.ConfigError, match="expected a positive finite number"):
        Scaled(TotalVariation(), factor)
    with pytest.raises(lr.ConfigError, match="got float, expected a Regularizer"):
        Scaled(0.3)  # type: ignore[arg-type]
