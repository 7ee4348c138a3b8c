"""A meta-learned regularizer
==========================

Where a regularizer starts, and along which directions it moves, are learned over many noise levels, so that it adapts
to a new one in a few steps on one small patch (implicit MAML).
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import conv2d, pad

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.regularizers import FieldsOfExperts

UPDATES, LEVELS = 60, 32
WIDTHS = (0.02, 0.05, 0.1, 0.2, 0.5)
RANK, UNIT = 4, 1e3  # losses count in thousandths

filters = FieldsOfExperts(filters=24, size=5).effective_filters.detach().view(24, 1, 5, 5)
Task = tuple[Tensor, Tensor, Tensor]


def features(b: Tensor) -> Tensor:
    """The gradients of experts sum_i sqrt((w * b)_i² + s²), of 24 filters w and 5 widths s each."""
    responses = conv2d(pad(b, (2, 2, 2, 2), mode="reflect"), filters)
    slopes = [s * responses / (responses**2 + s**2).sqrt() for s in WIDTHS]
    return torch.cat([conv2d(slope, filters.flip(2, 3), padding=2, groups=24) for slope in slopes], 1)


def task(images: list[Tensor], sigma: float, count: int, size: int, seed: int) -> Task:
    """Denoising takes one step of descent on the regularizer, b - features(b) · weights: the mean squared error is
    quadratic in the weights of the experts, <weights, G weights> - 2 <c, weights> + e."""
    patches = DenoisingPatches(images, sigma=sigma, patch=size, seed=seed)
    b, x_true = (torch.stack(column) for column in zip(*(patches[i] for i in range(count)), strict=True))
    inside = (..., slice(2, -2), slice(2, -2))
    F = features(b)[inside].transpose(0, 1).flatten(1).double()
    noise = (b - x_true)[inside].flatten().double()
    return F @ F.T / len(noise), F @ noise / len(noise), noise @ noise / len(noise)


def error(weights: Tensor, tasks: tuple[Tensor, ...]) -> Tensor:
    G, c, e = tasks
    return torch.einsum("ti,tij,tj->t", weights, G, weights) - 2 * (weights * c).sum(1) + e


def adapted(x: Tensor, theta: dict[str, Tensor]) -> Tensor:
    return theta["start"] + x @ theta["directions"]


def adaptation(x: Tensor, theta: dict[str, Tensor], data: dict) -> Tensor:
    """The error on the one patch of each task, and the distance to the meta parameters."""
    return 0.5 * UNIT * error(adapted(x, theta), data["patch"]) + 0.5 * x.square().sum(1)


def validation(x: Tensor, theta: dict[str, Tensor], data: dict) -> Tensor:
    """The PSNR of other images of each task, in nepers, the wrong way round."""
    return (UNIT * error(adapted(x, theta), data["others"])).log()


def stacked(tasks: list[Task]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*tasks, strict=True))


# %%
# 32 noise levels at once: one patch to adapt to, and other images that judge.

problem = lr.BilevelProblem(adaptation, validation, strong_convexity=1.0)
photographs = list(natural_images("train").values())
sigmas = torch.linspace(10, 60, LEVELS) / 255
data = {
    "patch": stacked([task(photographs, float(s), 1, 32, 100 + k) for k, s in enumerate(sigmas)]),
    "others": stacked([task(photographs, float(s), 8, 48, 200 + k) for k, s in enumerate(sigmas)]),
}
G, c, e = data["others"]
size = len(c[0])
ridge = 1e-6 * torch.eye(size)
joint = torch.linalg.solve((G / e[:, None, None]).sum(0) + ridge, (c / e[:, None]).sum(0))  # of relative errors
noise = torch.randn(RANK, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
meta = {"start": joint.clone(), "directions": 0.1 * noise}

objective = lr.BilevelObjective(problem.at(meta, torch.zeros(LEVELS, RANK, dtype=torch.float64), data))
optimizer = torch.optim.Adam(objective.problem.learnable().values(), lr=2e-2)
losses = [float(optimizer.step(objective.closure(tolerance=0.1))) for _ in range(UPDATES)]
print(f"validation loss {losses[0]:.3f} -> {losses[-1]:.3f} in {UPDATES} updates")

# %%
# New noise levels and new photographs; each time one patch to adapt to, eight times. Without what was learned all
# weights move alike, at the best of four distances.
every = torch.eye(size, dtype=torch.float64)
starts = {
    "from scratch": {"start": torch.zeros_like(joint), "directions": 0.3 * every},
    "joint training": {"start": joint, "directions": 0.1 * every},
    "meta-learned": meta,
}
photographs, counts = list(natural_images("test").values()), (0, 1, 2, 3, 5, 8, 12, 20)
curves: dict[int, dict[str, list[float]]] = {}
for level in (15, 25, 45):
    patches = stacked([task(photographs, level / 255, 1, 32, 300 + k) for k in range(8)])
    others = stacked([task(photographs, level / 255, 30, 48, 400)] * 8)
    print(f"noise {level}/255, {float(-10 * others[2][0].log10()):.2f} dB")
    curves[level] = {}
    for name, theta in starts.items():
        x, psnr = torch.zeros(8, len(theta["directions"]), dtype=torch.float64), {}
        for steps in counts:
            found = problem.solve(theta, x, {"patch": patches}, 1e-8, max_steps=steps, solver="lbfgs").x if steps else x
            psnr[steps] = float(-10 * error(adapted(found, theta), others).log10().mean())
        curves[level][name] = list(psnr.values())
        print(f"  {name:14s} " + ", ".join(f"{psnr[steps]:.2f} dB after {steps} steps" for steps in (0, 3, 5, 20)))
for level in (15, 25):
    after_three = {name: values[counts.index(3)] for name, values in curves[level].items()}
    assert after_three["meta-learned"] > after_three["joint training"] + 0.5

with lr.plot.paper_style():
    figure = Figure(figsize=(9, 3.0), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (level, found) in zip(panels, curves.items(), strict=True):
        for (name, values), colour in zip(found.items(), lr.plot.COLOURS, strict=False):
            axes.plot(counts, values, ".-", color=colour, label=name)
        last = found["meta-learned"][-1]
        axes.set(title=f"noise {level}/255", xlabel="steps of adaptation", ylim=(last - 4, last + 0.5))
    panels[0].set_ylabel("PSNR [dB]")
    panels[2].legend(loc="lower right")
