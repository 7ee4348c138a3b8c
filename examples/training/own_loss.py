"""A loss that looks at one organ
==============================

The upper-level loss says what a reconstruction is for. Here total variation for tomography learns its weight twice: for
the whole image, and for a region of interest alone, whose fine structures the mean over the image hardly sees. A loss
is a function of the image; with the Lipschitz constant of its gradient, hypergradients are certified.
"""

import torch

import learnreg as lr
from learnreg.datasets import RelativeNoise, TomographyPairs, ellipse_phantoms
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

SIZE, VIEWS = 64, 30
A = ParallelBeam2D(SIZE, VIEWS)
clean = ellipse_phantoms(4, SIZE, seed=3)
b = torch.stack([b for b, _ in (TomographyPairs(A, clean, RelativeNoise(0.03))[i] for i in range(4))])

# %%
# The region: around the spine.

region = torch.zeros(1, SIZE, SIZE)
region[:, 38:52, 24:40] = 1.0


def of_region(x_true: torch.Tensor) -> lr.UpperLoss:
    """½ of the squared error in the region, one number for each image."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (region.to(x) * (x - x_true.to(x)) ** 2).flatten(1).sum(1)

    return lr.UpperLoss(loss, gradient_lipschitz=1.0, independent=True)  # no sum looks at another sample


# %%
# L-BFGS on three phantoms; the fourth is reconstructed.

pairs = list(zip(b, clean, strict=True))
images = {}
for name, loss in {"whole image": lr.SquaredError, "region": of_region}.items():
    R = TotalVariation(3e-4, smoothing=1e-2)
    problem = lr.LowerLevelProblem(A, R, ridge=1e-3, constraint=lr.Nonnegative())
    hg = lr.hypergradient(problem, b[:3], loss(clean[:3]), tolerance=0.1)
    print(f"{name}: certified {hg.certified}, relative error at most {hg.relative_error_bound:.1e}", end=", ")
    assert hg.certified
    lr.train(problem, pairs[:3], loss, optimizer="lbfgs", samples=3, updates=5, progress=False)
    images[f"for the {name}"] = lr.solve(problem, b[3:], tolerance=3e-3).x[0].detach()
    print(f"weight {float(R.weight.detach()):.1e}")

# %%
# A loss of which nobody knows the constant has gradients, too; how wrong they are is an estimate then.

unknown = lr.hypergradient(problem, b[:3], lr.UpperLoss(of_region(clean[:3]).function), tolerance=0.1)
print(f"without the constant: {unknown.bound_kind}, since {unknown.reason}")
assert not unknown.certified


def psnr(x: torch.Tensor, where: torch.Tensor) -> float:
    return float(-10 * ((where * (x - clean[3]).square()).sum() / where.sum()).log10())


whole = {name: psnr(x, torch.ones_like(region)) for name, x in images.items()}
part = {name: psnr(x, region) for name, x in images.items()}
for name in images:
    print(f"{name}: {whole[name]:.2f} dB, in the region {part[name]:.2f} dB")
assert part["for the region"] > part["for the whole image"]
assert whole["for the region"] < whole["for the whole image"]
figure = lr.plot.comparison(
    {f"{name}\n{whole[name]:.1f} dB, in the region {part[name]:.1f} dB": x for name, x in images.items()}, clean[3]
)
