"""Newton corrections of (x, X), for Lemma 5 of the certificate and for estimates where no bound exists.

x' = x - d with H(x) d = ∇E(x) to a relative residual, and X' solves the adjoint equation at x'. Whatever they are, the
bound at (x', X') is evaluated afresh there, and ‖d‖ added to it judges x: nothing depends on how well they were solved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.certificates.state import state_residual
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate

__all__ = [
    "Approach",
    "Correction",
    "approach_state",
    "correct_adjoint",
    "correct_state",
    "extended_adjoint",
    "newton_correction",
]

_MAX_STEPS, _MAX_NEWTON_STEPS = 2000, 12
_SMALLEST_FORCING, _LARGEST_FORCING = 1e-8, 0.1
_CONTRACTION = 0.5
_EXTENSION = 1e-13


@dataclass(frozen=True)
class Correction:
    """A better point, and the conjugate-gradient steps it took. definite: no negative curvature ended them."""

    point: Tensor
    steps: int
    definite: bool = True


@dataclass(frozen=True)
class Approach(Correction):
    """Where Newton steps led, up to the first that did not contract. before: norms of the residual where the last of
    them began, (batch,). reached: it was to meet the goal. contracted: there was one."""

    before: Tensor = field(kw_only=True)
    reached: bool = field(kw_only=True)
    contracted: bool = field(kw_only=True)


@torch.no_grad()
def correct_state(instance: Instance, x: Tensor, relative: Tensor, max_steps: int | None = None) -> Correction:
    """One Newton step on the free pixels, each sample to its own relative residual, (batch,); inside the box."""

    def work(part: Instance, index: slice) -> Correction:
        own = x[index]
        t = part.apply(own)
        residual = state_residual(part, own, part.adjoint(part.potential.grad(t)))
        return _newton_step(part, own, t, residual, relative[index], max_steps)

    return _joined(instance.by_parts(work))


@torch.no_grad()
def approach_state(
    instance: Instance,
    x: Tensor,
    goal: Tensor,
    forcing: float,
    max_steps: int | None = None,
    newton_steps: int = _MAX_NEWTON_STEPS,
) -> Approach:
    """Newton steps towards residuals of norm ``goal``, (batch,); inside the box. Each goes as far as the contraction of
    the one before it lets it (Eisenstat and Walker, 1996), the first to the relative residual ``forcing``; samples that
    share their applications go equally far. The last step is not checked. Ends early at one that did not contract, or
    after so many steps."""

    def work(part: Instance, index: slice) -> Approach:
        own, aim, steps = x[index], goal[index], 0
        share, before = torch.full_like(aim, forcing), torch.full_like(aim, torch.inf)
        kept, asked, reached = own, share, False
        for count in range(newton_steps):
            t = part.apply(own)
            residual = state_residual(part, own, part.adjoint(part.potential.grad(t)))
            size = sum_samples(residual**2).sqrt()
            if bool((size <= aim).all()):
                return Approach(own, steps, before=torch.minimum(before, size), reached=True, contracted=True)
            if count:
                ratio = size / before
                if not bool((ratio <= (2.0 * asked).clamp_min(_CONTRACTION)).all()):
                    return Approach(kept, steps, before=before, reached=False, contracted=count > 1)
                ratio = torch.where(asked > share, 0.0, ratio)  # those that asked for less say nothing
                share = (ratio**2).amax().clamp(_SMALLEST_FORCING, _LARGEST_FORCING).expand_as(ratio)
            wanted = aim / size.clamp_min(torch.finfo(size.dtype).tiny)
            asked, left = torch.maximum(share, wanted), None if max_steps is None else max_steps - steps
            step = _newton_step(part, own, t, residual, asked, left)
            kept, own, before, steps = own, step.point, size, steps + step.steps
            reached = bool((share <= wanted).all())
            if reached or (max_steps is not None and steps >= max_steps):
                break
        return Approach(own, steps, before=before, reached=reached, contracted=True)

    parts = instance.by_parts(work)
    whole, before = _joined([*parts]), torch.cat([p.before for p in parts])
    reached, contracted = all(p.reached for p in parts), all(p.contracted for p in parts)
    return Approach(whole.point, whole.steps, before=before, reached=reached, contracted=contracted)


def _newton_step(
    part: Instance, x: Tensor, t: Tensor, residual: Tensor, relative: Tensor, max_steps: int | None
) -> Correction:
    """From x with the responses t, to a relative residual, (batch,)."""
    equation = AdjointEquation.at(part, x, t, -residual)
    goal = relative * sum_samples(equation.rhs**2).sqrt()
    found = iterate(_solver(), equation, torch.zeros_like(x), goal, torch.zeros_like(goal), _limit(max_steps))
    return Correction(part.box.prox(x - found.x), found.steps, found.status is not Status.INDEFINITE)


@torch.no_grad()
def correct_adjoint(point: Point, residual: Tensor, max_steps: int | None = None) -> Correction:
    """X closer to the solution of the adjoint equation at x, to residuals (batch,)."""

    def work(part: Instance, index: slice) -> Correction:
        x = point.x[index]
        equation = AdjointEquation.at(part, x, part.apply(x), point.loss_gradient[index])
        never = torch.zeros_like(residual[index])
        found = iterate(_solver(), equation, point.X[index], residual[index], never, _limit(max_steps))
        return Correction(found.x, found.steps, found.status is not Status.INDEFINITE)

    return _joined(point.instance.by_parts(work))


@torch.no_grad()
def newton_correction(point: Point, relative: float) -> Point | None:
    """(x', X') one Newton step further, both to the same relative residual; None where the energy curves downwards."""
    share = point.x.new_full((point.instance.batch,), relative)
    state = correct_state(point.instance, point.x, share)
    moved = point.at(state.point, point.X)
    size = sum_samples(moved.loss_gradient**2).sqrt()
    adjoint = correct_adjoint(moved, share * size)
    return moved.at(moved.x, adjoint.point) if state.definite and adjoint.definite else None


@torch.no_grad()
def extended_adjoint(instance: Instance, x: Tensor, X: Tensor) -> Tensor:
    """(X, Z^) with the latent part that belongs to X at x, which has latent variables; X itself without. The gradient
    formed from it is that of the energy reduced to images, formed from X."""
    if not instance.latent.channels:
        return X
    equation = AdjointEquation.at(instance, x, instance.apply(x), torch.zeros_like(x)).of_latent(X)
    goal = _EXTENSION * sum_samples(equation.rhs**2).sqrt()
    found = iterate(ConjugateGradient(), equation, torch.zeros_like(x), goal, torch.zeros_like(goal), _MAX_STEPS)
    return torch.cat([X, found.x[:, X.shape[1] :]], 1)


def _solver() -> ConjugateGradient:
    """Looks at the residual often: it is what the goals are about, and a step costs more than a look."""
    return ConjugateGradient(check_every=2, smooth=True)


def _joined(parts: list[Correction]) -> Correction:
    point, steps = torch.cat([p.point for p in parts]), max(p.steps for p in parts)
    return Correction(point, steps, all(p.definite for p in parts))


def _limit(max_steps: int | None) -> int:
    return _MAX_STEPS if max_steps is None else max(1, min(max_steps, _MAX_STEPS))
