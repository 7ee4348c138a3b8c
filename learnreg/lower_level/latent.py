"""Latent variables: regularizers R(x) = min over z of <cost, z> + ½ modulus ‖z‖² + f(W (x, z)), z free or >= 0.

The lower level is solved in v = (x, z^) together, z = scale z^, on the pixel grid of the image: an image with more
channels. With the scale that makes the modulus of z^ that of x, bounds of ‖v - v^‖ are those of the lower level without
latent variables, and bound ‖x - x^‖.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import LinearCost, ParameterGroup
from learnreg.linear.samples import sum_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.quadratic import Quadratic

__all__ = ["ImageLoss", "JointOperator", "Latent", "NoLatent"]


@dataclass(frozen=True)
class Latent:
    """What a regularizer says of its latent variables z, (channels, h, w) beside an image (image_channels, h, w).

    cost: linear term, broadcasts against z; may depend on parameters, as the group "latent_cost". modulus: > 0.
    nonnegative: z >= 0. operator: W for z = scale z^, by the scale. solve: from x to the minimiser z. start: from x
    to a guess of it, for about three applications. balance: an
    *estimate* of the scale at which W has columns of similar size for x and z^. idle: from responses t and a radius
    around them to the latent variables that are 0, and stay so under small changes, whatever their multiplier, if the
    exact responses are within the radius; None where that is unknown. scale: z = scale z^, which the lower level
    chooses.

    ``NoLatent`` is that of regularizers without, of 0 channels.
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
    scale: float = 1.0

    guess_applications = 3

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """The cost."""
        return (LinearCost("latent_cost", self.cost, self.channels),)

    def at(self, scale: float) -> Latent:
        """z = scale z^ from now on."""
        return replace(self, scale=scale)

    def scale_for(self, strong_convexity: float) -> float:
        """The scale that makes the modulus of z^ this one; 1 without a modulus of x."""
        return math.sqrt(strong_convexity / self.modulus) if strong_convexity > 0 else 1.0

    def cached(self) -> Latent:
        """The same for fixed parameters: operators and the balance are found once."""
        return replace(self, operator=cache(self.operator), balance=cache(self.balance))

    # ---- points --------------------------------------------------------------------------------------------------

    def image(self, v: Tensor) -> Tensor:
        """x of v = (x, z^), contiguous."""
        return v[:, : self.image_channels].contiguous()

    def part(self, v: Tensor) -> Tensor | None:
        """z of v; None without latent variables."""
        return self.scale * v[:, self.image_channels :]

    def lift(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """v = (x, z^), with zeros where no z is given."""
        z_hat = x.new_zeros(x.shape[0], self.channels, *x.shape[2:]) if z is None else z / self.scale
        return torch.cat([x, z_hat], 1)

    def extend(self, x: Tensor) -> Tensor:
        """(x, z^) with the best z for x."""
        return self.lift(x, self.solve(x))

    def guess(self, x: Tensor) -> Tensor:
        """The same with a guess of z, for ``guess_applications``."""
        return self.lift(x, self.start(x))

    def loss(self, loss: UpperLoss) -> UpperLoss:
        """A loss of images as one of all variables."""
        return ImageLoss(loss, self)

    def value(self, v: Tensor) -> Tensor:
        """<cost, z> + ½ modulus ‖z‖², (batch,)."""
        z = self.scale * v[:, self.image_channels :]
        return sum_samples(self.cost.to(z) * z + 0.5 * self.modulus * z * z)

    def linear(self, X: Tensor) -> Tensor:
        """<cost, Z> summed over the batch, differentiable: the cost's share in the pairing with X = (X, Z^)."""
        return (self.scale * self.cost.to(X) * X[:, self.image_channels :]).sum()

    # ---- the lower level in all variables --------------------------------------------------------------------------

    def analysis(self, operator: LinearOperator) -> LinearOperator:
        """W on (x, z^); without latent variables the operator of images given."""
        return self.operator(self.scale)

    def quadratic(self, quadratic: Quadratic, strong_convexity: float) -> Quadratic:
        """M of (x, z^), given that of x and its modulus, which is that of z^, too."""
        own, forward = strong_convexity if strong_convexity > 0 else self.modulus, quadratic.forward
        joint = JointOperator(forward, self, math.sqrt(max(own - quadratic.ridge, 0.0)))
        return quadratic.lifted(joint, (self.channels, *forward.domain_shape[1:]), own)

    def right_hand_side(self, q: Tensor) -> Tensor:
        """q of (x, z^), given that of x."""
        cost = (self.scale * self.cost).to(q).expand(q.shape[0], self.channels, *q.shape[2:])
        return torch.cat([q, -cost], 1)

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

    def balanced(self, norm: Callable[[], float], like: Tensor) -> tuple[float, Tensor | None]:
        """The norm of the analysis operator after scaling (x, z^) until its columns weigh about as much for both, and
        the square of that scaling per channel, at most 1; without latent variables that of ``norm``, and None."""
        aim = min(self.balance(), self.scale)
        scaling = like.new_ones(like.shape[1], 1, 1)
        scaling[self.image_channels :] = (aim / self.scale) ** 2
        return self.operator(aim).norm_bound(), scaling


def _no_operator(scale: float) -> LinearOperator:
    raise AssumptionError("a regularizer without latent variables has no operator on them.")


def _nothing(x: Tensor) -> Tensor:
    return x[:, :0]


@dataclass(frozen=True)
class NoLatent(Latent):
    """No latent variables: v is x itself, at no cost."""

    image_channels: int = 0
    channels: int = 0
    cost: Tensor = field(default_factory=lambda: torch.zeros(()))
    modulus: float = 1.0
    nonnegative: bool = False
    operator: Callable[[float], LinearOperator] = _no_operator
    solve: Callable[[Tensor], Tensor] = _nothing
    start: Callable[[Tensor], Tensor] = _nothing
    balance: Callable[[], float] = lambda: 1.0

    guess_applications = 0

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        return ()

    def at(self, scale: float) -> Latent:
        return self

    def scale_for(self, strong_convexity: float) -> float:
        return 1.0

    def cached(self) -> Latent:
        return self

    def image(self, v: Tensor) -> Tensor:
        return v

    def part(self, v: Tensor) -> Tensor | None:
        return None

    def lift(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return x

    def loss(self, loss: UpperLoss) -> UpperLoss:
        return loss

    def value(self, v: Tensor) -> Tensor:
        return v.new_zeros(v.shape[0])

    def linear(self, X: Tensor) -> Tensor:
        return X.new_zeros(())

    def analysis(self, operator: LinearOperator) -> LinearOperator:
        return operator

    def quadratic(self, quadratic: Quadratic, strong_convexity: float) -> Quadratic:
        return quadratic

    def right_hand_side(self, q: Tensor) -> Tensor:
        return q

    def box(self, constraint: Box) -> Box:
        return constraint

    def balanced(self, norm: Callable[[], float], like: Tensor) -> tuple[float, Tensor | None]:
        return norm(), None


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
        latent = y[:, self._count :].reshape(-1, self.domain_shape[0] - self._image, *self.domain_shape[1:])
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
        super().__init__(self._of_image, loss.gradient_lipschitz, independent=loss.independent)

    def _of_image(self, v: Tensor) -> Tensor:
        return self.loss.function(self.latent.image(v))

    def value(self, x: Tensor) -> Tensor:
        return self.loss.value(self.latent.image(x))

    def gradient(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        gradient[:, : self.latent.image_channels] = self.loss.gradient(self.latent.image(x))
        return gradient

    def gradient_change(self, x: Tensor, error: Tensor) -> Tensor | None:
        return self.loss.gradient_change(self.latent.image(x), error)

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        return self.loss.interval(self.latent.image(x), error)

    def examine(self, x: Tensor) -> None:
        self.loss.examine(self.latent.image(x))

    def computes_in(self, x: Tensor) -> torch.dtype:
        return self.loss.computes_in(self.latent.image(x))
