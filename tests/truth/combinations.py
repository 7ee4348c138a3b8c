"""Every data term on every kind of image with every registered regularizer: small problems, whose truth is found from
``problem.energy`` alone, and what is refused."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from truth.analysis_l1 import truth_of_l1
from truth.by_energy import truth_by_energy
from truth.dense import distance, norm, truth_of
from truth.draw import DOUBLE

import learnreg as lr
from learnreg.lower_level.data_terms import DataTerm
from learnreg.operators import Identity
from learnreg.regularizers import (
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

__all__ = ["DATA_TERMS", "FAMILIES", "KINDS", "Compared", "compared", "generator_of", "problem_of"]

KINDS: dict[str, dict[str, Any]] = {
    "grey": {"channels": 1, "coupling": "separate", "dimensions": 2},
    "colour, separate": {"channels": 3, "coupling": "separate", "dimensions": 2},
    "colour, joint": {"channels": 3, "coupling": "joint", "dimensions": 2},
    "complex": {"channels": 2, "coupling": "complex", "dimensions": 2},
    "volume": {"channels": 1, "coupling": "separate", "dimensions": 3},
    "signal": {"channels": 1, "coupling": "separate", "dimensions": 1},
}


def _number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=DOUBLE))


DATA_TERMS: dict[str, Callable[[tuple[int, ...], torch.Generator], DataTerm]] = {
    "LeastSquares": lambda shape, generator: lr.LeastSquares(),
    "WeightedLeastSquares": lambda shape, generator: lr.WeightedLeastSquares(
        nn.Parameter(0.5 + torch.rand(shape, generator=generator, dtype=DOUBLE))
    ),
    "Poisson": lambda shape, generator: lr.Poisson(_number(0.3)),
    "TransmissionPoisson": lambda shape, generator: lr.TransmissionPoisson(_number(40.0), _number(1.2)),
    "SmoothedL1": lambda shape, generator: lr.SmoothedL1(_number(0.1)),
}


def _ridge(kind: dict[str, Any], filters: int = 3, **options: Any) -> Regularizer:
    kind = {"image_channels" if name == "channels" else name: value for name, value in kind.items()}
    return RidgeRegularizer((2, filters), 2, 7, weight=0.3, smoothing=0.15, **options, **kind)


def _of_grey_images(make: Callable[[], Regularizer]) -> Callable[[dict[str, Any]], Regularizer]:
    """Of a class that has one kind of image, which it says where it gets another."""
    return lambda kind: make()


def _network(kind: dict[str, Any], **options: Any) -> Regularizer:
    return InputConvexNetwork(features=3, size=3, weight=0.3, smoothing=0.15, **options, **kind)


def _imported() -> Regularizer:
    kernels = [0.5 * torch.randn(2, 1, 3, 3, dtype=DOUBLE), 0.5 * torch.randn(3, 2, 3, 3, dtype=DOUBLE)]
    return Scaled(ImportedRidge(kernels, 0.2 * torch.rand(3, 8, dtype=DOUBLE), 0.1))


FAMILIES: dict[str, Callable[[dict[str, Any]], Regularizer]] = {
    "fields-of-experts": lambda kind: FieldsOfExperts(3, 3, lr.PseudoHuber(0.1, 0.3), **kind),
    "fields-of-experts, log-cosh": lambda kind: FieldsOfExperts(3, 3, lr.LogCosh(0.1, 0.3), **kind),
    "fields-of-experts, Huber": lambda kind: FieldsOfExperts(3, 3, lr.Huber(0.1, 0.3), **kind),
    "fields-of-experts, square": lambda kind: FieldsOfExperts(3, 3, lr.Square(0.3), **kind),
    "fields-of-experts, absolute value": lambda kind: FieldsOfExperts(3, 3, lr.AbsoluteValue(0.1), **kind),
    "tv": lambda kind: TotalVariation(0.1, 0.05, **kind),
    "tikhonov": lambda kind: GeneralisedTikhonov(3, 3, 0.9, **kind),
    "ridge": _ridge,
    "ridge, convex-nonconvex": lambda kind: _ridge(kind, convexity="convex-nonconvex", nonconvexity=0.2),
    "ridge, groups": lambda kind: _ridge(kind, 4, group_size=2),
    "ridge, groups, convex-nonconvex": lambda kind: _ridge(
        kind, 4, group_size=2, convexity="convex-nonconvex", nonconvexity=0.2
    ),
    "multivariate": lambda kind: MultivariateExperts(2, 2, 3, 0.3, 0.1, **kind),
    "learned-tv": lambda kind: LearnedTotalVariation(2, 3, 0.2, 0.1, **kind),
    "learned-tgv": _of_grey_images(lambda: LearnedTotalGeneralizedVariation(2, 3, 0.2, 2.0, 0.1, 0.1)),
    "icnn": _network,
    "icnn, lifted": lambda kind: _network(kind, form="lifted"),
    "imported-ridge": _of_grey_images(_imported),
    "scaled": lambda kind: Scaled(FieldsOfExperts(3, 3, lr.PseudoHuber(0.1, 0.3), **kind), 0.7),
    "combination": lambda kind: (
        FieldsOfExperts(2, 3, lr.PseudoHuber(0.1, 0.2), **kind) + 0.5 * TotalVariation(0.1, 0.05, **kind)
    ),
}
"""Of each registered class one, of those with forms or potentials one of each."""


@dataclass(frozen=True)
class Compared:
    """The relative error of a hypergradient, the largest one of one parameter by itself, over its norm and a thousandth
    of the whole gradient's, and the bound over the norm; or the reason why there is none."""

    error: float = math.nan
    least_part: float = math.nan
    bound: float = math.nan
    certified: bool = False
    refused: str = ""


