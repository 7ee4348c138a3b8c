"""Iterations run on a GPU without waiting for it: no step looks at a value, which a meta tensor would not even have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import registry
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.hypergradients.base import Goal
from learnreg.hypergradients.interleaved import InterleavedPDHG, InterleavedProblem
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.banded import in_bands
from learnreg.solvers import Iteration
from learnreg.solvers.banded_lbfgs import BandedLBFGS

SYNCHRONISING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "unique",
    "_unique2",
    "unique_consecutive",
    "bincount",
}


class CountSynchronisations(TorchDispatchMode):
    """Counts the operations whose result, or its shape, the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in SYNCHRONISING or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def setting(regularizer: str, problem: str, box: bool) -> tuple[lr.LowerLevelProblem, Tensor, lr.UpperLoss]:
    built = registry.build(problem, regularizer, lr.Box(0.1, 0.9) if box else None)
    x_true, b = registry.measure(built)
    return built, b, lr.SquaredError(x_true)


def iterations(regularizer: str, problem: str, box: bool) -> dict[str, tuple[Iteration[Any, Any], Any, Any]]:
    """Every iteration on its problem, with a state a few steps old."""
    built, b, loss = setting(regularizer, problem, box)
    instance = built.instance(b)
    x = registry.rand(*instance.q.shape, seed=30)
    equation = AdjointEquation.at(instance, x, instance.apply(x), loss.gradient(x))
    one = torch.ones(2, dtype=x.dtype)
    interleaved = InterleavedProblem.of(instance, loss, x, torch.zeros_like(x), Goal(one, one))
    solvers = registry.BOX_SOLVERS if box else registry.SOLVERS
    cases: dict[str, tuple[Iteration[Any, Any], Any]] = {n: (s(), instance) for n, s in solvers.items()}
    cases |= {f"adjoint {n}": (s(), equation) for n, s in registry.ADJOINT_SOLVERS.items()}
    cases["interleaved"] = (InterleavedPDHG(), interleaved)
    result = {}
    for name, (solver, part) in cases.items():
        state = solver.init(part, x)
        for _ in range(3):
            state = solver.step(part, state)
        result[name] = (solver, part, solver.step(part, solver.adapt(part, state)))
    return result


SETTINGS = [
    ("FieldsOfExperts", "denoising", False),
    ("FieldsOfExperts-LogCosh", "learned-blur", False),
    ("FieldsOfExperts-Huber", "inpainting", False),
    ("TotalVariation", "denoising", False),
    ("TotalVariation", "circular-blur", False),
    ("TotalVariation", "learned-weights", True),
    ("AnalysisOperator-FilterBank", "weights-and-blur", True),
]


@pytest.mark.parametrize(("regularizer", "problem", "box"), SETTINGS)
@torch.no_grad()
def test_steps_never_synchronise_with_the_host(regularizer: str, problem: str, box: bool) -> None:
    for name, (solver, part, state) in iterations(regularizer, problem, box).items():
        with CountSynchronisations() as counter:
            for _ in range(2):
                state = solver.step(part, state)
        assert not counter.seen, f"{name} waits for the device: {counter.seen}"


@torch.no_grad()
def test_steps_by_bands_never_synchronise_with_the_host() -> None:
    built, b, _ = setting("FieldsOfExperts", "denoising", False)
    instance, solver = in_bands(built.instance(b)), BandedLBFGS()
    state = solver.step(instance, solver.init(instance, b))
    with CountSynchronisations() as counter:
        for _ in range(4):
            state = solver.step(instance, state)
    assert not counter.seen


def test_the_counter_sees_synchronisations() -> None:
    t = torch.arange(3.0)
    looks: list[Callable[[], object]] = [
        lambda: float(t.sum()),
        lambda: bool((t > 1).any()),
        lambda: t.sum().item(),
        lambda: t.nonzero(),
        lambda: t[t > 1],
        lambda: torch.equal(t, t),
    ]
    for look in looks:
        with CountSynchronisations() as counter:
            look()
        assert counter.seen


def to_meta(value: Any) -> Any:
    """A copy with every tensor on the meta device, through dataclasses, tuples and modules (kept as they are)."""
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_meta(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, tuple):
        return tuple(to_meta(v) for v in value)
    if isinstance(value, lr.UpperLoss):
        loss = lr.SquaredError(torch.empty_like(value.x_true))  # type: ignore[attr-defined]
        loss.x_true = loss.x_true.to("meta")  # constructors refuse tensors without data
        return loss
    if isinstance(value, FilterBank):
        return FilterBank(to_meta(value.filters), value.domain_shape, value.boundary)  # type: ignore[arg-type]
    if isinstance(value, nn.Module):
        return value.to("meta")
    if isinstance(value, lr.potentials.Potential):
        return value.with_parameters(to_meta(value.weight), to_meta(value.smoothing))
    return value


@pytest.mark.parametrize(("regularizer", "problem", "box"), SETTINGS)
@torch.no_grad()
def test_steps_run_on_meta_tensors(regularizer: str, problem: str, box: bool) -> None:
    for name, (solver, part, state) in iterations(regularizer, problem, box).items():
        stepped = solver.step(to_meta(part), to_meta(state))
        for field in fields(stepped):
            value = getattr(stepped, field.name)
            if isinstance(value, Tensor):
                assert value.device.type == "meta", f"{name}: {field.name}"
                assert value.shape == getattr(state, field.name).shape, f"{name}: {field.name}"
