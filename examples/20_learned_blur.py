"""A blur that nobody measured
===========================

A blur that nobody measured: its kernel and the weight of total variation are learned from one pair of a sharp and a
blurred photograph, and used on another photograph of the same camera."""

import sys

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Blur
from learnreg.regularizers import TotalVariation

UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 80
SIDE, WIDTH, NOISE, RIDGE = 64, 7, 3e-3, 1e-4

line = torch.arange(WIDTH, dtype=torch.float32) - WIDTH // 2
rows, columns = torch.meshgrid(line, line, indexing="ij")
true_kernel = torch.exp(-0.5 * ((rows - columns) / 3.0) ** 2 - 0.5 * ((rows + columns) / 0.8) ** 2)  # along a diagonal
true_kernel /= true_kernel.sum()
camera = Blur(true_kernel, (1, SIDE, SIDE), "reflect")
photographs = natural_images("train")
corners = {"astronaut": (60, 180), "coins": (40, 60)}
sharp = torch.stack([photographs[k][:, i : i + SIDE, j : j + SIDE] for k, (i, j) in corners.items()])
noise = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
blurred = camera(sharp) + NOISE * noise
pair, other = slice(0, 1), slice(1, 2)


def problem_of(kernel: Tensor) -> lr.LowerLevelProblem:
    operator = Blur(kernel, (1, SIDE, SIDE), "reflect")
    return lr.LowerLevelProblem(operator, TotalVariation(1e-3, smoothing=1e-2), ridge=RIDGE)


def learn(problem: lr.LowerLevelProblem) -> None:
    """Adam on the hypergradients; the kernel stays nonnegative and sums to 1."""
    objective = lr.BatchObjective(problem, blurred[pair], lr.SquaredError(sharp[pair]))
    weights = list(problem.regularizer.parameters())
    kernels = [p for p in problem.learnable().values() if all(p is not w for w in weights)]
    optimizer = torch.optim.Adam([{"params": weights, "lr": 0.1}, {"params": kernels, "lr": 5e-3}])
    for _ in range(UPDATES):
        optimizer.step(objective.closure(tolerance=0.1))
        with torch.no_grad():
            for kernel in kernels:
                kernel.clamp_(min=0.0).div_(kernel.sum())


def deblurred(problem: lr.LowerLevelProblem) -> Tensor:
    return lr.solve(problem, blurred[other], 1e-3).x


def psnr(x: Tensor) -> float:
    return float(-10 * (x - sharp[other]).square().mean().log10())


guess = torch.exp(-0.5 * (rows**2 + columns**2))
guess /= guess.sum()
problems = {
    "guessed blur": problem_of(guess),
    "learned blur": problem_of(nn.Parameter(guess.clone())),
    "true blur": problem_of(true_kernel),
}
for problem in problems.values():
    learn(problem)
learned = problems["learned blur"].operator.kernel.detach()
print(f"distance to the true kernel, relative: guessed {float((guess - true_kernel).norm() / true_kernel.norm()):.2f}, "
      f"learned {float((learned.reshape(WIDTH, WIDTH) - true_kernel).norm() / true_kernel.norm()):.2f}")  # fmt: skip
print(f"another photograph, blurred: {psnr(blurred[other]):.2f} dB")
for name, problem in problems.items():
    print(f"deblurred by the {name}: {psnr(deblurred(problem)):.2f} dB")

figure = Figure(figsize=(9, 3.6), layout="constrained")
axes = figure.subplots(2, 4, height_ratios=(1, 3))
kernels = (None, guess, learned.reshape(WIDTH, WIDTH), true_kernel)
for (above, below), kernel, (name, x) in zip(
    axes.T, kernels, [("blurred", blurred[other]), *((n, deblurred(p)) for n, p in problems.items())], strict=True
):
    if kernel is not None:
        above.imshow(kernel.numpy(), cmap="gray", vmin=0, vmax=float(true_kernel.max()))
    above.axis("off")
    below.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
    below.set(title=name, xticks=[], yticks=[])
figure.savefig("learned_blur.png", dpi=110)
# sphinx_gallery_thumbnail_path = 'learned_blur.png'
