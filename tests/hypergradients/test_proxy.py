"""Hypergradients through networks that predict lower-level solutions, and the bounds of their errors."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor, nn
from truth.dense import distance, norm, truth_of

import learnreg as lr
from learnreg.regularizers import TotalVariation

SHAPE = registry.SHAPE


class Hypernetwork(nn.Module):
    """The measurement plus a network of it and theta: a small one, smooth in theta."""

    def __init__(self, numbers: int, hidden: int = 32) -> None:
        super().__init__()
        pixels = torch.Size(SHAPE).numel()
        self.layers = nn.Sequential(nn.Linear(pixels + numbers, hidden), nn.Tanh(), nn.Linear(hidden, pixels)).double()

    def forward(self, theta: Tensor, b: Tensor) -> Tensor:
        given = torch.cat([b.flatten(1), theta.expand(len(b), -1)], 1)
        return b + self.layers(given).reshape(b.shape)


class Expansion(nn.Module):
    """The solution to first order in theta, and so exact up to the second one."""

    def __init__(self, at: Tensor, x: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.at, self.x, self.slope = at, x, slope

    def forward(self, theta: Tensor, b: Tensor) -> Tensor:
        return self.x + torch.einsum("...n,n->...", self.slope, theta - self.at)


def posed(constraint: lr.Box | None = None) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = lr.LowerLevelProblem(
        registry.OPERATORS["Identity"](), TotalVariation(0.2, 0.1).double(),
        ridge=registry.scalar(0.3), constraint=constraint,
    )  # fmt: skip
    x_true, b = registry.measure(problem)
    return problem, b, lr.SquaredError(x_true)


def flat(problem: lr.LowerLevelProblem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.learnable().values()])


def expansion(problem: lr.LowerLevelProblem, b: Tensor, error: float = 0.0) -> Expansion:
    """By differences of solutions."""
    x, h, columns = lr.solve(problem, b, 1e-10).x, 1e-4, []
    for p in problem.learnable().values():
        for index in range(p.numel()):
            found = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    p.view(-1)[index] += sign * h
                found.append(lr.solve(problem, b, 1e-11).x)
                with torch.no_grad():
                    p.view(-1)[index] -= sign * h
            columns.append((found[0] - found[1]) / (2 * h))
    return Expansion(flat(problem), x + error * registry.randn(*x.shape), torch.stack(columns, -1))


@pytest.mark.parametrize("constraint", [None, lr.Box(0.3, 0.7)])
def test_an_exact_proxy_has_the_exact_gradient(constraint: lr.Box | None) -> None:
    problem, b, loss = posed(constraint)
    truth = truth_of(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, lr.Proxy(expansion(problem, b)), 1e-4)
    assert found.status is lr.Status.CONVERGED
    assert distance(found.gradient, truth.gradient) <= found.error_bound <= 1e-4 * found.norm
    assert list(found.gradient) == list(problem.learnable())


@pytest.mark.parametrize("error", [1e-3, 1e-2, 1e-1])
def test_a_wrong_proxy_is_certified_to_be_wrong(error: float) -> None:
    problem, b, loss = posed()
    truth = truth_of(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, lr.Proxy(expansion(problem, b, error)), 1e-5)
    assert found.status is lr.Status.METHOD_ERROR
    assert found.certified
    true = distance(found.gradient, truth.gradient)
    assert true <= found.error_bound <= 1.1 * true
    errors = (found.x.flatten(1) - truth.x).norm(dim=1)
    assert bool((errors <= found.state_error_bound + truth.x_slack).all())
    assert distance(found.corrected_gradient, truth.gradient) <= 1e-5 * norm(truth.gradient)
    plain = lr.hypergradient(problem, b, loss, lr.Proxy(expansion(problem, b, error)), certificate="none")
    assert distance(plain.gradient, found.gradient) == 0.0
    assert plain.operator_applications < found.operator_applications


def test_a_network_is_fitted_to_certified_solutions() -> None:
    problem, b, loss = posed()
    before = {name: p.detach().clone() for name, p in problem.learnable().items()}
    torch.manual_seed(0)
    proxy = lr.Proxy(Hypernetwork(flat(problem).numel()))
    start = lr.hypergradient(problem, b, loss, proxy, 0.3)
    error = proxy.fit(problem, b, radius=0.2, draws=24, updates=800, step_size=1e-2)
    assert error < 0.1
    found = lr.hypergradient(problem, b, loss, proxy, 0.3)
    assert found.relative_error_bound < 0.3 < start.relative_error_bound
    assert found.status is lr.Status.CONVERGED
    truth = truth_of(problem, b, loss)
    assert distance(found.gradient, truth.gradient) <= found.error_bound
    assert all(torch.equal(p, before[name]) for name, p in problem.learnable().items())


def test_networks_of_another_precision() -> None:
    problem, b, loss = posed()
    proxy = lr.Proxy(Hypernetwork(flat(problem).numel()).float())
    found = lr.hypergradient(problem, b, loss, proxy, 0.3)
    assert found.x.dtype is torch.float64
    assert all(g.dtype is torch.float64 for g in found.gradient.values())
    assert found.certified
    with torch.inference_mode():
        assert distance(lr.hypergradient(problem, b, loss, proxy, 0.3).gradient, found.gradient) == 0.0


class Blind(nn.Module):
    def forward(self, theta: Tensor, b: Tensor) -> Tensor:
        return 0.5 * b


class Flat(nn.Module):
    def forward(self, theta: Tensor, b: Tensor) -> Tensor:
        return theta.sum() * b.flatten(1)


def test_what_cannot_be_a_proxy_is_refused() -> None:
    problem, b, loss = posed()
    with pytest.raises(lr.ConfigError, match=r"network\(theta, b\)"):
        lr.Proxy(lambda theta, b: b)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="does not depend on theta"):
        lr.hypergradient(problem, b, loss, lr.Proxy(Blind()))
    with pytest.raises(lr.ShapeError, match="expected images"):
        lr.hypergradient(problem, b, loss, lr.Proxy(Flat()))
    latent = lr.LowerLevelProblem(
        registry.OPERATORS["Identity"](), registry.REGULARIZERS[registry.regularizers(latent=True)[0]]()
    )
    with pytest.raises(lr.ConfigError, match=r"use Implicit\(\)"):
        lr.hypergradient(latent, b, loss, lr.Proxy(Flat()))
    for options in ({"radius": 0.0}, {"draws": 1}, {"updates": 0}, {"step_size": -1.0}, {"tolerance": 0.0}):
        with pytest.raises(lr.ConfigError, match=next(iter(options))):
            lr.Proxy(Hypernetwork(3)).fit(problem, b, **options)  # type: ignore[arg-type]
