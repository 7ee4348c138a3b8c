"""The spectral preconditioner: symmetric positive definite, exact where it can be, effective, and harmless."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.convolutions.padding import BOUNDARIES
from learnreg.linear.norms import dense_matrix
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, Regularizer, TotalVariation
from learnreg.solvers import LBFGS, ConjugateGradient, iterate
from learnreg.solvers.base import select_samples
from learnreg.solvers.preconditioner import SpectralPreconditioner, can_precondition

SHAPE = (1, 12, 10)


def scene(side: int, batch: int = 2) -> Tensor:
    """Noisy images of a disc on a ramp: curvatures differ by orders of magnitude between flat regions and edges."""
    rows, cols = torch.meshgrid(*[torch.linspace(-1, 1, side, dtype=torch.float64)] * 2, indexing="ij")
    discs = [(rows**2 + (cols - 0.1 * i) ** 2 < 0.4).double() + 0.2 * rows for i in range(batch)]
    return torch.stack(discs)[:, None] + 0.05 * registry.randn(batch, 1, side, side, seed=3)


def experts(boundary: str = "valid", smoothing: float = 1e-2, weight: float = 0.5, count: int = 8) -> FieldsOfExperts:
    filters = registry.randn(count, 3, 3, seed=8)
    filters = filters - filters.mean((1, 2), keepdim=True)
    ones = torch.ones(count, dtype=torch.float64)
    return FieldsOfExperts.from_arrays(filters, weight * ones, smoothing * ones, boundary)  # type: ignore[arg-type]


def equation(regularizer: Regularizer, b: Tensor, constraint: lr.Box | None = None) -> AdjointEquation:
    """The adjoint equation near the solution."""
    problem = lr.LowerLevelProblem(Identity((1, *b.shape[-2:])), regularizer, constraint=constraint)
    instance = problem.instance(b)
    x = lr.solve(problem, b, 1e-3).x
    return AdjointEquation.at(instance, x, instance.apply(x), registry.randn(*b.shape, seed=4).to(b))


def preconditioner(eq: AdjointEquation) -> SpectralPreconditioner:
    found = SpectralPreconditioner.of(eq.instance, eq.at_response)
    assert found is not None
    return found


def dense_hessian(eq: AdjointEquation, sample: int) -> Tensor:
    """The Hessian of one sample; identity on pixels that are not free."""
    part = eq.select(torch.tensor([sample]))
    shape = part.rhs.shape[1:]

    def apply(units: Tensor) -> Tensor:
        images = [part.hessian(part.project(u[None])) + (u[None] - part.project(u[None])) for u in units]
        return torch.cat(images)

    return dense_matrix(apply, shape)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@torch.no_grad()
def test_is_symmetric_positive_definite(boundary: str) -> None:
    b = registry.rand(1, *SHAPE, seed=2)
    matrix = dense_matrix(preconditioner(equation(experts(boundary), b)), SHAPE)
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0


@torch.no_grad()
def test_inverts_a_convolution_exactly() -> None:
    quadratic = lr.Huber(smoothing=1e3, weight=2e3)
    regularizer = AnalysisOperator(FilterBank(registry.randn(3, 3, 3, seed=1), SHAPE, "circular"), quadratic)
    eq = equation(regularizer, registry.rand(2, *SHAPE, seed=2))
    torch.testing.assert_close(preconditioner(eq)(eq.hessian(eq.rhs)), eq.rhs)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.sampled(share=0.5, by=("boundary", "dtype"))
@torch.no_grad()
def test_saves_most_steps_of_conjugate_gradients(boundary: str, dtype: torch.dtype) -> None:
    eq = equation(experts(boundary, smoothing=2e-3), scene(32).to(dtype))
    goal = 1e-3 * eq.rhs.flatten(1).norm(dim=1)
    start, never = torch.zeros_like(eq.rhs), torch.zeros_like(goal)
    plain, faster = (iterate(ConjugateGradient(1, precondition=p), eq, start, goal, never, 500) for p in (False, True))
    assert bool((eq.residual_norm(faster.x) <= 1.01 * goal).all())
    assert faster.steps <= 0.5 * plain.steps


@pytest.mark.parametrize("constraint", [None, lr.Box(0.0, 0.9)])
@torch.no_grad()
def test_conjugate_gradients_agree_with_a_dense_solve(constraint: lr.Box | None) -> None:
    eq = equation(experts(), scene(12), constraint)
    assert eq.instance.box.constrains == (constraint is not None)
    never = torch.zeros(2, dtype=torch.float64)
    X = iterate(ConjugateGradient(), eq, torch.zeros_like(eq.rhs), never, never, 150).x
    for i in range(2):
        exact = torch.linalg.solve(dense_hessian(eq, i), eq.rhs[i].flatten())
        torch.testing.assert_close(X[i].flatten(), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("constraint", [None, lr.Box(0.0, 0.9)])
@torch.no_grad()
def test_smoothed_conjugate_gradients_report_the_least_residual_so_far(constraint: lr.Box | None) -> None:
    eq = equation(experts(smoothing=2e-3), scene(12), constraint)
    never = torch.zeros(2, dtype=torch.float64)

    def residuals(steps: int, smooth: bool) -> Tensor:
        solver = ConjugateGradient(1, precondition=False, smooth=smooth)
        found = iterate(solver, eq, torch.zeros_like(eq.rhs), never, never, steps)
        dense = [dense_hessian(eq, i) @ found.x[i].flatten() - eq.rhs[i].flatten() for i in range(2)]
        true = torch.stack(dense).norm(dim=1)
        torch.testing.assert_close(found.residual, true, rtol=1e-6, atol=0.0)
        return true

    previous = torch.full_like(never, torch.inf)
    gains = []
    for steps in (1, 3, 10, 20):
        smoothed = residuals(steps, smooth=True)
        assert bool((smoothed <= previous).all())
        plain = residuals(steps, smooth=False)
        assert bool((smoothed <= plain * (1.0 + 1e-9)).all())
        gains.append(plain / smoothed)
        previous = smoothed
    assert float(torch.stack(gains).median()) >= 1.3


@torch.no_grad()
def test_lbfgs_needs_fewer_steps() -> None:
    b = scene(32)
    instance = lr.LowerLevelProblem(Identity((1, 32, 32)), experts(smoothing=2e-3)).instance(b)
    error = torch.full((2,), 1e-3, dtype=torch.float64)
    plain, faster = (iterate(LBFGS(precondition=p), instance, b, 0.0 * error, error) for p in (False, True))
    assert float((plain.x - faster.x).flatten(1).norm(dim=1).max()) <= 2e-3
    assert faster.steps <= 0.7 * plain.steps


@torch.no_grad()
def test_counts_one_application_and_follows_samples() -> None:
    eq = equation(experts(), scene(12, batch=3))
    before = eq.instance.counter.applications
    whole = preconditioner(eq)
    assert eq.instance.counter.applications == before + 1
    index = torch.tensor([0, 2])
    torch.testing.assert_close(select_samples(whole, index)(eq.rhs[index]), whole(eq.rhs)[index])
    torch.testing.assert_close(preconditioner(eq.select(index))(eq.rhs[index]), whole(eq.rhs)[index])


def instance_of(operator: lr.LinearOperator, regularizer: Regularizer, **options: object) -> Instance:
    problem = lr.LowerLevelProblem(operator, regularizer, **options)  # type: ignore[arg-type]
    return problem.instance(registry.rand(1, *SHAPE))


WEIGHTED = lr.WeightedLeastSquares(0.5 + registry.rand(*SHAPE))
MASK = (registry.rand(*SHAPE) > 0.4).double()
BOX_FILTER = torch.ones(3, 3, dtype=torch.float64) / 9


@torch.no_grad()
def test_knows_which_hessians_it_helps() -> None:
    large = FilterBank(registry.randn(2, 7, 3), SHAPE, "circular")
    known = [
        instance_of(Identity(SHAPE), experts()),
        instance_of(Identity(SHAPE), experts(), data_term=WEIGHTED),
        instance_of(Inpainting(MASK), experts(), ridge=0.1),
        instance_of(Blur(BOX_FILTER, SHAPE), experts(), ridge=0.1),
        instance_of(Blur(BOX_FILTER, SHAPE), TotalVariation(), ridge=0.1),
    ]
    others = [
        instance_of(Identity(SHAPE), TotalVariation()),  # differences are cheaper than FFTs
        instance_of(Identity(SHAPE), AnalysisOperator(large, lr.PseudoHuber(1e-2))),  # larger than the image
        instance_of(Identity(SHAPE), AnalysisOperator(Blur(BOX_FILTER, SHAPE), lr.PseudoHuber(1e-2))),
    ]
    for instance in known:
        assert can_precondition(instance)
    for instance in others:
        assert not can_precondition(instance)
        assert SpectralPreconditioner.of(instance, torch.ones(1, 1, 1, 1, dtype=torch.float64)) is None


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
@torch.no_grad()
def test_symbol_of_a_blur(boundary: str) -> None:
    """Exact on the torus; elsewhere for kernels that the image contains."""
    kernel = registry.rand(3, 3, seed=5)
    blur = Blur(kernel.clone(), (1, 32, 30), boundary)  # type: ignore[arg-type]
    symbol = blur.gram_symbol((32, 30), torch.float64)
    assert symbol is not None
    padded = torch.zeros(32, 30, dtype=torch.float64)
    padded[:3, :3] = kernel
    torch.testing.assert_close(symbol, torch.fft.rfft2(padded).abs() ** 2)
    assert blur.gram_symbol((32, 30), torch.float64) is symbol
    blur.kernel.mul_(2.0)
    torch.testing.assert_close(blur.gram_symbol((32, 30), torch.float64), 4.0 * symbol)
    of_channels = Blur(2.0 * kernel, (2, 32, 30), boundary).gram_symbol((32, 30), torch.float64)  # type: ignore[arg-type]
    torch.testing.assert_close(of_channels, 4.0 * symbol)


def hard_operators() -> dict[str, tuple[lr.LinearOperator, dict[str, object]]]:
    shape, mask = (1, 32, 32), registry.rand(1, 32, 32, seed=7)
    return {
        "blur": (Blur(torch.ones(5, 5, dtype=torch.float64) / 25, shape), {"ridge": 1e-2}),
        "weighted": (
            Blur(torch.ones(3, 3, dtype=torch.float64) / 9, shape, "reflect"),
            {"ridge": 1e-2, "data_term": lr.WeightedLeastSquares(0.5 + mask)},
        ),
        "inpainting": (Inpainting((mask > 0.5).double()), {"ridge": 1e-2}),
    }


@pytest.mark.parametrize("name", list(hard_operators()))
@pytest.mark.parametrize("kind", ["experts", "tv"])
@pytest.mark.sampled(share=0.5, by=("name", "kind"))
@torch.no_grad()
def test_helps_with_any_forward_operator(name: str, kind: str) -> None:
    operator, options = hard_operators()[name]
    regularizer = experts(smoothing=2e-3, weight=0.02) if kind == "experts" else TotalVariation(2e-3, 1e-3).double()
    problem = lr.LowerLevelProblem(operator, regularizer, **options)  # type: ignore[arg-type]
    instance = problem.instance(operator(scene(32)))
    if not can_precondition(instance):
        pytest.skip("differences with a diagonal data term")
    start, error = torch.zeros(2, 1, 32, 32, dtype=torch.float64), torch.full((2,), 32e-3, dtype=torch.float64)
    plain, faster = (iterate(LBFGS(precondition=p), instance, start, 0.0 * error, error) for p in (False, True))
    assert bool((faster.bound <= error).all())
    assert float((plain.x - faster.x).flatten(1).norm(dim=1).max()) <= 2 * 32e-3
    assert faster.steps <= 0.7 * plain.steps
    eq = AdjointEquation.at(instance, faster.x, instance.apply(faster.x), registry.randn(2, 1, 32, 32, seed=4))
    goal, never = 1e-3 * eq.rhs.flatten(1).norm(dim=1), 0.0 * error
    plain, faster = (iterate(ConjugateGradient(1, precondition=p), eq, start, goal, never, 900) for p in (False, True))
    assert bool((eq.residual_norm(faster.x) <= 1.01 * goal).all())
    assert faster.steps <= 0.7 * plain.steps


@torch.no_grad()
def test_stencils_have_the_diagonal_of_their_gram_matrix() -> None:
    for operator in (Gradient(SHAPE), *(FilterBank(registry.randn(3, 3, 2), SHAPE, b) for b in BOUNDARIES)):  # type: ignore[arg-type]
        stencil = operator.stencil()
        assert stencil is not None
        w, matrix = registry.rand(1, *operator.range_shape), dense_matrix(operator, SHAPE)
        expected = (matrix.T @ (w.flatten()[:, None] * matrix)).diagonal()
        reflects = isinstance(operator, FilterBank) and operator.boundary in ("reflect", "replicate")
        inside = torch.ones(SHAPE, dtype=torch.bool)
        if reflects:  # at the border, two taps fall on one pixel: the diagonal leaves out their product
            inside[:, [0, 1, 2, -3, -2, -1]] = False
            inside[..., [0, 1, 2, -3, -2, -1]] = False
        found = stencil.gram_diagonal(w)[0]
        torch.testing.assert_close(found[inside], expected.reshape(SHAPE)[inside])
        row = torch.zeros(SHAPE, dtype=torch.float64)
        row[0, 6, 5] = 1.0
        filters = stencil.filters.double()
        window = operator(row[None])[0][:, 3:9, 2:8]
        assert float(window.square().sum()) == pytest.approx(float(filters.square().sum()))


@torch.no_grad()
def test_bears_a_curvature_that_vanishes() -> None:
    eq = equation(experts(), scene(12))
    M = SpectralPreconditioner.of(eq.instance, torch.zeros_like(eq.at_response))
    assert M is not None
    torch.testing.assert_close(M(eq.rhs), eq.rhs)


def test_conjugate_gradients_wait_where_residuals_rise_first() -> None:
    """At a condition number of 10⁵ the residual stays above that of X = 0 for hundreds of steps."""
    taps = torch.tensor([1.0, 3.0, 4.0, 3.0, 1.0], dtype=torch.float64) / 12
    shape = (1, 16, 16)
    blur = Blur(torch.outer(taps, taps), shape, "reflect")
    problem = lr.LowerLevelProblem(blur, experts(weight=1e-8), ridge=1e-5)
    instance, b = problem.instance(registry.randn(1, *shape, seed=5)), registry.randn(1, *shape, seed=6)
    eq = AdjointEquation.at(instance, b, instance.apply(b), b)
    found = iterate(ConjugateGradient(), eq, torch.zeros_like(b), 1e-4 * b.flatten(1).norm(dim=1), torch.zeros(1))
    exact = torch.linalg.solve(dense_hessian(eq, 0).detach(), eq.rhs.flatten())
    assert found.status is lr.Status.CONVERGED
    assert float((found.x.flatten() - exact).norm()) <= 1e-2 * float(exact.norm())
