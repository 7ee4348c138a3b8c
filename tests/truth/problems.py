"""Random small lower-level problems, for hunting false bounds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from truth import image_kinds
from truth.draw import DOUBLE, Draw
from truth.groups import learned_generalized_variation, learned_total_variation, multivariate_experts
from truth.likelihoods import counted, dualised_term
from truth.matrices import Dense
from truth.networks import input_convex_network, lifted_network
from truth.ridges import deep_ridge, ridge_regularizer, weakly_convex_ridge

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.data_terms import DataTerm
from learnreg.operators import Blur, FanBeam2D, Identity, Inpainting, ParallelBeam2D
from learnreg.potentials.base import weighted_square
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers import (
    AnalysisOperator,
    FieldsOfExperts,
    GeneralisedTikhonov,
    Regularizer,
    Scaled,
    TotalVariation,
)


@dataclass
class Case:
    """One random problem and the call to test on it."""

    problem: lr.LowerLevelProblem
    b: Tensor
    loss: lr.UpperLoss
    coupled: bool
    smoothing: float
    label: str


class DenseMatrix(LinearOperator):
    """A random matrix, wide or tall; learnable, so that its entries get a gradient, or not."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, domain_shape: tuple[int, ...], learnable: bool) -> None:
        super().__init__(domain_shape, (matrix.shape[0],))
        if learnable:
            self.matrix = nn.Parameter(matrix)
        else:
            self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x.dtype).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y.dtype)).reshape(-1, *self.domain_shape)

    def row_norms(self, grouped: bool) -> Tensor | float:
        return self.matrix.detach().double().norm(dim=1) * (1.0 + 1e-12)

    def parameter_lipschitz(self) -> float | None:
        return 1.0 if self.matrix.requires_grad else 0.0


