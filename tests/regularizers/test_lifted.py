"""Lifted networks: the inner quadratic program, the reduced energy, and what is certified of the lower level."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import judge
from learnreg.convolutions.lifted import couple, coupling_norm
from learnreg.convolutions.network_layers import mix
from learnreg.hypergradients.compute import Start
from learnreg.linear.norms import dense_matrix
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity
from learnreg.potentials.squared_hinge import SquaredHinge
from learnreg.regularizers import InputConvexNetwork, Scaled
from learnreg.regularizers.lifted_features import InnerProblem, reduced_value
from learnreg.solvers.newton_cg import NewtonCG
from learnreg.solvers.newton_correction import correct_adjoint
from learnreg.solvers.solve import initial_point, run_state_solver
from learnreg.training.tolerances import Tolerances, audit, improve_batch

DOUBLE = torch.float64


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def inner(layers: int, m: int, seed: int, delta: tuple[float, float] = (0.5, 0.01)) -> InnerProblem:
    mixing = rand(layers - 1, 3, 3, m, m, seed=seed) / m
    a = randn(2, 3 * layers, 4, 5, seed=seed + 1)
    return InnerProblem(a, mixing, rand(3, seed=seed + 2), *delta)


def network(mixing_size: int = 1, layers: int = 2, **options: object) -> InputConvexNetwork:
    generator = torch.Generator().manual_seed(3)
    result = InputConvexNetwork(
        1, 3, layers, 3, "lifted", mixing_size=mixing_size, weight=0.3, generator=generator, **options  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=50 + i))
        result.biases.mul_(0.2)
    return result


def denoising(mixing_size: int = 1, constraint: lr.Box | None = None) -> tuple[lr.LowerLevelProblem, Tensor, Tensor]:
    x_true = rand(2, 1, 5, 6, seed=1)
    problem = lr.LowerLevelProblem(Identity((1, 5, 6)), network(mixing_size), constraint=constraint)
    return problem, x_true + 0.1 * randn(2, 1, 5, 6, seed=2), x_true


def relative(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    size = math.sqrt(sum(float(g.square().sum()) for g in exact.values()))
    return math.sqrt(sum(float((found[n] - exact[n]).square().sum()) for n in exact)) / size


# ---- the inner problem -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("delta", [(0.5, 0.01), (2.0, 1e-3), (0.01, 1.0)])
def test_the_features_close_the_duality_gap(layers: int, m: int, delta: tuple[float, float]) -> None:
    p = inner(layers, m, 10 * layers + m, delta)
    z = p.solve()
    upper, lower = p.upper(z), p.lower(p.dual(z))
    assert bool((z >= 0).all())
    assert float(((upper - lower).abs() / upper).max()) < 1e-11
    assert bool((p.lower(rand(*z.shape, seed=5)) <= upper).all())
    assert bool((p.upper(rand(*z.shape, seed=6)) >= upper).all())


def test_one_layer_is_explicit() -> None:
    """A parabola from 0 to delta_y c, then nearly a line."""
    p = inner(1, 1, 4)
    y, z = p.delta_y, p.delta_z
    c, a = p.weights[:, None, None], p.a.clamp_min(0.0)
    beyond = a * a / (2 * y) - (a - y * c) ** 2 / (2 * y * (1 + y * z))
    expected = torch.where(a <= y * c, a * a / (2 * y), beyond).flatten(1).sum(1)
    torch.testing.assert_close(p.upper(p.solve()), expected, rtol=1e-12, atol=0)


def test_a_dense_quadratic_program_has_the_same_solution() -> None:
    """All active sets of a problem with four features on one pixel."""
    p = InnerProblem(randn(1, 4, 1, 1, seed=1), rand(1, 2, 2, 1, 1, seed=2), rand(2, seed=3), 0.5, 0.1)
    B = dense_matrix(lambda z: couple(z, p.mixing), (4, 1, 1))
    best = torch.tensor(math.inf, dtype=DOUBLE)
    for sets in range(256):
        free = [i for i in range(4) if sets >> i & 1]
        rows = [i for i in range(4) if sets >> (4 + i) & 1]
        z = torch.zeros(4, dtype=DOUBLE)
        if free:
            part = B[rows][:, free]
            H = p.delta_z * torch.eye(len(free), dtype=DOUBLE) + part.T @ part / p.delta_y
            rhs = -p.cost.flatten()[free] - part.T @ p.a.flatten()[rows] / p.delta_y
            z[free] = torch.linalg.solve(H, rhs)
        if bool((z >= 0).all()):
            best = torch.minimum(best, p.upper(z.view(1, 4, 1, 1))[0])
    torch.testing.assert_close(p.upper(p.solve())[0], best, rtol=1e-13, atol=0)


@pytest.mark.parametrize("m", [1, 3])
def test_the_coupling_norm_is_a_bound(m: int) -> None:
    mixing = rand(2, 2, 2, m, m, seed=m)
    matrix = dense_matrix(lambda z: couple(z, mixing), (6, 6, 6))
    true = float(torch.linalg.matrix_norm(matrix, 2))
    assert true <= coupling_norm(mixing, 2) <= (1.0 + 1e-9 if m == 1 else 1.5) * true


def test_derivatives_of_the_value_equal_differences() -> None:
    p = inner(3, 1, 7)
    inputs = [p.a, p.mixing, p.weights]
    moves = [randn(*v.shape, seed=20 + i) * v.abs() for i, v in enumerate(inputs)]

    def value(step: float) -> Tensor:
        at = [v + step * d for v, d in zip(inputs, moves, strict=True)]
        return reduced_value(at[0], at[1], at[2], p.delta_y, p.delta_z).sum()

    def slope(step: float, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        t = torch.tensor(step, dtype=DOUBLE, requires_grad=True)
        at = [v + t * d for v, d in zip(inputs, moves, strict=True)]
        total = reduced_value(at[0], at[1], at[2], p.delta_y, p.delta_z).sum()
        return torch.autograd.grad(total, t, create_graph=create_graph)[0], t

    first, t = slope(0.0, create_graph=True)
    (second,) = torch.autograd.grad(first, t)
    h = 1e-6
    torch.testing.assert_close((value(h) - value(-h)) / (2 * h), first.detach(), rtol=1e-7, atol=0)
    torch.testing.assert_close((slope(h)[0] - slope(-h)[0]) / (2 * h), second, rtol=1e-5, atol=0)


# ---- the regularizer -------------------------------------------------------------------------------------------------


def relu_network(R: InputConvexNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Its value and the features of all layers."""
    numbers, features = R.network(), []
    for l in range(numbers.layers):
        u = torch.nn.functional.conv2d(x, numbers.filters[l][:, None], numbers.biases[l], padding="same")
        u = u if l == 0 else u + mix(features[-1], numbers.mixing[l - 1])
        features.append(u.clamp_min(0.0))
    return (numbers.weights[:, None, None] * features[-1]).flatten(1).sum(1), torch.cat(features, 1)


