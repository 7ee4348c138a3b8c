"""Descent that cannot go wrong
============================

:class:`~learnreg.AdaptiveDescent` computes hypergradients only as accurately as a step needs, and takes a step only
when the loss is certain to fall, all errors included. The loss is known as an interval; the interval after a step lies
below the one before.
"""

import itertools

import torch
from matplotlib.figure import Figure

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

STEPS = 15
pairs = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=24, count=8)
b, clean = (torch.stack(column) for column in zip(*(pairs[i] for i in range(8)), strict=True))
torch.manual_seed(0)
problem = lr.LowerLevelProblem(Identity((1, 24, 24)), FieldsOfExperts(filters=8, size=3))
objective = lr.BatchObjective(problem, b, lr.SquaredError(clean))
descent = lr.AdaptiveDescent()
steps = [descent.step(objective) for _ in range(STEPS)]
print(f"loss {steps[0].loss:.3f} -> {steps[-1].loss - steps[-1].decrease:.3f}")
assert all(step.certified for step in steps)
assert all(step.decrease > 0 for step in steps)

# %%
# The loss is known as an interval. What a step is certain to lower it by takes all errors in, and so the intervals
# fall, too. Operator applications are those of all tries, rejected ones included.

intervals = [step.loss_interval for step in steps]
assert all(after[0] < before[0] for before, after in itertools.pairwise(intervals))
with lr.plot.paper_style():
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    updates = range(STEPS)
    left.plot(updates, [step.loss for step in steps], "-o", ms=3.5, color=lr.plot.COLOURS[0])
    left.set(title="loss before the step", xlabel="step")
    widths = [high - low for low, high in intervals]
    middle.semilogy(
        updates, [step.decrease for step in steps], "-s", ms=3.5, color=lr.plot.COLOURS[1], label="decrease"
    )
    middle.semilogy(updates, widths, "-^", ms=3.5, color=lr.plot.COLOURS[0], label="width of the interval")
    middle.set(title="certain decrease of the loss", xlabel="step")
    middle.legend()
    right.bar(updates, [step.operator_applications for step in steps], color=lr.plot.COLOURS[2])
    right.set(title="operator applications", xlabel="step")
