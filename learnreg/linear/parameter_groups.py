"""Parameter groups: how the parameters of an operator, a potential or latent variables enter a hypergradient.

Whoever has parameters says which groups they form, by name; a regularizer says which raw parameters belong to which
(``Regularizer.parameter_roles``). Certificates know four kinds of groups and no names. With t = K x, V = K X, y = f'(t)
and Y = f''(t) V the gradient of a group is

    Pairing      C(X, y) + C(x, Y),  C(u, p) = ∂_theta <K_theta u, p>,   of an operator;
    Density      <s(t_g), V_g>  for each group g of responses,            of a potential, or a data term;
    OwnBound     what its owner says, with its own bound of the error;
    LinearCost   <1, Z_g>,                                                of latent variables Z.

All bounds are *rigorous*, per sample, (batch,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from learnreg.linear.norms import largest_eigenvalue
from learnreg.linear.samples import norm_samples
from learnreg.linear.share import Share

__all__ = [
    "Density",
    "GroupJudge",
    "LinearCost",
    "NormPairing",
    "OwnBound",
    "Pairing",
    "ParameterBound",
    "ParameterGroup",
    "ResponseErrors",
    "shape_of",
]

T = TypeVar("T", covariant=True)


def shape_of(value: float | Tensor) -> tuple[int, ...]:
    """The shape of a parameter, () for a number."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


class GroupJudge(Protocol[T]):
    """Who treats each kind of group in its own way: a certificate."""

    def of_operator(self, group: Pairing) -> T: ...

    def of_density(self, group: Density) -> T: ...

    def of_own(self, group: OwnBound) -> T: ...

    def of_cost(self, group: LinearCost) -> T: ...


class ParameterGroup(ABC):
    """Parameters that enter in one way. part: of what they change, the operator K, the potential's f', or the cost of
    latent variables; nothing else moves with them."""

    name: str
    part: Literal["operator", "potential", "cost"]

    @abstractmethod
    def judged(self, by: GroupJudge[T]) -> T:
        """What the judge makes of this kind of group."""


# ---- operators -------------------------------------------------------------------------------------------------------


class Pairing(ParameterGroup):
    """Parameters in which an operator is affine, through norms of C(u, p) = ∂_theta <K_theta u, p>.

    lipschitz: c with ‖C(u, p)‖ <= c ‖u‖ ‖p‖.
    """

    part = "operator"

    def __init__(self, lipschitz: float, name: str = "operator") -> None:
        self.lipschitz, self.name = lipschitz, name

    def judged(self, by: GroupJudge[T]) -> T:
        return by.of_operator(self)

    def by_traces(self) -> Pairing:
        """The same group with norms that cost a pass over the responses at most, where these do not."""
        return self

    @abstractmethod
    def dual_norm(self, p: Tensor) -> Tensor:
        """sup over u of ‖C(u, p)‖ / ‖u‖."""

    @abstractmethod
    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        """sup over v of ‖C(u, √D v)‖ / ‖v‖ for every 0 <= D <= high; ``high`` broadcasts against responses."""

    @abstractmethod
    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        """Largest ‖C(u, q)‖ over all q with |q| <= bent, elementwise or per group (``bent`` with one channel)."""


class NormPairing(Pairing):
    """From ‖C(u, p)‖ <= c ‖u‖ ‖p‖ alone."""

    def dual_norm(self, p: Tensor) -> Tensor:
        return self.lipschitz * norm_samples(p)

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        return self.lipschitz * norm_samples(u) * high.flatten(1).amax(1).sqrt()

    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        return self.lipschitz * norm_samples(u) * norm_samples(bent)


