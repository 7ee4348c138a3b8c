"""Hypergradient of a Field of Experts to a true error of 1e-2 and 1e-3: learnreg, unrolling, and published codes.

Every method has the cheapest settings of its grid whose true error meets the target: ``OWN``, ``UNROLLED``, ``PEER``.
``--search learnreg`` walks learnreg's grids again and measures with what it finds (in twice the time);
``--search others`` walks those of the others and prints what it finds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from foe_problem import DATA_OPTION, FoeProblem, Reference, Theta, load, upper_loss
from harness import Table, arguments, finish, interleave, peak_bytes
from peers import implicit_differentiation as peer
from unrolled import Descent, unrolled_hypergradient

import learnreg as lr
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.solvers.choice import make_solver
from learnreg.solvers.solve import run_state_solver
from learnreg.training.tolerances import Tolerances, improve_batch

TARGETS = (1e-2, 1e-3)
FASTEST = "learnreg Implicit"
STATE_GRID = [10 ** (-k / 4) for k in range(6, 25)]
ADJOINT_GRID = [10 ** (-k / 4) for k in range(-5, 4)]  # times the target
TOGETHER_GRID = [10 ** (-k / 4) for k in range(-6, 5)]
METHODS: dict[str, tuple[HypergradientMethod, str]] = {
    FASTEST: (Implicit(state_solver="lbfgs"), "lbfgs"),
    "learnreg Piggyback": (Piggyback(), "pdhg"),
    "learnreg Piggyback('interleaved')": (Piggyback("interleaved"), "pdhg"),
}

OWN: dict[tuple[str, float], tuple[float, float]] = {
    ("learnreg Implicit", 1e-2): (10**-3.5, 10**-1.75),
    ("learnreg Implicit", 1e-3): (10**-4.25, 10**-2.5),
    ("learnreg Piggyback", 1e-2): (10**-2.75, 10**-1.75),
    ("learnreg Piggyback", 1e-3): (10**-2.75, 10**-3.25),
    ("learnreg Piggyback('interleaved')", 1e-2): (10**-1.5, 10**-1.0),
    ("learnreg Piggyback('interleaved')", 1e-3): (10**-1.5, 10**-1.5),
}
"""State and adjoint accuracy."""

UNROLLED: dict[float, tuple[Descent, int]] = {
    1e-2: (Descent(1 / 140, 0.85), 108),
    1e-3: (Descent(1 / 140, 0.85), 152),
}
DESCENT_GRID = [Descent(1 / scale, m) for scale in (100, 140, 190) for m in (0.0, 0.8, 0.85, 0.9)]
ITERATION_GRID = [round(2 ** (k / 4)) for k in range(24, 31)]

PEER: dict[float, tuple[float, float]] = {1e-2: (10**-6.0, 10**-2.5), 1e-3: (10**-6.5, 10**-4.5)}
"""Relative changes of the iterates at which its nmAPG and its MINRES stop."""
PEER_STATE_GRID = [10 ** (-k / 2) for k in range(10, 16)]
PEER_ADJOINT_GRID = [10 ** (-k / 2) for k in range(5, 11)]


@dataclass(frozen=True)
class Contestant:
    """A method at fixed settings. lower: its lower-level solve alone, to the accuracy that the whole run uses."""

    name: str
    target: float
    settings: str
    run: Callable[[], Theta]
    lower: Callable[[], Any] | None = None


Evaluate = Callable[[float, float], Theta]


def cheapest(
    evaluate: Evaluate, states: Sequence[float], adjoints: Sequence[float], reference: Reference, target: float
) -> tuple[float, float] | None:
    """The least CPU time whose error meets the target, on the boundary of what meets it: looser adjoint accuracies
    while they do, else a tighter state accuracy."""
    best: tuple[float, float, float] | None = None
    i, j = 0, len(adjoints) - 1
    while i < len(states) and j >= 0:
        began = time.process_time()
        error = reference.error(evaluate(states[i], adjoints[j]))
        seconds = time.process_time() - began
        if error > target:
            i += 1
            continue
        if best is None or seconds < best[0]:
            best = seconds, states[i], adjoints[j]
        j -= 1
    return None if best is None else best[1:]


# ---- learnreg --------------------------------------------------------------------------------------------------------


def learnreg_run(foe: FoeProblem, name: str, state: float, adjoint: float) -> Theta:
    """From x = b and X = 0."""
    start = Start(foe.b, torch.zeros_like(foe.b))
    loss = lr.SquaredError(foe.x_true)
    return improve_batch(foe.problem(), foe.b, loss, METHODS[name][0], start, Tolerances(state, adjoint)).gradient


@torch.no_grad()
def learnreg_lower(foe: FoeProblem, name: str, state: float) -> torch.Tensor:
    instance = foe.problem().instance(foe.b)
    error = foe.b.new_full((foe.b.shape[0],), state * foe.b[0].numel() ** 0.5)
    return run_state_solver(make_solver(METHODS[name][1], instance), instance, foe.b, error, None).x


def learnreg_contestants(foe: FoeProblem, reference: Reference, again: bool) -> Iterator[Contestant]:
    for name, target in OWN:
        found = learnreg_search(foe, reference, name, target) if again else OWN[name, target]
        if found is None:
            print(f"{name}: no settings of the grid reach {target:g}")
            continue
        settings = f"state {found[0]:.1e}, adjoint {found[1]:.1e}"
        run, lower = partial(learnreg_run, foe, name, *found), partial(learnreg_lower, foe, name, found[0])
        yield Contestant(name, target, settings, run, None if "interleaved" in name else lower)


def learnreg_search(foe: FoeProblem, reference: Reference, name: str, target: float) -> tuple[float, float] | None:
    evaluate = partial(learnreg_run, foe, name)
    if "interleaved" in name:
        return _loosest(evaluate, reference, target)
    adjoints = [target * share for share in ADJOINT_GRID]
    return cheapest(evaluate, _from_first(evaluate, reference, target), adjoints, reference, target)


def _loosest(evaluate: Evaluate, reference: Reference, target: float) -> tuple[float, float] | None:
    """The loosest adjoint accuracy that will do, for an iteration that needs no state accuracy beside it."""
    for share in TOGETHER_GRID:
        if reference.error(evaluate(STATE_GRID[0], target * share)) <= target:
            return STATE_GRID[0], target * share
    return None


def _from_first(evaluate: Evaluate, reference: Reference, target: float) -> list[float]:
    """The grid of state accuracies from the loosest one that meets the target with the tightest adjoint, by
    bisection."""
    low, high = 0, len(STATE_GRID) - 1
    while low < high:
        middle = (low + high) // 2
        if reference.error(evaluate(STATE_GRID[middle], target * ADJOINT_GRID[-1])) <= target:
            high = middle
        else:
            low = middle + 1
    return STATE_GRID[low:]


# ---- the others ------------------------------------------------------------------------------------------------------


def unrolled_run(foe: FoeProblem, descent: Descent, iterations: int) -> Theta:
    return unrolled_hypergradient(descent, foe.theta, foe.b, lambda x: upper_loss(x, foe.x_true), iterations)


def other_contestants(foe: FoeProblem, options: argparse.Namespace) -> Iterator[Contestant]:
    for target, (descent, iterations) in UNROLLED.items():
        settings = f"{iterations} iterations, step 1/{1 / descent.step:.0f}, momentum {descent.momentum:g}"
        yield Contestant("unrolled descent", target, settings, partial(unrolled_run, foe, descent, iterations))
    reason = peer.available(options.peers)
    if reason:
        print(f"skipped {peer.NAME}: {reason}")
        return
    published = peer.LearnedRegularizers(foe.theta, foe.b, foe.x_true, upper_loss)
    for target, (state, adjoint) in PEER.items():
        settings = f"nmAPG {state:.1e}, MINRES {adjoint:.1e}"
        run, lower = partial(published.hypergradient, state, adjoint), partial(published.lower_level, state)
        yield Contestant(f"{peer.NAME} (IFT)", target, settings, run, lower if target == TARGETS[0] else None)


def search_others(foe: FoeProblem, reference: Reference, options: argparse.Namespace) -> None:
    """Walk the grids of the others and print what ``UNROLLED`` and ``PEER`` should hold, and the smallest errors."""
    for descent in DESCENT_GRID:
        errors = {n: reference.error(unrolled_run(foe, descent, n)) for n in ITERATION_GRID}
        print(descent, {n: f"{e:.1e}" for n, e in errors.items()})
    if reason := peer.available(options.peers):
        print(f"skipped {peer.NAME}: {reason}")
        return
    published = peer.LearnedRegularizers(foe.theta, foe.b, foe.x_true, upper_loss)
    for target in TARGETS:
        found = cheapest(published.hypergradient, PEER_STATE_GRID, PEER_ADJOINT_GRID, reference, target)
        print(f"{peer.NAME}, {target:g}: {found}")
    tightest = reference.error(published.hypergradient(1e-9, 1e-7))
    jacobian_free = reference.error(published.hypergradient(1e-7, mode="JFB"))
    print(f"{peer.NAME}: smallest error {tightest:.1e} (IFT), {jacobian_free:.1e} (JFB)")


# ---- the table -------------------------------------------------------------------------------------------------------


Timed = dict[tuple[str, float, str], float]


def timings(contestants: list[Contestant], rounds: int) -> tuple[Timed, dict[tuple[str, float], Theta]]:
    """Median CPU seconds of whole runs and of lower-level solves, which take turns, and the last hypergradients."""
    gradients: dict[tuple[str, float], Theta] = {}

    def run(c: Contestant) -> None:
        gradients[c.name, c.target] = c.run()

    methods: dict[str, Callable[[], Any]] = {}
    for c in contestants:
        methods[f"{c.name}|{c.target}|total"] = partial(run, c)
        if c.lower is not None:
            methods[f"{c.name}|{c.target}|lower"] = c.lower
    seconds: Timed = {}
    for text, value in interleave(methods, rounds, warmup=0).items():
        name, target, part = text.split("|")
        seconds[name, float(target), part] = value
    return seconds, gradients


def rows_of(
    foe: FoeProblem, reference: Reference, contestants: list[Contestant], baselines: list[Contestant], rounds: int
) -> list[dict[str, Any]]:
    """One row per contestant. ``baselines`` are timed beside them, only to relate the others' times to theirs."""
    seconds, gradients = timings([*baselines, *contestants], rounds)
    rows = []
    for c in contestants:
        total, lower = seconds[c.name, c.target, "total"], seconds.get((c.name, c.target, "lower"))
        fastest = seconds.get((FASTEST, c.target, "total"))
        row: dict[str, Any] = {"target": f"{c.target:g}", "method": c.name, "settings": c.settings}
        error = reference.error(gradients[c.name, c.target])
        row["true error"] = f"{error:.1e}" + ("" if error <= c.target else " (missed)")
        row |= {"CPU s": total, "lower level alone, s": lower}
        row |= {"total / lower level": None if lower is None else total / lower}
        row |= {"times Implicit": None if fastest is None else total / fastest}
        if c.target == TARGETS[0]:
            row["peak memory, responses"] = peak_bytes(c.run) / foe.response_bytes
        rows.append(row)
    return rows


