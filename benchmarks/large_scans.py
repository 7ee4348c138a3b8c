"""Memory and seconds of large scans: with a matrix, without, and with ASTRA's projector on the CPU; cone beams.

    python benchmarks/large_scans.py --record

Every measurement runs in a process of its own, so that peak memory is its own; the cache of matrices is turned off.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import ROOT, Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.datasets import RelativeNoise, ellipse_phantom
from learnreg.operators import ConeBeam3D, ParallelBeam2D
from learnreg.regularizers import TotalVariation

SCANS: tuple[tuple[int, int], ...] = ((512, 360), (1024, 720), (2048, 1440))
CONES: tuple[tuple[int, int], ...] = ((128, 90), (256, 60))
LARGEST_MATRIX, LARGEST_SOLVE, MOST_UNKNOWNS = 1024, 512, 2**21
MEMORY = 4 * 10**9
"""Bytes of address space that projectors without a matrix get. MOST_UNKNOWNS: of scans whose norm is bounded here."""

WEIGHT, SMOOTHING, RIDGE, NOISE, TOLERANCE = 1e-5, 1e-3, 1e-4, 0.01, 1e-3


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e6 if sys.platform == "darwin" else 1e3)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


@torch.no_grad()
def measure_operator(build: Callable[[int], Any], n: int, small: int, x: Tensor) -> dict[str, Any]:
    """Constructor, forward, adjoint in float32, the bound of the norm, and the adjoint identity in float64."""
    warm = build(small)
    for dtype in (torch.float32, torch.float64):  # imports, and compiling
        warm.adjoint(warm(torch.ones(1, *warm.domain_shape, dtype=dtype)))
    before = peak_megabytes()
    setup, A = timed(lambda: build(n))
    forward, y = timed(lambda: A(x))
    adjoint, back = timed(lambda: A.adjoint(y))
    peak = peak_megabytes()
    norm, bound = timed(A.norm_bound) if x.numel() <= MOST_UNKNOWNS else (None, None)
    identity = abs(float((y.double() * y).sum() - (back.double() * x).sum())) / float((y.double() * y).sum())
    return {
        "start, MB": before,
        "setup, s": setup,
        "forward, s": forward,
        "adjoint, s": adjoint,
        "peak, MB": peak,
        "norm, s": norm,
        "norm": bound,
        "identity, float32": f"{identity:.0e}",
    }


def measure_scan(backend: Any, n: int, views: int) -> dict[str, Any]:
    if backend == "matrix-free":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def build(side: int) -> ParallelBeam2D:
        return ParallelBeam2D(side, views if side == n else 8, backend=backend)

    found = measure_operator(build, n, 16, ellipse_phantom(0, n)[None])
    return found | (measure_solve(backend, n, views) if n <= LARGEST_SOLVE else {})


def measure_solve(backend: Any, n: int, views: int) -> dict[str, Any]:
    """Total variation of a noisy phantom to a certified accuracy, from a cold start; without the bound of the norm."""
    A, x_true = ParallelBeam2D(n, views, backend=backend), ellipse_phantom(0, n)[None]
    with torch.no_grad():
        b = RelativeNoise(NOISE).apply(A(x_true)[0], torch.Generator().manual_seed(0))[None]
    A.norm_bound()
    problem = lr.LowerLevelProblem(A, TotalVariation(WEIGHT, SMOOTHING), ridge=RIDGE, constraint=lr.Nonnegative())
    seconds, solution = timed(lambda: lr.solve(problem, b, TOLERANCE))
    return {
        "solve, s": seconds,
        "applications": solution.operator_applications,
        "bound of x": float(solution.error_bound[0]),
        "solve, peak MB": peak_megabytes(),
    }


def measure_cone(n: int, views: int) -> dict[str, Any]:
    side = (torch.arange(n) + 0.5) / n - 0.5
    ball = (side.square() + side[:, None].square() + side[:, None, None].square() < 0.16).float()
    return measure_operator(lambda side: ConeBeam3D(side, views if side == n else 4), n, 8, ball[None, None])


def measure_astra(n: int, views: int) -> dict[str, Any]:
    """ASTRA's projector on the CPU, with the same rays and kernel, without a matrix."""
    astra, A = importlib.import_module("astra"), ParallelBeam2D(8, views, backend="matrix-free")
    detectors = ParallelBeam2D(n, 1, backend="matrix-free").geometry.detectors
    scan = astra.create_proj_geom("parallel", 1.0, detectors, np.array(A.geometry.angles))
    image, volume = ellipse_phantom(0, n)[0].numpy(), astra.create_vol_geom(n, n)
    before = peak_megabytes()
    setup, projector = timed(lambda: astra.create_projector("linear", scan, volume))
    forward, (_, sinogram) = timed(lambda: astra.create_sino(image, projector))
    adjoint, _ = timed(lambda: astra.create_backprojection(sinogram, projector))
    times = {"setup, s": setup, "forward, s": forward, "adjoint, s": adjoint}
    return {"start, MB": before, **times, "peak, MB": peak_megabytes()}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "scan": measure_scan,
    "cone": measure_cone,
    "astra": measure_astra,
}


