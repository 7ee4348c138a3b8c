"""A regularizer for bricks
========================

A field of experts learns its filters, weights and smoothings from the left half of a photograph of a wall, total
variation its weight from the same patches. On the right half, which neither has seen, filters that know bricks are
worth more than differences of neighbours. All reconstructions are certified.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation

SIGMA = 25 / 255

# %%
# Training pairs of patches, (noisy, clean). L-BFGS on 24 of them takes seconds; a model in earnest trains for minutes.

torch.manual_seed(0)
wall = natural_images("train")["brick"]
pairs = DenoisingPatches({"left half": wall[:, :, :256]}, sigma=SIGMA, patch=32, count=128)
A = Identity((1, 32, 32))
variation, experts = TotalVariation(0.07), FieldsOfExperts(filters=16, size=7)
lr.train(lr.LowerLevelProblem(A, variation), pairs, optimizer="lbfgs", samples=24, updates=5, progress=False)
run = lr.train(lr.LowerLevelProblem(A, experts), pairs, optimizer="lbfgs", samples=24, updates=25, progress=False)
curve = lr.plot.learning_curve(run)

# %%
# The right half.

clean = wall[:, 200:296, 300:396]
noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


images = {"noisy": noisy}
for name, R in {"total variation": variation, "field of experts": experts}.items():
    solution = lr.solve(lr.LowerLevelProblem(Identity(tuple(clean.shape)), R), noisy[None], tolerance=1e-3)
    images[name] = solution.x[0].detach()
    print(f"{name}: {psnr(images[name]):.2f} dB, within {float(solution.error_bound):.1e} of its minimiser")
    assert solution.certified
quality = {name: psnr(x) for name, x in images.items()}
assert quality["field of experts"] > quality["total variation"] + 1
comparison = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    clean,
    measured=f"noisy, {quality['noisy']:.1f} dB",
)

# %%
# What was learned: filters by falling weight, the potentials of their responses, and what they do to each frequency.

filters = lr.plot.filters(experts)
potentials = lr.plot.potentials(experts)
spectrum = lr.plot.spectrum(experts)
# sphinx_gallery_thumbnail_number = 2
