"""Distances of images from a ground truth, with the constants that certificates rest on."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import ShapeError
from learnreg.linear.arguments import check_images, real_number
from learnreg.linear.samples import sum_samples
from learnreg.losses.upper_loss import UpperLoss
from learnreg.result import brief

__all__ = ["LOSSES", "AbsoluteError", "SquaredError"]


class SquaredError(UpperLoss):
    """Batch mean of ½‖x - x_true‖².

    Parameters
    ----------
    x_true: ground truth (batch, *image_shape).

    Raises
    ------
    ShapeError: no batch of images of real numbers.

    Examples
    --------
    >>> float(lr.SquaredError(torch.zeros(3, 1, 2, 2)).value(torch.ones(3, 1, 2, 2)))
    2.0
    """

    def __init__(self, x_true: Tensor) -> None:
        check_images(x_true, "SquaredError(x_true)")
        self.x_true = x_true.detach()
        super().__init__(self._per_sample_error, gradient_lipschitz=1.0, independent=True)

    def __repr__(self) -> str:
        return f"SquaredError(x_true={brief(self.x_true)})"

    def part(self, index: Tensor, batch: int) -> SquaredError:
        return SquaredError(self.x_true[index.to(self.x_true.device)])

    def _per_sample_error(self, x: Tensor) -> Tensor:
        return 0.5 * sum_samples(_difference("SquaredError", x, self.x_true) ** 2)

    def gradient(self, x: Tensor) -> Tensor:
        return _difference("SquaredError", x, self.x_true) / x.shape[0]

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        """Mean of [½ max(0, ‖x - x_true‖ - e)², ½ (‖x - x_true‖ + e)²]."""
        distance = sum_samples(_difference("SquaredError", x, self.x_true) ** 2).sqrt()
        low = 0.5 * (distance * (1 - 1e-14) - error).clamp_min(0.0) ** 2
        high = 0.5 * (distance * (1 + 1e-14) + error) ** 2
        ends = float(low.mean()) * (1 - 1e-14), float(high.mean()) * (1 + 1e-14)
        return ends if ends[0] <= ends[1] else (-torch.inf, torch.inf)

    def examine(self, x: Tensor) -> None:
        """Nothing to do: its constants are known."""

    def computes_in(self, x: Tensor) -> torch.dtype:
        return x.dtype


class AbsoluteError(UpperLoss):
    """Batch mean of the sum over pixels of sqrt((x - x_true)² + s²) - s, a smoothed sum of absolute errors, which
    large errors dominate less than squared ones.

    Parameters
    ----------
    x_true: ground truth (batch, *image_shape).
    smoothing: s > 0, in image units: errors far below it count as half their square over s, those far above as they
        are. The gradient has the Lipschitz constant 1/s, which certificates rest on: the smaller s, the more accurate
        the images have to be for the same bound. The sum of plain absolute errors has no such constant, and is not
        certified: there is none of it.

    Raises
    ------
    ShapeError: no batch of images of real numbers. ConfigError: a smoothing that is not positive.

    Examples
    --------
    >>> loss = lr.AbsoluteError(torch.zeros(3, 1, 2, 2), smoothing=0.01)
    >>> round(float(loss.value(torch.ones(3, 1, 2, 2))), 2)
    3.96
    """

    def __init__(self, x_true: Tensor, smoothing: float = 1e-2) -> None:
        check_images(x_true, "AbsoluteError(x_true)")
        self.x_true = x_true.detach()
        self.smoothing = real_number(smoothing, "AbsoluteError(smoothing)", above=0.0)
        super().__init__(self._per_sample_error, gradient_lipschitz=1.0 / self.smoothing, independent=True)

    def __repr__(self) -> str:
        return f"AbsoluteError(x_true={brief(self.x_true)}, smoothing={self.smoothing:g})"

    def part(self, index: Tensor, batch: int) -> AbsoluteError:
        return AbsoluteError(self.x_true[index.to(self.x_true.device)], self.smoothing)

    def _per_sample_error(self, x: Tensor) -> Tensor:
        square = _difference("AbsoluteError", x, self.x_true) ** 2
        return sum_samples(square / ((square + self.smoothing**2).sqrt() + self.smoothing))

    def gradient(self, x: Tensor) -> Tensor:
        d = _difference("AbsoluteError", x, self.x_true)
        return d / (d * d + self.smoothing**2).sqrt() / x.shape[0]

    def examine(self, x: Tensor) -> None:
        """Nothing to do: its constants are known."""

    def computes_in(self, x: Tensor) -> torch.dtype:
        return x.dtype


def _difference(name: str, x: Tensor, x_true: Tensor) -> Tensor:
    if x.shape != x_true.shape:
        raise ShapeError(f"{name}: x has shape {tuple(x.shape)}, x_true {tuple(x_true.shape)}.")
    return x - x_true.to(x)


LOSSES: dict[str, type[SquaredError] | type[AbsoluteError]] = {"squared": SquaredError, "absolute": AbsoluteError}
"""What training minimises, by the names of the command line."""
