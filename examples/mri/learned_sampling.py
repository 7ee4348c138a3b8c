"""Learned sampling
================

Which lines of Fourier space to measure: weights of lines are learned with the regularizer, under a price for each
(Sherry et al., Learning the sampling pattern for MRI, 2020). The best quarter of the lines is compared with others.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import load_ct_images
from learnreg.operators import FourierSampling
from learnreg.regularizers import TotalVariation

UPDATES, SIDE, NOISE, PRICE, RIDGE = 60, 48, 0.02, 0.3, 1e-3
LINES = SIDE // 4

images = torch.stack(list(load_ct_images("ellipses", SIDE, count=12)[0].values()))
images = images / images.amax((1, 2, 3), keepdim=True)
everything = FourierSampling(torch.ones(SIDE, SIDE))
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    b = everything(images)
    b += NOISE * torch.randn(b.shape, generator=generator)
train, test = slice(0, 6), slice(6, 12)


def problem_of(weights: Tensor) -> lr.LowerLevelProblem:
    """Reconstruction from lines with these weights: one for each column of Fourier space."""
    return lr.LowerLevelProblem(
        everything, TotalVariation(5e-3, smoothing=1e-2), ridge=RIDGE, data_term=lr.WeightedLeastSquares(weights)
    )


def learn(problem: lr.LowerLevelProblem, price: float, updates: int) -> None:
    """Adam on the hypergradients of all that can be learned; weights stay in [0, 1]."""
    objective = lr.BatchObjective(problem, b[train], lr.SquaredError(images[train]))
    optimizer = torch.optim.Adam(problem.learnable().values(), lr=0.05)
    for _ in range(updates):
        hg = objective.gradient(tolerance=0.1)
        for name, parameter in problem.learnable().items():
            parameter.grad = hg.gradient[name] + (price if name == "data_term.weights" else 0.0)
        optimizer.step()
        with torch.no_grad():
            problem.data_term.weights.clamp_(0.0, 1.0)


def psnr(problem: lr.LowerLevelProblem) -> float:
    return float(-10 * (lr.solve(problem, b[test], 1e-3).x - images[test]).square().mean((1, 2, 3)).log10().mean())


# %%
# Weights first, from all lines.

free = problem_of(nn.Parameter(torch.full((1, 1, SIDE), 0.5)))
learn(free, PRICE, UPDATES)
weights = free.data_term.weights.detach().flatten()
frequency = torch.fft.fftfreq(SIDE).abs()
density = torch.multinomial((0.02 + frequency) ** -1.5, LINES, generator=generator)
patterns = {
    "learned": weights.topk(LINES).indices,
    "lowest frequencies": frequency.argsort(stable=True)[:LINES],
    "variable density": density,
    "uniform": torch.arange(0, SIDE, SIDE // LINES),
}
# %%
# Then twelve lines each, for which the weight of total variation is learned again.

print(f"{int((weights > 0.01).sum())} of {SIDE} lines have a weight above 0.01")
results, quality = {}, {}
for name, lines in patterns.items():
    mask = torch.zeros(SIDE)
    mask[lines] = 1.0
    problem = problem_of(mask[None, None])
    learn(problem, 0.0, UPDATES // 4)
    results[name] = (mask, lr.solve(problem, b[test][:1], 1e-3).x[0, 0])
    quality[name] = psnr(problem)
    print(f"{LINES} lines, {name}: {quality[name]:.2f} dB")
assert quality["learned"] == max(quality.values())
assert quality["learned"] > quality["lowest frequencies"] + 1

with lr.plot.paper_style():
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(2, 5, height_ratios=(1, 4))
    axes[0, 0].plot(torch.fft.fftshift(weights), color=lr.plot.COLOURS[0])
    axes[0, 0].set(title="weights")
    axes[1, 0].imshow(images[test][0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes[1, 0].set(title="clean")
    for (name, (mask, x)), (above, below) in zip(results.items(), axes[:, 1:].T, strict=True):
        above.imshow(torch.fft.fftshift(mask)[None].expand(8, SIDE).numpy(), cmap="gray", aspect="auto")
        below.imshow(x.numpy(), cmap="gray", vmin=0, vmax=1)
        below.set(title=f"{name}\n{quality[name]:.1f} dB")
    for axis in axes.flat[1:]:
        axis.set(xticks=[], yticks=[])