def tracked(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of learnreg's rows, and of the others' times to Implicit's, inverted so that smaller is better."""
    figures = {}
    for row in rows:
        name, own = f"{row['method']} {row['target']}", row["method"].startswith("learnreg")
        if own and row["total / lower level"]:
            figures[f"{name}: total / lower level"] = row["total / lower level"]
        if row["times Implicit"]:
            figures[f"{name}: times Implicit"] = row["times Implicit"] if own else 1.0 / row["times Implicit"]
    return figures


def main() -> None:
    peers = {"default": None, "help": "folder with the peers' checkouts"}
    again = {"choices": ["learnreg", "others"], "help": "walk the grids of settings again"}
    small = {"foe_problem.SIDE": 24, "foe_problem.FILTERS": 6}
    options = arguments(__doc__ or "", quick=small, data=DATA_OPTION, peers=peers, search=again)
    foe = load(options.data)
    reference = foe.reference()
    if options.search == "others":
        search_others(foe, reference, options)
        return
    own, others = (
        list(learnreg_contestants(foe, reference, options.search == "learnreg")),
        list(other_contestants(foe, options)),
    )
    rows = rows_of(foe, reference, own, [], min(options.rounds, 3))
    rows += rows_of(foe, reference, others, [replace(c, lower=None) for c in own if c.name == FASTEST], 1)
    rows.sort(key=lambda row: -float(row["target"]))
    table = Table(
        "foe_hypergradient",
        "Hypergradient of a Field of Experts",
        "python benchmarks/foe_hypergradient.py --data DIR --peers DIR --record",
        f"Four 96x96 images ({foe.source}), sigma 25/255, 48 filters of 7x7 with smoothing 0.002, condition number "
        f"{foe.condition(reference.x.float()):.0f}, batch mean of ½‖x - x_true‖², float32, from x = b. The true error "
        "is ‖g - reference‖ / ‖reference‖ over all parameters; the float64 reference solves both equations to relative "
        f"residuals of {reference.residuals[0]:.0e} and {reference.residuals[1]:.0e}. One response tensor has "
        f"{foe.response_bytes / 1e6:.1f} MB.",
        rows,
        order=20,
        notes=[
            "learnreg: state (certified root-mean-square error) and adjoint accuracy (relative residual) from grids of "
            "10^(-k/4), cheapest pair whose true error meets the target; interleaved: one accuracy stops both.",
            "Unrolled: accelerated gradients in plain torch, reverse mode through all iterations; grid: steps 1/100, "
            "1/140, 1/190, momentum 0, 0.8, 0.85, 0.9, iterations 2^(k/4). Steps of 1/100 and momentum 0 were tried up "
            "to 181 and 152 iterations and miss both targets; the rest of the grid was walked in part.",
            f"{peer.NAME}: its nmAPG and MINRES with its stopping rules, tolerances 10^(-k/2), along the edge of what "
            "meets the target. Its Jacobian-free mode has an error of 0.99 at nmAPG tolerances of 1e-5 and 1e-7.",
        ],
    )
    table.tracked = tracked(table.rows)
    finish(table, options)


if __name__ == "__main__":
    main()
