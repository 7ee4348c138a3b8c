"""Chains of reweighted problems against dense ones to rounding: iterates, weights, energies, bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import registry
import torch
from torch import Tensor
from truth.chain import DenseChain, chain_of, chain_weights

import learnreg as lr
from learnreg.errors import AssumptionError, ConfigError
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer, Reweighted, TotalVariation

SHAPE = (1, 6, 7)


def experts(boundary: str = "reflect", smoothing: float = 0.05) -> FieldsOfExperts:
    generator = torch.Generator().manual_seed(1)
    return FieldsOfExperts(3, 3, lr.PseudoHuber(smoothing, 0.9), boundary, generator=generator)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[], Reweighted]] = {
    "experts": lambda: Reweighted(experts("valid"), scale=0.2),
    "windows": lambda: Reweighted(experts(), window=3, steps=3, scale=0.2),
    "groups": lambda: Reweighted(TotalVariation(0.1, 0.02), scale=0.3),
    "free": lambda: Reweighted(experts(), "free", features=2, size=3, generator=torch.Generator().manual_seed(2)),
}


def moved(R: Reweighted) -> Reweighted:
    """Away from its start, in float64."""
    with torch.no_grad():
        for i, p in enumerate(R.double().weights.parameters()):
            p.add_(0.3 * registry.randn(*p.shape, seed=30 + i))
    return R


def data(seed: int = 1) -> Tensor:
    image = torch.zeros(2, *SHAPE, dtype=torch.float64)
    image[0, :, 1:4, 2:5], image[1, :, 3:] = 1.0, 0.6
    return image + 0.1 * registry.randn(2, *SHAPE, seed=seed)


def problem_of(name: str, constrained: bool = False, **options: object) -> lr.LowerLevelProblem:
    operator = Identity(SHAPE) if name != "groups" else Blur(torch.full((3, 3), 1 / 9).double(), SHAPE)
    constraint = lr.Box(0.05, 0.8) if constrained else None
    ridge = 0.0 if name != "groups" else 0.3
    return lr.LowerLevelProblem(operator, moved(KINDS[name]()), ridge=ridge, constraint=constraint, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_bounds_hold_for_the_exact_chain(name: str, constrained: bool) -> None:
    problem, b = problem_of(name, constrained), data()
    exact = chain_of(problem, b)
    for tolerance in (3e-2, 1e-5):
        found = lr.solve(problem, b, tolerance)
        assert len(found.chain) == len(exact) == problem.regularizer.steps + 1  # type: ignore[operator]
        assert torch.equal(found.chain[-1], found.x)
        error = (found.x.flatten(1) - exact[-1]).square().mean(1).sqrt()
        assert bool((error <= found.error_bound + 1e-12).all())
        given = DenseChain(problem, b)
        given.places = chain_weights(problem.regularizer, given, found.chain[-2].flatten(1))  # type: ignore[arg-type]
        step = (found.x.flatten(1) - given.solve(found.x.flatten(1))[0]).square().mean(1).sqrt()
        assert bool((step <= found.step_error_bound + 1e-12).all())
        assert bool((found.step_error_bound <= found.error_bound).all())
    assert found.certified
    assert found.status is lr.Status.CONVERGED
    assert found.weights is not None
    assert bool((found.weights > 0).all() and (found.weights <= 1).all())


@pytest.mark.parametrize("name", ["experts", "windows", "groups"])
@pytest.mark.parametrize("steps", [6, None])
def test_majorising_chains_lower_their_energy(name: str, steps: int | None) -> None:
    problem, b = problem_of(name), data()
    problem.regularizer.steps = steps  # type: ignore[assignment]
    found = lr.solve(problem, b, 1e-3 if steps is None else 1e-6)
    with torch.no_grad():
        energies = torch.stack([problem.energy(x, b) for x in found.chain])
    assert bool((energies[1:] <= energies[:-1] + 1e-9).all())
    if steps is None:
        assert found.status.converged or "errors grow" in found.reason or "no ball" in found.reason
        exact = chain_of(problem, b, 60)[-1]
        error = (found.x.flatten(1) - exact).square().mean(1).sqrt()
        assert bool((error <= 2e-2).all())


def test_the_energy_is_that_of_the_logarithm() -> None:
    R, x = moved(KINDS["experts"]()), data()
    s = R.weights.log_scale.detach().exp()[:, None, None]  # type: ignore[operator, union-attr]
    terms = R.base.saddle_terms(SHAPE)
    u = terms.potential.density(terms.operator(x)).detach()  # type: ignore[attr-defined]
    torch.testing.assert_close(R.value(x).detach(), (s * (1 + u / s).log()).flatten(1).sum(1))
    assert torch.autograd.gradcheck(R.value, (x[:, :, :4, :4].clone().requires_grad_(),))


def test_contracting_chains_have_certified_fixed_points() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), moved(Reweighted(experts(smoothing=0.3), scale=2.0, steps=None)))
    b = data()
    found = lr.solve(problem, b, 1e-4)
    exact = chain_of(problem, b, 80)
    assert found.certified
    assert float(found.error_bound.max()) <= 1e-4
    error = (found.x.flatten(1) - exact[-1]).square().mean(1).sqrt()
    assert bool((error <= found.error_bound + 1e-12).all())


def test_unknown_moduli_leave_the_chain_without_bounds() -> None:
    """A blur without a ridge."""
    kernel = torch.full((3, 3), 1 / 9).double()
    problem = lr.LowerLevelProblem(Blur(kernel, SHAPE), moved(KINDS["experts"]()))
    found = lr.solve(problem, data(), 1e-3)
    assert not found.certified
    assert bool(torch.isinf(found.error_bound).all())


def test_what_has_no_chain_is_refused() -> None:
    with pytest.raises(AssumptionError, match="lower no energy"):
        KINDS["free"]().value(data().float())
    with pytest.raises(AssumptionError, match="cannot be reweighted"):
        Reweighted(InputConvexNetwork(features=2))
    with pytest.raises(AssumptionError, match="is a sum"):
        Reweighted(experts() + TotalVariation())
    for options in ({"steps": 0}, {"window": 2}, {"weights": "heavy"}, {"scale": -1.0}, {"features": 0}):
        with pytest.raises(ConfigError):
            Reweighted(experts(), **options)  # type: ignore[arg-type]
    problem = problem_of("experts")
    with pytest.raises(ConfigError, match="stands for a chain"):
        lr.certify(problem, data(), lr.SquaredError(data()), data())
    with pytest.raises(ConfigError, match="minimiser='global'"):
        lr.solve(problem_of("experts", minimiser="local"), data())


def test_other_precisions_and_batches_of_one() -> None:
    problem, b = problem_of("experts"), data()
    whole = lr.solve(problem, b, 1e-5)
    single = lr.solve(problem, b[:1].float(), 1e-3)
    assert single.x.dtype == torch.float32
    assert single.error_bound.shape == (1,)
    assert single.certified
    assert float((single.x - whole.x[:1]).square().mean().sqrt()) <= 1.1e-3


def test_a_part_is_no_copy() -> None:
    base: Regularizer = experts()
    R = Reweighted(base)
    assert R.base is base
    assert {"base.filters", "weights.log_scale"} <= dict(R.named_parameters()).keys()
