"""Your own loss
=============

Your own upper-level loss: any differentiable function of x; certified if you know its gradient's Lipschitz
constant."""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

patches = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=32)
b, x_true = (torch.stack(column) for column in zip(*(patches[i] for i in range(4)), strict=True))
problem = lr.LowerLevelProblem(Identity((1, 32, 32)), FieldsOfExperts(filters=8, size=3))

EPSILON = 0.05


def charbonnier(x: torch.Tensor) -> torch.Tensor:
    """sum sqrt(|x - x_true|² + eps²) per image, (batch,): less sensitive to outliers than the square."""
    return torch.sqrt((x - x_true) ** 2 + EPSILON**2).flatten(1).sum(1)


loss = lr.UpperLoss(charbonnier, gradient_lipschitz=1 / EPSILON, independent=True)  # no sum looks at another sample
certified = lr.hypergradient(problem, b, loss, tolerance=0.1)
print(
    f"with the constant: certified {certified.certified}, relative error at most {certified.relative_error_bound:.1e},"
)
print("the loss lies between {:.2f} and {:.2f}".format(*certified.loss_interval))

unknown = lr.hypergradient(problem, b, lr.UpperLoss(charbonnier), tolerance=0.1)
print(f"without it: certified {unknown.certified}, an {unknown.bound_kind}, since {unknown.reason}")
