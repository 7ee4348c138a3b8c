"""The energy is the definition of the problem: against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import registry
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, Regularizer, TotalVariation

SHAPE = registry.SHAPE


def image(batch: int = 2, seed: int = 1) -> Tensor:
    return registry.randn(batch, *SHAPE, seed=seed)


@pytest.mark.parametrize("kind", ["numpy", "torch", "float32"])
def test_from_arrays_is_the_formula(kind: str) -> None:
    filters, weights, smoothing = registry.randn(4, 3, 3), 0.1 + registry.rand(4), 0.01 + registry.rand(4, seed=2)
    arrays = (filters, weights, smoothing)
    given = {"numpy": tuple(a.numpy() for a in arrays), "torch": arrays, "float32": tuple(a.float() for a in arrays)}
    R = FieldsOfExperts.from_arrays(*given[kind])
    assert R.filters.dtype == (torch.float32 if kind == "float32" else torch.float64)
    assert R.filters.requires_grad
    torch.testing.assert_close(R.effective_filters.detach(), torch.as_tensor(given[kind][0]))
    x = image()
    responses = F.conv2d(x, filters[:, None])
    l, v = weights[:, None, None], smoothing[:, None, None]
    expected = (l * ((responses**2 + v**2).sqrt() - v)).sum((1, 2, 3))
    torch.testing.assert_close(R.value(x).double(), expected, rtol=1e-5 if kind == "float32" else 1e-13, atol=0)


def test_from_arrays_copies_and_checks() -> None:
    filters = registry.randn(2, 3, 3)
    R = FieldsOfExperts.from_arrays(filters, [1.0, 2.0], np.array([0.1, 0.1]))
    with torch.no_grad():
        R.filters.zero_()
    assert bool(filters.any())
    with pytest.raises(lr.ShapeError, match=r"got 3 numbers for 2 filters"):
        FieldsOfExperts.from_arrays(filters, [1.0, 2.0, 3.0], [0.1])
    with pytest.raises(lr.ConfigError, match="positive finite"):
        FieldsOfExperts.from_arrays(filters, [1.0, 0.0], [0.1, 0.1])
    with pytest.raises(lr.ConfigError, match="NaN"):
        FieldsOfExperts.from_arrays(filters * math.nan, [1.0, 1.0], [0.1, 0.1])
    with pytest.raises(lr.ShapeError, match=r"expected \(n, k, k\)"):
        FieldsOfExperts.from_arrays(filters[0], [1.0], [0.1])


def test_fields_of_experts_ignore_constants_and_start_from_the_dct() -> None:
    R = FieldsOfExperts(10, 3)
    assert R.filters.dtype == torch.get_default_dtype()
    x = torch.rand(1, 1, 7, 7)
    torch.testing.assert_close(R.value(x + 5.0), R.value(x), rtol=1e-3, atol=1e-5)
    dct = R.effective_filters[:8].flatten(1).detach()
    torch.testing.assert_close(dct @ dct.T, torch.eye(8), atol=1e-6, rtol=0)
    again = FieldsOfExperts(10, 3, generator=torch.Generator().manual_seed(4))
    same = FieldsOfExperts(10, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(again.filters, same.filters)
    torch.manual_seed(4)
    assert torch.equal(FieldsOfExperts(10, 3).filters, again.filters)


def test_total_variation_is_the_formula() -> None:
    x = image()
    vertical, horizontal = torch.zeros_like(x), torch.zeros_like(x)
    vertical[:, :, :-1], horizontal[:, :, :, :-1] = x.diff(dim=2), x.diff(dim=3)
    expected = 0.3 * ((vertical**2 + horizontal**2 + 0.01**2).sqrt() - 0.01).sum((1, 2, 3))
    torch.testing.assert_close(TotalVariation(0.3, 0.01).double().value(x), expected, rtol=1e-7, atol=0)


def test_analysis_operator_is_the_formula() -> None:
    filters, x = registry.randn(2, 3, 3), image()
    t = F.conv2d(x, filters[:, None], padding=1)
    l = torch.tensor([0.3, 0.7], dtype=torch.float64)[:, None, None]
    R = AnalysisOperator(FilterBank(nn.Parameter(filters), SHAPE, "zero"), lr.LogCosh(0.2, l)).double()
    torch.testing.assert_close(R.value(x), (l * 0.2 * torch.cosh(t / 0.2).log()).sum((1, 2, 3)), rtol=1e-6, atol=0)
    with pytest.raises(lr.ShapeError, match=r"expected \(batch, 1, 5, 6\)"):
        R.value(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("regularizer", registry.regularizers())
@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_energy_is_data_term_plus_regularizer_plus_ridge(name: str, regularizer: str) -> None:
    problem = registry.build(name, regularizer)
    x, b = image(), registry.measure(problem)[1]
    p = problem.operator(x) - b
    weights = problem.data_term.weights.detach() if isinstance(problem.data_term, lr.WeightedLeastSquares) else 1.0
    data, ridge = 0.5 * (weights * p**2).flatten(1).sum(1), 0.5 * problem.ridge_value * (x**2).flatten(1).sum(1)
    expected = data + problem.regularizer.value(x) + ridge
    energy = problem.energy(x, b)
    assert energy.shape == (2,)
    torch.testing.assert_close(energy, expected)
    instance = problem.instance(b)
    with torch.no_grad():
        point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.energy(point, b).sum(), point)
    with torch.no_grad():
        torch.testing.assert_close(instance.full_gradient(x), gradient)
        half = instance.select(torch.tensor([1]))
        torch.testing.assert_close(half.full_gradient(x[1:]), gradient[1:])


@pytest.mark.parametrize("regularizer", registry.regularizers())
def test_energy_is_differentiable_twice_in_image_and_parameters(regularizer: str) -> None:
    problem = registry.build("denoising-learned-ridge", regularizer)
    b = registry.measure(problem)[1]
    parameters = list(problem.learnable().values())
    for x in (image(), torch.zeros(2, *SHAPE, dtype=torch.float64)):
        point = x.requires_grad_()
        first = torch.autograd.grad(problem.energy(point, b).sum(), (point, *parameters), create_graph=True)
        assert all(bool(torch.isfinite(g).all()) for g in first)
        scalar = sum((g * registry.randn(*g.shape, seed=3) if g.dim() else g).sum() for g in first)
        second = torch.autograd.grad(scalar, (point, *parameters))
        assert all(bool(torch.isfinite(g).all()) for g in second)


@pytest.mark.parametrize("regularizer", registry.regularizers())
def test_regularizers_are_convex_and_declare_their_parameters(regularizer: str) -> None:
    R: Regularizer = registry.REGULARIZERS[regularizer]()
    x, y = image(8, 4), image(8, 5)
    assert bool((R.value(0.5 * (x + y)) <= 0.5 * (R.value(x) + R.value(y)) + 1e-12).all())
    assert torch.equal(R(x), R.value(x))
    assert R.at(0.1) is R or getattr(R, "noise_conditioned", False)
    assert {n for n, p in R.named_parameters() if p.requires_grad} <= set(R.parameter_roles())
    with pytest.raises(lr.ShapeError):
        R.value(torch.zeros(6))


def test_constraint_makes_the_energy_infinite_outside() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), TotalVariation(), constraint=lr.Box(0.0, 1.0))
    b = torch.full((3, *SHAPE), 0.5)
    x = b.clone()
    x[1, 0, 0, 0], x[2, 0, 1, 1] = -1e-6, 1.0
    assert torch.isinf(problem.energy(x, b)).tolist() == [False, True, False]


def test_moduli() -> None:
    R = TotalVariation()
    assert lr.LowerLevelProblem(Identity(SHAPE), R).strong_convexity == 1.0
    assert lr.LowerLevelProblem(Identity(SHAPE), R, ridge=0.5).strong_convexity == 1.5
    mask = torch.ones(SHAPE)
    mask[0, 0, 0] = 0.0
    assert lr.LowerLevelProblem(Inpainting(mask), R).strong_convexity == 0.0
    assert lr.LowerLevelProblem(Inpainting(mask), R, ridge=0.1).strong_convexity == pytest.approx(0.1)
    assert lr.LowerLevelProblem(Blur(torch.ones(3, 3), SHAPE), R).strong_convexity == 0.0
    weighted = lr.WeightedLeastSquares(torch.full(SHAPE, 0.3))
    assert lr.LowerLevelProblem(Identity(SHAPE), R, data_term=weighted).strong_convexity == pytest.approx(0.3)


def test_names_of_learnable_parameters() -> None:
    problem = registry.build("weights-and-blur", "FieldsOfExperts")
    assert list(problem.learnable()) == [
        "filters", "log_weights", "log_smoothing", "operator.kernel", "data_term.weights", "ridge",
    ]  # fmt: skip
    problem.regularizer.filters.requires_grad_(False)
    assert "filters" not in problem.learnable()


def test_wrong_arguments() -> None:
    A, R = Identity(SHAPE), TotalVariation()
    with pytest.raises(lr.ConfigError, match=r"operator=\.\.\.\): got Conv2d"):
        lr.LowerLevelProblem(nn.Conv2d(1, 1, 3), R)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match=r"regularizer=\.\.\.\): got float"):
        lr.LowerLevelProblem(A, 0.1)  # type: ignore[arg-type]
    for bad in (-0.1, math.inf, math.nan):
        with pytest.raises(lr.ConfigError, match=r"ridge=.*finite number >= 0"):
            lr.LowerLevelProblem(A, R, ridge=bad)
    with pytest.raises(lr.ShapeError, match=r"weights of shape \(7,\)"):
        lr.LowerLevelProblem(A, R, data_term=lr.WeightedLeastSquares(torch.ones(7)))
    with pytest.raises(lr.ShapeError, match="have a batch axis, so that they cannot be learned"):
        lr.LowerLevelProblem(A, R, data_term=lr.WeightedLeastSquares(nn.Parameter(torch.ones(3, *SHAPE))))
    with pytest.raises(lr.ConfigError, match=r"constraint=\.\.\.\): got str"):
        lr.LowerLevelProblem(A, R, constraint="nonnegative")  # type: ignore[arg-type]
    problem = lr.LowerLevelProblem(A, R)
    with pytest.raises(lr.ShapeError, match=r"Add a batch axis"):
        problem.instance(torch.zeros(SHAPE))
    with pytest.raises(lr.ShapeError, match=r"b for the range of Identity: got shape \(2, 1, 4, 4\)"):
        problem.energy(torch.zeros(2, *SHAPE), torch.zeros(2, 1, 4, 4))
    b = torch.zeros(3, *SHAPE)
    b[1, 0, 0, 0] = math.nan
    with pytest.raises(lr.DataError, match="NaN or infinite entries in 1 of 3 samples"):
        problem.instance(b)
    with torch.no_grad():
        R.log_weight.fill_(math.nan)
    with pytest.raises(lr.AssumptionError, match="parameter log_weight"):
        problem.instance(torch.zeros(3, *SHAPE))


def test_projection_keeps_weights_and_ridge_admissible() -> None:
    weights, ridge = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.tensor(0.1))
    problem = lr.LowerLevelProblem(
        Identity(SHAPE), TotalVariation(), data_term=lr.WeightedLeastSquares(weights), ridge=ridge
    )
    with torch.no_grad():
        weights.fill_(-0.5)
        ridge.fill_(-0.1)
    problem.project_()
    assert (float(weights.detach()), float(ridge.detach())) == (0.0, 0.0)
    given = torch.tensor([0.3])
    lr.LowerLevelProblem(Identity(SHAPE), TotalVariation(), data_term=lr.WeightedLeastSquares(given)).project_()
    assert float(given) == pytest.approx(0.3)
