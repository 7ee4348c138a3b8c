"""Physics of DeepInverse, by what they offer: ``A`` and ``A_adjoint`` on batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import OperatorError
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare, probe

__all__ = ["from_deepinv"]


def from_deepinv(
    physics: Any,
    domain_shape: Shape,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    device: torch.device | str | None = None,
    check: bool = True,
) -> BlackBox:
    """A linear physics of DeepInverse, or any object with ``A(x)`` and ``A_adjoint(y)`` on batches; its noise model is
    not used, and the package deepinv is not needed.

    Parameters
    ----------
    physics: with parameters that need no gradient; a module moves with ``.to(device)``.
    domain_shape: (channels, H, W); the range's shape is that of the first measurement.
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    device: where the first call is made; None: where the module's tensors are, or the CPU.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: no ``A_adjoint``, several outputs, complex, nonlinear, NaN, a wrong adjoint.
    """
    name = f"from_deepinv({type(physics).__name__})"
    for method in ("A", "A_adjoint"):
        if not callable(getattr(physics, method, None)):
            raise OperatorError(
                f"{name}: it has no {method}. A linear physics has A and A_adjoint; with A alone, "
                "from_callables(physics.A, None, domain_shape, range_shape) derives the adjoint.",
                "type",
            )
    range_shape = _range_shape(physics, tuple(domain_shape), device, name)
    operator = BlackBox(physics.A, physics.A_adjoint, domain_shape, range_shape, name=name, device=device)
    probe(operator)
    if check:
        check_linear(operator)
        check_adjoint(operator, "from_callables(physics.A, None, domain_shape, range_shape) derives an exact one.")
    declare(operator, norm_bound, gram_lower_bound)
    return operator


@torch.no_grad()
def _range_shape(physics: Any, domain_shape: Shape, device: torch.device | str | None, name: str) -> Shape:
    """The shape of one measurement, from an image of zeros."""
    tensors = [*physics.parameters(), *physics.buffers()] if isinstance(physics, nn.Module) else []
    place = device if device is not None else (tensors[0].device if tensors else None)
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    try:
        image = physics.A(torch.zeros(1, *domain_shape, dtype=dtype, device=place))
    except Exception as error:
        raise OperatorError(
            f"{name}: A raised {type(error).__name__} for an image of shape {(1, *domain_shape)}: {error}. Check "
            "domain_shape, which has no batch axis.",
            "forward",
        ) from error
    if not isinstance(image, Tensor):
        raise OperatorError(
            f"{name}: A returned {type(image).__name__}, expected one tensor. Adapt each output on its own and combine "
            "them with lr.vstack.",
            "type",
        )
    return tuple(image.shape[1:])
