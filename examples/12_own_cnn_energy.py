"""A regularizer by its value alone
================================

A convex energy of your own, as a small network: only its value is written down. It is trained for denoising, stored
in a model file and loaded again."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, TotalVariation


class ConvolutionalEnergy(Regularizer):
    """The sum over pixels of two layers of features z = |w * x|, then |U z| with U >= 0, |t| = sqrt(t² + s²) - s.

    Everything else follows by autograd. That the energy is convex is declared, which bounds the error of images, and is
    probed near each solution. Gradients are estimates: no constants of second derivatives are declared.
    """

    convex = True

    def __init__(self, features: int = 8, smoothing: float = 0.01) -> None:
        super().__init__()
        self.features, self.smoothing = features, smoothing
        basis = [torch.tensor(v) / torch.tensor(v).norm() for v in ([1.0, 1, 1], [1.0, 0, -1], [1.0, -2, 1])]
        pairs = torch.stack([torch.outer(u, v) for u in basis for v in basis])[1:]  # without the constant
        self.filters = nn.Parameter(pairs.repeat(features // 8 + 1, 1, 1)[:features, None])
        self.log_mixing = nn.Parameter(torch.full((features, features, 1, 1), -4.0))
        self.log_weights = nn.Parameter(torch.full((2, features, 1, 1), -3.5))

    def value(self, x: Tensor) -> Tensor:
        """One number for each image, (batch,)."""
        filters = self.filters - self.filters.mean((2, 3), keepdim=True)
        x = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")  # without, too little is known of pixels at the border
        first = self.absolute(nn.functional.conv2d(x, filters))
        second = self.absolute(nn.functional.conv2d(first, self.log_mixing.exp()))
        weights = self.log_weights.exp()
        return (weights[0] * first + weights[1] * second).sum((1, 2, 3))

    def absolute(self, t: Tensor) -> Tensor:
        return (t * t + self.smoothing**2).sqrt() - self.smoothing

    def config(self) -> dict[str, Any]:
        """What the constructor takes: model files need it beside the parameters."""
        return {"features": self.features, "smoothing": self.smoothing}


def psnr(x: Tensor, x_true: Tensor) -> float:
    return float(-10.0 * (x - x_true).square().mean().log10())


def batch_of(patches: DenoisingPatches, count: int) -> tuple[Tensor, Tensor]:
    b, x_true = zip(*(patches[i] for i in range(count)), strict=True)
    return torch.stack(b), torch.stack(x_true)


updates = int(sys.argv[1]) if len(sys.argv) > 1 else 120
lr.regularizers.register("examples/convolutional-energy", ConvolutionalEnergy)
problem = lr.LowerLevelProblem(Identity((1, 32, 32)), ConvolutionalEnergy())
photographs = list(natural_images("train").values())
patches = DenoisingPatches(photographs[:-2], sigma=25 / 255, patch=32)
held_out = batch_of(DenoisingPatches(photographs[-2:], sigma=25 / 255, patch=32, seed=2), 16)
validations: list[tuple[float, dict[str, Tensor]]] = []


def validate() -> float:
    """The PSNR of patches of two training photographs that nothing is learned from: it decides which update is kept."""
    b, x_true = held_out
    found = psnr(lr.solve(problem, b, 1e-2).x, x_true)
    validations.append((found, {name: p.detach().clone() for name, p in problem.regularizer.state_dict().items()}))
    return found


lr.train(problem, patches, minutes=3.0, batch_size=8, updates=updates, step_size=5e-2, validate=validate)
problem.regularizer.load_state_dict(max(validations, key=lambda v: v[0])[1])
lr.save_model("energy.safetensors", problem, {"sigma": 25 / 255})

# The images for the test are looked at once, at the end; the weight of total variation is chosen like the update.
model = lr.load("energy.safetensors")
variations = {w: TotalVariation(w) for w in (0.06, 0.08, 0.1, 0.13)}
tried = {w: lr.solve(lr.LowerLevelProblem(problem.operator, R), held_out[0], 1e-3).x for w, R in variations.items()}
weight = max(tried, key=lambda w: psnr(tried[w], held_out[1]))
b, x_true = batch_of(DenoisingPatches(natural_images("test"), sigma=25 / 255, patch=96, seed=1), 4)
best = psnr(lr.solve(lr.LowerLevelProblem(Identity((1, 96, 96)), variations[weight]), b, 1e-3).x, x_true)
solution = model.reconstruct(b, tolerance=1e-3, details=True)
print(f"noisy {psnr(b, x_true):.2f} dB, total variation {best:.2f} dB, own energy {psnr(solution.x, x_true):.2f} dB")
print(f"certified: {solution.certified}, within {float(solution.error_bound.max()):.1e} of the energy's minimiser")
hg = lr.hypergradient(problem, patches[0][0][None], lr.SquaredError(patches[0][1][None]))
print(f"gradient: {hg.bound_kind}, since {hg.reason}")
