"""A noise level for each sample: every sample is solved, differentiated and bounded as alone, with its own level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.models.model import save_model
from learnreg.operators import Identity, Inpainting
from learnreg.regularizers import FieldsOfExperts, MultivariateExperts, Regularizer, RidgeRegularizer, Scaled

SHAPE = (1, 6, 7)
LEVELS = torch.tensor([0.05, 0.2, 0.05, 0.1], dtype=torch.float64)


def ridge() -> RidgeRegularizer:
    made = RidgeRegularizer((2, 3), 3, knots=7, noise_conditioned=True, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.weight_exponents.copy_(torch.tensor([0.5, 1.0, 1.5]))
    return made.double()


def weakly_convex() -> RidgeRegularizer:
    options: dict[str, Any] = {"knots": 7, "noise_conditioned": True, "nonconvexity": 0.5}
    return RidgeRegularizer((2, 3), 3, convexity="convex-nonconvex", **options).double()


def experts() -> FieldsOfExperts:
    made = FieldsOfExperts(3, 3, lr.PseudoHuber(0.05, 0.2), noise_conditioned=True)
    with torch.no_grad():
        made.smoothing_exponents.copy_(torch.tensor([0.5, 1.0, 1.5]))
    return made.double()


CONDITIONED = {
    "ridge": ridge,
    "weakly convex": weakly_convex,
    "scaled": lambda: Scaled(ridge(), 1.3),
    "experts": experts,
}


def data(seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 4, *SHAPE, generator=generator, dtype=torch.float64).unbind()


def problem(regularizer: Regularizer, levels: Any, by: str, operator: Any = None) -> lr.LowerLevelProblem:
    forward = operator or Identity(SHAPE)
    if by == "problem":
        return lr.LowerLevelProblem(forward, regularizer, ridge=0.05, noise_level=levels)
    return lr.LowerLevelProblem(forward, regularizer.at(levels), ridge=0.05)


def alone(regularizer: Regularizer, i: int, operator: Any = None) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(operator or Identity(SHAPE), regularizer, ridge=0.05, noise_level=float(LEVELS[i]))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


@pytest.mark.parametrize(
    ("kind", "by"),
    [("ridge", "problem"), ("ridge", "regularizer"), ("weakly convex", "problem"), ("scaled", "problem")],
)
def test_samples_are_those_of_their_levels(kind: str, by: str) -> None:
    regularizer = CONDITIONED[kind]()
    b, x_true = data()
    together = problem(regularizer, LEVELS, by)
    solution = lr.solve(together, b, 1e-7)
    assert solution.certified
    hg = lr.hypergradient(together, b, lr.SquaredError(x_true), tolerance=1e-4)
    assert hg.certified
    assert hg.relative_error_bound <= 1e-4
    exact = {name: torch.zeros_like(g) for name, g in hg.gradient.items()}
    assert list(exact) == list(alone(regularizer, 0).learnable())
    for i in range(4):
        one, part = alone(regularizer, i), slice(i, i + 1)
        x = lr.solve(one, b[part], 1e-10).x
        error = float((solution.x[part] - x).square().mean().sqrt())
        assert error <= float(solution.error_bound[i]) + 1e-10 <= 2e-7
        assert torch.equal(together.energy(x_true, b)[i], one.energy(x_true[part], b[part])[0])
        found = lr.hypergradient(one, b[part], lr.SquaredError(x_true[part]), tolerance=1e-8)
        for name, g in found.gradient.items():
            exact[name] += g / 4
        assert torch.allclose(hg.X[part], found.X / 4, atol=1e-4)
    assert distance(hg.gradient, exact) <= hg.error_bound + 1e-8
    low, high = hg.loss_interval
    assert low - 1e-6 <= float(lr.SquaredError(x_true).value(solution.x)) <= high + 1e-6  # of a solution to 1e-7


def minimiser(one: lr.LowerLevelProblem, b: Tensor) -> Tensor:
    """Newton's method with the dense Hessian of the energy, steps halved until it falls."""

    def energy(t: Tensor) -> Tensor:
        return one.energy(t.reshape(1, *SHAPE), b[None])[0]

    x = b.flatten().clone()
    for _ in range(30):
        slope = torch.autograd.functional.jacobian(energy, x)
        step = torch.linalg.solve(torch.autograd.functional.hessian(energy, x), slope)
        with torch.no_grad():
            while energy(x - step) > energy(x) and float(step.norm()) > 1e-12:
                step = 0.5 * step
        x = x - step
        if float(step.norm()) < 1e-13:
            break
    return x.reshape(SHAPE)


def test_dense_minimisers_confirm_the_bounds() -> None:
    regularizer, operator = ridge(), Inpainting((torch.arange(42).reshape(SHAPE) % 3 > 0).double())
    b, _ = data()
    solution = lr.solve(problem(regularizer, LEVELS, "problem", operator), b, 1e-6)
    for i in (0, 1):
        error = float((solution.x[i] - minimiser(alone(regularizer, i, operator), b[i])).square().mean().sqrt())
        assert error <= float(solution.error_bound[i]) <= 1e-6


@pytest.mark.parametrize("given", ["state", "both"])
def test_certificates_use_the_constants_of_each_level(given: str) -> None:
    regularizer = ridge()
    b, x_true = data()
    together, loss = problem(regularizer, LEVELS, "problem"), lr.SquaredError(x_true)
    hg = lr.hypergradient(together, b, loss, tolerance=1e-6)
    x = hg.x + 1e-3 * data(3)[0]
    certificate = lr.certify(together, b, loss, x, hg.X if given == "both" else None)
    assert certificate.certified
    exact = lr.hypergradient(together, b, loss, tolerance=1e-9)
    error = (x - exact.x).square().flatten(1).mean(1).sqrt()
    assert bool((error <= certificate.error_bound + 1e-9).all())
    assert distance(certificate.gradient, exact.gradient) <= certificate.gradient_error_bound + 1e-8


