"""CT with regularizers learned on denoising, by two scalars: total variation, published ridges, models of one's own.

    learnreg train denoise --regularizer ridge --noise-conditioned --data DIR/BSDS500 --minutes 25 --out RUN
    python benchmarks/transfer.py --data DIR --published FOLDER --models RUN/model.safetensors --record

DIR holds CT/train and CT/validation; FOLDER the published models CRR-CNN and WCRR-CNN. Few views: 60 over 180 degrees;
limited angle: 60 over 120. The factor of the regularizer and the noise level it is told (its scale, where it knows no
noise levels) are tuned on 3 training slices with rough solutions, and so is the weight of total variation, on the same
slices. Then each of 6 validation slices is solved to a certified root-mean-square error of 1e-3. Convex ones have a
ridge; the weakly convex one has none and asks for a local minimiser: where no ball around one is found, its solves go
on to rounding, or to the iterations that ``--steps`` allows. CPU seconds in one thread.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ct_slices import slices
from harness import Table, arguments, finish, present
from torch import Tensor

import learnreg as lr
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import Regularizer, Scaled, TotalVariation, import_ridge
from learnreg.report.comparison import Scene, quality
from learnreg.solvers.choice import make_solver
from learnreg.solvers.solve import initial_point, run_state_solver
from learnreg.training.start_tuning import least_loss

SIZE, VIEWS, TURN, LIMITED = 256, 60, math.pi, 2 * math.pi / 3
SLICES, SEED, TUNING_SEED, TOLERANCE = 3, 0, 77, 1e-3
RIDGE, ROUGH_STEPS, FIRST_STEPS = 1e-6, 15, 60
FACTOR, LEVEL, TV_WEIGHT = 1.5e-3, 8 / 255, 3e-5
"""Where searches begin."""


class Tuning:
    """Rough solutions of a few slices at a time, each from the last."""

    def __init__(self, operator: ParallelBeam2D, scenes: list[Scene], kind: dict[str, Any]) -> None:
        self.operator, self.kind = operator, kind
        self.b, self.clean = (torch.stack([getattr(s, name) for s in scenes]) for name in ("b", "clean"))
        self.x: Tensor | None = None

    def problem(self, regularizer: Regularizer) -> lr.LowerLevelProblem:
        return lr.LowerLevelProblem(self.operator, regularizer, constraint=lr.Nonnegative(), **self.kind)

    @torch.no_grad()
    def loss(self, regularizer: Regularizer) -> float:
        """Mean squared error; not certified."""
        instance = self.problem(regularizer).instance(self.b)
        solver = make_solver("auto", instance, warm=self.x is not None)
        steps = FIRST_STEPS if self.x is None else ROUGH_STEPS
        start = initial_point(instance, self.b) if self.x is None else self.x
        self.x = run_state_solver(solver, instance, start, torch.full((len(self.b),), 1e-9), steps).x
        return float((self.x - self.clean).square().mean())

    def best(self, of: Callable[[float, float], Regularizer], levels: bool) -> Regularizer:
        """The regularizer with the least loss over factor and, if it knows any, noise level."""
        factors: dict[float, float] = {}

        def of_level(log_level: float) -> float:
            try:
                of(FACTOR, math.exp(log_level))
            except lr.ConfigError:  # beyond the levels that the model is learned for
                return math.inf
            start = factors[min(factors, key=lambda known: abs(known - log_level))] if factors else math.log(FACTOR)
            factors[log_level] = least_loss(lambda f: self.loss(of(math.exp(f), math.exp(log_level))), start, 0.5, 12)
            found = self.loss(of(math.exp(factors[log_level]), math.exp(log_level)))
            told = f"level {255 * math.exp(log_level):.3g}, factor {math.exp(factors[log_level]):.3g}: {found:.4g}"
            print(f"  {told}", file=sys.stderr, flush=True)
            return found

        level = least_loss(of_level, math.log(LEVEL), 0.4, 4) if levels else math.log(LEVEL)
        if level not in factors:
            of_level(level)
        return of(math.exp(factors[level]), math.exp(level))


def measured(name: str, problem: lr.LowerLevelProblem, scenes: list[Scene], steps: int | None) -> dict[str, Any]:
    """A row of the table; ``steps``: of each solve at most."""
    began = time.process_time()
    found = [lr.solve(problem, scene.b[None], TOLERANCE, max_steps=steps) for scene in scenes]
    seconds = (time.process_time() - began) / len(scenes)
    rows = [quality(f.x[0], scene.clean, scene.name) for f, scene in zip(found, scenes, strict=True)]
    bounds = [float(f.error_bound) for f in found]
    return {
        "regularizer": name,
        "PSNR, dB": f"{fmean(r.psnr for r in rows):.2f}",
        "SSIM": f"{fmean(r.ssim for r in rows):.3f}",
        "applications": f"{fmean(f.operator_applications for f in found):.0f}",
        "CPU s per slice": f"{seconds:.1f}",
        "largest bound": f"{max(bounds):.1e}",
        "bound": ", ".join(sorted({f.bound_kind for f in found})),
    }


def candidates(options: Any) -> dict[str, tuple[Callable[[float, float], Regularizer], bool, dict[str, Any]]]:
    """name -> (of factor and noise level, whether it knows levels or scales, keywords of the problem)."""
    convex: dict[str, Any] = {"ridge": RIDGE}
    found: dict[str, tuple[Callable[[float, float], Regularizer], bool, dict[str, Any]]] = {
        "total variation": (lambda f, _: TotalVariation(TV_WEIGHT * f / FACTOR), False, convex)
    }
    folder = present(options.published, "published models")
    for name, kind in (("CRR-CNN", convex), ("WCRR-CNN", {"minimiser": "local"})):
        if folder is not None:
            published = import_ridge(folder / name)
            found[f"published {name}"] = (lambda f, s, R=published: Scaled(R.at(s), f), True, kind)
    for path in options.models or ():
        R = lr.load(path).regularizer
        conditioned = R.at(LEVEL) is not R

        def of(f: float, s: float, R: Regularizer = R, conditioned: bool = conditioned) -> Regularizer:
            return Scaled(R.at(s) if conditioned else R.stretched(LEVEL / s), f)

        found[path.parent.name] = (of, conditioned or R.stretched(1.0) is not R, convex)
    return found


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"SIZE": 32, "VIEWS": 10, "SLICES": 1, "ct_slices.SIZE": 32, "turns": ["few"]},
        data={"type": Path, "required": True, "help": "the folder with CT"},
        published={"type": Path, "help": "the folder with CRR-CNN and WCRR-CNN"},
        models={"type": Path, "nargs": "*", "help": "model files of train denoise"},
        only={"help": "regularizers whose name has this in it"},
        steps={"type": int, "default": 0, "help": "iterations of a solve at most, 0: any number"},
        turns={"nargs": "*", "default": ["few", "limited"], "help": "few, limited"},
    )
    table = Table(
        "transfer",
        "CT with regularizers learned on denoising",
        "python benchmarks/transfer.py --data DIR --published FOLDER --models RUN/model.safetensors --record",
        "\n".join((__doc__ or "").splitlines()[5:]),
        order=45,
    )
    for turn, geometry, views in (("few", "60 views", TURN), ("limited", "limited angle", LIMITED)):
        if turn not in options.turns:
            continue
        operator = ParallelBeam2D(SIZE, torch.arange(VIEWS, dtype=torch.float64) * (views / VIEWS))
        tuning = slices(operator, options.data / "CT" / "train", TUNING_SEED, SLICES)
        scenes = slices(operator, options.data / "CT" / "validation", SEED)
        for name, (of, levels, kind) in candidates(options).items():
            if options.only and options.only not in name:
                continue
            began = time.process_time()
            search = Tuning(operator, tuning, kind)
            best = search.best(of, levels)
            tuned = time.process_time() - began
            row = {"geometry": geometry} | measured(name, search.problem(best), scenes, options.steps or None)
            row["CPU s of tuning"] = f"{tuned:.0f}"
            print(row, file=sys.stderr, flush=True)
            table.rows.append(row)
    finish(table, options, ("geometry", "regularizer"))


if __name__ == "__main__":
    main()
