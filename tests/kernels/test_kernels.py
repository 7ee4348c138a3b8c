"""Compiled kernels against the plain torch they replace, and the calls that they must leave to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.certificates.state import dual_answer, smallest_bound
from learnreg.kernels import loader
from learnreg.kernels.rows import ChannelKernels
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.fused_total_variation import FusedTotalVariation
from learnreg.lower_level.instance import Instance
from learnreg.operators import Identity, Inpainting
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.regularizers import TotalVariation
from learnreg.solvers import PDHG, AdjointPDHG

needs_numba = pytest.mark.skipif(not loader.numba_works(), reason="numba is not installed")

SHAPES = [(1, 1, 7, 5), (3, 1, 16, 33), (2, 1, 1, 9), (2, 1, 6, 1), (1, 1, 40, 70)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def without_autograd() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Call a function as if numba were missing."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(loader, "numba_works", lambda: False)
            return function()

    return call


def denoising(shape: tuple[int, ...], smoothing: float = 1e-2, **options: Any) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Identity(shape[1:]), TotalVariation(0.07, smoothing), **options)


def instance_of(shape: tuple[int, ...], dtype: torch.dtype, smoothing: float = 1e-2) -> Instance:
    return denoising(shape, smoothing, ridge=0.3).instance(registry.rand(*shape, seed=1).to(dtype))


def close(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    for field in fields(expected):
        value = getattr(expected, field.name)
        if isinstance(value, Tensor) and field.name != "memory":
            torch.testing.assert_close(getattr(actual, field.name), value, rtol=tolerance, atol=tolerance)


def after_steps(instance: Instance, steps: int) -> Any:
    solver = PDHG(check_every=2)
    state = solver.init(instance, instance.q + 0.1)
    state = replace(state, tau=state.tau * torch.linspace(0.5, 1.5, instance.batch, dtype=state.tau.dtype))
    for step in range(steps):
        if step % 2:
            state = solver.adapt(instance, state)
        state = solver.step(instance, state)
    return state


@needs_numba
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [1e-1, 1e-3])
def test_iterations_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, smoothing: float, in_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    instance = instance_of(shape, dtype, smoothing)
    assert FusedTotalVariation.of(instance) is not None
    state = after_steps(instance, 5)
    applications, instance.counter.applications = instance.counter.applications, 0
    close(state, in_torch(lambda: after_steps(instance, 5)), dtype)
    assert applications == instance.counter.applications


@needs_numba
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_several_iterations_at_once_are_those_one_by_one(shape: tuple[int, ...], count: int) -> None:
    instance, solver = instance_of(shape, torch.float64), PDHG()
    at_once, one_by_one = (solver.init(instance, instance.q + 0.1) for _ in range(2))
    for _ in range(count):
        one_by_one = solver.step(instance, one_by_one)
    instance.counter.applications = 0
    close(solver.steps(instance, at_once, count), one_by_one, torch.float64)
    assert instance.counter.applications == 2 * count


@needs_numba
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_judgements_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, in_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    instance = instance_of(shape, dtype)
    x, t = (registry.rand(instance.batch, n, *shape[2:], seed=n).to(dtype) for n in (1, 2))
    t = instance.apply(x) + 1e-3 * t
    instance.counter.applications = 0
    answer, bound = dual_answer(instance, t, torch.empty_like(t)), smallest_bound(instance, x, t)
    applications, instance.counter.applications = instance.counter.applications, 0
    close(answer, in_torch(lambda: dual_answer(instance, t, torch.empty_like(t))), dtype)
    close(bound, in_torch(lambda: smallest_bound(instance, x, t)), dtype)
    assert applications == instance.counter.applications


@needs_numba
def test_a_judgement_in_float64_takes_float32_iterates(in_torch: Callable[[Callable[[], Any]], Any]) -> None:
    instance = instance_of((2, 1, 9, 8), torch.float64)
    x = registry.rand(2, 1, 9, 8, seed=3).float()
    t = instance.apply(x.double()).float()
    mixed, exact = smallest_bound(instance, x, t), in_torch(lambda: smallest_bound(instance, x, t))
    assert mixed.bound.dtype == torch.float64
    close(replace(mixed, y=mixed.y.double()), replace(exact, y=exact.y.float().double()), torch.float64)


@needs_numba
@pytest.mark.parametrize("dtype", DTYPES)
def test_solutions_are_those_of_torch(dtype: torch.dtype, in_torch: Callable[[Callable[[], Any]], Any]) -> None:
    """Samples of different difficulty, so that the batch shrinks on the way."""
    shape = (4, 1, 24, 17)
    b = (registry.rand(*shape, seed=4) * torch.tensor([1e-3, 1.0, 0.1, 3.0]).reshape(4, 1, 1, 1)).to(dtype)
    problem = denoising(shape)
    solution, reference = lr.solve(problem, b, 1e-5), in_torch(lambda: lr.solve(problem, b, 1e-5))
    assert solution.status is lr.Status.CONVERGED
    assert bool((solution.error_bound <= 1e-5).all())
    distance = (solution.x - reference.x).double().square().flatten(1).mean(1).sqrt()
    assert bool((distance <= solution.error_bound + reference.error_bound).all())
    alone = torch.cat([lr.solve(problem, b[i : i + 1], 1e-5).x for i in range(4)])
    assert bool(((solution.x - alone).double().square().flatten(1).mean(1).sqrt() <= 2e-5).all())


@needs_numba
def test_a_start_is_not_overwritten() -> None:
    b, start = registry.rand(1, 1, 9, 8, seed=5), registry.rand(1, 1, 9, 8, seed=6)
    kept = b.clone(), start.clone()
    lr.solve(denoising(tuple(b.shape)), b, 1e-6, solver="pdhg", start=start)
    lr.solve(denoising(tuple(b.shape)), b, 1e-6)
    assert torch.equal(b, kept[0])
    assert torch.equal(start, kept[1])


def potentials(dtype: torch.dtype) -> list[PseudoHuber]:
    weight, smoothing = registry.rand(2, 1, 1, seed=1) + 0.1, registry.rand(2, 1, 1, seed=2) * 0.1 + 0.01
    per_channel, number = PseudoHuber(smoothing, weight), torch.tensor(0.3, dtype=dtype)
    return [per_channel.to(dtype), PseudoHuber(1e-3, 0.5), PseudoHuber(0.02, number)]


@needs_numba
@pytest.mark.parametrize("pixels", [(7, 5), (1, 1), (50, 41)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pseudo_huber_kernels_are_torch(
    pixels: tuple[int, ...], dtype: torch.dtype, in_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    v, y, t, memory = (registry.randn(3, 2, *pixels, seed=s).to(dtype) for s in (3, 4, 5, 6))
    step = (0.3 + registry.rand(3, 1, 1, 1, seed=7)).to(dtype)
    for f in potentials(dtype):
        for sigma in (step, step * torch.ones(2, 1, 1, dtype=dtype)):

            def calls(f: PseudoHuber = f, sigma: Tensor = sigma) -> list[Tensor]:
                moved_y, moved_t = y.clone(), t.clone()
                f.dual_step_(v.clone(), moved_y, moved_t, sigma, 1.9, 2)
                derivatives = f.grad_into(t, memory).clone(), f.second_into(t, memory).clone()
                return [moved_y, moved_t, *derivatives, f.slope(t, v, step), *f.distances(t + 1e-3 * v, t)]

            tolerance = 2e-4 if dtype == torch.float32 else 1e-11
            for fast, reference in zip(calls(), in_torch(calls), strict=True):
                assert fast.dtype == reference.dtype
                torch.testing.assert_close(fast, reference, rtol=tolerance, atol=tolerance)


@needs_numba
@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_piggyback_steps_are_those_of_torch(
    dtype: torch.dtype, regularizer: str, in_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    problem = registry.build("denoising", regularizer).to(dtype)
    x_true, b = (t.to(dtype) for t in registry.measure(problem))
    instance = problem.instance(b)
    equation = AdjointEquation.at(instance, b, instance.apply(b), b - x_true)
    solver = AdjointPDHG()

    def steps() -> list[Tensor]:
        state = solver.step(equation, solver.init(equation, torch.zeros_like(b)))
        state = solver.steps(equation, state, 3)
        return [state.X, state.Y, state.X_hat, state.Y_hat]

    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    for fast, reference in zip(steps(), in_torch(steps), strict=True):
        torch.testing.assert_close(fast, reference, rtol=tolerance, atol=tolerance)


@needs_numba
def test_channel_kernels_leave_other_calls_to_torch() -> None:
    t = registry.randn(2, 3, 4, 5, seed=8)
    assert ChannelKernels.of("pseudo_huber", (t,), 0.1, torch.ones(3, 1, 1)) is not None
    assert ChannelKernels.of("pseudo_huber", (t, t.float()), 0.1) is None
    assert ChannelKernels.of("pseudo_huber", (t.transpose(2, 3),), 0.1) is None
    assert ChannelKernels.of("pseudo_huber", (t,), torch.ones(3, 4, 5)) is None
    assert ChannelKernels.of("pseudo_huber", (t[:, :, 0, 0],), 0.1) is None
    with torch.enable_grad():
        assert ChannelKernels.of("pseudo_huber", (t,), 0.1) is None


def test_other_calls_are_left_to_torch() -> None:
    instance = instance_of((2, 1, 6, 8), torch.float64)
    x = instance.q
    assert FusedTotalVariation.of(instance, x.transpose(2, 3)) is None
    assert FusedTotalVariation.of(instance, x.half()) is None
    assert FusedTotalVariation.of(instance, x.to("meta")) is None
    assert FusedTotalVariation.of(instance, torch.nn.Parameter(x)) is None
    with torch.enable_grad():
        assert FusedTotalVariation.of(instance, x) is None
    others = [
        denoising((2, 1, 6, 8), constraint=lr.Nonnegative()),
        lr.LowerLevelProblem(Identity((1, 6, 8)), registry.REGULARIZERS["FieldsOfExperts"]()),
        lr.LowerLevelProblem(Inpainting(registry.rand(1, 6, 8, seed=7)), TotalVariation(), ridge=1.0),
    ]
    for problem in others:
        assert FusedTotalVariation.of(problem.instance(x)) is None


def test_a_missing_or_disabled_numba_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loader.numba_works.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(loader, "find_spec", lambda name: None)
        assert not loader.numba_works()
        assert FusedTotalVariation.of(instance_of((1, 1, 6, 8), torch.float64)) is None
    loader.numba_works.cache_clear()

    def refuse(name: str) -> None:
        raise ImportError("numba needs an older NumPy")

    with monkeypatch.context() as patch:
        patch.setattr(loader, "find_spec", lambda name: object())
        patch.setattr(loader.importlib, "import_module", refuse)
        assert not loader.numba_works()
    loader.numba_works.cache_clear()


@needs_numba
def test_kernels_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from learnreg.kernels import jit

    real = numba.njit

    def njit(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert jit.compiled(lambda a: a + 1)(1) == 2
