"""From denoising to tomography
============================

Denoising is cheap and patches are many: filters are learned there. Tomography takes them as they are, times one number,
whose hypergradient is certified like any other.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, RelativeNoise, TomographyPairs, load_ct_images
from learnreg.operators import Identity, ParallelBeam2D, filtered_back_projection
from learnreg.regularizers import FieldsOfExperts, Scaled, TotalVariation

SIZE, VIEWS = 64, 24

A = ParallelBeam2D(SIZE, VIEWS)  # line integrals, the side of the image being 1
training, held_out = load_ct_images("ellipses", SIZE, count=8)
experts = FieldsOfExperts(8, 3, lr.PseudoHuber(smoothing=1e-2, weight=0.1), minimum_smoothing=2e-3)
patches = DenoisingPatches(training, sigma=10 / 255, patch=24, count=64)
denoising = lr.LowerLevelProblem(Identity((1, 24, 24)), experts)
lr.train(denoising, patches, batch_size=8, step_size=0.1, updates=40, progress=False)

# %%
# ``Scaled`` keeps a copy of the experts as they are, times a learnable factor. The start is the best of three factors
# on two phantoms; from there L-BFGS goes on. Total variation learns its weight in the same way.

pairs = TomographyPairs(A, training, RelativeNoise(0.01))
b, clean = (torch.stack(column) for column in zip(*(pairs[i] for i in range(2)), strict=True))


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float((-10 * torch.log10((x - truth).square().flatten(1).mean(1))).mean())


def problem_with(R: lr.Regularizer) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(A, R, ridge=1e-3, constraint=lr.Nonnegative())


def learned(R: lr.Regularizer) -> lr.LowerLevelProblem:
    starts = {f: problem_with(Scaled(R, f)) for f in (1e-4, 1e-3, 1e-2)}
    quality = {f: psnr(lr.solve(p, b, tolerance=5e-3).x.detach(), clean) for f, p in starts.items()}
    problem = starts[max(quality, key=lambda f: quality[f])]
    hg = lr.hypergradient(problem, b, lr.SquaredError(clean), tolerance=0.1)
    assert hg.certified
    lr.train(problem, pairs, batch_size=2, optimizer="lbfgs", samples=2, updates=4, progress=False)
    factor = float(problem.regularizer.factor.detach())
    print(f"{type(R).__name__}: factor {factor:.2e}, relative error of the first gradient at most ", end="")
    print(f"{hg.relative_error_bound:.0e}")
    return problem


truth = torch.stack(list(held_out.values())[:2])
test = TomographyPairs(A, truth, RelativeNoise(0.01), seed=1)
measured = torch.stack([test[i][0] for i in range(2)])
images = {"filtered back-projection": filtered_back_projection(A, measured, "hann")}
for name, R in {"total variation": TotalVariation(1.0, smoothing=1e-2), "learned by denoising": experts}.items():
    solution = lr.solve(learned(R), measured, tolerance=3e-3)
    assert solution.certified
    images[name] = solution.x.detach()
quality = {name: psnr(x, truth) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})
assert quality["learned by denoising"] > quality["filtered back-projection"] + 4
assert quality["learned by denoising"] > quality["total variation"]
figure = lr.plot.comparison({f"{name}, {quality[name]:.1f} dB": x[0] for name, x in images.items()}, truth[0])
