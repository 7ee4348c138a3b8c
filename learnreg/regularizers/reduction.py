"""Regularizers R(x) = min over z of F(x, z) whose latent variables are coupled over the image: the best z, to rounding,
and R with two derivatives.

F(x, z) = f(K (x, z)) + ½ modulus ‖z‖² is strongly convex in z. Newton's method finds its minimiser, its steps by
conjugate gradients or, for few unknowns, by a dense matrix; where f is nearly kinked, for smoother potentials first.
∇R = ∂F/∂x by the envelope theorem, and the second derivative goes through dz/dx = -F_zz^-1 F_zx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learnreg.kernels.numbers import number_like
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.identity import Unchanged
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import expand, inner_samples, sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.constraints import FreePixels, Unconstrained
from learnreg.lower_level.instance import Counter, Instance
from learnreg.lower_level.quadratic import DiagonalQuadratic
from learnreg.potentials.base import Potential
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.continuation import smoother_instances
from learnreg.solvers.loop import iterate

__all__ = ["Reduction", "best_latent", "reduced_value"]

_MAX_NEWTON_STEPS, _MAX_CG_STEPS, _MAX_TRIALS = 60, 2000, 30
_ROUGH, _AT_ROUNDING, _PATIENCE = 1e-2, 8.0, 3
_LARGEST_FORCING, _SMALLEST_FORCING = 0.1, 1e-6
_INVERSE = 1e-13

_DENSE = 256
"""Latent variables of an image up to which dense matrices take less time than conjugate gradients."""


class Reduction(Protocol):
    """What a regularizer says of F: ``energy`` of images and latent variables, (batch,), differentiable twice in all
    arguments; the analysis operator and potential for fixed parameters."""

    image_channels: int
    modulus: float

    def energy(self, x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor: ...

    def terms(self, image_shape: tuple[int, ...], *parameters: Tensor) -> tuple[LinearOperator, Potential]: ...


@dataclass(frozen=True)
class _Inner:
    """½ modulus ‖v‖² + f(K v) in v = (x, z), of which z alone moves."""

    instance: Instance
    own: Tensor
    columns: Tensor | None
    """K of each unit vector of z, (n, *range_shape), where these are few."""

    @classmethod
    def of(cls, operator: LinearOperator, potential: Potential, modulus: float, x: Tensor, channels: int) -> _Inner:
        shape = operator.domain_shape
        number = number_like(modulus, x)
        instance = Instance(
            quadratic=DiagonalQuadratic(Unchanged(shape), number, 0.0, number),
            q=x.new_zeros(x.shape[0], *shape),
            analysis=operator,
            potential=potential.to(x.dtype),
            box=Unconstrained(),
            strong_convexity=modulus,
            counter=Counter(),
        )
        own = (torch.arange(shape[0], device=x.device) >= channels)[:, None, None].expand(instance.q.shape)
        fixed, count = channels * math.prod(shape[1:]), math.prod(shape)
        columns = None
        if count - fixed <= _DENSE:
            units = torch.eye(count, dtype=x.dtype, device=x.device)[fixed:]
            columns = operator(units.view(-1, *shape))
        return cls(instance, own, columns)

    def gradient(self, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """∂F/∂z within all variables, and what of its norm may be rounding."""
        f = self.instance.potential
        y, bent = f.grad(t), f.second(t) * t
        g = torch.where(self.own, self.instance.quadratic(v) + self.instance.adjoint(y), 0.0)
        rounded = self.instance.analysis.norm_bound() * (sum_samples(y * y) + sum_samples(bent * bent)).sqrt()
        return g, _AT_ROUNDING * torch.finfo(v.dtype).eps * rounded

    def inverse(self, t: Tensor, rhs: Tensor, relative: Tensor) -> Tensor:
        """F_zz^-1 rhs at responses t, to residuals relative to rhs, (batch,), or to rounding."""
        if self.columns is not None:
            return self._solved(self.columns, t, rhs)
        equation = replace(AdjointEquation.at(self.instance, rhs, t, -rhs), free=FreePixels(self.own))
        goal = relative * sum_samples(rhs**2).sqrt()
        never = torch.zeros_like(goal)
        return iterate(ConjugateGradient(), equation, torch.zeros_like(rhs), goal, never, _MAX_CG_STEPS).x

    def _solved(self, columns: Tensor, t: Tensor, rhs: Tensor) -> Tensor:
        """The same by the dense matrix of each sample."""
        fixed, f, rows = rhs[0].numel() - len(columns), self.instance.potential, columns.flatten(1).T
        hessian = torch.stack([f.hess_vec(t_, columns).flatten(1) @ rows for t_ in torch.split(t, 1)])
        hessian.diagonal(dim1=1, dim2=2).add_(self.instance.strong_convexity)
        z = torch.linalg.solve_ex(hessian, rhs.flatten(1)[:, fixed:, None]).result[:, :, 0]
        return torch.cat([z.new_zeros(len(t), fixed), z], 1).view_as(rhs)

    def minimise(self, v: Tensor, relative: float) -> Tensor:
        """Newton steps until the gradient is a share of what it was, or rounding."""
        t = self.instance.apply(v)
        g, floor = self.gradient(v, t)
        size = sum_samples(g * g).sqrt()
        goal = torch.maximum(relative * size, floor)
        best, best_size, idle, before = v, size, 0, size
        for _ in range(_MAX_NEWTON_STEPS):
            if bool((best_size <= goal).all()) or idle >= _PATIENCE:
                break
            ratio = size / before.clamp_min(torch.finfo(size.dtype).tiny)
            d = self.inverse(t, -g, (0.9 * ratio**2).clamp(_SMALLEST_FORCING, _LARGEST_FORCING))
            move = self.instance.apply(d)
            alpha = self._step_length(v, d, t, move)
            v, t = torch.addcmul(v, expand(alpha, d), d), torch.addcmul(t, expand(alpha, t), move)
            g, floor = self.gradient(v, t)
            before, size = size, sum_samples(g * g).sqrt()
            goal = torch.maximum(goal, floor)
            better = size < best_size
            idle = 0 if bool((size < 0.5 * best_size).any()) else idle + 1
            best = torch.where(expand(better, v), v, best)
            best_size = torch.minimum(size, best_size)
        return best

    def _step_length(self, v: Tensor, d: Tensor, t: Tensor, move: Tensor) -> Tensor:
        """1, or less until the slope at the end is at most half the one at the start in size, by regula falsi."""
        quadratic = self.instance.quadratic(d)
        at_start, curvature = inner_samples(quadratic, v), inner_samples(quadratic, d)

        def slope(alpha: Tensor) -> Tensor:
            gradient = self.instance.potential.grad(t + expand(alpha, t) * move)
            return at_start + alpha * curvature + inner_samples(gradient, move)

        low = slope(torch.zeros_like(at_start))
        alpha = torch.ones_like(low)
        now = slope(alpha)
        for _ in range(_MAX_TRIALS):
            done = now <= 0.5 * low.abs()
            if bool(done.all()):
                break
            alpha = torch.where(done, alpha, alpha * (low / (low - now)).clamp(0.1, 0.5))
            now = torch.where(done, now, slope(alpha))
        return alpha


@torch.no_grad()
def best_latent(reduction: Reduction, x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
    """The minimiser of F(x, .), to rounding or as far as Newton's method goes, from a guess."""
    operator, potential = reduction.terms(tuple(x.shape[1:]), *(p.detach() for p in parameters))
    inner = _Inner.of(operator, potential, reduction.modulus, x, reduction.image_channels)
    v = torch.cat([x, z], 1)
    for smoother in smoother_instances(inner.instance, v):
        v = replace(inner, instance=smoother).minimise(v, _ROUGH)
    return inner.minimise(v, 0.0)[:, reduction.image_channels :]


