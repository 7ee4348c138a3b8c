"""Data terms that are not squares: minimisers against scipy, hypergradients against dense matrices, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import registry
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from truth.dense import distance, norm, truth_of
from truth.draw import RANGES
from truth.hunt import hunt

import learnreg as lr
from learnreg.errors import AssumptionError, ConfigError, DataError, ShapeError
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.data_terms import DataTerm
from learnreg.operators import Blur, Identity, from_callables, from_scipy
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, TotalVariation

SHAPE = (1, 5, 6)
DOUBLE = torch.float64
BLUR = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE) / 9


def number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=DOUBLE))


TERMS: dict[str, Callable[[], DataTerm]] = {
    "Poisson": lambda: lr.Poisson(number(0.3)),
    "TransmissionPoisson": lambda: lr.TransmissionPoisson(number(40.0), number(1.2)),
    "SmoothedL1": lambda: lr.SmoothedL1(number(0.1)),
}
OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "Identity": lambda: Identity(SHAPE),
    "Blur": lambda: Blur(nn.Parameter(BLUR), SHAPE, "reflect"),
    "matrix": lambda: from_scipy(registry.rand(20, 30, seed=4).numpy() / 15, SHAPE, (20,)),
}
REGULARIZERS = {
    "FieldsOfExperts": lambda: FieldsOfExperts.from_arrays(
        registry.randn(2, 3, 3, seed=2) / 3, [0.1, 0.2], [0.1, 0.05], boundary="reflect"
    ),
    "TotalVariation": lambda: TotalVariation(0.1, 0.05).double(),
}


def truth(shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Images with a dark part, so that some pixels of the solution are at 0."""
    x = registry.rand(2, *shape, seed=5)
    x[..., :2] = 0.0
    return x


def measured(term: DataTerm, operator: LinearOperator) -> Tensor:
    with torch.no_grad():
        t, generator = operator(truth()), torch.Generator().manual_seed(6)
        if isinstance(term, lr.Poisson):
            return torch.poisson(8.0 * t, generator=generator)
        if isinstance(term, lr.TransmissionPoisson):
            return torch.poisson(40.0 * torch.exp(-1.2 * t), generator=generator)
    b = t + 0.05 * registry.randn(*t.shape, seed=7)
    return torch.where(registry.rand(*t.shape, seed=8) < 0.1, 3.0, b)


def problem_of(
    term: str,
    operator: str = "Identity",
    regularizer: str = "TotalVariation",
    ridge: float = 0.05,
    constraint: lr.Box | None = None,
) -> tuple[lr.LowerLevelProblem, Tensor, lr.UpperLoss]:
    data_term, A = TERMS[term](), OPERATORS[operator]()
    problem = lr.LowerLevelProblem(
        A, REGULARIZERS[regularizer](), ridge=ridge, data_term=data_term, constraint=constraint or lr.Nonnegative()
    )
    return problem, measured(data_term, A), lr.SquaredError(truth())


@pytest.mark.parametrize(
    ("term", "operator", "regularizer"),
    [
        ("Poisson", "Identity", "TotalVariation"),
        ("TransmissionPoisson", "matrix", "TotalVariation"),
        ("SmoothedL1", "Blur", "FieldsOfExperts"),
    ],
)
def test_hypergradients_against_dense_matrices(term: str, operator: str, regularizer: str) -> None:
    _compare_with_dense_matrices(term, operator, regularizer)


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_all_hypergradients_against_dense_matrices(term: str, operator: str, regularizer: str) -> None:
    _compare_with_dense_matrices(term, operator, regularizer)


def _compare_with_dense_matrices(term: str, operator: str, regularizer: str) -> None:
    problem, b, loss = problem_of(term, operator, regularizer)
    expected = truth_of(problem, b, loss)
    assert expected.usable
    if operator == "Identity":
        assert bool((expected.x == 0).any())
    result = lr.hypergradient(problem, b, loss, lr.Implicit(), 1e-7)
    assert result.certified
    assert {f"data_term.{name}" for name, _ in problem.data_term.named_parameters()} <= set(result.gradient)
    error = distance(result.gradient, expected.gradient)
    assert error <= 1e-7 * norm(expected.gradient)
    assert error <= result.error_bound + expected.gradient_slack
    for name, own in expected.gradient.items():  # a parameter of little influence is right, too
        assert float((result.gradient[name] - own).norm()) <= 1e-6 * float(own.norm()) + 1e-9


