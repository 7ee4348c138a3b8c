"""Colours that know each other
============================

A colour photograph denoised by total variation, channel by channel or with one length for the differences of all three.
Edges of a photograph are mostly in all channels at the same place; the joint length says so, and costs nothing more.
"""

import torch

import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation

SIGMA = 25 / 255

# %%
# The weight of each is learned from 16 pairs of patches of other photographs, by L-BFGS.

pairs = DenoisingPatches(natural_images("train", colour=True), sigma=SIGMA, patch=32, count=16)
regularizers = {
    coupling: TotalVariation(0.07, smoothing=1e-2, channels=3, coupling=coupling) for coupling in ("separate", "joint")
}
for R in regularizers.values():
    lr.train(
        lr.LowerLevelProblem(Identity((3, 32, 32)), R),
        pairs,
        optimizer="lbfgs",
        samples=16,
        updates=4,
        batch_size=16,
        progress=False,
    )

# %%
# A photograph that was not among them.

photographs = natural_images("test", colour=True)
name, clean = next(iter(photographs.items()))
clean = clean[:, 60:188, 150:278]
noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def psnr(x: torch.Tensor) -> float:
    return float(-10 * (x - clean).square().mean().log10())


images = {"noisy": noisy}
for coupling, R in regularizers.items():
    solution = lr.solve(lr.LowerLevelProblem(Identity(tuple(clean.shape)), R), noisy[None], tolerance=2e-3)
    assert solution.certified
    images[f"{coupling} channels"] = solution.x[0].detach()
    print(f"{name}, {coupling}: weight {float(R.weight.detach()):.3f}, {psnr(solution.x[0]):.2f} dB")
quality = {title: psnr(x) for title, x in images.items()}
assert quality["joint channels"] > quality["separate channels"] + 0.5
figure = lr.plot.comparison(
    {f"{title}, {quality[title]:.1f} dB": x for title, x in images.items()},
    clean,
    measured=f"noisy, {quality['noisy']:.1f} dB",
)
