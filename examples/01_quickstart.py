"""The README's example
====================

The README's example: a lower-level problem, its certified solution, and a certified hypergradient."""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

patches = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=64)
b, x_true = (torch.stack(column) for column in zip(*(patches[i] for i in range(4)), strict=True))
problem = lr.LowerLevelProblem(Identity((1, 64, 64)), FieldsOfExperts(filters=24, size=5))

solution = lr.solve(problem, b, tolerance=1e-4)
print(solution.status, solution.error_bound)  # root-mean-square error of each image, a rigorous bound

hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
print(f"certified: {hg.certified}, relative error at most {hg.relative_error_bound:.1e}, loss in {hg.loss_interval}")
print({name: tuple(gradient.shape) for name, gradient in hg.gradient.items()})
