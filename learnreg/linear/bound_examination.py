"""What an operator of another class says of its size, held against images that show it: its norm, the smallest
eigenvalue of A^T A, the norms of its rows, and the constant of its parameters.

What passes may still be wrong for other images, where there are many unknowns: a smallest eigenvalue above all, which
few applications approach only of well-conditioned operators. What fails is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from learnreg.linear.norms import DENSE_LIMIT, dense_matrix
from learnreg.linear.operator import LinearOperator
from learnreg.linear.reparametrized import reparametrized
from learnreg.linear.samples import norm_samples

__all__ = ["wrong_bound"]

_DENSE = 256
"""Unknowns up to which one application to all unit images tells everything; with a ``gram_lower_bound`` as many as
``norm_bound`` takes, in four."""

_STEPS, _ROWS, _ROUNDS = 4, 8, 3

_KEPT = 2**20
"""Unknowns beyond which no more than the first images are kept."""


@torch.no_grad()
def wrong_bound(operator: LinearOperator, x: Tensor, rounding: float) -> tuple[str, str]:
    """The method whose bound is contradicted and a sentence; two empty strings if none is. Nothing is done for bounds
    that a class leaves to ``LinearOperator``; else it takes at most 10 applications, and 3 passes of autograd with
    learnable parameters.

    Parameters
    ----------
    x: two images of noise, in float64. rounding: of the operator, relative.
    """
    for name, found, said in _comparisons(operator, x):
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


def _comparisons(operator: LinearOperator, x: Tensor) -> Iterator[tuple[str, float, float]]:
    """(method, number found, number said): lower bounds of what is bounded from above, upper ones of the smallest
    eigenvalue."""
    says_norm, lowest = operator._bounds_its_norm(), operator.gram_lower_bound()
    rows = type(operator).row_norms is not LinearOperator.row_norms
    matrix = None
    limit = DENSE_LIMIT if lowest > 0 else _DENSE
    if (says_norm or lowest > 0 or rows) and math.prod(operator.domain_shape) <= limit:
        matrix = dense_matrix(operator.forward, operator.domain_shape, device=x.device)
    if says_norm or lowest > 0:
        small, large = _ends(matrix.T) if matrix is not None else _ritz_values(operator, x)
        yield "norm_bound", large, operator.norm_bound()
        if lowest > 0:
            yield "gram_lower_bound", small * small, lowest
    if rows:
        yield from _rows(operator, matrix, x)
    constant = operator.parameter_lipschitz()
    learned = any(p.requires_grad for p in operator.parameters())
    if constant is not None and learned and not reparametrized(operator):  # else it bounds nothing, which is known
        yield "parameter_lipschitz", _slope(operator, x), constant


def _ends(images: Tensor) -> tuple[float, float]:
    """The smallest and the largest ‖A v‖ over ‖v‖ in the span of orthonormal images, from what A makes of them, in
    rows."""
    scale = float(images.abs().max())
    if not scale > 0:
        return 0.0, 0.0
    values = torch.linalg.eigvalsh((images / scale) @ (images / scale).T).clamp_min(0.0).sqrt()
    return scale * float(values[0]), scale * float(values[-1])


def _ritz_values(operator: LinearOperator, x: Tensor) -> tuple[float, float]:
    """The same in the span of x, A^T A x, (A^T A)² x, ..., x with some plane waves; of x alone where images are too
    large to keep many."""
    new = torch.cat([x, _waves(operator.domain_shape, x)]).flatten(1)
    basis, images = new.new_zeros(0, new.shape[1]), new.new_zeros(0, math.prod(operator.range_shape))
    for step in range(_STEPS + 1 if new.shape[1] <= _KEPT else 1):
        if step:
            new = operator.adjoint(images[-len(new) :].view(-1, *operator.range_shape)).flatten(1)
        new = _beyond(basis, new)
        if not len(new):
            break  # the span holds all that A^T A makes of it
        image = operator(new.view(-1, *operator.domain_shape)).flatten(1)
        basis, images = torch.cat([basis, new]), torch.cat([images, image])
    return _ends(images)


def _waves(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Images that are constant or alternate along each of the last two axes: blurs keep the first, and shrink the
    others most."""
    signs = [torch.stack([torch.ones(n), 1.0 - 2.0 * (torch.arange(n) % 2)]).to(like) for n in shape[-2:]]
    waves = signs[0] if len(signs) == 1 else torch.einsum("ai,bj->abij", *signs).flatten(0, 1)
    return waves.view(len(waves), *(1 for _ in shape[:-2]), *shape[-2:]).expand(-1, *shape)


def _beyond(basis: Tensor, v: Tensor) -> Tensor:
    """An orthonormal basis of what the rows of v have beyond those of another one, up to rounding."""
    size = v.norm(dim=1)
    for _ in range(2):  # once more for what rounding left
        v = v - v @ basis.T @ basis
    block, r = torch.linalg.qr(v.T)
    kept: Tensor = block.T[r.diagonal().abs() > 1e-8 * size]
    return kept


def _rows(operator: LinearOperator, matrix: Tensor | None, x: Tensor) -> Iterator[tuple[str, float, float]]:
    """The row that exceeds its bound most, of all or of a few."""
    shape = operator.range_shape
    said = torch.as_tensor(operator.row_norms(False), dtype=torch.float64, device=x.device)
    bound = said.expand(shape).flatten()
    if matrix is not None:
        found = matrix.norm(dim=1)
    else:
        index = torch.linspace(0, bound.numel() - 1, min(_ROWS, bound.numel()), device=x.device).long()
        units = torch.nn.functional.one_hot(index, bound.numel()).to(x).view(-1, *shape)
        found, bound = norm_samples(operator.adjoint(units)), bound[index]
    worst = int((found - bound).argmax())
    yield "row_norms", float(found[worst]), float(bound[worst])


def _slope(operator: LinearOperator, x: Tensor) -> float:
    """‖∂_theta <A u, p>‖ over ‖u‖ ‖p‖, of steps of the power method for this form of three vectors; less what rounding
    to the dtype of the parameters may add to it."""
    largest, learned = 0.0, [p for p in operator.parameters() if p.requires_grad]
    rounding = 4.0 * max(torch.finfo(p.dtype).eps for p in learned)
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
    return largest * (1.0 - rounding)
