"""Lemmas 0 to 3 against dense matrices: never below the truth, and not far above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor
from truth import dense as dense_truth
from truth.lemma_points import (
    KINDS,
    PIXELS,
    ROUNDING,
    Point,
    at_most,
    copy_of,
    curvature_matrix,
    draw_point,
    log_uniform,
    normal,
    one_pixel,
)
from truth.newton_bound import newton_bound

import learnreg as lr
from learnreg.certificates.interval import Budget, response_budget
from learnreg.certificates.resolvent import Perturbation, sharp_adjoint_bound, sharp_energy_bound
from learnreg.certificates.state import energy_error
from learnreg.potentials.curvature import CurvatureInterval


@pytest.fixture(params=KINDS)
def points(request: pytest.FixtureRequest, rotating_generator: torch.Generator) -> list[Point]:
    kind = cast(str, request.param)
    with torch.no_grad():
        return [draw_point(rotating_generator, kind, size) for size in (1e-6, 1e-4, 1e-2, 0.1, 0.5)]


# ---- Lemma 0 ---------------------------------------------------------------------------------------------------------


class TestLemma0:
    """‖H^-1 K^T Gamma V‖ and ‖√D K H^-1 K^T Gamma V‖ for any curvature D on the interval, Gamma = D - f''(t)."""

    def perturbation(
        self, generator: torch.Generator, alone: bool
    ) -> tuple[Perturbation, CurvatureInterval, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """With K, M, V and a random f''(t); D in an interval around it, or |D - f''(t)|_i <= kappa_i |dt_i|, too."""
        rows, columns = 14, 9
        K = normal(generator, rows, columns)
        mu = log_uniform(generator, 1e-3, 1.0)
        N = normal(generator, columns, columns)
        M = mu * torch.eye(columns, dtype=torch.float64) + 0.1 * N @ N.T
        center = torch.rand(1, rows, generator=generator, dtype=torch.float64) ** 4 * 30.0
        spread = log_uniform(generator, 1e-4, 1.0)
        low = center * (1.0 - spread * torch.rand(1, rows, generator=generator, dtype=torch.float64))
        high = center * (1.0 + spread * torch.rand(1, rows, generator=generator, dtype=torch.float64))
        change = torch.maximum(high - center, center - low)
        ratio = torch.maximum((center - low) / low.sqrt(), (high - center) / high.sqrt())
        third = torch.full_like(change, math.inf) if alone else 10.0 * torch.rand(1, rows, generator=generator).double()
        one = torch.ones(1, dtype=torch.float64)
        interval = CurvatureInterval(low, high, change, ratio, third, torch.ones(1, dtype=torch.bool))
        norm = float(torch.linalg.matrix_norm(K, 2))
        e = log_uniform(generator, 1e-4, 1.0) * one
        V = normal(generator, 1, rows)
        budget = response_budget(e, 0.5 * math.sqrt(mu) * e, norm)
        bent = Perturbation.of(copy_of(interval), V.abs(), budget, norm, mu)
        return bent, interval, budget.weights(low), K, M, V, center[0]

    def curvatures(
        self,
        generator: torch.Generator,
        interval: CurvatureInterval,
        budget: Tensor,
        center: Tensor,
        measure: Callable[[Tensor], Tensor],
        alone: bool,
    ) -> Tensor:
        """The largest value of ``measure`` (of Gamma) that random and coordinate-wise searches find."""
        rows = interval.low.shape[1]
        low, high = interval.low[0], interval.high[0]
        best = torch.zeros((), dtype=torch.float64)
        for _ in range(12 if alone else 40):  # the coordinate-wise search needs few starts
            sides = torch.rand(rows, generator=generator, dtype=torch.float64).round()
            D = low + (high - low) * sides
            gamma = self.admissible(generator, interval, budget, D - center, alone)
            best = torch.maximum(best, measure(gamma))
            if not alone:
                continue
            for i in range(rows):  # the ends of the interval, one entry at a time
                for value in (low[i], high[i]):
                    trial = gamma.clone()
                    trial[i] = value - center[i]
                    if measure(trial) > measure(gamma):
                        gamma = trial
            best = torch.maximum(best, measure(gamma))
        return best

    @staticmethod
    def admissible(
        generator: torch.Generator, interval: CurvatureInterval, budget: Tensor, gamma: Tensor, alone: bool
    ) -> Tensor:
        if alone:
            return gamma
        share = torch.randn(len(gamma), generator=generator, dtype=torch.float64).abs()
        share = share if float(torch.rand((), generator=generator)) < 0.5 else share * (share > 1.0)
        moved = share / (budget[0] * share**2).sum().sqrt().clamp_min(1e-300)
        limit = interval.third[0] * moved
        return torch.maximum(torch.minimum(gamma, limit), -limit)

    @pytest.mark.parametrize("alone", [True, False])
    def test_push_and_energy_push(self, rotating_generator: torch.Generator, alone: bool) -> None:
        sharpest = {"push": math.inf, "energy": math.inf, "norm": math.inf}
        for _ in range(12):
            bent, interval, budget, K, M, V, center = self.perturbation(rotating_generator, alone)

            def applied(gamma: Tensor, K: Tensor = K, M: Tensor = M, V: Tensor = V, c: Tensor = center) -> Tensor:
                return torch.linalg.solve(M + K.T @ ((c + gamma)[:, None] * K), K.T @ (gamma * V[0]))

            def energy(gamma: Tensor, K: Tensor = K, c: Tensor = center, applied: Callable = applied) -> Tensor:  # type: ignore[type-arg]
                return ((c + gamma).clamp_min(0.0).sqrt() * (K @ applied(gamma))).norm()

            measures = {
                "push": (bent.push(), lambda gamma, applied=applied: applied(gamma).norm()),
                "energy": (bent.energy_push(), energy),
                "norm": (bent.norm(), lambda gamma, V=V: (gamma * V[0]).norm()),
            }
            for name, (bound, measure) in measures.items():
                worst = self.curvatures(rotating_generator, interval, budget, center, measure, alone)
                at_most(worst, bound)
                sharpest[name] = min(sharpest[name], float(bound / worst))
        if alone:
            assert sharpest["norm"] <= 1.0 + 1e-6
            assert sharpest["push"] <= 6.0
            assert sharpest["energy"] <= 4.0

    def test_response_budget(self, rotating_generator: torch.Generator) -> None:
        """sum omega |K dx|² <= 1 for errors that use up both norms, and not far below."""
        best = 0.0
        for _ in range(10):
            K = normal(rotating_generator, 14, 9)
            low = torch.rand(1, 14, generator=rotating_generator, dtype=torch.float64) ** 6
            norm = torch.linalg.matrix_norm(K, 2)
            direction = torch.linalg.svd(K).Vh[0]
            for dx in (direction, *normal(rotating_generator, 5, 9)):
                used = (low[0] * (K @ dx) ** 2).sum().sqrt().reshape(1)
                budget = response_budget(dx.norm().reshape(1), used, float(norm))
                spent = (budget.weights(low)[0] * (K @ dx) ** 2).sum()
                at_most(spent, 1.0)
                best = max(best, float(spent))
        assert best >= 0.99

    def test_one_pixel_is_exact(self) -> None:
        """H = mu + D: sup of Gamma V / (mu + D), 1/(2√mu) the largest slope √D/(mu + D)."""
        one = torch.ones(1, 1, dtype=torch.float64)
        mu, gamma = 0.25, 1e-9
        interval = CurvatureInterval(
            mu * one, mu * one, gamma * one, gamma / math.sqrt(mu) * one, math.inf * one, one[0] > 0
        )
        bent = Perturbation.of(copy_of(interval), one, Budget(0.0 * one[0], one[0]), 1.0, mu)
        assert float(bent.push()) == pytest.approx(gamma / (2.0 * mu), rel=1e-6)

    def test_curvature_that_vanishes(self) -> None:
        """log-cosh far out: f'' = 0 leaves the plain branch, without a NaN; and the energy norm infinite nowhere."""
        t = torch.tensor([[1e4, 0.1, 0.0]], dtype=torch.float64)
        radius = torch.tensor([[1e3, 0.2, 0.0]], dtype=torch.float64)
        interval = lr.LogCosh(1.0, 1.0).curvature_interval(t, radius)
        e = torch.ones(1, dtype=torch.float64)
        for size in (torch.ones_like(t), torch.zeros_like(t)):
            bent = Perturbation.of(copy_of(interval), size, response_budget(e, e, 1.0), 1.0, 0.1)
            for bound in (bent.push(), bent.energy_push(), bent.norm()):
                assert bool(torch.isfinite(bound).all())

    @pytest.mark.parametrize("size", [0.0, math.inf])
    def test_errors_without_size_and_without_limit(self, size: float) -> None:
        t = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
        e = torch.tensor([size], dtype=torch.float64)
        interval = lr.PseudoHuber(0.1, 1.0).curvature_interval(t, e.reshape(1, 1))
        bent = Perturbation.of(copy_of(interval), t.abs(), response_budget(e, e, 1.0), 1.0, 0.1)
        bounds = torch.cat([bent.push(), bent.energy_push(), bent.norm()])
        assert not bool(bounds.isnan().any())
        if size == 0.0:
            assert float(bounds.max()) < 1e-9


# ---- Lemmas 1 to 3 ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_lemma_1_energy_error(points: list[Point]) -> None:
    best = math.inf
    for point in points:
        difference = point.dense.K @ (point.x - point.exact_x)[0]
        truth = (difference @ point.mean_curvature() @ difference).clamp_min(0.0).sqrt()
        r = point.residual_norm()
        distance = (point.x - point.exact_x).norm(dim=1)
        at_most(distance, r / point.mu)
        for e in (r / point.mu, distance, 0.5 * (distance + r / point.mu)):
            bound = energy_error(r, e * ROUNDING, point.mu)
            at_most(truth, bound)
            at_most(bound, r / (2.0 * math.sqrt(point.mu)))
            best = min(best, float(bound / truth))
    assert best <= 3.0


def test_lemma_1_is_exact_for_the_worst_eigenvalue() -> None:
    """H = mu + D = 2 mu and r an eigenvector: ‖√D K dx‖ = ‖r‖ √mu / (2 mu)."""
    r, mu = torch.tensor([3.0], dtype=torch.float64), 0.2
    assert float(energy_error(r, r / mu, mu)) == pytest.approx(3.0 * math.sqrt(mu) / (2.0 * mu), rel=1e-9)
    assert float(energy_error(r, 0.0 * r, mu)) == 0.0


@torch.no_grad()
def test_lemma_2_newton_bound(points: list[Point], rotating_generator: torch.Generator) -> None:
    best = math.inf
    for point in points:
        H = point.dense.hessian(point.x)[0]
        r = point.dense.gradient(point.x)[0]
        newton = torch.linalg.solve(H, r)
        steps = [newton, 0.5 * newton, torch.zeros_like(newton), 3.0 * newton]
        steps += [newton + 0.1 * newton.norm() * normal(rotating_generator, PIXELS) / math.sqrt(PIXELS)]
        steps += [newton.norm() * normal(rotating_generator, PIXELS)]
        t, gradient_norm = point.responses(point.x), r.norm().reshape(1)
        for e in (gradient_norm / point.mu, (point.x - point.exact_x).norm(dim=1) * ROUNDING):
            for d in steps:
                residual = (r - H @ d).norm().reshape(1) + 1e-15
                step = point.image(d[None])
                bound = newton_bound(point.instance, t, gradient_norm, e, step, point.responses(d[None]), residual)
                truth = (point.x[0] - point.exact_x[0] - d).norm()
                at_most(truth, bound, 1e-13)
                at_most(bound, e + d.norm())
                if d is steps[-2]:  # close to a Newton step: e itself says nothing of this distance
                    best = min(best, float(bound / truth))
    assert best <= 20.0


@pytest.mark.parametrize("b", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("k", [1e-6, 1.0, 10.0])
@torch.no_grad()
def test_lemma_2_for_one_pixel(k: float, b: float) -> None:
    """Newton steps far from the solution, where they are much too short or too long; exact without curvature."""
    pixel = one_pixel(k, lr.PseudoHuber(0.1, 1.0), b, learned="log_weight")
    x = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)[:, None]
    b_of_each = pixel.b.expand(len(x), -1, -1, -1)
    instance, dense = pixel.problem.instance(b_of_each), dense_truth.Dense(pixel.problem, b_of_each)
    r, H = dense.gradient(x), dense.hessian(x)[:, 0]
    for share in (1.0, 0.9, 0.3):
        d = share * r / H
        t, image, K_d = (v[:, :, None, None] for v in (k * x, d, k * d))
        s, size = (r - H * d).abs()[:, 0], r.abs()[:, 0]
        bound = newton_bound(instance, t, size, size, image, K_d, s + 1e-15)
        truth = (x - pixel.truth.x - d).abs()[:, 0]
        at_most(truth, bound, 1e-13)
        if k == 1e-6:
            at_most(bound, 1.001 * truth, 1e-9)


@torch.no_grad()
def test_lemma_3_adjoint_bounds(points: list[Point]) -> None:
    best = {"plain": math.inf, "energy": math.inf}
    for point in points:
        rho = point.dense.hessian(point.x)[0] @ point.X[0] + point.loss.gradient(point.image(point.x)).flatten()
        distance = (point.x - point.exact_x).norm(dim=1)
        for e in (point.residual_norm() / point.mu, distance * ROUNDING):
            residual = rho.norm() + e
            bent = point.bent(e, energy_error(point.residual_norm(), e, point.mu))
            difference = (point.X - point.exact_X)[0]
            response = point.dense.K @ difference
            energy = (response @ curvature_matrix(point.dense, point.exact_x) @ response).clamp_min(0.0).sqrt()
            bounds = sharp_adjoint_bound(residual, bent), sharp_energy_bound(residual, bent)
            for name, truth, bound in zip(best, (difference.norm(), energy), bounds, strict=True):
                at_most(truth, bound)
                best[name] = min(best[name], float(bound / truth))
    assert best["plain"] <= 2000.0
    assert best["energy"] <= 100.0


def test_lemma_3_is_exact_without_curvature_and_at_the_worst() -> None:
    """H = mu: ‖X - X^‖ = ‖rho‖/mu; H = mu + D = 2 mu: ‖√D K (X - X^)‖ = ‖rho‖/(2√mu). Nothing is bent for X = 0."""
    mu, rho = 0.3, torch.tensor([2.0], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    interval = CurvatureInterval(0.0 * one, mu * one, mu * one, math.inf * one, one, one[0] > 0)
    bent = Perturbation.of(copy_of(interval), 0.0 * one, Budget(0.0 * one[0], one[0]), 1.0, mu)
    assert float(sharp_adjoint_bound(rho, bent)) == pytest.approx(2.0 / mu, rel=1e-9)
    assert float(sharp_energy_bound(rho, bent)) == pytest.approx(2.0 * math.sqrt(mu) / (2.0 * mu), rel=1e-9)
