"""Total-variation denoising of one 512x512 image: learnreg against ODL, deepinv and pyproximal.

learnreg smooths total variation, the peers do not. So there are two targets: each method's own minimiser, and the
non-smooth one for all, which learnreg approaches with a small smoothing. CPU seconds count until the true
root-mean-square error is at most 1e-4; how many iterations that takes is found beforehand.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Table, arguments, finish, interleave
from peers import deepinv_tv, odl_tv, pyproximal_tv
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.gradient import Gradient
from learnreg.datasets.files.images import read_image
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation
from learnreg.solvers.choice import SolverName

SIGMA = 25 / 255
WEIGHT = 0.0666
ACCURACY = 1e-4
SMOOTHING = 1e-3
"""learnreg's default."""
SMALL_SMOOTHING = 5e-5
"""With it the smoothed minimiser is about 6e-5 away from the non-smooth one."""
REFERENCE_STEPS = ((0.1, 60), (0.03, 140), (0.01, 200), (0.005, 700))
"""Primal steps of the reference run and how many of each: long steps first, short ones for the tail."""
MOST_STEPS = 3000
MOST_ROUNDS = 3
"""Repetitions of each timing, at most, lest the script take longer than a few minutes."""
GROWTH = 1.05
"""Numbers of iterations are found to this factor."""
CROP = 512
DTYPES = (torch.float32, torch.float64)
SOLVERS: tuple[SolverName, ...] = ("auto", "pdhg", "lbfgs")
Denoise = Callable[..., np.ndarray]


@dataclass
class Run:
    """One row: what is called, for how many iterations, and the result's true error. ``target``: the minimiser it is
    measured against."""

    method: str
    settings: str
    dtype: torch.dtype
    target: str
    iterations: int
    error: float
    call: Callable[[], Any]
    certified: float | None = None

    @property
    def key(self) -> str:
        return f"{self.method}, {self.settings}, {self.dtype}"


class Reached(Exception):  # noqa: N818
    """Ends a peer's iteration from its callback."""


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"CROP": 32, "REFERENCE_STEPS": ((0.1, 60), (0.01, 300)), "ACCURACY": 1e-3, "FIRST_CALL": "print(0)"},
        data={"default": os.environ.get("LEARNREG_DATA"), "help": "directory with Set12/08.png (LEARNREG_DATA)"},
        camera={"action": "store_true", "help": "use scikit-image's camera instead"},
    )
    clean, name = load_image(options)
    if clean is None:
        print(f"skipped: {name}")
        return
    clean = clean[..., :CROP, :CROP]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = clean + SIGMA * noise
    progress("references")
    smooth, slack_smooth = smoothed_reference(b)
    sharp, slack_sharp = sharp_reference(b)
    gap = rms(lr.solve(denoising(b, SMALL_SMOOTHING), b, tolerance=2e-6, solver="pdhg").x, sharp)
    progress("iterations of learnreg")
    own = learnreg_runs(b, SMOOTHING, smooth, "own", certify=True)
    same = learnreg_runs(b, SMALL_SMOOTHING, sharp, "non-smooth", certify=False)
    progress("settings and iterations of the peers")
    peers, missing = peer_runs(b, sharp)
    runs = own + same + peers
    progress("timing")
    seconds = interleave({run.key: run.call for run in runs}, min(options.rounds, MOST_ROUNDS), warmup=0)
    first, again = first_calls()
    notes = [
        "Timings are of calls after the first one. A process's first `solve` in float32, import of numba included, "
        f"takes {first:.1f} CPU seconds where kernels must be compiled, {again:.2f} where they are on disk.",
        f"References, error at most: smoothed {slack_smooth:.1g} (certified by learnreg), non-smooth {slack_sharp:.1g} "
        f"(its duality gap). They are {rms(smooth, sharp):.2g} apart; with smoothing {SMALL_SMOOTHING:g}, {gap:.2g}.",
        "The last two columns divide by `solve(solver='auto')` in the same dtype, stopped at a true error of 1e-4: "
        "from its own minimiser, and from the non-smooth one.",
        "tolerance=1e-4: the call as users make it; its seconds include certifying the error, which no peer does.",
        f"Grids of the peers, the setting with the fewest iterations in float32 taken: tau in {odl_tv.TAUS}, "
        f"sigma = 0.99/(8 tau) (deepinv: 1/(8 tau)); ODL with gamma_primal in {odl_tv.GAMMAS} (0: constant steps); "
        f"deepinv with rho in {deepinv_tv.RHOS}, 1.99 its default, as is tau 0.01. pyproximal's TV.prox has no step "
        "size and computes in float64 whatever its input.",
        *(f"Missing: {reason}" for reason in missing),
    ]
    finish(table(runs, seconds, notes, name, clean), options)


