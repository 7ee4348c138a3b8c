"""A weight for each pixel
=======================

One weight of total variation for an image, or one for each of its pixels: learned from noisy copies of it, and tested
on others. The regularizer says its value alone; everything else follows by autograd.
"""

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer

UPDATES, SIDE, COPIES, SIGMA = 40, 48, 4, 25 / 255


class WeightedVariation(Regularizer):
    """sum_i w_i (sqrt(|Dx|_i² + s²) - s) with a positive weight for each pixel, or one for all."""

    convex = True

    def __init__(self, weights: Tensor, smoothing: float = 1e-2) -> None:
        super().__init__()
        self.log_weights, self.smoothing = nn.Parameter(weights.log()), smoothing

    def value(self, x: Tensor) -> Tensor:
        down = nn.functional.pad(x.diff(dim=2), (0, 0, 0, 1))
        right = nn.functional.pad(x.diff(dim=3), (0, 1))
        lengths = (down**2 + right**2 + self.smoothing**2).sqrt() - self.smoothing
        return (self.log_weights.exp() * lengths).sum((1, 2, 3))


def noisy(clean: Tensor, count: int, seed: int) -> Tensor:
    noise = torch.randn(count, *clean.shape, generator=torch.Generator().manual_seed(seed))
    return clean + SIGMA * noise


def learn(regularizer: Regularizer, b: Tensor, clean: Tensor) -> tuple[lr.LowerLevelProblem, lr.Hypergradient]:
    """Adam on the hypergradients of all copies."""
    problem = lr.LowerLevelProblem(Identity(clean.shape), regularizer)
    objective = lr.BatchObjective(problem, b, lr.SquaredError(clean.expand(len(b), *clean.shape)))
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=0.1)
    for _ in range(UPDATES):
        optimizer.step(objective.closure(tolerance=0.1, callback=seen.append))
    return problem, seen[-1]


def psnr(problem: lr.LowerLevelProblem, b: Tensor, clean: Tensor) -> float:
    return float(-10 * (lr.solve(problem, b, 1e-3).x - clean).square().mean().log10())


# %%
# 2,304 numbers are learned like one.

seen: list[lr.Hypergradient] = []
image = natural_images("train")["astronaut"]
clean = image[:, 60 : 60 + SIDE, 180 : 180 + SIDE]
train, test = noisy(clean, COPIES, 0), noisy(clean, COPIES, 1)
one, _ = learn(WeightedVariation(torch.tensor(0.07)), train, clean)
weight = one.regularizer.log_weights.detach().exp()
each, hg = learn(WeightedVariation(weight.expand(1, SIDE, SIDE).clone()), train, clean)
quality = {"one weight": psnr(one, test, clean), "a weight for each pixel": psnr(each, test, clean)}
print(f"one weight for all pixels: {float(weight):.3f}")
print({name: f"{value:.2f} dB" for name, value in quality.items()})
print(f"the gradients' errors are known as: {hg.bound_kind}")
assert quality["a weight for each pixel"] > quality["one weight"] + 0.5

images = {"noisy": test[0]}
for (name, value), problem in zip(quality.items(), (one, each), strict=True):
    images[f"{name}, {value:.1f} dB"] = lr.solve(problem, test[:1], 1e-3).x[0].detach()
comparison = lr.plot.comparison(images, clean, measured="noisy")

# %%
# The weights tell where the edges of this image are: there they are small.

maps = lr.plot.maps({"weights": each.regularizer.log_weights.detach().exp()[0]}, logarithmic=True)
