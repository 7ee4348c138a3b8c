"""What ridge, data weight and statistical weights are worth in computed tomography: PSNR of total variation on held-out
phantoms.

    python benchmarks/ct_choices.py [--size 128] [--images 4] [--low-dose]

The tables of docs/ct.md. The weight of total variation is the best one for the ridge of the first row and for the
views of training; measurements have 1 % noise, or the noise that the same dose leaves when it is spread over other
views.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

import learnreg as lr
from learnreg.datasets import PhotonNoise, line_integrals, load_ct_images, statistical_weights
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import TotalVariation

WEIGHT, NOISE, VIEWS = 3e-5, 0.01, 60
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
OTHER_VIEWS = (30, 120)
DATA_WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
PHOTONS, LOW_DOSE_WEIGHTS = (1e5, 1e4, 2e3), (0.1, 0.3, 1.0, 3.0, 10.0)


def psnr(x: Tensor, clean: Tensor) -> float:
    """Mean over images, data range 1."""
    return float((-10.0 * torch.log10((x - clean).double().square().flatten(1).mean(1))).mean())


def measure(operator: ParallelBeam2D, clean: Tensor, noise: float) -> Tensor:
    """Sinograms with Gaussian noise relative to their mean, seeded."""
    b = operator(clean)
    level = noise * b.abs().flatten(1).mean(1)[:, None, None, None]
    return b + level * torch.randn(b.shape, generator=torch.Generator().manual_seed(1))


def reconstruct(operator: ParallelBeam2D, b: Tensor, ridge: float, weights: float | Tensor = 1.0) -> Tensor:
    """By total variation, nonnegative; weights: of the rays."""
    problem = lr.LowerLevelProblem(
        operator,
        TotalVariation(WEIGHT),
        ridge=ridge,
        data_term=lr.WeightedLeastSquares(torch.as_tensor(weights)),
        constraint=lr.Nonnegative(),
    )
    return lr.solve(problem, b, tolerance=1e-3, max_steps=300).x


def table(weights: Sequence[float], found: Sequence[float]) -> str:
    """Data weights with what they lead to."""
    return "  ".join(f"{weight:g}: {value:.2f}" for weight, value in zip(weights, found, strict=True))


def low_dose(operator: ParallelBeam2D, clean: Tensor) -> None:
    """Equal weights, and the noise variance of training over that of each ray."""
    noise = PhotonNoise()
    for photons in PHOTONS:
        model = PhotonNoise(photons)
        counts = [model.counts(p, torch.Generator().manual_seed(i)) for i, p in enumerate(operator(clean))]
        values = [line_integrals(n, photons).values for n in counts]
        rule = [
            (NOISE * v.mean()) ** 2 * statistical_weights(n, normalise=False)
            for n, v in zip(counts, values, strict=True)
        ]
        for name, weights in (("equal weights", [torch.ones(())] * len(rule)), ("rule", rule)):
            found = []
            for factor in LOW_DOSE_WEIGHTS:
                pairs = zip(values, weights, strict=True)
                x = [
                    reconstruct(operator, v[None].float() / noise.attenuation, 1e-5, factor * w.float())
                    for v, w in pairs
                ]
                found.append(psnr(torch.cat(x), clean))
            print(f"{photons:g} photons, {name}: data weight -> PSNR  {table(LOW_DOSE_WEIGHTS, found)}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--low-dose", action="store_true")
    options = parser.parse_args()
    held_out = load_ct_images("ellipses", options.size, 1)[1]
    clean = torch.stack(list(held_out.values())[: options.images])
    operator = ParallelBeam2D(options.size, VIEWS)
    if options.low_dose:
        low_dose(operator, clean)
        return
    b = measure(operator, clean, NOISE)
    for ridge in RIDGES:
        print(f"ridge {ridge:.0e}  PSNR {psnr(reconstruct(operator, b, ridge), clean):.2f} dB", flush=True)
    for views in OTHER_VIEWS:
        operator = ParallelBeam2D(options.size, views)
        for dose, noise in (("same dose per view", NOISE), ("same dose in all", NOISE * math.sqrt(views / VIEWS))):
            b = measure(operator, clean, noise)
            found = [psnr(reconstruct(operator, b, 1e-5, weight), clean) for weight in DATA_WEIGHTS]
            print(f"{views} views, {dose}: data weight -> PSNR  {table(DATA_WEIGHTS, found)}", flush=True)


if __name__ == "__main__":
    main()
