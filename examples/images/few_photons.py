"""Blurred photographs of few photons
==================================

A blurred photograph of a few dozen photons per pixel, as in microscopy or astronomy. The noise of a count is as large
as its square root. Richardson-Lucy iterations fit the counts ever better and must be stopped; the likelihood with a
regularizer need not be, and its minimiser comes with a bound.
"""

import torch
from skimage.restoration import richardson_lucy

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Blur
from learnreg.regularizers import TotalVariation

SIDE, PHOTONS, BACKGROUND = 80, 60.0, 3.0

clean = natural_images("test")["camera"][:, 90 : 90 + SIDE, 215 : 215 + SIDE]
line = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / 1.3) ** 2)
kernel = torch.outer(line, line) / line.sum() ** 2
blur = Blur(kernel, tuple(clean.shape), boundary="reflect")
with torch.no_grad():
    expected = PHOTONS * blur(clean[None]).clamp_min(0) + BACKGROUND
counts = torch.poisson(expected, generator=torch.Generator().manual_seed(0))
print(f"{float(counts.mean()):.0f} photons per pixel on average, from {int(counts.min())} to {int(counts.max())}")


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


# %%
# The operator takes an image in [0, 1] to expected counts; the data term is in nats.

A = Blur(PHOTONS * kernel, tuple(clean.shape), boundary="reflect")
problem = lr.LowerLevelProblem(
    A,
    TotalVariation(3.0, smoothing=1e-2),
    ridge=1e-1,
    data_term=lr.Poisson(BACKGROUND),
    constraint=lr.Nonnegative(),
)
solution = lr.solve(problem, counts, tolerance=5e-3)
print(f"{solution.status.name}, within {float(solution.error_bound):.0e} ({solution.bound_kind}), by {solution.solver}")
assert solution.certified

# %%
# Richardson-Lucy of scikit-image, at its best of all iterations, which only the ground truth can tell.

signal = ((counts - BACKGROUND) / PHOTONS).clamp_min(1e-3)
padded = torch.nn.functional.pad(signal, (16, 16, 16, 16), mode="reflect")[0, 0].numpy()  # it takes 0 beyond the border


def deconvolved(steps: int) -> torch.Tensor:
    return torch.from_numpy(richardson_lucy(padded, kernel.numpy(), steps, clip=False))[None, 16:-16, 16:-16]


tried = {steps: deconvolved(steps) for steps in (2, 3, 5, 10, 20)}
best = max(tried, key=lambda steps: psnr(tried[steps]))
measured = ((counts - BACKGROUND) / PHOTONS)[0]
images = {
    "counts": measured,
    f"Richardson-Lucy, {best} steps": tried[best],
    "likelihood and TV": solution.x[0],
}
quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
assert quality["likelihood and TV"] > max(psnr(x) for x in tried.values()) + 0.5
figure = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    clean,
    measured=f"counts, {quality['counts']:.1f} dB",
)
