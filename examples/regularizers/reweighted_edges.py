"""Edges that cost less once they are known
========================================

Convex total variation pulls every edge down, the sure ones, too. :class:`~learnreg.regularizers.Reweighted` solves,
gives each place a weight by the edge that was found there, and solves again. Each of the problems is convex, and the
bound of the last image takes in what the errors of the earlier ones do to the weights.
"""

import torch

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import Reweighted, TotalVariation

SIDE, SIGMA = 64, 0.1
down, right = torch.meshgrid(*[torch.arange(SIDE) - (SIDE - 1) / 2] * 2, indexing="ij")


def cartoon(seed: int) -> torch.Tensor:
    """Seven ellipses of constant grey on each other, (1, SIDE, SIDE)."""
    numbers, image = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed)), torch.full((SIDE, SIDE), 0.3)
    for top, left, height, width, grey in numbers.tolist():
        y, x = (down - 48 * (top - 0.5)) / (5 + 14 * height), (right - 48 * (left - 0.5)) / (5 + 14 * width)
        image = torch.where(y**2 + x**2 < 1, grey, image)
    return image[None].double()


clean = torch.stack([cartoon(3), cartoon(5)])
noise = SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).double()
b = clean + noise
A = Identity((1, SIDE, SIDE))


def psnr(x: torch.Tensor, i: int) -> float:
    return float(-10 * (x - clean[i]).square().mean().log10())


# %%
# Weights, and the scale s of the majorising weights 1/(1 + u/s), are the best of a few on one cartoon; the other one is
# shown.


def solve(i: int, weight: float, scale: float | None) -> lr.Solution:
    R = TotalVariation(weight, smoothing=1e-2)
    chain = R if scale is None else Reweighted(R, weights="majorising", steps=3, scale=scale)
    return lr.solve(lr.LowerLevelProblem(A, chain), b[i : i + 1], tolerance=3e-3)


plain = max((0.08, 0.12), key=lambda w: psnr(solve(0, w, None).x[0], 0))
settings = [(w, s) for w in (0.12, 0.2) for s in (0.03, 0.1)]
weight, scale = max(settings, key=lambda setting: psnr(solve(0, *setting).x[0], 0))
once, chain = solve(1, plain, None), solve(1, weight, scale)
print(f"total variation {plain}: {psnr(once.x[0], 1):.2f} dB; reweighted {weight}, scale {scale}: ", end="")
print(f"{psnr(chain.x[0], 1):.2f} dB, within {float(chain.error_bound):.0e} of the exact chain ({chain.bound_kind})")
assert chain.certified
assert psnr(chain.x[0], 1) > psnr(once.x[0], 1) + 1

comparison = lr.plot.comparison(
    {
        "noisy": b[1],
        f"total variation, {psnr(once.x[0], 1):.1f} dB": once.x[0],
        f"reweighted, {psnr(chain.x[0], 1):.1f} dB": chain.x[0],
    },
    clean[1],
    measured="noisy",
)

# %%
# The iterates of the chain, from the plain solution with its weight to the last one, and the weights of the last solve:
# 1 where nothing is, and small on edges, which are hardly pulled down any more.

weights = chain.weights[0]
iterates = {f"solve {k + 1}, {psnr(x[0], 1):.1f} dB": x[0, 0] for k, x in enumerate(chain.chain)}
steps = lr.plot.comparison(iterates)
maps = lr.plot.maps({"weights of the last solve": weights.amax(0)}, window=(0.0, 1.0))