# ---- potentials ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Density(ParameterGroup):
    """Parameters whose gradient is <s(t_g), V_g>, for each group g of responses that share one.

    Parameters
    ----------
    name: of the group. shape: of the parameters, which broadcast against responses without their batch axis.
    density: from t to s(t), how f' moves with the parameter; None where that is f' itself. With ``several``: a bound of
        |(s_j(t))_j|.
    factor, excess: |ds/dt| <= factor (f'' + rho) + excess on the interval of a radius around t; the factor is a
        function of t and the radius, may be infinite, and is 1 if None. With ``several``: of |(ds_j/dt)_j|.
    steepest: from t and the radius to the largest |ds/dt|, where that is less than the above.
    several: where a response has several parameters j, from t to all s_j(t), (m, *t.shape).
    share: of potentials of several parts, the responses that the group is about; None: all of them.
    """

    name: str
    shape: tuple[int, ...]
    density: Callable[[Tensor], Tensor] | None = None
    factor: Callable[[Tensor, Tensor | float], Tensor | float] | None = None
    excess: Tensor | float = 0.0
    steepest: Callable[[Tensor, Tensor | float], Tensor] | None = None
    several: Callable[[Tensor], Tensor] | None = None
    share: Share | None = None
    part: Literal["potential"] = "potential"

    def judged(self, by: GroupJudge[T]) -> T:
        return by.of_density(self)

    def size(self, t: Tensor, y: Tensor) -> Tensor:
        """s(t), or with several parameters a bound of its norm at each response, for y = f'(t)."""
        return y if self.density is None else self.density(t)

    def parts(self, t: Tensor, y: Tensor) -> Tensor:
        """The s_j, (m, *t.shape), for y = f'(t)."""
        return self.size(t, y)[None] if self.several is None else self.several(t)

    def largest_slope(self, t: Tensor, radius: Tensor | float, high: Tensor) -> Tensor:
        """Of s on the interval, where f'' + rho <= high."""
        if self.steepest is not None:
            return self.steepest(t, radius)
        return (high if self.factor is None else self.factor(t, radius) * high) + self.excess

    def joint_norm(self, t: Tensor) -> Tensor | None:
        """sup over p of ‖(<s_jg, p_g>)_jg‖ / ‖p‖ over parameters j and groups g, by Gram matrices; None without
        several parameters."""
        if self.several is None:
            return None
        apart = any(size != 1 for size in self.shape)
        parts = self.several(t).transpose(0, 1)  # (batch, m, ..., n, rows, columns)
        S = parts.movedim(-3, 1).flatten(3) if apart else parts.flatten(2)[:, None]  # (batch, groups, m, responses)
        gram = largest_eigenvalue(S @ S.transpose(-1, -2))
        result: Tensor = gram.clamp_min(0.0).amax(1).sqrt() * (1.0 + 1e-10)
        return torch.where(torch.isfinite(result), result, torch.inf)


@dataclass(frozen=True)
class ResponseErrors:
    """How far responses t and duals y = f'(t) are from their exact values, and how far f''(t) moves the fixed vector V
    meanwhile: bounds of ‖t - t^‖, ‖y - y^‖ and ‖(f''(t) - f''(t^)) V‖, (batch,) each."""

    t: Tensor
    y: Tensor
    Y: Tensor


@dataclass(frozen=True)
class ParameterBound:
    """constant + on_V ‖V - V^‖ + on_Y ‖f''(t^) (V - V^)‖ bounds the error of ∂_theta <f'(t), V> over the raw parameters
    of the potential. magnitude: the size of what is summed in the gradient. Per sample, (batch,). *Rigorous bounds.*"""

    constant: Tensor
    on_V: Tensor
    on_Y: Tensor
    magnitude: Tensor


@dataclass(frozen=True)
class OwnBound(ParameterGroup):
    """Parameters of a potential that bounds the error of its gradient itself: ``bound(t, V, y, Y, errors)``. share: as
    that of a ``Density``."""

    name: str
    bound: Callable[[Tensor, Tensor, Tensor, Tensor, ResponseErrors], ParameterBound]
    share: Share | None = None
    part: Literal["potential"] = "potential"

    def judged(self, by: GroupJudge[T]) -> T:
        return by.of_own(self)


# ---- latent variables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearCost(ParameterGroup):
    """The cost c of latent variables z (channels, *sides) with the term <c, z>, gradient <1, Z_g>."""

    name: str
    cost: Tensor
    channels: int
    part: Literal["cost"] = "cost"

    def judged(self, by: GroupJudge[T]) -> T:
        return by.of_cost(self)

    def shared_root(self, sides: tuple[int, ...]) -> float:
        """The root of the number of latent variables that share an entry of the cost: the norm of Z -> (<1, Z_g>)_g."""
        return math.sqrt(self.channels * math.prod(sides) / self.cost.numel())
