"""Input-convex networks: convexity, derivatives, bounds of their potential, and certified gradients."""

from __future__ import annotations

import json
import math

import pytest
import registry
import torch
import torch.nn.functional as F
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import RANGES
from truth.hunt import hunt

import learnreg as lr
from learnreg.linear.parameter_groups import ResponseErrors
from learnreg.models.names import build_regularizer, describe_regularizer
from learnreg.operators import Blur, Identity
from learnreg.potentials.network import NetworkPotential
from learnreg.potentials.proximal import ProximalPotential
from learnreg.regularizers import InputConvexNetwork


def noisy(sides: tuple[int, int], batch: int = 1) -> tuple[Tensor, Tensor]:
    x_true = registry.rand(batch, 1, *sides, seed=1)
    return x_true, x_true + 0.1 * registry.randn(batch, 1, *sides, seed=2)


def random_potential(generator: torch.Generator, layers: int, n: int, m: int) -> NetworkPotential:
    """From nearly piecewise linear to smooth, with strong and faint connections."""

    def spread(*shape: int, low: float = -3.0, high: float = 1.0) -> Tensor:
        return torch.exp(low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))

    biases = 0.3 * torch.randn(layers, n, generator=generator, dtype=torch.float64)
    mixing = spread(max(layers - 1, 0), n, n, m, m)
    return NetworkPotential(spread(layers * n, 1, 1, low=-5.0, high=0.0), spread(n, 1, 1), mixing, biases)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- the function


