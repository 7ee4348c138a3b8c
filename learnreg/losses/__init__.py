"""Upper-level losses of the lower-level solution, with the constants that bracket them."""

from learnreg.losses.images import LOSSES, AbsoluteError, SquaredError
from learnreg.losses.upper_loss import UpperLoss, check_loss, loss_at

__all__ = ["LOSSES", "AbsoluteError", "SquaredError", "UpperLoss", "check_loss", "loss_at"]
