"""A blur that nobody measured
===========================

The kernel of a camera and the weight of total variation are learned from one pair of a sharp and a blurred photograph,
and used on another photograph of the same camera. The kernel is a parameter of the operator; its hypergradient is
certified like that of a regularizer.
"""

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Blur
from learnreg.regularizers import TotalVariation

UPDATES, SIDE, WIDTH, NOISE, RIDGE = 30, 48, 7, 3e-3, 3e-4

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


# %%
# The guess is round, the true kernel a diagonal line.

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
kernels = {"guessed": guess, "learned": learned.reshape(WIDTH, WIDTH), "true": true_kernel}
error = {name: float((kernel - true_kernel).norm() / true_kernel.norm()) for name, kernel in kernels.items()}
images = {"blurred": blurred[other][0], **{name: deblurred(problem)[0] for name, problem in problems.items()}}
quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
print(f"relative error of the kernel: guessed {error['guessed']:.2f}, learned {error['learned']:.2f}")
assert error["learned"] < 0.75 * error["guessed"]
assert quality["learned blur"] > quality["guessed blur"] + 1

maps = lr.plot.maps(
    {f"{name} kernel": kernel for name, kernel in kernels.items()}, window=(0.0, float(true_kernel.max()))
)

# %%
# Another photograph.

comparison = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    sharp[other][0],
    measured=f"blurred, {quality['blurred']:.1f} dB",
)
# sphinx_gallery_thumbnail_number = 2