def progress(stage: str) -> None:
    print(f"{time.process_time():6.1f} s: {stage}", file=sys.stderr, flush=True)


def load_image(options: argparse.Namespace) -> tuple[Tensor | None, str]:
    """The clean image (1, 1, height, width) in float64 and its name, or None and the reason."""
    if options.camera:
        from skimage.data import camera

        return torch.from_numpy(camera() / 255.0)[None, None], "scikit-image's camera"
    path = None if options.data is None else Path(options.data) / "Set12" / "08.png"
    if path is None or not path.exists():
        return None, f"no image {path or 'directory given'}; pass --data DIR, set LEARNREG_DATA, or use --camera."
    return read_image(path)[None].double(), "Set12/08"


def rms(x: Tensor, reference: Tensor) -> float:
    return float((x.double().reshape(reference.shape) - reference).square().mean().sqrt())


FIRST_CALL = """
import time, torch, learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation
problem, b = lr.LowerLevelProblem(Identity((1, 512, 512)), TotalVariation(0.0666)), torch.rand(1, 1, 512, 512)
began = time.process_time()
lr.solve(problem, b, tolerance=1e-4)
print(time.process_time() - began)
"""


def first_calls() -> tuple[float, float]:
    """CPU seconds of the first solve in a process, without and with compiled kernels on disk."""
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
            command = [sys.executable, "-c", FIRST_CALL]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.split()[-1]))
    return seconds[0], seconds[1]


# ---- references ------------------------------------------------------------------------------------------------------


def denoising(b: Tensor, smoothing: float) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Identity(tuple(b.shape[1:])), TotalVariation(WEIGHT, smoothing))


def smoothed_reference(b: Tensor) -> tuple[Tensor, float]:
    """The smoothed minimiser and its certified error."""
    solution = lr.solve(denoising(b, SMOOTHING), b, tolerance=1e-8, solver="pdhg")
    return solution.x, float(solution.error_bound)


def sharp_reference(b: Tensor) -> tuple[Tensor, float]:
    """The non-smooth minimiser by over-relaxed PDHG, and the error bound sqrt(2 gap/n) of its duality gap."""
    D = Gradient(tuple(b.shape[1:]))
    x, y = b.clone(), torch.zeros(1, *D.range_shape, dtype=b.dtype)
    for tau, steps in REFERENCE_STEPS:
        for _ in range(steps):
            x_hat = (x - tau * (D.adjoint(y) - b)) / (1.0 + tau)
            y_hat = y + D(2.0 * x_hat - x) / (8.0 * tau)
            y_hat *= WEIGHT / length(y_hat).clamp_min(WEIGHT)
            x.lerp_(x_hat, 1.9)
            y.lerp_(y_hat, 1.9)
    x = b - D.adjoint(y_hat)
    response = D(x)
    gap = (WEIGHT * length(response) - (y_hat * response).sum(1, keepdim=True)).sum()
    return x, float((2.0 * gap.clamp_min(0.0) / b.numel()).sqrt())


def length(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=1, keepdim=True)


# ---- learnreg --------------------------------------------------------------------------------------------------------


