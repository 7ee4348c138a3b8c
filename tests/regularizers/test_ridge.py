"""Ridge regularizers: composed filters, their Jacobian, certified gradients in all raw parameters, noise levels."""

from __future__ import annotations

import math

import pytest
import registry
import torch
import torch.nn.functional as F
from torch import Tensor
from truth.dense import distance, norm, truth_of

import learnreg as lr
from learnreg.certificates.judgement import judge
from learnreg.convolutions.composition import compose, jacobian_bound, normalised, spectral_norm, zero_mean
from learnreg.lower_level.point import Point
from learnreg.lower_level.regularizer import Regularizer
from learnreg.models.names import build_regularizer, describe_regularizer
from learnreg.operators import Identity
from learnreg.regularizers import RidgeRegularizer


def factors(seed: int = 0, channels: tuple[int, ...] = (2, 3, 4), size: int = 3) -> list[Tensor]:
    shapes = zip(channels, (1, *channels[:-1]), strict=True)
    return [registry.randn(n, c, size, size, seed=seed + i) for i, (n, c) in enumerate(shapes)]


def default(seed: int = 0, **options: object) -> RidgeRegularizer:
    generator = torch.Generator().manual_seed(seed)
    return RidgeRegularizer(generator=generator, **options).double()  # type: ignore[arg-type]


def noisy(n: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    x_true = registry.rand(batch, 1, n, n, seed=1)
    return x_true, x_true + 0.1 * registry.randn(batch, 1, n, n, seed=2)


def test_one_bank_is_all_convolutions_one_after_the_other() -> None:
    kernels, x = factors(), registry.randn(2, 1, 12, 13, seed=9)
    expected = x
    for kernel in kernels:
        expected = F.conv2d(expected, kernel)
    torch.testing.assert_close(F.conv2d(x, compose(kernels)), expected, rtol=1e-12, atol=1e-12)


def test_filters_have_zero_means_and_a_norm_of_one() -> None:
    filters = default().effective_filters.detach()
    assert filters.shape == (32, 13, 13)
    assert float(filters.sum((1, 2)).abs().max()) < 1e-14
    assert float(spectral_norm(filters[:, None])) == pytest.approx(1.0, rel=1e-12)
    for sides in ((8, 8), (40, 37)):
        bank = default().saddle_terms((1, *sides)).operator
        assert 0.7 < bank.norm_bound() < 1.05
        assert bank.norm_bound_kind == "rigorous"


def test_the_jacobian_bound_is_one_for_every_random_bank(rotating_seed: int) -> None:
    """Against the dense Jacobian; not far above it."""
    for trial in range(20):
        kernels = factors(rotating_seed % 10**6 + 10 * trial, (2, 2, 3) if trial % 2 else (3, 2), 2 + trial % 2)
        jacobians = torch.autograd.functional.jacobian(lambda *k: normalised(k), tuple(kernels))
        dense = torch.cat([j.flatten(4).flatten(0, 3) for j in jacobians], 1)
        exact, bound = float(torch.linalg.matrix_norm(dense, 2)), jacobian_bound(kernels)
        assert exact <= bound
        assert bound <= 6.0 * exact


def test_means_are_taken_out_once() -> None:
    kernels = factors()
    shifted = [kernels[0] + 3.0, *kernels[1:]]
    torch.testing.assert_close(normalised(kernels), normalised(shifted), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(zero_mean(kernels[0]).mean((-2, -1)), torch.zeros(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"shared": True, "noise_conditioned": True}], ids=["default", "shared"])
def test_hypergradients_equal_dense_ones_at_the_smallest_size(options: dict[str, bool]) -> None:
    x_true, b = noisy(8, batch=2)
    regularizer: Regularizer = default(**options)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), regularizer, noise_level=0.06)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    assert truth.usable
    result = lr.hypergradient(problem, b, loss, lr.Implicit(), tolerance=1e-6)
    assert result.certified
    assert set(result.gradient) == {name for name, _ in regularizer.named_parameters()}
    error = distance(result.gradient, truth.gradient)
    assert error <= min(result.error_bound + truth.gradient_slack, 1e-6 * norm(truth.gradient))
    for name, gradient in truth.gradient.items():
        assert float(gradient.norm()) > 0, name


