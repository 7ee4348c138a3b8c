"""Data hyper-cleaning
===================

40 % of the training labels are wrong. A weight for each sample is learned from the loss of 200 digits with clean
labels, by descent of which every step is certified to lower that loss. Needs scikit-learn.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

import learnreg as lr

STEPS, SEED, SAMPLES = 10, 0, 1000
RIDGE, TRUST = 2e-2, 3e-2

# %%
# Digits of 8 x 8 pixels: 18 principal components, their products, and 1.
pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
centred = (pixels - pixels.mean(0)) / 16
components = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:18].T
first, second = torch.triu_indices(18, 18)
products = components[:, first] * components[:, second]
features = torch.cat([components, products, torch.ones(len(labels), 1)], 1).float()

generator = torch.Generator().manual_seed(SEED)
order = torch.randperm(len(labels), generator=generator)
validation, training, test = order[:200], order[200 : 200 + SAMPLES], order[1200:]
corrupted = torch.zeros(SAMPLES, dtype=torch.bool)
corrupted[torch.randperm(SAMPLES, generator=generator)[: 2 * SAMPLES // 5]] = True
shifts = torch.randint(1, 10, (SAMPLES,), generator=generator)
given = torch.where(corrupted, (labels[training] + shifts) % 10, labels[training])
data = {"features": features[training], "labels": given, "clean": (features[validation], labels[validation])}


def weighted_fit(x: Tensor, theta: Tensor, data: dict) -> Tensor:
    """Softmax regression of weighted samples."""
    losses = cross_entropy(data["features"] @ x, data["labels"], reduction="none")
    return (torch.sigmoid(theta) * losses).mean() + 0.5 * RIDGE * x.square().sum()


def clean_loss(x: Tensor, theta: Tensor, data: dict) -> Tensor:
    """Of the validation digits, with a little trust in labels: -log of the weights, which would follow chance else."""
    features, labels = data["clean"]
    return cross_entropy(features @ x, labels) + TRUST * softplus(-theta).mean()


def accuracy(x: Tensor) -> float:
    return float(((features[test] @ x).argmax(1) == labels[test]).float().mean())


# %%
# The constants that certificates need. The Hessian of cross-entropy in the logits is at most 1/2, its Lipschitz
# constant at most 2^1.5 / (6 sqrt(3)).
spectral = [float(torch.linalg.matrix_norm(features[part], 2)) for part in (training, validation)]
lengths = features[training].norm(dim=1)
problem = lr.BilevelProblem(
    weighted_fit,
    clean_loss,
    strong_convexity=RIDGE,
    gradient_lipschitz=RIDGE + spectral[0] ** 2 / (2 * SAMPLES),
    hessian_lipschitz=0.2722 * float(lengths.pow(3).mean()),
    cross_bound=2**0.5 * spectral[0] / (4 * SAMPLES),
    cross_lipschitz=spectral[0] * float(lengths.max()) / (8 * SAMPLES),
    upper_gradient_lipschitz=spectral[1] ** 2 / (2 * len(validation)),
)
x = torch.zeros(features.shape[1], 10)
for name, theta in {"all": torch.full((SAMPLES,), 20.0), "clean ones": torch.where(corrupted, -20.0, 20.0)}.items():
    print(f"test accuracy, trained on {name}: {accuracy(problem.solve(theta, x, data, 1e-4).x):.3f}")

theta = torch.zeros(SAMPLES)  # all weights are 1/2
objective = lr.BilevelObjective(problem.at(theta, x, data))
descent = lr.AdaptiveDescent()
steps = [descent.step(objective) for _ in range(STEPS)]
weights = torch.sigmoid(theta)
print(f"validation loss {steps[0].loss:.3f} -> {steps[-1].loss - steps[-1].decrease:.3f}, "
      f"every step certified: {all(step.certified for step in steps)}")  # fmt: skip
below = [float((weights[part] < 0.5).float().mean()) for part in (corrupted, ~corrupted)]
print(f"weight below 1/2: {below[0]:.1%} of the corrupted, {below[1]:.1%} of the clean ones")
print(f"test accuracy, trained with learned weights: {accuracy(problem.solve(theta, x, data, 1e-4).x):.3f}")
assert all(step.certified for step in steps)
assert below[0] > 0.9
assert below[1] < 0.05

# %%
# Learned weights, and the six digits that are trusted least, with the labels that were given.


with lr.plot.paper_style():
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    histogram, *pictures = figure.subplot_mosaic("AABCD;AAEFG").values()
    parts = [weights[~corrupted].numpy(), weights[corrupted].numpy()]
    histogram.hist(parts, bins=20, range=(0, 1), label=["clean", "corrupted"], color=lr.plot.COLOURS[:2])
    histogram.set(xlabel="learned weight", ylabel="training digits")
    histogram.legend()
    for axes, worst in zip(pictures, weights.argsort(), strict=False):
        axes.imshow(pixels[training[worst]].view(8, 8).numpy(), cmap="gray_r")
        axes.set_title(f"“{int(given[worst])}”, {float(weights[worst]):.3f}", fontsize=8)
        axes.set_axis_off()