class _Best(torch.autograd.Function):
    """The minimiser z as a function of images and parameters, differentiable once."""

    @staticmethod
    def forward(ctx: Any, reduction: Reduction, z: Tensor, *inputs: Tensor) -> Tensor:
        ctx.reduction = reduction
        ctx.save_for_backward(z, *inputs)
        return z.clone()

    @staticmethod
    @full_precision
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        reduction: Reduction = ctx.reduction
        z, x, *parameters = ctx.saved_tensors
        operator, potential = reduction.terms(tuple(x.shape[1:]), *parameters)
        inner = _Inner.of(operator, potential, reduction.modulus, x, reduction.image_channels)
        rhs = torch.cat([torch.zeros_like(x), cotangent], 1)
        relative = torch.full_like(rhs.flatten(1)[:, 0], max(_INVERSE, 4.0 * torch.finfo(x.dtype).eps))
        u = inner.inverse(operator(torch.cat([x, z], 1)), rhs, relative)[:, x.shape[1] :]
        with torch.enable_grad():  # 0 = F_z, so that dz = -F_zz^-1 F_z,theta dtheta
            inputs = [p.detach().requires_grad_() for p in (x, *parameters)]
            point = z.detach().requires_grad_()
            energy = reduction.energy(inputs[0], point, *inputs[1:]).sum()
            (slope,) = torch.autograd.grad(energy, point, create_graph=True)
            grads = torch.autograd.grad(-(slope * u).sum(), inputs, allow_unused=True)
        return (None, None, *grads)


class _Value(torch.autograd.Function):
    """R, (batch,), and its derivatives by the envelope theorem."""

    @staticmethod
    def forward(ctx: Any, reduction: Reduction, z: Tensor, *inputs: Tensor) -> Tensor:
        ctx.reduction = reduction
        ctx.save_for_backward(z, *inputs)
        return reduction.energy(inputs[0], z, *inputs[1:])

    @staticmethod
    @full_precision
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        reduction: Reduction = ctx.reduction
        z, *inputs = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if again:
            z = _Best.apply(reduction, z, *inputs)  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            # derivatives in the aliases leave out the way through z
            own = [p.view_as(p) if again and p.requires_grad else p.detach().requires_grad_() for p in inputs]
            total = (reduction.energy(own[0], z, *own[1:]) * cotangent).sum()
            grads = torch.autograd.grad(total, own, create_graph=again, allow_unused=True)
        return (None, None, *grads)


def reduced_value(reduction: Reduction, x: Tensor, guess: Tensor, *parameters: Tensor) -> Tensor:
    """R(x), (batch,), with the best z to rounding; differentiable twice in images and parameters."""
    z = best_latent(reduction, x.detach(), guess.detach(), *parameters)
    return cast(Tensor, _Value.apply(reduction, z, x, *parameters))  # type: ignore[no-untyped-call]
