"""Bounds beside true errors, for three ways to a hypergradient
============================================================

Implicit differentiation solves a linear system, the piggyback iteration carries a derivative along, unrolling
differentiates its own steps. Whatever computes the gradient, the same certificate bounds its error; a reference to
rounding shows that it holds.
"""

import torch
from matplotlib.figure import Figure

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

torch.manual_seed(0)
clean = natural_images("test")["camera"][None, :, 100:132, 220:252].double()
noisy = clean + 25 / 255 * torch.randn_like(clean)
problem = lr.LowerLevelProblem(Identity((1, 32, 32)), 0.2 * FieldsOfExperts(filters=6, size=3))
loss = lr.SquaredError(clean)


def flat(hg: lr.Hypergradient) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in hg.gradient.values()])


reference = lr.hypergradient(problem, noisy, loss, tolerance=1e-9)
true = flat(reference)
assert reference.certified

# %%
# Implicit and Piggyback are given tolerances, Unrolled numbers of steps.

tolerances = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
runs = {
    "implicit": [(lr.Implicit(), tolerance) for tolerance in tolerances],
    "piggyback": [(lr.Piggyback(), tolerance) for tolerance in tolerances],
    "unrolled": [(lr.Unrolled(steps=steps), 1e-4) for steps in (5, 10, 20, 40, 80)],
}
rows: dict[str, list[tuple[int, float, float]]] = {}
for name, settings in runs.items():
    for method, tolerance in settings:
        hg = lr.hypergradient(problem, noisy, loss, method=method, tolerance=tolerance)
        error, bound = float((flat(hg) - true).norm() / true.norm()), hg.error_bound / float(true.norm())
        assert hg.certified
        assert error <= bound + 1e-9
        rows.setdefault(name, []).append((hg.operator_applications, error, bound))
    worst = max(bound for _, _, bound in rows[name])
    print(f"{name}: {len(settings)} bounds hold; bounds {worst:.0e} to {min(row[2] for row in rows[name]):.0e}")

# %%
# Implicit and piggyback were asked for accuracies, and the bounds meet them.

for name in ("implicit", "piggyback"):
    assert all(bound <= 1.01 * tolerance for (_, _, bound), tolerance in zip(rows[name], tolerances, strict=True))

with lr.plot.paper_style():
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, 3, sharey=True), rows.items(), strict=True):
        count, error, bound = zip(*found, strict=True)
        axes.semilogy(count, bound, "^-", color=lr.plot.COLOURS[1], label="certified bound")
        axes.semilogy(count, error, "o-", color=lr.plot.COLOURS[0], label="true error")
        axes.locator_params(axis="x", nbins=4)
        axes.set(title=name, xlabel="operator applications")
    figure.axes[0].set_ylabel("relative error of the hypergradient")
    figure.axes[0].legend()
