"""Bilevel problems by two functions, against closed forms, dense matrices in float64, finite differences and
published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from truth.bilevel import dense_bilevel, flat

import learnreg as lr

bce = torch.nn.functional.binary_cross_entropy_with_logits


@dataclass
class Posed:
    """Functions, arguments and constants that are known to hold."""

    lower: Callable[..., Tensor]
    upper: Callable[..., Tensor]
    theta: dict[str, Tensor]
    x: dict[str, Tensor]
    data: Any
    constants: dict[str, Any]

    def problem(self, *names: str, **changed: Any) -> lr.BilevelProblem:
        known = {name: self.constants[name] for name in names or self.constants}
        return lr.BilevelProblem(self.lower, self.upper, **known | changed)


def published_quadratic() -> Posed:
    """The quadratic of "Analyzing inexact hypergradients for bilevel learning", with its seed."""
    random, m, n, sigma = np.random.RandomState(0), 1000, 10, 0.01
    A, u = random.rand(m, n), random.rand(n)
    b = A @ u + sigma * random.randn(m)
    C, D = random.rand(m, n), random.rand(m, n)
    e = C @ random.rand(n) + D @ random.rand(n) + sigma * random.randn(m)
    numbers = {name: torch.from_numpy(v) for name, v in {"A": A, "b": b, "C": C, "D": D, "e": e}.items()}
    eigenvalues, largest = np.linalg.eigvalsh(2.0 * D.T @ D), 2.0 * np.linalg.norm(A, 2) ** 2
    return Posed(
        lambda x, theta, d: (d["C"] @ theta["t"] + d["D"] @ x["x"] - d["e"]).square().sum(),
        lambda x, _, d: (d["A"] @ x["x"] - d["b"]).square().sum(),
        {"t": torch.ones(n, dtype=torch.float64)},
        {"x": torch.zeros(n, dtype=torch.float64)},
        numbers,
        {
            "strong_convexity": eigenvalues[0] * (1 - 1e-9),
            "gradient_lipschitz": eigenvalues[-1] * (1 + 1e-9),
            "hessian_lipschitz": 0.0,
            "cross_lipschitz": 0.0,
            "upper_gradient_lipschitz": largest * (1 + 1e-9),
        },
    )


def logistic(seed: int, separate: bool = False) -> Posed:
    """Logistic regression with a weight of the penalty for each coefficient, and a loss with a prior of theta."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n, m = 4, 15
    data = {"A": randn(m, n), "y": (randn(m) > 0).double(), "held out": [randn(m, n), (randn(m) > 0).double()]}
    data["label"] = "kept as it is"

    def lower(x: dict[str, Tensor], theta: dict[str, Tensor], d: Any) -> Tensor:
        misfit = bce(d["A"] @ x["w"] + x["c"], d["y"], reduction="none")
        ridge = 0.5 * (theta["rho"].exp() * x["w"] ** 2).sum() + 0.5 * theta["s"].exp() * x["c"] ** 2
        return torch.stack([misfit.sum(), ridge]) if separate else misfit.sum() + ridge

    def upper(x: dict[str, Tensor], theta: dict[str, Tensor], d: Any) -> Tensor:
        A, y = d["held out"]
        terms = bce(A @ x["w"] + x["c"], y, reduction="none") + 0.1 * (theta["rho"] ** 2).sum() * (
            1 + 0.3 * x["c"].sin()
        )
        return terms if separate else terms.mean()

    def weights(theta: dict[str, Tensor]) -> Tensor:
        return torch.cat([theta["rho"], theta["s"].reshape(1)]).exp()

    theta = {"rho": 0.3 * randn(n), "s": randn().sub(1.0)}
    rows, held = (torch.cat([t, torch.ones(m, 1, dtype=t.dtype)], 1) for t in (data["A"], data["held out"][0]))
    of_prior = 0.03 * float((theta["rho"] ** 2).sum()) + 0.06 * float(theta["rho"].norm())
    slope = 0.25 * held.norm(dim=1).max().item() ** 2 if separate else 0.25 * torch.linalg.norm(held, 2).item() ** 2 / m
    return Posed(
        lower,
        upper,
        theta,
        {"w": torch.zeros(n, dtype=torch.float64), "c": torch.zeros((), dtype=torch.float64)},
        data,
        {
            "strong_convexity": lambda t, _: weights(t).min(),
            "gradient_lipschitz": lambda t, d: float(weights(t).max()) + 0.25 * torch.linalg.norm(rows, 2).item() ** 2,
            "hessian_lipschitz": 0.0962251 * float((rows.norm(dim=1) ** 3).sum()),
            "cross_lipschitz": lambda t, _: weights(t).max(),
            "upper_gradient_lipschitz": slope + of_prior,
        },
    )


