"""Local minimisers: balls that hold one, how little energies curve at least, what is refused, and what is said of
it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import registry
import torch
from registered.local_problems import DOUBLE, OPERATORS, SHAPE, deep, imported, mask, near, problem_with
from torch import Tensor, nn
from truth.by_energy import truth_by_energy
from truth.dense import Dense, distance, norm, truth_of

import learnreg as lr
from learnreg.certificates import lowest_curvature
from learnreg.convolutions.gradient import Gradient
from learnreg.lower_level.data_terms import DataTerm
from learnreg.operators import Identity, Inpainting, from_callables
from learnreg.regularizers import (
    AnalysisOperator,
    FieldsOfExperts,
    ImportedRidge,
    InputConvexNetwork,
    Scaled,
    TotalVariation,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what is certified -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("boxed", [False, True], ids=["free", "box"])
@pytest.mark.sampled(share=0.25, by=("name", "boxed"))
def test_local_minimisers_are_within_their_bounds(name: str, boxed: bool) -> None:
    """Where the Hessian is indefinite elsewhere, and A singular: the solution, and certificates of hypergradients."""
    operator = OPERATORS[name]()
    regularizer = deep() if operator.domain_shape[0] == 1 else deep(image_channels=2, coupling="complex")
    problem = problem_with(operator, regularizer, constraint=lr.Box(0.1, 0.8) if boxed else None)
    x_true, b = registry.measure(problem)
    loss, dense = lr.SquaredError(x_true), Dense(problem, b)
    rho = torch.as_tensor(problem.saddle_terms(DOUBLE).potential.concavity).detach().expand(dense.range_shape)
    assert float(torch.linalg.eigvalsh(dense.M[0] - (dense.K.T * rho.flatten()) @ dense.K)[0]) < 0
    truth = truth_of(problem, b, loss, near(problem, b))
    assert truth.usable
    found = lr.solve(problem, b, 1e-5)
    assert found.status is lr.Status.CONVERGED
    assert (found.certified_scope, found.bound_kind, found.certified) == ("local", "rigorous", False)
    assert found.locally_certified
    way = (found.x.flatten(1) - truth.x).norm(dim=1)
    scale = math.sqrt(truth.x.shape[1])
    assert bool((way <= scale * found.error_bound + truth.x_slack).all())
    assert bool((scale * found.error_bound <= found.radius).all())
    for certificate in ("auto", "published"):
        result = lr.hypergradient(problem, b, loss, tolerance=1e-3, certificate=certificate)  # type: ignore[arg-type]
        if boxed and not result.locally_certified:  # a pixel on the verge of its bound
            continue
        assert result.status is lr.Status.CONVERGED
        assert (result.certified_scope, result.certified) == ("local", False)
        assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack
        assert result.loss_interval[0] <= truth.loss <= result.loss_interval[1]


def test_hypergradients_equal_dense_ones() -> None:
    problem = problem_with(Identity((1, 8, 8)), deep(4.0))
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss, near(problem, b))
    result = lr.hypergradient(problem, b, loss, tolerance=1e-6)
    assert result.locally_certified
    assert distance(result.gradient, truth.gradient) <= 1e-6 * norm(truth.gradient)


def test_imported_weakly_convex_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """f'' jumps; the truth by Newton's method on the pieces the minimiser is on, which is exact there. Rigorously by
    dense matrices and by bands, with a stated probability by Lanczos' method."""
    problem = problem_with(mask(), imported(), ridge=0.01)
    _, b = registry.measure(problem)
    x = near(problem, b).reshape(-1, *SHAPE)
    terms = problem.saddle_terms(DOUBLE)
    K = torch.stack([terms.operator(e.reshape(1, *SHAPE)).flatten() for e in torch.eye(42, dtype=DOUBLE)], 1)
    M = torch.diag(problem.operator.mask.flatten() ** 2 + 0.01)
    q = (problem.operator.mask * b).flatten(1)
    for _ in range(3):
        t = terms.operator(x)
        H = M + torch.einsum("mi,bm,mj->bij", K, terms.potential.second(t).flatten(1), K)
        gradient = x.flatten(1) @ M - q + terms.potential.grad(t).flatten(1) @ K
        x = x - torch.linalg.solve(H, gradient).reshape(x.shape)
    assert float(torch.linalg.eigvalsh(H).min()) > 0
    for limit, window, kind in ((1024, True, "rigorous"), (1, True, "rigorous"), (1, False, "estimate")):
        monkeypatch.setattr(lowest_curvature, "_DENSE_PIXELS", limit)
        if not window:
            monkeypatch.setattr(Inpainting, "diagonal", lambda self: None)
        found = lr.solve(problem, b, 1e-6)
        assert (found.bound_kind, found.certified_scope) == (kind, "local")
        assert ("probability" in found.reason) == (kind == "estimate")
        error = (found.x - x).flatten(1).norm(dim=1) / math.sqrt(42)
        assert bool((error <= found.error_bound + 1e-14).all())
        assert bool((found.error_bound <= 1e-6).all())


