"""DeepInverse, both ways
======================

A physics of DeepInverse becomes an operator here, whose adjoint is tested; and a regularizer of this library becomes a
prior there, with value, gradient and proximal map, for the algorithms of DeepInverse. The same reconstruction is
computed on both sides. Needs deepinv.
"""

import deepinv
import torch

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.operators import from_deepinv, to_deepinv
from learnreg.regularizers import TotalVariation

SIDE, SIGMA, RIDGE = 64, 0.01, 1e-3

clean = natural_images("test")["camera"][None, :, 75 : 75 + SIDE, 215 : 215 + SIDE]
filter_ = deepinv.physics.blur.gaussian_blur(sigma=(1.5, 1.5))
physics = deepinv.physics.Blur(filter_, padding="circular", device="cpu")
y = physics.A(clean)
y = y + SIGMA * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))

# %%
# Here: a problem with the physics as operator, solved to a certified accuracy.

A = from_deepinv(physics, (1, SIDE, SIDE))
R = TotalVariation(1e-3, smoothing=1e-2)
solution = lr.solve(lr.LowerLevelProblem(A, R, ridge=RIDGE), y, tolerance=2e-3)
print(A, f"{solution.status.name}, within {float(solution.error_bound):.0e} ({solution.bound_kind})")
assert solution.certified

# %%
# There: the prior has ``grad``, and gradient descent is a loop of DeepInverse's data fidelity and it. Called as
# ``model(y, physics)``, it is a reconstructor.

model = to_deepinv(R, ridge=RIDGE, tolerance=2e-3)
fidelity = deepinv.optim.data_fidelity.L2()
x, distances = y.clone(), []
momentum = x.clone()
for step in range(300):
    slope = fidelity.grad(momentum, y, physics) + model.grad(momentum) + RIDGE * momentum
    new = momentum - slope / 1.9
    momentum, x = new + step / (step + 3) * (new - x), new
    distances.append(float((x - solution.x).square().mean().sqrt()))
print(f"distance to the minimiser {distances[0]:.1e} -> {distances[-1]:.1e}")
assert distances[-1] < 2e-3
reconstructed = model(y, physics)
assert torch.allclose(reconstructed, solution.x, atol=5e-3)


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


images = {"blurred": y[0], "learnreg": solution.x[0], "gradient descent of deepinv": x[0]}
comparison = lr.plot.comparison(
    {f"{name}, {psnr(image[None]):.1f} dB": image for name, image in images.items()},
    clean[0],
    measured=f"blurred, {psnr(y):.1f} dB",
)
