"""Lines of a spectrum, learned in one dimension
=============================================

A spectrometer smears narrow lines on a smooth background. Signals have one dimension; otherwise everything is as for
images. A field of experts with filters of nine samples is learned from twelve spectra, beside the weight of total
variation, and both deconvolve another one.
"""

import torch
from matplotlib.figure import Figure
from torch.nn.functional import conv1d, pad

import learnreg as lr
from learnreg.operators import from_callables
from learnreg.regularizers import FieldsOfExperts, TotalVariation

N, SIGMA, RIDGE = 128, 0.02, 1e-3
slit = torch.exp(-0.5 * (torch.arange(-4.0, 5.0) / 1.5) ** 2)
slit /= slit.sum()


def spectra(count: int, seed: int) -> torch.Tensor:
    """Six Gaussian lines on a slow wave, (count, 1, N)."""
    generator = torch.Generator().manual_seed(seed)
    place, height, phase = (torch.rand(count, n, 1, generator=generator) for n in (6, 6, 1))
    t = torch.arange(N) / N
    lines = (0.2 + 0.7 * height) * torch.exp(-0.5 * ((t - place) * N / 1.2) ** 2)
    return (lines.sum(1, keepdim=True) + 0.2 + 0.1 * torch.cos(6.28 * (t + phase))).contiguous()


# %%
# The spectrometer: a function is enough, its transpose follows by autograd.

A = from_callables(lambda x: conv1d(pad(x, (4, 4), mode="reflect"), slit.to(x)[None, None]), None, (1, N), (1, N))
train, test = spectra(12, 0), spectra(1, 1)
noise = SIGMA * torch.randn(13, 1, N, generator=torch.Generator().manual_seed(2))
b_train, b_test = A(train) + noise[:12], A(test) + noise[12:]

regularizers = {
    "total variation": TotalVariation(3e-3, smoothing=1e-2, dimensions=1),
    "field of experts": FieldsOfExperts(8, 9, lr.PseudoHuber(smoothing=2e-2, weight=3e-3), dimensions=1),
}
found = {}
for name, R in regularizers.items():
    problem = lr.LowerLevelProblem(A, R, ridge=RIDGE)
    pairs = list(zip(b_train, train, strict=True))
    lr.train(problem, pairs, optimizer="lbfgs", samples=12, updates=15, progress=False)
    solution = lr.solve(problem, b_test, tolerance=1e-3)
    found[name] = solution.x[0, 0].detach()
    assert solution.certified

error = {name: float((x - test[0, 0]).square().mean().sqrt()) for name, x in found.items()}
print({name: f"{value:.4f}" for name, value in error.items()})
assert error["field of experts"] < 0.8 * error["total variation"]

# %%
# Total variation cuts lines off and makes steps of the background; what was learned knows both.

with lr.plot.paper_style():
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (name, x), colour in zip(axes, found.items(), lr.plot.COLOURS, strict=False):
        axis.plot(b_test[0, 0], color="#B5B5B5", lw=1.0, label="measured")
        axis.plot(test[0, 0], color="black", lw=1.0, label="true")
        axis.plot(x, color=colour, label=name)
        axis.set(title=f"{name}: error {error[name]:.3f}", xlabel="sample")
        axis.legend()
