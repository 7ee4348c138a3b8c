"""A fixed regularizer times one learnable factor. Gradients, certificates and the conformance suite run over the
registry; here is what ``Scaled`` alone promises."""

from __future__ import annotations

import math

import pytest
import torch

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, Scaled, TotalVariation
from learnreg.regularizers.base import SaddleTerms

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


def test_the_bound_covers_the_sum_over_channels(rotating_generator: torch.Generator) -> None:
    """The factor's gradient sums those of all log-weights; a bound for one channel at a time would be too small."""
    base = FieldsOfExperts(12, 4, lr.PseudoHuber(0.05, 2.0), generator=rotating_generator).double()
    x_true = torch.rand(2, *SHAPE, generator=rotating_generator, dtype=torch.float64)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=rotating_generator, dtype=torch.float64)
    problem, loss = lr.LowerLevelProblem(Identity(SHAPE), Scaled(base).double()), lr.SquaredError(x_true)
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-9).gradient["log_factor"]
    for size in (1e-2, 1e-4):
        x = lr.solve(problem, b, tolerance=1e-8).x
        x = x + size * torch.randn(x.shape, generator=rotating_generator, dtype=torch.float64)
        for certificate in ("published", "sharp"):
            found = lr.certify(problem, b, loss, x, certificate=certificate)
            assert found.certified
            error = abs(float(found.gradient["log_factor"] - exact))
            assert error <= found.gradient_error_bound + 1e-8 * abs(float(exact))


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