def vector(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1).double() for g in gradient.values()])


def methods() -> dict[str, Callable[[], Any]]:
    return {
        "default": lambda: None,
        "implicit": lr.Implicit,
        "piggyback": lr.Piggyback,
        "unrolled": lambda: lr.Unrolled(60),
    }


def test_the_published_quadratic() -> None:
    posed = published_quadratic()
    assert posed.constants["strong_convexity"] == pytest.approx(145.602732, abs=1e-6)
    assert posed.constants["gradient_lipschitz"] == pytest.approx(5108.1278, abs=1e-4)
    problem = posed.problem()
    found = problem.hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-8)
    assert found.certified
    assert found.loss == pytest.approx(3109.26038718, abs=1e-8)
    assert float(found.gradient["t"].norm()) == pytest.approx(5322.44724438, abs=1e-8)
    assert problem.solve(posed.theta, posed.x, posed.data, 1e-10).x["x"].shape == (10,)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rounding_within_the_function_is_in_the_bounds(offset: float) -> None:
    posed = published_quadratic()
    posed.data["e"] = posed.data["e"] + offset * posed.data["D"].sum(1)
    d = {name: t.numpy().astype(np.longdouble) for name, t in posed.data.items()}
    H = 2.0 * d["D"].T @ d["D"]

    def refined(rhs: Any) -> Any:
        inverse, v = np.linalg.inv(H.astype(float)), np.zeros(10, np.longdouble)
        for _ in range(30):
            v = v + inverse @ (rhs - H @ v).astype(float)
        return v

    x = refined(2.0 * d["D"].T @ (d["e"] - d["C"] @ np.ones(10)))
    gradient = 2.0 * d["C"].T @ (d["D"] @ refined(-2.0 * d["A"].T @ (d["A"] @ x - d["b"])))
    solution = posed.problem().solve(posed.theta, posed.x, posed.data, 1e-17, max_steps=40)
    assert np.linalg.norm(solution.x["x"].numpy() - x) <= float(solution.error_bound) * math.sqrt(10)
    for tolerance in (1e-9, 1e-13):
        found = posed.problem().hypergradient(posed.theta, posed.x, posed.data, tolerance=tolerance, max_steps=40)
        assert np.linalg.norm(found.x["x"].numpy() - x) <= float(found.state_error_bound)
        assert np.linalg.norm(found.gradient["t"].numpy() - gradient) <= found.error_bound


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("separate", [False, True])
def test_hypergradients_against_dense_matrices(method: str, separate: bool) -> None:
    posed = logistic(len(method), separate)
    truth = dense_bilevel(posed.lower, posed.upper, posed.theta, posed.x, posed.data)
    for tolerance in (1e-1, 1e-6):
        found = posed.problem().hypergradient(posed.theta, posed.x, posed.data, methods()[method](), tolerance)
        assert found.certified, found.reason
        assert found.status is lr.Status.CONVERGED or method == "unrolled"
        error = float((vector(found.gradient) - truth.gradient).norm())
        assert error <= found.error_bound
        assert found.error_bound <= tolerance * found.norm or found.status is lr.Status.TOO_FEW_STEPS
        assert found.corrected_error_bound <= tolerance * found.norm
        assert found.loss_interval[0] <= truth.loss <= found.loss_interval[1]
        assert float((flat(found.x) - truth.x).norm()) <= float(found.state_error_bound)
        assert float((flat(found.X) - truth.X).norm()) <= float(found.adjoint_error_bound)


@pytest.mark.parametrize("constants", [(), ("strong_convexity",), ("strong_convexity", "upper_gradient_lipschitz")])
def test_without_constants_errors_are_estimates(constants: tuple[str, ...]) -> None:
    posed = logistic(0)
    truth = dense_bilevel(posed.lower, posed.upper, posed.theta, posed.x, posed.data)
    problem = posed.problem(*constants) if constants else lr.BilevelProblem(posed.lower, posed.upper)
    found = problem.hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-5)
    assert found.bound_kind == "estimate"
    assert not found.certified
    assert found.status is lr.Status.ESTIMATED
    assert float((vector(found.gradient) - truth.gradient).norm()) <= 1e-5 * found.norm
    assert found.reason


