"""Spaces of ODL as shapes and weights: elements to and from flat arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learnreg.errors import OperatorError
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import COMPLEX_HINT

__all__ = ["Layout", "layout_of"]


class Layout:
    """A real ODL space seen as R^n.

    Parameters
    ----------
    space: the ODL space.
    shape: of its arrays; product spaces of equal parts have their number in front, others are flat.
    weights: the diagonal of the Gram matrix of its inner product, a number or an array (n,); None where the inner
        product is no weighted sum.
    parts: layouts of the parts of a product space.
    """

    def __init__(self, space: Any, shape: Shape, weights: Any, parts: tuple[Layout, ...] = ()) -> None:
        self.space, self.shape, self.weights, self.parts = space, shape, weights, parts

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def element(self, flat: Any) -> Any:
        """The element of a flat array."""
        if self.parts:
            ends = np.cumsum([part.size for part in self.parts])[:-1]
            pieces = np.split(flat, ends)
            return self.space.element([part.element(a) for part, a in zip(self.parts, pieces, strict=True)])
        array = flat.reshape(self.shape).astype(self.space.dtype_identifier, copy=False)
        if self.space.impl == "pytorch":
            import torch

            array = torch.from_numpy(array).to(self.space.device)
        return self.space.element(array)

    def flat(self, element: Any) -> Any:
        """The flat array of an element."""
        if self.parts:
            return np.concatenate([part.flat(piece) for part, piece in zip(self.parts, element, strict=True)])
        data = element.data
        if self.space.impl == "pytorch":
            data = data.detach().cpu().numpy()
        return np.asarray(data).reshape(-1)


def layout_of(space: Any, name: str) -> Layout:
    """The layout of a tensor space, a discretised function space, or a product of them.

    Raises
    ------
    OperatorError: complex spaces, and what is none of these.
    """
    if hasattr(space, "spaces"):
        return _product_layout(space, name)
    if not hasattr(space, "shape") or not hasattr(space, "weighting"):
        raise OperatorError(
            f"{name}: expected tensor spaces, discretised function spaces or products of them, got {space!r}.", "space"
        )
    if space.is_complex:
        raise OperatorError(f"{name}: the space {space!r} is complex. {COMPLEX_HINT}", "real")
    return Layout(space, tuple(int(s) for s in space.shape), _weights(space.weighting))


def _product_layout(space: Any, name: str) -> Layout:
    parts = tuple(layout_of(part, name) for part in space.spaces)
    if not parts:
        raise OperatorError(f"{name}: the product space {space!r} is empty.", "space")
    equal = all(part.shape == parts[0].shape for part in parts)
    shape = (len(parts), *parts[0].shape) if equal else (sum(part.size for part in parts),)
    outer = _weights(space.weighting)
    if outer is None or any(part.weights is None for part in parts):
        return Layout(space, shape, None, parts)
    outer = np.broadcast_to(outer, len(parts))
    weights = [w * np.broadcast_to(part.weights, part.size) for w, part in zip(outer, parts, strict=True)]
    return Layout(space, shape, np.concatenate(weights), parts)


def _weights(weighting: Any) -> Any:
    """A number, a flat array, or None for inner products of another kind (matrices, functions, exponents but 2)."""
    if getattr(weighting, "exponent", 2.0) != 2.0:
        return None
    if hasattr(weighting, "const"):
        return float(weighting.const)
    if hasattr(weighting, "array"):
        array = weighting.array
        return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float64).reshape(-1)
    return None
