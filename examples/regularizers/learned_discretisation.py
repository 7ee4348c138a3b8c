"""A total variation that knows no preferred direction
===================================================

Total variation weighs the length of an edge. Forward differences make that length depend on the direction of the edge;
learned interpolation of the same differences need not. Kernels that sum to one keep it a total variation, whatever is
learned (Chambolle and Pock, 2021).
"""

import math

import torch
from matplotlib.figure import Figure

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import LearnedTotalVariation, TotalVariation

SIDE, SIGMA = 32, 0.1
down, right = torch.meshgrid(*[torch.arange(SIDE) - (SIDE - 1) / 2] * 2, indexing="ij")


def discs(count: int, seed: int) -> torch.Tensor:
    """Discs with edges of one pixel, (count, 1, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(seed)
    radius, top, left = (torch.rand(count, 1, 1, generator=generator) for _ in range(3))
    distance = ((down - 8 * (top - 0.5)) ** 2 + (right - 8 * (left - 0.5)) ** 2).sqrt()
    return (0.2 + 0.6 * ((7 + 4 * radius) - distance + 0.5).clamp(0, 1))[:, None]


train, test = discs(12, 0), discs(6, 1)
noise = SIGMA * torch.randn(18, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
b_train, b_test = train + noise[:12], test + noise[12:]
regularizers = {
    "forward differences": TotalVariation(0.1, smoothing=1e-2),
    "learned interpolation": LearnedTotalVariation(positions=4, size=3, weight=0.1, smoothing=1e-2),
}
found = {}
for name, R in regularizers.items():
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R)
    pairs = list(zip(b_train, train, strict=True))
    lr.train(problem, pairs, optimizer="lbfgs", samples=12, updates=20, progress=False)
    found[name] = lr.solve(problem, b_test, tolerance=1e-3)
    assert found[name].certified


def psnr(x: torch.Tensor, clean: torch.Tensor = test) -> float:
    return float(-10 * (x - clean).square().mean().log10())


quality = {name: psnr(solution.x) for name, solution in found.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
assert quality["learned interpolation"] > quality["forward differences"] + 0.2

images = {"noisy": b_test[0]} | {f"{n}, {psnr(s.x[0], test[0]):.1f} dB": s.x[0] for n, s in found.items()}
comparison = lr.plot.comparison(images, test[0], measured="noisy")

# %%
# What a straight edge of each direction costs for its length: the terms of R around the middle, over their mean.

WIDE = 64
angles = torch.linspace(0, 2 * math.pi, 73)
radius = torch.stack(torch.meshgrid(*[torch.arange(WIDE) - (WIDE - 1) / 2] * 2, indexing="ij")).norm(dim=0)
window = (1 - (radius / 26).square()).clamp_min(0).square()
fine = (torch.arange(8 * WIDE) + 0.5) / 8 - WIDE / 2


def edge_cost(R: lr.Regularizer, angle: float) -> float:
    sharp = (math.sin(angle) * fine[:, None] + math.cos(angle) * fine[None, :] > 0).double()
    edge = sharp.view(WIDE, 8, WIDE, 8).mean((1, 3))  # each pixel sees its mean
    terms = R.double().saddle_terms((1, WIDE, WIDE))
    with torch.no_grad():
        cost = terms.potential.density(terms.operator(edge[None, None])).reshape(-1, WIDE, WIDE).sum(0)
    return float((cost * window).sum())


costs = {name: torch.tensor([edge_cost(R, float(a)) for a in angles]) for name, R in regularizers.items()}
spread = {name: float(c.max() / c.min()) for name, c in costs.items()}
print({name: f"dearest over cheapest direction: {value:.2f}" for name, value in spread.items()})
assert spread["learned interpolation"] < spread["forward differences"]

with lr.plot.paper_style():
    polar = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = polar.add_subplot(projection="polar")
    for (name, cost), colour in zip(costs.items(), lr.plot.COLOURS, strict=False):
        axes.plot(angles, cost / cost.mean(), color=colour, label=f"{name}: ratio {spread[name]:.2f}")
    axes.set_rlim(0.6, 1.15)
    axes.set_rticks([0.8, 1.0])
    axes.set_title("cost of an edge over its direction")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.28))

# %%
# The learned kernels of vertical and of horizontal differences, at each position.

kernels = regularizers["learned interpolation"].effective_kernels.detach()
maps = lr.plot.maps(
    {f"{direction} differences, position {k + 1}": kernels[d, k]
     for d, direction in enumerate(("vertical", "horizontal")) for k in range(4)},
    signed=True,
    columns=4,
)  # fmt: skip