def test_certificates_need_no_constants_that_can_be_computed_at_the_point() -> None:
    posed = logistic(1)
    names = ("strong_convexity", "hessian_lipschitz", "cross_lipschitz", "upper_gradient_lipschitz")
    found = posed.problem(*names).hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-4)
    assert found.certified
    declared = posed.problem(*names, cross_bound=100.0)
    assert declared.hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-4).certified
    with pytest.raises(lr.ConfigError, match="cross_bound"):
        posed.problem(*names, cross_bound=1e-4).hypergradient(posed.theta, posed.x, posed.data)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("strong_convexity", 300.0),
        ("gradient_lipschitz", 0.1),
        ("hessian_lipschitz", 1e-3),
        ("cross_lipschitz", 0.1),
        ("upper_gradient_lipschitz", 0.1),
    ],
)
def test_wrong_constants_are_refused(name: str, factor: float) -> None:
    posed = logistic(2)
    given = posed.constants[name]
    wrong = (lambda t, d: factor * float(given(t, d))) if callable(given) else factor * given
    named = {"strong_convexity": "modulus", "upper_gradient_lipschitz": "gradient_lipschitz"}.get(name, name)
    with pytest.raises(lr.ConfigError, match=named):
        posed.problem(**{name: wrong}).hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-3)


def test_a_constant_that_only_the_direct_part_contradicts() -> None:
    posed = logistic(0)
    problem = posed.problem()

    def coupled(x: dict[str, Tensor], theta: dict[str, Tensor], d: Any) -> Tensor:
        return posed.upper(x, theta, d) + 5.0 * x["w"] @ theta["rho"]

    found = replace(posed, upper=coupled).problem()
    with pytest.raises(lr.ConfigError, match="gradient of upper in theta changes"):
        found.hypergradient(posed.theta, posed.x, posed.data)
    assert problem.hypergradient(posed.theta, posed.x, posed.data).certified


