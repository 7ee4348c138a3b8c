"""A learned field of experts beside total variation
=================================================

Both regularizers learn from the same patches: total variation its weight, the field of experts its filters, weights and
smoothings. All reconstructions are certified.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation

SIGMA, UPDATES = 25 / 255, 60

# %%
# Training pairs of patches, (noisy, clean), from photographs that come with scikit-image. Sixty updates take seconds; a
# model in earnest trains for five minutes. Every tenth update an audit bounds the error of two hypergradients.

torch.manual_seed(0)
pairs = DenoisingPatches(natural_images("train"), sigma=SIGMA, patch=32, count=128)
A = Identity((1, 32, 32))
variation, experts = TotalVariation(0.07), FieldsOfExperts(filters=12, size=5)
lr.train(lr.LowerLevelProblem(A, variation), pairs, optimizer="lbfgs", samples=16, updates=4, progress=False)
run = lr.train(
    lr.LowerLevelProblem(A, experts),
    pairs,
    updates=UPDATES,
    batch_size=4,
    step_size=0.05,
    schedule="annealed",
    progress=False,
)
curve = lr.plot.learning_curve(run)

# %%
# A photograph that was not among them.

clean = natural_images("test")["camera"][:, 60:156, 170:266]
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
assert quality["field of experts"] > quality["total variation"] + 0.1
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
