"""Continual learning
==================

Digits arrive two classes at a time. Each task is learned under the constraint that the losses of earlier classes do not
grow, and how much each weight may move is learned from a few digits of all classes so far. Needs scikit-learn.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import learnreg as lr

CUTS, UPDATES, SEED = 4, 4, 0
TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
COMPONENTS, PROXIMITY = 16, 1e-2

pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
centred = (pixels - pixels.mean(0)) / 16
components = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:COMPONENTS].T
features = torch.cat([components, torch.ones(len(labels), 1)], 1).float()
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
own = [order[:1200][labels[order[:1200]] == label] for label in range(10)]
memory, validation, training = (
    [indices[part] for indices in own] for part in (slice(10), slice(10, 20), slice(20, None))
)
test = order[1200:]


def loss_at(x: Tensor, indices: Tensor) -> Tensor:
    return cross_entropy(features[indices] @ x, labels[indices])


def present_loss(x: Tensor, theta: Tensor, data: dict) -> Tensor:
    """Softmax regression on the present task, near what was learned before."""
    features, labels = data["present"]
    return cross_entropy(features @ x, labels) + 0.5 * (theta.exp() * (x - data["before"]).square()).sum()


def loss_of_all(x: Tensor, theta: Tensor, data: dict) -> Tensor:
    features, labels = data["validation"]
    return cross_entropy(features @ x, labels)


def accuracy(x: Tensor, classes: list[int]) -> float:
    chosen = test[torch.isin(labels[test], torch.tensor(classes))]
    return float(((features[chosen] @ x).argmax(1) == labels[chosen]).double().mean())


def earlier_losses(before: Tensor, points: list[Tensor], classes: list[int]) -> lr.LinearConstraints:
    """loss_c(x) <= loss_c(before) for earlier classes c. Losses are convex, so that loss_c(z) + <∇loss_c(z), x - z> <=
    loss_c(before) holds wherever that does, and for many z implies it nearly."""
    rows, sides = [], []
    for group in (memory[label] for label in classes):
        for z in points:
            point = z.clone().requires_grad_()
            loss = loss_at(point, group)
            (slope,) = torch.autograd.grad(loss, point)
            rows.append(slope.flatten())
            sides.append(loss_at(before, group) - loss.detach() + (slope * z).sum())
    return lr.LinearConstraints(torch.stack(rows), torch.stack(sides), "inequality")


def adapt(before: Tensor, task: tuple[int, ...], earlier: list[int], constrained: bool, learned: bool) -> Tensor:
    """Weights after one more task."""
    present, known = (torch.cat([group[c] for c in classes]) for group, classes in
                      ((training, task), (validation, (*earlier, *task))))  # fmt: skip
    parts = {name: (features[k], labels[k]) for name, k in {"present": present, "validation": known}.items()}
    data, theta, points = {"before": before, **parts}, torch.full_like(before, PROXIMITY).log(), [before]
    rounds = CUTS if constrained and earlier else 1
    for k in range(rounds):
        problem = lr.BilevelProblem(
            present_loss,
            loss_of_all,
            strong_convexity=lambda theta, data: float(theta.exp().min()),
            constraint=earlier_losses(before, points, earlier) if constrained and earlier else None,
        )
        objective = lr.BilevelObjective(problem.at(theta, points[-1], data))
        optimizer = torch.optim.Adam(objective.problem.learnable().values(), lr=0.5)
        for _ in range(UPDATES if learned and k == rounds // 2 else 0):
            optimizer.step(objective.closure(tolerance=0.1))
        points.append(problem.solve(theta, points[-1], data, tolerance=1e-4).x)
    return points[-1]


# %%
# Without either remedy the earlier classes are forgotten.

with lr.plot.paper_style():
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.subplots()
final = {}
settings = {"neither": (False, False), "constraints": (True, False), "learned": (False, True), "both": (True, True)}
for (name, (constrained, learned)), colour in zip(settings.items(), lr.plot.COLOURS, strict=False):
    x, earlier, curve = torch.zeros(COMPONENTS + 1, 10), [], []
    for task in TASKS:
        before, x = x, adapt(x, task, earlier, constrained, learned)
        grown = max((float(loss_at(x, memory[c]) - loss_at(before, memory[c])) for c in earlier), default=0.0)
        curve.append(accuracy(x, [*earlier, *task]))
        last, earlier = earlier, [*earlier, *task]
    print(
        f"{name:12s} test accuracy on earlier classes {accuracy(x, last):.3f}, on the last two "
        f"{accuracy(x, list(task)):.3f}, on all {curve[-1]:.3f}; a loss grew by {grown:.3f} in the last task"
    )
    final[name] = curve[-1]
    axes.plot([2 * k + 2 for k in range(len(TASKS))], curve, ".-", color=colour, label=name)
axes.set(xlabel="classes so far", ylabel="test accuracy on them")
axes.legend(frameon=False)
assert min(final["constraints"], final["both"]) > final["neither"] + 0.2
