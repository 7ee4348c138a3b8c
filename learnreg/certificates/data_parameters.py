"""Bounds of the gradient with respect to parameters outside the regularizer: ridge, data weights, forward operator.

e bounds the error of x. All *rigorous bounds*, per sample, (batch,).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from learnreg.certificates.groups import GroupBound, density_bound
from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.data_terms import LeastSquares
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.pairing import Responses

__all__ = ["data_groups", "forward_operator_bound", "ridge_bound"]


def ridge_bound(x: Tensor, X: Tensor, e: Tensor) -> GroupBound:
    """For the ridge: <x, X>."""
    return GroupBound.by_norm(norm_samples(X) * e, norm_samples(x) + e)


def forward_operator_bound(
    x: Tensor,
    X: Tensor,
    residual: Tensor,
    forward_X: Tensor,
    e: Tensor,
    forward_norm: float,
    lipschitz: float,
    weight_max: float,
) -> GroupBound:
    """For parameters of A: C(X, w(Ax - b)) + C(x, w A X), with errors w ‖A‖ e and w ‖A‖ ‖X - X^‖ of the second
    arguments."""
    change = weight_max * forward_norm
    constant = norm_samples(X) * change * e + weight_max * norm_samples(forward_X) * e
    on_E = weight_max * norm_samples(residual) + change * e + (norm_samples(x) + e) * change
    return GroupBound.by_norm(lipschitz * constant, lipschitz * on_E)


def data_groups(
    problem: FrozenProblem, x: Tensor, X: Tensor, responses: Responses, e: Tensor, weight_max: float
) -> list[GroupBound]:
    """The groups of ridge, data term and forward operator that have learnable parameters. weight_max: of the data
    weights."""
    found: list[GroupBound] = []
    if isinstance(problem.ridge, Tensor) and problem.ridge.requires_grad:
        found.append(ridge_bound(x, X, e))
    residual, forward_X, forward = responses.residual, responses.forward_X, problem.operator
    if residual is None or forward_X is None:
        return found
    forward_norm = forward.norm_bound()
    radius = expand(forward_norm * e, residual)
    squares = cast(LeastSquares, problem.data_term)  # other data terms have no residual
    for group in squares.parameter_groups():
        gradient = group.size(residual, squares.grad(residual))
        slope = group.largest_slope(residual, radius, squares.curvature_bounds(residual, radius)[1])
        found.append(density_bound(gradient, forward_X, slope.expand_as(residual), e, forward_norm, group.shape))
    lipschitz = forward.parameter_lipschitz()
    if lipschitz and any(p.requires_grad for p in forward.parameters()):
        found.append(forward_operator_bound(x, X, residual, forward_X, e, forward_norm, lipschitz, weight_max))
    return found
