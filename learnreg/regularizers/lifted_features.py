"""The features of a lifted network: the quadratic program that is left once the image is fixed.

For the responses a = W x + b and B of ``convolutions.lifted.couple``,

    V(a) = min over z >= 0 of  <c, z_L> + ½ delta_z ‖z‖² + ‖(a + B z)_+‖² / (2 delta_y)                              (P)
         = max over y >= 0 of  <a, y> - ½ delta_y ‖y‖² - ‖(-c - B^T y)_+‖² / (2 delta_z)                             (D)

Both are attained, at y = (a + B z)_+ / delta_y and z = (-c - B^T y)_+ / delta_z; ∇V = y. V is piecewise quadratic and
once differentiable, twice away from changes of the active sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from learnreg.convolutions.lifted import couple, couple_adjoint, coupling_norm, squared_coupling
from learnreg.convolutions.network_layers import mix, mix_adjoint
from learnreg.kernels.numbers import number_like
from learnreg.linear.grad_mode import full_precision
from learnreg.linear.samples import expand, sum_samples

__all__ = ["InnerProblem", "reduced_value"]

_MAX_NEWTON_STEPS, _MAX_CG_STEPS, _MAX_TRIALS = 200, 500, 20
_LARGEST_FORCING, _SMALLEST_FORCING = 0.1, 1e-8
_PATIENCE, _LONG_PATIENCE, _NEAR = 4.0, 40.0, 100.0
_AT_ROUNDING = 4.0
_GRADIENT_STEPS = 3


@dataclass(frozen=True)
class InnerProblem:
    """(P) for responses a (batch, L n, h, w). mixing: U, (L - 1, n, n, m, m); weights: c, (n,); in the dtype of a."""

    a: Tensor
    mixing: Tensor
    weights: Tensor
    delta_y: float
    delta_z: float

    @property
    def cost(self) -> Tensor:
        """c behind the zeros of the layers before the last, (L n, 1, 1)."""
        before = self.weights.new_zeros(self.a.shape[1] - self.weights.shape[0])
        return torch.cat([before, self.weights])[:, None, None]

    def dual(self, z: Tensor) -> Tensor:
        """y = (a + B z)_+ / delta_y."""
        return (self.a + couple(z, self.mixing)).clamp_min(0.0) / self.delta_y

    def primal(self, y: Tensor) -> Tensor:
        """z = (-c - B^T y)_+ / delta_z."""
        return (-self.cost - couple_adjoint(y, self.mixing)).clamp_min(0.0) / self.delta_z

    def upper(self, z: Tensor) -> Tensor:
        """The objective of (P), (batch,): at least V for every z >= 0."""
        y = self.dual(z)
        return sum_samples(self.cost * z + 0.5 * self.delta_z * z * z + 0.5 * self.delta_y * y * y)

    def lower(self, y: Tensor) -> Tensor:
        """The objective of (D), (batch,): at most V for every y >= 0."""
        z = self.primal(y)
        return sum_samples(self.a * y - 0.5 * self.delta_y * y * y - 0.5 * self.delta_z * z * z)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """That of (P) at z with the dual y = dual(z)."""
        return self.cost + self.delta_z * z + couple_adjoint(y, self.mixing)

    def network_features(self) -> Tensor:
        """Those of the ReLU network itself, to which the solution tends as both deltas vanish."""
        found: list[Tensor] = []
        for l, a in enumerate(torch.split(self.a, self.weights.shape[0], 1)):
            found.append((a if l == 0 else a + mix(found[-1], self.mixing[l - 1])).clamp_min(0.0))
        return torch.cat(found, 1)

    def first_features(self) -> Tensor:
        """Features with the residuals delta_y y that belong to the network's own derivatives y: close to the solution
        as long as these are right. Three passes through the network."""
        n, z = self.weights.shape[0], self.network_features()
        on = torch.split((z > 0).to(z), n, 1)
        duals = [self.weights[:, None, None] * on[-1]]
        for U, mask in zip(reversed(self.mixing), reversed(on[:-1]), strict=True):
            duals.insert(0, mask * mix_adjoint(duals[0], U))
        shifted = InnerProblem(self.a - self.delta_y * torch.cat(duals, 1), self.mixing, self.weights, 0.0, 0.0)
        return shifted.network_features()

    # ---- solution ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def solve(self, start: Tensor | None = None) -> Tensor:
        """The minimiser z of (P) to rounding: projected Newton steps on the features that are not held at 0 (those
        nearly at 0 are moved by their gradient: Bertsekas, 1982), each followed by a step of projected gradients, which
        alone would converge. Where U does not mix pixels, each goes its own way."""
        z = self._first_features() if start is None else start
        rate = 1.0 / (self.delta_z + coupling_norm(self.mixing, self.weights.shape[0]) ** 2 / self.delta_y)
        for sweep in range(_MAX_NEWTON_STEPS):
            y = self.dual(z)
            g = self.gradient(z, y)
            r = torch.where((z > 0) | (g <= 0), g, 0.0)
            size = self._norm(r)
            if sweep == 0:
                best_z, best, idle, before = z, torch.full_like(size, torch.inf), torch.zeros_like(size), size
            better = size < best
            idle = torch.where(size < 0.5 * best, 0.0, idle + 1.0)
            best_z, best = torch.where(better, z, best_z), torch.minimum(best, size)
            floor = self._rounding(z, y)
            running = (best > floor) & (idle < torch.where(best <= _NEAR * floor, _PATIENCE, _LONG_PATIENCE))
            if not bool(running.any()):
                break
            ratio = size / before.clamp_min(torch.finfo(size.dtype).tiny)
            forcing, before = (0.9 * ratio**2).clamp(_SMALLEST_FORCING, _LARGEST_FORCING), size
            near = torch.minimum(self._norm(z - (z - rate * g).clamp_min(0.0)), 1e-3 * self._norm(z))
            held = (z <= near) & (g > 0)
            active = (y > 0).to(z)
            inverse = 1.0 / (self.delta_z + squared_coupling(active, self.mixing) / self.delta_y)
            d = self._linear_solve(active, ~held, torch.where(held, 0.0, -g), forcing, inverse)
            z = self._search(z, g, torch.where(held, -inverse * g, d))
            for _ in range(_GRADIENT_STEPS):
                z = (z - rate * self.gradient(z, self.dual(z))).clamp_min(0.0)
        return best_z

    def _first_features(self) -> Tensor:
        """Those of the network, or none where that is better."""
        z = self.network_features()
        worse = self.upper(z) > self.upper(torch.zeros_like(z))
        return torch.where(worse[:, None, None, None], 0.0, z)

    @property
    def _apart(self) -> tuple[int, ...]:
        """Axes that couple: features alone, or places, too."""
        return (1,) if self.mixing.shape[-1] == 1 else (1, 2, 3)

    def _inner(self, u: Tensor, v: Tensor) -> Tensor:
        """Inner products of all that is coupled, to broadcast against features."""
        product: Tensor = (u * v).sum(self._apart, keepdim=True)
        return product

    def _norm(self, v: Tensor) -> Tensor:
        return self._inner(v, v).sqrt()

    def _rounding(self, z: Tensor, y: Tensor) -> Tensor:
        """What of the gradient may be rounding."""
        eps = torch.finfo(z.dtype).eps
        sizes = self.delta_z * self._norm(z) + self._norm(y) + self._norm(couple_adjoint(y, self.mixing))
        rounding: Tensor = _AT_ROUNDING * eps * (sizes + self.weights.norm())
        return rounding

    def _search(self, z: Tensor, g: Tensor, d: Tensor) -> Tensor:
        """The projected step, shortened until the slope along the way at its end is at most half the one at its start
        in size; no step where that fails."""
        found, waiting = z, torch.ones_like(z[:, :1] if self._apart == (1,) else z[:, :1, :1, :1], dtype=torch.bool)
        alpha = torch.ones_like(waiting, dtype=z.dtype)
        for _ in range(_MAX_TRIALS):
            trial = torch.addcmul(z, alpha, d).clamp_min(0.0)
            way = trial - z
            before, after = self._inner(g, way), self._inner(self.gradient(trial, self.dual(trial)), way)
            good = waiting & (before <= 0) & (after <= 0.5 * before.abs())
            found = torch.where(good, trial, found)
            waiting = waiting & ~good
            if not bool(waiting.any()):
                break
            shorter = (before / (before - after)).nan_to_num(0.5).clamp(0.1, 0.5)
            alpha = torch.where(waiting, alpha * shorter, alpha)
        return found

    def hessian(self, active: Tensor, free: Tensor, v: Tensor) -> Tensor:
        """(delta_z + B^T D B / delta_y) v on the free features, D the mask of residuals above 0, for v supported
        there."""
        bent = couple_adjoint(active * couple(v, self.mixing), self.mixing) / self.delta_y
        return torch.where(free, self.delta_z * v + bent, 0.0)

    def _linear_solve(self, active: Tensor, free: Tensor, rhs: Tensor, relative: Tensor, inverse: Tensor) -> Tensor:
        """Conjugate gradients with the inverse diagonal, to residuals relative to rhs."""
        d, r = torch.zeros_like(rhs), rhs
        p = s = inverse * r
        rs, goal = self._inner(r, s), relative * self._norm(rhs)
        for _ in range(_MAX_CG_STEPS):
            if bool((self._norm(r) <= goal).all()):
                break
            h = self.hessian(active, free, p)
            curvature = self._inner(p, h)
            usable = (curvature > 0) & (rs > 0)
            step = torch.where(usable, rs / torch.where(usable, curvature, 1.0), 0.0)
            d, r = torch.addcmul(d, step, p), torch.addcmul(r, step, h, value=-1.0)
            s = inverse * r
            following = self._inner(r, s)
            p = torch.addcmul(s, torch.where(usable, following / torch.where(usable, rs, 1.0), 0.0), p)
            rs = following
        return d

    def implicit(self, z: Tensor, cotangent: Tensor, relative: float = 1e-13) -> Tensor:
        """w = H^-1 cotangent on the features that are not 0 at the solution z, with H the Hessian of (P) there."""
        free, active = z > 0, (self.dual(z) > 0).to(z)
        inverse = 1.0 / (self.delta_z + squared_coupling(active, self.mixing) / self.delta_y)
        rhs = torch.where(free, cotangent, 0.0)
        return self._linear_solve(active, free, rhs, number_like(relative, z), inverse)


class _Features(torch.autograd.Function):
    """The solution z as a function of (a, U, c), differentiable once where the active sets do not change."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, mixing: Tensor, weights: Tensor, z: Tensor, delta_y: float, delta_z: float
    ) -> Tensor:
        ctx.save_for_backward(a, mixing, weights, z)
        ctx.deltas = (delta_y, delta_z)
        return z.clone()

    @staticmethod
    @full_precision
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        a, mixing, weights, z = ctx.saved_tensors
        w = InnerProblem(a, mixing, weights, *ctx.deltas).implicit(z, cotangent)
        # 0 = ∂_z(P) on free features, so that dz = -H^-1 ∂_theta ∂_z(P) dtheta
        with torch.enable_grad():
            inputs = [p.detach().requires_grad_() for p in (a, mixing, weights)]
            inner = InnerProblem(inputs[0], inputs[1], inputs[2], *ctx.deltas)
            pairing = (inner.gradient(z, inner.dual(z)) * w).sum()
            grads = torch.autograd.grad(-pairing, inputs, allow_unused=True)
        return (*grads, None, None, None)


