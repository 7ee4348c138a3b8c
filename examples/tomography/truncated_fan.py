"""An object wider than the detector
=================================

A fan-beam scanner whose detector is too short: the rim of the object leaves the fan in most views. Filtered
back-projection needs whole projections, warns, and turns what is missing into a bright ring. A reconstruction by
minimisation needs nothing but the rays there are; constraints and regularizer decide about the rest.
"""

import math
import warnings

import torch
from matplotlib.figure import Figure

import learnreg as lr
from learnreg.datasets import RelativeNoise, TomographyPairs, ellipse_phantoms
from learnreg.operators import FanBeam2D, filtered_back_projection
from learnreg.regularizers import TotalVariation

SIZE, VIEWS, DETECTORS = 64, 90, 91
SOURCE, DETECTOR = 2.0, 4.0  # distances from the axis of rotation and from the source, in sides of the image

phantom = ellipse_phantoms(1, SIZE, seed=4)[0]
A = FanBeam2D(SIZE, VIEWS, DETECTORS, SOURCE, DETECTOR)  # by default it would have 183
b = TomographyPairs(A, [phantom], RelativeNoise(0.005), seed=1)[0][0]

# %%
# The field of view is what every view sees: a disc whose radius is the distance of the outermost ray from the axis.

radius = SOURCE * math.sin(math.atan(DETECTORS / SIZE / 2 / DETECTOR)) * SIZE
down, right = torch.meshgrid(*[torch.arange(SIZE) - (SIZE - 1) / 2] * 2, indexing="ij")
inside = (down**2 + right**2).sqrt() < radius
print(f"field of view: a disc of radius {radius:.1f} pixels, {float(inside.float().mean()):.0%} of the image")


def psnr(x: torch.Tensor) -> float:
    """Of the field of view."""
    return float(-10 * (x - phantom)[0, inside].square().mean().log10())


problem = lr.LowerLevelProblem(A, TotalVariation(3e-5, smoothing=1e-2), ridge=1e-4, constraint=lr.Nonnegative())
solution = lr.solve(problem, b[None], tolerance=1e-2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # says that the detector is too narrow
    analytic = filtered_back_projection(A, b[None])[0]
images = {"filtered back-projection": analytic, "total variation": solution.x[0]}
quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()}, f"within {float(solution.error_bound):.0e}")
assert solution.certified
assert quality["total variation"] > quality["filtered back-projection"] + 6

figure = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()}, phantom, window=(0.0, float(phantom.max()))
)

# %%
# Error of the reconstruction over the distance from the axis: small inside of the field of view, and it grows where
# fewer and fewer views see a pixel.

distance = (down**2 + right**2).sqrt()
rings = [(distance >= r) & (distance < r + 2) for r in range(0, 44, 2)]
with lr.plot.paper_style():
    profile = Figure(figsize=(5, 3.2), layout="constrained")
    axes = profile.subplots()
    for (name, x), colour, marker in zip(images.items(), lr.plot.COLOURS, "os", strict=False):
        errors = [float((x - phantom)[0, ring].square().mean().sqrt()) for ring in rings]
        axes.semilogy([2 * i + 1 for i in range(len(rings))], errors, f"-{marker}", ms=3.5, color=colour, label=name)
    axes.axvline(radius, color="#555555", ls=":", lw=1.2)
    axes.text(radius, axes.get_ylim()[0] * 1.1, " field of view ends", color="#555555", va="bottom")
    axes.set(xlabel="distance from the axis [pixels]", ylabel="error [image units]")
    axes.legend()
