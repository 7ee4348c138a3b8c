"""A loss that says what the image is for
======================================

The upper-level loss decides what a regularizer is good at. Total variation learns its weight three times from the same
noisy photograph: for the whole of it, for the sky, and for the roofs below. A loss is a function of the image; with the
Lipschitz constant of its gradient, hypergradients are certified.
"""

from collections.abc import Callable

import torch

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation

SIGMA = 25 / 255
clean = natural_images("test")["camera"][:, 128:256, 440:504]  # sky, roofs and lawn
noise = SIGMA * torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(0))
b, b_test = clean + noise[:1], clean + noise[1:]
A = Identity(tuple(clean.shape))
regions = {"whole image": torch.ones_like(clean), "sky": torch.zeros_like(clean), "roofs": torch.zeros_like(clean)}
regions["sky"][:, :32] = 1.0
regions["roofs"][:, 36:110] = 1.0


def loss_in(region: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """½ of the squared error in a region, one number for each image."""
    return lambda x: 0.5 * (region.to(x) * (x - clean.to(x)) ** 2).flatten(1).sum(1)


def psnr(x: torch.Tensor, region: torch.Tensor) -> float:
    return float(-10 * ((region * (x - clean).square()).sum() / region.sum()).log10())


# %%
# L-BFGS on one noisy copy; other noise is removed. No sum over pixels looks at another sample, and 1 is the constant.

images, weights = {}, {}
for name, region in regions.items():
    R = TotalVariation(0.07, smoothing=1e-2)
    loss = lr.UpperLoss(loss_in(region), gradient_lipschitz=1.0, independent=True)
    objective = lr.BatchObjective(lr.LowerLevelProblem(A, R), b, loss)
    found: list[lr.Hypergradient] = []
    optimizer = torch.optim.LBFGS(R.parameters(), lr=0.5, max_iter=8, line_search_fn="strong_wolfe")
    optimizer.step(objective.closure(tolerance=0.1, callback=found.append))
    assert found[0].certified
    weights[name] = float(R.weight.detach())
    images[name] = lr.solve(lr.LowerLevelProblem(A, R), b_test, tolerance=1e-3).x[0].detach()
    quality = ", ".join(f"{where} {psnr(images[name], r):.2f} dB" for where, r in regions.items())
    print(f"for the {name}: weight {weights[name]:.3f}, {quality}")
for name in ("sky", "roofs"):
    assert psnr(images[name], regions[name]) > psnr(images["whole image"], regions[name])
assert weights["sky"] > 1.3 * weights["whole image"] > 1.3 * weights["roofs"]

titles = {
    f"for the {name}\nsky {psnr(x, regions['sky']):.1f} dB, roofs {psnr(x, regions['roofs']):.1f} dB": x
    for name, x in images.items()
}
figure = lr.plot.comparison(titles, clean)

# %%
# A loss of which nobody knows the constant has gradients, too; how wrong they are is an estimate then.

problem = lr.LowerLevelProblem(A, TotalVariation(0.07, smoothing=1e-2))
unknown = lr.hypergradient(problem, b, lr.UpperLoss(loss_in(regions["sky"])), tolerance=0.1)
print(f"without the constant: {unknown.bound_kind}, since {unknown.reason}")
assert not unknown.certified
