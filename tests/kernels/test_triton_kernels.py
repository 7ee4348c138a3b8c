"""Kernels of GPUs against the plain torch they replace, on the CPU: ``TRITON_INTERPRET=1 pytest`` runs them in Triton's
interpreter; without it they are compiled for GPUs that need not be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.certificates.state import dual_answer, smallest_bound
from learnreg.kernels import loader
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.fused_total_variation import FusedTotalVariation
from learnreg.lower_level.instance import Instance
from learnreg.operators import Identity
from learnreg.potentials.base import Potential
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.potentials.spline import Spline
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.solvers import PDHG, AdjointPDHG

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, of what masks throw away
]

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

DTYPES = [torch.float32, torch.float64]
SHAPES = [(1, 1, 7, 5), (3, 2, 16, 33), (2, 3, 1, 9), (2, 2, 6, 1), (1, 2, 40, 71)]
IMAGES = [(1, 1, 7, 5), (3, 1, 16, 33), (2, 1, 1, 9), (2, 1, 6, 1), (1, 1, 40, 71)]


@pytest.fixture(autouse=True)
def without_autograd() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What a function returns with the kernels of GPUs, in the interpreter, and in plain torch."""

    def call(function: Callable[[], Any]) -> tuple[Any, Any]:
        launched = []

        def argument(t: Tensor) -> Tensor:
            launched.append(t)
            return t.contiguous()

        with monkeypatch.context() as patch:
            patch.setitem(loader.COMPILERS, "cpu", replace(loader.COMPILERS["cuda"], argument=argument))
            found = function()
            assert launched, "no kernel was called"
        with monkeypatch.context() as patch:
            patch.delitem(loader.COMPILERS, "cpu")
            return found, function()

    return call


def close(found: Any, expected: Any, dtype: torch.dtype, scale: float = 1.0) -> None:
    tolerance = scale * (1e-6 if dtype == torch.float32 else 1e-14)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        size = float(b.nan_to_num(posinf=0.0).abs().max())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(size, 1.0), equal_nan=True)


