"""Newton's method by way of smoother problems, for starts so far from the solution of a nearly kinked one that its
steps would be short."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.linear.samples import inner_samples
from learnreg.lower_level.instance import Instance
from learnreg.result import Status
from learnreg.solvers.loop import LoopResult, Record, iterate
from learnreg.solvers.newton_cg import NewtonCG

__all__ = ["continued_newton", "smoother_instances"]

_SMOOTHER, _LARGEST, _MOST = 4.0, 0.3, 12
"""Factor between the smoothings of two problems; the first one's over the largest response; most of them."""

_ROUGH = 1e-2


def smoother_instances(instance: Instance, x: Tensor) -> list[Instance]:
    """The same problem with smoothings that fall by factors of 4, down to four times its own; the first one of the size
    of the responses at x. Counts one application."""
    f = instance.potential
    smallest = float(torch.as_tensor(f.scale).min())
    largest = _LARGEST * float(instance.apply(x).abs().max())
    falls = math.inf > largest > smallest > 0
    count = math.ceil((math.log(largest) - math.log(smallest)) / math.log(_SMOOTHER)) if falls else 0
    factors = [_SMOOTHER**k for k in range(min(count, _MOST), 0, -1)]
    return [replace(instance, potential=g) for g in map(f.smoother, factors) if g is not None]


def continued_newton(
    instance: Instance,
    x: Tensor,
    residual: Tensor,
    bound: Tensor,
    max_steps: int | None = None,
    record: Record | None = None,
) -> LoopResult:
    """As ``iterate(NewtonCG(), ...)``, each smoother problem solved to a hundredth of its first residual before.
    ``record`` sees the last one alone."""
    steps = 0

    def left() -> int | None:
        return None if max_steps is None else max(0, max_steps - steps)

    for smoother in smoother_instances(instance, x):
        g = instance.box.reduced_gradient(x, smoother.full_gradient(x))
        goal = torch.maximum(_ROUGH * inner_samples(g, g).sqrt(), residual)
        found = iterate(NewtonCG(), smoother, x, goal, torch.zeros_like(goal), left())
        x, steps = found.x, steps + found.steps
        if left() == 0 or found.status is Status.STAGNATED:  # less smooth ones would do no better
            break
    final = iterate(NewtonCG(), instance, x, residual, bound, left(), record=record)
    return replace(final, steps=steps + final.steps)
