"""Denoising: a learned field of experts beside total variation
=============================================================

Both regularizers learn from the same patches: total variation its weight, the field of experts its filters, weights and
smoothings. All reconstructions are certified.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation

# %%
# Training pairs of patches, (noisy, clean), from photographs that come with scikit-image. 40 updates take seconds; a
# model in earnest trains for five minutes.

torch.manual_seed(0)
pairs = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=32, count=64)
problems = {
    "total variation": lr.LowerLevelProblem(Identity((1, 32, 32)), TotalVariation(0.07)),
    "field of experts": lr.LowerLevelProblem(Identity((1, 32, 32)), FieldsOfExperts(filters=12, size=5)),
}
for name, problem in problems.items():
    lr.train(problem, pairs, updates=5 if name == "total variation" else 40, batch_size=4, step_size=0.02)

# %%
# A photograph that was not among them.

clean = natural_images("test")["camera"][:, 60:188, 150:278]
noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


A = Identity(tuple(clean.shape))
learned = {name: lr.LowerLevelProblem(A, problem.regularizer) for name, problem in problems.items()}
solutions = {name: lr.solve(problem, noisy[None], tolerance=1e-3) for name, problem in learned.items()}
for name, solution in solutions.items():
    print(f"{name}: {psnr(solution.x[0]):.2f} dB, within {float(solution.error_bound):.1e} of its minimiser")
    assert solution.certified
gain = psnr(solutions["field of experts"].x[0]) - psnr(solutions["total variation"].x[0])
assert gain > 0.2

images = {f"noisy, {psnr(noisy):.1f} dB": noisy}
images |= {f"{name}, {psnr(solution.x[0]):.1f} dB": solution.x[0] for name, solution in solutions.items()}
comparison = lr.plot.comparison(images, clean, measured=next(iter(images)))

# %%
# What was learned: filters, by their weight, and the potentials of their responses.

filters = lr.plot.filters(problems["field of experts"].regularizer)
potentials = lr.plot.potentials(problems["field of experts"].regularizer)
