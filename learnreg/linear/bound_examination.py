"""What an operator of another class says of its size, held against images that show it: its norm, the smallest
eigenvalue of A^T A, the norms of its rows, and the constant of its parameters.

What passes may still be wrong for other images, where there are more than 256 unknowns; what fails is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import norm_samples

__all__ = ["wrong_bound"]

_DENSE = 256
"""Unknowns up to which one application to all unit images tells everything."""

_STEPS, _ROWS, _ROUNDS = 4, 8, 3


def wrong_bound(operator: LinearOperator, x: Tensor, image: Tensor, rounding: float) -> tuple[str, str]:
    """The method whose bound is contradicted and a sentence; two empty strings if none is. Nothing is done for bounds
    that a class leaves to ``LinearOperator``; else it takes at most 9 applications, and 3 passes of autograd with
    learnable parameters.

    Parameters
    ----------
    x: two images of noise, in float64. image: A x.
    """
    for name, found, said in _comparisons(operator, x, image):
        allowed = said * (1.0 + 10.0 * rounding)
        if name == "gram_lower_bound":
            slack = 10.0 * rounding * max(operator.norm_bound(), 0.0) ** 2
            if not said <= found + slack:
                return name, (
                    f"its gram_lower_bound() is {said:.6g}, but of some image ‖A x‖² is {found:.6g} ‖x‖²; return at "
                    "most the smallest eigenvalue of A^T A, or 0, and add a ridge."
                )
        elif not found <= allowed:
            return name, f"its {name}() is {said:.6g}, but {found:.6g} was found; return at least that."
    return "", ""


def _comparisons(operator: LinearOperator, x: Tensor, image: Tensor) -> Iterator[tuple[str, float, float]]:
    """(method, number found, number said): lower bounds of what is bounded from above, upper ones of the smallest
    eigenvalue."""
    says_norm, lowest = operator._bounds_its_norm(), operator.gram_lower_bound()
    rows = type(operator).row_norms is not LinearOperator.row_norms
    matrix = None
    if (says_norm or lowest > 0 or rows) and math.prod(operator.domain_shape) <= _DENSE:
        matrix = dense_matrix(operator.forward, operator.domain_shape, device=x.device)
    if says_norm or lowest > 0:
        small, large = _ends(matrix.T @ matrix) if matrix is not None else _ritz_values(operator, x, image)
        yield "norm_bound", math.sqrt(large), operator.norm_bound()
        if lowest > 0:
            yield "gram_lower_bound", small, lowest
    if rows:
        yield from _rows(operator, matrix, x)
    constant = operator.parameter_lipschitz()
    if constant is not None and any(p.requires_grad for p in operator.parameters()):
        yield "parameter_lipschitz", _slope(operator, x), constant


def _ends(gram: Tensor) -> tuple[float, float]:
    """The smallest and the largest eigenvalue."""
    values = torch.linalg.eigvalsh(gram)
    return max(float(values[0]), 0.0), max(float(values[-1]), 0.0)


def _ritz_values(operator: LinearOperator, x: Tensor, image: Tensor) -> tuple[float, float]:
    """Rayleigh quotients ‖A v‖²/‖v‖² of images v in the span of x, A^T A x, (A^T A)² x, ...: the same from within."""
    basis, images = x.flatten(1), image.flatten(1)
    for _ in range(_STEPS):
        x = operator.adjoint(image)
        size = norm_samples(x)
        block, r = torch.linalg.qr(_beyond(basis, x.flatten(1)).T)
        if not bool((r.diagonal().abs() > 1e-8 * size).all()):
            break  # the span holds all that A^T A makes of it
        x = _beyond(basis, block.T).view(x.shape)
        image = operator(x)
        basis, images = torch.cat([basis, x.flatten(1)]), torch.cat([images, image.flatten(1)])
    factor = torch.linalg.cholesky(basis @ basis.T)
    inner = torch.linalg.solve_triangular(factor, images, upper=False)
    return _ends(inner @ inner.T)


def _beyond(basis: Tensor, v: Tensor) -> Tensor:
    """The part of the rows of v that is orthogonal to those of the basis."""
    return v - torch.linalg.lstsq(basis.T, v.T).solution.T @ basis


def _rows(operator: LinearOperator, matrix: Tensor | None, x: Tensor) -> Iterator[tuple[str, float, float]]:
    """The row that exceeds its bound most, of all or of a few."""
    shape = operator.range_shape
    bound = (
        torch.as_tensor(operator.row_norms(False), dtype=torch.float64, device=x.device)
        .detach()
        .expand(shape)
        .flatten()
    )
    if matrix is not None:
        found = matrix.norm(dim=1)
    else:
        index = torch.linspace(0, bound.numel() - 1, min(_ROWS, bound.numel()), device=x.device).long()
        units = torch.nn.functional.one_hot(index, bound.numel()).to(x).view(-1, *shape)
        found, bound = norm_samples(operator.adjoint(units)), bound[index]
    worst = int((found - bound).argmax())
    yield "row_norms", float(found[worst]), float(bound[worst])


def _slope(operator: LinearOperator, x: Tensor) -> float:
    """‖∂_theta <A u, p>‖ over ‖u‖ ‖p‖, of steps of the power method for this form of three vectors."""
    largest, learned = 0.0, [p for p in operator.parameters() if p.requires_grad]
    with torch.inference_mode(False), torch.enable_grad():
        u = x[:1].clone()
        p = operator(u).detach()
        for _ in range(_ROUNDS):
            u = (u / norm_samples(u).clamp_min(1e-300)).detach().requires_grad_()
            p = (p / norm_samples(p).clamp_min(1e-300)).detach().requires_grad_()
            pairing = (operator(u) * p).sum()
            grads = torch.autograd.grad(pairing, learned, create_graph=True, materialize_grads=True)
            size = math.sqrt(math.fsum(float(g.detach().double().square().sum()) for g in grads))
            largest = max(largest, size)
            along = torch.stack([(g * g.detach()).sum() for g in grads]).sum()
            if not (size > 0 and along.requires_grad):
                break
            u, p = torch.autograd.grad(along, (u, p), materialize_grads=True)
            if not (bool(u.any()) and bool(p.any())):
                break
    return largest
