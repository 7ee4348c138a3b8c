"""The problems on which ``learnreg accuracy`` measures: a small built-in set, or a model's own problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.errors import DataError
from learnreg.losses import SquaredError, UpperLoss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import Model
from learnreg.operators import Blur, Identity
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.progress import tell
from learnreg.regularizers import FieldsOfExperts, TotalVariation

__all__ = ["AccuracyProblem", "builtin_problems", "clean_patches", "model_problem"]

_SIDE, _BATCH = 24, 2
_SIGMA, _BLUR_SIGMA = 25 / 255, 4 / 255


@dataclass(frozen=True)
class AccuracyProblem:
    """A lower-level problem in float64 with data b, (batch, *range_shape), and its upper-level loss."""

    name: str
    problem: LowerLevelProblem
    b: Tensor
    loss: UpperLoss


def builtin_problems(seed: int = 0, side: int = _SIDE) -> list[AccuracyProblem]:
    """Denoising with fields of experts of two smoothings and with total variation, and deblurring with a ridge."""
    x_true = clean_patches(_BATCH, side, seed)
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noisy, loss = x_true + _SIGMA * noise, SquaredError(x_true)
    identity = Identity((1, side, side))
    blur = Blur(_gaussian_kernel(), (1, side, side), "circular")

    def experts(weight: float, smoothing: float) -> FieldsOfExperts:
        generator = torch.Generator().manual_seed(seed)
        return FieldsOfExperts(8, 5, PseudoHuber(smoothing, weight), generator=generator).double()

    smooth, sharp = LowerLevelProblem(identity, experts(0.3, 1e-2)), LowerLevelProblem(identity, experts(0.3, 1e-3))
    tv = LowerLevelProblem(identity, TotalVariation(0.07, 1e-2).double())
    deblurring = LowerLevelProblem(blur, experts(0.02, 1e-2), ridge=1e-2)
    return [
        AccuracyProblem("denoising, FoE, smoothing 1e-2", smooth, noisy, loss),
        AccuracyProblem("denoising, FoE, smoothing 1e-3", sharp, noisy, loss),
        AccuracyProblem("denoising, TV, smoothing 1e-2", tv, noisy, loss),
        AccuracyProblem("deblurring, FoE, ridge 1e-2", deblurring, blur(x_true) + _BLUR_SIGMA * noise, loss),
    ]


def model_problem(model: Model, name: str, seed: int = 0, side: int = _SIDE) -> list[AccuracyProblem]:
    """The problem that the model was learned for, on patches with the noise it was learned for (25/255 if its file does
    not say); of ``side`` if it is for images of any size.

    Raises
    ------
    ConfigError: the file does not hold its forward operator.
    """
    level = model.usual_noise_level if model.noise_range else None
    problem = model.problem((1, side, side), noise_level=level).double()
    _, height, width = problem.operator.domain_shape
    x_true = clean_patches(_BATCH, max(height, width), seed)[..., :height, :width]
    b = problem.operator(x_true)
    noise = torch.randn(b.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigma = level or model.noise_level or _SIGMA
    return [AccuracyProblem(name, problem, b + sigma * noise, SquaredError(x_true))]


def clean_patches(count: int, side: int, seed: int) -> Tensor:
    """Patches (count, 1, side, side) in float64 of the photographs installed with scikit-image; without it, of a
    synthetic image, which a line on stderr says."""
    try:
        images = natural_images("test")
    except DataError as error:
        tell(f"learnreg: a synthetic image instead of photographs ({error})")
        images = {"synthetic": _synthetic_image(seed)}
    patches = DenoisingPatches(images, _SIGMA, patch=side, count=count, seed=seed)
    return torch.stack([patches[i][1] for i in range(count)]).double()


def _synthetic_image(seed: int, side: int = 128) -> Tensor:
    """A ramp, rectangles with sharp edges, and a texture: (1, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(0, 1, side)
    image = 0.3 + 0.3 * axis[:, None] + 0.1 * axis[None, :]
    for _ in range(40):
        top, left = (int(torch.randint(side - 8, (), generator=generator)) for _ in range(2))
        height, width = (int(torch.randint(4, side // 3, (), generator=generator)) for _ in range(2))
        image[top : top + height, left : left + width] = torch.rand((), generator=generator)
    texture = 0.1 * torch.sin(60 * axis)[:, None] * torch.sin(45 * axis)[None, :]
    return (image + texture * (axis[None, :] > 0.5)).clamp(0, 1)[None]


def _gaussian_kernel(radius: int = 3, sigma: float = 1.0) -> Tensor:
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()
