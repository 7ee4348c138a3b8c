"""Few views and missing angles
============================

A scan of a phantom from 20 views around it, and one of 40 views of two thirds of a half turn. Filtered back-projection
shows streaks; total variation, and the knowledge that nothing is below 0, fill in what was not measured.
"""

import math

import torch

import learnreg as lr
from learnreg.datasets import RelativeNoise, TomographyPairs, ellipse_phantoms
from learnreg.operators import ParallelBeam2D, filtered_back_projection
from learnreg.regularizers import TotalVariation

SIZE = 64
scans = {
    "20 views": ParallelBeam2D(SIZE, 20),
    "two thirds of the angles": ParallelBeam2D(SIZE, torch.linspace(0, 2 * math.pi / 3, 40)),
}
phantom = ellipse_phantoms(1, SIZE, seed=1)[0]


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - phantom).square().mean().log10())


# %%
# The ridge makes both problems strongly convex, so that the distance to the minimiser is certified; it is small enough
# to change little.

figures = {}
for name, A in scans.items():
    sinogram = TomographyPairs(A, [phantom], RelativeNoise(0.01), seed=1)[0][0][None]
    problem = lr.LowerLevelProblem(A, TotalVariation(1e-4), ridge=1e-3, constraint=lr.Nonnegative())
    solution = lr.solve(problem, sinogram, tolerance=5e-3)
    assert solution.certified
    x = {"filtered back-projection": filtered_back_projection(A, sinogram)[0], "total variation": solution.x[0]}
    print(
        name,
        {title: f"{psnr(image):.2f} dB" for title, image in x.items()},
        f"within {float(solution.error_bound):.1e}",
    )
    assert psnr(x["total variation"]) > psnr(x["filtered back-projection"]) + 3
    titled = {f"{title}, {psnr(image):.1f} dB": image for title, image in x.items()}
    figures[name] = lr.plot.comparison(
        titled, phantom, measured=next(iter(titled))
    )  # zooms where the other one is wrong
few_views, limited_angle = figures.values()
