"""Views of different quality
==========================

Views of different quality: learn how much to trust each of them, with the regularizer, and store the weights."""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import load_ct_images
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

SIZE, VIEWS = 32, 24
UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 60

A = ParallelBeam2D(SIZE, VIEWS)

# A scanner whose first third of views is ten times as noisy as the others.
noise = torch.full((1, VIEWS, 1), 2e-3)
noise[:, : VIEWS // 3] *= 10
images = list(load_ct_images("ellipses", SIZE, count=12)[0].values())
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    pairs = [(b + noise * torch.randn(b.shape, generator=generator), x) for x in images for b in A(x[None])]

weights = nn.Parameter(torch.ones(1, VIEWS, 1))  # one for each view: it broadcasts against (1, angles, detectors)
problem = lr.LowerLevelProblem(
    A, TotalVariation(1e-3, smoothing=1e-2), ridge=1e-3, data_term=lr.WeightedLeastSquares(weights)
)


def loss_of(pairs: list[tuple[Tensor, Tensor]]) -> float:
    b, x_true = (torch.stack(column) for column in zip(*pairs, strict=True))
    return float((lr.solve(problem, b, tolerance=3e-3).x - x_true).square().mean().sqrt())


before = loss_of(pairs[8:])
hg = lr.hypergradient(problem, pairs[0][0][None], lr.SquaredError(pairs[0][1][None]), tolerance=0.1)
print(f"gradient of {sorted(hg.gradient)}, certified: {hg.certified}")
lr.train(problem, pairs[:8], minutes=0.7, batch_size=4, step_size=1e-1, updates=UPDATES)  # keeps weights >= 0
learned = weights.detach().flatten()
print(f"mean weight of noisy views {float(learned[: VIEWS // 3].mean()):.2f}, of the others "
      f"{float(learned[VIEWS // 3 :].mean()):.2f}")  # fmt: skip
print(f"root-mean-square error on other images: {before:.4f} before, {loss_of(pairs[8:]):.4f} after")

with tempfile.TemporaryDirectory() as folder:  # the weights are part of the model file
    lr.save_model(Path(folder) / "model.safetensors", problem)
    again = lr.load(Path(folder) / "model.safetensors").problem()
    print("stored and loaded:", bool((again.data_term.weights_for(weights) == weights).all()))
