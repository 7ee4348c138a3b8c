"""The lifted primal-dual method against subgradient and accelerated gradient methods on one ReLU network.

    python benchmarks/lifted_network.py --record

All minimise ½‖x - b‖² + R(x), R the ReLU network. An application is a pass through all convolutions W and U of the
network, or through their transposes; objectives at iterates are looked at without being counted. Step sizes,
smoothings and deltas of every method are those of a grid with the least objective at each budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.network_layers import mix
from learnreg.operators import Identity
from learnreg.regularizers import InputConvexNetwork
from learnreg.solvers import PDHG, ProjectedLBFGS
from learnreg.solvers.solve import initial_point

SIDE, FEATURES, LAYERS, SIGMA = 24, 8, 2, 25.0 / 255.0
BUDGETS = (50, 100, 200, 500, 1000)
DELTAS = (1.0, 0.1, 1e-2)
Path = Iterator[Tensor]
"""Iterates, one for every two applications."""


class Problem:
    """A piecewise constant image with noise, and a network away from its start."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = InputConvexNetwork(1, FEATURES, LAYERS, 5, "lifted", generator=generator).double()
        with torch.no_grad():
            for p in self.network.parameters():
                p.add_(0.1 * p.abs().mean() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        flat = torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64)
        noise = torch.randn(1, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
        self.b = torch.nn.functional.interpolate(flat, (SIDE, SIDE)) + SIGMA * noise
        self.numbers = self.network.network()

    def value(self, x: Tensor) -> Tensor:
        """The objective with max(t, 0); its derivative by autograd is a subgradient."""
        n, z = self.numbers, x.new_zeros(())
        for l in range(n.layers):
            u = torch.nn.functional.conv2d(x, n.filters[l][:, None], n.biases[l], padding="same")
            z = (u if l == 0 else u + mix(z, n.mixing[l - 1])).clamp_min(0.0)
        return 0.5 * (x - self.b).square().sum() + (n.weights[:, None, None] * z).sum()

    def lifted(self, share: float) -> lr.LowerLevelProblem:
        """With both deltas that share of the default."""
        delta = (share * self.network.delta[0], share * self.network.delta[1])
        R = InputConvexNetwork(1, FEATURES, LAYERS, 5, "lifted", delta=delta).double()
        R.load_state_dict(self.network.state_dict())
        return lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R)

    def smooth(self, smoothing: float) -> lr.LowerLevelProblem:
        R = InputConvexNetwork(1, FEATURES, LAYERS, 5, smoothing=smoothing).double()
        R.load_state_dict(self.network.state_dict(), strict=False)
        return lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R)


def gradient_of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]


def subgradient(problem: Problem, step: float, power: float) -> Path:
    x, k = problem.b, 1
    while True:
        x = x - step / k**power * gradient_of(problem.value, x)
        yield x
        k += 1


def accelerated(problem: Problem, smoothing: float, lipschitz: float) -> Path:
    """Nesterov's method for the smooth form, strongly convex with modulus 1."""
    smooth, root = problem.smooth(smoothing), lipschitz**-0.5
    x = y = problem.b
    while True:
        following = y - gradient_of(lambda u: smooth.energy(u, problem.b), y) / lipschitz
        x, y = following, following + (1 - root) / (1 + root) * (following - x)
        yield x


def primal_dual(problem: Problem, share: float) -> Path:
    instance, solver = problem.lifted(share).instance(problem.b), PDHG()
    state = solver.init(instance, initial_point(instance, problem.b))
    yield problem.b  # its features took three passes, and a fourth is made below
    yield problem.b
    while True:
        if state.steps and state.steps % solver.check_every == 0:
            state = solver.adapt(instance, state)
        state = solver.step(instance, state)
        yield state.x_hat[:, :1]


def quasi_newton(problem: Problem, share: float) -> Path:
    instance, solver = problem.lifted(share).instance(problem.b), ProjectedLBFGS()
    state = solver.init(instance, initial_point(instance, problem.b))
    yield problem.b  # its features took three passes, and a fourth is made below
    yield problem.b
    while True:
        state = solver.adapt(instance, solver.step(instance, state))
        yield state.point.x[:, :1]


@torch.no_grad()
def lowest(problem: Problem, path: Path) -> list[float]:
    """The least objective so far at each budget."""
    found, best, used = [], float(problem.value(problem.b)), 0
    for budget in BUDGETS:
        while used < budget:
            value = float(problem.value(next(path)))
            used, best = used + 2, min(best, value)
        found.append(best)
    return found


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__ or "", quick={"SIDE": 12, "BUDGETS": (10, 20), "DELTAS": (1.0,)})
    problem = Problem()
    grids = {
        "subgradient method": [subgradient(problem, s, p) for p in (0.5, 1.0) for s in (0.1, 0.3, 1.0)],
        "accelerated gradient, smooth form": [
            accelerated(problem, v, lipschitz) for v in (3e-3, 1e-3, 1e-4) for lipschitz in (10.0, 50.0, 250.0)
        ],
        "PDHG, lifted": [primal_dual(problem, share) for share in DELTAS],
        "L-BFGS, lifted": [quasi_newton(problem, share) for share in DELTAS],
    }
    curves = {name: [lowest(problem, path) for path in paths] for name, paths in grids.items()}
    long_run = itertools.islice(subgradient(problem, 1.0, 1.0), 20 * BUDGETS[-1])
    least = min(*(float(problem.value(x)) for x in long_run), *(c[-1] for runs in curves.values() for c in runs))
    initial = float(problem.value(problem.b)) - least
    rows = []
    for name, runs in curves.items():
        best = [min(r[i] for r in runs) for i in range(len(BUDGETS))]
        gaps = {f"{n} applications": f"{(v - least) / initial:.1e}" for n, v in zip(BUDGETS, best, strict=True)}
        rows.append({"method": name, "runs": len(runs), **gaps})
    table = Table(
        "lifted_network",
        "A ReLU network: lifted against subgradient methods",
        "python benchmarks/lifted_network.py --record",
        f"½‖x - b‖² + R(x) for an image of {SIDE}² pixels with noise 25/255 and a ReLU network of {LAYERS} layers with "
        f"{FEATURES} features, 5x5 filters, float64: gap of this objective to the least one known (of all runs and "
        f"{20 * BUDGETS[-1]} steps of the subgradient method), over that at x = b, after so many passes through all "
        "convolutions of the network or their transposes. At each budget the best run of a grid of step sizes "
        "(subgradients: c/√k and c/k), of smoothings and Lipschitz constants (accelerated gradient), or of deltas "
        "(lifted: 1, 1/10 and 1/100 of the default).",
        rows,
        notes=[
            "The data term makes the problem strongly convex, where subgradient steps c/k do well. The "
            "lifted problem is much worse conditioned than the smooth form; it has proximal maps instead, and its "
            "certificates need no smoothness."
        ],
        order=22,
    )
    finish(table, options)


if __name__ == "__main__":
    main()
