"""Latent variables: regularizers R(x) = min over z of <cost, z> + ½ modulus ‖z‖² + f(W (x, z)), z free or >= 0.

The lower level is solved in v = (x, z^) together, z = scale z^, on the pixel grid of the image: an image with more
channels. With the scale that makes the modulus of z^ that of x, bounds of ‖v - v^‖ are those of the lower level without
latent variables, and bound ‖x - x^‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import LinearCost, ParameterGroup
from learnreg.losses import UpperLoss
from learnreg.lower_level.constraints import Box

__all__ = ["ImageLoss", "JointOperator", "Latent", "image_part", "joint_loss", "without_latent"]


@dataclass(frozen=True)
class Latent:
    """What a regularizer says of its latent variables z, (channels, h, w) beside an image (image_channels, h, w).

    cost: linear term, broadcasts against z; may depend on parameters, as the group "latent_cost". modulus: > 0.
    nonnegative: z >= 0. operator: W for z = scale z^, by the scale. solve: from x to the minimiser z. start: from x
    to a guess of it, for about three applications. balance: an
    *estimate* of the scale at which W has columns of similar size for x and z^. idle: from responses t and a radius
    around them to the latent variables that are 0, and stay so under small changes, whatever their multiplier, if the
    exact responses are within the radius; None where that is unknown.
    """

    image_channels: int
    channels: int
    cost: Tensor
    modulus: float
    nonnegative: bool
    operator: Callable[[float], LinearOperator]
    solve: Callable[[Tensor], Tensor]
    start: Callable[[Tensor], Tensor]
    balance: Callable[[], float]
    idle: Callable[[Tensor, Tensor], Tensor] | None = None

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The cost."""
        return (LinearCost("latent_cost", self.cost, self.channels),)

    def scale(self, strong_convexity: float) -> float:
        """z = scale z^; 1 without a modulus of x."""
        return math.sqrt(strong_convexity / self.modulus) if strong_convexity > 0 else 1.0

    def box(self, constraint: Box) -> Box:
        """The constraint of (x, z^), given that of x."""
        if not (constraint.constrains or self.nonnegative):
            return constraint
        sides: list[Tensor] = []
        for name, far in (("lower", -math.inf), ("upper", math.inf)):
            own: Tensor = getattr(constraint, name)
            other = own.new_full((), 0.0 if name == "lower" and self.nonnegative else far)
            grid = (1, 1, *own.shape)[-2:]
            image = own.expand(self.image_channels, *grid)
            sides.append(torch.cat([image, other.expand(self.channels, *grid)]))
        return Box(*sides)


def image_part(v: Tensor, latent: Latent | None) -> Tensor:
    """x of v = (x, z^), contiguous; v itself without latent variables."""
    return v if latent is None else v[:, : latent.image_channels].contiguous()


def without_latent(X: Tensor, latent: Latent | None) -> Tensor:
    """(X, 0): an adjoint state of images among those of all variables."""
    if latent is None:
        return X
    return torch.cat([X, X.new_zeros(X.shape[0], latent.channels, *X.shape[2:])], 1)


def joint_loss(loss: UpperLoss, latent: Latent | None) -> UpperLoss:
    """The loss as one of all variables."""
    return loss if latent is None else ImageLoss(loss, latent)


class JointOperator(LinearOperator):
    """(x, z^) -> (A x, root z^), flattened: the forward operator of the joint problem."""

    def __init__(self, operator: LinearOperator, latent: Latent, root: float) -> None:
        count, sides = math.prod(operator.range_shape), operator.domain_shape[1:]
        total = latent.image_channels + latent.channels
        super().__init__((total, *sides), (count + latent.channels * math.prod(sides),))
        self.operator, self.root, self._count, self._image = operator, root, count, latent.image_channels

    def forward(self, x: Tensor) -> Tensor:
        image, latent = x[:, : self._image], x[:, self._image :]
        return torch.cat([self.operator(image.contiguous()).flatten(1), self.root * latent.flatten(1)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        image = self.operator.adjoint(y[:, : self._count].reshape(-1, *self.operator.range_shape))
        latent = y[:, self._count :].reshape(y.shape[0], -1, *self.domain_shape[1:])
        return torch.cat([image, self.root * latent], 1)

    def approximate_inverse(self, y: Tensor) -> Tensor | None:
        """That of A for its measurements y, without latent variables."""
        image = self.operator.approximate_inverse(y)
        if image is None:
            return None
        return torch.cat([image, image.new_zeros(len(image), self.domain_shape[0] - self._image, *image.shape[2:])], 1)

    def _find_norm(self) -> NormBound:
        found = self.operator.norm()
        return NormBound(max(found.value, self.root), found.kind, found.failure)

    def adjoint_mismatch(self) -> float:
        return self.operator.adjoint_mismatch()

    def parameter_lipschitz(self) -> float | None:
        return self.operator.parameter_lipschitz()


class ImageLoss(UpperLoss):
    """A loss of x as one of v = (x, z^)."""

    def __init__(self, loss: UpperLoss, latent: Latent) -> None:
        self.loss, self.latent = loss, latent
        super().__init__(self._of_image, loss.gradient_lipschitz)

    def _of_image(self, v: Tensor) -> Tensor:
        return self.loss.function(image_part(v, self.latent))

    def value(self, x: Tensor) -> Tensor:
        return self.loss.value(image_part(x, self.latent))

    def gradient(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        gradient[:, : self.latent.image_channels] = self.loss.gradient(image_part(x, self.latent))
        return gradient

    def gradient_change(self, x: Tensor, error: Tensor) -> Tensor | None:
        return self.loss.gradient_change(image_part(x, self.latent), error)

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        return self.loss.interval(image_part(x, self.latent), error)
