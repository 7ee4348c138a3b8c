"""Super-resolution with an operator of your own
=============================================

A camera whose pixels see the mean of two by two finer ones: a function of batched tensors is enough of an operator, and
its transpose follows by autograd. ``check=True`` holds linearity and adjoint against their definitions first. A field
of experts is learned for this operator, from patches.
"""

import torch
from skimage.transform import resize
from torch.nn.functional import avg_pool2d

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import from_callables
from learnreg.regularizers import FieldsOfExperts

PATCH, SIDE, SIGMA, RIDGE = 24, 96, 0.01, 1e-3


def camera(side: int) -> lr.LinearOperator:
    return from_callables(
        lambda x: avg_pool2d(x, 2),
        None,  # or a function, where forward leaves torch: derivatives of all orders still work
        domain_shape=(1, side, side),
        range_shape=(1, side // 2, side // 2),
        check=True,
    )


def measured(A: lr.LinearOperator, clean: torch.Tensor, seed: int) -> torch.Tensor:
    with torch.no_grad():
        b = A(clean)
    return b + SIGMA * torch.randn(b.shape, generator=torch.Generator().manual_seed(seed))


# %%
# The smallest singular value of A is 0; a small ridge makes the minimiser unique and its distance certified.

A = camera(PATCH)
print(A, f"norm at most {A.norm_bound():.4f}, {A.norm_bound_kind}")
patches = DenoisingPatches(natural_images("train"), sigma=0.1, patch=PATCH, count=24)
train = torch.stack([clean for _, clean in (patches[i] for i in range(24))])
R = FieldsOfExperts(8, 3, lr.PseudoHuber(smoothing=1e-2, weight=1e-2), minimum_smoothing=3e-3)
pairs = list(zip(measured(A, train, 0), train, strict=True))
lr.train(lr.LowerLevelProblem(A, R, ridge=RIDGE), pairs, optimizer="lbfgs", samples=24, updates=15, progress=False)

# %%
# The operator knows one size; the regularizer knows all. A photograph that was not among them, beside bicubic
# interpolation.

A = camera(SIDE)
clean = natural_images("test")["camera"][:, 60 : 60 + SIDE, 190 : 190 + SIDE]
b = measured(A, clean[None], 1)
solution = lr.solve(lr.LowerLevelProblem(A, R, ridge=RIDGE), b, tolerance=2e-3)
assert solution.certified


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


bicubic = resize(b[0, 0].numpy(), (SIDE, SIDE), order=3, mode="edge")
images = {
    "measured": b[0].repeat_interleave(2, 1).repeat_interleave(2, 2),
    "bicubic": torch.from_numpy(bicubic)[None].float(),
    "field of experts": solution.x[0].detach(),
}
quality = {name: psnr(x) for name, x in images.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()}, f"within {float(solution.error_bound):.0e}")
assert quality["field of experts"] > quality["bicubic"] + 0.3
figure = lr.plot.comparison(
    {f"{name}, {quality[name]:.1f} dB": x for name, x in images.items()},
    clean,
    measured=f"measured, {quality['measured']:.1f} dB",
)
