"""The pseudo-Huber function, and Newton's method for the pull-back of its dual proximal map."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.kernels.blocks import planes
from learnreg.kernels.loader import as_array
from learnreg.kernels.numbers import number_like
from learnreg.kernels.rows import ChannelKernels, as_rows
from learnreg.linear.samples import sum_samples
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS, nearest
from learnreg.potentials.curvature import CurvatureInterval
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["PseudoHuber", "newton_constants", "newton_pull_back"]


class PseudoHuber(SmoothedElementwise):
    """l (sqrt(t² + v²) - v); |f'''| <= 0.8587 l/v².

    Parameters
    ----------
    smoothing: v > 0, in units of the responses; a tensor holds one for each channel, a parameter is learned.
    weight: l > 0, likewise; 1 by default.

    Raises
    ------
    ConfigError: numbers that are not positive and finite.

    Examples
    --------
    >>> f = lr.PseudoHuber(smoothing=0.1)
    >>> bool(f.density(torch.tensor([3.0])) < 3.0)  # below |t|, by at most the smoothing
    True
    """

    def density(self, t: Tensor) -> Tensor:
        return self.weight * (t * t) / (torch.sqrt(t * t + self.smoothing**2) + self.smoothing)

    def grad(self, t: Tensor) -> Tensor:
        inverse = self._inverse_scale(t)
        if torch.is_grad_enabled():
            return self.weight * t * inverse
        return inverse.mul_(t).mul_(self.weight)

    def second(self, t: Tensor) -> Tensor:
        inverse = self._inverse_scale(t)
        curvature = self.weight * self.smoothing**2
        if torch.is_grad_enabled():
            return curvature * (inverse * inverse * inverse)
        return (inverse * inverse).mul_(inverse).mul_(curvature)

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        inverse = self._inverse_scale(t)
        grad = self.weight * t * inverse
        return grad, (self.weight * self.smoothing**2) * (inverse * inverse * inverse)

    def _kernels(self, *responses: Tensor, step: Tensor | float = 1.0) -> ChannelKernels | None:
        return ChannelKernels.of("pseudo_huber", responses, self.weight, self.smoothing, step)

    def distances(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        fast = self._kernels(r, t)
        if fast is None:
            return super().distances(r, t)
        sums = torch.empty(r.shape[0], r.shape[1], 2, dtype=torch.float64, device=r.device)
        fast.kernels.distances(as_rows(r), as_rows(t), *fast.constants[:2], as_array(sums.view(-1, 2)))
        distance, apart = sums.sum(1).to(r.dtype).unbind(1)
        return distance, apart

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        fast = self._kernels(t, v, step=step)
        if fast is None:
            return super().slope(t, v, step)
        sums = torch.empty(t.shape[0], t.shape[1], dtype=torch.float64, device=t.device)
        fast.kernels.slope(as_rows(t), as_rows(v), *fast.constants, as_array(sums.view(-1)))
        return sums.sum(1).to(t.dtype)

    def second_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is None:
            return super().second_into(t, out)
        fast.kernels.second(as_rows(t), *fast.constants[:2], as_rows(out))
        return out

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is not None:
            fast.kernels.grad(as_rows(t), *fast.constants[:2], as_rows(out))
            return out
        square = number_like(self.smoothing, t) ** 2
        return torch.addcmul(square, t, t, out=out).rsqrt_().mul_(t).mul_(self.weight)

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        """Blocks that fit in the cache go through all operations before the next block starts."""
        fast = self._kernels(v, y, t, step=sigma)
        if fast is not None:
            rows = (as_rows(v), as_rows(y), as_rows(t))
            fast.kernels.dual_step(*rows, *fast.constants, relaxation, newton_steps)
            return
        constants = newton_constants(self.weight, self.smoothing, t, sigma)
        for v_, y_, t_, *rest in planes(v, y, t, *constants):
            newton_pull_back(v_.abs(), t_.abs_(), newton_steps, *rest)
            square, weight = rest[:2]
            t_.mul_(v_.sign_())
            y_hat = torch.addcmul(square, t_, t_).rsqrt_().mul_(t_)
            y_.mul_(1.0 - relaxation).addcmul_(y_hat, weight, value=relaxation)

    def curvature_interval(self, t: Tensor, radius: Tensor | float) -> CurvatureInterval:
        fast = self._kernels(t, step=radius) if t.dtype == torch.float64 else None
        if fast is None:
            return super().curvature_interval(t, radius)
        low, high, change, ratio, third = found = [torch.empty_like(t) for _ in range(5)]
        fast.kernels.curvature_interval(as_rows(t), *fast.constants, OUTWARD, *map(as_rows, found))
        return CurvatureInterval(low, high, change, ratio, third, self.kink_excluded(t, radius))

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """|f'''| = 3 l v² |t| / (t² + v²)^(5/2) rises up to |t| = v/2 and falls beyond."""
        at = nearest(t.abs(), radius, 0.5 * self.smoothing)
        square = number_like(self.smoothing, t) ** 2
        return at.mul_(torch.addcmul(square, at, at).pow_(-2.5)).mul_(3.0 * self.weight * square * (1.0 + OUTWARD))

    def _inverse_scale(self, t: Tensor) -> Tensor:
        """1/sqrt(t² + v²), in place where autograd does not look: these passes over the responses are what iterations
        spend most of their time on."""
        square = number_like(self.smoothing, t) ** 2
        if torch.is_grad_enabled():
            return torch.rsqrt(t * t + square)
        return torch.addcmul(square, t, t).rsqrt_()

    @property
    def analytic_width(self) -> Tensor | float:
        """The root branches at t = ±iv."""
        return self.smoothing

    def continued(self, t: Tensor) -> Tensor:
        return sum_samples(self.weight * (t * t) / (torch.sqrt(t * t + self.smoothing**2) + self.smoothing))

    def continued_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.sqrt(t * t + self.smoothing**2)
        return self.weight * t / scale, self.weight * self.smoothing**2 / scale**3

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """l nu² (r - t)² / (s_t (s_r s_t + r t + nu²)) with s = sqrt(.² + nu²): the same without cancellation."""
        square = number_like(self.smoothing, t) ** 2
        s_t = torch.addcmul(square, t, t).sqrt()
        sizes = torch.addcmul(square, r, r).sqrt() * s_t
        return self.weight * square * (r - t) ** 2 / (s_t * torch.maximum(sizes + r * t + square, square))


def newton_constants(weight: Tensor | float, smoothing: Tensor | float, t: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    """nu², l, l nu², sigma and 1/(sigma + l/nu) of a pseudo-Huber function, to broadcast against t."""
    square = number_like(smoothing, t) ** 2
    weight = number_like(weight, t)
    return square, weight, weight * square, sigma, 1.0 / (sigma + weight / smoothing)


def newton_pull_back(size: Tensor, T: Tensor, steps: int, *constants: Tensor) -> None:
    """Newton's method on sigma T + f'(T) = size, T >= 0, in the memory of T, which holds the start: with R = 1/sqrt(T²
    + nu²) the next point is (size - l (TR)³) / (sigma + l nu² R³), never above the root since f' is concave there."""
    square, weight, curvature, sigma, share = constants
    low = size * share
    for _ in range(steps):
        inverse = torch.addcmul(square, T, T).rsqrt_()
        T.mul_(inverse).pow_(3)
        torch.addcmul(size, T, weight, value=-1.0, out=T)
        T.div_(inverse.pow_(3).mul_(curvature).add_(sigma))  # addcmul with two constants of a channel is slow
        torch.maximum(T, low, out=T)
