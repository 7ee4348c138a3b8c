"""Upper-level losses of the lower-level solution, with the constants that bracket them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from learnreg.errors import ConfigError, LearnregError, ShapeError
from learnreg.linear.arguments import check_dense, real_number
from learnreg.linear.samples import expand, norm_samples

__all__ = ["UpperLoss", "check_loss", "loss_at"]


class UpperLoss:
    """Any differentiable loss of the images.

    Parameters
    ----------
    function: maps x (batch, *image_shape) to a scalar, the loss of the batch, or to (batch,), whose mean is the loss.
    gradient_lipschitz: Lipschitz constant of the gradient of ``function`` (of each of its components, if it returns
        (batch,)). Without it nothing that uses the loss is certified.
    independent: you vouch that component i of (batch,) depends on sample i alone, wherever it is evaluated; bounds are
        then much tighter for large batches. Refused where gradients show otherwise.
    dtype: of the images that ``function`` takes; None: that of x, which is float64 where results are judged, or, where
        the function raises then (a network with parameters in float32 does), the other one of float32 and float64.

    Certificates hold the constant against differences of gradients, and need a function that computes in float64: what
    a network in float32 says of the gradient is an *estimate*.

    Raises
    ------
    ConfigError: something that is no function, or a constant that is negative or no number.

    Examples
    --------
    >>> loss = lr.UpperLoss(lambda x: x.flatten(1).square().sum(1), gradient_lipschitz=2.0, independent=True)
    >>> float(loss.value(torch.ones(3, 1, 2, 2)))
    4.0
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        gradient_lipschitz: float | None = None,
        *,
        independent: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(function, UpperLoss) or not callable(function):
            raise ConfigError(
                f"UpperLoss(function): got {type(function).__name__}, expected a function of x.{_hint(function)}"
            )
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"UpperLoss(dtype={dtype!r}): expected torch.float32, say, or None.")
        if gradient_lipschitz is not None:
            gradient_lipschitz = real_number(gradient_lipschitz, "UpperLoss(gradient_lipschitz)", least=0.0)
        self.function, self.gradient_lipschitz, self.independent = function, gradient_lipschitz, independent
        self.dtype = dtype
        self._takes: dict[torch.dtype, torch.dtype] = {}  # instead of images of another one

    def _call(self, x: Tensor) -> Tensor:
        """The function at x, in a precision that it takes."""
        dtype = self.dtype or self._takes.get(x.dtype, x.dtype)
        try:
            return self.function(x.to(dtype))
        except Exception as error:
            if self.dtype is not None or isinstance(error, torch.OutOfMemoryError):
                raise
            other = torch.float32 if dtype == torch.float64 else torch.float64
            try:
                result = self.function(x.to(other))
            except Exception as again:
                raise error from again
        self._takes[x.dtype] = other
        return result

    def _evaluate(self, x: Tensor) -> Tensor:
        result = self._call(x)
        if isinstance(result, Tensor):
            check_dense(result, "UpperLoss: what the function returned", f", a scalar or ({x.shape[0]},)")
        if not isinstance(result, Tensor) or (result.dim() > 0 and tuple(result.shape) != (x.shape[0],)):
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ShapeError(f"UpperLoss: the function returned {shape}, expected a scalar or ({x.shape[0]},).")
        if not result.is_floating_point():
            raise ShapeError(
                f"UpperLoss: the function returned numbers of {result.dtype}, expected floating-point ones."
            )
        if self.independent and result.dim() == 0:
            raise ShapeError(f"UpperLoss(independent=True): the function returned a scalar, expected ({x.shape[0]},).")
        return result

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"UpperLoss({name}, gradient_lipschitz={self.gradient_lipschitz}, independent={self.independent})"

    def value(self, x: Tensor) -> Tensor:
        """The loss of the batch, a scalar."""
        return self._evaluate(x).mean()

    def gradient(self, x: Tensor) -> Tensor:
        """∇ of the batch loss, shape of x; the mean's 1/batch is in here, once."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            value = self.value(point)
            if not value.requires_grad:
                return self._without_gradient(point, value)
            (grad,) = torch.autograd.grad(value, point, materialize_grads=True)
        return grad

    def _without_gradient(self, x: Tensor, value: Tensor) -> Tensor:
        """0, for a constant."""
        if not torch.equal(self.value(1.01 * x + 0.1), value):
            raise ConfigError(
                "UpperLoss: what the function returns depends on x, but not by operations that autograd knows of "
                "(detach(), item(), NumPy, torch.no_grad() inside?), so that it has no gradient."
            )
        return torch.zeros_like(x)

    def gradient_change(self, x: Tensor, error: Tensor) -> Tensor | None:
        """Bound of each sample's change of ``gradient`` when x moves by the 2-norms ``error`` (batch,); None:
        unknown."""
        if self.gradient_lipschitz is None:
            return None
        if self.independent:
            return self.gradient_lipschitz / x.shape[0] * error
        return self.gradient_lipschitz * (error * error).sum().sqrt().expand_as(error)

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        """Contains the loss at every point within ``error`` (2-norm per sample) of x: ell ± (‖∇ell‖ e + ½ L e²)."""
        if self.gradient_lipschitz is None or not bool(torch.isfinite(error).all()):
            return -torch.inf, torch.inf
        value, slope = float(self.value(x).detach()), _length(self.gradient(x))
        share = 1.0 / x.shape[0] if self.independent else 1.0
        half = float((slope * error).sum() + 0.5 * self.gradient_lipschitz * share * (error * error).sum())
        half += 1e-14 * abs(value)
        low, high = value - half, value + half
        return (low, high) if low <= high else (-torch.inf, torch.inf)

    def part(self, index: Tensor, batch: int) -> UpperLoss:
        """The mean over some samples of a batch, whose loss this is: those of ``index``, in that order.

        Raises
        ------
        ConfigError: the loss may couple samples.
        """
        if not self.independent:
            raise ConfigError(
                "samples with noise levels of their own are solved apart, so the loss has to be a mean over samples: "
                "return (batch,) and pass UpperLoss(..., independent=True)."
            )

        def function(x: Tensor) -> Tensor:
            whole = x[:1].detach().repeat(batch, *(1 for _ in x.shape[1:]))
            return self._evaluate(whole.index_copy(0, index.to(x.device), x))[index.to(x.device)]

        return UpperLoss(function, self.gradient_lipschitz, independent=True)

    def scaled(self, factor: float) -> UpperLoss:
        """The loss times a number > 0."""
        return _Scaled(self, factor)

    # ---- what certificates take for granted --------------------------------------------------------------------------

    def examine(self, x: Tensor) -> None:
        """Hold ``gradient_lipschitz`` and ``independent`` against gradients at and near x: by a few power steps, at
        most seven gradients. A constant that passes may still be too small elsewhere.

        Raises
        ------
        ConfigError: gradients change faster, or a component depends on another sample.
        """
        x = x.detach().double()
        if self.gradient_lipschitz is None or not bool(torch.isfinite(x).all()) or x.numel() == 0:
            return
        if self.independent and not self._separates(x):
            raise ConfigError(
                "UpperLoss(independent=True): a component depends on another sample of the batch; leave `independent` "
                "out, and the bounds of the whole batch are used."
            )
        gradient, size = self.gradient(x), float(x.square().mean().sqrt()) or 1.0
        eps = max(torch.finfo(dtype).eps for dtype in (self.computes_in(x), torch.float32))
        generator = torch.Generator().manual_seed(3)
        start = torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)
        for relative in (1.0, 1e-4):
            move = relative * size * start
            for _ in range(3):
                change = self.gradient(x + move) - gradient
                fastest, rounding = self._speed(change, move, gradient, eps)
                allowed = self.gradient_lipschitz * (1.0 + 1e-6) + rounding
                if fastest > allowed:
                    raise ConfigError(
                        f"UpperLoss(gradient_lipschitz={self.gradient_lipschitz:g}): the gradient changes "
                        f"{fastest:.6g} times as fast as x near the solution; pass a constant of at least that."
                    )
                length = float(change.norm())
                if not length > 0:
                    break
                move = change * (float(move.norm()) / length)

    def _speed(self, change: Tensor, move: Tensor, gradient: Tensor, eps: float) -> tuple[float, float]:
        """How fast gradients change over a move, of each sample where they are independent, and what of it may be
        rounding to ``eps``."""
        if not self.independent:
            far = float(move.norm())
            return float(change.norm()) / far, 10 * eps * float(gradient.norm() + change.norm()) / far
        far_each, batch = _length(move).clamp_min(1e-300), move.shape[0]
        speeds = batch * _length(change) / far_each
        worst = int(speeds.argmax())
        rounding = 10 * eps * batch * float((_length(gradient) + _length(change))[worst] / far_each[worst])
        return float(speeds[worst]), rounding

    def _separates(self, x: Tensor) -> bool:
        """Whether each component depends on its own sample alone, as the gradients at x tell."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            terms = self._evaluate(point)
            if not terms.requires_grad:
                return True
            share = torch.linspace(1.0, 2.0, len(terms), dtype=terms.dtype, device=terms.device)
            (plain,) = torch.autograd.grad(terms.sum(), point, retain_graph=True, materialize_grads=True)
            (weighted,) = torch.autograd.grad((share * terms).sum(), point, materialize_grads=True)
        expected = expand(share.to(x), x) * plain
        return bool((weighted - expected).norm() <= 1e-5 * weighted.norm())

    def computes_in(self, x: Tensor) -> torch.dtype:
        """The lowest precision of what the function makes of x: that of x where nothing is rounded on the way."""
        with torch.inference_mode(False), torch.enable_grad(), _Precision(x.dtype) as seen:
            self._evaluate(x.detach().clone().requires_grad_())
        if seen.lowest == x.dtype == torch.float64:
            here, there = self.gradient(x), self.gradient(x * (1.0 + 1e-5))
            if not torch.equal(here, there) and all(torch.equal(g, g.float().double()) for g in (here, there)):
                return torch.float32
        lowest: torch.dtype = seen.lowest
        return lowest


