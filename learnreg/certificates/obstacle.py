"""What may keep x or a hypergradient from having a rigorous error bound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Hindrance", "Obstacle"]


class Obstacle(Enum):
    """The value is a sentence, with places for what differs from case to case."""

    INEXACT_ADJOINT = "the adjoint of the {operator} operator is inexact (adjoint_mismatch() is {mismatch:.1e})"
    UNEXAMINED = "the {operator} operator was not examined (examine = False), so that its adjoint may be inexact"
    CONTRADICTION = "the {operator} operator contradicts what is known of it. {sentence}"
    DECLARATION = "{sentence}"
    STALE_NORM = "responses of the {operator} operator exceed its norm_bound(): was it changed in place?"
    LOSS_PRECISION = "the upper-level loss computes in {dtype} inside; let it compute in the dtype of x"
    REPARAMETRIZED = "{names} is computed from other parameters in a way that certificates do not know"
    TIED = "{names} is a parameter that stands in several places, whose shares of the error do not add up as squares"
    NOT_ASKED = "no bound was asked for (certificate='none'), only an estimate"
    NO_MODULUS = (
        "no positive modulus of strong convexity is known: add a ridge, or an operator with gram_lower_bound (and a "
        "Box with both ends, for a data term that is no square)"
    )
    NO_BALL = (
        "no local minimiser is certified: the smallest curvature is {curvature:.2g} at x, but may fall too far in the "
        "ball that a gradient of norm {residual:.2g} asks for; solve more accurately, or add a ridge"
    )
    CURVES_DOWN = (
        "x is near no local minimiser: its energy curves by {curvature:.2g} along some direction; start elsewhere"
    )
    OUTSIDE = (
        "x is {moved:.2g} outside of its constraint, farther than the ball of its projection reaches; pass an x inside"
    )
    NO_SPLIT = (
        "minimiser='local' is for potentials of single responses, but {why}: add a ridge that makes the energy convex, "
        "and leave it out"
    )
    LOSS_CONSTANT = "the upper-level loss declares no gradient_lipschitz"
    UNNAMED_PARAMETER = "parameter_roles() does not say how {names} enters the regularizer"
    UNKNOWN_ROLE = "role {role!r} is unknown; expected one of {known}"
    PROBABLE_NORM = "the norm of the {operator} operator is only known with high probability"
    PARAMETER_CONSTANT = "the {operator} operator does not declare parameter_lipschitz"
    KINK = "a kink of the potential lies within the error of x; solve more accurately or use a smooth potential"
    SIGN_PATTERN = "the sign pattern of the solution is undecided: {sentence}"
    CHAIN = "of a chain of reweighted problems {why}: each solve has a bound given its weights, not their hypergradient"
    ACTIVE_SET = "the active set of the constraint is undecided within the error of x; solve more accurately"

    @property
    def curable(self) -> bool:
        """Whether a more accurate x may do away with it."""
        return self in (Obstacle.KINK, Obstacle.ACTIVE_SET, Obstacle.NO_BALL, Obstacle.CURVES_DOWN)

    @property
    def asks_for_ball(self) -> bool:
        """Whether no ball around x is certified to hold a minimiser: then not even an estimate tells how far one is."""
        return self in (Obstacle.NO_BALL, Obstacle.CURVES_DOWN, Obstacle.NO_SPLIT)

    @property
    def hides_loss(self) -> bool:
        """Whether it leaves the loss at the exact minimiser without an interval, too."""
        return self.asks_for_ball or self in (
            Obstacle.INEXACT_ADJOINT,
            Obstacle.UNEXAMINED,
            Obstacle.CONTRADICTION,
            Obstacle.STALE_NORM,
            Obstacle.LOSS_PRECISION,
            Obstacle.NO_MODULUS,
        )

    def met(self, **details: object) -> Hindrance:
        """This obstacle in one case, with its details."""
        return Hindrance(self, self.value.format(**details))


@dataclass(frozen=True)
class Hindrance:
    """An obstacle that was met; ``reason`` is its sentence with all details."""

    obstacle: Obstacle
    reason: str

    @property
    def curable(self) -> bool:
        return self.obstacle.curable
