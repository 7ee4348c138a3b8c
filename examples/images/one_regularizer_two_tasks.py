"""Learned by denoising, used to deblur and to inpaint
===================================================

A field of experts learned by denoising alone sharpens a blurred photograph and fills in missing pixels of another. One
number has to be found for each task, its factor; it is chosen on another photograph. Everything else stays as it was
learned.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import FieldsOfExperts, TotalVariation

SIDE, SIGMA = 64, 2 / 255
torch.manual_seed(0)
pairs = DenoisingPatches(natural_images("train"), sigma=15 / 255, patch=32, count=128)
learned = FieldsOfExperts(filters=12, size=5)
lr.train(
    lr.LowerLevelProblem(Identity((1, 32, 32)), learned),
    pairs,
    updates=60,
    batch_size=4,
    step_size=0.05,
    schedule="annealed",
    progress=False,
)

# %%
# A blur of seven by seven pixels, and seventy per cent of the pixels missing; noise of 2/255 in both.

generator = torch.Generator().manual_seed(1)
line = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / 1.3) ** 2)
operators = {
    "blurred": Blur(torch.outer(line, line) / line.sum() ** 2, (1, SIDE, SIDE), boundary="reflect"),
    "measured": Inpainting((torch.rand(1, SIDE, SIDE, generator=generator) < 0.3).float()),
}
tuned_on = natural_images("train")["astronaut"][:, 70 : 70 + SIDE, 190 : 190 + SIDE]
clean = natural_images("test")["camera"][:, 75 : 75 + SIDE, 215 : 215 + SIDE]


def psnr(x: torch.Tensor, truth: torch.Tensor = clean) -> float:
    return float(-10 * (x - truth).square().mean().log10())


def measured(A: lr.LinearOperator, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        b = A(x[None])
    noise = SIGMA * torch.randn(b.shape, generator=generator)
    return b + noise * (b != 0)  # what is not measured has no noise


def solve(A: lr.LinearOperator, R: lr.Regularizer, factor: float, b: torch.Tensor) -> lr.Solution:
    return lr.solve(lr.LowerLevelProblem(A, factor * R, ridge=1e-4), b, tolerance=5e-3)


figures = {}
for name, A in operators.items():
    tuning, b = measured(A, tuned_on), measured(A, clean)
    images = {name: b[0]}
    for title, R, factors in (
        ("total variation", TotalVariation(1.0, smoothing=1e-2), (3e-4, 1e-3, 3e-3)),
        ("learned by denoising", learned, (0.01, 0.03, 0.1)),
    ):
        best = max(factors, key=lambda f: psnr(solve(A, R, f, tuning).x[0].detach(), tuned_on))
        solution = solve(A, R, best, b)
        assert solution.certified
        images[title] = solution.x[0].detach()
        print(f"{name}, {title}: factor {best:g}, {psnr(images[title]):.2f} dB")
    assert psnr(images["learned by denoising"]) > psnr(images["total variation"]) + 0.1
    figures[name] = lr.plot.comparison(
        {f"{title}, {psnr(x):.1f} dB": x for title, x in images.items()},
        clean,
        measured=f"{name}, {psnr(images[name]):.1f} dB",
    )
deblurred, inpainted = figures.values()