@pytest.mark.parametrize("term", TERMS)
def test_minimisers_against_scipy(term: str) -> None:
    problem, b, _ = problem_of(term, "Blur", "FieldsOfExperts")
    solution = lr.solve(problem, b[:1], 1e-8)

    def energy(v: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.as_tensor(v).reshape(1, *SHAPE).requires_grad_()
        value = problem.energy(x, b[:1]).sum()
        return float(value.detach()), torch.autograd.grad(value, x)[0].flatten().numpy()

    found = minimize(
        energy, np.full(30, 0.5), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * 30,
        options={"ftol": 1e-16, "gtol": 1e-9, "maxiter": 3000, "maxfun": 9000, "maxcor": 30},
    )  # fmt: skip
    assert float((solution.x.flatten() - torch.as_tensor(found.x)).abs().max()) <= 1e-6


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "pdhg"])
@pytest.mark.parametrize("term", TERMS)
def test_solvers_agree(term: str, solver: str) -> None:
    problem, b, loss = problem_of(term, ridge=0.2)
    x = truth_of(problem, b, loss).x.reshape(b.shape)
    solution = lr.solve(problem, b, 1e-5, solver=solver)  # type: ignore[arg-type]
    assert solution.status is lr.Status.CONVERGED
    assert solution.solver == solver
    errors = (solution.x - x).flatten(1).square().mean(1).sqrt()
    assert bool((errors <= solution.error_bound).all())
    assert bool((solution.error_bound <= 1e-5).all())


@pytest.mark.parametrize(
    "method",
    [
        lr.Piggyback(),
        lr.Piggyback(mode="interleaved"),
        lr.Implicit("piggyback", state_solver="pdhg"),
        lr.EquilibriumPropagation(),
        lr.Unrolled(60),
        lr.OneStep(),
        lr.FiniteDifference(),
        None,
    ],
    ids=lambda m: type(m).__name__,
)
def test_other_methods(method: object) -> None:
    """None: the derivative of the solution layer."""
    problem, b, loss = problem_of("Poisson", ridge=0.5)
    expected = truth_of(problem, b, loss)
    if method is None:
        x = lr.solution_layer(problem, tolerance=1e-9)(b)
        loss.value(x).backward()
        gradient = {name: p.grad for name, p in problem.learnable().items()}
        assert distance(gradient, expected.gradient) <= 1e-5 * norm(expected.gradient)  # type: ignore[arg-type]
        return
    result = lr.hypergradient(problem, b, loss, method, 1e-2)  # type: ignore[arg-type]
    assert distance(result.gradient, expected.gradient) <= result.error_bound + expected.gradient_slack
    assert result.certified


def test_the_layer_differentiates_in_the_measurements() -> None:
    problem, b, loss = problem_of("TransmissionPoisson")
    direction = registry.randn(*b.shape, seed=9)
    layer = lr.solution_layer(problem, tolerance=1e-10)
    own = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.value(layer(own)), own)
    ahead, behind = (float(loss.value(lr.solve(problem, b + s * direction, 1e-11).x)) for s in (1e-4, -1e-4))
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-4, rel=1e-4)


def test_energies_are_the_formulas_and_differentiable_twice() -> None:
    problem, b, _ = problem_of("Poisson", "Blur")
    x, s = (truth() + 0.1).requires_grad_(), problem.data_term.background
    t = problem.operator(x)
    rest = problem.regularizer.value(x) + 0.025 * x.square().flatten(1).sum(1)
    torch.testing.assert_close(problem.energy(x, b), (t + s - b * torch.log(t + s)).flatten(1).sum(1) + rest)
    (slope,) = torch.autograd.grad(problem.energy(x, b).sum(), x, create_graph=True)
    mixed = torch.autograd.grad(slope.sum(), (s, problem.operator.kernel), retain_graph=True)  # type: ignore[arg-type]
    (again,) = torch.autograd.grad((1.0 - b / (problem.operator(x.detach()) + s)).sum(), s)
    assert float(mixed[0]) != float(again)  # the kernel does not sum to one
    ones = torch.ones_like(x)
    (expected,) = torch.autograd.grad(((1.0 - b / (t + s)) * problem.operator(ones)).sum(), s)
    torch.testing.assert_close(mixed[0], expected)


