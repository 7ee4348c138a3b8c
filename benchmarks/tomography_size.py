"""Memory and seconds of a reconstruction and of a hypergradient in computed tomography, against the size of the scan.

    python benchmarks/tomography_size.py --record

Every row runs in processes of its own, so that peak memory is its own; matrices come from a temporary cache that the
first of these processes fills.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish

import learnreg as lr
from learnreg.datasets import RelativeNoise, ellipse_phantom
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation

SCANS: tuple[tuple[int, int], ...] = ((128, 60), (256, 60), (512, 360))
LARGE = (2048, 1440)
REGULARIZERS = ("FieldsOfExperts", "TotalVariation")
WEIGHT, SMOOTHING, RIDGE, NOISE = 3e-5, 1e-2, 1e-4, 0.01
STATE, GRADIENT = 1e-3, 0.1


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e6 if sys.platform == "darwin" else 1e3)


def new_regularizer(name: str) -> Regularizer:
    if name == "TotalVariation":
        return TotalVariation(WEIGHT / 3, 1e-3)
    return FieldsOfExperts(24, 5, lr.PseudoHuber(SMOOTHING, WEIGHT), generator=torch.Generator().manual_seed(0))


def measure_build(n: int, angles: int) -> dict[str, Any]:
    """Building the matrix, without a cache: seconds, peak memory of the process, bytes kept, and stored entries."""
    before, began = peak_megabytes(), time.process_time()
    A = ParallelBeam2D(n, angles)
    seconds = time.process_time() - began
    return {
        "seconds": seconds,
        "before": before,
        "peak": peak_megabytes(),
        "bytes": A.nbytes,
        "entries": A.engine.entries,  # type: ignore[union-attr]
    }


def measure_solve(n: int, angles: int, name: str) -> dict[str, Any]:
    """One reconstruction, then one hypergradient, of a noisy phantom."""
    A = ParallelBeam2D(n, angles)
    x_true = ellipse_phantom(0, n)[None]
    with torch.no_grad():
        b = RelativeNoise(NOISE).apply(A(x_true)[0], torch.Generator().manual_seed(0))[None]
    problem = lr.LowerLevelProblem(A, new_regularizer(name), ridge=RIDGE, constraint=lr.Nonnegative())
    A.norm_bound()
    loaded, began = peak_megabytes(), time.process_time()
    solution = lr.solve(problem, b, STATE)
    solved, peak = time.process_time(), peak_megabytes()
    result = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=GRADIENT)
    return {
        "loaded": loaded,
        "solve": solved - began,
        "solve peak": peak,
        "error bound": float(solution.error_bound[0]),
        "solve status": solution.status.name,
        "steps": solution.steps,
        "gradient": time.process_time() - solved,
        "gradient peak": peak_megabytes(),
        "relative bound": result.error_bound / max(result.norm, 1e-300),
        "bound kind": result.bound_kind,
        "gradient status": result.status.name,
        "applications": result.operator_applications,
    }


def in_process(*task: str | int) -> dict[str, Any]:
    """The figures of a task from a process of its own, which runs this script with the task as its argument."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(task, figures, file=sys.stderr, flush=True)
    return figures


def rows_of(n: int, angles: int, build: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in REGULARIZERS:
        found = in_process("solve", n, angles, name)
        rows.append(
            {
                "scan": f"{n}², {angles} views",
                "regularizer": "24 filters 5x5" if name == "FieldsOfExperts" else "total variation",
                "matrix, MB": build["bytes"] / 1e6,
                "build, s": build["seconds"],
                "build, peak MB": build["peak"],
                "solve, s": found["solve"],
                "solve, steps": found["steps"],
                "bound of x": found["error bound"],
                "solve, peak MB": found["solve peak"],
                "gradient, s": found["gradient"],
                "applications": found["applications"],
                "bound of gradient": f"{found['relative bound']:.2g} ({found['bound kind']})",
                "gradient, peak MB": found["gradient peak"],
            }
        )
    return rows


def extrapolation(n: int, angles: int, build: dict[str, Any], large: tuple[int, int]) -> str:
    """What another scan would need, from the measured entries and bytes per entry of this one."""
    side, views = large
    density, size = build["entries"] / (n * n * angles), build["bytes"] / build["entries"]
    entries = density * side * side * views
    building = 1e6 * (build["peak"] - build["before"]) / build["entries"]
    return (
        f"{side}² with {views} views, extrapolated: {entries:.2g} stored entries, {size * entries / 1e9:.0f} GB of "
        f"matrix and {building * entries / 1e9:.0f} GB while it is built, at the {density:.3g} entries per pixel and "
        f"view and {size:.3g} bytes per entry of {n}² with {angles} views; values in float64 for certificates add "
        f"{16 * entries / 1e9:.0f} GB."
    )


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"SCANS": ((32, 20),), "REGULARIZERS": ("FieldsOfExperts",)},
        scans={"type": int, "default": len(SCANS), "help": "only the first of them"},
        task={"default": "", "help": "what a process of its own measures"},
    )
    if options.task:
        kind, *rest = json.loads(options.task)
        print(json.dumps({"build": measure_build, "solve": measure_solve}[kind](*rest)))
        return
    table = Table(
        "tomography_size",
        "Size of tomography",
        "python benchmarks/tomography_size.py --record",
        f"One phantom, parallel beam, {100 * NOISE:g} % noise, float32, x >= 0, ridge {RIDGE:g}, sum of weights "
        f"{WEIGHT:g}; `lr.solve` to a root-mean-square error of {STATE:g} and then `lr.hypergradient` to a relative "
        f"error of {GRADIENT:g}, each from a cold start, in CPU seconds of one thread. "
        "Peaks are resident sets of the process, Python and torch included, the one of the gradient after the solve; "
        "matrices come from the cache, which the build filled.",
        order=41,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LEARNREG_CACHE"] = folder
        for n, angles in SCANS[: options.scans]:
            build = in_process("build", n, angles)
            rows = rows_of(n, angles, build)
            table.rows += rows
            for row in rows:
                table.tracked[f"bytes of the matrix, {row['scan']}"] = build["bytes"]
                table.tracked[f"applications, {row['scan']}, {row['regularizer']}"] = row["applications"]
    table.notes.append(extrapolation(n, angles, build, LARGE))
    finish(table, options)


if __name__ == "__main__":
    main()
