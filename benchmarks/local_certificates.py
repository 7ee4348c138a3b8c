"""Local certificates of weakly convex regularizers: how many problems have one, how sharp it is, and what it costs.

    python benchmarks/local_certificates.py --data DIR --published FOLDER --record

DIR holds BSDS500, FOLDER the published model WCRR-CNN. In denoising that stands at weight 1 and the noise level of the
task, 25/255, with its own border ("chain", not known to be convex there) and as one bank of filters ("zero", convex
with hardly a modulus); in CT and MRI at weights and levels that suit scans. The other regularizer is a
convex-nonconvex ridge with composed filters of 13 x 13 and deep concave parts, times a factor that makes the energy of
denoising indefinite somewhere: R'' >= -1.6 at worst, where the identity has 1. "multivariate" is the shipped model of
that name, whose potentials see groups of four responses, times 2: R'' >= -2 at worst. Masks hide 30 % of the pixels,
scans have 60 views, of k-space a quarter of the lines is measured; none has a ridge. A radius of inf is a global
statement. The truth is Newton's method in float64 from the solution on, to rounding. CPU seconds in one thread.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish, present
from torch import Tensor

import learnreg as lr
from learnreg.datasets import list_images, read_image
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import norm_samples
from learnreg.operators import FourierSampling, Identity, Inpainting, ParallelBeam2D
from learnreg.regularizers import Regularizer, RidgeRegularizer, Scaled, import_ridge
from learnreg.solvers.newton_correction import approach_state

IMAGES, VIEWS, HIDDEN, FACTOR, LINES = 10, 60, 0.3, 2.0, 4
TOLERANCES = (1e-3, 1e-5)
PUBLISHED = {"denoising": (1.0, 25 / 255), "60-view CT": (2e-3, 6 / 255), "4x MRI": (0.05, 10 / 255)}
"""Weight and noise level of the published model."""
DOUBLE = torch.float64


def regularizer(generator: torch.Generator) -> Scaled:
    """Not learned, but of the size and the depth of published ones."""
    ridge = RidgeRegularizer(
        (4, 8, 32), 5, 21, "convex-nonconvex", weight=0.1, smoothing=0.02, generator=generator
    ).double()
    with torch.no_grad():
        ridge.logit_depth.add_(4.0)
    return Scaled(ridge, FACTOR).double()


def lines(side: int, generator: torch.Generator) -> Tensor:
    """Every fourth line of k-space, on average: the middle twelfth, others at random; frequency zero first."""
    middle = max(2, side // 12)
    chosen = torch.randperm(side - middle, generator=generator)[: side // LINES - middle] + middle // 2
    mask = torch.zeros(side)
    mask[: (middle + 1) // 2] = 1.0
    mask[side - middle // 2 :] = 1.0
    mask[chosen] = 1.0
    return mask[:, None].expand(side, side).double().contiguous()


def tasks(side: int, generator: torch.Generator) -> dict[str, tuple[LinearOperator, float]]:
    """Forward operators and their noise."""
    seen = (torch.rand(1, side, side, generator=generator) > HIDDEN).double()
    return {
        "denoising": (Identity((1, side, side)), 25 / 255),
        "inpainting": (Inpainting(seen), 10 / 255),
        f"{VIEWS}-view CT": (ParallelBeam2D(side, VIEWS).double(), 0.01),
        f"{LINES}x MRI": (FourierSampling(lines(side, generator)), 0.01),
    }


def patch(file: Path, side: int) -> Tensor:
    """The middle of a photograph."""
    image = read_image(file).double()
    top, left = ((n - side) // 2 for n in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def error_of(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor) -> float:
    """Root-mean-square distance from the minimiser that Newton's method leads to."""
    instance = problem.instance(b)
    exact = approach_state(instance, x, torch.zeros(1, dtype=DOUBLE), 1e-8).point
    return float(norm_samples(x - exact)) / math.sqrt(x.numel())


def middle(values: list[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else math.nan


def row(problem: lr.LowerLevelProblem, images: Tensor, noise: float, tolerance: float, named: str) -> dict[str, Any]:
    """Solved one by one, as each has a ball of its own."""
    kind = "none"
    radii: list[float] = []
    ratios: list[float] = []
    seconds: list[float] = []
    for k, image in enumerate(images):
        generator = torch.Generator().manual_seed(k)
        clean = problem.operator(image[None])
        b = clean + noise * torch.randn(clean.shape, generator=generator, dtype=DOUBLE)
        began = time.process_time()
        found = lr.solve(problem, b, tolerance)
        seconds.append(time.process_time() - began)
        if found.status.converged and math.isfinite(float(found.error_bound)):
            radii.append(float(found.radius))
            ratios.append(float(found.error_bound) / max(error_of(problem, b, found.x), 1e-16))
            kind = found.bound_kind
    return {
        "problem": named,
        "pixels": f"{images.shape[-1]}²",
        "tolerance": f"{tolerance:.0e}",
        "certified": f"{100 * len(radii) / len(images):.0f} %",
        "bound": kind,
        "bound/error": f"{middle(ratios):.1f}",
        "radius": f"{middle(radii):.1e}",
        "seconds": f"{middle(seconds):.2f}",
    }


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"IMAGES": 2, "sides": [16], "TOLERANCES": (1e-4,)},
        data={"type": Path, "required": True, "help": "the folder with BSDS500"},
        published={"type": Path, "help": "the folder with WCRR-CNN"},
        only={"default": "", "help": "problems whose name has this in it, such as 'MRI, published'"},
        sides={"type": int, "nargs": "*", "default": [32, 64], "help": "of the images, in pixels"},
    )
    table = Table(
        name="local_certificates",
        title="Local certificates of weakly convex regularizers",
        command="python benchmarks/local_certificates.py --data DIR --published FOLDER --record",
        text="\n".join((__doc__ or "").splitlines()[4:]),
        order=95,
    )
    files = list_images(options.data / "BSDS500" / "data" / "images" / "test")[:IMAGES]
    folder = present(options.published, "published models")
    for side in options.sides:
        generator = torch.Generator().manual_seed(0)
        own, patches = regularizer(generator), torch.stack([patch(file, side) for file in files])
        for task, (operator, noise) in tasks(side, generator).items():
            candidates: dict[str, Regularizer] = {"own ridge": own}
            if task == "denoising":
                candidates["multivariate"] = Scaled(lr.load("denoise-multivariate").regularizer.at(noise), 2.0).double()
            if folder is not None and task in PUBLISHED:
                weight, level = PUBLISHED[task]
                for boundary in ("chain", "zero") if weight == 1.0 else ("zero",):
                    published = import_ridge(folder / "WCRR-CNN", noise_level=level, boundary=boundary)
                    scaled = published if weight == 1.0 else Scaled(published, weight).double()
                    candidates[f"published, {boundary}"] = scaled
            for name, R in candidates.items():
                problem, named = lr.LowerLevelProblem(operator, R, minimiser="local"), f"{task}, {name}"
                if options.only not in named:
                    continue
                table.rows += [row(problem, patches, noise, tolerance, named) for tolerance in TOLERANCES]
                print(table.rows[-len(TOLERANCES) :], file=sys.stderr, flush=True)
    finish(table, options, ("problem", "pixels", "tolerance"))


if __name__ == "__main__":
    main()