def generator_of(family: str, kind: str, data_term: str, seed: int) -> torch.Generator:
    """What draws the numbers of a combination, the same in every process."""
    return torch.Generator().manual_seed(zlib.crc32(f"{family} {kind} {data_term} {seed}".encode()))


def problem_of(
    data_term: str, kind: str, family: str, side: int, generator: torch.Generator
) -> tuple[lr.LowerLevelProblem, Tensor, lr.UpperLoss]:
    """One image, measured as the data term has it, with a part at 0 for likelihoods of counts; parameters away from
    their start."""
    options = KINDS[kind]
    shape = (options["channels"], *[side] * options["dimensions"])
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    regularizer = FAMILIES[family](options).double()
    with torch.no_grad():
        for p in regularizer.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=DOUBLE))
    term = DATA_TERMS[data_term](shape, generator)
    counted = isinstance(term, (lr.Poisson, lr.TransmissionPoisson))
    problem = lr.LowerLevelProblem(
        Identity(shape),
        regularizer,
        ridge=_number(0.3),
        data_term=term,
        constraint=lr.Nonnegative() if counted else None,
    )
    x_true = torch.rand(1, *shape, generator=generator, dtype=DOUBLE)
    x_true[..., :2] = 0.0
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=generator, dtype=DOUBLE)
    if isinstance(term, lr.Poisson):
        b = torch.poisson(8.0 * x_true, generator=generator)
    if isinstance(term, lr.TransmissionPoisson):
        b = torch.poisson(40.0 * torch.exp(-1.2 * x_true), generator=generator)
    return problem, b, lr.SquaredError(x_true)


def compared(data_term: str, kind: str, family: str, side: int, generator: torch.Generator) -> Compared:
    """The hypergradient at a tolerance of 1e-7 against the truth."""
    try:
        problem, b, loss = problem_of(data_term, kind, family, side, generator)
        method = lr.ClosedForm() if "absolute" in family else lr.Implicit()
        found = lr.hypergradient(problem, b, loss, method, tolerance=1e-7)
    except lr.LearnregError as error:
        return Compared(refused=str(error))
    gradient = _truth(problem, b, loss, found.x)
    size = norm(gradient)
    apart = (float((found.gradient[name] - g).norm()) / (float(g.norm()) + 1e-3 * size) for name, g in gradient.items())
    error = distance(found.gradient, gradient) / size
    return Compared(error, max(apart), found.error_bound / size, found.certified)


def _truth(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, x: Tensor) -> dict[str, Tensor]:
    terms = problem.saddle_terms(DOUBLE)
    if not terms.potential.differentiable:
        return truth_of_l1(problem, b, loss).gradient
    if terms.latent.channels:
        return truth_of(problem, b, loss).gradient
    return truth_by_energy(problem, b, loss, x).gradient
