"""A weight without a ground truth
===============================

Nobody has the clean image of a measurement. Three criteria choose the weight of total variation without one: the
discrepancy, Stein's unbiased risk estimate (SURE), and the whiteness of the residual. Each is a loss of your own,
:class:`~learnreg.UpperLoss`, of which gradients are computed like those of any other.
"""

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation

STEPS, SIDE, SIGMA, PROBE = 12, 64, 20 / 255, 1e-2

clean = natural_images("test")["camera"][None, :, 100 : 100 + SIDE, 180 : 180 + SIDE]
generator = torch.Generator().manual_seed(0)
noise, direction = (torch.randn(clean.shape, generator=generator) for _ in range(2))
noisy = clean + SIGMA * noise
pixels = clean.numel()


def discrepancy(x: Tensor) -> Tensor:
    """Morozov: the residual should be as large as the noise."""
    return 0.5 * ((x - noisy.to(x)).square().mean() / SIGMA**2 - 1.0) ** 2


def risk(x: Tensor) -> Tensor:
    """Stein (1981), Ramani, Blu and Unser (2008): residual and divergence, which a second solution for the data
    moved along a random direction estimates, say the mean squared error, up to a constant."""
    b, d = noisy.to(x), direction.to(x)
    divergence = (d * (x[1:] - x[:1])).sum() / PROBE
    return ((x[:1] - b).square().sum() + 2 * SIGMA**2 * divergence) / (pixels * SIGMA**2)


def whiteness(x: Tensor) -> Tensor:
    """Lanza, Pragliola and Sgallari (2020): the residual's autocorrelation should be that of white noise, 0 off the
    origin."""
    residual = x - noisy.to(x)
    power = torch.fft.fft2(residual).abs().square()
    return power.square().sum() / power.sum() ** 2 * pixels


def truth(x: Tensor) -> Tensor:
    return (x - clean.to(x)).square().sum() / (pixels * SIGMA**2)


def learned(criterion: Callable[[Tensor], Tensor], b: Tensor) -> TotalVariation:
    """By L-BFGS on the logarithm of the weight."""
    problem = lr.LowerLevelProblem(Identity(clean.shape[1:]), TotalVariation(0.05, smoothing=1e-2))
    objective = lr.BatchObjective(problem, b, lr.UpperLoss(criterion))
    optimizer = torch.optim.LBFGS(
        problem.regularizer.parameters(), lr=0.5, max_iter=STEPS, line_search_fn="strong_wolfe"
    )
    optimizer.step(objective.closure(tolerance=1e-3))
    return problem.regularizer


def psnr(regularizer: TotalVariation) -> float:
    x = lr.solve(lr.LowerLevelProblem(Identity(clean.shape[1:]), regularizer), noisy, 1e-4).x
    return float(-10 * (x - clean).square().mean().log10())


# %%
# The risk estimate needs the solutions of two data; the loss of the batch couples them, and the hypergradient knows.

moved = torch.cat([noisy, noisy + PROBE * direction])
criteria = {
    "discrepancy": (discrepancy, noisy),
    "risk (SURE)": (risk, moved),
    "whiteness": (whiteness, noisy),
    "truth": (truth, noisy),
}
found = {name: learned(criterion, b) for name, (criterion, b) in criteria.items()}
for name, regularizer in found.items():
    print(f"{name:12}: weight {float(regularizer.weight.detach()):.4f}, PSNR {psnr(regularizer):.2f} dB")

best = psnr(found["truth"])
assert psnr(found["risk (SURE)"]) > best - 0.1
assert psnr(found["whiteness"]) > best - 0.7
assert psnr(found["discrepancy"]) > best - 2

weights = torch.logspace(-2, -0.5, 22)
with lr.plot.paper_style():
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(weights, [psnr(TotalVariation(float(w), smoothing=1e-2)) for w in weights], "k-", label="all weights")
    for (name, regularizer), marker, colour in zip(found.items(), "osv*", lr.plot.COLOURS, strict=False):
        axes.plot(float(regularizer.weight.detach()), psnr(regularizer), marker, ms=9, color=colour, label=name)
    axes.set(xlabel="weight", ylabel="PSNR [dB]")
    axes.legend()