def learnreg_runs(b: Tensor, smoothing: float, reference: Tensor, target: str, certify: bool) -> list[Run]:
    """Rows of ``lr.solve``: stopped at the true accuracy, and (``certify``) at the certified one. A solver that "auto"
    already is gets no row of its own."""
    problem, runs = denoising(b, smoothing), []
    automatic = ""
    for solver in SOLVERS:
        if solver == automatic:
            continue
        guess = 16
        for dtype in DTYPES:
            data = b.to(dtype)

            def stopped(steps: int, data: Tensor = data, solver: SolverName = solver) -> lr.Solution:
                return lr.solve(problem, data, tolerance=1e-12, max_steps=steps, solver=solver)

            steps = fewest_steps(lambda n, run=stopped: rms(run(n).x, reference), guess, exact=dtype == torch.float32)
            guess, solution = steps, stopped(steps)
            if solver == "auto":
                automatic = solution.solver
            label = f"learnreg {solver} ({solution.solver})" if solver == "auto" else f"learnreg {solver}"
            settings, error = f"smoothing {smoothing:g}, max_steps", rms(solution.x, reference)
            call = lambda run=stopped, n=steps: run(n)  # noqa: E731
            runs.append(Run(label, settings, dtype, target, steps, error, call))
            progress(f"{label}, {settings} {steps}, {dtype}")
            if certify:
                runs.append(certified_run(problem, data, solver, label, smoothing, reference, target))
    return runs


def certified_run(
    problem: lr.LowerLevelProblem,
    data: Tensor,
    solver: SolverName,
    label: str,
    smoothing: float,
    reference: Tensor,
    target: str,
) -> Run:
    def call() -> lr.Solution:
        return lr.solve(problem, data, tolerance=ACCURACY, solver=solver)

    solution = call()
    bound = float(solution.error_bound)
    settings, error = f"smoothing {smoothing:g}, tolerance=1e-4", rms(solution.x, reference)
    return Run(label, settings, data.dtype, target, solution.steps, error, call, bound)


def fewest_steps(error: Callable[[int], float], guess: int, exact: bool) -> int:
    """Fewest steps with an error of at most ACCURACY, to the factor GROWTH; without ``exact`` the guess, if it does."""
    low, high = 0, guess
    while error(high) > ACCURACY:
        if high >= MOST_STEPS:
            raise RuntimeError(f"error {error(high):.2g} after {high} steps")
        low, high = high, min(MOST_STEPS, 2 * high if exact else int(GROWTH * high) + 1)
    while exact and high > GROWTH * low + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= ACCURACY else (middle, high)
    return high


# ---- peers -----------------------------------------------------------------------------------------------------------


def peer_runs(b: Tensor, reference: Tensor) -> tuple[list[Run], list[str]]:
    """Rows of the peers that are installed, each with its best step size, and why the others are missing."""
    runs: list[Run] = []
    missing = [reason for peer in (odl_tv, deepinv_tv, pyproximal_tv) if (reason := peer.available())]
    truth = reference[0, 0].numpy()
    if not odl_tv.available():
        grid = [{"tau": tau, "gamma": gamma} for gamma in odl_tv.GAMMAS for tau in odl_tv.TAUS]
        runs += both_dtypes("ODL pdhg", b, truth, odl_tv.denoise, *best_setting(b, truth, odl_tv.denoise, grid))
    if not deepinv_tv.available():
        grid = [{"tau": tau, "rho": rho} for rho in deepinv_tv.RHOS for tau in deepinv_tv.TAUS]
        best = best_setting(b, truth, deepinv_tv.denoise, grid)
        runs += both_dtypes("deepinv TVDenoiser", b, truth, deepinv_tv.denoise, *best)
    if not pyproximal_tv.available():
        grid = [{"tau": tau} for tau in pyproximal_tv.TAUS]
        best = best_setting(b, truth, pyproximal_tv.denoise_primal_dual, grid)
        runs += both_dtypes("pyproximal PrimalDual", b, truth, pyproximal_tv.denoise_primal_dual, *best)
        # its first callback sees x = b, before any step
        steps = first_reached(b.double(), truth, pyproximal_tv.denoise_fista, MOST_STEPS, {}) - 1
        runs += both_dtypes("pyproximal TV.prox", b, truth, pyproximal_tv.denoise_fista, {}, steps)[-1:]
    return runs, missing


def best_setting(
    b: Tensor, truth: np.ndarray, denoise: Denoise, grid: list[dict[str, float]]
) -> tuple[dict[str, float], int]:
    """The setting that needs the fewest iterations in float32, and how many."""
    best: dict[str, float] = {}
    fewest = MOST_STEPS
    # the usual winner first: a setting is given up once it is behind
    for setting in sorted(grid, key=lambda setting: abs(np.log(setting["tau"] / 0.1))):
        steps = first_reached(b.float(), truth, denoise, fewest, setting)
        if steps < fewest:
            best, fewest = setting, steps
    if not best:
        raise RuntimeError(f"{denoise.__module__}: error above {ACCURACY:g} after {MOST_STEPS} iterations")
    return best, fewest