def test_any_independent_loss_and_warm_starts() -> None:
    b, x_true = data()
    together = problem(ridge(), LEVELS, "problem")
    first = lr.hypergradient(together, b, lr.SquaredError(x_true), tolerance=1e-6)
    loss = lr.UpperLoss(lambda x: 0.5 * (x - x_true).square().flatten(1).sum(1), 1.0, independent=True)
    again = lr.hypergradient(together, b, loss, tolerance=1e-6, start=lr.Start(first.x, first.X))
    assert again.certified
    assert distance(first.gradient, again.gradient) <= first.error_bound + again.error_bound
    assert again.operator_applications < first.operator_applications
    coupled = lr.UpperLoss(lambda x: x.square().sum(), 2.0)
    with pytest.raises(lr.ConfigError, match="independent=True"):
        lr.hypergradient(together, b, coupled)


def test_cancelling_gradients_are_found_accurately_enough() -> None:
    """The tolerance is relative to the sum, which is much smaller than the gradients of the groups."""
    b, x_true = data()
    together = problem(ridge(), LEVELS, "problem")
    hg = lr.hypergradient(together, b, lr.SquaredError(x_true), tolerance=1e-8)
    toward = lr.solve(together, b, 1e-9).x
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None, None]
    opposed = lr.SquaredError(toward + sign * (x_true - toward).abs())
    found = lr.hypergradient(together, b, opposed, tolerance=1e-5)
    assert found.status.converged
    assert found.error_bound <= 1e-5 * found.norm
    assert hg.status.converged


def test_layers_differentiate_at_each_level() -> None:
    b, x_true = data()
    regularizer = ridge()
    together = problem(regularizer, LEVELS, "problem")
    layer = lr.solution_layer(together, tolerance=1e-8)
    measured = b.clone().requires_grad_()
    lr.SquaredError(x_true).value(layer(measured)).backward()
    hg = lr.hypergradient(together, b, lr.SquaredError(x_true), tolerance=1e-7)
    found = {name: p.grad for name, p in together.learnable().items() if p.grad is not None}
    assert distance(found, hg.gradient) <= 1e-5
    assert measured.grad is not None
    assert torch.allclose(measured.grad, -hg.X, atol=1e-5)
    assert layer.last_solution.error_bound.shape == (4,)


def test_modulus_is_the_smallest() -> None:
    together = problem(weakly_convex(), LEVELS, "regularizer")
    assert together.strong_convexity == min(alone(weakly_convex(), i).strong_convexity for i in range(4))


@pytest.mark.parametrize(
    "level", [0.0, -0.1, float("nan"), float("inf"), "0.1", True, [0.1, 0.2], torch.zeros(2), torch.ones(2, 2),
              torch.tensor([0.1, float("nan")])],
)  # fmt: skip
def test_what_is_no_noise_level(level: Any) -> None:
    with pytest.raises(lr.ConfigError, match=r"noise level|expected a positive finite"):
        problem(ridge(), level, "problem")
    with pytest.raises(lr.ConfigError, match=r"noise level|expected a positive finite"):
        ridge().at(level)


def test_the_batch_has_a_sample_for_each_level() -> None:
    b, x_true = data()
    together = problem(ridge(), LEVELS[:3], "problem")
    for call in (lambda: lr.solve(together, b), lambda: together.energy(b, b),
                 lambda: lr.hypergradient(together, b, lr.SquaredError(x_true))):  # fmt: skip
        with pytest.raises(lr.ShapeError, match="3 samples"):
            call()


def test_levels_mean_nothing_to_other_regularizers(tmp_path: Any) -> None:
    regularizer = FieldsOfExperts(2, 3)
    assert regularizer.at(LEVELS) is regularizer
    with pytest.raises(lr.ConfigError, match="cannot be stored"):
        save_model(tmp_path / "model.safetensors", problem(ridge(), LEVELS, "problem"))


@pytest.mark.parametrize(
    "regularizer",
    [
        FieldsOfExperts(3, 3, lr.PseudoHuber(0.05, 0.2), noise_conditioned=True),
        FieldsOfExperts(3, 3, lr.LogCosh(0.05, 0.2), noise_conditioned=True),
        MultivariateExperts(2, 2, 3, noise_conditioned=True),
        RidgeRegularizer((2, 3), 3, knots=7, noise_conditioned=True),
    ],
    ids=lambda regularizer: type(regularizer).__name__,
)
def test_with_exponents_of_one_denoising_follows_the_units_of_images(regularizer: Regularizer, tmp_path: Path) -> None:
    """R_(a sigma)(a x) = a² R_sigma(x), and R_sigma_0 = R."""
    regularizer, x = regularizer.double(), data()[0]
    torch.testing.assert_close(regularizer.at(0.3).value(3.0 * x), 9.0 * regularizer.at(0.1).value(x))
    torch.testing.assert_close(regularizer.at(25 / 255).value(x), regularizer.value(x))
    with torch.no_grad():
        for name, p in regularizer.named_parameters():
            if name.endswith("exponents"):
                p.mul_(0.5)
    save_model(tmp_path / "model.safetensors", regularizer)
    again = lr.load(tmp_path / "model.safetensors").regularizer
    torch.testing.assert_close(again.at(0.3).value(x), regularizer.at(0.3).value(x))
    assert {id(p) for p in regularizer.scale_parameters()} == {id(regularizer.log_weights)}