def test_a_convex_energy_keeps_its_global_statement() -> None:
    problem = problem_with(Identity(SHAPE), TotalVariation(0.1, 1e-2).double())
    x_true, b = registry.measure(problem)
    found, result = lr.solve(problem, b), lr.hypergradient(problem, b, lr.SquaredError(x_true))
    for one in (found, result):
        assert one.certified
        assert one.certified_scope == "local"
        assert torch.equal(one.radius, torch.full((len(b),), math.inf, dtype=DOUBLE))
    problem.minimiser = "global"
    assert lr.solve(problem, b).certified_scope == "global"


def test_singular_operators_need_no_ridge() -> None:
    """Convex experts on a mask: no modulus, but a curvature where the minimiser is."""
    problem = problem_with(
        mask(), FieldsOfExperts(filters=8, size=3, generator=torch.Generator().manual_seed(0)).double()
    )
    x_true, b = registry.measure(problem)
    truth = truth_of(problem, b, lr.SquaredError(x_true), near(problem, b))
    result = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
    assert result.locally_certified
    assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack


@pytest.mark.parametrize("certificate", ["auto", "published"])
def test_sums_are_bounded_part_by_part(certificate: str) -> None:
    """What is moved to the quadratic part is a number of each response, of all parts."""
    other = FieldsOfExperts(filters=3, size=2, generator=torch.Generator().manual_seed(1)).double()
    for regularizer in (
        deep() + other,
        Scaled(other + deep(), 1.1).double(),
        deep() + TotalVariation(0.05, 0.1).double(),
    ):
        problem = problem_with(mask(), regularizer)
        x_true, b = registry.measure(problem)
        loss = lr.SquaredError(x_true)
        result = lr.hypergradient(problem, b, loss, tolerance=1e-2, certificate=certificate)  # type: ignore[arg-type]
        assert result.locally_certified
        assert not result.certified
        truth = truth_by_energy(problem, b, loss, result.x)
        assert distance(result.gradient, truth.gradient) <= result.error_bound + 1e-10 * norm(truth.gradient)
        error = (result.x - truth.x).flatten(1).norm(dim=1)
        assert bool((error <= torch.minimum(result.state_error_bound, result.radius) + 1e-12).all())


TERMS: dict[str, Callable[[], DataTerm]] = {
    "Poisson": lambda: lr.Poisson(nn.Parameter(torch.tensor(0.5, dtype=DOUBLE))),
    "TransmissionPoisson": lambda: lr.TransmissionPoisson(40.0, nn.Parameter(torch.tensor(1.2, dtype=DOUBLE))),
    "SmoothedL1": lambda: lr.SmoothedL1(nn.Parameter(torch.tensor(0.1, dtype=DOUBLE))),
}


@pytest.mark.parametrize("name", TERMS)
def test_data_terms_that_are_no_squares_are_bounded(name: str) -> None:
    problem = problem_with(Identity(SHAPE), deep(), data_term=TERMS[name](), constraint=lr.Box(0.0, 1.0))
    x_true = 0.2 + 0.6 * registry.rand(2, *SHAPE, seed=3)
    counts = {"Poisson": torch.round(4.0 * x_true), "TransmissionPoisson": torch.round(40.0 * torch.exp(-1.2 * x_true))}
    b, loss = counts.get(name, x_true), lr.SquaredError(x_true)
    assert problem.instance(b).local
    found = lr.solve(problem, b, 1e-5)
    truth = truth_of(problem, b, loss, found.x.flatten(1))
    assert truth.usable
    assert found.locally_certified
    error = (found.x.flatten(1) - truth.x).norm(dim=1)
    bound = torch.minimum(math.sqrt(42) * found.error_bound, found.radius)
    assert bool((error <= bound + truth.x_slack).all())
    result = lr.hypergradient(problem, b, loss, tolerance=1e-2)
    assert result.locally_certified
    assert not result.certified
    assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack


def test_results_in_float32_are_in_their_balls() -> None:
    """Rounded as they are."""
    problem = problem_with(Identity(SHAPE), deep().float())
    x_true, b = registry.measure(problem)
    found = lr.solve(problem, b.float(), 1e-4)
    assert found.locally_certified
    assert found.radius.dtype == torch.float32
    assert bool((math.sqrt(42) * found.error_bound <= found.radius).all())
    result = lr.hypergradient(problem, b.float(), lr.SquaredError(x_true.float()), tolerance=1e-2)
    assert result.locally_certified
    assert bool((result.state_error_bound <= result.radius).all())
    assert float(result.radius.max()) < 1.0


# ---- what is refused -------------------------------------------------------------------------------------------------


def double_well(weight: float = 2.0) -> lr.LowerLevelProblem:
    """½ (x - b)² of each pixel and an even potential of x itself that curves by -weight at 0, then back."""
    bends = torch.tensor([[0.0, 0.0, -1.0, -1.0, 0.0, 0.0]], dtype=DOUBLE)
    return problem_with(
        Identity((1, 3, 3)), ImportedRidge([torch.ones(1, 1, 1, 1, dtype=DOUBLE)], bends, 0.5, factor=0.5 * weight)
    )


def test_saddle_points_and_flat_places_are_refused() -> None:
    """At b = 0 the gradient vanishes at x = 0, where the energy curves downwards, or with weight 1 not at all."""
    b = torch.zeros(1, 1, 3, 3, dtype=DOUBLE)
    for weight, status in ((2.0, lr.Status.INDEFINITE), (1.0, None)):
        problem = double_well(weight)
        found = lr.solve(problem, b, start=b)
        assert not found.locally_certified
        assert (found.bound_kind, float(found.error_bound), float(found.radius)) == ("none", math.inf, 0.0)
        assert found.status is status if status else not found.status.converged
        assert "minimiser" in found.reason
        judged = lr.certify(problem, b, lr.SquaredError(b), b)
        assert (judged.bound_kind, float(judged.error_bound), float(judged.radius)) == ("none", math.inf, 0.0)
    moved = lr.solve(double_well(), b, start=b + 0.1)
    assert moved.locally_certified
    assert float(moved.x.min()) > 0.5


def test_the_branch_is_that_of_the_start() -> None:
    """Two minimisers, mirror images of each other."""
    b = torch.zeros(1, 1, 3, 3, dtype=DOUBLE)
    left, right = (lr.solve(double_well(), b, 1e-8, start=b + side) for side in (-0.1, 0.1))
    for found in (left, right):
        assert found.locally_certified
        assert not found.certified
    torch.testing.assert_close(left.x, -right.x, rtol=1e-12, atol=1e-8)
    assert float((left.x - right.x).norm()) > float(left.radius + right.radius)


def test_rough_points_are_refused_and_say_so() -> None:
    problem = problem_with(mask(), deep())
    x_true, b = registry.measure(problem)
    for found in (lr.solve(problem, b, max_steps=2), lr.solve(problem, b, 1.0, max_steps=1)):
        assert not found.locally_certified
        assert bool(torch.isinf(found.error_bound).any())
        assert found.reason
    far = lr.certify(problem, b, lr.SquaredError(x_true), x_true + 1.0, certificate="published")
    assert (far.bound_kind, far.certified, far.gradient_error_bound) == ("none", False, math.inf)
    assert far.loss_interval == (-math.inf, math.inf)
    result = lr.hypergradient(problem, b, lr.SquaredError(x_true), max_steps=1)
    assert (result.bound_kind, result.error_bound, result.certified) == ("none", math.inf, False)
    assert not result.status.converged
    with pytest.raises(lr.SolverError, match="minimiser"):
        lr.solve(problem, b, max_steps=2, on_failure="raise")