def first_reached(b: Tensor, truth: np.ndarray, denoise: Denoise, limit: int, settings: dict[str, float]) -> int:
    """How often the callback is called until it sees an error of at most ACCURACY, or ``limit``."""
    count = 0

    def watch(x: np.ndarray) -> None:
        nonlocal count
        count += 1
        if rms(torch.as_tensor(x), torch.from_numpy(truth)) <= ACCURACY:
            raise Reached

    try:
        denoise(b[0, 0].numpy(), WEIGHT, limit, **settings, callback=watch)
    except Reached:
        return count
    return limit


def both_dtypes(
    method: str, b: Tensor, truth: np.ndarray, denoise: Denoise, settings: dict[str, float], steps: int
) -> list[Run]:
    """A row per dtype; float64 takes the iterations of float32, or more where they do not suffice."""
    runs = []
    for dtype in DTYPES:
        data = b[0, 0].to(dtype).numpy()

        def error(n: int, data: np.ndarray = data) -> float:
            return rms(torch.as_tensor(denoise(data, WEIGHT, n, **settings)), torch.from_numpy(truth))

        steps = fewest_steps(error, steps, exact=False)
        call = lambda data=data, n=steps: denoise(data, WEIGHT, n, **settings)  # noqa: E731
        text = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        runs.append(Run(method, text, dtype, "non-smooth", steps, error(steps), call))
    return runs


# ---- the table -------------------------------------------------------------------------------------------------------


def table(runs: list[Run], seconds: dict[str, float], notes: list[str], name: str, clean: Tensor) -> Table:
    height, width = clean.shape[2:]
    result = Table(
        name="total_variation",
        title=f"Total-variation denoising of a {height}x{width} image",
        command="python benchmarks/total_variation.py --data DIR --record",
        text=f"{name} in [0, 1], noise of standard deviation 25/255 (seeded), ½‖x - b‖² + {WEIGHT} TV(x), isotropic, "
        "forward differences, from x = b. CPU seconds until the true root-mean-square error is at most 1e-4: from the "
        f"method's own minimiser (learnreg smooths by {SMOOTHING:g}), or from the non-smooth one, the target of all "
        f"(learnreg smooths by {SMALL_SMOOTHING:g}).",
        notes=notes,
        order=20,
    )
    base = {(r.dtype, r.target): seconds[r.key] for r in runs if _is_auto(r)}
    for r in runs:
        spent = seconds[r.key]
        result.rows.append(
            {
                "method": r.method,
                "settings": r.settings,
                "dtype": _dtype_name(r),
                "minimiser": "own (smoothed)" if r.target == "own" else r.target,
                "iterations": r.iterations,
                "CPU seconds": spent,
                "true error": r.error,
                "certified": r.certified,
                "/ auto, own": spent / base[r.dtype, "own"],
                "/ auto, non-smooth": spent / base[r.dtype, "non-smooth"],
            }
        )
    result.tracked = tracked(runs, seconds)
    return result


def tracked(runs: list[Run], seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of learnreg over those of each peer's fastest row of that dtype, and learnreg's iterations."""
    figures: dict[str, float] = {}
    peers = sorted({r.method.split()[0] for r in runs} - {"learnreg"})
    for r in runs:
        if not r.method.startswith("learnreg"):
            continue
        kind = f"{r.method.split()[1]} {_dtype_name(r)} {r.target}" + (" certified" if r.certified is not None else "")
        figures[f"iterations {kind}"] = float(r.iterations)
        for peer in peers:
            fastest = min(seconds[p.key] for p in runs if p.method.startswith(peer) and p.dtype == r.dtype)
            figures[f"seconds {kind} / {peer}"] = seconds[r.key] / fastest
    return figures


def _is_auto(run: Run) -> bool:
    return run.method.startswith("learnreg auto") and run.certified is None


def _dtype_name(run: Run) -> str:
    return str(run.dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
