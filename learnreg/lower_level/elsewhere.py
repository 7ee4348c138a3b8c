"""A lower-level problem at other values of its learned parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.problem import LowerLevelProblem

__all__ = ["is_nonnegative", "with_parameters"]

T = TypeVar("T")


class _Within(nn.Module):
    """Work on a problem, as ``torch.func.functional_call`` wants it."""

    def __init__(self, problem: LowerLevelProblem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, work: Callable[[FrozenProblem], T]) -> T:
        return work(self.problem.frozen())


def is_nonnegative(name: str) -> bool:
    """Whether a learned parameter, by its name, has no values below 0: the ridge and weights of the data term."""
    return name == "ridge" or name.startswith("data_term.")


def with_parameters(frozen: FrozenProblem, values: Mapping[str, Tensor], work: Callable[[FrozenProblem], T]) -> T:
    """What the work makes of the problem with these values, by names of ``frozen.parameters``; the others stay. The
    problem it is given is of use within the work alone: modules of foreign classes are shared, and for other threads,
    too, their parameters have these values meanwhile."""
    problem = LowerLevelProblem(
        frozen.operator, frozen.regularizer, ridge=frozen.ridge, data_term=frozen.data_term,
        constraint=frozen.constraint if frozen.constraint.constrains else None, minimiser=frozen.minimiser,
    )  # fmt: skip
    names = {id(p): name for both in (frozen.originals, frozen.parameters) for name, p in both.items()}
    moved: dict[str, Tensor] = {
        f"problem.{place}": nn.Parameter(values[names[id(p)]].detach().to(p))
        for place, p in problem.named_parameters()
        if names.get(id(p)) in values
    }
    with torch.inference_mode(False), torch.no_grad():
        found: T = torch.func.functional_call(_Within(problem), moved, work)
    return found
