"""The absolute value, the potential of analysis sparsity and of anisotropic total variation."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.kernels.numbers import number_like
from learnreg.potentials.base import Number, check_positive
from learnreg.potentials.proximal import Elementwise

__all__ = ["AbsoluteValue"]


class AbsoluteValue(Elementwise):
    """l |t|, so that f(K x) is the weighted l1-norm of the responses. It has no derivative at 0, where most responses
    of a solution are: f* is 0 on |y| <= l and infinite beyond, and dual points are kept as they are instead of as
    pull-backs.

    ``lr.solve`` (by its primal-dual iteration) and ``lr.ClosedForm`` take it, alone; whatever needs f' or f'' refuses
    it.

    Parameters
    ----------
    weight: l > 0.

    Raises
    ------
    ConfigError: weights that are not positive and finite.

    Examples
    --------
    >>> lr.AbsoluteValue(weight=2.0).density(torch.tensor([-3.0, 0.5]))
    tensor([6., 1.])
    """

    differentiable = False

    def __init__(self, weight: Number = 1.0) -> None:
        check_positive(self, weight=weight)
        self.weight = weight

    @property
    def curvature_limit(self) -> Number:
        return math.inf

    @property
    def scale(self) -> Number:
        return 0.0

    def density(self, t: Tensor) -> Tensor:
        return self.weight * t.abs()

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        return v.sign() * (v.abs() - step * self.weight).clamp_min(0.0)

    def dual_prox(self, v: Tensor) -> Tensor:
        """prox_{sigma f*}(v) for every sigma: the nearest point with |y| <= l."""
        limit = number_like(self.weight, v)
        return torch.minimum(torch.maximum(v, -limit), limit)

    def conjugate_at_gradient(self, t: Tensor) -> Tensor:
        return t.new_zeros(t.shape[0])

    # ---- what it does not have ---------------------------------------------------------------------------------------

    def grad(self, t: Tensor) -> Tensor:
        self._refuse("derivative")

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        self._refuse("derivative")

    def second(self, t: Tensor) -> Tensor:
        self._refuse("second derivative")

    def majorant(self, t: Tensor) -> Tensor:
        self._refuse("second derivative")

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        self._refuse("derivative")

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        self._refuse("derivative of its proximal map")

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        self._refuse("second derivative")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"AbsoluteValue has no {what} at 0, which this method, solver or certificate needs; use lr.ClosedForm() "
            "and lr.solve with solver='auto' or 'pdhg', on AbsoluteValue alone, or lr.PseudoHuber with a small "
            "smoothing instead."
        )