def random_matrix(draw: Draw, shape: tuple[int, ...], scale: float) -> DenseMatrix:
    columns = math.prod(shape)
    rows = draw.integer(max(1, columns // 3), 2 * columns)
    return DenseMatrix(scale / math.sqrt(columns) * draw.normal(rows, columns), shape, draw.chance(0.4))


def potential(draw: Draw, smoothing: float, weight: float) -> lr.PseudoHuber | lr.LogCosh | lr.Huber:
    kind = draw.choice(lr.PseudoHuber, lr.PseudoHuber, lr.LogCosh, lr.LogCosh, lr.Huber)
    return kind(smoothing, weight)  # type: ignore[operator]


def fields_of_experts(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    count, size = draw.integer(1, 5), draw.integer(2, min(3, *shape[1:]))
    boundary = draw.choice("valid", "zero", "circular", "reflect")
    scale = draw.scale()
    if draw.chance(0.4):
        shared = potential(draw, smoothing, draw.scale())
        result = FieldsOfExperts(count, size, shared, boundary, generator=draw.generator)
        result = result.double()
        with torch.no_grad():
            result.filters.add_(0.3 * draw.normal(count, size, size)).mul_(scale)
        return result
    filters = scale * draw.normal(count, size, size)
    weights = torch.stack([torch.tensor(draw.scale(), dtype=DOUBLE) for _ in range(count)])
    smoothings = smoothing * (1.0 + draw.rand(count))
    return FieldsOfExperts.from_arrays(filters, weights, smoothings, boundary, potential(draw, 1.0, 1.0))


def total_variation(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    return TotalVariation(draw.scale(), smoothing).double()


def analysis_operator(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    weight = draw.scale()
    kind = draw.integer(0, 3)
    if kind == 3:
        return AnalysisOperator(random_matrix(draw, shape, draw.scale()), potential(draw, smoothing, weight)).double()
    if kind == 0:
        size = draw.integer(2, min(3, *shape[1:]))
        filters = nn.Parameter(draw.scale() * draw.normal(draw.integer(1, 3), size, size))
        bank = FilterBank(filters, shape, draw.choice("valid", "zero", "circular", "reflect"))
        return AnalysisOperator(bank, potential(draw, smoothing, weight)).double()
    operator: LinearOperator = Gradient(shape)
    if kind == 1:
        return AnalysisOperator(operator, IsotropicPseudoHuber(smoothing, weight)).double()
    return AnalysisOperator(draw.uniform(0.1, 2.0) * operator, potential(draw, smoothing, weight)).double()


def quadratic(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    if draw.chance(0.5):
        return AnalysisOperator(random_matrix(draw, shape, draw.scale()), lr.Square(draw.scale())).double()
    count, size = draw.integer(1, 4), draw.integer(2, min(3, *shape[1:]))
    boundary = draw.choice("valid", "zero", "circular", "reflect")
    result = GeneralisedTikhonov(count, size, draw.scale(), boundary, generator=draw.generator).double()
    with torch.no_grad():
        result.filters.add_(0.3 * draw.normal(*result.filters.shape))
    return result


def analysis_l1(draw: Draw, shape: tuple[int, int, int], smoothing: float) -> Regularizer:
    """The l1-norm of differences, of responses to learned filters, of a random matrix, or of the image itself."""
    kind, weight = draw.integer(0, 4), lr.AbsoluteValue(draw.scale())
    if kind == 0:
        return AnalysisOperator(draw.uniform(0.1, 2.0) * Gradient(shape), weight).double()
    if kind == 1:
        both = torch.stack([torch.tensor(draw.scale(), dtype=DOUBLE) for _ in range(2)])
        return AnalysisOperator(Gradient(shape), lr.AbsoluteValue(both[:, None, None])).double()
    if kind == 2:
        return AnalysisOperator(Identity(shape), lr.AbsoluteValue(draw.scale() * (0.1 + draw.rand(*shape)))).double()
    if kind == 3:
        return AnalysisOperator(random_matrix(draw, shape, draw.uniform(0.3, 3.0)), weight).double()
    count, size = draw.integer(1, 3), draw.integer(2, min(3, *shape[1:]))
    filters, weights = draw.normal(count, size, size), draw.scale() * (0.1 + draw.rand(count))
    boundary = draw.choice("valid", "zero", "circular", "reflect")
    return FieldsOfExperts.from_arrays(filters, weights, None, boundary, lr.AbsoluteValue())


REGULARIZERS: dict[str, Callable[[Draw, Any, float], Regularizer]] = {
    "FieldsOfExperts": fields_of_experts,
    "TotalVariation": total_variation,
    "AnalysisOperator": analysis_operator,
    "RidgeRegularizer": ridge_regularizer,
    "MultivariateExperts": multivariate_experts,
    "LearnedTotalVariation": learned_total_variation,
    "LearnedTotalGeneralizedVariation": learned_generalized_variation,
    "InputConvexNetwork": input_convex_network,
    "WeaklyConvexRidge": weakly_convex_ridge,
    "DeepRidge": deep_ridge,
    "LiftedNetwork": lifted_network,
    "Quadratic": quadratic,
    "ExpertsOfKinds": image_kinds.experts,
    "GroupsOfKinds": image_kinds.groups,
    "VariationOfKinds": image_kinds.variation,
    "SquaresOfKinds": image_kinds.squares,
    "RidgeOfKinds": image_kinds.ridge,
    "AbsoluteValue": analysis_l1,
}


def scan(draw: Draw, side: int) -> LinearOperator:
    """X-ray transform of a square image of side 1: few random or uniform views, fewer or more rays than pixels, a
    detector that may be too short, curved or partly dead, an image that may lie off the axis."""
    limit = math.pi if draw.chance(0.5) else 2.0 * math.pi
    views = draw.integer(1, max(2, side))
    angles = views if draw.chance(0.5) else limit * draw.rand(views)
    detectors = None if draw.chance(0.5) else draw.integer(side, 2 * side)
    kernel: Any = draw.choice("line", "strip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of detectors that are too short
        if draw.chance(0.5):
            A: Any = ParallelBeam2D(side, angles, detectors, kernel="linear" if draw.chance(0.5) else kernel)
        else:
            near = draw.uniform(1.0, 3.0)
            A = FanBeam2D(side, angles, detectors, near, near + draw.uniform(0.0, 3.0), kernel=kernel)
        if draw.chance(0.5):
            return A
        changes: dict[str, Any] = {"image_center": (draw.uniform(-0.1, 0.1), draw.uniform(-0.1, 0.1))}
        if draw.chance(0.5):
            changes = {"dead_detectors": range(draw.integer(0, A.geometry.detectors - 1))}
        elif isinstance(A, FanBeam2D):
            changes["detector_shape"] = "curved"
        other = "line" if isinstance(A, FanBeam2D) else A.kernel
        built: LinearOperator = type(A).from_geometry(replace(A.geometry, **changes), kernel=other)
        return built


def forward_operator(draw: Draw, shape: Any) -> LinearOperator:
    if draw.ranges.scans:
        return scan(draw, shape[1])
    kind = draw.integer(0, 5)
    if kind in (3, 4) and len(shape) != 3:  # a blur is of images
        kind = draw.integer(0, 2)
    if kind <= 1:
        return Identity(shape)
    if kind == 5:
        return random_matrix(draw, shape, 1.0)
    if kind == 2:
        return Inpainting((draw.rand(*shape) > 0.3).to(DOUBLE))
    size = draw.integer(1, 3)
    boundary = draw.choice("zero", "circular", "reflect")
    kernel = draw.rand(size, size) if draw.chance(0.5) else draw.normal(size, size)
    kernel = kernel / kernel.abs().sum()
    return Blur(nn.Parameter(kernel) if draw.chance(0.4) else kernel, shape, boundary)


def nonnegative_operator(draw: Draw, shape: tuple[int, int, int]) -> LinearOperator:
    """One without negative entries."""
    kind = draw.integer(0, 3)
    if kind == 0:
        return Identity(shape)
    if kind == 1:
        return Inpainting((draw.rand(*shape) > 0.3).to(DOUBLE))
    if kind == 2:
        size, boundary = draw.integer(1, 3), draw.choice("zero", "circular", "reflect")
        kernel = draw.rand(size, size) / size**2
        return Blur(nn.Parameter(kernel) if draw.chance(0.4) else kernel, shape, boundary)
    pixels = math.prod(shape)
    matrix = draw.rand(draw.integer(1, 2 * pixels), pixels) * 2.0 / pixels
    return DenseMatrix(matrix, shape, draw.chance(0.3))


def photon_term(draw: Draw) -> lr.LeastSquares:
    """Weights of each measurement's own, over several powers of ten."""
    electronic = draw.log_uniform(0.1, 30.0) if draw.chance(0.5) else 0.0
    return lr.TransmissionLeastSquares(
        draw.log_uniform(10.0, 1e6), draw.log_uniform(0.1, 5.0), electronic, draw.uniform(0.0, 0.5)
    )


def noisy(draw: Draw, clean: Tensor) -> Tensor:
    return clean + draw.log_uniform(1e-2, 0.3) * draw.normal(*clean.shape)


def upper_loss(draw: Draw, x_true: Tensor) -> tuple[lr.UpperLoss, bool]:
    kind = draw.integer(0, 3)
    if kind <= 1:
        return lr.SquaredError(x_true), False
    scale = draw.log_uniform(1e-2, 1.0)
    if kind == 2:  # per sample; the second derivative of each term is at most 1/scale
        distance = lambda x: (((x - x_true) ** 2 + scale**2).sqrt() - scale).flatten(1).sum(1)  # noqa: E731
        return lr.UpperLoss(distance, 1.0 / scale, independent=True), False
    # one number for the whole batch that couples its samples: ½‖mean over the batch‖², gradient constant 1/batch
    return lr.UpperLoss(lambda x: 0.5 * ((x - x_true).mean(0) ** 2).sum(), 1.0 / x_true.shape[0]), True


def image_shape(draw: Draw) -> tuple[int, ...]:
    if draw.ranges.kinds:
        return image_kinds.draw_shape(draw)
    if draw.ranges.scans:
        side = draw.integer(6, 12)
        return 1, side, side
    return 1, draw.integer(*draw.ranges.sides), draw.integer(*draw.ranges.sides)


@torch.no_grad()
def _deepen(regularizer: Scaled, problem: lr.LowerLevelProblem) -> None:
    """More and deeper concave parts until M - K^T rho K is indefinite: no bound that holds everywhere is left."""
    dense = Dense(problem, torch.zeros(1, *problem.operator.range_shape, dtype=DOUBLE))
    parameters = dict(regularizer.base.named_parameters())
    for _ in range(40):
        rho = torch.as_tensor(problem.saddle_terms(DOUBLE).potential.concavity).detach().expand(dense.range_shape)
        if float(torch.linalg.eigvalsh(dense.M[0] - (dense.K.T * rho.flatten()) @ dense.K)[0]) < 0:
            break
        regularizer.log_factor.add_(0.4)
        parameters["logit_depth"].add_(0.3)
        parameters["log_curvature"].sub_(0.3)


def draw_case(draw: Draw) -> Case:
    """A random problem of at most 12 x 12 pixels, of 9 x 9 unless scans or networks are drawn."""
    ranges = draw.ranges
    shape = image_shape(draw)
    batch = draw.integer(1, 3)
    smoothing = draw.log_uniform(*ranges.smoothing)
    name = str(draw.choice(*ranges.regularizers))
    regularizer = REGULARIZERS[name](draw, shape, smoothing)
    operator = nonnegative_operator(draw, shape) if ranges.dualised else forward_operator(draw, shape)
    data_term: DataTerm = lr.LeastSquares()
    if ranges.dualised:
        data_term = dualised_term(draw, operator.range_shape)
    elif draw.chance(ranges.weighted):
        weights = draw.rand(*operator.range_shape) * (draw.rand(*operator.range_shape) > 0.2)
        if draw.chance(0.3):
            weights = torch.tensor(draw.uniform(0.2, 2.0), dtype=DOUBLE)
        data_term = lr.WeightedLeastSquares(nn.Parameter(weights) if draw.chance(0.5) else weights)
    if ranges.scans and draw.chance(0.3):
        data_term = photon_term(draw)
    ridge: float | nn.Parameter = 0.0
    modulus = data_term.weight_range()[0] * operator.gram_lower_bound()
    terms = regularizer.saddle_terms(shape)
    concavity = 0.0 if terms.potential.convex else weighted_square(terms.operator, terms.potential.concavity)
    if ranges.local:
        ridge = draw.log_uniform(*ranges.ridge) * max(0.0, concavity - modulus) if draw.chance(ranges.ridged) else 0.0
    elif modulus < concavity + 1e-3 or draw.chance(ranges.ridged):
        ridge = draw.log_uniform(*ranges.ridge) + max(0.0, concavity - modulus)
        if draw.chance(0.3):
            ridge = nn.Parameter(torch.tensor(ridge, dtype=DOUBLE))
    constraint = None
    if draw.chance(ranges.constrained):
        constraint = lr.Nonnegative() if draw.chance(0.5) else lr.Box(draw.uniform(-0.2, 0.3), draw.uniform(0.6, 1.2))
    if isinstance(data_term, (lr.Poisson, lr.TransmissionPoisson)):
        constraint = lr.Nonnegative() if draw.chance(0.5) else lr.Box(draw.uniform(0.0, 0.2), draw.uniform(0.6, 1.2))
    bounded = isinstance(constraint, lr.Box) and operator.gram_lower_bound() > 0.1 and concavity == 0.0
    if ranges.dualised and bounded and not isinstance(data_term, lr.Poisson) and draw.chance(0.5):
        ridge = 0.0  # the modulus is what the box gives
    problem = lr.LowerLevelProblem(
        operator,
        regularizer,
        ridge=ridge,
        data_term=data_term,
        constraint=constraint,
        minimiser="local" if ranges.local else "global",
    )
    if isinstance(regularizer, Scaled) and ranges.local:
        _deepen(regularizer, problem)
    x_true = draw.rand(batch, *shape)
    if draw.chance(0.5):
        x_true = x_true + ranges.offset
    with torch.no_grad():
        b = operator(x_true)
        b = counted(draw, data_term, b) if ranges.dualised else noisy(draw, b)
    dtype = ranges.dtypes[0] if len(ranges.dtypes) == 1 else ranges.dtypes[draw.integer(0, len(ranges.dtypes) - 1)]
    problem, x_true, b = problem.to(dtype), x_true.to(dtype), b.to(dtype)
    loss, coupled = upper_loss(draw, x_true)
    kind = type(problem.saddle_terms(DOUBLE).potential).__name__
    size = "x".join(map(str, (batch, *(shape if shape[0] > 1 else shape[1:]))))
    label = (
        f"{name}/{kind}/{type(operator).__name__}/{type(data_term).__name__}/{size}"
        f"/smoothing={smoothing:.2g}/mu={problem.strong_convexity:.2g}"
        f"{'' if constraint is None else '/' + type(constraint).__name__}"
        f"{'' if dtype == DOUBLE else '/' + str(dtype).removeprefix('torch.')}"
    )
    return Case(problem, b, loss, coupled, smoothing, label)