@torch.no_grad()
def test_it_lies_between_bounds_around_the_relu_network_and_tends_to_it() -> None:
    x, previous = rand(3, 1, 9, 10, seed=8), math.inf
    for shrink in (1.0, 0.1, 0.01, 1e-3):
        delta = (0.5 * shrink, 0.1 * shrink)
        R = network(delta=delta)
        exact, features = relu_network(R, x)
        numbers = R.network()
        y = [numbers.weights[:, None, None].expand(3, -1, 9, 10)]
        y.insert(0, torch.einsum("ij,bihw->bjhw", numbers.mixing[0, :, :, 0, 0], y[0]))
        value = R.value(x)
        below = 0.5 * delta[0] * torch.cat(y, 1).square().flatten(1).sum(1)
        above = 0.5 * delta[1] * features.square().flatten(1).sum(1)
        assert bool((value >= exact - below).all())
        assert bool((value <= exact + above).all())
        gap = float(((value - exact) / exact).abs().max())
        assert gap < previous
        previous = gap
    assert previous < 1e-3


@torch.no_grad()
def test_both_forms_tend_to_the_same_network() -> None:
    x, R = rand(2, 1, 9, 9, seed=9), network(delta=(1e-4, 1e-5))
    smooth = InputConvexNetwork(1, 3, 2, 3, weight=0.3, smoothing=1e-6).double()
    smooth.load_state_dict(R.state_dict(), strict=False)
    torch.testing.assert_close(R.value(x), smooth.value(x), rtol=1e-3, atol=0)


@torch.no_grad()
def test_it_is_convex_on_segments() -> None:
    R = network(3)
    u, v = randn(20, 1, 8, 8, seed=1), randn(20, 1, 8, 8, seed=2)
    s = rand(20, seed=3)
    between = R.value(u + s[:, None, None, None] * (v - u))
    assert bool((between <= (1 - s) * R.value(u) + s * R.value(v) + 1e-12).all())


def test_bad_options_are_errors() -> None:
    with pytest.raises(lr.ConfigError, match="two positive numbers"):
        InputConvexNetwork(form="lifted", delta=(1.0, 0.0))
    with pytest.raises(lr.ConfigError, match="smooth form has none"):
        InputConvexNetwork(delta=(1.0, 0.1))
    with pytest.raises(lr.ConfigError, match="no factor scales"):
        Scaled(network()).saddle_terms((1, 8, 8))


