"""One PDHG iteration of learnreg against the same one in plain torch, and the peak memory of hypergradients.

torch's memory allocation is left at the defaults of the C library.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from foe_problem import DATA_OPTION, FoeProblem, load
from harness import Table, arguments, finish, interleave, peak_bytes
from torch import Tensor
from unrolled import PlainState, pdhg_start, pdhg_step

import learnreg as lr
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.solvers import PDHG
from learnreg.training.tolerances import BatchGradient, Tolerances, improve_batch

WARM_UP, NEWTON_STEPS, LONG_RUN = 20, 1, 60
TAU, NORM_SQUARED = 0.03, 49.0
METHODS: tuple[HypergradientMethod, ...] = (Implicit(), Piggyback())
TOLERANCES = (Tolerances(1e-3, 1e-2), Tolerances(1e-5, 1e-3))


def plain_iterations(foe: FoeProblem, state: PlainState, count: int) -> PlainState:
    for _ in range(count):
        state = pdhg_step(foe.theta, foe.b, state, TAU, 1.0 / (TAU * NORM_SQUARED), NEWTON_STEPS)
    return state


def learnreg_iterations(foe: FoeProblem) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
    """One step from the state after the warm-up, and the answer after the long run."""
    instance, solver = foe.problem().instance(foe.b), PDHG()
    state = solver.init(instance, foe.b)
    for _ in range(WARM_UP):
        state = solver.step(instance, state)

    def long_run() -> Tensor:
        following = state
        for _ in range(LONG_RUN - WARM_UP):
            following = solver.step(instance, following)
        return solver.report(instance, following).x

    return partial(solver.step, instance, state), long_run


@torch.no_grad()
def iteration_rows(foe: FoeProblem, rounds: int) -> list[dict[str, Any]]:
    """CPU time of one iteration, and, to show that both iterate towards the solution, the error after 60."""
    solution = lr.solve(foe.problem(), foe.b, 1e-5).x
    start = plain_iterations(foe, pdhg_start(foe.theta, foe.b), WARM_UP)
    step, long_run = learnreg_iterations(foe)
    seconds = interleave(
        {"learnreg PDHG().step": step, "plain torch": partial(plain_iterations, foe, start, 1)}, rounds, 2, 0.5
    )
    answers = {
        "learnreg PDHG().step": long_run(),
        "plain torch": plain_iterations(foe, start, LONG_RUN - WARM_UP).x,
    }
    fastest = seconds["learnreg PDHG().step"]
    return [
        {
            "what": f"one iteration, {name}",
            "CPU ms": 1e3 * value,
            "times learnreg": value / fastest,
            f"error of x after {LONG_RUN}": f"{float((answers[name] - solution).square().mean().sqrt()):.1e}",
        }
        for name, value in seconds.items()
    ]


def improve(foe: FoeProblem, method: HypergradientMethod, tolerances: Tolerances) -> BatchGradient:
    start = Start(foe.b, torch.zeros_like(foe.b))
    return improve_batch(foe.problem(), foe.b, lr.SquaredError(foe.x_true), method, start, tolerances)


def memory_rows(foe: FoeProblem) -> list[dict[str, Any]]:
    """Peak of the tensors that a call allocates, in response tensors."""
    rows = []
    for method in METHODS:
        for tolerances in TOLERANCES:
            steps = improve(foe, method, tolerances).steps
            peak = peak_bytes(partial(improve, foe, method, tolerances)) / foe.response_bytes
            rows.append({"what": f"{method!r}, {steps} iterations", "peak memory, responses": peak})
    loss = lr.SquaredError(foe.x_true)
    certified = partial(lr.hypergradient, foe.problem(), foe.b, loss, tolerance=1.0)
    status = certified()
    name = f"learnreg.hypergradient(tolerance=1.0), {status.steps} iterations, certified: {status.certified}"
    rows.append({"what": name, "peak memory, responses": peak_bytes(certified) / foe.response_bytes})
    return rows


def main() -> None:
    options = arguments(__doc__ or "", quick={"foe_problem.SIDE": 24, "foe_problem.FILTERS": 6}, data=DATA_OPTION)
    foe = load(options.data)
    iterations, memory = iteration_rows(foe, options.rounds), memory_rows(foe)
    table = Table(
        "pdhg_iteration",
        "One PDHG iteration, and memory",
        "python benchmarks/pdhg_iteration.py --data DIR --record",
        f"The problem of the hypergradient benchmark, float32; a response tensor has {foe.response_bytes / 1e6:.1f} "
        f"MB. Plain torch: F.conv2d and F.conv_transpose2d, over-relaxation 1.9, {NEWTON_STEPS} Newton steps for the "
        f"proximal map; step sizes {TAU:g} and 1/({TAU:g} ‖K‖²). Both start from {WARM_UP} iterations of their own. "
        "Peak memory counts the tensors that the call allocates.",
        [*iterations, *memory],
        order=21,
    )
    table.tracked["one iteration: learnreg / plain torch"] = 1.0 / iterations[1]["times learnreg"]
    for row in memory[1::2]:
        table.tracked[f"peak responses: {row['what'].partition(',')[0]}"] = row["peak memory, responses"]
    table.tracked["peak responses: learnreg.hypergradient"] = memory[-1]["peak memory, responses"]
    finish(table, options)


if __name__ == "__main__":
    main()