def test_potentials_that_couple_responses_are_refused() -> None:
    problem = problem_with(
        Inpainting(torch.ones(1, 8, 8) * (torch.arange(8) > 0)), InputConvexNetwork(features=4, layers=1)
    )
    found = lr.solve(problem, torch.rand(1, 1, 8, 8), max_steps=3)
    assert not found.locally_certified
    assert "add a ridge" in found.reason
    with pytest.raises(lr.ConfigError, match="minimiser"):
        lr.LowerLevelProblem(Identity(SHAPE), deep(), minimiser="nearest")  # type: ignore[arg-type]
    with pytest.raises(lr.AssumptionError, match="minimiser='local'"):
        lr.solve(lr.LowerLevelProblem(Identity(SHAPE), deep()), torch.zeros(1, *SHAPE, dtype=DOUBLE))


class Waves(lr.Regularizer):
    """Nonconvex, and says nothing of it."""

    def value(self, x: Tensor) -> Tensor:
        return (0.3 * torch.cos(6.0 * x)).flatten(1).sum(1)


@pytest.mark.parametrize("kind", ["operator", "regularizer"])
def test_what_nobody_vouches_for_has_no_ball(kind: str) -> None:
    """Errors are estimates; no minimiser is known to be the only one, nor is its loss."""
    A = registry.rand(30, 42, seed=5) / 6.0
    operator = from_callables(lambda x: x.flatten(1) @ A.T, lambda y: (y @ A).reshape(-1, *SHAPE), SHAPE, (30,))
    operator.examine = kind == "regularizer"
    problem = problem_with(operator, deep() if kind == "operator" else deep() + Waves())
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    found, result = lr.solve(problem, b, 1e-3), lr.hypergradient(problem, b, loss)
    judged = lr.certify(problem, b, loss, found.x)
    for one in (found, result, judged):
        assert (one.bound_kind, one.certified, one.locally_certified) == ("estimate", False, False)
        assert bool((one.radius == 0).all())
    assert math.isinf(result.loss_interval[1])
    assert bool(torch.isinf(result.state_error_bound).all())


def test_norms_of_kinks_are_convex_and_need_no_ball() -> None:
    regularizer = AnalysisOperator(Gradient(SHAPE), lr.AbsoluteValue(0.1)).double()
    for operator, kind in ((Identity(SHAPE), "rigorous"), (mask(), "none")):
        problem = problem_with(operator, regularizer)
        _, b = registry.measure(problem)
        found = lr.solve(problem, b, 1e-3)
        assert found.bound_kind == kind
        assert bool(torch.isinf(found.radius).all())


def test_model_files_keep_it(tmp_path: object) -> None:
    problem = problem_with(Identity(SHAPE), deep())
    file = f"{tmp_path}/model.safetensors"
    lr.save_model(file, problem)
    assert lr.load(file).problem(SHAPE).minimiser == "local"
    assert "minimiser=local" in repr(problem)


def test_a_small_modulus_gives_way_to_that_of_a_ball() -> None:
    """At the edge of convexity: the minimiser of the ball is that of the whole energy, and bounds get far smaller."""
    ridge = Scaled(deep(), 0.999 / float(problem_with(Identity(SHAPE), deep()).frozen().concavity)).double()
    asked, plain = (
        problem_with(Identity(SHAPE), ridge) if kind == "local" else lr.LowerLevelProblem(Identity(SHAPE), ridge)
        for kind in ("local", "global")
    )
    assert 0 < plain.strong_convexity < 2e-3
    x_true, b = registry.measure(plain)
    loss = lr.SquaredError(x_true)
    truth = truth_of(plain, b, loss)
    found = lr.solve(asked, b, 1e-4)
    assert found.certified
    assert bool(torch.isinf(found.radius).all())
    error = (found.x.flatten(1) - truth.x).norm(dim=1)
    assert bool((error <= math.sqrt(42) * found.error_bound + truth.x_slack).all())
    assert bool((math.sqrt(42) * found.error_bound <= 50.0 * error).all())  # 1/mu is over 500
    result = lr.certify(asked, b, loss, found.x)
    assert result.certified
    assert distance(result.gradient, truth.gradient) <= result.gradient_error_bound + truth.gradient_slack
