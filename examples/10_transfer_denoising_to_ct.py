"""From denoising to tomography
============================

Learn a regularizer for denoising, use it in computed tomography: one number, its factor, has to be found."""

import sys

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, RelativeNoise, TomographyPairs, load_ct_images
from learnreg.operators import Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, Scaled

SIZE, VIEWS = 48, 30
UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 40

A = ParallelBeam2D(SIZE, VIEWS)

training, held_out = load_ct_images("ellipses", SIZE, count=8)

# 1. Denoising is cheap, and patches are many: learn the filters there (or load a model: lr.load("...").regularizer).
experts = FieldsOfExperts(8, 3, lr.PseudoHuber(smoothing=1e-2, weight=0.1), minimum_smoothing=2e-3)
patches = DenoisingPatches(training, sigma=10 / 255, patch=24, count=64)
denoising = lr.LowerLevelProblem(Identity((1, 24, 24)), experts)
lr.train(denoising, patches, minutes=1.0, batch_size=16, step_size=1e-1, updates=UPDATES)

# 2. Tomography: Scaled keeps a copy of the experts as they are, times a learnable factor.
pairs = TomographyPairs(A, training, RelativeNoise(0.01))
b, x_true = (torch.stack(column) for column in zip(*(pairs[i] for i in range(2)), strict=True))


def tomography(factor: float) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(A, Scaled(experts, factor), ridge=1e-3, constraint=lr.Nonnegative())


def psnr(x: torch.Tensor, clean: torch.Tensor) -> float:
    return float((-10 * torch.log10((x - clean).square().flatten(1).mean(1))).mean())


# Try a few factors on pairs of measurement and ground truth ...
found = {f: psnr(lr.solve(tomography(f), b, tolerance=3e-3).x, x_true) for f in (1e-4, 1e-3, 1e-2)}
best = max(found, key=lambda factor: found[factor])
print("  ".join(f"factor {factor:g}: {value:.2f} dB" for factor, value in found.items()))

# ... and learn it from there: its hypergradient is one number, certified like any other.
problem = tomography(best)
hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=0.1)
print(f"gradient {float(hg.gradient['log_factor']):.2e}, relative error at most {hg.relative_error_bound:.1e}")
lr.train(problem, pairs, minutes=0.5, batch_size=2, optimizer="lbfgs", samples=2, updates=min(UPDATES, 6))
clean = torch.stack(list(held_out.values())[:2])
test = TomographyPairs(A, clean, RelativeNoise(0.01), seed=1)
solution = lr.solve(problem, torch.stack([test[i][0] for i in range(2)]), tolerance=3e-3)
factor = float(problem.regularizer.factor.detach())
print(f"learned factor {factor:.2e}: {psnr(solution.x, clean):.2f} dB on held-out phantoms")
