"""Chains of convex problems: what a regularizer says that weighs its own terms by a solution, and solves again.

    x_0 = argmin E(x; 1),   w_k = M(x_{k-1}),   x_k = argmin E(x; w_k) = D(A x - b) + sum_i w_ki f_i(K x) + ridge,

all over the constraint. Each is a strongly convex problem of the usual kind (``FrozenProblem.stage``), which solvers
and certificates see as it is; a chain adds the map M and how far it carries an error.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from learnreg.linear.parameter_groups import ParameterGroup
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.saddle_terms import SaddleTerms

__all__ = ["Chain", "PullChange", "SolutionWeights", "WeightChange"]

R = TypeVar("R")


@dataclass(frozen=True)
class WeightChange:
    """How far weights M(x') are from M(x) for every x' with ‖x' - x‖ <= e. *Rigorous bounds.*

    alone: of each |M(x')_i - M(x)_i|, (batch, *places). together: from factors a >= 0 of the places to a bound of
    ‖(a_i (M(x')_i - M(x)_i))_i‖, (batch,), by what they share, ‖x' - x‖ <= e.
    """

    alone: Tensor
    together: Callable[[Tensor], Tensor]

    def norm(self, factors: Tensor) -> Tensor:
        """Of ‖(a_i (M(x')_i - M(x)_i))_i‖, (batch,), for factors a >= 0, which may be infinite where nothing moves."""
        entries = torch.where(self.alone == 0, 0.0, factors * self.alone)
        return torch.minimum(norm_samples(entries), torch.nan_to_num(self.together(factors), nan=torch.inf))


@dataclass(frozen=True)
class PullChange:
    """How far (∂M/∂x (x))^T p and ∂_theta <M(x; theta), p> are from those at x' and p', for all x' with ‖x' - x‖ <= e
    and all p' that a bound allows. *Rigorous bounds*, (batch,).

    pulled: of the first. own: of the second, for each group of parameters of M. of_group: for a group of the
    regularizer's, which M sees through its terms; None where no bound is known. magnitude: the size of what is summed.
    """

    pulled: Tensor
    own: tuple[Tensor, ...]
    of_group: Callable[[ParameterGroup], Tensor | None]
    magnitude: Tensor


class SolutionWeights(nn.Module):
    """The map M from images to weights in [0, 1] of the places of a regularizer's responses, in float64.

    Besides x, its methods take the terms of the regularizer and the responses t = K x, (batch, *range).
    """

    majorising: bool = False
    """Whether the chain lowers one energy, that of ``value``."""

    @abstractmethod
    def of(self, terms: SaddleTerms, x: Tensor, t: Tensor) -> Tensor:
        """M(x), (batch, *places), differentiable in x, t and all parameters."""

    @abstractmethod
    def change(self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor) -> WeightChange:
        """How far M moves within the 2-norms e (batch,) around x."""

    @abstractmethod
    def value(self, terms: SaddleTerms, t: Tensor) -> Tensor:
        """The energy that the chain lowers, (batch,).

        Raises
        ------
        AssumptionError: there is none.
        """

    def pull_change(
        self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor, p: Tensor, moved: Callable[[Tensor], Tensor]
    ) -> PullChange | None:
        """See there; ``moved``: from factors a >= 0 of the places to a bound of ‖(a_i (p'_i - p_i))‖, (batch,). None
        where no bound is known."""
        return None

    def energy_terms(self, terms: SaddleTerms) -> SaddleTerms | None:
        """K and the potential of that energy, where it is one of single responses; its critical points are the fixed
        points of the chain."""
        return None

    def fit_(self, terms_on_images: Callable[[], SaddleTerms]) -> None:
        """Set what the parameters start with that depends on a regularizer, by its terms on some images."""

    def usual(self) -> float:
        """About the weight of a place of which an image says nothing."""
        return 1.0

    def at_noise(self, ratio: float) -> Self:
        """M for a noise level that is ``ratio`` times the one it is stored for, with the same parameters."""
        return self

    def scale_parameters(self) -> list[nn.Parameter]:
        """Raw parameters that are logarithms of what densities are compared with: M stays as it is where all densities
        are multiplied by a number whose logarithm is added to these."""
        return []


@dataclass(frozen=True)
class Chain(Generic[R]):
    """base: the regularizer whose terms are weighed. weights: M. steps: how often, None for a fixed point.
    carry_errors: whether bounds of the whole chain are asked for."""

    base: R
    weights: SolutionWeights
    steps: int | None
    carry_errors: bool = True
