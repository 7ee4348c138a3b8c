"""How x stands to the minimiser that bounds are about: by the modulus of the whole energy, or by a ball around x."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.ball import find_ball
from learnreg.certificates.lowest_curvature import LowestCurvature
from learnreg.certificates.obstacle import Hindrance
from learnreg.certificates.split import GlobalSplit, Split
from learnreg.lower_level.instance import Instance

__all__ = ["Standing", "stand"]


@dataclass(frozen=True)
class Standing:
    """error: bound of ‖x - x^‖, and radius of the ball in which x^ is the only minimiser, (batch,) each, infinite where
    that is the whole space. split: what bounds of hypergradients rest on; None where there are none. failure: the
    probability that the error is no bound. hindrance: why there is none."""

    error: Tensor
    radius: Tensor
    split: Split | None
    failure: float = 0.0
    hindrance: Hindrance | None = None


def stand(
    instance: Instance, x: Tensor, t: Tensor, residual: Tensor, moved: Tensor | float = 0.0, split: bool = True
) -> Standing:
    """For x with responses t and a residual of this norm, with its rounding, (batch,); see ``find_ball``. ``split``:
    whether one is wanted."""
    everywhere, mu = torch.full_like(residual, math.inf), instance.strong_convexity
    whole = Standing(residual / mu if mu > 0 else everywhere, everywhere, GlobalSplit(mu) if mu > 0 else None)
    if not instance.local or (mu > 0 and not LowestCurvature(instance).is_rigorous):
        return whole
    ball = find_ball(instance, x, t, residual, moved, split)
    found = ball.split(instance) if split and ball.hindrance is None else None
    if not mu > 0:
        return Standing(ball.error, ball.radius, found, ball.failure, ball.hindrance)
    # the minimiser in a ball is that of the whole energy, which has one alone
    return Standing(torch.minimum(ball.error, whole.error), everywhere, whole.split if found is None else found)
