"""Every public regularizer, and what tests choose them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from registered.potentials import POTENTIALS, Entropic
from registered.randomness import SHAPE, rand, randn
from torch import nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers import (
    AnalysisOperator,
    FieldsOfExperts,
    GeneralisedTikhonov,
    ImportedRidge,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    Scaled,
    TotalVariation,
)

__all__ = ["REGULARIZERS", "RegularizerEntry", "bank", "generalized_variation", "network", "regularizers"]


@dataclass(frozen=True)
class RegularizerEntry:
    """How a regularizer is built, away from its start, and its properties: smooth, twice differentiable; proximal, its
    potential has proximal maps; learnable, some parameters are learned; latent, it has latent variables; dense, the
    dense truth knows its potential; channels and dimensions of the images it takes, ``shape`` one of them."""

    build: Callable[[], Regularizer]
    smooth: bool = True
    proximal: bool = True
    learnable: bool = True
    latent: bool = False
    dense: bool = True
    channels: int = 1
    dimensions: int = 2

    def __call__(self) -> Regularizer:
        return self.build()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *(4, *SHAPE[1:])[-self.dimensions :])


def bank(boundary: str, k: int, l: int, n: int = 3) -> FilterBank:
    return FilterBank(nn.Parameter(randn(n, k, l, seed=k + 7 * l)), SHAPE, boundary)


def _experts(potential: str, boundary: str, count: int = 3, size: int = 3, noise: bool = False) -> FieldsOfExperts:
    """With zero-mean filters, as they start."""
    initial = POTENTIALS[potential](0.15, 0.6)
    generator = torch.Generator().manual_seed(3)
    result = FieldsOfExperts(
        count, size, initial, boundary, generator=generator, noise_conditioned=noise  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        result.filters.add_(0.3 * randn(count, size, size, seed=5))
        result.log_weights.add_(0.2 * randn(count, seed=6))
        result.log_smoothing.add_(0.2 * randn(count, seed=7))
    return result


def _arrays() -> FieldsOfExperts:
    filters, weights, smoothing = 0.5 * randn(3, 3, 3, seed=8), 0.1 + rand(3, seed=9), 0.1 + 0.2 * rand(3, seed=10)
    return FieldsOfExperts.from_arrays(filters, weights, smoothing, "reflect")


def _ridge(shared: bool, filters: int = 3, **options: object) -> RidgeRegularizer:
    """Away from its start: f'' rises and falls."""
    generator = torch.Generator().manual_seed(4)
    result = RidgeRegularizer(
        (2, filters), 3, 9, shared=shared, weight=0.5, smoothing=0.15, generator=generator, **options  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=30 + i))
        result.log_curvature.add_(randn(*result.log_curvature.shape, seed=40))
    return result


def _multivariate(
    boundary: str, members: int = 2, noise: bool = False, norm: Literal["euclidean", "maximum"] = "euclidean"
) -> MultivariateExperts:
    generator = torch.Generator().manual_seed(3)
    result = MultivariateExperts(
        3, members, 3, 0.6, 0.15, boundary, generator=generator, noise_conditioned=noise, norm=norm  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=50 + i))
    return result


def _learned_variation(positions: int, boundary: str) -> LearnedTotalVariation:
    """Away from its start."""
    generator = torch.Generator().manual_seed(3)
    result = LearnedTotalVariation(positions, 3, 0.3, 0.1, boundary, generator).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.2 * randn(*p.shape, seed=60 + i))
    return result


def network(seed: int = 0, **options: object) -> InputConvexNetwork:
    """An input-convex network away from its start, with biases."""
    generator = torch.Generator().manual_seed(seed)
    result = InputConvexNetwork(
        **{"features": 4, "size": 3, "weight": 0.4, "smoothing": 0.15, **options}, generator=generator  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=seed + 50 + i))
        result.biases.mul_(0.3)
    return result


def _moved(regularizer: Regularizer) -> Regularizer:
    """Away from its start."""
    with torch.no_grad():
        for i, p in enumerate(regularizer.double().parameters()):
            p.copy_(p + 0.2 * randn(*p.shape, seed=80 + i) if p.dim() < 3 else 0.4 * randn(*p.shape, seed=80 + i))
    return regularizer


def _imported() -> ImportedRidge:
    kernels = [0.5 * randn(2, 1, 3, 3, seed=70), 0.5 * randn(3, 2, 3, 3, seed=71)]
    return ImportedRidge(kernels, 0.2 * rand(3, 8, seed=72), 0.1, log_scales=0.3 * randn(3, 1, seed=73))


def generalized_variation(
    positions: int = 2, boundary: str = "replicate", smoothing: float = 0.05
) -> LearnedTotalGeneralizedVariation:
    """Away from its start."""
    generator = torch.Generator().manual_seed(3)
    result = LearnedTotalGeneralizedVariation(
        positions, 3, 0.3, 2.0, smoothing, 0.05, boundary, generator  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.1 * randn(*p.shape, seed=65 + i))
    return result


REGULARIZERS: dict[str, RegularizerEntry] = {
    "FieldsOfExperts": RegularizerEntry(lambda: _experts("PseudoHuber", "valid")),
    "FieldsOfExperts-LogCosh": RegularizerEntry(lambda: _experts("LogCosh", "zero")),
    "FieldsOfExperts-Huber": RegularizerEntry(lambda: _experts("Huber", "circular", size=2), smooth=False),
    "FieldsOfExperts-from_arrays": RegularizerEntry(_arrays),
    "FieldsOfExperts-noise": RegularizerEntry(lambda: _experts("PseudoHuber", "reflect", noise=True).at(0.2)),
    "MultivariateExperts": RegularizerEntry(lambda: _multivariate("valid")),
    "MultivariateExperts-triples": RegularizerEntry(lambda: _multivariate("reflect", 3)),
    "MultivariateExperts-noise": RegularizerEntry(lambda: _multivariate("zero", noise=True).at(0.05)),
    "MultivariateExperts-maximum": RegularizerEntry(lambda: _multivariate("zero", 3, norm="maximum"), smooth=False),
    "MultivariateExperts-from_arrays": RegularizerEntry(
        lambda: MultivariateExperts.from_arrays(
            0.5 * randn(2, 2, 2, 3, seed=8), 0.1 + rand(2, seed=9), 0.1 + 0.2 * rand(2, seed=10), "circular"
        )
    ),
    "LearnedTotalVariation": RegularizerEntry(lambda: _learned_variation(5, "replicate")),
    "LearnedTotalVariation-one": RegularizerEntry(lambda: _learned_variation(1, "valid")),
    "RidgeRegularizer": RegularizerEntry(lambda: _ridge(False)),
    "RidgeRegularizer-shared": RegularizerEntry(lambda: _ridge(True, boundary="valid")),
    "RidgeRegularizer-noise": RegularizerEntry(lambda: _ridge(True, noise_conditioned=True).at(0.2)),
    "RidgeRegularizer-groups": RegularizerEntry(lambda: _ridge(False, 6, group_size=3)),
    "RidgeRegularizer-shared-groups": RegularizerEntry(lambda: _ridge(True, 4, group_size=2, boundary="circular")),
    "GeneralisedTikhonov": RegularizerEntry(lambda: GeneralisedTikhonov(3, 3, 0.9, "zero").double()),
    "TotalVariation": RegularizerEntry(lambda: TotalVariation(0.2, 0.05).double()),
    "AnalysisOperator-FilterBank": RegularizerEntry(
        lambda: AnalysisOperator(bank("zero", 2, 3), lr.PseudoHuber(0.2, 0.3)).double()
    ),
    "AnalysisOperator-FilterBank-LogCosh": RegularizerEntry(
        lambda: AnalysisOperator(bank("circular", 3, 3), lr.LogCosh(0.3, 0.1 + rand(3, 1, 1, seed=4))).double()
    ),
    "AnalysisOperator-Gradient": RegularizerEntry(
        lambda: AnalysisOperator(Gradient(SHAPE), IsotropicPseudoHuber(0.1, 0.2)).double()
    ),
    "Scaled": RegularizerEntry(lambda: Scaled(_experts("PseudoHuber", "valid"), 0.7).double()),
    "Scaled-all-learnable": RegularizerEntry(
        lambda: Scaled(_experts("LogCosh", "zero"), 1.5).double().requires_grad_()
    ),
    "Scaled-TotalVariation": RegularizerEntry(lambda: Scaled(TotalVariation(0.2, 0.05), 0.5).double()),
    "InputConvexNetwork": RegularizerEntry(network, proximal=False),
    "InputConvexNetwork-deep": RegularizerEntry(
        lambda: network(1, layers=3, mixing_size=3, minimum_smoothing=0.05), proximal=False
    ),
    "InputConvexNetwork-shallow": RegularizerEntry(lambda: network(2, layers=1, size=2), proximal=False),
    "InputConvexNetwork-scaled": RegularizerEntry(
        lambda: Scaled(network(3), 0.7).double().requires_grad_(), proximal=False
    ),
    "Combination": RegularizerEntry(
        lambda: _experts("PseudoHuber", "valid") + 0.7 * TotalVariation(0.2, 0.05).double(),
        proximal=False,
        dense=False,
    ),
    "Combination-of-one": RegularizerEntry(lambda: 2.5 * _learned_variation(5, "replicate")),
    "Combination-with-a-value": RegularizerEntry(
        lambda: 0.5 * Entropic(0.3, 0.4, 30).double() + _multivariate("reflect"), proximal=False, dense=False
    ),
    "given-by-value": RegularizerEntry(lambda: Entropic(0.3, 0.4, 30).double(), proximal=False, dense=False),
    "FieldsOfExperts-colours": RegularizerEntry(
        lambda: _moved(FieldsOfExperts(3, 3, lr.PseudoHuber(0.15, 0.6), "valid", channels=3, coupling="joint")),
        channels=3,
    ),
    "FieldsOfExperts-complex": RegularizerEntry(
        lambda: _moved(FieldsOfExperts(3, 3, lr.PseudoHuber(0.15, 0.6), channels=2, coupling="complex")), channels=2
    ),
    "MultivariateExperts-volumes": RegularizerEntry(
        lambda: _moved(MultivariateExperts(2, 2, 2, 0.6, 0.15, "zero", dimensions=3)), dimensions=3
    ),
    "RidgeRegularizer-signals": RegularizerEntry(
        lambda: _moved(RidgeRegularizer((2, 3), 2, 9, weight=0.5, smoothing=0.15, image_channels=2, dimensions=1)),
        channels=2,
        dimensions=1,
    ),
    "TotalVariation-volumes": RegularizerEntry(
        lambda: TotalVariation(0.2, 0.05, channels=2, coupling="joint", dimensions=3).double(),
        channels=2,
        dimensions=3,
    ),
    "ImportedRidge": RegularizerEntry(_imported, smooth=False, learnable=False),
    "InputConvexNetwork-lifted": RegularizerEntry(lambda: network(form="lifted"), smooth=False, latent=True),
    "LearnedTotalGeneralizedVariation": RegularizerEntry(generalized_variation, latent=True),
}


def regularizers(**properties: object) -> list[str]:
    """The names of those with these properties, None for any; learnable, without latent variables and of grey images,
    unless said otherwise."""
    wanted = {"learnable": True, "latent": False, "channels": 1, "dimensions": 2, **properties}
    return [
        name
        for name, entry in REGULARIZERS.items()
        if all(value is None or getattr(entry, p) == value for p, value in wanted.items())
    ]