@pytest.mark.parametrize(("term", "counts"), [("Poisson", 3.0), ("TransmissionPoisson", 0.0), ("SmoothedL1", 0.4)])
def test_a_box_makes_it_strongly_convex(term: str, counts: float) -> None:
    """Without a ridge, where A^T A has a lower bound."""
    problem, b, loss = problem_of(term, ridge=0.0, constraint=lr.Box(0.0, 1.5))
    b = b + counts if term == "Poisson" else b  # where no photon was counted nothing bends
    instance = problem.instance(b)
    x = torch.linspace(0.0, 1.5, 7, dtype=DOUBLE)[:, None, None, None, None].expand(7, *b.shape)
    terms = [torch.autograd.functional.hvp(lambda t: problem.data_term.energy(t, b).sum(), own, torch.ones_like(b))[1]
             for own in x]  # fmt: skip
    least = float(torch.stack(terms).min())
    assert 0.9 * least <= instance.strong_convexity <= least * (1.0 + 1e-6)
    expected = truth_of(problem, b, loss)
    result = lr.hypergradient(problem, b, loss, lr.Implicit(), 1e-4)
    assert result.certified
    assert distance(result.gradient, expected.gradient) <= result.error_bound + expected.gradient_slack
    without = problem_of(term, "matrix", ridge=0.0, constraint=lr.Box(0.0, 1.5))
    assert without[0].instance(without[1]).strong_convexity == 0.0
    solution = lr.solve(without[0], without[1], 1e-3)
    assert solution.bound_kind == "estimate"


def test_a_box_from_zero_over_a_tiny_background() -> None:
    """The range of A x, rounded outwards, does not reach below 0."""
    b = 1.0 + truth()
    problem = lr.LowerLevelProblem(
        Identity(SHAPE), TotalVariation(0.1, 0.05).double(), data_term=lr.Poisson(1e-10), constraint=lr.Box(0.0, 4.0)
    )
    instance = problem.instance(b)
    assert float(b.min()) / 16.0 * 0.999 <= instance.strong_convexity <= float(b.min()) / 16.0
    torch.testing.assert_close(instance.full_gradient(torch.zeros_like(b)), 1.0 - b / 1e-10)  # flat: no variation


def test_random_problems(rotating_generator: torch.Generator) -> None:
    summary = hunt(1, rotating_generator, RANGES["data-terms"])
    assert not summary.violations, "\n".join(summary.violations)


@pytest.mark.parametrize("term", TERMS)
def test_model_files(term: str, tmp_path: Path) -> None:
    problem, b, _ = problem_of(term)
    lr.save_model(tmp_path / "model.safetensors", problem)
    model = lr.load(tmp_path / "model.safetensors")
    assert type(model.data_term) is type(problem.data_term)
    again = model.problem(SHAPE)
    assert set(again.learnable()) == set(problem.learnable())
    torch.testing.assert_close(again.energy(truth(), b), problem.energy(truth(), b))
    torch.testing.assert_close(model.reconstruct(b, tolerance=1e-6), lr.solve(problem, b, 1e-6).x, rtol=0, atol=1e-5)


def test_noise_levels_of_samples_and_parts_of_batches() -> None:
    """Samples that are done leave a solver: each keeps its own measurements."""
    problem, b, _ = problem_of("Poisson")
    both = lr.solve(problem, torch.cat([b, 30.0 * b]), 1e-7).x
    for k, own in enumerate((b, 30.0 * b)):
        torch.testing.assert_close(both[2 * k : 2 * k + 2], lr.solve(problem, own, 1e-7).x, rtol=0, atol=2e-6)


def test_line_integrals_and_weights_are_other_ways_to_say_counts() -> None:
    A, x = Identity(SHAPE), truth()
    counts = measured(TERMS["TransmissionPoisson"](), A) + 1.0
    line_integrals = -(counts / 40.0).log() / 1.2
    by_counts = lr.TransmissionPoisson(40.0, 1.2, 0.3)
    by_integrals = lr.TransmissionPoisson(40.0, 1.2, 0.3, line_integrals=True)
    torch.testing.assert_close(by_integrals.energy(x, line_integrals), by_counts.energy(x, counts))
    plain = lr.TransmissionPoisson(40.0, 1.2).energy(x, counts)
    torch.testing.assert_close(by_counts.energy(x, counts), math.exp(0.36) * plain)
    torch.testing.assert_close(by_counts.weighted(7.0).energy(x, counts), 7.0 * by_counts.energy(x, counts))
    nothing = by_counts.weighted(torch.zeros(SHAPE, dtype=DOUBLE))
    assert not nothing.energy(x, counts).any()
    with pytest.raises(ConfigError, match="cannot be learned"):
        lr.TransmissionPoisson(number(40.0), line_integrals=True)
    with pytest.raises(ConfigError, match="no weights"):
        lr.Poisson(0.1).weighted(2.0)
    with pytest.raises(DataError, match="no photons"):
        by_integrals.energy(x, torch.full_like(x, -1e4))