def numbers(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A smoothing and a weight of each channel."""
    return (registry.rand(n, 1, 1, seed=2) * 0.5 + 0.2).to(dtype), (registry.rand(n, 1, 1, seed=1) + 0.1).to(dtype)


def potentials(n: int, dtype: torch.dtype) -> list[Any]:
    smoothing, weight = numbers(n, dtype)
    knots = registry.rand(n, 6, seed=3).to(dtype)
    return [
        PseudoHuber(smoothing, weight),
        PseudoHuber(0.3, 0.5),
        PseudoHuber(0.2, torch.tensor(0.3, dtype=dtype)),
        Spline(smoothing, weight, knots),
        Spline(0.4, 0.7, knots[:1]),
        WeaklyConvexSpline(smoothing, weight, knots),
    ]


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_potentials_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype, both: Any) -> None:
    batch, n = shape[:2]
    v, y, t = (registry.randn(*shape, seed=s).to(dtype) for s in (3, 4, 5))
    steps = [(0.3 + registry.rand(batch, 1, 1, 1, seed=7)).to(dtype)]
    steps.append(steps[0] * (0.5 + registry.rand(n, 1, 1, seed=8)).to(dtype))
    for f in potentials(n, dtype):
        for sigma in steps:

            def calls(f: Any = f, sigma: Tensor = sigma) -> list[Tensor]:
                found = [f.grad_into(t, torch.empty_like(t)), f.second_into(t, torch.empty_like(t))]
                found += [f.slope(t, v, sigma), f.distances(t + 1e-2 * v, t)[1]]
                if f.convex:
                    moved_y, moved_t = y.clone(), t.clone()
                    f.dual_step_(v.clone(), moved_y, moved_t, sigma, 1.9, 2)
                    found += [moved_y, moved_t]
                response, Y = v.clone(), y.clone()
                f.adjoint_dual_step_(t.abs(), response, Y, sigma, 1.9)
                return [*found, response, Y]

            close(*both(calls), dtype, 10.0)


@interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_are_those_of_torch(shape: tuple[int, ...], both: Any) -> None:
    t = registry.randn(*shape, seed=5)
    t.view(-1)[0] = 0.0
    radius = 0.2 * registry.rand(shape[0], 1, 1, 1, seed=6)
    for f in potentials(shape[1], t.dtype):

        def calls(f: Any = f) -> list[Tensor]:
            found = f.curvature_interval(t, radius)
            return [found.low, found.high, found.change, found.ratio, found.third, f.third_bound(t, radius)]

        close(*both(calls), t.dtype, 100.0)


@interpreted
@pytest.mark.parametrize("f", [PseudoHuber(0.3, 0.5), Spline(0.4, 0.7)])
def test_what_is_not_a_number_stays_none(f: Potential, both: Any) -> None:
    t = torch.tensor([float("nan"), 1.0, float("inf"), -2.0], dtype=torch.float64).reshape(1, 1, 2, 2)

    def calls() -> list[Tensor]:
        y, moved = torch.ones_like(t), torch.ones_like(t)
        f.dual_step_(t.clone(), y, moved, torch.ones(1, 1, 1, 1, dtype=t.dtype), 1.9, 2)  # type: ignore[attr-defined]
        return [y.isnan().double(), moved.isnan().double()]

    found, expected = both(calls)
    assert torch.equal(found[0][0, 0, 0], expected[0][0, 0, 0])
    assert torch.equal(found[1][0, 0, 0], expected[1][0, 0, 0])


def instance_of(shape: tuple[int, ...], dtype: torch.dtype, smoothing: float = 1e-2) -> Instance:
    problem = lr.LowerLevelProblem(Identity(shape[1:]), TotalVariation(0.07, smoothing), ridge=0.3)
    return problem.instance(registry.rand(*shape, seed=1).to(dtype))


@interpreted
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [1e-1, 1e-3])
def test_iterations_of_total_variation_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, smoothing: float, both: Any
) -> None:
    instance, solver = instance_of(shape, dtype, smoothing), PDHG(check_every=2)
    equation = AdjointEquation.at(instance, instance.q, instance.apply(instance.q), instance.q - 0.3)
    adjoint = AdjointPDHG()

    def steps() -> list[Tensor]:
        state = solver.init(instance, instance.q + 0.1)
        state = replace(state, tau=state.tau * torch.linspace(0.5, 1.5, instance.batch, dtype=state.tau.dtype))
        state = solver.steps(instance, state, 3)
        state = solver.steps(instance, solver.adapt(instance, state), 2)
        other = adjoint.steps(equation, adjoint.init(equation, torch.zeros_like(instance.q)), 3)
        return [state.x, state.x_hat, state.y, state.t, state.tau, other.X, other.X_hat, other.Y, other.Y_hat]

    close(*both(steps), dtype, 100.0)


@interpreted
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_judgements_of_total_variation_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, both: Any
) -> None:
    instance = instance_of(shape, dtype)
    x, t = (registry.rand(instance.batch, n, *shape[2:], seed=n).to(dtype) for n in (1, 2))
    t = instance.apply(x) + 1e-1 * t

    def judged() -> list[Tensor]:
        answer, bound = dual_answer(instance, t, torch.empty_like(t)), smallest_bound(instance, x, t)
        return [answer.x, answer.bound, answer.floor, bound.bound, bound.residual, bound.floor]

    close(*both(judged), dtype, 100.0)


@interpreted
def test_a_whole_hypergradient_runs_on_them(both: Any) -> None:
    R = FieldsOfExperts(2, 3, lr.PseudoHuber(0.5), generator=torch.Generator().manual_seed(0)).double()
    problem, b = lr.LowerLevelProblem(Identity((1, 5, 6)), R), registry.rand(1, 1, 5, 6, seed=1)
    loss = lr.SquaredError(registry.rand(1, 1, 5, 6, seed=2))

    def gradient() -> lr.Hypergradient:
        with torch.enable_grad():
            return lr.hypergradient(problem, b, loss, method=lr.Piggyback(), tolerance=0.1)

    found, expected = both(gradient)
    assert found.certified
    assert expected.certified
    apart = sum(float((found.gradient[name] - g).square().sum()) for name, g in expected.gradient.items()) ** 0.5
    assert apart <= found.error_bound + expected.error_bound


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton's compiler")
@pytest.mark.parametrize("module", ["pseudo_huber", "spline", "total_variation"])
@pytest.mark.parametrize("number", ["fp32", "fp64"])
def test_kernels_compile_for_gpus(module: str, number: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"LAST": 6, "OUTWARD": 1e-12, "RELAXATION": 1.9, "NEWTON_STEPS": 2, "SUMS": 8, "BLOCK": 1024}
    sizes = {"pixels", "channels", "height", "width"}
    kernels = loader._module(f"learnreg.kernels.cuda.{module}")
    compiled = 0
    for kernel in vars(kernels).values():
        if not isinstance(kernel, triton.JITFunction) or "BLOCK" not in kernel.arg_names or kernel.__name__ == "place":
            continue
        names = [name for name in kernel.arg_names if name not in constants]
        signature = {name: "i32" if name in sizes else f"*{number}" for name in names}
        signature |= {"parts": "*fp64"} if "parts" in names else {}
        given = {name: constants[name] for name in kernel.arg_names if name in constants}
        signature |= dict.fromkeys(given, "constexpr")
        source, options = ASTSource(kernel, signature, given), {"enable_fp_fusion": False}
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert "ptx" in built.asm
        compiled += 1
    assert compiled >= 6


def test_other_devices_are_left_to_torch() -> None:
    t = torch.ones(1, 1, 2, 2, device="meta")
    assert loader.kernels_for("pseudo_huber", t) is None
    assert loader.kernels_for("pseudo_huber", torch.ones(1, 1, 2, 2), t) is None
    assert FusedTotalVariation.of(instance_of((1, 1, 6, 8), torch.float64), t) is None