def in_process(*task: str | int) -> dict[str, Any]:
    """The figures of a task from a process of its own, which runs this script with the task as its argument."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    environment = {**os.environ, "LEARNREG_CACHE": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(task, figures, file=sys.stderr, flush=True)
    return figures


def rows() -> list[dict[str, Any]]:
    found = []
    for n, views in SCANS:
        tasks: dict[str, tuple[str | int, ...]] = {"without a matrix": ("scan", "matrix-free", n, views)}
        if importlib.util.find_spec("astra") is not None:
            if n <= LARGEST_MATRIX:
                tasks["matrix"] = ("scan", "matrix", n, views)
            tasks["ASTRA, linear, CPU"] = ("astra", n, views)
        for name, task in tasks.items():
            found.append({"scan": f"parallel {n}², {views} views", "projector": name, **in_process(*task)})
    for n, views in CONES:
        scan = f"cone {n}³, {views} views of {ConeBeam3D(n, 1).range_shape[-1]}²"
        found.append({"scan": scan, "projector": "without a matrix", **in_process("cone", n, views)})
    return found


def main() -> None:
    small = {"SCANS": ((24, 12),), "CONES": ((8, 6),)}
    options = arguments(__doc__ or "", quick=small, task={"default": "", "help": "what a process of its own measures"})
    if options.task:
        kind, *rest = json.loads(options.task)
        print(json.dumps(MEASURES[kind](*rest)))
        return
    table = Table(
        "large_scans",
        "Large scans",
        "python benchmarks/large_scans.py --record",
        "CPU seconds of one thread, one image in float32: the constructor (*setup*; the matrix is built by ASTRA, not "
        "read from the cache), A x, A^T y. *peak* is the resident set of the process after these, *start* before them, "
        "with Python, torch and numba; *norm* the time of the rigorous bound. The solve is of a noisy phantom (1 % "
        f"noise, x >= 0, ridge {RIDGE:g}, total variation {WEIGHT:g}) to a certified root-mean-square error of "
        f"{TOLERANCE:g} from a cold start, up to {LARGEST_SOLVE}². *identity*: relative difference of <A x, A x> and "
        f"<x, A^T A x> in float32. Scans without a matrix run within {MEMORY / 1e9:g} GB of address space. Matrices "
        "beyond 1024² are not built: 2048² would take 22 GB.",
        rows(),
        order=42,
    )
    for row in table.rows:
        name = f"{row['scan']}, {row['projector']}"
        table.tracked[f"peak MB beyond the start, {name}"] = row["peak, MB"] - row["start, MB"]
        if "applications" in row:
            table.tracked[f"applications, {name}"] = row["applications"]
    finish(table, options)


if __name__ == "__main__":
    main()
