"""What is tested of a function that is given by its value: that it is a function of each sample, differentiable, of its
parameters, and near a point what its author declares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.potentials.value_derivatives import GivenFunction, SecondDerivatives

__all__ = ["Declared", "probe", "screen"]

_STEPS, _TURNS, _CLOSE, _MOVE, _FEW = 3, 6, 1e-4, 0.1, 4
_SAME, _SLACK = 1e-9, 1e-6


@dataclass(frozen=True)
class Declared:
    """What the author of a function R vouches for; None: nothing. name: of its class.

    modulus: R(x) - modulus/2 ‖x‖² is convex. gradient_lipschitz, hessian_lipschitz: Lipschitz constants of ∇R and of
    ∇²R. cross_bound, cross_lipschitz: bound and Lipschitz constant of ∂_theta ∇R, theta all parameters together. Norms
    are 2-norms, of matrices spectral ones. examined: whether any of it is held against probes.
    """

    name: str
    modulus: float | None = None
    gradient_lipschitz: float | None = None
    hessian_lipschitz: float | None = None
    cross_bound: float | None = None
    cross_lipschitz: float | None = None
    examined: bool = True

    def lacks(self, gradients: bool, curvature_known: bool, cross_known: bool) -> str:
        """What bounds need and nobody declared, a sentence; "" if nothing. gradients: of hypergradients, for which
        norms of the second derivatives may be known at the point."""
        if not self.examined:
            return f"{self.name} was not examined (examine = False)"
        if self.modulus is None:
            return f"{self.name} declares neither convex = True nor a modulus"
        known = {"gradient_lipschitz": curvature_known, "hessian_lipschitz": False}
        known |= {"cross_bound": cross_known, "cross_lipschitz": False}
        missing = [name for name in known if gradients and getattr(self, name) is None and not known[name]]
        return f"{self.name} does not declare {', '.join(missing)}" if missing else ""


# ---- the contract ----------------------------------------------------------------------------------------------------


def screen(function: GivenFunction, name: str, shape: tuple[int, ...], device: torch.device | None) -> None:
    """Look at the function on two images of noise: finite, the same when it is asked again, of each sample by itself,
    twice differentiable, and moving with the parameters as autograd says.

    Raises
    ------
    ConfigError: it is not.
    """
    call, generator = f"{name}.value(x)", torch.Generator().manual_seed(7)
    noise = 0.3 * torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    x = noise.to(device).requires_grad_()
    value = function.value(x)
    if not value.requires_grad:
        raise ConfigError(f"{call}: the result is cut off from autograd; build it of torch operations of x.")
    if not bool(torch.isfinite(value).all()):
        raise ConfigError(f"{call}: NaN or infinite for noise of size 0.3.")
    gradient, weighted = _gradients(value, x, call)
    _screen_smoothness(function, x.detach(), gradient, call)
    if not _close(function.value(x).detach(), value.detach()):
        raise ConfigError(f"{call}: two calls differ; take randomness out of it (call .eval() where there is dropout).")
    expected = expand(torch.tensor([1.0, 2.0], dtype=x.dtype, device=x.device), x) * gradient
    if not _close(weighted, expected):
        raise ConfigError(
            f"{call}: a value depends on other samples of the batch; return one number for each sample, from it alone "
            "(no batch normalisation in training mode: call .eval())."
        )
    _screen_parameters(function, value, x.detach(), call)


def _gradients(value: Tensor, x: Tensor, call: str) -> tuple[Tensor, Tensor]:
    """The gradients of the sum, and of the sum with weights 1 and 2, after a look at second derivatives."""
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)
    if gradient.requires_grad:
        try:
            torch.autograd.grad(gradient.sum(), x, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise ConfigError(f"{call}: it cannot be differentiated twice ({error}).") from error
    weights = torch.tensor([1.0, 2.0], dtype=value.dtype, device=value.device)
    (weighted,) = torch.autograd.grad((weights * value).sum(), x, retain_graph=True, materialize_grads=True)
    return gradient.detach(), weighted


def _screen_smoothness(function: GivenFunction, x: Tensor, gradient: Tensor, call: str) -> None:
    """A gradient at 0, and curvature where the gradient changes."""
    flat = torch.zeros_like(x).requires_grad_()
    (at_zero,) = torch.autograd.grad(function.value(flat).sum(), flat, materialize_grads=True)
    if not bool(torch.isfinite(at_zero).all() & torch.isfinite(gradient).all()):
        raise ConfigError(
            f"{call}: its gradient is NaN or infinite, at 0 or at noise; smooth roots and norms, as sqrt(t² + 1e-6)."
        )
    bends = [SecondDerivatives(function, point).hessian(x) for point in (x, -x, 2.0 * x)]
    if not any(bool(bend.any()) for bend in bends) and not _close(at_zero, gradient):
        raise ConfigError(
            f"{call}: it is piecewise linear (ReLU, abs?), without second derivatives, which solvers and gradients "
            "rest on; use a smooth function, such as softplus or sqrt(t² + 1e-6)."
        )


def _screen_parameters(function: GivenFunction, value: Tensor, x: Tensor, call: str) -> None:
    """Parameters that move the value, although autograd does not see it, are named."""
    learned = {name: t for name, t in function.tensors.items() if t.requires_grad}
    if not learned:
        return
    grads = torch.autograd.grad(value.sum(), list(learned.values()), allow_unused=True)
    unseen = {name for name, g in zip(learned, grads, strict=True) if g is None}
    if unseen and not _close(function.moved(unseen, _MOVE).value(x).detach(), value.detach()):
        raise ConfigError(
            f"{call}: it depends on {', '.join(sorted(unseen))}, but autograd does not see how (a detach, .data or "
            "no_grad inside?), so that nothing would be learned of it."
        )


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= _SAME * (b.norm() + 1e-300)) or torch.equal(a, b)


# ---- what is declared ------------------------------------------------------------------------------------------------


def probe(function: GivenFunction, declared: Declared, x: Tensor, gradients: bool) -> None:
    """Hold what is declared against gradients at and near x: moves of the size of x and much smaller ones, by power
    steps towards the largest and the smallest curvature. What passes may still be wrong elsewhere.

    Raises
    ------
    ConfigError: a constant is contradicted; it says by what.
    """
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        return
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(2, *x.shape, dtype=torch.float64, generator=generator).to(x)
    size = norm_samples(x).clamp_min(1e-3) / math.sqrt(x[0].numel())
    at = _Point(function, declared, x)
    for relative in (1.0, _CLOSE):
        step = expand(relative * size, x)
        at.hold_gradients(step * draw[0])
        if gradients:
            at.hold_second_derivatives(step * draw[0], draw[1])
    if gradients:
        at.hold_third_derivatives(step * draw[0])


class _Point:
    """Where a function is probed."""

    def __init__(self, function: GivenFunction, declared: Declared, x: Tensor) -> None:
        self.function, self.declared, self.x = function, declared, x
        self.gradient = self._slope(x)

    def _slope(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            value = self.function.value(point)
            return torch.autograd.grad(value.sum(), point, materialize_grads=True)[0]

    def hold_gradients(self, start: Tensor) -> None:
        """The modulus, and the Lipschitz constant of the gradient."""
        largest = torch.zeros_like(norm_samples(start))
        for towards_largest in (True, False):
            move = start
            for _ in range(_STEPS):
                change = self._slope(self.x + move) - self.gradient
                length = norm_samples(move).clamp_min(1e-300)
                rounding = 10.0 * torch.finfo(move.dtype).eps * (norm_samples(self.gradient) + norm_samples(change))
                bend, speed = inner_samples(change, move) / length**2, norm_samples(change) / length
                self._at_least("modulus", bend, rounding / length)
                self._at_most("gradient_lipschitz", speed, rounding / length)
                largest = torch.maximum(largest, speed)
                following = change if towards_largest else expand(largest, move) * move - change
                size = norm_samples(following)
                move = expand(torch.where(size > 0, length / size.clamp_min(1e-300), 0.0), move) * following

    def hold_second_derivatives(self, move: Tensor, v: Tensor) -> None:
        """The Lipschitz constant of the Hessian, and bound and Lipschitz constant of the derivative in the parameters;
        of few samples."""
        x, move, v = self.x[:_FEW], move[:_FEW], v[:_FEW]
        near, far = (SecondDerivatives(self.function, point) for point in (x, x + move))
        length = norm_samples(move).clamp_min(1e-300)

        def bend(d: Tensor) -> tuple[Tensor, Tensor]:
            ahead, here = far.hessian(d), near.hessian(d)
            return ahead - here, norm_samples(ahead) + norm_samples(here)

        def cross(d: Tensor) -> tuple[Tensor, Tensor]:
            ahead, here = far.cross(d), near.cross(d)
            return ahead - here, norm_samples(ahead) + norm_samples(here)

        def here_alone(d: Tensor) -> tuple[Tensor, Tensor]:
            found = near.cross(d)
            return found, norm_samples(found)

        one = torch.ones_like(length)
        self._hold_norm("hessian_lipschitz", bend, lambda d: d, v, length)
        if near.learned:
            self._hold_norm("cross_bound", here_alone, near.pulled, v, one)
            self._hold_norm("cross_lipschitz", cross, lambda u: far.pulled(u) - near.pulled(u), v, length)

    def hold_third_derivatives(self, move: Tensor) -> None:
        """The same Lipschitz constants for moves that a few pixels make alone: ∂³R and ∂_theta ∂²R are symmetric in
        the move and in what the change is applied to, so that power steps on both at once lead to where they are large.
        Images of noise show them over √n. Of few samples."""
        x, move = self.x[:_FEW], move[:_FEW]
        near, length = SecondDerivatives(self.function, x), norm_samples(move).clamp_min(1e-300)
        names = ("hessian_lipschitz", "cross_lipschitz") if near.learned else ("hessian_lipschitz",)
        for name in names:
            d = move
            for _ in range(_TURNS):
                far, v = SecondDerivatives(self.function, x + d), d / expand(length, d)
                ahead, here = (at.hessian(v) if name == "hessian_lipschitz" else at.cross(v) for at in (far, near))
                change, size = ahead - here, norm_samples(ahead) + norm_samples(here)
                rounding = 100.0 * torch.finfo(v.dtype).eps * size / length
                self._at_most(name, norm_samples(change) / length, rounding)
                following = change if name == "hessian_lipschitz" else far.pulled(change) - near.pulled(change)
                if not bool((norm_samples(following) > 0).all()):
                    break
                d = following * expand(length / norm_samples(following), following)

    def _hold_norm(
        self,
        name: str,
        apply: Callable[[Tensor], tuple[Tensor, Tensor]],
        back: Callable[[Tensor], Tensor],
        v: Tensor,
        length: Tensor,
    ) -> None:
        """That the norm of a map, over the length of a move, is at most what is declared: by power steps. The map tells
        the size of what it subtracted, too."""
        for _ in range(_STEPS):
            image, size = apply(v)
            scale = norm_samples(v).clamp_min(1e-300) * length
            rounding = 100.0 * torch.finfo(v.dtype).eps * size / scale
            self._at_most(name, norm_samples(image) / scale, rounding)
            v = back(image)
            if not bool((norm_samples(v) > 0).all()):
                break
            v = v / expand(norm_samples(v), v)

    def _at_most(self, name: str, found: Tensor, rounding: Tensor) -> None:
        limit = getattr(self.declared, name)
        if limit is not None and bool((found > limit * (1.0 + _SLACK) + rounding).any()):
            raise ConfigError(
                f"{self.declared.name}.{name} = {limit:g} is declared, but near the solution {float(found.max()):.6g} "
                "was found; declare at least that, or nothing."
            )

    def _at_least(self, name: str, found: Tensor, rounding: Tensor) -> None:
        limit = getattr(self.declared, name)
        if limit is not None and bool((found < limit - abs(limit) * _SLACK - rounding).any()):
            said = "convex = True" if limit == 0 else f"{name} = {limit:g}"
            raise ConfigError(
                f"{self.declared.name}.{said} is declared, but near the solution it has the curvature "
                f"{float(found.min()):.6g}; declare a modulus of at most that, or nothing."
            )
