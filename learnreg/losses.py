"""Upper-level losses of the lower-level solution, with the constants that bracket them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.samples import expand, sum_samples

__all__ = ["SquaredError", "UpperLoss"]


class UpperLoss:
    """Any differentiable loss of the images.

    Parameters
    ----------
    function: maps x (batch, *image_shape) to a scalar, the loss of the batch, or to (batch,), whose mean is the loss.
    gradient_lipschitz: Lipschitz constant of the gradient of ``function`` (of each of its components, if it returns
        (batch,)). Without it nothing that uses the loss is certified. Components that depend on one sample each have
        the tightest bounds.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], gradient_lipschitz: float | None = None) -> None:
        if gradient_lipschitz is not None and not gradient_lipschitz >= 0:
            raise ConfigError(f"UpperLoss(gradient_lipschitz={gradient_lipschitz!r}): expected a number >= 0 or None.")
        self.function, self.gradient_lipschitz = function, gradient_lipschitz

    def _evaluate(self, x: Tensor) -> Tensor:
        result = self.function(x)
        if not isinstance(result, Tensor) or (result.dim() > 0 and tuple(result.shape) != (x.shape[0],)):
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ShapeError(f"UpperLoss: the function returned {shape}, expected a scalar or ({x.shape[0]},).")
        return result

    def value(self, x: Tensor) -> Tensor:
        """The loss of the batch, a scalar."""
        return self._evaluate(x).mean()

    def gradient(self, x: Tensor) -> Tensor:
        """∇ of the batch loss, shape of x; the mean's 1/batch is in here, once."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.value(point), point, materialize_grads=True)
        return grad

    def gradient_change(self, x: Tensor, error: Tensor) -> Tensor | None:
        """Bound of each sample's change of ``gradient`` when x moves by the 2-norms ``error`` (batch,); None:
        unknown."""
        if self.gradient_lipschitz is None:
            return None
        if self._per_sample(x):
            return self.gradient_lipschitz / x.shape[0] * error
        return self.gradient_lipschitz * (error * error).sum().sqrt().expand_as(error)

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        """Contains the loss at every point within ``error`` (2-norm per sample) of x: ell ± (‖∇ell‖ e + ½ L e²)."""
        if self.gradient_lipschitz is None or not bool(torch.isfinite(error).all()):
            return -torch.inf, torch.inf
        value, slope = float(self.value(x)), sum_samples(self.gradient(x) ** 2).sqrt()
        share = 1.0 / x.shape[0] if self._per_sample(x) else 1.0
        half = float((slope * error).sum() + 0.5 * self.gradient_lipschitz * share * (error * error).sum())
        half += 1e-14 * abs(value)
        return value - half, value + half

    def _per_sample(self, x: Tensor) -> bool:
        """Whether each of several components depends on its own sample alone, as the gradients at x tell."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            terms = self._evaluate(point)
            if terms.dim() == 0 or not terms.requires_grad:
                return terms.dim() > 0
            share = torch.linspace(1.0, 2.0, len(terms), dtype=terms.dtype, device=terms.device)
            (plain,) = torch.autograd.grad(terms.sum(), point, retain_graph=True, materialize_grads=True)
            (weighted,) = torch.autograd.grad((share * terms).sum(), point, materialize_grads=True)
        expected = expand(share.to(x), x) * plain
        return bool((weighted - expected).norm() <= 1e-5 * weighted.norm())


class SquaredError(UpperLoss):
    """Batch mean of ½‖x - x_true‖².

    Parameters
    ----------
    x_true: ground truth (batch, *image_shape).
    """

    def __init__(self, x_true: Tensor) -> None:
        if not isinstance(x_true, Tensor) or not x_true.is_floating_point():
            raise ShapeError("SquaredError(x_true): expected a floating-point tensor (batch, *image_shape).")
        self.x_true = x_true.detach()
        super().__init__(self._per_sample_error, gradient_lipschitz=1.0)

    def _difference(self, x: Tensor) -> Tensor:
        if x.shape != self.x_true.shape:
            raise ShapeError(f"SquaredError: x has shape {tuple(x.shape)}, x_true {tuple(self.x_true.shape)}.")
        return x - self.x_true.to(x)

    def _per_sample_error(self, x: Tensor) -> Tensor:
        return 0.5 * sum_samples(self._difference(x) ** 2)

    def gradient(self, x: Tensor) -> Tensor:
        return self._difference(x) / x.shape[0]

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        """Mean of [½ max(0, ‖x - x_true‖ - e)², ½ (‖x - x_true‖ + e)²]."""
        distance = sum_samples(self._difference(x) ** 2).sqrt()
        low = 0.5 * (distance * (1 - 1e-14) - error).clamp_min(0.0) ** 2
        high = 0.5 * (distance * (1 + 1e-14) + error) ** 2
        return float(low.mean()) * (1 - 1e-14), float(high.mean()) * (1 + 1e-14)

    def _per_sample(self, x: Tensor) -> bool:
        return True
