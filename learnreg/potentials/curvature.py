"""f'' over every response that the exact solution may have.

For weakly convex potentials, f'' >= -rho, all of it is about f'' + rho, and the quadratic part of the energy has lost
K^T rho K: the same energy, split into two convex parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["CurvatureInterval"]


@dataclass(frozen=True)
class CurvatureInterval:
    """Bounds over the interval of some radius around each response t (a ball, for groups), *rigorous* and rounded
    outwards; f'' stands for f'' + rho.

    low, high: smallest and largest f''. change: Delta >= |f'' - f''(t)|. ratio: tau >= |f'' - f''(t)| / √f'', infinite
    where f'' may vanish. third: kappa >= |f''(t') - f''(t)| / |t' - t|. smooth: (batch,), no kink lies in any interval.
    """

    low: Tensor
    high: Tensor
    change: Tensor
    ratio: Tensor
    third: Tensor
    smooth: Tensor

    @property
    def high_max(self) -> Tensor:
        """The largest f'' of each sample, (batch,)."""
        return self.high.flatten(1).amax(1)
