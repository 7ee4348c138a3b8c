"""One model for a range of noise levels
=====================================

A denoiser learned at one noise level smooths too much below it and too little above. A noise-conditioned regularizer is
told the level and serves a range. PSNR over noise levels, of which the last model has seen those from 10 to 40/255.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, RidgeRegularizer

PATCH, SIDE = 24, 64
LEVELS = (5, 10, 20, 30, 40, 60)
photographs = natural_images("train")


def learned(conditioned: bool, sigma: float | tuple[float, float]) -> Regularizer:
    """A ridge regularizer, after forty updates: filters of two small convolutions, and learned splines."""
    generator = torch.Generator().manual_seed(0)
    R = RidgeRegularizer((4, 8), 3, 11, noise_conditioned=conditioned, generator=generator)
    pairs = DenoisingPatches(photographs, sigma=sigma, patch=PATCH, count=128)
    problem = lr.LowerLevelProblem(Identity((1, PATCH, PATCH)), R)
    lr.train(problem, pairs, updates=40, batch_size=8, step_size=0.05, schedule="annealed", progress=False)
    return R


models = {
    "learned at 15/255": learned(False, 15 / 255),
    "learned at 35/255": learned(False, 35 / 255),
    "conditioned, 10 to 40/255": learned(True, (10 / 255, 40 / 255)),
}

# %%
# A photograph that was not among them, at six levels. ``R.at(sigma)`` is the regularizer at a noise level.

clean = natural_images("test")["camera"][:, 75 : 75 + SIDE, 200 : 200 + SIDE]
noise = torch.randn(1, *clean.shape, generator=torch.Generator().manual_seed(1))


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x.detach() - clean).square().mean().log10())


curves: dict[str, list[float]] = {}
for name, R in models.items():
    for level in LEVELS:
        sigma = level / 255
        told = R.at(sigma) if name.startswith("conditioned") else R
        solution = lr.solve(lr.LowerLevelProblem(Identity(tuple(clean.shape)), told), clean + sigma * noise, 2e-3)
        assert solution.certified
        curves.setdefault(name, []).append(psnr(solution.x[0]))
    print(name, [f"{value:.2f} dB" for value in curves[name]])
low, high, both = curves.values()
assert both[1] > high[1] + 1
assert both[4] > low[4] + 1
figure = lr.plot.noise_levels([level / 255 for level in LEVELS], curves, trained=(10 / 255, 40 / 255))
