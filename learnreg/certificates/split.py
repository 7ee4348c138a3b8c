"""The energy in two convex parts, which the lemmas are about: M_sigma = M + K^T sigma K, and f - ½ sigma t².

For convex f nothing is moved, sigma = 0; for weakly convex ones f'' + rho >= 0 everywhere, sigma = -rho. Around a local
minimiser sigma is a number of each response, of either sign: what f'' has at least there, in part, goes to M.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.parameter_groups import Density
from learnreg.potentials.base import Potential
from learnreg.potentials.curvature import CurvatureInterval

__all__ = ["BallSplit", "GlobalSplit", "Split"]


class Split(ABC):
    """What was moved, with M_sigma >= modulus > 0. All that is bounded is *rigorous*.

    gain: the largest sigma, 0 where none is positive: ‖M_sigma‖ <= ‖M‖ + gain ‖K‖².
    """

    modulus: float
    gain: float

    @abstractmethod
    def interval(self, potential: Potential, t: Tensor, radius: Tensor) -> CurvatureInterval:
        """All that is known of f'' - sigma on the intervals around t."""

    @abstractmethod
    def bounds(self, potential: Potential, interval: CurvatureInterval) -> tuple[Tensor, Tensor, Tensor | None]:
        """(rise, root, fall) with f'' <= rise, and |f'' dt| <= √root √(f'' - sigma) |dt| + fall |dt| for every f'' of
        the interval; -fall <= f'' where sigma <= 0. Without fall, root = rise."""

    @abstractmethod
    def excess(self, group: Density, factor: Tensor) -> Tensor | float | None:
        """p with |ds/dt| <= factor (f'' - sigma) + p."""

    @abstractmethod
    def rate(self, slope: Tensor, factor: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """q with |ds| <= q √(f'' - sigma) |dt|, for |ds/dt| <= slope and factor (f'' + rho), low <= f'' - sigma <=
        high; infinite, or not a number, where none is known."""

    @abstractmethod
    def limit(self, interval: CurvatureInterval) -> Tensor:
        """The largest f'' + rho, what slopes of densities are told by."""


@dataclass(frozen=True)
class GlobalSplit(Split):
    """sigma = -rho, rho the potential's concavity."""

    modulus: float
    gain: float = 0.0

    def interval(self, potential: Potential, t: Tensor, radius: Tensor) -> CurvatureInterval:
        return potential.curvature_interval(t, radius)

    def bounds(self, potential: Potential, interval: CurvatureInterval) -> tuple[Tensor, Tensor, Tensor | None]:
        """d/√(d + rho) rises in d >= 0."""
        if potential.convex:
            return interval.high, interval.high, None
        rho, margin = potential.concavity, 4.0 * torch.finfo(interval.high.dtype).eps
        rise = (interval.high - rho * (1.0 - margin)).clamp_min_(0.0)
        root = rise * (rise / interval.high.clamp_min(torch.finfo(rise.dtype).tiny))
        return rise, root, (rho * (1.0 + margin) - interval.low).clamp_min_(0.0)

    def excess(self, group: Density, factor: Tensor) -> Tensor | float | None:
        return group.excess

    def rate(self, slope: Tensor, factor: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return factor * high.sqrt()

    def limit(self, interval: CurvatureInterval) -> Tensor:
        return interval.high


@dataclass(frozen=True)
class BallSplit(Split):
    """sigma <= f'' in a ball, of each response, or group of them: see ``of``. concavity: rho."""

    modulus: float
    sigma: Tensor
    concavity: Tensor | float
    gain: float

    @classmethod
    def of(cls, low: Tensor, curvature: Tensor, left: float, concavity: Tensor | float) -> BallSplit:
        """low <= f'' in the ball, of each response or group, where the Hessian is at least ``curvature``, (batch,), and
        M - K^T low₋ K at least ``left``, of either sign.

        sigma = low where that is negative, and theta low elsewhere, with 1 - theta = m/(2 (m + c)), c = max(0, -left):
        M_sigma = theta (M + K^T low K) + (1 - theta)(M - K^T low₋ K) >= theta m - (1 - theta) c = m/2. Where
        M - K^T low₋ K itself has more, theta = 0.
        """
        lowest = 0.5 * float(curvature.min()) * (1.0 - 1e-12)
        if left >= lowest:
            return cls(left, low.clamp_max(0.0), concavity, 0.0)
        m = curvature.reshape(-1, *(1,) * (low.dim() - 1))
        share = 1.0 - 0.5 * m / (m + max(0.0, -left)) * (1.0 + 1e-12)
        sigma = torch.where(low > 0, share * low, low)
        return cls(lowest, sigma, concavity, float(sigma.max().clamp_min(0.0)))

    def interval(self, potential: Potential, t: Tensor, radius: Tensor) -> CurvatureInterval:
        low, high = potential.curvature_bounds(t, radius)
        change, second = potential.curvature_change(t, radius), potential.second(t)
        margin = 4.0 * torch.finfo(t.dtype).eps * (self.sigma.abs() + torch.maximum(low.abs(), high.abs()))
        low, second = (low - self.sigma - margin).clamp_min(0.0), (second - self.sigma).clamp_min(0.0)
        high = (high - self.sigma + margin).clamp_min(0.0)
        third, ratio = potential.third_bound(t, radius), potential.curvature_ratio(second, low, high, change)
        return CurvatureInterval(low, high, change, ratio, third, potential.kink_excluded(t, radius))

    def bounds(self, potential: Potential, interval: CurvatureInterval) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where sigma > 0, f'' = (f'' - sigma) + sigma; elsewhere as above."""
        margin = 4.0 * torch.finfo(interval.high.dtype).eps * (self.sigma.abs() + interval.high)
        rise = (interval.high + self.sigma + margin).clamp_min(0.0)
        whole = rise * (rise / interval.high.clamp_min(torch.finfo(rise.dtype).tiny))
        root = torch.where(self.sigma > 0, interval.high, torch.minimum(whole, interval.high))
        below = (margin - self.sigma - interval.low).clamp_min(0.0)
        return rise, root, torch.where(self.sigma > 0, self.sigma, below)

    def excess(self, group: Density, factor: Tensor) -> Tensor | float | None:
        """factor (f'' + rho) + p = factor (f'' - sigma) + factor (sigma + rho) + p."""
        more = (self.sigma + self.concavity).clamp_min(0.0)
        return factor * (more if group.share is None else group.share.within(more)) + group.excess

    def rate(self, slope: Tensor, factor: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return slope / low.sqrt() * (1.0 + 1e-12)

    def limit(self, interval: CurvatureInterval) -> Tensor:
        return interval.high + (self.sigma + self.concavity).clamp_min(0.0)
