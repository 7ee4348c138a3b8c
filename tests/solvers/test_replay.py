"""Recorded blocks of iterations are those that run step by step: with a recorder for the CPU, which repeats operations
on the very tensors they were called with, as a CUDA graph does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import registry
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.kernels import loader
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.regularizers import AnalysisOperator
from learnreg.solvers import LBFGS, PDHG, Iteration, NonsmoothPDHG
from learnreg.solvers.replay import RECORDERS, Blocks


class Tape(TorchDispatchMode):
    """The operations of a function, to be repeated on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for k, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[k] if k < len(args) else kwargs[argument.name]
                self.before.append((written, written.clone()))
        found = func(*args, **kwargs)
        memory = {t.untyped_storage().data_ptr() for t in given}
        fresh = [t for t in tree_leaves(found) if t.untyped_storage().data_ptr() not in memory]
        if fresh or func._schema.is_mutable:  # views are there already
            self.calls.append((func, args, kwargs, fresh))
        return found

    def undo(self) -> None:
        for tensor, content in reversed(self.before):
            tensor.copy_(content)

    def replay(self) -> None:
        for func, args, kwargs, fresh in self.calls:
            memory = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            found = tree_leaves(func(*args, **kwargs))
            again = [t for t in found if t.untyped_storage().data_ptr() not in memory]
            for kept, new in zip(fresh, again, strict=True):
                kept.copy_(new)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Blocks on the CPU are recorded; how often each recording is replayed."""
    replays: list[int] = []

    def record(block: Callable[[], None]) -> Callable[[], None]:
        with Tape() as tape:
            block()
        tape.undo()
        number = len(replays)
        replays.append(0)

        def replay() -> None:
            replays[number] += 1
            tape.replay()

        return replay

    monkeypatch.delitem(loader.COMPILERS, "cpu")  # whose kernels pass the tape by
    monkeypatch.setitem(RECORDERS, "cpu", record)
    with torch.no_grad():
        yield replays


def cases() -> dict[str, tuple[Iteration[Any, Any], Any]]:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    instance = problem.instance(b)
    equation = AdjointEquation.at(instance, b, instance.apply(b), b - x_true)
    analysis = AnalysisOperator(FilterBank(registry.randn(3, 2, 2, seed=2), b.shape[1:]), lr.AbsoluteValue(0.1))
    nonsmooth = lr.LowerLevelProblem(problem.operator, analysis).instance(b)
    found: dict[str, tuple[Iteration[Any, Any], Any]] = {"pdhg": (PDHG(), instance), "lbfgs": (LBFGS(3), instance)}
    found["nonsmooth"] = (NonsmoothPDHG(5), nonsmooth)
    return found | {f"adjoint {name}": (s(), equation) for name, s in registry.ADJOINT_SOLVERS.items()}


CASES = ["pdhg", "lbfgs", "nonsmooth", *(f"adjoint {name}" for name in registry.ADJOINT_SOLVERS)]


def final(steps: Callable[[Any, Any, int], Any], solver: Iteration[Any, Any], part: Any) -> tuple[Any, int]:
    """The report after eight blocks with adjustments between them, and the operator applications."""
    state = solver.init(part, torch.zeros_like(part.rhs if hasattr(part, "rhs") else part.q))
    part.counter.applications = 0
    for _ in range(8):
        state = solver.adapt(part, steps(part, state, solver.check_every))
    return solver.report(part, state), part.counter.applications


@pytest.mark.parametrize("name", CASES)
def test_replayed_blocks_are_those_step_by_step(name: str, recorded: list[int]) -> None:
    solver, part = cases()[name]
    expected, counted = final(solver.steps, solver, part)
    assert not recorded
    found, applications = final(Blocks(solver).steps, solver, part)
    assert sum(recorded) >= 2
    assert applications == counted
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.residual, expected.residual)


def test_solutions_and_starts_are_those_step_by_step(recorded: list[int]) -> None:
    """Samples of different difficulty, so that the batch shrinks and recordings are made anew."""
    problem = registry.build("denoising", "TotalVariation")
    _, b = registry.measure(problem)
    b = torch.cat([1e-4 * b, b])
    start = torch.zeros_like(b)
    found = lr.solve(problem, b, 1e-9, solver=PDHG(check_every=4), start=start)
    assert sum(recorded) > len(recorded) > 1
    assert not start.any()
    RECORDERS.pop("cpu")
    expected = lr.solve(problem, b, 1e-9, solver=PDHG(check_every=4), start=start)
    assert found.certified
    assert found.steps == expected.steps
    assert found.operator_applications == expected.operator_applications
    assert torch.equal(found.x, expected.x)


def test_what_cannot_be_recorded_runs_step_by_step(recorded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    solver, part = cases()["pdhg"]
    expected, counted = final(solver.steps, solver, part)

    def refuse(block: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(RECORDERS, "cpu", refuse)
    found, applications = final(Blocks(solver).steps, solver, part)
    assert not recorded
    assert applications == counted
    assert torch.equal(found.x, expected.x)