class _Scaled(UpperLoss):
    """A loss times a number > 0, whose bounds are those of the loss times that number."""

    def __init__(self, loss: UpperLoss, factor: float) -> None:
        constant = None if loss.gradient_lipschitz is None else factor * loss.gradient_lipschitz
        super().__init__(self._times, constant, independent=loss.independent)
        self._loss, self._factor = loss, factor

    def _times(self, x: Tensor) -> Tensor:
        return self._factor * self._loss._evaluate(x)

    def part(self, index: Tensor, batch: int) -> UpperLoss:
        return self._loss.part(index, batch).scaled(self._factor)

    def gradient(self, x: Tensor) -> Tensor:
        return self._factor * self._loss.gradient(x)

    def interval(self, x: Tensor, error: Tensor) -> tuple[float, float]:
        low, high = (self._factor * end for end in self._loss.interval(x, error))
        return low - 1e-15 * abs(low), high + 1e-15 * abs(high)

    def examine(self, x: Tensor) -> None:
        self._loss.examine(x)

    def computes_in(self, x: Tensor) -> torch.dtype:
        return self._loss.computes_in(x)


def _length(t: Tensor) -> Tensor:
    """‖t‖ of each sample, of numbers of any size."""
    largest = t.flatten(1).abs().amax(1)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return scale * norm_samples(t / expand(scale, t))


