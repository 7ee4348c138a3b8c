"""Views of different quality
==========================

A scanner whose first third of views is ten times as noisy as the others, and nobody says so. One weight for each view
is learned from eight phantoms, with the weight of total variation; the data term is a part of the problem like any
other.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import load_ct_images
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

SIZE, VIEWS = 32, 24

A = ParallelBeam2D(SIZE, VIEWS)
noise = torch.full((1, VIEWS, 1), 2e-3)
noise[:, : VIEWS // 3] *= 10
images = torch.stack(list(load_ct_images("ellipses", SIZE, count=12)[0].values()))
with torch.no_grad():
    b = A(images)
    b = b + noise * torch.randn(b.shape, generator=torch.Generator().manual_seed(0))
pairs = list(zip(b, images, strict=True))


def problem_with(weights: Tensor) -> lr.LowerLevelProblem:
    R = TotalVariation(1e-3, smoothing=1e-2)
    return lr.LowerLevelProblem(A, R, ridge=1e-3, data_term=lr.WeightedLeastSquares(weights))


# %%
# Equal weights, and learned ones: a parameter (1, views, 1), which broadcasts against sinograms. Each learns the weight
# of total variation, too. Weights stay nonnegative.

problems = {
    "equal weights": problem_with(torch.ones(1, VIEWS, 1)),
    "learned weights": problem_with(nn.Parameter(torch.ones(1, VIEWS, 1))),
}
for problem in problems.values():
    lr.train(problem, pairs[:8], batch_size=4, step_size=0.1, updates=60, progress=False)
hg = lr.hypergradient(problem, b[:1], lr.SquaredError(images[:1]), tolerance=0.1)
print(f"hypergradient of {sorted(hg.gradient)}: certified {hg.certified}")
assert hg.certified
weights = problem.data_term.weights.detach().flatten()
noisy, others = weights[: VIEWS // 3], weights[VIEWS // 3 :]
print(f"mean weight of the noisy views {float(noisy.mean()):.3f}, of the others {float(others.mean()):.2f}")
assert float(noisy.max()) < float(others.min())

# %%
# Four phantoms that were not among them.

reconstructions = {name: lr.solve(p, b[8:], tolerance=3e-3).x.detach() for name, p in problems.items()}
quality = {
    name: float(-10 * (x - images[8:]).square().mean((1, 2, 3)).log10().mean()) for name, x in reconstructions.items()
}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
assert quality["learned weights"] > quality["equal weights"] + 2
comparison = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x[0] for name, x in reconstructions.items()}, images[8], zoom=12
)

with lr.plot.paper_style():
    learned = Figure(figsize=(5, 3), layout="constrained")
    axes = learned.subplots()
    axes.bar(range(VIEWS // 3), noisy, color=lr.plot.COLOURS[1], label="noise 10 times as large")
    axes.bar(range(VIEWS // 3, VIEWS), others, color=lr.plot.COLOURS[0], label="the others")
    axes.set(xlabel="view", ylabel="learned weight")
    axes.set_ylim(0, 1.35 * float(others.max()))
    axes.legend(loc="upper left")
