"""How a noise-conditioned denoiser follows the noise: its quality at several levels, beside total variation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.progress import counted
from learnreg.regularizers import Regularizer, TotalVariation
from learnreg.solvers.solve import solve

__all__ = ["NoiseSweep", "levels_around", "noise_sweep", "scaled"]

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NoiseSweep:
    """Mean PSNR in dB by method, at each of the noise levels, in units of images. trained: levels of the training data,
    or the ends of their range; images: how many they are means of."""

    levels: tuple[float, ...]
    psnr: Mapping[str, tuple[float, ...]]
    trained: tuple[float, ...]
    images: int


def levels_around(trained: Sequence[float], count: int = 6) -> tuple[float, ...]:
    """From half the smallest of these noise levels to twice the largest, in equal ratios."""
    low, high = 0.5 * min(trained), 2.0 * max(trained)
    return tuple(low * (high / low) ** (i / (count - 1)) for i in range(count))


@torch.no_grad()
def noise_sweep(
    regularizer: Regularizer,
    tv: tuple[TotalVariation, float] | None,
    clean: Sequence[Tensor],
    trained: Sequence[float],
    seed: int = 0,
) -> NoiseSweep:
    """Denoise clean images (channels, *sides) of one size at several noise levels.

    tv: total variation, and the noise level at which its weight was tuned; at other levels the weight is multiplied by
    their ratio, as it has to be for images of which noise is all that changes units.
    """
    levels, x_true = levels_around(trained), torch.stack(list(clean))
    unit = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(seed), dtype=x_true.dtype)
    models: dict[str, Callable[[float], Regularizer]] = {"learned": regularizer.at}
    if tv is not None:
        variation, tuned = tv
        models["total variation"] = lambda level: scaled(variation, level / tuned)
    found: dict[str, list[float]] = {name: [] for name in (*models, "noisy")}
    for level in counted(levels, "denoising at several noise levels"):
        b = x_true + level * unit
        found["noisy"].append(_psnr(b, x_true))
        for name, at in models.items():
            problem = LowerLevelProblem(Identity(tuple(x_true.shape[1:])), at(level))
            found[name].append(_psnr(solve(problem, b, _TOLERANCE).x, x_true))
    return NoiseSweep(levels, {n: tuple(v) for n, v in found.items()}, tuple(trained), len(x_true))


def scaled(regularizer: TotalVariation, factor: float) -> TotalVariation:
    """Total variation with this multiple of the weight."""
    twin = TotalVariation.from_config(regularizer.config())
    twin.log_weight.data = regularizer.log_weight.detach() + math.log(factor)
    return twin


def _psnr(x: Tensor, x_true: Tensor) -> float:
    return float((-10.0 * (x - x_true).double().square().flatten(1).mean(1).log10()).mean())
