"""Iterations run on a GPU without waiting for it: no step looks at a value, which a meta tensor would not even have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import registry
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.hypergradients.base import Goal
from learnreg.hypergradients.interleaved import InterleavedPDHG, InterleavedProblem
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.banded import BandedPotential, in_bands
from learnreg.potentials.spline import Spline
from learnreg.regularizers import AnalysisOperator
from learnreg.solvers import Iteration, NonsmoothPDHG
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


class CountHostCopies(TorchFunctionMode):
    """Collects what is made of numbers of the host on another device, which waits for a GPU as a copy of a tensor
    does."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        of_numbers = name in ("tensor", "as_tensor") and not isinstance(args[0], Tensor)
        if (of_numbers or name == "new_tensor") and found.device.type != "cpu":
            self.seen.append(name)
        return found


class CountDeviceCopies(TorchDispatchMode):
    """Collects copies between the host and another device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, found) if isinstance(a, Tensor)]
        name = func.overloadpacket.__name__
        if name in ("copy_", "_to_copy") and len({t.device for t in tensors}) > 1:
            self.seen.append(name)
        return found


@contextmanager
def no_copies(name: str) -> Iterator[None]:
    """AssertionError where something is copied from the host or to it."""
    with CountHostCopies() as numbers, CountDeviceCopies() as tensors:
        yield
    assert not numbers.seen + tensors.seen, f"{name} copies: {numbers.seen + tensors.seen}"


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
    return {name: (solver, part, under_way(solver, part, x)) for name, (solver, part) in cases.items()}


def under_way(solver: Iteration[Any, Any], part: Any, x: Tensor) -> Any:
    """A state a few steps old."""
    state = solver.init(part, x)
    for _ in range(3):
        state = solver.step(part, state)
    return solver.step(part, solver.adapt(part, state))


def other_iterations() -> dict[str, tuple[Iteration[Any, Any], Any, Any]]:
    """Those that ``iterations`` lacks, on problems of their own."""
    experts, b, _ = setting("FieldsOfExperts", "denoising", False)
    analysis = AnalysisOperator(FilterBank(registry.randn(3, 2, 2, seed=2), b.shape[1:]), lr.AbsoluteValue(0.1))
    nonsmooth = lr.LowerLevelProblem(experts.operator, analysis).instance(b)
    cases = {"large images": (BandedLBFGS(), in_bands(experts.instance(b)))}
    cases |= {"without a gradient": (NonsmoothPDHG(), nonsmooth)}
    return {name: (solver, part, under_way(solver, part, b)) for name, (solver, part) in cases.items()}


SETTINGS = [
    ("FieldsOfExperts", "denoising", False),
    ("FieldsOfExperts-LogCosh", "learned-blur", False),
    ("FieldsOfExperts-Huber", "inpainting", False),
    ("TotalVariation", "denoising", False),
    ("TotalVariation", "circular-blur", False),
    ("TotalVariation", "learned-weights", True),
    ("AnalysisOperator-FilterBank", "weights-and-blur", True),
    ("RidgeRegularizer", "denoising", False),
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
def test_other_steps_never_synchronise_with_the_host() -> None:
    found = other_iterations()
    tested = {type(solver) for solver, *_ in found.values()}
    assert tested == set(registry.OTHER_ITERATIONS.values()) - {InterleavedPDHG}  # which ``iterations`` has
    for name, (solver, part, state) in found.items():
        with CountSynchronisations() as counter:
            solver.steps(part, state, solver.check_every)
        assert not counter.seen, f"{name} waits for the device: {counter.seen}"


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
    if isinstance(value, BandedPotential):
        operator = to_meta(value.operator)
        return BandedPotential(operator, to_meta(value.potential), operator.bands())
    if isinstance(value, Spline):
        value = value.with_coefficients(to_meta(value.coefficients))
    if isinstance(value, lr.potentials.Potential):
        return value.with_numbers(**{name: to_meta(number) for name, number in value.numbers().items()})
    return value


def check_block(name: str, solver: Iteration[Any, Any], part: Any, state: Any) -> None:
    """From one look of the host to the next, on tensors that have no values."""
    part, state = to_meta(part), to_meta(state)
    with no_copies(name):
        found = solver.steps(part, state, solver.check_every)
    before, after = (dict(tensors_of(s)) for s in (state, found))
    assert after
    for place, tensor in after.items():
        assert tensor.device.type == "meta", f"{name}: {place}"
        assert place not in before or tensor.shape == before[place].shape, f"{name}: {place}"


def tensors_of(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a state, with where they are."""
    if isinstance(value, Tensor):
        yield place, value
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from tensors_of(getattr(value, f.name), f"{place}.{f.name}")
    elif isinstance(value, tuple):
        for k, v in enumerate(value):
            yield from tensors_of(v, f"{place}.{k}")


@pytest.mark.parametrize(("regularizer", "problem", "box"), SETTINGS)
@torch.no_grad()
def test_blocks_of_steps_run_on_meta_tensors(regularizer: str, problem: str, box: bool) -> None:
    for name, case in iterations(regularizer, problem, box).items():
        check_block(name, *case)


@torch.no_grad()
def test_other_blocks_of_steps_run_on_meta_tensors() -> None:
    for name, case in other_iterations().items():
        check_block(name, *case)


def test_copies_are_seen() -> None:
    there = torch.empty(3, device="meta")
    copies: list[Callable[[], object]] = [
        lambda: torch.as_tensor(0.1, device="meta"),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: there.new_tensor([1.0]),
        lambda: torch.ones(3).to("meta"),
        lambda: there.copy_(torch.ones(3)),
    ]
    for copy in copies:
        with pytest.raises(AssertionError, match="copies"), no_copies("a loop"):
            copy()
    with no_copies("a loop"):
        torch.full((), 0.1, device="meta") + torch.where(there > 0, there, 1.0)