def test_the_config_rebuilds_it() -> None:
    R = network(delta=(0.7, 0.02))
    twin = InputConvexNetwork.from_config(R.config()).double()
    twin.load_state_dict(R.state_dict())
    x = rand(1, 1, 8, 8, seed=1)
    assert torch.equal(twin.value(x), R.value(x))


# ---- the potential ---------------------------------------------------------------------------------------------------


def test_the_hinge_keeps_its_divergence_without_cancellation() -> None:
    f = SquaredHinge(0.3, shift=torch.tensor([0.1, -0.2], dtype=DOUBLE)[:, None, None])
    r, t = randn(1, 2, 20, 20, seed=1), randn(1, 2, 20, 20, seed=2)
    direct = f.density(r) - f.density(t) - f.grad(t) * (r - t)
    torch.testing.assert_close(f.divergence(r, t), direct, rtol=1e-12, atol=1e-13)
    close = f.divergence(t + 1e-9, t)
    assert bool((close >= 0).all())
    assert float(close.max()) <= 0.5e-18 / 0.3 * 1.001


# ---- the lower level -------------------------------------------------------------------------------------------------


def reduced_truth(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Dense Newton steps on ``problem.energy``, from a rough solution, and the implicit function theorem: nothing of
    latent variables."""
    x, count = lr.solve(problem, b, 1e-4).x, b[0].numel()
    for _ in range(40):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(problem.energy(x, b).sum(), x, create_graph=True)
        H = torch.stack(
            [torch.autograd.grad(g.flatten(1)[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in range(count)], 1
        )
        if float(g.detach().norm()) < 1e-12:
            break
        step = torch.linalg.solve(H, -g.detach().flatten(1)[:, :, None])[:, :, 0].view_as(x)
        start, share = problem.energy(x, b).sum().detach(), 1.0
        with torch.no_grad():
            while float(problem.energy(x + share * step, b).sum()) > float(start) and share > 1e-3:
                share *= 0.5
        x = x + share * step
    assert float(g.detach().norm()) < 1e-12
    X = torch.linalg.solve(H, -loss.gradient(x.detach()).flatten(1)[:, :, None])[:, :, 0].view_as(x)
    parameters = problem.learnable()
    grads = torch.autograd.grad((g * X).sum(), list(parameters.values()))
    return x.detach(), dict(zip(parameters, grads, strict=True))


@pytest.mark.parametrize("mixing_size", [1, 3])
def test_solutions_and_hypergradients_are_certified(mixing_size: int) -> None:
    problem, b, x_true = denoising(mixing_size)
    loss = lr.SquaredError(x_true)
    x, gradient = reduced_truth(problem, b, loss)
    for solver in ("pdhg", "auto"):
        solution = lr.solve(problem, b, 1e-6, solver=solver)  # type: ignore[arg-type]
        errors = (solution.x - x).flatten(1).norm(dim=1) / math.sqrt(30)
        assert solution.certified
        assert solution.status is lr.Status.CONVERGED
        assert bool((errors <= solution.error_bound).all())
        assert float(solution.error_bound.max()) <= 1e-6
    for method in (lr.Implicit(), lr.Piggyback(), lr.Piggyback(mode="interleaved"))[: 3 if mixing_size == 1 else 1]:
        result = lr.hypergradient(problem, b, loss, method, tolerance=1e-2)
        assert result.certified
        assert result.x.shape == b.shape == result.X.shape
        assert relative(result.gradient, gradient) <= result.relative_error_bound <= 1e-2


def test_any_image_is_judged() -> None:
    problem, b, x_true = denoising()
    loss = lr.SquaredError(x_true)
    x, gradient = reduced_truth(problem, b, loss)
    rough = x + 1e-3 * randn(*x.shape, seed=4)
    judged = lr.certify(problem, b, loss, rough, 0.1 * randn(*x.shape, seed=5))
    assert bool(((rough - x).flatten(1).norm(dim=1) / math.sqrt(30) <= judged.error_bound).all())
    assert float(judged.error_bound.max()) < 2e-3
    error = math.sqrt(sum(float((judged.gradient[n] - g).square().sum()) for n, g in gradient.items()))
    assert judged.certified
    assert error <= judged.gradient_error_bound <= 1.1 * error
    point = rough.requires_grad_()
    (slope,) = torch.autograd.grad(problem.energy(point, b).sum(), point, create_graph=True)
    parameters = problem.learnable()
    grads = torch.autograd.grad((slope * judged.X).sum(), list(parameters.values()))
    assert relative(judged.gradient, dict(zip(parameters, grads, strict=True))) < 1e-9


def test_features_that_rounding_left_off_zero_are_decided() -> None:
    """Those whose hinge is certainly flat are 0 in the solution, without a multiplier where no later layer is moved."""
    problem, b, x_true = denoising()
    with torch.no_grad():
        problem.regularizer.biases.sub_(0.3)  # type: ignore[union-attr,operator]
    instance, moved = problem.instance(b), 1e-14
    limit = torch.full((2,), 1e-12, dtype=DOUBLE)
    v = run_state_solver(NewtonCG(), instance, initial_point(instance, b), limit, None).x
    point = Point.of(problem, b, lr.SquaredError(x_true), v, torch.zeros_like(v))
    point = point.at(v, correct_adjoint(point, limit).point)
    exact = judge(point, "sharp")
    assert not exact.reason
    shift = torch.as_tensor(instance.potential.shift)
    flat = torch.cat([torch.zeros_like(b, dtype=torch.bool), instance.apply(v) + shift < -1e-6], 1)
    idle = flat & (v < 1e-12) & (instance.full_gradient(v).abs() < 1e-12)
    assert bool(idle.flatten(1).any(1).all())
    found = judge(point.at(v + moved * idle, point.X + moved * idle), "sharp")
    assert not found.reason
    assert bool((found.point.x[idle] == 0).all())
    assert relative(found.gradient, exact.gradient) < 1e-12
    assert found.error_bound <= 1.1 * exact.error_bound


def test_hypergradients_equal_differences_within_a_box_and_behind_a_blur() -> None:
    """Of the loss at solutions for moved parameters, the ridge's among them."""
    x_true, blur = rand(1, 1, 6, 6, seed=1), Blur(rand(3, 3, seed=2) / 5, (1, 6, 6))
    ridge = torch.nn.Parameter(torch.tensor(0.2, dtype=DOUBLE))
    problem = lr.LowerLevelProblem(blur, network(), ridge=ridge, constraint=lr.Box(0.1, 0.8))
    b, loss = blur(x_true) + 0.05 * randn(1, 1, 6, 6, seed=3), lr.SquaredError(x_true)
    result = lr.hypergradient(problem, b, loss, tolerance=1e-4)
    assert result.certified
    parameters = problem.learnable()
    moves = {n: randn(*p.shape, seed=60 + i) for i, (n, p) in enumerate(parameters.items())}
    values, h = [], 1e-5
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for n, p in parameters.items():
                p.add_(sign * h * moves[n])
            values.append(float(loss.value(lr.solve(problem, b, 1e-11).x)))
            for n, p in parameters.items():
                p.sub_(sign * h * moves[n])
    slope = sum(float((result.gradient[n] * moves[n]).sum()) for n in moves)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-3)