class _Value(torch.autograd.Function):
    """V(a; U, c), (batch,), and its derivatives by the envelope theorem."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, mixing: Tensor, weights: Tensor, delta_y: float, delta_z: float) -> Tensor:
        inner = InnerProblem(a, mixing, weights, delta_y, delta_z)
        z = inner.solve()
        ctx.save_for_backward(a, mixing, weights, z)
        ctx.deltas = (delta_y, delta_z)
        return inner.upper(z)

    @staticmethod
    @full_precision
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        a, mixing, weights, solved = ctx.saved_tensors
        differentiates = torch.is_grad_enabled()
        z = _Features.apply(a, mixing, weights, solved, *ctx.deltas) if differentiates else solved  # type: ignore
        y = InnerProblem(a, mixing, weights, *ctx.deltas).dual(z) * expand(cotangent, z)
        n = weights.shape[0]
        on_mixing = _mixing_gradient(z, y, mixing, n) if len(mixing) else torch.zeros_like(mixing)
        on_weights = (z[:, -n:] * expand(cotangent, z)).sum((0, 2, 3))
        return y, on_mixing, on_weights, None, None


def _mixing_gradient(z: Tensor, y: Tensor, mixing: Tensor, n: int) -> Tensor:
    """∂_U <B(U) z, y>: correlations of the features of a layer with the duals of the next. Differentiable."""
    found, m = [], mixing.shape[-1]
    for z_, y_ in zip(torch.split(z, n, 1), torch.split(y, n, 1)[1:], strict=False):
        padded = F.pad(z_, (m // 2,) * 4).transpose(0, 1)  # (n, batch, ...): features of both as channels
        found.append(F.conv2d(padded, y_.transpose(0, 1)).transpose(0, 1))
    return torch.stack(found)


def reduced_value(a: Tensor, mixing: Tensor, weights: Tensor, delta_y: float, delta_z: float) -> Tensor:
    """V(a), (batch,), solved to rounding; differentiable in a, U and c, twice off the changes of active sets."""
    mixing, weights = mixing.to(a.dtype), weights.to(a.dtype)
    return cast(Tensor, _Value.apply(a, mixing, weights, delta_y, delta_z))  # type: ignore[no-untyped-call]