def test_the_network_written_out_again() -> None:
    for R in (registry.network(mixing_size=3), registry.network(5, layers=3), registry.network(6, layers=1, size=4)):
        x = registry.randn(2, 1, 9, 10, seed=7)
        filters = R.filters - R.filters.mean((-2, -1), keepdim=True)
        k = filters.shape[-1]
        padded = F.pad(x, ((k - 1) // 2, k // 2) * 2)
        z: Tensor | None = None
        for l, v in enumerate(R.log_smoothing.exp()):
            u = F.conv2d(padded, filters[l][:, None]) + R.biases[l][:, None, None]
            if z is not None:
                U = R.log_mixing[l - 1].exp()
                u = u + F.conv2d(z, U, padding=U.shape[-1] // 2)
            v = v[:, None, None]
            z = (u + torch.sqrt(u**2 + v**2) - v) / 2
        assert z is not None
        expected = (R.log_weights.exp()[:, None, None] * z).sum((1, 2, 3))
        torch.testing.assert_close(R.value(x), expected, rtol=1e-12, atol=1e-12)


def test_near_zero_smoothing_it_is_the_network_of_rectifiers() -> None:
    R = registry.network(smoothing=1e-9)
    with torch.no_grad():
        R.log_smoothing.fill_(math.log(1e-9))
    x = registry.randn(1, 1, 8, 8)
    bank = R.saddle_terms((1, 8, 8)).operator
    a = torch.split(bank(x), 4, 1)
    z = F.relu(a[0] + R.biases[0][:, None, None])
    z = F.relu(F.conv2d(z, R.log_mixing[0].exp()) + a[1] + R.biases[1][:, None, None])
    expected = (R.log_weights.exp()[:, None, None] * z).sum((1, 2, 3))
    torch.testing.assert_close(R.value(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", registry.regularizers(proximal=False, dense=True))
@pytest.mark.sampled(share=0.5, by=("name",))
def test_derivatives_of_any_order(name: str) -> None:
    R = registry.REGULARIZERS[name]()
    x = (0.3 * registry.randn(1, 1, 3, 4)).requires_grad_()
    parameters = dict(R.named_parameters())

    def value(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(R, dict(zip(parameters, values, strict=True)), (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(value, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(R.value, (x,))
    slopes = lambda *values: torch.autograd.grad(value(x, *values).sum(), x, create_graph=True)[0]  # noqa: E731
    assert torch.autograd.gradcheck(slopes, tuple(parameters.values()))


def test_convex_along_random_segments_at_every_scale(rotating_generator: torch.Generator) -> None:
    with torch.no_grad():
        for trial in range(60):
            f = random_potential(rotating_generator, 1 + trial % 3, 3, 1 + 2 * (trial % 2))
            channels = f.layers * f.features
            for scale in (1e-4, 1e-2, 1.0, 30.0, 1e4):
                a, b = (scale * draw(rotating_generator, 4, channels, 4, 5) for _ in range(2))
                share = torch.rand(4, generator=rotating_generator, dtype=torch.float64)
                weight = share[:, None, None, None]
                middle = f.value(weight * a + (1.0 - weight) * b)
                chord = share * f.value(a) + (1.0 - share) * f.value(b)
                assert bool((middle <= chord + 1e-12 * (f.value(a).abs() + f.value(b).abs())).all())
                rise = ((f.grad(a) - f.grad(b)) * (a - b)).flatten(1).sum(1)
                assert bool((rise >= -1e-12 * scale).all())


@pytest.mark.parametrize(("layers", "m"), [(1, 1), (2, 1), (2, 3), (3, 1), (3, 3)])
def test_passes_with_and_without_autograd_agree(layers: int, m: int) -> None:
    f = random_potential(torch.Generator().manual_seed(3), layers, 3, m)
    t, v = (registry.randn(2, 3 * layers, 4, 5, seed=s) for s in (1, 2))
    point = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f.value(point).sum(), point, create_graph=True)
    (bent,) = torch.autograd.grad((slope * v).sum(), point)
    torch.testing.assert_close(f.grad(t), slope.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(f.hess_vec(t, v), bent, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        for _ in range(2):  # the second time from what is kept of the first
            torch.testing.assert_close(f.grad(t), slope.detach(), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(f.hess_vec(t, v), bent, rtol=1e-11, atol=1e-13)
        t.add_(0.1)  # in place: what was kept is of no use
        moved = f.hess_vec(t, v)
        torch.testing.assert_close(moved, f.hess_vec(t.clone(), v), rtol=0, atol=0)
        assert not torch.equal(moved, bent)
        columns = torch.transpose(t, 2, 3).contiguous().transpose(2, 3)  # another layout of the same numbers
        torch.testing.assert_close(f.grad(columns), f.grad(t), rtol=0, atol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_diagonal_of_the_hessian(layers: int) -> None:
    f = random_potential(torch.Generator().manual_seed(4), layers, 3, 1)
    t = registry.randn(1, 3 * layers, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(f.second_diagonal(t).flatten(), dense(f, t).diagonal())


# ------------------------------------------------------------------------------------------------------------- bounds


def dense(f: NetworkPotential, t: Tensor) -> Tensor:
    """f'' at one sample."""
    units = torch.eye(t[0].numel(), dtype=t.dtype).reshape(-1, *t.shape[1:])
    return f.hess_vec(t.expand_as(units).contiguous(), units).flatten(1)


@torch.no_grad()
def test_curvature_and_its_change_stay_below_their_bounds(rotating_generator: torch.Generator) -> None:
    """On tiny networks, where the bounds are nearly met: points near the kinks, all directions."""
    curvature, third, along = 0.0, 0.0, 0.0
    for trial in range(150):
        layers, n, places = 1 + trial % 3, 1 + trial % 2, 1 + (trial // 3) % 2
        f = random_potential(rotating_generator, layers, n, 1)
        unit = float(f.feature_smoothing().min())
        shape = (1, layers * n, 1, places)
        kink = -torch.cat([b[:, None, None].expand(n, 1, places) for b in f.biases])[None] if layers == 1 else 0.0
        t = kink + unit * torch.exp(2.0 * draw(rotating_generator, 1)) * draw(rotating_generator, *shape)
        H = dense(f, t)
        assert float(torch.linalg.eigvalsh(H)[0]) >= -1e-12 * float(H.abs().max())
        curvature = max(curvature, float(torch.linalg.matrix_norm(H, 2)) / float(f.second(t)))
        assert float(f.second(t)) <= float(f.curvature_limit) * (1.0 + 1e-6)
        for size in (1e-3, 0.5, 5.0):
            move = size * unit * draw(rotating_generator, *shape)
            change, length = dense(f, t + move) - H, float(move.norm())
            third = max(third, float(torch.linalg.matrix_norm(change, 2)) / (length * float(f.third_bound(t, length))))
            v = draw(rotating_generator, *shape)
            moved = float((change @ v.flatten()).norm())
            limit = float(f.curvature_change(t, length) * f.bending_size(v, t, length))
            along = max(along, moved / limit)
            low, high = f.curvature_bounds(t, length)
            assert float(low) == 0.0
            assert float(high) >= float(torch.linalg.matrix_norm(H + change, 2))
    assert 0.3 < curvature <= 1.0
    assert 0.3 < third <= 1.0
    assert 0.3 < along <= 1.0


def parameter_gradients(R: InputConvexNetwork, t: Tensor, V: Tensor) -> dict[str, Tensor]:
    """∂_theta <f'(t), V> by autograd, of the potential's parameters by what the bounds call them."""
    with torch.enable_grad():
        potential = R.saddle_terms((1, *t.shape[2:])).potential
        scalar = (potential.grad(t) * V).sum()
        names = {"log_mixing": "mixing", "biases": "biases", "log_weights": "weights", "log_smoothing": "smoothing"}
        chosen = {bound: getattr(R, name) for name, bound in names.items() if hasattr(R, name)}
        grads = torch.autograd.grad(scalar, list(chosen.values()))
    return dict(zip(chosen, grads, strict=True))


def test_parameter_gradients_stay_within_their_bounds(rotating_seed: int) -> None:
    """Each kind of parameter alone, against actual errors of y and Y, so that nothing pays for what is missing."""
    generator = torch.Generator().manual_seed(rotating_seed)
    largest = dict.fromkeys(("biases", "mixing", "weights", "smoothing"), 0.0)
    for trial in range(180):
        layers, n, places = 1 + trial % 3, 1 + trial % 2, 1 + (trial // 3) % 3
        R = InputConvexNetwork(1, n, layers, 2, mixing_size=1 + 2 * (trial % 2), generator=generator).double()
        with torch.no_grad():
            for p in R.parameters():
                p.add_(draw(generator, *p.shape))
            R.biases.mul_(0.01)
            R.log_smoothing.sub_(2.0 * torch.rand(R.log_smoothing.shape, generator=generator))
        f = R.saddle_terms((1, 1, places)).potential.detached()
        unit, shape = float(f.feature_smoothing().min()), (1, layers * n, 1, places)
        t, V, dV = (size * draw(generator, *shape) for size in (unit, 1.0, 10.0 ** (2 * float(draw(generator, 1)))))
        dt = unit * 10.0 ** float(draw(generator, 1)) * draw(generator, *shape)
        if trial % 4 == 0:
            dV = torch.zeros_like(dV)
        if trial % 4 == 1:
            dt = torch.zeros_like(dt)
        with torch.no_grad():
            y, Y = f.grad(t), f.hess_vec(t, V)
            y_hat, bent, Y_change = f.grad(t + dt), f.hess_vec(t + dt, dV), f.hess_vec(t + dt, V) - Y
        size = lambda p: p.flatten(1).norm(dim=1)  # noqa: E731
        bounds = f.parameter_bounds(t, V, y, Y, ResponseErrors(size(dt), size(y_hat - y), size(Y_change)))
        here, there = parameter_gradients(R, t, V), parameter_gradients(R, t + dt, V + dV)
        for kind, gradient in here.items():
            error, b = float((there[kind] - gradient).norm()), bounds[kind]
            bound = float(b.constant + b.on_V * size(dV) + b.on_Y * size(bent))
            assert error <= bound * (1.0 + 1e-9) + 1e-13 * float(b.magnitude), kind
            assert float(gradient.norm()) <= float(b.magnitude) * (1.0 + 1e-9), kind
            largest[kind] = max(largest[kind], error / max(bound, 1e-300))
    assert all(share > 0.3 for share in largest.values()), largest


# ---------------------------------------------------------------------------------------------------- hypergradients


def test_hypergradients_of_the_default_network_at_the_smallest_size() -> None:
    x_true, b = noisy((8, 8))
    R = InputConvexNetwork(generator=torch.Generator().manual_seed(0)).double()
    problem, loss = lr.LowerLevelProblem(Identity((1, 8, 8)), R), lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    assert truth.usable
    result = lr.hypergradient(problem, b, loss, tolerance=1e-4)
    assert result.certified
    assert set(result.gradient) == {"filters", "log_mixing", "biases", "log_weights", "log_smoothing"}
    error = distance(result.gradient, truth.gradient)
    assert error <= min(result.error_bound + truth.gradient_slack, 1e-4 * norm(truth.gradient))
    for name, gradient in truth.gradient.items():
        assert float(gradient.norm()) > 0, name


@pytest.mark.parametrize("name", registry.regularizers(proximal=False, dense=True))
@pytest.mark.parametrize("operator", ["denoising", "learned-blur"])
@pytest.mark.sampled(
    share=0.5,
    by=(
        "name",
        "operator",
    ),
)
def test_methods_and_certificates_agree_with_dense_ones(name: str, operator: str) -> None:
    problem = registry.build(operator, name)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    assert truth.usable
    for kind, method, tolerance in (
        ("published", lr.Implicit(), 1e-2),
        ("published", lr.Piggyback(), 10.0),
        ("sharp", lr.Piggyback(), 1e-5),
        ("sharp", lr.Implicit(state_solver="newton-cg"), 1e-2),
    ):
        result = lr.hypergradient(problem, b, loss, method, tolerance, certificate=kind)  # type: ignore[arg-type]
        assert result.certified
        assert result.status is lr.Status.CONVERGED
        assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack
        assert result.error_bound <= tolerance * result.norm


@pytest.mark.parametrize("kind", ["sharp", "published"])
@pytest.mark.sampled(share=0.5, by=("kind",))
def test_each_group_alone_is_certified(kind: str) -> None:
    """With one parameter learned at a time nothing else can pay for a bound that is too small."""
    problem = registry.build("denoising", "InputConvexNetwork-deep")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    for learned, _ in problem.regularizer.named_parameters():
        for name, p in problem.regularizer.named_parameters():
            p.requires_grad_(name == learned)
        for tolerance in (10.0, 1e-2, 1e-5):
            result = lr.hypergradient(problem, b, loss, tolerance=tolerance, certificate=kind)  # type: ignore[arg-type]
            assert result.certified
            expected = {name: truth.gradient[name] for name in result.gradient}
            assert distance(result.gradient, expected) <= result.error_bound + truth.gradient_slack, learned


def test_random_networks(rotating_generator: torch.Generator) -> None:
    summary = hunt(5, rotating_generator, RANGES["networks"])
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.comparisons > 60


@pytest.mark.slow(seconds=200)
def test_many_random_networks(rotating_generator: torch.Generator) -> None:
    summary = hunt(300, rotating_generator, RANGES["networks"])
    print(json.dumps(summary.report(), indent=2))
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.reached["0.001"] >= 0.9 * summary.smooth


@pytest.mark.parametrize("constraint", [None, lr.Nonnegative()], ids=["free", "nonnegative"])
@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg"])
def test_solutions_are_those_of_dense_newton_steps(solver: str, constraint: lr.Box | None) -> None:
    kernel = registry.rand(3, 3) / 4
    problem = lr.LowerLevelProblem(
        Blur(kernel, (1, 8, 9), "reflect"), registry.network(), ridge=0.1, constraint=constraint
    )
    x_true, b = noisy((8, 9), 2)
    truth = truth_of(problem, b - 0.3, lr.SquaredError(x_true))
    assert truth.usable
    solution = lr.solve(problem, b - 0.3, 1e-7, solver=solver)  # type: ignore[arg-type]
    assert solution.status is lr.Status.CONVERGED
    errors = (solution.x.flatten(1) - truth.x).norm(dim=1) / math.sqrt(72)
    assert bool((errors <= solution.error_bound + truth.x_slack).all())


def test_what_needs_a_proximal_map_is_refused() -> None:
    problem = registry.build("denoising", "InputConvexNetwork")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    with pytest.raises(lr.ConfigError, match=r"solver='pdhg': NetworkPotential couples all responses .* use 'auto'"):
        lr.solve(problem, b, solver="pdhg")
    with pytest.raises(lr.ConfigError, match=r"use Piggyback\(\) or Implicit"):
        lr.hypergradient(problem, b, loss, lr.Piggyback(mode="interleaved"))
    with pytest.raises(lr.ConfigError, match="'auto' or 'cg'"):
        lr.hypergradient(problem, b, loss, lr.Implicit("piggyback"))
    potential = registry.POTENTIALS["NetworkPotential"](0.1, 1.0)
    assert potential.prox_obstacle() == "couples all responses of an image"
    assert not isinstance(potential, ProximalPotential)


# ------------------------------------------------------------------------------------------------------------- options


def test_starts_useful_and_not_identically_zero() -> None:
    R = InputConvexNetwork(generator=torch.Generator().manual_seed(0))
    for n in (8, 9, 13, 30):
        assert bool((R.value(torch.rand(1, 1, n, n)) > 0).all())
    rows = torch.arange(40.0)
    clean = ((rows[:, None] - 20) ** 2 + (rows[None] - 20) ** 2 < 150).float()[None, None] * 0.8
    b = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    found = lr.solve(lr.LowerLevelProblem(Identity((1, 40, 40)), R), b, 1e-3).x
    gain = 10 * math.log10(float(((b - clean) ** 2).mean() / ((found - clean) ** 2).mean()))
    assert gain > 6.0


def test_seeds_decide() -> None:
    first, again, other = (InputConvexNetwork(generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.log_mixing, other.log_mixing)


def test_constants_are_seen_at_the_boundary_alone() -> None:
    R = registry.network()
    x = registry.randn(1, 1, 16, 16)
    with torch.no_grad():
        change = R.saddle_terms((1, 16, 16)).operator(x + 5.0) - R.saddle_terms((1, 16, 16)).operator(x)
    assert float(change[..., 1:-1, 1:-1].abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["InputConvexNetwork", "InputConvexNetwork-deep", "InputConvexNetwork-shallow"])
def test_configuration_rebuilds_it(name: str) -> None:
    R = registry.REGULARIZERS[name]()
    rebuilt = build_regularizer(describe_regularizer(R)).double()
    rebuilt.load_state_dict(R.state_dict())
    x = registry.randn(1, 1, 8, 9)
    assert torch.equal(rebuilt.value(x), R.value(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "none"}, "'smooth' or 'lifted'"),
        ({"channels": 0}, "channels from 1"),
        ({"features": 0}, "positive integers"),
        ({"layers": 1.5}, "positive integers"),
        ({"size": 1}, "size >= 2"),
        ({"mixing_size": 2}, "odd"),
        ({"weight": 0.0}, "positive finite"),
        ({"smoothing": 1e-3, "minimum_smoothing": 1e-3}, "positive finite"),
        ({"minimum_smoothing": -1.0}, ">= 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(lr.ConfigError, match=message):
        InputConvexNetwork(**options)  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError):
        InputConvexNetwork().value(torch.zeros(2, 8))
