"""Your own training loop
======================

Your own training loop: the lower-level solution as a layer, or certified hypergradients under any torch
optimizer."""

import sys

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 8

patches = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=48)
loader = torch.utils.data.DataLoader(patches, batch_size=4, shuffle=True)

# 1. A layer: gradients flow through argmin, here by the piggyback method, into the regularizer (and into b).
regularizer = FieldsOfExperts(filters=8, size=3)
layer = lr.solution_layer(lr.LowerLevelProblem(Identity((1, 48, 48)), regularizer), lr.Piggyback(), tolerance=1e-3)
optimizer = torch.optim.Adam(regularizer.parameters(), lr=2e-2)
for update, (b, x_true) in zip(range(UPDATES), loader, strict=False):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(layer(b), x_true)
    loss.backward()
    optimizer.step()
    if update % 5 == 0:
        bound = layer.last_solution.error_bound.max()
        print(f"layer    update {update:2d}  mse {loss.item():.5f}  root-mean-square error of x at most {bound:.1e}")

# 2. Certified hypergradients under torch.optim.LBFGS, on one batch.
b, x_true = next(iter(loader))
problem = lr.LowerLevelProblem(Identity((1, 48, 48)), regularizer)
objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), lr.Implicit())
quasi_newton = torch.optim.LBFGS(regularizer.parameters(), lr=0.1, max_iter=UPDATES)
quasi_newton.step(
    objective.closure(
        tolerance=0.1,
        callback=lambda hg: print(f"L-BFGS  loss {hg.loss:.4f}  relative error bound {hg.relative_error_bound:.1e}"),
    )
)

# 3. Adaptive descent: every accepted step is certified to decrease the loss.
descent = lr.AdaptiveDescent()
for _ in range(min(UPDATES, 3)):
    step = descent.step(objective)
    print(f"adaptive   loss {step.loss:.4f}  certified {step.certified}  decrease at least {step.decrease:.2e}")