def test_layers_and_training_steps_see_images_alone() -> None:
    problem, b, x_true = denoising()
    loss = lr.SquaredError(x_true)
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-4).gradient
    layer = lr.solution_layer(problem, tolerance=1e-6)
    loss.value(layer(b)).backward()  # type: ignore[no-untyped-call]
    assert relative({n: p.grad for n, p in problem.learnable().items()}, exact) < 1e-3  # type: ignore[misc]
    start = Start(b, torch.zeros_like(b))
    step = improve_batch(problem, b, loss, lr.Implicit(), start, Tolerances(1e-7, 1e-6))
    assert step.state.x.shape == step.state.X.shape == b.shape
    assert relative(step.gradient, exact) < 1e-3
    audited = audit(problem, b, loss, step.state, 1e-2)
    assert audited.certified
    assert audited.relative_error < 1e-2


def test_data_weights_leave_latent_variables_alone() -> None:
    """A single weight, too: the energy's gradient vanishes at the solution."""
    blur, weights = Blur(rand(3, 3, seed=2) / 5, (1, 6, 6)), torch.tensor(0.4, dtype=DOUBLE)
    for data_term in (lr.WeightedLeastSquares(weights), lr.WeightedLeastSquares(weights * rand(1, 6, 6, seed=3))):
        problem = lr.LowerLevelProblem(blur, network(), ridge=0.2, data_term=data_term)
        b = rand(1, 1, 6, 6, seed=4)
        x = lr.solve(problem, b, 1e-9).x.requires_grad_()
        (slope,) = torch.autograd.grad(problem.energy(x, b).sum(), x)
        assert float(slope.norm()) < 1e-6


def test_without_a_modulus_errors_are_estimated() -> None:
    mask = (rand(1, 8, 8, seed=4) > 0.3).double()
    problem = lr.LowerLevelProblem(lr.operators.Inpainting(mask), network())
    solution = lr.solve(problem, mask * rand(1, 1, 8, 8, seed=5), 1e-3, max_steps=300)
    assert solution.bound_kind == "estimate"
    assert solution.x.shape == (1, 1, 8, 8)
