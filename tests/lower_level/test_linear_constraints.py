"""Linear constraints: nearest points against scipy and by the conditions that characterise them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

import learnreg as lr
from learnreg.lower_level.linear_constraints import Polyhedron

N = 6


def constraints(generator: torch.Generator, kind: str) -> list[lr.Box | lr.LinearConstraints]:
    """Of several kinds, with 0 or a point near it inside."""
    C = torch.randn(4, N, generator=generator, dtype=torch.float64)
    inner = 0.1 * torch.randn(N, generator=generator, dtype=torch.float64)
    few = lr.LinearConstraints(C[:2], C[:2] @ inner)
    many = lr.LinearConstraints(C, C @ inner + 0.05, "inequality")
    return {
        "equality": [few],
        "inequality": [many],
        "both": [few, lr.LinearConstraints(C[2:], C[2:] @ inner + 0.05, "inequality")],
        "with a box": [few, lr.LinearConstraints(C[2:], C[2:] @ inner + 0.05, "inequality"), lr.Box(-0.5, 0.5)],
        "repeated": [many, lr.LinearConstraints(3.0 * C, 3.0 * (C @ inner + 0.05), "inequality")],
        "redundant equalities": [few, lr.LinearConstraints(2.0 * C[:1], 2.0 * (C[:1] @ inner))],
        "simplex": [lr.LinearConstraints(torch.ones(1, N), 1.0), lr.Nonnegative()],
    }[kind]


KINDS = ("equality", "inequality", "both", "with a box", "repeated", "redundant equalities", "simplex")


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_points(kind: str, rotating_generator: torch.Generator) -> None:
    """Feasible, and x - y in the cone of the constraints that hold y: that is what makes it the nearest one."""
    polyhedron = Polyhedron(constraints(rotating_generator, kind), N)
    A = torch.randn(N, N, generator=rotating_generator, dtype=torch.float64).numpy()
    for metric in (None, A @ A.T + 0.1 * np.eye(N)):
        x = 2.0 * torch.randn(N, generator=rotating_generator, dtype=torch.float64).numpy()
        found = polyhedron.nearest(x, metric)
        y, held = found.point, list(found.held)
        assert np.abs(polyhedron.E @ y - polyhedron.e).max(initial=0.0) < 1e-12
        assert polyhedron.slack(y).min(initial=0.0) > -1e-11
        assert np.abs(polyhedron.slack(y)[held]).max(initial=0.0) < 1e-11
        assert found.multipliers.min(initial=0.0) >= 0.0
        pull = (np.eye(N) if metric is None else metric) @ (x - y) - found.multipliers @ polyhedron.C[held]
        left = pull - polyhedron.E.T @ np.linalg.pinv(polyhedron.E.T) @ pull if len(polyhedron.E) else pull
        assert np.linalg.norm(left) < 1e-9 * (1.0 + np.linalg.norm(pull) + np.linalg.norm(x))


@pytest.mark.parametrize("kind", ["both", "simplex"])
def test_projections_agree_with_scipy(kind: str, generator: torch.Generator) -> None:
    polyhedron = Polyhedron(constraints(generator, kind), N)
    x = torch.randn(N, generator=generator, dtype=torch.float64)
    equal = LinearConstraint(polyhedron.E, polyhedron.e, polyhedron.e)
    unequal = LinearConstraint(polyhedron.C, -np.inf, polyhedron.d)
    expected = minimize(
        lambda y: 0.5 * ((y - x.numpy()) ** 2).sum(),
        np.zeros(N),
        jac=lambda y: y - x.numpy(),
        method="SLSQP",
        constraints=[equal, unequal],
        options={"ftol": 1e-15, "maxiter": 300},
    ).x
    assert np.abs(polyhedron.project(x).numpy() - expected).max() < 1e-6


def test_projections_keep_shape_and_type(generator: torch.Generator) -> None:
    plane = lr.LinearConstraints(torch.ones(1, N), 1.0)
    x = torch.randn(2, 3, generator=generator)
    y = plane.project(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert float(y.sum()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(plane.project(y), y)


def test_nothing_feasible() -> None:
    C = torch.tensor([[1.0, 0.0]])
    apart = [lr.LinearConstraints(C, -1.0, "inequality"), lr.LinearConstraints(-C, -1.0, "inequality")]
    with pytest.raises(lr.AssumptionError, match="satisfies all"):
        Polyhedron(apart, 2).project(torch.zeros(2))
    with pytest.raises(lr.AssumptionError, match="contradict"):
        Polyhedron([lr.LinearConstraints(C, 0.0), lr.LinearConstraints(C, 1.0)], 2)
    with pytest.raises(lr.AssumptionError, match="satisfies all"):
        Polyhedron([lr.LinearConstraints(C, 1.0), lr.LinearConstraints(C, 0.0, "inequality")], 2).project(torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((torch.ones(3), 1.0), lr.ShapeError),
        ((torch.ones(2, 3), torch.ones(3)), lr.ShapeError),
        ((torch.ones(0, 3), 1.0), lr.ShapeError),
        ((torch.ones(2, 3), 1.0, "equal"), lr.ConfigError),
        ((torch.full((2, 3), torch.nan), 1.0), lr.ConfigError),
        ((torch.ones(2, 3, requires_grad=True), 1.0), lr.ConfigError),
        ((torch.nn.Parameter(torch.ones(2, 3)), 1.0), lr.ConfigError),
    ],
)
def test_refusals(arguments: tuple[object, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match="LinearConstraints"):
        lr.LinearConstraints(*arguments)  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match="entries"):
        Polyhedron([lr.LinearConstraints(torch.ones(1, 3), 1.0)], 2)
    with pytest.raises(lr.ConfigError, match="sequence"):
        Polyhedron([torch.ones(2)], 2)  # type: ignore[list-item]
