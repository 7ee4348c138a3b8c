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

SIGMA, UPDATES = 25 / 255, 100

# %%
# Training pairs of patches, (noisy, clean), from photographs that come with scikit-image. A hundred updates take
# seconds; a model in earnest trains for five minutes. Every tenth update an audit bounds the error of two
# hypergradients.

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
    step_size=0.1,
    schedule="annealed",
    progress=False,
)
curve = lr.plot.learning_curve(run)

# %%
# Three photographs that were not among them; the first one is shown.

corners = {"camera": (60, 170), "coffee": (60, 150), "rocket": (200, 280)}
photographs = natural_images("test")
clean = torch.stack([photographs[name][:, i : i + 96, j : j + 96] for name, (i, j) in corners.items()])
noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def psnr(x: torch.Tensor, truth: torch.Tensor = clean) -> float:
    return float(-10 * (x - truth).square().mean((-3, -2, -1)).log10().mean())


images, quality = {"noisy": noisy}, {}
for name, R in {"total variation": variation, "field of experts": experts}.items():
    solution = lr.solve(lr.LowerLevelProblem(Identity((1, 96, 96)), R), noisy, tolerance=1e-3)
    images[name], quality[name] = solution.x.detach(), psnr(solution.x.detach())
    print(f"{name}: {quality[name]:.2f} dB, within {float(solution.error_bound.max()):.1e} of its minimiser")
    assert solution.certified
assert quality["field of experts"] > quality["total variation"] + 0.1
titled = {f"{name}, {psnr(x[0], clean[0]):.1f} dB": x[0] for name, x in images.items()}
comparison = lr.plot.comparison(titled, clean[0], measured=next(iter(titled)))

# %%
# What was learned: filters by falling weight, the potentials of their responses, and what they do to each frequency.

filters = lr.plot.filters(experts)
potentials = lr.plot.potentials(experts)
spectrum = lr.plot.spectrum(experts)
# sphinx_gallery_thumbnail_number = 2
