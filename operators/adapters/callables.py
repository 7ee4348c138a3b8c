"""Operators from two functions on torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.shapes import Shape, checked_shape
from learnreg.operators.adapters.black_box import BlackBox, Function
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare, probe

__all__ = ["DerivedAdjoint", "from_callables"]


class DerivedAdjoint:
    """The transpose of a linear function made of torch operations, by reverse mode at zero."""

    def __init__(self, forward: Function, domain_shape: Shape) -> None:
        self.forward, self.domain_shape = forward, domain_shape

    def __call__(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = torch.zeros(y.shape[0], *self.domain_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            try:
                image = self.forward(x)
            except Exception as error:
                raise OperatorError(
                    f"adjoint=None: forward raised {type(error).__name__} under autograd: {error}. Where it leaves "
                    "torch, no adjoint can be derived; pass the adjoint, or let learnreg.operators.assemble(forward, "
                    "domain_shape, range_shape) make the matrix.",
                    "adjoint",
                ) from error
            if not (isinstance(image, Tensor) and image.requires_grad):
                raise OperatorError(
                    "adjoint=None: the result of forward does not depend on its input through torch operations, so "
                    "that no adjoint can be derived; pass the adjoint, or let learnreg.operators.assemble(forward, "
                    "domain_shape, range_shape) make the matrix.",
                    "adjoint",
                )
            if image.shape != y.shape:
                raise OperatorError(
                    f"adjoint=None: forward returned shape {tuple(image.shape)} for an input of shape "
                    f"{tuple(x.shape)}, expected {tuple(y.shape)}.",
                    "shape",
                )
            (gradient,) = torch.autograd.grad(image, x, y.to(image))
        return gradient


def from_callables(
    forward: Function,
    adjoint: Function | None,
    domain_shape: Shape,
    range_shape: Shape,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    check: bool = False,
    name: str = "from_callables",
) -> BlackBox:
    """A fixed linear operator from functions of batched tensors; differentiable in x any number of times, whatever
    happens inside them.

    Parameters
    ----------
    domain_shape, range_shape: of one sample on both sides, without the batch.
    forward: maps (batch, *domain_shape) to (batch, *range_shape).
    adjoint: its transpose (Euclidean); None derives it by autograd from a forward made of torch operations.
    norm_bound: an upper bound of the norm that you vouch for (``norm_bound_kind`` is then "declared"), to be at most
        1.5 times the norm; refused if a power method finds more. None: computed.
    gram_lower_bound: a lower bound of the smallest eigenvalue of A^T A that you vouch for: it makes the lower-level
        problem strongly convex, and certificates rely on it. Held against an estimate from above. None: 0.
    dtype: what the functions compute in; None: the dtype of the input, or the one of float32 and float64 in which a
        first call succeeds.
    device: where the first call is made, if the functions are no methods of a module that tells. None: the CPU.
    check: test linearity and the adjoint, too (5 calls; ``lr.testing.check_operator`` tests more).
    name: what error messages call the operator.

    Raises
    ------
    OperatorError: the first call fails, or returns another shape, NaN or infinity; with ``check``, the functions are
        not linear or not adjoint to each other; a declared bound is false.
    """
    shape = checked_shape(domain_shape, "domain_shape")
    back = DerivedAdjoint(forward, shape) if adjoint is None else adjoint
    operator = BlackBox(forward, back, shape, range_shape, name=name, dtype=dtype, device=device)
    probe(operator)
    if check:
        check_linear(operator)
        check_adjoint(operator)
    declare(operator, norm_bound, gram_lower_bound)
    return operator