class _Precision(TorchFunctionMode):
    """Looks for the least precise of the tensors that depend on one that requires a gradient."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.lowest: torch.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor) and t.is_floating_point() and t.requires_grad:
                self.lowest = max(self.lowest, t.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        return result


def check_loss(loss: object, name: str = "loss") -> UpperLoss:
    """The loss; ConfigError for something else, with what to write instead."""
    if isinstance(loss, UpperLoss):
        return loss
    kind = getattr(loss, "__name__", type(loss).__name__)
    raise ConfigError(f"{name}: got {kind}, expected an lr.UpperLoss.{_hint(loss)}")


def loss_at(make: Callable[[Tensor], UpperLoss], x_true: Tensor) -> UpperLoss:
    """What ``loss=`` of training makes of a batch of ground truths; ConfigError unless it is a loss."""
    advice = (
        "expected a function that makes an UpperLoss of a batch of ground truths: lr.SquaredError, or, for a function "
        "of two images, lambda x_true: lr.UpperLoss(lambda x: function(x, x_true))"
    )
    if isinstance(make, UpperLoss) or not callable(make):
        raise ConfigError(f"train(loss=...): got {type(make).__name__}, {advice}.")
    try:
        loss = make(x_true)
    except LearnregError:
        raise
    except (TypeError, ValueError) as error:  # such as a missing argument "target"
        raise ConfigError(f"train(loss={getattr(make, '__name__', make)!s}): {error}; {advice}.") from error
    if not isinstance(loss, UpperLoss):
        raise ConfigError(f"train(loss=...): it returned {type(loss).__name__}, {advice}.")
    return loss


def _hint(loss: object) -> str:
    if isinstance(loss, UpperLoss):
        return " Pass it as it is."
    if isinstance(loss, Tensor):
        return " For a ground truth x_true pass lr.SquaredError(x_true)."
    if isinstance(loss, type) and issubclass(loss, UpperLoss):
        return f" Pass an object, lr.{loss.__name__}(x_true)."
    if callable(loss):
        return " For a function of x pass lr.UpperLoss(function, gradient_lipschitz=L), without L for estimates."
    return " Pass lr.SquaredError(x_true), or lr.UpperLoss(function, gradient_lipschitz=L)."