def test_single_tensors_and_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    A, y = torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)

    def lower(x: Tensor, theta: Tensor, d: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (d[0] @ x - d[1]).square().sum() + 0.5 * theta.exp() * x.square().sum()

    problem = lr.BilevelProblem(
        lower,
        lambda x, theta, d: 0.5 * (x - 1.0).square().sum(),
        strong_convexity=lambda theta, d: theta.exp(),
        hessian_lipschitz=0.0,
        cross_lipschitz=lambda theta, d: theta.exp(),
        upper_gradient_lipschitz=1.0,
    )
    found = problem.hypergradient(torch.tensor(-0.3), torch.zeros(3), (A, y), tolerance=1e-3)
    assert found.certified
    assert found.x.shape == (3,)
    assert found.x.dtype is found.gradient["theta"].dtype is torch.float32
    ridge = math.exp(-0.3)
    H = A.double().T @ A.double() + ridge * torch.eye(3)
    x = torch.linalg.solve(H, A.double().T @ y.double())
    exact = -ridge * x @ torch.linalg.solve(H, x - 1.0)
    assert float((found.gradient["theta"].double() - exact).abs()) <= found.error_bound


def test_a_box_holds_and_the_gradient_is_that_of_finite_differences() -> None:
    posed = logistic(3)
    problem = posed.problem(constraint=lr.Box(-0.2, 0.2))
    found = problem.hypergradient(posed.theta, posed.x, posed.data, tolerance=1e-6)
    x = flat(found.x)
    assert float(x.abs().max()) == pytest.approx(0.2)
    assert found.certified

    def loss(theta: dict[str, Tensor]) -> float:
        solution = problem.solve(theta, posed.x, posed.data, 1e-11).x
        return float(posed.upper(solution, theta, posed.data))

    for k in range(2):
        moved = []
        for sign in (1e-4, -1e-4):
            rho = posed.theta["rho"].clone()
            rho[k] += sign
            moved.append(loss(posed.theta | {"rho": rho}))
        assert float(found.gradient["rho"][k]) == pytest.approx((moved[0] - moved[1]) / 2e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.sampled(share=0.25, by=("seed",))
def test_bounds_hold_on_random_problems(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    posed = logistic(100 + seed, separate=bool(seed % 2))
    spread = 10.0 ** float(torch.empty(1).uniform_(-2, 1, generator=generator))
    posed.theta["rho"] = spread * posed.theta["rho"]
    posed.constants["upper_gradient_lipschitz"] += 0.03 * float((posed.theta["rho"] ** 2).sum()) + 0.06 * float(
        posed.theta["rho"].norm()
    )
    truth = dense_bilevel(posed.lower, posed.upper, posed.theta, posed.x, posed.data)
    names = list(methods())
    for tolerance in (1.0, 1e-3):
        method = methods()[names[seed % len(names)]]()
        found = posed.problem().hypergradient(posed.theta, posed.x, posed.data, method, tolerance)
        if not found.certified:
            continue
        slack = 1e-12 * float(truth.gradient.norm())
        assert float((vector(found.gradient) - truth.gradient).norm()) <= found.error_bound + slack
        assert float((vector(found.corrected_gradient) - truth.gradient).norm()) <= found.corrected_error_bound + slack


# ---- upper levels ----------------------------------------------------------------------------------------------------


def test_certified_descent_lowers_the_exact_loss() -> None:
    posed = logistic(0)
    objective = lr.BilevelObjective(posed.problem().at(posed.theta, posed.x, posed.data))
    descent = lr.AdaptiveDescent()

    def exact() -> float:
        return dense_bilevel(posed.lower, posed.upper, posed.theta, posed.x, posed.data).loss

    losses = [exact()]
    for _ in range(4):
        step = descent.step(objective)
        assert step.accepted
        assert step.certified
        losses.append(exact())
    assert all(after < before for before, after in pairwise(losses))
    assert set(objective.x) == {"w", "c"}


def test_parameters_are_changed_in_place_by_torch_and_projected() -> None:
    posed = logistic(0)
    theta = {name: torch.nn.Parameter(t) for name, t in posed.theta.items()}
    bounded = []

    def project() -> None:
        with torch.no_grad():
            theta["s"].clamp_(max=-0.5)
        bounded.append(float(theta["s"].detach()))

    objective = lr.BilevelObjective(posed.problem().at(theta, posed.x, posed.data), project=project)
    optimizer, closure = torch.optim.Adam(list(theta.values()), lr=0.1), objective.closure(1e-1)
    losses = [float(optimizer.step(closure)) for _ in range(4)]
    assert losses[-1] < losses[0]
    lr.AdaptiveDescent().step(objective)
    assert bounded
    assert max(bounded) <= -0.5


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    one, x = torch.ones((), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    good = lr.BilevelProblem(lambda x, t, d: (x * x).sum() * t, lambda x, t, d: x.sum(), 1.0)
    with pytest.raises(lr.ConfigError, match="expected a function of"):
        lr.BilevelProblem(torch.ones(2), lambda x, t, d: x.sum())
    with pytest.raises(lr.ConfigError, match="strong_convexity"):
        lr.BilevelProblem(lambda x, t, d: x.sum(), lambda x, t, d: x.sum(), 0.0)
    with pytest.raises(lr.ConfigError, match="theta: got list, expected a tensor or a dict"):
        good.hypergradient([1.0], x)
    with pytest.raises(lr.ShapeError, match=r"x: got torch\.int64"):
        good.solve(one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(lr.ShapeError, match="NaN or infinite"):
        good.solve(one, x / 0.0)
    with pytest.raises(lr.ShapeError, match=r"BilevelProblem\(lower\): it returned"):
        lr.BilevelProblem(lambda x, t, d: x[None] * t, lambda x, t, d: x.sum()).solve(one, x)
    with pytest.raises(lr.ShapeError, match=r"BilevelProblem\(upper\): it returned float"):
        lr.BilevelProblem(lambda x, t, d: (x * x).sum() * t, lambda x, t, d: 1.0).hypergradient(one, x)
    with pytest.raises(lr.ConfigError, match="the result is cut off from autograd"):
        lr.BilevelProblem(lambda x, t, d: (x * x).sum().detach() * t, lambda x, t, d: x.sum()).solve(one, x)
    with pytest.raises(lr.ConfigError, match=r"lr\.BilevelProblem"):
        lr.BilevelObjective(good)
    captured = torch.ones(2, dtype=torch.float32)
    wrong = lr.BilevelProblem(lambda x, t, d: (x * x).sum() * t + captured @ x, lambda x, t, d: x.sum())
    with pytest.raises((lr.ConfigError, RuntimeError), match="float"):
        wrong.solve(one, x)
    assert "BilevelProblem" in repr(good.at(one, x))