def test_projection_keeps_numbers_positive() -> None:
    term = lr.TransmissionPoisson(number(1.0), number(1.0))
    with torch.no_grad():
        term.photons.fill_(-1.0)
    problem = lr.LowerLevelProblem(
        Identity(SHAPE), TotalVariation(), ridge=0.1, data_term=term, constraint=lr.Nonnegative()
    )
    with pytest.raises(AssumptionError, match="project_"):
        lr.solve(problem, torch.ones(1, *SHAPE))
    problem.project_()
    assert float(term.photons.detach()) > 0


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", [lr.Poisson(0.1), lr.TransmissionPoisson(10.0)])
@pytest.mark.parametrize("constraint", [None, lr.Box(-0.1, 1.0)])
def test_counts_need_nonnegative_images(term: DataTerm, constraint: lr.Box | None) -> None:
    with pytest.raises(ConfigError, match="Nonnegative"):
        lr.LowerLevelProblem(Identity(SHAPE), TotalVariation(), data_term=term, constraint=constraint)


def test_counts_need_a_nonnegative_operator() -> None:
    def problem(A: LinearOperator) -> lr.LowerLevelProblem:
        term = lr.Poisson(0.1)
        return lr.LowerLevelProblem(A, TotalVariation(), ridge=0.1, data_term=term, constraint=lr.Nonnegative())

    minus = from_callables(lambda x: -x, lambda y: -y, SHAPE, SHAPE)
    for A in (Blur(BLUR - 0.05, SHAPE), -1.0 * Identity(SHAPE), minus):
        with pytest.raises(AssumptionError, match="nonnegative = True"):
            problem(A)
    large = (1, 40, 40)
    unknown = from_callables(lambda x: 2.0 * x, lambda y: 2.0 * y, large, large)
    with pytest.raises(AssumptionError, match="not known"):
        problem(unknown)
    unknown.nonnegative = True
    problem(unknown)
    wrong = from_callables(lambda x: -x, lambda y: -y, large, large)
    wrong.nonnegative = True
    with pytest.raises(AssumptionError):
        problem(wrong)
    learned = problem(Blur(nn.Parameter(BLUR), SHAPE))
    with torch.no_grad():
        learned.operator.kernel[0, 0] = -1.0
    with pytest.raises(AssumptionError, match="negative entries"):
        lr.solve(learned, torch.ones(1, *SHAPE))


def test_counts_are_not_negative() -> None:
    problem, b, loss = problem_of("Poisson")
    with pytest.raises(DataError, match="counts are >= 0"):
        lr.solve(problem, -b)
    with pytest.raises(DataError, match="counts are >= 0"):
        problem.energy(b, -b)
    with pytest.raises(DataError, match="counts are >= 0"):
        lr.hypergradient(problem, -b, loss)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", True, torch.tensor([1.0, -1.0])])
def test_numbers_are_positive(value: object) -> None:
    for kind in (lr.Poisson, lr.TransmissionPoisson, lr.SmoothedL1):
        with pytest.raises((ConfigError, ShapeError)):
            kind(value)  # type: ignore[arg-type]


def test_numbers_as_arrays() -> None:
    term = lr.Poisson(np.full((1, 5, 1), 0.25, dtype=np.float32))  # type: ignore[arg-type]
    torch.testing.assert_close(term.background, torch.full((1, 5, 1), 0.25))


def test_shapes_and_latent_variables() -> None:
    with pytest.raises(ShapeError, match="does not broadcast"):
        lr.LowerLevelProblem(
            Identity(SHAPE), TotalVariation(), data_term=lr.Poisson(torch.ones(7)), constraint=lr.Nonnegative()
        )
    lifted = InputConvexNetwork(1, 2, 1, 3, form="lifted").double()
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), lifted, ridge=0.1, data_term=lr.SmoothedL1(0.1))
    with pytest.raises(ConfigError, match="form='smooth'"):
        lr.solve(problem, torch.ones(1, 1, 8, 8, dtype=DOUBLE))
