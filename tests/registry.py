"""Every public operator, regularizer, potential, solver and method, once: a new class is tested by adding a line here,
and ``test_registry.py`` fails for a public class that has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.convolutions.lifted import LiftedOperator
from learnreg.convolutions.second_order import SecondOrderOperator
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.interleaved import InterleavedPDHG
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.latent import JointOperator
from learnreg.operators import (
    Blur,
    FanBeam2D,
    FourierSampling,
    Identity,
    Inpainting,
    ParallelBeam2D,
    assemble,
    from_callables,
)
from learnreg.potentials.base import Potential
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.network import NetworkPotential
from learnreg.potentials.quadratic_spline import QuadraticSpline
from learnreg.potentials.spline import Spline
from learnreg.potentials.squared_hinge import SquaredHinge
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.regularizers import (
    AnalysisOperator,
    FieldsOfExperts,
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
from learnreg.solvers import LBFGS, PDHG, AdjointPDHG, ConjugateGradient, NewtonCG, ProjectedLBFGS

SHAPE = (1, 5, 6)
"""Images of all registered objects."""


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _bank(boundary: str, k: int, l: int, n: int = 3) -> FilterBank:
    return FilterBank(nn.Parameter(randn(n, k, l, seed=k + 7 * l)), SHAPE, boundary)


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "Identity": lambda: Identity(SHAPE),
    "Inpainting": lambda: Inpainting((rand(*SHAPE) > 0.4).double()),
    "Inpainting-weights": lambda: Inpainting(0.1 + randn(*SHAPE)),
    "Blur-zero": lambda: Blur(nn.Parameter(rand(3, 3)), SHAPE),
    "Blur-zero-even-signed": lambda: Blur(randn(2, 4), SHAPE),
    "Blur-circular": lambda: Blur(nn.Parameter(rand(3, 3) / 9), SHAPE, "circular"),
    "Blur-circular-dominant": lambda: Blur(torch.eye(3, dtype=torch.float64) * 0.1 + _delta(3), SHAPE, "circular"),
    "Blur-circular-larger-than-image": lambda: Blur(randn(6, 7), SHAPE, "circular"),
    "Blur-reflect": lambda: Blur(nn.Parameter(rand(3, 2)), SHAPE, "reflect"),
    "Blur-reflect-signed": lambda: Blur(randn(5, 5), SHAPE, "reflect"),
    "Blur-channels": lambda: Blur(nn.Parameter(randn(3, 3)), (2, 4, 5), "reflect"),
    **{
        f"FilterBank-{boundary}-{k}x{l}": lambda boundary=boundary, k=k, l=l: _bank(boundary, k, l)  # type: ignore[misc]
        for boundary in ("valid", "zero", "circular", "reflect", "replicate")
        for k, l in ((3, 3), (2, 4), (1, 1), (5, 3))
    },
    **{
        f"GroupedFilterBank-{boundary}": lambda boundary=boundary: GroupedFilterBank(  # type: ignore[misc]
            randn(2, 3, 3, 2, seed=9), SHAPE, boundary
        )
        for boundary in ("valid", "zero", "circular", "reflect", "replicate")
    },
    "GroupedFilterBank-circular-larger": lambda: GroupedFilterBank(randn(3, 2, 6, 8, seed=9), SHAPE, "circular"),
    "FilterBank-as-large-as-the-image": lambda: _bank("valid", 5, 6),
    "FilterBank-circular-larger": lambda: _bank("circular", 7, 8),
    "ConvolutionChain": lambda: ConvolutionChain([randn(2, 1, 3, 3), randn(3, 2, 5, 3)], SHAPE),
    "ConvolutionChain-one-row": lambda: ConvolutionChain([randn(2, 1, 3, 3), randn(1, 2, 3, 3)], (1, 1, 7)),
    "Gradient": lambda: Gradient(SHAPE),
    "Gradient-one-row": lambda: Gradient((1, 1, 7)),
    "FourierSampling": lambda: FourierSampling(rand(5, 6) > 0.4),
    "FourierSampling-weights": lambda: FourierSampling(nn.Parameter(0.2 + randn(5, 6)), SHAPE),
    "FourierSampling-complex": lambda: FourierSampling(nn.Parameter(1 + rand(6, 4)), (2, 6, 4)),
    "BlackBox": lambda: from_callables(_cumulate, _cumulate_back, SHAPE, SHAPE),
    "BlackBox-derived-adjoint": lambda: from_callables(lambda x: x.cumsum(-1)[:, 0], None, SHAPE, (5, 6)),
    "SparseOperator": lambda: assemble(Blur(randn(3, 3), SHAPE)),
    "SparseOperator-more-rows": lambda: assemble(lr.vstack(Identity(SHAPE), Gradient(SHAPE))),
    "LiftedOperator": lambda: LiftedOperator(randn(2, 3, 3, 3, seed=1), rand(1, 3, 3, 3, 3, seed=2), SHAPE, 1.7),
    "LiftedOperator-one-layer": lambda: LiftedOperator(randn(1, 3, 2, 2, seed=1), rand(0, 3, 3, 1, 1, seed=2), SHAPE),
    "SecondOrderOperator": lambda: _second_order("replicate", 1.7),
    "SecondOrderOperator-valid": lambda: _second_order("valid", 0.4),
    "JointOperator": lambda: _joint(Blur(rand(3, 3), SHAPE)),
    "Adjoint": lambda: _bank("reflect", 3, 3).T,
    "Scaled": lambda: -2.5 * _bank("valid", 3, 3),
    "Composition": lambda: _bank("zero", 3, 3) @ Blur(rand(3, 3), SHAPE, "circular"),
    "Composition-circular": lambda: (
        Blur(_delta(3) + 0.1 * rand(3, 3), SHAPE, "circular") @ Inpainting(1 + rand(*SHAPE))
    ),
    "Sum": lambda: Identity(SHAPE) - Blur(randn(3, 3), SHAPE, "reflect"),
    "VStack": lambda: lr.vstack(Identity(SHAPE), Gradient(SHAPE), _bank("valid", 3, 2)),
}

HAS_ASTRA = find_spec("astra") is not None

if HAS_ASTRA:  # square images
    OPERATORS |= {
        "ParallelBeam2D": lambda: ParallelBeam2D(6, 5),
        "ParallelBeam2D-symmetric": lambda: ParallelBeam2D(5, 8),
        "ParallelBeam2D-all-rows": lambda: ParallelBeam2D(5, 6, 9, kernel="line", symmetry="none"),
        "FanBeam2D": lambda: FanBeam2D(5, torch.tensor([0.3, 1.0, 2.0, 4.0]), 14),
        "FanBeam2D-symmetric": lambda: FanBeam2D(6, 8, kernel="strip"),
    }


def _second_order(boundary: str, scale: float) -> SecondOrderOperator:
    filters = (randn(2, groups, 3, 3, seed=i) for i, groups in enumerate((3, 3, 2, 2)))
    return SecondOrderOperator(*filters, SHAPE, boundary, scale)  # type: ignore[arg-type]


def _joint(operator: LinearOperator) -> JointOperator:
    latent = network(form="lifted").saddle_terms(SHAPE).latent
    return JointOperator(operator, latent, 0.8)


def _cumulate(x: Tensor) -> Tensor:
    return torch.from_numpy(np.cumsum(x.numpy(), axis=-1))


def _cumulate_back(y: Tensor) -> Tensor:
    return torch.from_numpy(np.cumsum(y.numpy()[..., ::-1], axis=-1)[..., ::-1].copy())


def _delta(k: int) -> Tensor:
    kernel = torch.zeros(k, k, dtype=torch.float64)
    kernel[k // 2, k // 2] = 1.0
    return kernel


POTENTIALS: dict[str, Callable[[float | Tensor, float | Tensor], Potential]] = {
    "PseudoHuber": lr.PseudoHuber,
    "LogCosh": lr.LogCosh,
    "Huber": lr.Huber,
    "Spline": Spline,
    "IsotropicPseudoHuber": IsotropicPseudoHuber,
}

COUPLED: dict[str, Callable[[float | Tensor, float | Tensor], Potential]] = {
    "NetworkPotential": lambda v, c: NetworkPotential(v, c, 0.2 * rand(1, 3, 3, 1, 1), 0.1 * randn(2, 3)),
}
"""Potentials without proximal maps."""
WEAKLY_CONVEX: dict[str, Callable[[float | Tensor, float | Tensor], Potential]] = {
    "WeaklyConvexSpline": WeaklyConvexSpline,
}
"""Without proximal maps for all steps and conjugates; see regularizers/test_weakly_convex.py."""
ONE_SIDED: dict[str, Callable[[float | Tensor, float | Tensor], Potential]] = {
    "SquaredHinge": SquaredHinge,
    "QuadraticSpline": lambda v, c: QuadraticSpline(v, c, rand(1, 8, seed=15)),
}
"""Potentials that are not even; their tests are in test_lifted.py and test_imported_ridge.py."""

ELEMENTWISE = [name for name in POTENTIALS if name != "IsotropicPseudoHuber"]
SMOOTH = [name for name in ELEMENTWISE if name != "Huber"]


def _experts(potential: str, boundary: str, count: int = 3, size: int = 3) -> FieldsOfExperts:
    """With zero-mean filters, as they start."""
    initial = POTENTIALS[potential](0.15, 0.6)
    generator = torch.Generator().manual_seed(3)
    result = FieldsOfExperts(count, size, initial, boundary, generator=generator).double()  # type: ignore[arg-type]
    with torch.no_grad():
        result.filters.add_(0.3 * randn(count, size, size, seed=5))
        result.log_weights.add_(0.2 * randn(count, seed=6))
        result.log_smoothing.add_(0.2 * randn(count, seed=7))
    return result


def _arrays() -> FieldsOfExperts:
    filters, weights, smoothing = 0.5 * randn(3, 3, 3, seed=8), 0.1 + rand(3, seed=9), 0.1 + 0.2 * rand(3, seed=10)
    return FieldsOfExperts.from_arrays(filters, weights, smoothing, "reflect")


def _ridge(shared: bool, **options: object) -> RidgeRegularizer:
    """Away from its start: f'' rises and falls."""
    generator = torch.Generator().manual_seed(4)
    result = RidgeRegularizer(
        (2, 3), 3, 9, shared=shared, weight=0.5, smoothing=0.15, generator=generator, **options  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(result.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=30 + i))
        result.log_curvature.add_(randn(*result.log_curvature.shape, seed=40))
    return result


def _multivariate(boundary: str, members: int = 2) -> MultivariateExperts:
    generator = torch.Generator().manual_seed(3)
    result = MultivariateExperts(3, members, 3, 0.6, 0.15, boundary, generator=generator).double()  # type: ignore[arg-type]
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


REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "FieldsOfExperts": lambda: _experts("PseudoHuber", "valid"),
    "FieldsOfExperts-LogCosh": lambda: _experts("LogCosh", "zero"),
    "FieldsOfExperts-Huber": lambda: _experts("Huber", "circular", size=2),
    "FieldsOfExperts-from_arrays": _arrays,
    "MultivariateExperts": lambda: _multivariate("valid"),
    "MultivariateExperts-triples": lambda: _multivariate("reflect", 3),
    "MultivariateExperts-from_arrays": lambda: MultivariateExperts.from_arrays(
        0.5 * randn(2, 2, 2, 3, seed=8), 0.1 + rand(2, seed=9), 0.1 + 0.2 * rand(2, seed=10), "circular"
    ),
    "LearnedTotalVariation": lambda: _learned_variation(5, "replicate"),
    "LearnedTotalVariation-one": lambda: _learned_variation(1, "valid"),
    "RidgeRegularizer": lambda: _ridge(False),
    "RidgeRegularizer-shared": lambda: _ridge(True, boundary="valid"),
    "RidgeRegularizer-noise": lambda: _ridge(True, noise_conditioned=True).at(0.2),
    "TotalVariation": lambda: TotalVariation(0.2, 0.05).double(),
    "AnalysisOperator-FilterBank": lambda: AnalysisOperator(_bank("zero", 2, 3), lr.PseudoHuber(0.2, 0.3)).double(),
    "AnalysisOperator-FilterBank-LogCosh": lambda: AnalysisOperator(
        _bank("circular", 3, 3), lr.LogCosh(0.3, 0.1 + rand(3, 1, 1, seed=4))
    ).double(),
    "AnalysisOperator-Gradient": lambda: AnalysisOperator(Gradient(SHAPE), IsotropicPseudoHuber(0.1, 0.2)).double(),
    "Scaled": lambda: Scaled(_experts("PseudoHuber", "valid"), 0.7).double(),
    "Scaled-all-learnable": lambda: Scaled(_experts("LogCosh", "zero"), 1.5).double().requires_grad_(),
    "Scaled-TotalVariation": lambda: Scaled(TotalVariation(0.2, 0.05), 0.5).double(),
}


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


NETWORKS: dict[str, Callable[[], Regularizer]] = {
    "InputConvexNetwork": network,
    "InputConvexNetwork-deep": lambda: network(1, layers=3, mixing_size=3, minimum_smoothing=0.05),
    "InputConvexNetwork-shallow": lambda: network(2, layers=1, size=2),
    "InputConvexNetwork-scaled": lambda: Scaled(network(3), 0.7).double().requires_grad_(),
}
"""Regularizers whose potentials couple all responses of an image, and have no proximal map."""


def _imported() -> ImportedRidge:
    kernels = [0.5 * randn(2, 1, 3, 3, seed=70), 0.5 * randn(3, 2, 3, 3, seed=71)]
    return ImportedRidge(kernels, 0.2 * rand(3, 8, seed=72), 0.1, log_scales=0.3 * randn(3, 1, seed=73))


FIXED: dict[str, Callable[[], Regularizer]] = {"ImportedRidge": _imported}
"""Regularizers without parameters to learn; see test_imported_ridge.py."""


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


LATENT: dict[str, Callable[[], Regularizer]] = {
    "InputConvexNetwork-lifted": lambda: network(form="lifted"),
    "LearnedTotalGeneralizedVariation": generalized_variation,
}
"""Regularizers with latent variables; see test_lifted.py and test_learned_tgv.py."""

ALL_REGULARIZERS = REGULARIZERS | NETWORKS


@dataclass(frozen=True)
class ProblemCase:
    """A forward operator with what else the lower level needs to be strongly convex."""

    operator: Callable[[], LinearOperator]
    ridge: Callable[[], float | nn.Parameter] = lambda: 0.0
    data_term: Callable[[], lr.LeastSquares] = lr.LeastSquares


def scalar(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def _weights(learnable: bool) -> lr.WeightedLeastSquares:
    weights = rand(*SHAPE, seed=11) * (rand(*SHAPE, seed=12) > 0.2)
    return lr.WeightedLeastSquares(nn.Parameter(weights) if learnable else weights)


PROBLEMS: dict[str, ProblemCase] = {
    "denoising": ProblemCase(lambda: Identity(SHAPE)),
    "denoising-learned-ridge": ProblemCase(lambda: Identity(SHAPE), lambda: scalar(0.3)),
    "learned-blur": ProblemCase(lambda: Blur(nn.Parameter(rand(3, 3) / 4), SHAPE, "reflect"), lambda: 0.2),
    "circular-blur": ProblemCase(lambda: Blur(_delta(3) + 0.05 * rand(3, 3), SHAPE, "circular")),
    "inpainting": ProblemCase(lambda: Inpainting((rand(*SHAPE) > 0.4).double()), lambda: 0.1),
    "learned-weights": ProblemCase(lambda: Identity(SHAPE), lambda: 0.2, lambda: _weights(True)),
    "learned-scalar-weight": ProblemCase(
        lambda: Identity(SHAPE), lambda: 0.0, lambda: lr.WeightedLeastSquares(scalar(0.7))
    ),
    "weights-and-blur": ProblemCase(
        lambda: Blur(nn.Parameter(randn(2, 3, seed=2) / 4), SHAPE), lambda: scalar(0.3), lambda: _weights(True)
    ),
}


def build(problem: str, regularizer: str, constraint: lr.Box | None = None) -> lr.LowerLevelProblem:
    """A registered problem with a registered regularizer, in float64."""
    case = PROBLEMS[problem]
    return lr.LowerLevelProblem(
        case.operator(), ALL_REGULARIZERS[regularizer](), ridge=case.ridge(), data_term=case.data_term(),
        constraint=constraint,
    )  # fmt: skip


def measure(problem: lr.LowerLevelProblem, batch: int = 2, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Ground truth and measurement."""
    x_true = rand(batch, *problem.operator.domain_shape, seed=20)
    with torch.no_grad():
        b = problem.operator(x_true)
    return x_true, b + noise * randn(*b.shape, seed=21)


METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "Piggyback": lr.Piggyback,
    "Piggyback-interleaved": lambda: lr.Piggyback(mode="interleaved"),
    "Implicit": lr.Implicit,
    "Implicit-pdhg": lambda: lr.Implicit(state_solver="pdhg"),
    "Implicit-newton-cg": lambda: lr.Implicit(state_solver="newton-cg"),
}

SOLVERS = {"pdhg": PDHG, "lbfgs": LBFGS, "newton-cg": NewtonCG}
BOX_SOLVERS = {**SOLVERS, "lbfgs": ProjectedLBFGS}
ADJOINT_SOLVERS = {"piggyback": AdjointPDHG, "cg": ConjugateGradient}
OTHER_ITERATIONS = {"piggyback-interleaved": InterleavedPDHG}
