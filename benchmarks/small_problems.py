"""Small problems of every regularizer, forward operator, data term and constraint, the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg import operators, regularizers
from learnreg.operators import Blur, Identity, Inpainting, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer, RidgeRegularizer

SIDE, BATCH, VIEWS, NOISE = 10, 2, 7, 0.1
SHAPE = (1, SIDE, SIDE)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def moved(regularizer: Regularizer) -> Regularizer:
    """In float64, its parameters away from where they start."""
    for i, (_, p) in enumerate(sorted(regularizer.double().named_parameters())):
        p.add_(0.15 * randn(*p.shape, seed=100 + i))
    return regularizer


def seeded(kind: Callable[..., Regularizer], *args: Any, **options: Any) -> Regularizer:
    return moved(kind(*args, **options, generator=torch.Generator().manual_seed(3)))


def analysis(potential: Any, *seeds: int) -> Regularizer:
    blurs = [Blur(nn.Parameter(0.5 * randn(3, 3, seed=seed)), SHAPE, "reflect") for seed in seeds]
    return regularizers.AnalysisOperator(lr.vstack(*blurs) if len(blurs) > 1 else blurs[0], potential).double()


def experts(potential: Any = None, **options: Any) -> Regularizer:
    return seeded(FieldsOfExperts, 3, 3, potential or lr.PseudoHuber(0.03, 0.3), **options)


def ridge(**options: Any) -> Regularizer:
    return seeded(RidgeRegularizer, (2, 3), 3, 9, weight=0.2, smoothing=0.05, **options)


def network(**options: Any) -> Regularizer:
    return seeded(InputConvexNetwork, features=3, size=3, weight=0.2, smoothing=0.05, **options)


def imported() -> Regularizer:
    kernels = [0.4 * randn(2, 1, 3, 3, seed=11), 0.4 * randn(3, 2, 3, 3, seed=12)]
    return regularizers.ImportedRidge(kernels, 0.2 * rand(3, 8, seed=13), 0.1, log_scales=0.3 * randn(3, 1, seed=14))


REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "tv": lambda: moved(regularizers.TotalVariation(0.1, 0.01)),
    "analysis": lambda: analysis(lr.PseudoHuber(0.05, 0.2), 5),
    "analysis-stacked": lambda: analysis(lr.LogCosh(0.1, 0.15), 6, 7),
    "experts": lambda: experts(boundary="reflect"),
    "experts-logcosh": lambda: experts(lr.LogCosh(0.05, 0.3), boundary="zero"),
    "experts-huber": lambda: experts(lr.Huber(0.05, 0.3), boundary="circular"),
    "experts-arrays": lambda: FieldsOfExperts.from_arrays(
        randn(3, 3, 3, seed=8), rand(3, seed=9) / 9, rand(3, seed=10)
    ),
    "multivariate": lambda: seeded(regularizers.MultivariateExperts, 2, 2, 3, 0.3, 0.05, "reflect"),
    "ridge": ridge,
    "ridge-shared-noise": lambda: ridge(shared=True, boundary="circular", noise_conditioned=True),
    "ridge-nonconvex": lambda: ridge(convexity="convex-nonconvex", nonconvexity=0.9),
    "ridge-mildly-nonconvex": lambda: ridge(convexity="convex-nonconvex", nonconvexity=0.05),
    "icnn": network,
    "icnn-deep": lambda: network(layers=3, mixing_size=3, minimum_smoothing=0.02),
    "icnn-lifted": lambda: network(form="lifted"),
    "learned-tv": lambda: seeded(regularizers.LearnedTotalVariation, 2, 3, 0.1, 0.02),
    "learned-tgv": lambda: seeded(regularizers.LearnedTotalGeneralizedVariation, 2, 3, 0.1, 2.0, 0.03, 0.05),
    "tikhonov": lambda: seeded(regularizers.GeneralisedTikhonov, 3, 3, 0.3),
    "imported": imported,
    "scaled-imported": lambda: regularizers.Scaled(imported(), 0.7).double(),
    "sum": lambda: experts(boundary="zero") + 0.5 * seeded(regularizers.GeneralisedTikhonov, 3, 3, 0.3),
    "scaled-experts": lambda: regularizers.Scaled(experts(), 1.3).double().requires_grad_(),
}


def unrecorded() -> list[str]:
    """Public regularizers that no entry has; but chains, which are no single problem."""
    found = {type(module) for make in REGULARIZERS.values() for module in make().modules()}
    public = [getattr(regularizers, name) for name in regularizers.__all__]
    classes = [cls for cls in public if isinstance(cls, type) and issubclass(cls, Regularizer)]
    classes = [cls for cls in classes if cls.chain is Regularizer.chain]
    return [cls.__name__ for cls in classes if cls is not Regularizer and cls not in found]


PROBLEMS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "denoising": lambda: (Identity(SHAPE),),
    "deblurring": lambda: (Blur(nn.Parameter((0.5 + rand(3, 3, seed=20)) / 9.0), SHAPE, "reflect"), 0.2),
    "inpainting": lambda: (
        Inpainting((rand(*SHAPE, seed=21) > 0.3).double()),
        nn.Parameter(torch.tensor(0.1, dtype=torch.float64)),
        lr.WeightedLeastSquares(nn.Parameter(0.2 + rand(*SHAPE, seed=22))),
    ),
    "tomography": lambda: (ParallelBeam2D(SIDE, VIEWS), 0.1),
    "boxed": lambda: (Identity(SHAPE), 0.0, None, lr.Box(0.3, 0.7)),
    "counts": lambda: (ParallelBeam2D(SIDE, VIEWS), 0.1, lr.TransmissionLeastSquares(1e3, 2.0, 5.0), lr.Nonnegative()),
    "oblong": lambda: (Identity((1, 26, 33)),),
    "unridged": lambda: (Inpainting((rand(*SHAPE, seed=23) > 0.3).double()),),
}
"""Operator, ridge, data term and constraint; numbers that are parameters are learned, too."""


OPERATORS: dict[str, Callable[[], lr.LinearOperator]] = {
    "identity": lambda: Identity(SHAPE),
    "inpainting": lambda: Inpainting(rand(*SHAPE, seed=41)),
    "blur-zero": lambda: Blur(rand(3, 3, seed=40), SHAPE),
    "blur-circular": lambda: Blur(rand(3, 3, seed=40), SHAPE, "circular"),
    "blur-reflect": lambda: Blur(rand(3, 3, seed=40), SHAPE, "reflect"),
    "fourier": lambda: operators.FourierSampling(rand(SIDE, SIDE, seed=42), SHAPE),
    "parallel": lambda: ParallelBeam2D(SIDE, VIEWS),
    "fan": lambda: operators.FanBeam2D(SIDE, VIEWS, kernel="strip"),
    "callables": lambda: operators.from_callables(lambda x: x.cumsum(-1)[:, 0], None, SHAPE, SHAPE[1:]),
    "assembled": lambda: operators.assemble(Blur(rand(3, 3, seed=40), SHAPE) @ Inpainting(rand(*SHAPE, seed=43))),
    "stacked": lambda: lr.vstack(Identity(SHAPE), -2.0 * Blur(rand(3, 3, seed=40), SHAPE)),
    "difference": lambda: (Identity(SHAPE) - Blur(rand(3, 3, seed=40), SHAPE)).T,
}
