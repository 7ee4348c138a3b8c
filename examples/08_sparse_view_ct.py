"""Tomography from few views
=========================

Computed tomography from few views: learn a regularizer on phantoms, reconstruct another phantom, with a certified
error."""

import sys

import torch

import learnreg as lr
from learnreg.datasets import RelativeNoise, TomographyPairs, load_ct_images
from learnreg.operators import ParallelBeam2D, filtered_back_projection
from learnreg.regularizers import FieldsOfExperts

SIZE, VIEWS = 48, 20
UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 30

A = ParallelBeam2D(SIZE, VIEWS)  # line integrals, the side of the image being 1

training, held_out = load_ct_images("ellipses", SIZE, count=16)
pairs = TomographyPairs(A, training, RelativeNoise(0.01))
x_true = next(iter(held_out.values()))
b = TomographyPairs(A, {"held out": x_true}, RelativeNoise(0.01), seed=1)[0][0]

# The ridge makes the problem strongly convex, hence certifiable; with a few updates there is little to gain from less.
regularizer = FieldsOfExperts(8, 3, lr.PseudoHuber(smoothing=1e-2, weight=3e-4), minimum_smoothing=2e-3)
problem = lr.LowerLevelProblem(A, regularizer, ridge=1e-3, constraint=lr.Nonnegative())


def psnr(x: torch.Tensor) -> float:
    return float(-10 * torch.log10((x - x_true).square().mean()))


print(f"filtered back-projection: {psnr(filtered_back_projection(A, b[None], 'hann')[0]):.2f} dB")
print(f"before learning:          {psnr(lr.solve(problem, b[None], tolerance=2e-3).x[0]):.2f} dB")
result = lr.train(problem, pairs, minutes=1.0, batch_size=4, step_size=1e-1, updates=UPDATES)
solution = lr.solve(problem, b[None], tolerance=2e-3)
print(f"after {result.updates} updates:         {psnr(solution.x[0]):.2f} dB")
print(f"root-mean-square error of x at most {float(solution.error_bound):.1e} ({solution.bound_kind})")
