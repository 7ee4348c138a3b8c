"""The norm of an operator: found once from what it does, unless its class knows better."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.found_once import FindsOnce
from learnreg.linear.norms import (
    DENSE_LIMIT,
    FAILURE_PROBABILITY,
    NormBound,
    NormKind,
    dense_matrix,
    matrix_norm_bound,
    probabilistic_norm_bound,
)
from learnreg.linear.shapes import Shape

__all__ = ["Normed"]

_LOOSER = 1.01
"""What a norm of an operator nearby may cost."""


class Normed(FindsOnce):
    """What maps images to measurements, linearly, and back by the transpose, has a norm."""

    domain_shape: Shape
    range_shape: Shape
    nonnegative: bool | None = None  # what you know: whether A x >= 0 for every x >= 0; None: see is_nonnegative

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    def norm_bound(self) -> float:
        """Upper bound of ‖A‖, at most 1.5 times the norm. *Rigorous bound*, except for black boxes beyond 1,024
        unknowns, where ``norm_bound_kind`` says "probabilistic" and ``norm_failure_probability`` how likely it
        fails."""
        return self._norm().value

    @property
    def norm_bound_kind(self) -> NormKind:
        """What kind of number ``norm_bound`` is."""
        return "rigorous" if self._bounds_its_norm() else self._norm().kind

    @property
    def norm_failure_probability(self) -> float:
        """How likely a probabilistic bound of the norm is too small."""
        return 0.0 if self._bounds_its_norm() else self._norm().failure

    def norm(self) -> NormBound:
        """The bound of ‖A‖ with its kind."""
        return NormBound(self.norm_bound(), self.norm_bound_kind, self.norm_failure_probability)

    def is_nonnegative(self) -> bool:
        """Whether A x >= 0 for every x >= 0, up to rounding: by the operator's kind, by its entries up to 1,024
        unknowns, or as you declare it by ``operator.nonnegative = True``, unless a few images contradict that. False
        where it is not known."""
        if self.nonnegative is False:
            return False
        found: bool = self._known(
            ("nonnegative", self.nonnegative), self._seems_nonnegative if self.nonnegative else self._find_nonnegative
        )
        return found

    def _find_nonnegative(self) -> bool:
        if math.prod(self.domain_shape) > DENSE_LIMIT:
            return False
        return _almost_nonnegative(dense_matrix(self.forward, self.domain_shape, device=self._device()))

    def _seems_nonnegative(self) -> bool:
        images = torch.rand(3, *self.domain_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        images[0], images[1] = 1.0, (images[1] > 0.9).double()
        return _almost_nonnegative(self.forward(images.to(self._device())))

    def norm_near(self, other: Normed) -> NormBound | None:
        """From the norm of an operator that differs little: ‖A‖ <= ‖A'‖ + ‖A - A'‖, in a small share of the time that
        finding it takes; None where nothing is known of the difference."""
        return None

    @property
    def tells_norms_nearby(self) -> bool:
        """Whether its class knows ``norm_near``."""
        return type(self).norm_near is not Normed.norm_near

    def take_norm_near(self, other: Normed) -> bool:
        """Bound the norm by that of another operator, unless that loosens it by more than 1 % or it is known already;
        whether it does."""
        near = self.norm_near(other)
        if near is None or not near.value <= _LOOSER * other.norm_bound():
            return False
        return self._known("norm", lambda: near) is near

    def _bounds_its_norm(self) -> bool:
        """Whether the class has a ``norm_bound`` of its own."""
        return type(self).norm_bound is not Normed.norm_bound

    def _norm(self) -> NormBound:
        bound: NormBound = self._known("norm", self._find_norm)
        if not math.isfinite(bound.value):
            raise OperatorError(f"{self!r} returned NaN or infinite numbers while its norm was computed.", "finite")
        return bound

    def _find_norm(self) -> NormBound:
        device = self._device()
        if min(math.prod(self.domain_shape), math.prod(self.range_shape)) <= DENSE_LIMIT:
            small_domain = math.prod(self.domain_shape) <= math.prod(self.range_shape)
            apply, shape = (self.forward, self.domain_shape) if small_domain else (self.adjoint, self.range_shape)
            return NormBound(matrix_norm_bound(dense_matrix(apply, shape, device=device)))
        gram = lambda v: self.adjoint(self(v))  # noqa: E731
        bound = probabilistic_norm_bound(gram, self.domain_shape, device=device)
        return NormBound(bound, "probabilistic", FAILURE_PROBABILITY)

    def _device(self) -> torch.device | None:
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return None


def _almost_nonnegative(values: Tensor) -> bool:
    """Up to the rounding of float32, in which operators may compute."""
    return bool(values.min() >= -1e-6 * values.abs().max())