@pytest.mark.parametrize("regularizer", ["RidgeRegularizer", "RidgeRegularizer-shared", "RidgeRegularizer-noise"])
@pytest.mark.parametrize("kind", ["sharp", "published"])
@pytest.mark.sampled(share=0.5, by=("regularizer", "kind"))
def test_each_group_alone_is_certified(regularizer: str, kind: str) -> None:
    """With one kind of parameter learned at a time nothing else can pay for a bound that is too small."""
    problem = registry.build("denoising", regularizer)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    for role in set(problem.frozen().parameter_roles().values()):
        for name, p in problem.regularizer.named_parameters():
            p.requires_grad_(problem.frozen().parameter_roles()[name] == role)
        for tolerance in (10.0, 1e-2, 1e-5):
            result = lr.hypergradient(problem, b, loss, tolerance=tolerance, certificate=kind)  # type: ignore[arg-type]
            assert result.certified
            expected = {name: truth.gradient[name] for name in result.gradient}
            assert distance(result.gradient, expected) <= result.error_bound + truth.gradient_slack, role


@pytest.mark.parametrize("kind", ["sharp", "published"])
def test_bounds_are_those_of_the_filters_times_the_jacobian(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = registry.build("denoising", "RidgeRegularizer")
    x_true, b = registry.measure(problem)
    for name, p in problem.regularizer.named_parameters():
        p.requires_grad_(name.startswith("factors"))
    J = problem.frozen().jacobian_bounds["operator"]

    def bound_with(jacobian: float) -> float:
        monkeypatch.setattr(RidgeRegularizer, "parameter_jacobian_bounds", lambda self: {"operator": jacobian})
        X = 0.1 * registry.randn(*x_true.shape, seed=5)
        return judge(Point.of(problem, b, lr.SquaredError(x_true), x_true, X), kind).error_bound  # type: ignore[arg-type]

    assert bound_with(2.0 * J) == pytest.approx(2.0 * bound_with(J), rel=1e-9)


def test_noise_conditioning_follows_the_units_of_the_image() -> None:
    """With exponents of 1, R at sigma scales like the data term: R_(a sigma)(a x) = a² R_sigma(x)."""
    regularizer = default(noise_conditioned=True)
    x = registry.randn(2, 1, 9, 10, seed=3)
    base = regularizer.at(0.1)
    torch.testing.assert_close(regularizer.at(0.3).value(3.0 * x), 9.0 * base.value(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(regularizer.at(25 / 255).value(x), regularizer.value(x), rtol=1e-12, atol=0)
    assert dict(base.named_parameters()).keys() == dict(regularizer.named_parameters()).keys()
    assert base.log_weights is regularizer.log_weights
    assert default().at(0.3) is not None
    with pytest.raises(lr.ConfigError, match="positive finite number"):
        regularizer.at(0.0)


def test_starts_useful_and_not_identically_zero() -> None:
    regularizer = RidgeRegularizer(generator=torch.Generator().manual_seed(0))
    for n in (8, 9, 13, 30):
        assert bool((regularizer.value(torch.rand(1, 1, n, n)) > 0).all())
    rows = torch.arange(40.0)
    clean = ((rows[:, None] - 20) ** 2 + (rows[None] - 20) ** 2 < 150).float()[None, None] * 0.8
    b = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    found = lr.solve(lr.LowerLevelProblem(Identity((1, 40, 40)), regularizer), b, 1e-3).x
    gain = 10 * math.log10(float(((b - clean) ** 2).mean() / ((found - clean) ** 2).mean()))
    assert gain > 6.0


def test_configuration_rebuilds_it() -> None:
    regularizer = default(shared=True, noise_conditioned=True, boundary="circular", channels=(2, 5), size=3, knots=9)
    rebuilt = build_regularizer(describe_regularizer(regularizer)).double()
    rebuilt.load_state_dict(regularizer.state_dict())
    x = registry.randn(1, 1, 8, 9)
    assert torch.equal(rebuilt.value(x), regularizer.value(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convexity": "none"}, "'convex-nonconvex'"),
        ({"channels": ()}, "channels from 1"),
        ({"channels": (4, 0)}, "channels from 1"),
        ({"size": 1}, "size from 2"),
        ({"knots": 4}, "odd integer"),
        ({"boundary": "mirror"}, "boundary"),
        ({"weight": 0.0}, "positive finite"),
        ({"smoothing": math.nan}, "positive finite"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(lr.ConfigError, match=message):
        RidgeRegularizer(**options)  # type: ignore[arg-type]


def test_filters_and_potentials_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert lr.plot.filters(default(channels=(2, 5), size=3)).axes
