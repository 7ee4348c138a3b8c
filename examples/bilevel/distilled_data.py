"""Distilled data
==============

Ten synthetic digits, one of each class, are learned so that a regression trained on them alone classifies all others: a
bilevel problem without any image to reconstruct. Needs scikit-learn.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import learnreg as lr

UPDATES, SEED, RIDGE = 50, 0, 1e-2

pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
images = (pixels / 16).float()
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
training, test = order[:1200], order[1200:]
classes = torch.arange(10)
data = {"classes": classes, "images": images[training], "labels": labels[training]}


def logits(x: dict[str, Tensor], images: Tensor) -> Tensor:
    return images @ x["weights"] + x["bias"]


def fit_of_synthetic(x: dict[str, Tensor], theta: Tensor, data: dict) -> Tensor:
    """Softmax regression on the synthetic digits theta."""
    squares = x["weights"].square().sum() + x["bias"].square().sum()
    return cross_entropy(logits(x, theta), data["classes"]) + 0.5 * RIDGE * squares


def loss_of_real(x: dict[str, Tensor], theta: Tensor, data: dict) -> Tensor:
    return cross_entropy(logits(x, data["images"]), data["labels"])


problem = lr.BilevelProblem(fit_of_synthetic, loss_of_real, strong_convexity=RIDGE)
x = {"weights": torch.zeros(64, 10), "bias": torch.zeros(10)}


def trained_on(synthetic: Tensor) -> dict[str, Tensor]:
    return problem.solve(synthetic, x, data, tolerance=1e-3).x


def accuracy(x: dict[str, Tensor]) -> float:
    return float((logits(x, images[test]).argmax(1) == labels[test]).float().mean())


own = [training[labels[training] == label] for label in classes]
real = torch.stack([images[indices[0]] for indices in own])
means = torch.stack([images[indices].mean(0) for indices in own])
all_of_them = problem.solve(images[training], x, {**data, "classes": labels[training]}, 1e-3).x
print(f"test accuracy, trained on all {len(training)} digits: {accuracy(all_of_them):.3f}")
print(f"on one real digit of each class: {accuracy(trained_on(real)):.3f}")
print(f"on the mean of each class: {accuracy(trained_on(means)):.3f}")

# %%
# Adam on the hypergradients of the pixels, 640 of them.

theta = real.clone()
objective = lr.BilevelObjective(problem.at(theta, x, data))
optimizer = torch.optim.Adam(objective.problem.learnable().values(), lr=3e-2)
losses = []
for _ in range(UPDATES):
    losses.append(float(optimizer.step(objective.closure(tolerance=0.1))))
    theta.clamp_(0.0, 1.0)  # grey values
print(f"loss of {len(training)} real digits {losses[0]:.3f} -> {losses[-1]:.3f} in {UPDATES} updates")
print(f"on ten learned digits: {accuracy(trained_on(theta)):.3f}")
assert accuracy(trained_on(theta)) > accuracy(trained_on(means)) + 0.03 > accuracy(trained_on(real)) + 0.1

# %%
# Above one real digit of each class, below what became of them.

with lr.plot.paper_style():
    figure = Figure(figsize=(8, 1.8), layout="constrained")
    for axes, picture in zip(figure.subplots(2, 10).flat, [*real, *theta], strict=True):
        axes.imshow(picture.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
